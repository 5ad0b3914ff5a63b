"""Programs that are killed: what they leave is whole, and the run resumes to the same bits."""

import random
import shutil
import signal

import pytest
from helpers.faults import SOAK, KillInSave
from helpers.outputs import check_end, check_meanwhile
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
def test_killed_at_every_line_of_every_save(call, saving_flags, results, whole, tmp_path):
    """Before each write, flush, check and renaming of a run; in the short form, before some."""
    expected, line = whole(), 0 if SOAK else 29
    while (program := Program(tmp_path, saving_flags, KillInSave(line))).wait() != 0:
        assert program.wait() == -signal.SIGKILL, program.output()
        check_meanwhile(results)
        assert call(main, *saving_flags) == 0
        check_end(results, expected)
        shutil.rmtree(results)
        line += 7 if SOAK else 97
    assert line > 200


def test_killed_again_and_again(saving_flags, results, whole, tmp_path):
    """A run that is killed whenever it has saved a few files still gets to its end."""
    expected, kills = whole(), 0
    while (program := Program(tmp_path, saving_flags, KillInSave(110))).wait() != 0:
        assert program.wait() == -signal.SIGKILL, program.output()
        check_meanwhile(results)
        kills += 1
        assert kills < 12
    assert kills >= 2
    check_end(results, expected)
