"""reproduce.py at toy size, on results that main.py and linear.py really wrote."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

import linear
import main
import reproduce
from attentionce.errors import UserError
from experiments import results, studies


@pytest.fixture
def commands(monkeypatch):
    """The commands that reproduce.py would run. None is run."""
    found = []

    def note(command):
        found.append(command[1:])
        return 0

    monkeypatch.setattr(reproduce, "call", note)
    return found


@pytest.fixture
def copied(toy, tmp_path):
    """The toy study's results in a folder that the test may change, with empty weights."""
    for file in toy.folder.rglob("*.*"):
        copy = tmp_path / file.relative_to(toy.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".json":
            shutil.copy(file, copy)
        elif file.suffix == ".pth":
            copy.touch()
    return toy._replace(folder=tmp_path, flags=[*toy.flags, "--results", str(tmp_path)])


def toy_rows(toy):
    """The two rows of the toy study that were run, each with its study."""
    args = reproduce.parse_args(toy.flags)
    rows = studies.all_rows()
    return studies.with_flags([rows[number - 1] for number in args.row], args)


def test_commands_of_the_paper(commands, call, tmp_path):
    """A row of the paper runs with the paper's settings; both rows of a run come from one run."""
    call(reproduce, "--row", 5, "--results", tmp_path)
    pretrain, evaluate = (" ".join(command) for command in commands)
    for flag in (
        "--dataset_name stl10",
        "--loss attentionce",
        "--d_pos 2",
        "--d_neg 0.5",
        "--arch resnet50",
        "--batch_size 256",
        "--epochs 400",
        "--save_every 200",
        "--seed 0",
    ):
        assert flag in pretrain
    assert "stl10_SimCLR_4model_256_200_2.0_0.5.pth" in evaluate


def test_a_study_of_your_own_images(commands, call, monkeypatch, tmp_path):
    """It runs where the user is, with the user's flags.

    SimCLR is measured at as many encoded views, and at as many epochs.
    """
    monkeypatch.chdir(tmp_path)
    flags = ["folder", "--root", "mine", "--epochs", "8", "--arch", "resnet10"]
    flags += ["--batch_size", "64"]
    flags += ["--pretrain", "--precision bf16", "--linear", "--epochs 10 --lr 0.01"]
    call(reproduce, *flags)
    for command in commands:  # main.py and linear.py, seen from here
        assert (tmp_path / command[0]).resolve().is_file()
    texts = [" ".join(command) for command in commands]
    pretrained = [text for text in texts if "--save_every" in text]
    assert len(pretrained) == 7  # nothing is written here, so every row starts its run
    assert len(set(pretrained)) == 2
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
    evaluated = [text for text in texts if "--model_path" in text]
    assert all(text.endswith("--epochs 10 --lr 0.01") for text in evaluated)
    epochs = [int(re.search("_64_([0-9]+)", text)[1]) for text in evaluated]
    assert epochs == [2, 4, 8, 6, 8, 12, 24]


@pytest.fixture
def small(tmp_path):
    """Flags for the small study on a folder that has its classes, each with one image."""
    for name in studies.SMALL.classes:
        folder = tmp_path / "cifar10-jpeg" / "train" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "0.png")
    return ["--root", str(tmp_path / "cifar10-jpeg"), "--results", str(tmp_path / "results")]


def test_the_small_study_runs_one_seed_of_every_row_first(commands, call, small, tmp_path):
    """Its images are a folder; what it writes lies apart from studies of the user's own images."""
    call(reproduce, "cifar10-small", *small)
    texts = [" ".join(command) for command in commands]
    pretrained = [text for text in texts if "--save_every" in text]
    seeds = [int(re.search("--seed ([0-9]+)", text)[1]) for text in pretrained]
    assert seeds == [0] * 11 + [1] * 5 + [2] * 5
    assert len(set(pretrained)) == 15  # two rows come from one run, which is not begun here
    for text in texts:
        assert "--dataset_name folder --" in text and "cifar10-jpeg --seed" in text
    for flag in ("--image_size 16", "--batch_size 256", "--knn_every 2"):
        assert all(flag in text for text in pretrained)
    folder = tmp_path / "results" / "cifar10-small-resnet10-4" / "seed0"
    assert f"--results {folder}" in pretrained[0]
    evaluated = [text for text in texts if "--model_path" in text]
    assert len(evaluated) == 21 and all("--image_size 32" in text for text in evaluated)


