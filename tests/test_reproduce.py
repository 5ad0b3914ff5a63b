"""reproduce.py: which commands it runs, and what it makes of results; some are really trained."""

import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

import pytest
from helpers.programs import wait_for

import linear
import main
import reproduce
from experiments import results, studies


@pytest.fixture
def commands(monkeypatch):
    """The commands that reproduce.py runs. Each writes what it would, without training."""
    found = []

    def run(command):
        found.append(" ".join(command[1:]))
        program, words = Path(command[1]).name, command[2:]
        if program == "main.py":
            args = main.parse_args(words)
            folder = Path(args.results, args.dataset_name)
            folder.mkdir(parents=True, exist_ok=True)
            for epoch in range(args.save_every, args.epochs + 1, args.save_every):
                (folder / f"{main.file_stem(args, epoch)}.pth").touch()
            path = folder / main.file_stem(args, args.epochs)
            result = {"epochs_done": args.epochs, "hours": 0.5}
        else:
            args = linear.parse_args(words)
            path = linear.result_path(args.model_path[0], "", args)
            best = 12.5 if args.encoder_mode == "frozen" else 13.5
            result = {"best_epoch": {"top1": best}, "last_epoch": {"top1": best - 1}}
            result |= {"knn_top1": 10, "hours": 0.25, "machine": {"device_name": "abacus"}}
        if "--export" not in words:
            Path(f"{path}.json").write_text(json.dumps({"flags": vars(args), **result}))
        return 0

    monkeypatch.setattr(reproduce, "call", run)
    return found


def test_a_row_of_the_paper(commands, call, capsys, tmp_path):
    """It runs with the paper's settings and is evaluated as published and frozen.

    Both rows of a run come from one run.
    """
    words = ["--results", tmp_path, "--row", 5]
    call(reproduce, *words, 6)
    pretrain, *evaluate = commands
    method = "--dataset_name stl10 --loss attentionce --d_pos 2 --d_neg 0.5"
    for flags in (method, "--arch resnet50 --batch_size 256", "--epochs 400 --save_every 200"):
        assert flags in pretrain
    modes = [text.split("--encoder_mode ")[1] for text in evaluate]
    assert modes == ["reference", "frozen"] * 2
    assert all("_256_200_2.0_0.5.pth" in text for text in evaluate[:2])
    done = "done: reference 13.50 % best epoch, 12.50 % last, frozen 12.50 % best epoch, 11.50 % l"
    assert capsys.readouterr().out.count(done) == 2
    call(reproduce, *words)
    assert len(commands) == 5  # nothing is run twice
    table = reproduce.table("stl10", reproduce.parse_args(["--results", str(tmp_path)]))
    link = "[model](https://drive.google.com/file/d/1f3d8LYeX_8VLtqK1oai6SywmHAV0TwK9/view)"
    assert f"| 200 | 256 | 87.12 | {link} | 13.50 | 11.50 | abacus, 0.75 h |" in table


def test_a_study_of_your_own_images(commands, call, monkeypatch, tmp_path):
    """It runs where the user is, with the user's flags; SimCLR at as many views and epochs."""
    monkeypatch.chdir(tmp_path)
    size = "--epochs 8 --arch resnet10 --batch_size 64"
    further = ["--pretrain", "--precision bf16", "--linear", "--epochs 10 --lr 0.01"]
    call(reproduce, "folder", "--root", "mine", *size.split(), *further)
    for command in commands:  # main.py and linear.py, seen from here
        assert (tmp_path / command.split()[0]).resolve().is_file()
    ours, simclr = (text for text in commands if "--save_every" in text)
    assert "--dataset_name folder" in ours and "--batch_size 64 --precision bf16" in ours
    assert "--root mine --seed 0 --results results/resnet10-8/seed0 --epochs 8 --save_e" in ours
    assert "--loss simclr" in simclr and "--epochs 24" in simclr
    evaluated = [text for text in commands if "--model_path" in text]
    assert all(text.endswith("--epochs 10 --lr 0.01") for text in evaluated)
    epochs = [int(re.search("_64_([0-9]+)", text)[1]) for text in evaluated]
    assert epochs == [2, 4, 8, 6, 8, 12, 24]


