"""Programs that are killed: what they leave is whole, and the run resumes to the same bits."""

import random
import shutil
import signal

import pytest
from helpers.faults import SOAK, At, KillInSave
from helpers.outputs import STEM, check_end, check_meanwhile
from helpers.programs import Program, wait_for

import main

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