def test_the_small_study_knows_its_results(commands, call, small, monkeypatch):
    """Those that main.py and linear.py write for its commands, whatever the folder is called."""

    def run(command):
        """Write what the program would, without training."""
        program, words = Path(command[1]).name, command[2:]
        args = {"main.py": main, "linear.py": linear}[program].parse_args(words)
        commands.append(program)
        if program == "main.py":
            place = Path(args.results) / args.dataset_name
            place.mkdir(parents=True, exist_ok=True)
            for epoch in (4, args.epochs):
                (place / f"{main.file_stem(args, epoch)}.pth").touch()
            found = {"epochs_done": args.epochs, "hours": 0.5}
            path = place / f"{main.file_stem(args, args.epochs)}.json"
        else:
            path = Path(args.model_path[0])
            path = path.with_name(f"{path.stem}_linear.json")
            accuracy = {"best_epoch": {"top1": 12.5}, "last_epoch": {"top1": 11.5}}
            found = {"hours": 0.25, "knn_top1": 10, "machine": {"device_name": "abacus"}}
            found |= accuracy
        path.write_text(json.dumps({"flags": vars(args), **found}))
        return 0

    monkeypatch.setattr(reproduce, "call", run)
    call(reproduce, "cifar10-small", *small)
    assert commands.count("main.py") == 15 and commands.count("linear.py") == 21
    commands.clear()
    call(reproduce, "cifar10-small", *small)
    assert commands == []
    args = reproduce.parse_args(["cifar10-small", "--root", "elsewhere", *small[2:]])
    for row, study in studies.with_flags(studies.small_rows(), args):
        for seed in study.seeds:
            assert reproduce.status(row, study, seed) == "done: 12.50 % best epoch, 11.50 % last"
    hours = 3 * (0.5 * 4 / 12 + 0.25)
    cells = f"12.50 ± 0.00 | 11.50 ± 0.00 | 10.00 ± 0.00 | 3 | abacus, {hours:.2f} h |"
    assert f"| resnet10 | 4 | 2 | 8 | {cells}" in reproduce.table("cifar10-small", args)


def test_the_small_study_refuses_other_images(commands, call, small, tmp_path):
    """Else its committed results would be averaged with those of other images."""
    classes = tmp_path / "cifar10-jpeg" / "train"
    (classes / "truck").rename(classes / "unicorn")
    with pytest.raises(UserError, match="train must have the folders airplane, .*, truck,"):
        call(reproduce, "cifar10-small", *small)
    with pytest.raises(UserError, match="there is no such folder|needs"):
        call(reproduce, "cifar10-small", "--root", tmp_path / "none", *small[2:])
    assert commands == []


def test_table_of_your_own_images_names_them(tmp_path):
    """With the folder that they were measured on; without results it names none."""
    flags = ["folder", "--root", "other/cats", "--results", str(tmp_path)]
    args = reproduce.parse_args([*flags, "--epochs", "8", "--arch", "resnet10"])
    ((row, study),) = studies.with_flags(studies.folder_rows()[:1], args)
    assert reproduce.table("folder", args).startswith("### Your own images\n")
    place = results.folder(row, study, 0) / "folder"
    place.mkdir(parents=True)
    found = {
        "flags": {"root": "data/cats"},
        "best_epoch": {"top1": 12.5},
        "last_epoch": {"top1": 12.5},
        "knn_top1": 25,
        "hours": 1.0,
        "machine": {"device_name": "abacus"},
    }
    path = place / f"{results.file_stem(row, study, row.epochs)}_linear.json"
    path.write_text(json.dumps(found))
    text = reproduce.table("folder", args)
    assert text.startswith("### Your own images (cats)\n")
    accuracy = "12.50 | 12.50 | 25.00 | 1 | abacus, 1.00 h"
    assert f"| AttentioNCE | 1 | 10 | resnet10 | 2 | 6 | 12 | {accuracy} |" in text
    args.root = "other/dogs"  # nothing was measured on them
    assert reproduce.table("folder", args).startswith("### Your own images\n")


def test_runs_what_is_missing_and_no_more(toy, call, commands, capsys):
    assert len(list(toy.folder.rglob("*_linear.json"))) == 2
    call(reproduce, *toy.flags)
    assert commands == []
    printed = capsys.readouterr().out
    assert printed.count("done: ") == 2
    for file in toy.folder.rglob("*_linear.json"):
        result = json.loads(file.read_text())
        assert f"{result['best_epoch']['top1']:.2f} % best epoch" in printed


def test_evaluates_what_is_pretrained(copied, call, commands, capsys):
    """Where only the evaluation is missing, only that is run; the list says so."""
    row, study = toy_rows(copied)[0]
    next(copied.folder.rglob("*_1_1.0_10.0_linear.json")).unlink()
    assert reproduce.status(row, study, 0) == "pretrained, to be evaluated"
    call(reproduce, *copied.flags)
    (command,) = commands
    assert Path(command[0]).name == "linear.py"
    assert "pretrained, to be evaluated" in capsys.readouterr().out
    assert results.weights(row, study, 0).is_file()
    assert str(results.weights(row, study, 0)) in command


