"""reproduce.py and plot.py end to end at toy size, on results that main.py and linear.py really wrote."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import reproduce
import utils
from attentionce import errors
from attentionce.evaluation import figures as drawn
from experiments import plot, studies

REPO = Path(__file__).parent.parent
PHOTOS = reproduce.PHOTOS


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Two rows of the photographs' study, which are one run, at the smallest size: DCL after one and after three epochs."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        small = reproduce.PHOTOS._replace(
            seeds=[0],
            pretrain=["--image_size", "8", "--knn_every", "1", "--k", "20"],
            linear=["--image_size", "8", "--epochs", "1", "--k", "20"],
        )
        patch.setattr(reproduce, "PHOTOS", small)
        rows = studies.all_rows()
        numbers = [
            1 + i for i, row in enumerate(rows) if row.method == "DCL" and row.dataset == "photos"
        ]
        command = [
            "reproduce.py",
            "--row",
            *map(str, numbers),
            "--epochs",
            "1",
            "--results",
            str(folder),
        ]
        patch.setattr("sys.argv", command)
        reproduce.list_and_run()
        yield folder, command, patch


def test_rows_of_the_paper():
    """The figures of the paper's tables, typed here a second time."""
    figures = [
        (row.dataset, row.method, row.epochs, row.paper) for row in studies.paper_rows() if row.link
    ]
    assert figures == [
        ("stl10", "SimCLR", 400, 80.15),
        ("stl10", "AttentioNCE", 200, 87.12),
        ("stl10", "AttentioNCE", 400, 89.45),
        ("cifar10", "SimCLR", 400, 91.12),
        ("cifar10", "AttentioNCE", 200, 92.42),
        ("cifar10", "AttentioNCE", 400, 93.08),
        ("cifar100", "AttentioNCE", 200, 69.78),
        ("cifar100", "AttentioNCE", 400, 70.23),
        ("tinyImageNet", "AttentioNCE", 200, 56.58),
        ("tinyImageNet", "AttentioNCE", 400, 58.61),
    ]


def test_commands_of_the_paper(monkeypatch, tmp_path):
    """A row of the paper runs with the paper's settings, and both of its rows come from one run."""
    commands = []

    monkeypatch.setattr(reproduce, "call", lambda command: commands.append(command[1:]) or 0)
    monkeypatch.setattr("sys.argv", ["reproduce.py", "--row", "5", "--results", str(tmp_path)])
    reproduce.list_and_run()
    words = " ".join(commands[0])
    for flag in (
        "--dataset_name stl10",
        "--d_pos 2",
        "--d_neg 0.5",
        "--arch resnet50",
        "--batch_size 256",
        "--epochs 400",
        "--save_every 200",
        "--seed 0",
    ):
        assert flag in words
    assert "stl10_SimCLR_4model_256_200_2.0_0.5.pth" in " ".join(commands[1])


def test_a_study_of_ones_own_images(monkeypatch, tmp_path):
    """Where the user is, with the user's flags; SimCLR is measured at as many encoded views, and at as many epochs."""
    commands = []
    monkeypatch.setattr(reproduce, "call", lambda command: commands.append(command[1:]) or 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv",
        [
            "reproduce.py",
            "folder",
            "--root",
            "mine",
            "--epochs",
            "8",
            "--arch",
            "resnet10",
            "--batch_size",
            "64",
            "--pretrain",
            "--precision bf16",
            "--linear",
            "--epochs 10 --lr 0.01",
        ],
    )
    reproduce.list_and_run()
    assert all(
        (tmp_path / command[0]).resolve().is_file() for command in commands
    )  # main.py and linear.py, from here
    words = [" ".join(command) for command in commands]
    pretrained = [
        w for w in words if "--save_every" in w
    ]  # nothing is written here, so that every row starts it
    assert len(pretrained) == 7 and len(set(pretrained)) == 2
    for flag in (
        "--dataset_name folder",
        "--root mine",
        "--batch_size 64",
        "--epochs 8",
        "--save_every 2",
        "--precision bf16",
        f"--results {Path('results', 'resnet10-8', 'seed0')}",
    ):
        assert flag in pretrained[0]
    assert "--loss simclr" in pretrained[-1] and "--epochs 24" in pretrained[-1]
    evaluated = [w for w in words if "--model_path" in w]
    assert all(w.endswith("--epochs 10 --lr 0.01") for w in evaluated)
    assert [re.search("_64_([0-9]+)", w)[1] for w in evaluated] == [
        "2",
        "4",
        "8",
        "6",
        "8",
        "12",
        "24",
    ]


