"""Launchers, terminals, file systems and operating systems other than the usual ones."""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading

import pytest
import torch
from conftest import ROOT
from helpers.programs import Small
from torch.nn.functional import normalize

import linear
import loss
import main
from attentionce.runs import signals

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def small_encoder(monkeypatch):
    monkeypatch.setattr(main, "Model", Small)


# ---- paths and other flags ----


def test_every_path_expands_the_home_folder(monkeypatch):
    """A shell leaves ~ alone in --results=~/runs."""
    monkeypatch.setenv("HOME", "/home/me")
    args = main.parse_args(["--results=~/runs", "--root=~/data", "--resume=~/a.state"])
    assert (args.results, args.root) == ("/home/me/runs", "/home/me/data")
    assert args.resume == "/home/me/a.state"
    args = linear.parse_args(["--model_path", "~/a.pth", "random", "--export=~/b", "--results=~"])
    assert args.model_path == ["/home/me/a.pth", "random"]
    assert (args.export, args.results) == ("/home/me/b", "/home/me")


@pytest.mark.parametrize("word", ["--local-rank=1", "--local_rank=1"])
def test_the_launchers_flag_is_taken(word):
    """torch.distributed.launch adds it; LOCAL_RANK in the environment says the same."""
    assert vars(main.parse_args([word])) == vars(main.parse_args([]))


@pytest.mark.parametrize("program, words", [(main, ()), (linear, ("--model_path", "random"))])
def test_a_seed_beyond_64_bits_is_one_line(refused, program, words):
    assert "--seed must be below 2**63" in refused(program, *words, "--seed", 2**64)


# ---- called from other code ----


def test_a_call_leaves_the_process_as_it_was(tiny, small_encoder):
    """Handlers of signals come back, and arguments need no sys.argv."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    assert main.main([*map(str, tiny)]) == 0
    assert {number: signal.getsignal(number) for number in signals.SIGNALS} == before


def test_it_works_in_a_thread(tiny, small_encoder):
    """Where Python lets nobody choose what signals do, as in some notebooks and servers."""
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(main.main([*map(str, tiny)])))
    thread.start()
    thread.join(120)
    assert statuses == [0]


# ---- terminals ----


def test_a_log_file_has_a_line_per_epoch_and_no_bars(tiny, small_encoder, capfd):
    assert main.main([*map(str, tiny), "--epochs", "2"]) == 0
    written = capfd.readouterr()
    assert written.err == ""
    lines = re.findall(r"epoch (\d)/2: loss [\d.]+, [\d,]+ images/s, [\d:]+ left", written.out)
    assert lines == ["1", "2"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar_with_the_time_left(tiny, small_encoder, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main.main([*map(str, tiny)]) == 0
    shown = sys.stderr.getvalue()
    assert "epoch 1/1" in shown and "left=00:00" in shown


@pytest.mark.parametrize("variables, disabled", [({}, False), ({"TQDM_DISABLE": "1"}, True)])
def test_tqdms_own_variables_count(variables, disabled):
    code = """
import sys
from types import SimpleNamespace
from attentionce.training import one_epoch

sys.stderr.isatty = lambda: True
args = SimpleNamespace(batch_size=4, epochs=1)
run = SimpleNamespace(steps=2, args=args, progress={"epoch": 1, "step": 0})
print(one_epoch.progress_bar(run).disable)
"""
    environment = {**ENVIRONMENT, **variables}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == f"{disabled}\n", done.stderr


def test_a_terminal_without_a_character_prints_another():
    """The help has …, which ASCII lacks."""
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii:strict"}
    command = [sys.executable, "linear.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and "results/cifar10/?.pth" in done.stdout


@pytest.mark.parametrize("program", ["main.py", "linear.py", "embed.py", "reproduce.py"])
def test_an_interpreter_that_leaves_out_the_scripts_folder(program, tmp_path):
    """python -I, as -P of Python 3.11 and later does, from another folder."""
    command = [sys.executable, "-I", str(ROOT / program), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr


# ---- file systems and operating systems ----


def test_without_what_only_unix_has(tmp_path, pictures):
    """main.py, linear.py and the hub run where these names are missing, as on Windows."""
    flags = f"--dataset_name folder --root {pictures} --image_size 8 --batch_size 8 --epochs 1"
    run = f"{flags} --arch resnet10 --num_pos 1 --knn_every 0 --compile off --results {tmp_path}"
    stem = tmp_path / "folder" / "folder_SimCLR_1model_8_1_1.0_1.0.pth"
    code = f"""
import os, signal, sys, torch
import hubconf
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGHUP"):
    delattr(signal, name)
for name in ("posix_fallocate", "fork", "getuid"):
    delattr(os, name)
import linear, main
assert main.main({shlex.split(run)!r}) == 0
assert linear.main({shlex.split(flags)!r} + ["--model_path", {str(stem)!r}]) == 0
assert hubconf.encoder({str(stem)!r})(torch.zeros(2, 3, 8, 8)).shape == (2, 512)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert stem.exists()


# ---- launchers ----


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
    flags = ["--max-restarts=3", str(program), *map(str, tiny), "--epochs", "3", "--device", "cpu"]
    done = subprocess.run(
        [*torchrun.split(), *flags], env=ENVIRONMENT, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing from epoch 2, step 0" in done.stdout
    assert len(list(results.rglob("*_3_*.pth"))) == 1


# ---- mistakes that passed ----


def test_the_module_normalises_its_input():
    """As lightly's NTXentLoss does; the function takes embeddings as they are."""
    x = torch.randn(6, 48, 128, dtype=torch.float64, generator=torch.manual_seed(0))
    expected = loss.attentionce(normalize(x, dim=-1))
    torch.testing.assert_close(loss.AttentioNCE()(x), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.AttentioNCE()(7 * x), expected, rtol=1e-12, atol=0)
    assert loss.attentionce(x) > 100
