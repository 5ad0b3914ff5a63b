"""Processes that are killed; after each the last good files open, and the run goes on to the same bits."""

import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from helpers.programs import (
    SOAK,
    At,
    KillInSave,
    Program,
    check_end,
    check_meanwhile,
    finish,
    small,
    wait_for,
)
from PIL import Image

from attentionce.data import image_folder
from model import load_model

KILLS = 20 if SOAK else 3


# ---- the process dies ----
@pytest.mark.soak
def test_killed_at_random_moments(saving_flags, results, whole, tmp_path):
    """Most of such a run's time goes into writing 60 MB after every step, so most moments are in the middle of that."""
    draw, expected, killed, writing = random.Random(0), whole(), 0, 0
    while killed < KILLS:
        program = Program(tmp_path, saving_flags)
        wait_for(
            lambda program=program: list(results.rglob("*.lock")) or program.process.exitcode == 0
        )
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
    """Before each write, flush, check and renaming of a run with a small encoder; in the short form, of some of them."""
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
    """A run that never gets further than the few saves of an epoch's end before it is killed ends all the same."""
    expected, kills = whole(small), 0
    while (program := Program(tmp_path, saving_flags, small, KillInSave(25))).wait() != 0:
        assert program.process.exitcode == -signal.SIGKILL, program.output()
        check_meanwhile(results)
        kills += 1
        assert kills < 20
    assert kills >= 3
    check_end(results, expected)


def test_linear_goes_on_after_a_kill(call, saving_flags, results, tmp_path):
    """The weights of a run that was killed are those of its last epoch that ended; they open in the evaluation."""
    program = Program(
        tmp_path, [*saving_flags, "--save_every", 1], At(8, signal.raise_signal, signal.SIGKILL)
    )
    assert program.wait() == -signal.SIGKILL
    found = sorted(path.name for path in results.rglob("*.pth"))
    assert found == [f"folder_SimCLR_1model_8_{epoch}_1.0_1.0.pth" for epoch in (1, 2)]
    for name in found:
        assert load_model(results / "folder" / name)[1] == "resnet10"


def test_half_a_cache_of_images_is_removed(tmp_path):
    """A run that is killed while it decodes more images than memory holds leaves a large file; the next one removes it."""
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(
                tmp_path / split / "a" / f"{i}.png"
            )
    words = "image_folder.memory_limit = lambda: 1; image_folder.decode = lambda *_: (print('here', flush=True), time.sleep(99))"
    code = f"import time; from attentionce.data import image_folder; {words}; image_folder.image_folder({str(tmp_path)!r}, 'train', 8)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    (part,) = tmp_path.glob(".train-*.tmp")
    image_folder.remove_parts(str(tmp_path))
    assert part.exists()  # its owner lives
    process.kill()
    process.wait()
    image_folder.remove_parts(str(tmp_path))
    assert not part.exists()