def test_table_of_ones_own_images_names_them(tmp_path):
    """Without results there is none among the tables, unless it is asked for."""
    words = [
        "folder",
        "--root",
        "other/cats",
        "--results",
        str(tmp_path),
        "--epochs",
        "8",
        "--arch",
        "resnet10",
    ]
    options = reproduce.parse_args(words)
    row, setting = reproduce.study(studies.folder_rows()[0], options)
    place = reproduce.folder(row, setting, 0, options) / "folder"
    place.mkdir(parents=True)
    assert reproduce.table("folder", studies.all_rows(), options).startswith(
        "### Your own images\n"
    )
    accuracy = {"top1": 12.5}
    found = {
        "flags": {"root": "data/cats"},
        "best_epoch": accuracy,
        "last_epoch": accuracy,
        "knn_top1": 25,
        "hours": 1.0,
        "machine": {"device_name": "abacus"},
    }
    (place / f"{reproduce.name(row, setting, row.epochs)}_linear.json").write_text(
        json.dumps(found)
    )
    text = reproduce.table("folder", studies.all_rows(), options)
    assert text.startswith("### Your own images (cats)\n")
    assert (
        "| AttentioNCE | 1 | 10 | resnet10 | 2 | 6 | 12 | 12.50 | 12.50 | 25.00 | 1 | abacus, 1.00 h |"
        in text
    )
    options.root = "other/dogs"  # of which nothing was measured
    assert reproduce.table("folder", studies.all_rows(), options).startswith(
        "### Your own images\n"
    )


