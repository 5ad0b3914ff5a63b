"""reproduce.py at toy size, on results that main.py and linear.py really wrote."""

import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.programs import wait_for

import linear
import main
import reproduce
from attentionce.errors import UserError
from experiments import results, studies


@pytest.fixture
def commands(monkeypatch):
    """The commands that reproduce.py would run, each as one text. None is run."""
    found = []

    def note(command):
        found.append(" ".join(command[1:]))
        return 0

    monkeypatch.setattr(reproduce, "call", note)
    return found


@pytest.fixture
def copied(toy, tmp_path):
    """The toy study's results in a folder that the test may change, with empty weights."""
    others = shutil.ignore_patterns("*.pth", "*.state*")
    shutil.copytree(toy.folder, tmp_path, dirs_exist_ok=True, ignore=others)
    for weights in toy.folder.rglob("*.pth"):
        (tmp_path / weights.relative_to(toy.folder)).touch()
    return toy._replace(folder=tmp_path, flags=[*toy.flags, "--results", str(tmp_path)])


def rows_of(name, flags):
    rows = studies.all_rows(reproduce.parse_args([str(flag) for flag in flags]))
    return [row for row in rows if row.study.name == name]


def toy_rows(toy):
    """The two rows of the toy study that were run."""
    rows = studies.all_rows(reproduce.parse_args(toy.flags))
    return [rows[number - 1] for number in reproduce.parse_args(toy.flags).row]


def test_commands_of_the_paper(commands, call, tmp_path):
    """A row of the paper runs with the paper's settings; both rows of a run come from one run."""
    call(reproduce, "--row", 5, "--results", tmp_path)
    pretrain, evaluate = commands
    for flag in (
        *("--dataset_name stl10", "--loss attentionce", "--d_pos 2", "--d_neg 0.5"),
        *("--arch resnet50", "--batch_size 256", "--epochs 400", "--save_every 200", "--seed 0"),
    ):
        assert flag in pretrain
    assert "stl10_SimCLR_4model_256_200_2.0_0.5.pth" in evaluate


def test_a_study_of_your_own_images(commands, call, monkeypatch, tmp_path):
    """It runs where the user is, with the user's flags.

    SimCLR is measured at as many encoded views, and at as many epochs.
    """
    monkeypatch.chdir(tmp_path)
    size = "--epochs 8 --arch resnet10 --batch_size 64"
    further = ["--pretrain", "--precision bf16", "--linear", "--epochs 10 --lr 0.01"]
    call(reproduce, "folder", "--root", "mine", *size.split(), *further)
    for command in commands:  # main.py and linear.py, seen from here
        assert (tmp_path / command.split()[0]).resolve().is_file()
    pretrained = [text for text in commands if "--save_every" in text]
    assert len(pretrained) == 7  # nothing is written here, so every row starts its run
    assert len(set(pretrained)) == 2
    for flag in (
        *("--dataset_name folder", "--root mine", "--batch_size 64", "--epochs 8"),
        *("--save_every 2", "--precision bf16", f"--results {Path('results/resnet10-8/seed0')}"),
    ):
        assert flag in pretrained[0]
    assert "--loss simclr" in pretrained[-1] and "--epochs 24" in pretrained[-1]
    evaluated = [text for text in commands if "--model_path" in text]
    assert all(text.endswith("--epochs 10 --lr 0.01") for text in evaluated)
    epochs = [int(re.search("_64_([0-9]+)", text)[1]) for text in evaluated]
    assert epochs == [2, 4, 8, 6, 8, 12, 24]


@pytest.fixture
def small(tmp_path):
    """Flags for the small study on a folder that has its classes."""
    for name in rows_of("cifar10-small", [])[0].study.classes.split():
        (tmp_path / "cifar10-jpeg" / "train" / name).mkdir(parents=True)
    return ["--root", str(tmp_path / "cifar10-jpeg"), "--results", str(tmp_path / "results")]


def test_the_small_study_runs_one_seed_of_every_row_first(commands, call, small, tmp_path):
    """Its images are a folder; what it writes lies apart from studies of the user's own images."""
    call(reproduce, "cifar10-small", *small)
    pretrained = [text for text in commands if "--save_every" in text]
    seeds = [int(re.search("--seed ([0-9]+)", text)[1]) for text in pretrained]
    assert seeds == [0] * 11 + [1] * 5 + [2] * 5
    assert len(set(pretrained)) == 15  # two rows come from one run, which is not begun here
    assert all("--dataset_name folder --" in text for text in commands)
    folder = tmp_path / "results" / "cifar10-small-resnet10-4" / "seed0"
    assert f"--results {folder}" in pretrained[0]


@pytest.fixture
def pretend(monkeypatch):
    """The programs that reproduce.py runs; each writes what it would, without training."""
    found = []

    def run(command):
        program, words = Path(command[1]).name, command[2:]
        found.append(program)
        args = {"main.py": main, "linear.py": linear}[program].parse_args(words)
        if program == "main.py":
            folder = Path(args.results, args.dataset_name)
            folder.mkdir(parents=True, exist_ok=True)
            for epoch in range(args.save_every, args.epochs + 1, args.save_every):
                (folder / f"{main.file_stem(args, epoch)}.pth").touch()
            path = folder / f"{main.file_stem(args, args.epochs)}.json"
            result = {"epochs_done": args.epochs, "hours": 0.5}
        else:
            path = Path(args.model_path[0])
            path = path.with_name(f"{path.stem}_linear.json")
            result = {"best_epoch": {"top1": 12.5}, "last_epoch": {"top1": 11.5}, "knn_top1": 10}
            result |= {"hours": 0.25, "machine": {"device_name": "abacus"}}
        path.write_text(json.dumps({"flags": vars(args), **result}))
        return 0

    monkeypatch.setattr(reproduce, "call", run)
    return found


