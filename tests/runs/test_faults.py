"""Programs that are killed: what they leave is whole, and the run resumes to the same bits."""

import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from helpers.faults import SOAK, At, KillInSave
from helpers.outputs import STEM, check_end, check_meanwhile
from helpers.programs import Program, wait_for
from PIL import Image

import main
from attentionce.data import image_folder

KILLS = 30 if SOAK else 3


@pytest.mark.soak
def test_killed_at_random_moments(call, saving_flags, results, whole, tmp_path):
    """Much of the run's time goes into writing after every step, so many kills hit that."""
    draw, expected, killed = random.Random(0), whole(), 0
    while killed < KILLS:
        for path in results.rglob("*.lock*"):  # that the last one left
            path.unlink()
        program = Program(tmp_path, saving_flags)
        wait_for(lambda p=program: list(results.rglob("*.lock")) or p.process.exitcode == 0)
        program.process.join(draw.uniform(0, 0.6))
        program.process.kill()
        assert program.wait() in (0, -signal.SIGKILL), program.output()
        check_meanwhile(results)
        if program.wait() == 0:
            check_end(results, expected)
            shutil.rmtree(results)
        else:
            killed += 1
    assert call(main, *saving_flags) == 0
    check_end(results, expected)


@pytest.mark.soak
def test_killed_at_every_event_of_every_save(call, saving_flags, results, whole, tmp_path):
    """Before each write, flush, check and renaming of a run; in the short form, before some."""
    expected, event = whole(), 0 if SOAK else 11
    while (program := Program(tmp_path, saving_flags, KillInSave(event))).wait() != 0:
        assert program.wait() == -signal.SIGKILL, program.output()
        check_meanwhile(results)
        assert call(main, *saving_flags) == 0
        check_end(results, expected)
        shutil.rmtree(results)
        event += 1 if SOAK else 25
    assert event > 60


def test_killed_again_and_again(saving_flags, results, whole, tmp_path):
    """A run that is killed whenever it has saved a few files still gets to its end."""
    expected, kills = whole(), 0
    while (program := Program(tmp_path, saving_flags, KillInSave(40))).wait() != 0:
        assert program.wait() == -signal.SIGKILL, program.output()
        check_meanwhile(results)
        kills += 1
        assert kills < 12
    assert kills >= 2
    check_end(results, expected)


def test_weights_of_a_killed_run(saving_flags, results, tmp_path):
    """They are whole, and those of the epochs that had ended."""
    flags = [*saving_flags, "--save_every", 1]
    program = Program(tmp_path, flags, At(8, signal.raise_signal, signal.SIGKILL))
    assert program.wait() == -signal.SIGKILL
    check_meanwhile(results)
    names = sorted(path.name for path in results.rglob("*.pth"))
    assert names == [f"{STEM.replace('_3_', f'_{epoch}_')}.pth" for epoch in (1, 2)]


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