def test_runs_what_is_missing_and_no_more(toy, capsys):
    folder, command, patch = toy
    files = sorted(file.name for file in folder.rglob("*_linear.json"))
    assert len(files) == 2
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    capsys.readouterr()
    reproduce.list_and_run()
    printed = capsys.readouterr().out
    assert printed.count("done: ") == 2
    assert "python main.py" not in printed
    assert times == {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    for file in folder.rglob("*_linear.json"):
        result = json.loads(file.read_text())
        assert f"{result['best_epoch']['top1']:.2f} % best epoch" in printed


def test_evaluates_what_is_pretrained(toy, capsys):
    """Where only the evaluation is missing only that is run; where neither is, the row says so."""
    folder, command, patch = toy
    file = next(file for file in folder.rglob("*_linear.json") if "dcl" in file.name)
    kept = file.read_text()
    file.unlink()
    options = reproduce.parse_args(command[1:])
    row, setting = next(
        pair
        for pair in (reproduce.study(row, options) for row in studies.photo_rows())
        if f"{reproduce.name(*pair, pair[0].epochs)}_linear.json" == file.name
    )
    assert reproduce.state(row, setting, 0, options) == "pretrained, to be evaluated"
    assert reproduce.state(row, setting, 7, options) == "not run"
    file.write_text(kept)
    begun = json.loads(
        (folder / "resnet10-1/seed0/photos" / f"{reproduce.name(row, setting, 3)}.json").read_text()
    )
    begun.update(epochs_done=1, hours=2.0)
    begun["flags"]["seed"] = 9
    other = folder / "resnet10-1/seed9/photos"
    other.mkdir(parents=True)
    (other / f"{reproduce.name(row, setting, 3)}.json").write_text(json.dumps(begun))
    longest = row._replace(epochs=3)
    assert reproduce.state(longest, setting, 9, options) == "epoch 1 of 3, 4.0 h left"


def test_table_is_what_was_measured(toy):
    folder, command, patch = toy
    options = reproduce.parse_args(["--epochs", "1", "--results", str(folder)])
    text = reproduce.table("photos", studies.photo_rows(), options)
    lines = [line for line in text.splitlines() if line.startswith("| DCL")]
    result = json.loads(next(folder.rglob("*dcl_64_3_*_linear.json")).read_text())
    assert (
        f"| {result['best_epoch']['top1']:.2f} | {result['last_epoch']['top1']:.2f} |" in lines[1]
    )
    assert re.search(
        r"\|  \|  \|  \| 0 \|  \|$",
        next(line for line in text.splitlines() if line.startswith("| BCL")),
    )


def test_hours_are_those_of_the_rows_own_epochs(toy):
    """DCL after one and after three epochs is one run of three."""
    folder, command, patch = toy
    options = reproduce.parse_args(["--epochs", "1", "--results", str(folder)])
    pairs = [reproduce.study(row, options) for row in studies.photo_rows() if row.method == "DCL"]
    whole = next(folder.rglob("seed0/photos/*dcl_64_3_0.1.json"))  # other tests leave other seeds
    kept, found = whole.read_text(), json.loads(whole.read_text())
    whole.write_text(json.dumps({**found, "hours": 30}))
    spent = [
        re.search(r"([0-9.]+) h \|$", line)[1]
        for line in reproduce.table(
            "photos", [row for row in studies.photo_rows() if row.method == "DCL"], options
        ).splitlines()
        if line.startswith("| DCL")
    ]
    whole.write_text(kept)
    evaluated = [reproduce.results(row, setting, 0, options)[1]["hours"] for row, setting in pairs]
    assert [float(hours) for hours in spent] == pytest.approx(
        [10 + evaluated[0], 30 + evaluated[1]], abs=0.01
    )


def test_an_evaluation_with_other_flags_is_none(toy):
    folder, command, patch = toy
    options = reproduce.parse_args(["--epochs", "1", "--results", str(folder)])
    row, setting = next(
        reproduce.study(row, options) for row in studies.photo_rows() if row.method == "DCL"
    )
    assert reproduce.results(row, setting, 0, options)[1]
    assert reproduce.results(row, setting._replace(linear=["--epochs", "7"]), 0, options)[1] is None
    assert (
        reproduce.results(row, setting._replace(linear=[*setting.linear, "--lr=1e-2"]), 0, options)[
            1
        ]
        is None
    )
    assert reproduce.results(
        row, setting._replace(linear=[*setting.linear, "--lr=10e-4"]), 0, options
    )[1]  # the default, 1e-3
    assert reproduce.results(
        row, setting._replace(pretrain=[*setting.pretrain, "--lr", "7"]), 0, options
    ) == (None, None)


def test_a_signal_waits_for_the_program_to_save(tmp_path):
    """Ctrl-C reaches both from the terminal, another signal is passed on; the program is waited for, not killed."""
    program = (
        "import signal, sys, time\n"
        "def save(number, frame): time.sleep(1); open(sys.argv[1], 'w').write('saved'); sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save); print('ready', flush=True); time.sleep(60)"
    )
    caller = "import sys, reproduce; print('status', reproduce.call([sys.executable, '-c', *sys.argv[1:]]))"
    for number, whom in ((signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)):
        saved = tmp_path / number.name
        process = subprocess.Popen(
            [sys.executable, "-c", caller, program, str(saved)],
            cwd=REPO,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout.readline() == "ready\n"
        whom(process.pid, number)
        assert process.communicate(timeout=30)[0] == "status 7\n"
        assert saved.read_text() == "saved"


def test_readme_has_the_tables(monkeypatch):
    """The README's tables are the command's, so they cannot drift from the results."""
    monkeypatch.setattr(reproduce, "PHOTOS", PHOTOS)  # not the toy's
    options = reproduce.parse_args(["--results", str(REPO / "results")])
    readme = (REPO / "README.md").read_text()
    for dataset in set(studies.TITLES) - {"folder"}:
        assert reproduce.table(dataset, studies.all_rows(), options) in readme
    command = re.search(r"python (reproduce.py folder --root data/.*?)\n\n", readme, re.DOTALL)[
        1
    ].replace("\\\n", "")
    options = reproduce.parse_args([*shlex.split(command)[1:], "--results", str(REPO / "results")])
    text = reproduce.table("folder", studies.all_rows(), options)
    assert "(cifar10-jpeg)" in text and text.strip() in readme


def test_unknown_names(monkeypatch):
    for words in (["cifar11"], ["--row", "0"], ["--row", "99"]):
        monkeypatch.setattr("sys.argv", ["reproduce.py", *words])
        with pytest.raises(errors.UserError, match="rows are 1 to"):
            reproduce.list_and_run()


def test_pictures(toy, tmp_path, monkeypatch):
    """Every picture is drawn, from real weights and tables."""
    folder, command, patch = toy
    trained = next(folder.rglob("*.pth"))
    tables = [str(file) for file in folder.rglob("seed0/photos/*.csv")]  # linear.py's among them
    assert any("linear" in table for table in tables)
    words = [
        "plot.py",
        *(name for name in plot.PICTURES if name != "grid"),
        "--csv",
        *tables,
        "--model_path",
        "random",
        str(trained),
        "--image_size",
        "8",
        "--batch_size",
        "16",
        "--out",
        str(tmp_path),
        "--study",
        f"photos --epochs 1 --results {folder}",
    ]
    monkeypatch.setattr("sys.argv", words)
    plot.main()
    for name in set(plot.PICTURES) - {"grid"}:
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    monkeypatch.setattr(
        "sys.argv",
        ["plot.py", "curves", "--csv", str(REPO / "requirements.txt"), "--out", str(tmp_path)],
    )
    with pytest.raises(errors.UserError, match="no table of metrics"):
        plot.main()
    linear = next(table for table in tables if table.endswith("_linear.csv"))
    monkeypatch.setattr("sys.argv", ["plot.py", "curves", "--csv", linear, "--out", str(tmp_path)])
    with pytest.raises(errors.UserError, match="none of the tables"):
        plot.main()


def test_pictures_of_a_small_data_set(tmp_path, pictures, monkeypatch):
    words = [
        "plot.py",
        "attention",
        "numbers",
        "flags",
        "--dataset_name",
        "folder",
        "--root",
        str(pictures),
        "--image_size",
        "8",
        "--out",
        str(tmp_path),
    ]
    monkeypatch.setattr("sys.argv", words)
    plot.main()
    assert len(list(tmp_path.glob("*.png"))) == 3
    monkeypatch.setattr("sys.argv", [*words, "--batch_size", "3"])
    with pytest.raises(errors.UserError, match="--batch_size"):
        plot.main()


def test_grid_shows_the_mean_over_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "PHOTOS", reproduce.PHOTOS._replace(seeds=[0, 1]))
    options = reproduce.parse_args(["--results", str(tmp_path)])
    rows = [
        reproduce.study(row, options)
        for row in studies.photo_rows()
        if row.flags.get("num_pos") == 4
    ]
    for number, (row, setting) in enumerate(rows):
        for seed in (0, 1):
            place = reproduce.folder(row, setting, seed, options) / "photos"
            place.mkdir(parents=True, exist_ok=True)
            result = {
                "knn_top1": 50 + number + 2 * seed,
                "best_epoch": {"top1": 10 + number + 2 * seed},
            }
            (place / f"{reproduce.name(row, setting, row.epochs)}_linear.json").write_text(
                json.dumps(result)
            )
    figure = plot.plot_grid(plot.parse_args(["grid", "--results", str(tmp_path)]))
    for axis, first in zip(figure.axes, (51, 11), strict=False):  # the colour bars come after them
        texts = {text.get_text() for text in axis.texts}
        assert texts == {f"{first + number:.2f}\n± 1.41" for number in range(len(rows))}


def test_accuracy_shows_the_study_beside_the_paper(tmp_path):
    """Means and deviations over seeds against epochs and encoded views; the paper's figures of the named data set."""
    words = ["folder", "--seeds", "0", "1", "--epochs", "8", "--results", str(tmp_path)]
    options = reproduce.parse_args(words)
    for row, setting in (reproduce.study(row, options) for row in studies.folder_rows()):
        for seed in (0, 1):
            place = reproduce.folder(row, setting, seed, options) / "folder"
            place.mkdir(parents=True, exist_ok=True)
            file = place / f"{reproduce.name(row, setting, row.epochs)}_linear.json"
            file.write_text(json.dumps({"best_epoch": {"top1": row.epochs + 2 * seed}}))
    args = plot.parse_args(["accuracy", "--study", " ".join(words), "--beside", "cifar10"])
    epochs, views = plot.plot_accuracy(args).axes
    for axis, factors in ((epochs, (1, 1)), (views, (6, 2))):
        lines = [bars.lines[0] for bars in axis.containers]
        for line, stops, factor in zip(lines, ([2, 4, 8], [6, 8, 12, 24]), factors, strict=True):
            assert line.get_xdata().tolist() == [factor * stop for stop in stops]
            assert line.get_ydata().tolist() == [stop + 1 for stop in stops]
        tops = [bars.lines[1][1].get_ydata()[0] for bars in axis.containers]
        assert tops == pytest.approx([2 + 1 + 2**0.5, 6 + 1 + 2**0.5])
    published = [line.get_ydata()[0] for line in epochs.lines if "published" in line.get_label()]
    assert published == [91.12, 92.52, 92.42, 93.08]
    with pytest.raises(errors.UserError, match="no results of"):
        plot.plot_accuracy(plot.parse_args(["accuracy", "--study", f"photos --results {tmp_path}"]))


def test_embedding_for_pictures_leaves_the_model_alone():
    from model import Model

    model = Model(arch="resnet10").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    made = drawn.some_views(utils.load("photos", "", "test").pixels, 8, 1, 8, seed=0)
    z = drawn.embed(model, made)
    assert z.shape == (3, 8, 128)
    assert not model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(m.momentum == 0.1 for m in model.modules() if hasattr(m, "momentum"))


def test_tensorboard(tmp_path, monkeypatch):
    """Scalars and both pictures arrive; without the package the run stops before training, in one line."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    import main

    words = [
        "main.py",
        "--dataset_name",
        "photos",
        "--arch",
        "resnet10",
        "--image_size",
        "8",
        "--batch_size",
        "256",
        "--epochs",
        "1",
        "--knn_every",
        "0",
        "--tensorboard",
        "--results",
        str(tmp_path),
    ]
    monkeypatch.setattr("sys.argv", words)
    assert main.main() == 0
    events = EventAccumulator(str(next(tmp_path.rglob("*.tensorboard")))).Reload().Tags()
    assert {"loss", "views", "effective_negatives"} <= set(events["scalars"])
    assert set(events["images"]) == {"views", "attention"}
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr("sys.argv", [*words, "--resume", "never"])
    with pytest.raises(errors.UserError, match="pip install tensorboard"):
        main.main()
