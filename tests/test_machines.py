"""Launchers, terminals, interpreters and operating systems other than the usual ones."""

import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from conftest import ROOT

import main
from attentionce.runs import signals

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_call_leaves_the_process_as_it_was(tiny, small_encoder):
    """Handlers of signals come back, and arguments need no sys.argv."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    assert main.main([*map(str, tiny)]) == 0
    assert {number: signal.getsignal(number) for number in signals.SIGNALS} == before


def test_it_works_in_a_thread(tiny, small_encoder):
    """Where Python lets nobody choose what signals do, as in some notebooks and servers."""
    with ThreadPoolExecutor() as pool:
        assert pool.submit(main.main, [*map(str, tiny)]).result(120) == 0


def test_a_terminal_has_a_bar_with_the_time_left(tiny, small_encoder, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main.main([*map(str, tiny)]) == 0
    assert "epoch 1/1" in terminal.getvalue() and "left=00:00" in terminal.getvalue()


PROGRAMS = """
import os, runpy, signal, sys, torch
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGHUP"):
    delattr(signal, name)
for name in ("posix_fallocate", "fork", "getuid"):
    delattr(os, name)
loaded, path = {{*sys.modules}}, [*sys.path]
for status, *sys.argv in {commands!r}:
    try:
        runpy.run_path({root!r} + "/" + sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert (end.code or 0) == status
    sys.path[:] = path
    for name in {{*sys.modules}} - loaded:  # those of the repository alone
        if name.partition(".")[0] in ("attentionce", "experiments", "model", "loss", "utils"):
            del sys.modules[name]
encoder = torch.hub.load({root!r}, "encoder", source="local", weights={weights!r})
assert encoder(torch.zeros(2, 3, 8, 8)).shape == (2, 512)
"""


def test_without_the_scripts_folder_and_what_only_unix_has(tmp_path, pictures):
    """As a user starts them. python -I leaves that folder out; the names Windows does not have."""
    images = f"--dataset_name folder --root {pictures} --image_size 8"
    flags = f"{images} --batch_size 8 --epochs 1"
    weights = f"{tmp_path}/folder/folder_SimCLR_4model_8_1_1.0_1.0.pth"
    commands = (
        f"0 main.py {flags} --arch resnet10 --knn_every 0 --compile off --results {tmp_path}",
        f"0 linear.py {flags} --model_path {weights}",
        f"0 embed.py {images} --model_path {weights} --out {tmp_path}/f.npz",
        f"0 reproduce.py --results {tmp_path}",
        "2 linear.py --model_path nowhere.pth",
    )
    commands = [[int(line[0]), *line[2:].split()] for line in commands]
    code = PROGRAMS.format(commands=commands, root=str(ROOT), weights=weights)
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("\nerror: nowhere.pth does not exist\n")
    assert "resnet10: 5.23 M parameters, 0.02 G multiply-adds" in done.stdout


DYING = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import main
from attentionce import cli
from attentionce.training import one_step, processes
from helpers.programs import Small

main.Model, take_step = Small, one_step.take_step

def dying(run, batch):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and processes.rank() == 1 and run.position == (2, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    take_step(run, batch)

one_step.take_step = dying
cli.run(main.main)
"""


def test_torchruns_next_attempt_goes_on(tiny, results, tmp_path):
    """A process dies; torchrun starts all anew; they go on from the state to the end."""
    program = tmp_path / "program.py"
    program.write_text(DYING.format(root=str(ROOT), tests=str(ROOT / "tests")))
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node=2"
    words = [*torchrun.split(), "--max-restarts=3", str(program), *map(str, tiny)]
    words += ["--epochs", "3", "--state_minutes", "0", "--device", "cpu"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing from epoch 2, step 1" in done.stdout
    assert len(list(results.rglob("*_3_*.pth"))) == 1
