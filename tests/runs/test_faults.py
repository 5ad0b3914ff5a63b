"""Programs that are killed: what they leave is whole, and the run goes on to the same bits."""

import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from helpers.faults import SOAK, At, KillInSave, small
from helpers.outputs import check_end, check_meanwhile
from helpers.programs import Program, finish, wait_for
from PIL import Image

from attentionce.data import image_folder
from model import load_model

KILLS = 20 if SOAK else 3


@pytest.mark.soak
def test_killed_at_random_moments(saving_flags, results, whole, tmp_path):
    """Most of the run's time goes into writing 60 MB after every step, so most kills hit that."""
    draw, expected, killed, writing = random.Random(0), whole(), 0, 0
    while killed < KILLS:
        program = Program(tmp_path, saving_flags)

        def at_work(program=program):
            return list(results.rglob("*.lock")) or program.process.exitcode == 0

        wait_for(at_work)
        program.process.join(draw.uniform(0.2, 3))
        if program.process.is_alive():
            program.kill()
        status = program.wait()
        writing += check_meanwhile(results)
        if status == 0:
            check_end(results, expected)
            shutil.rmtree(results)
            continue
        assert status == -signal.SIGKILL, program.output()
        killed += 1
    print(f"{killed} kills, {writing} of them while a file was written")
    finish(saving_flags, results, expected, tmp_path)


@pytest.mark.soak
def test_killed_at_every_event_of_every_save(saving_flags, results, whole, tmp_path):
    """Before each write, flush, check and renaming of a run; in the short form, before some."""
    expected, event = whole(small), 0 if SOAK else 1
    while True:
        program = Program(tmp_path, saving_flags, small, KillInSave(event))
        if program.wait() == 0:
            break
        assert program.process.exitcode == -signal.SIGKILL, program.output()
        check_meanwhile(results)
        finish(saving_flags, results, expected, tmp_path, small)
        shutil.rmtree(results)
        event += 1 if SOAK else 17
    print(f"{event} events")
    assert event > 60


def test_killed_again_and_again(saving_flags, results, whole, tmp_path):
    """A run that is killed whenever it has saved a few files still gets to its end."""
    expected, kills = whole(small), 0
    while (program := Program(tmp_path, saving_flags, small, KillInSave(25))).wait() != 0:
        assert program.process.exitcode == -signal.SIGKILL, program.output()
        check_meanwhile(results)
        kills += 1
        assert kills < 20
    assert kills >= 3
    check_end(results, expected)


def test_weights_of_a_killed_run_open(saving_flags, results, tmp_path):
    """They are those of the epochs that had ended."""
    flags = [*saving_flags, "--save_every", 1]
    program = Program(tmp_path, flags, At(8, signal.raise_signal, signal.SIGKILL))
    assert program.wait() == -signal.SIGKILL
    found = sorted(path.name for path in results.rglob("*.pth"))
    assert found == [f"folder_SimCLR_1model_8_{epoch}_1.0_1.0.pth" for epoch in (1, 2)]
    for name in found:
        assert load_model(results / "folder" / name)[1] == "resnet10"


DECODE_FOR_EVER = """
import sys, time
from attentionce.data import image_folder

def decode(*_):
    print("here", flush=True)
    time.sleep(99)

image_folder.memory_limit = lambda: 1
image_folder.decode = decode
image_folder.image_folder(sys.argv[1], "train", 8)
"""


def test_half_a_cache_of_images_is_removed(tmp_path):
    """A program that is killed while it decodes leaves a large file; the next one removes it."""
    for split in ("train", "test"):
        folder = tmp_path / split / "a"
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(folder / f"{i}.png")
    command = [sys.executable, "-c", DECODE_FOR_EVER, tmp_path]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    (part,) = tmp_path.glob(".train-*.tmp")
    image_folder.remove_parts(str(tmp_path))
    assert part.exists()  # its owner lives
    process.kill()
    process.wait()
    image_folder.remove_parts(str(tmp_path))
    assert not part.exists()