def test_flags_that_change_a_files_name(commands, call, tmp_path):
    """The row is filled, and not run again."""
    words = ["--row", 39, "--epochs", 4, "--results", tmp_path]
    words += ["--pretrain=--estimator MoCo", "--linear=--encoder_mode reference"]
    for _ in range(2):
        call(reproduce, *words)
        assert len(commands) == 2


def test_a_command_that_leaves_no_result_is_named(commands, refused, tmp_path):
    words = ["--row", 39, "--epochs", 4, "--results", tmp_path, "--linear=--export f.safetensors"]
    assert "left no result of this row" in refused(reproduce, *words)


def test_the_small_study(commands, call, refused, capsys, tmp_path):
    """Its images are a folder; what it writes lies apart from studies of the user's own images.

    One seed of every row is first. Its results are known whatever the folder is called.
    """
    (study,) = (study for study in studies.STUDIES if study.name == "cifar10-small")
    for name in study.classes.split():
        (tmp_path / "train" / name).mkdir(parents=True)
    words = ["cifar10-small", "--root", tmp_path, "--results", tmp_path / "results"]
    call(reproduce, *words)
    pretrained = [text for text in commands if "--save_every" in text]
    seeds = [int(re.search("--seed ([0-9]+)", text)[1]) for text in pretrained]
    assert seeds == [0] * 38 + [1] * 35 + [2] * 35 and len(commands) == 108 + 114
    assert all("--dataset_name folder --" in text for text in commands)
    assert f"--results {tmp_path}/results/cifar10-small-resnet10-4/seed0" in pretrained[0]
    assert capsys.readouterr().out.count("done: frozen 12.50 % best epoch, 11.50 % last") == 114
    args = reproduce.parse_args(["--root", "elsewhere", "--results", str(tmp_path / "results")])
    hours = 3 * (0.5 * 4 / 12 + 0.25)  # of 12 epochs, 4 are the row's
    cells = f"12.50 ± 0.00 | 11.50 ± 0.00 | 10.00 ± 0.00 | 3 | abacus, {hours:.2f} h |"
    assert f"| resnet10 | 4 | 2 | 8 | {cells}" in reproduce.table("cifar10-small", args)
    # Other images would be averaged with its committed results.
    (tmp_path / "train" / "truck").rename(tmp_path / "train" / "unicorn")
    message = refused(reproduce, *words, "--seeds", 3)
    assert "train needs the folders airplane automobile" in message


def test_runs_what_is_missing_and_no_more(commands, call, tmp_path):
    """Status and commands follow from what is there."""
    words = ["--row", "41", "--epochs", "4", "--results", str(tmp_path)]
    row = studies.all_rows(reproduce.parse_args(words))[40]
    assert reproduce.status(row, 0) == "not run"
    call(reproduce, *words)
    results.run_file(row, 0, 4, "_linear.json").unlink()
    assert reproduce.status(row, 0) == "pretrained, to be evaluated"
    call(reproduce, *words)
    assert ["linear.py" in command for command in commands] == [False, True, True]
    path = results.run_file(row, 0, 4, ".json")
    results.run_file(row, 0, 4, "_linear.json").unlink()
    path.write_text(path.read_text().replace('"epochs_done": 4', '"epochs_done": 1'))
    assert reproduce.status(row, 0) == "epoch 1 of 4"


def test_table_is_what_was_measured(toy):
    """Of your own images it names the folder that they were measured on."""
    args = reproduce.parse_args(toy.flags)
    lines = reproduce.table("folder", args).splitlines()
    assert re.fullmatch(r"### Your own images \(pictures\d\)", lines[0])
    row = next(line for line in lines if line.startswith("| AttentioNCE | 1 | 10 | resnet10 | 4 |"))
    (result,) = results.evaluations(studies.all_rows(args)[args.row[1] - 1], -1)
    best, last = result["best_epoch"]["top1"], result["last_epoch"]["top1"]
    assert f"| 6 | 24 | {best:.2f} | {last:.2f} | {result['knn_top1']:.2f} | 1 |" in row
    assert not any(line.startswith("| SimCLR") for line in lines)
    assert "5 more rows have not been run: `python reproduce.py` lists them." in lines


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


def test_unknown_names(refused):
    assert "data sets are stl10," in refused(reproduce, "cifar11")
    assert "rows are 1 to" in refused(reproduce, "--row", "0")