def test_status_of_what_is_not_pretrained(copied):
    """It was not begun, or it says how far it has come and how long the rest will take."""
    row, study = toy_rows(copied)[1]
    assert reproduce.status(row, study, 7) == "not run"
    path = results.folder(row, study, 0) / "folder" / f"{results.file_stem(row, study, 4)}.json"
    begun = json.loads(path.read_text())
    begun.update(epochs_done=1, hours=2.0)
    begun["flags"]["seed"] = 9
    other = results.folder(row, study, 9) / "folder" / path.name
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps(begun))
    assert reproduce.status(row, study, 9) == "epoch 1 of 4, 6:00:00 left"
    seven_and_nine = study._replace(seeds=[7, 9])
    text = reproduce.status_of_seeds(row, seven_and_nine)
    assert text == "7: not run; 9: epoch 1 of 4, 6:00:00 left"
    assert reproduce.status_of_seeds(row, study._replace(seeds=[7, 8])) == "all: not run"


def test_table_is_what_was_measured(toy):
    lines = reproduce.table("folder", reproduce.parse_args(toy.flags)).splitlines()
    row = next(line for line in lines if line.startswith("| AttentioNCE | 1 | 10 | resnet10 | 4 |"))
    path = next(toy.folder.rglob("*_4_1.0_10.0_linear.json"))
    result = json.loads(path.read_text())
    best, last = result["best_epoch"]["top1"], result["last_epoch"]["top1"]
    assert f"| 6 | 24 | {best:.2f} | {last:.2f} | {result['knn_top1']:.2f} | 1 |" in row
    not_run = next(line for line in lines if line.startswith("| SimCLR"))
    assert not_run.endswith("|  |  |  | 0 |  |")


def test_hours_are_those_of_the_rows_own_epochs(copied):
    """One epoch and four are one run of four, so the first row has a quarter of its hours."""
    path = next(path for path in copied.folder.rglob("*_4_1.0_10.0.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "hours": 40}))
    lines = reproduce.table("folder", reproduce.parse_args(copied.flags)).splitlines()
    spent = [float(found[1]) for line in lines if (found := re.search(r"([0-9.]+) h \|$", line))]
    evaluated = [results.read(row, study, 0).evaluation["hours"] for row, study in toy_rows(copied)]
    assert spent == pytest.approx([10 + evaluated[0], 40 + evaluated[1]], abs=0.01)


def test_a_signal_waits_for_the_program_to_save(tmp_path):
    """A terminal sends Ctrl-C to both; another signal is passed on. The program is waited for."""
    program = (
        "import signal, sys, time\n"
        "def save(number, frame):\n"
        "    time.sleep(1)\n"
        "    open(sys.argv[1], 'w').write('saved')\n"
        "    sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "signal.signal(signal.SIGINT, save)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    caller = (
        "import sys, reproduce\n"
        "print('status', reproduce.call([sys.executable, '-c', *sys.argv[1:]]))"
    )
    begun = []
    for number, send in ((signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)):
        saved = tmp_path / number.name
        command = [sys.executable, "-c", caller, program, str(saved)]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        begun.append((process, number, send, saved))
    for process, number, send, saved in begun:
        assert process.stdout.readline() == "ready\n"
        send(process.pid, number)
        assert process.communicate(timeout=30)[0] == "status 7\n"
        assert saved.read_text() == "saved"


def test_the_pages_have_the_tables():
    """The tables of README.md and docs/ are the program's, so they cannot drift from the results.

    The table of your own images is the one that the command on the same page prints.
    """
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    text = "\n\n".join(page.read_text() for page in pages)
    committed = ["--results", str(ROOT / "results")]
    for dataset in studies.TITLES:
        if dataset != "folder":
            table = reproduce.table(dataset, reproduce.parse_args(committed))
            assert table.strip() in text, f"python reproduce.py --table {dataset}"
    command = re.search(r"python reproduce.py (folder --root data/.*?)\n\n", text, re.DOTALL)[1]
    flags = shlex.split(command.replace("\\\n", ""))
    table = reproduce.table("folder", reproduce.parse_args([*flags, *committed]))
    assert "(cifar10-jpeg)" in table and table.strip() in text


def test_tables_are_printed(call, capsys):
    """Those that are asked for, or all but that of your own images."""
    committed = ["--results", ROOT / "results"]
    call(reproduce, "--table", "photos", *committed)
    args = reproduce.parse_args([str(word) for word in committed])
    assert capsys.readouterr().out == reproduce.table("photos", args) + "\n"
    call(reproduce, "--table", *committed)
    titles = re.findall("^### (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert titles == [title for name, title in studies.TITLES.items() if name != "folder"]


@pytest.mark.parametrize("flags", [["cifar11"], ["--row", "0"], ["--row", "99"]])
def test_unknown_names(call, flags):
    with pytest.raises(UserError, match="rows are 1 to"):
        call(reproduce, *flags)