def test_a_study_knows_its_results(pretend, call, small, capsys):
    """Those that main.py and linear.py write for its commands, whatever the folder is called."""
    call(reproduce, "cifar10-small", *small)
    assert pretend.count("main.py") == 15 and pretend.count("linear.py") == 21
    capsys.readouterr()
    call(reproduce, "cifar10-small", *small)
    assert len(pretend) == 36  # nothing is run twice
    assert capsys.readouterr().out.count("done: 12.50 % best epoch, 11.50 % last") == 21
    args = reproduce.parse_args(["--root", "elsewhere", *small[2:]])
    hours = 3 * (0.5 * 4 / 12 + 0.25)  # of 12 epochs, 4 are the row's
    cells = f"12.50 ± 0.00 | 11.50 ± 0.00 | 10.00 ± 0.00 | 3 | abacus, {hours:.2f} h |"
    assert f"| resnet10 | 4 | 2 | 8 | {cells}" in reproduce.table("cifar10-small", args)


def test_the_small_study_refuses_other_images(commands, call, small, tmp_path):
    """Else its committed results would be averaged with those of other images."""
    classes = tmp_path / "cifar10-jpeg" / "train"
    (classes / "truck").rename(classes / "unicorn")
    for root in (tmp_path / "cifar10-jpeg", tmp_path / "none"):
        with pytest.raises(UserError, match="train must have the folders airplane, .*, truck:"):
            call(reproduce, "cifar10-small", "--root", root, *small[2:])
    assert commands == []


def test_runs_what_is_missing_and_no_more(copied, call, commands, capsys):
    """Where only the evaluation is missing, only that is run; the list says so."""
    row, _ = toy_rows(copied)
    call(reproduce, *copied.flags)
    assert commands == []
    printed = capsys.readouterr().out
    for done in toy_rows(copied):
        top1 = results.read(done, 0).evaluation["best_epoch"]["top1"]
        assert f"{top1:.2f} % best epoch" in printed
    results.run_file(row, 0, row.epochs, "_linear.json").unlink()
    assert reproduce.status(row, 0) == "pretrained, to be evaluated"
    call(reproduce, *copied.flags)
    (command,) = commands
    assert "linear.py" in command and str(results.run_file(row, 0, 1, ".pth")) in command


def test_status_of_what_is_not_pretrained(copied):
    """It was not begun, or it says how far it has come and how long the rest will take."""
    row = toy_rows(copied)[1]
    assert reproduce.status(row, 7) == "not run"
    begun = results.read(row, 0).pretraining | {"epochs_done": 1, "hours": 2.0}
    begun["flags"]["seed"] = 9
    path = results.run_file(row, 9, 4, ".json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(begun))
    assert reproduce.status(row, 9) == "epoch 1 of 4, 6:00:00 left"


def test_table_is_what_was_measured(toy):
    """Of your own images it names the folder that they were measured on."""
    lines = reproduce.table("folder", reproduce.parse_args(toy.flags)).splitlines()
    assert re.fullmatch(r"### Your own images \(pictures\d\)", lines[0])
    row = next(line for line in lines if line.startswith("| AttentioNCE | 1 | 10 | resnet10 | 4 |"))
    result = results.read(toy_rows(toy)[1], 0).evaluation
    best, last = result["best_epoch"]["top1"], result["last_epoch"]["top1"]
    assert f"| 6 | 24 | {best:.2f} | {last:.2f} | {result['knn_top1']:.2f} | 1 |" in row
    not_run = next(line for line in lines if line.startswith("| SimCLR"))
    assert not_run.endswith("|  |  |  | 0 |  |")
    other = reproduce.parse_args([*toy.flags, "--root", "other/dogs"])
    assert reproduce.table("folder", other).startswith("### Your own images\n")


PROGRAM = """
import os, signal, sys, time
folder = sys.argv[1]
def save(number, frame):
    time.sleep(0.3)
    open(f"{folder}/saved", "w").close()
    sys.exit(7)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
open(f"{folder}/{os.getpid()}.pid", "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_program_to_save(tmp_path, number):
    """A terminal sends Ctrl-C to both; another signal is passed on. The program is waited for."""

    def send():
        program = wait_for(lambda: list(tmp_path.glob("*.pid")))[0].stem
        if number == signal.SIGINT:
            os.kill(int(program), number)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    assert reproduce.call([sys.executable, "-c", PROGRAM, str(tmp_path)]) == 7
    sender.join()
    assert (tmp_path / "saved").exists()


def test_the_pages_have_the_tables(call, capsys):
    """The tables of README.md and docs/ are the program's, so they cannot drift from the results.

    The table of your own images is the one that the command on the same page prints.
    """
    text = "\n\n".join(page.read_text() for page in ROOT.glob("docs/*.md"))
    call(reproduce, "--table", "--results", ROOT / "results")
    tables = re.split("^(?=### )", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    assert len(tables) == len(studies.STUDIES) - 1
    assert all(table.strip() in text for table in tables), "python tests/test_docs.py"
    command = re.search(r"python reproduce.py (folder --root data/.*?)\n\n", text, re.DOTALL)[1]
    flags = shlex.split(command.replace("\\\n", ""))
    call(reproduce, "--table", *flags, "--results", ROOT / "results")
    table = capsys.readouterr().out
    assert "(cifar10-jpeg)" in table and table.strip() in text


@pytest.mark.parametrize("flags", [["cifar11"], ["--row", "0"], ["--row", "99"]])
def test_unknown_names(refused, flags):
    assert "rows are 1 to" in refused(reproduce, *flags)
