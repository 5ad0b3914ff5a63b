"""Programs that are killed: what they leave is whole, and the run goes on to the same bits."""

import random
import shutil
import signal

import pytest
from helpers.faults import SOAK, At, KillInSave, small
from helpers.outputs import check_end, check_meanwhile
from helpers.programs import Program, finish, wait_for

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
