"""Several processes compute what one computes, read and write as one, and leave together. On gloo, with 1 to 4 processes."""

import copy
import csv
import functools
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from torch import nn
from torch.nn.functional import normalize

import linear
import loss
import main
from attentionce import cli
from attentionce.data.images import Images
from attentionce.errors import UserError
from attentionce.evaluation import knn
from attentionce.runs import states
from attentionce.training import devices, one_epoch, one_step, pretraining, processes
from attentionce.training.moco import MoCo

CONTEXT = get_context(
    "forkserver"
)  # whose processes begin with torch imported: a start takes 0.2 s instead of 4
CONTEXT.set_forkserver_preload(["main", "linear", "test_processes"])
LOSSES = {
    "attentionce": {"d_pos": 0.5, "d_neg": 0.3},
    "simclr": {},
    "dcl": {"tau_plus": 0.1},
    "hcl": {"tau_plus": 0.1, "beta": 1.0},
    "bcl": {"tau_plus": 0.1, "alpha": 0.8, "beta": 0.9},
}
CLOSE = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


class Group:
    """`count` processes that call function(*args), in the environment that torchrun makes; what they write and return."""

    def __init__(self, folder, count, function, *args, environment=None):
        self.folder = folder / f"group{len(list(folder.glob('group*')))}"
        self.folder.mkdir()
        self.store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )  # torchrun's part
        common = {
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self.store.port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            **(environment or {}),
        }
        self.processes = []
        for rank in range(count):
            own = {
                name: str(value)
                for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()
            }
            process = CONTEXT.Process(
                target=_member, args=(self.folder, own, function, args), daemon=True
            )
            process.start()
            self.processes.append(process)

    def join(self, seconds=120):
        """The exit statuses; a process that is still there after that time is killed, and its status is then −9."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def results(self):
        """What the functions returned."""
        assert self.join() == [0] * len(self.processes), self.output()
        return [
            pickle.loads((self.folder / f"{rank}.result").read_bytes())
            for rank in range(len(self.processes))
        ]

    def output(self, rank=None):
        """What one process, or all of them, have written to stdout and stderr."""
        ranks = range(len(self.processes)) if rank is None else [rank]
        return "".join(
            (self.folder / f"{r}.output").read_text()
            for r in ranks
            if (self.folder / f"{r}.output").exists()
        )


def _member(folder, environment, function, args):
    os.environ.update(environment)
    rank = environment["RANK"]
    file = os.open(folder / f"{rank}.output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    processes.start()
    (folder / f"{rank}.result").write_bytes(pickle.dumps(function(*args)))
    processes.stop()


@pytest.fixture
def group(tmp_path):
    """group(count, function, *args): a `Group`, ended with the test."""
    made = []

    def make(*args, **options):
        made.append(Group(tmp_path, *args, **options))
        return made[-1]

    yield make
    for g in made:
        g.join(0)


class Double(nn.Module):
    def forward(self, x):
        return x.double()


class Tiny(nn.Module):
    """A model in float64 without BatchNorm, whose batch is a process's."""

    def __init__(self, feature_dim=128, arch="resnet50", stem="small"):
        super().__init__()
        self.f = nn.Sequential(
            Double(), nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
        ).double()
        self.g = nn.Linear(16, feature_dim).double()

    def forward(self, x, recompute=None):
        feature = self.f(x).flatten(1)
        return normalize(feature, dim=-1), normalize(self.g(feature), dim=-1)


# ------------------------------------------------------------------------------------- the same numbers


def gradients():
    """Mean loss and its gradient by an encoder's weights, of every loss, from this process's part of 12 images."""
    loss.block_rows = lambda device, columns: 5
    random = torch.Generator().manual_seed(0)
    x = torch.randn(5, 12, 7, dtype=torch.float64, generator=random)
    weight = torch.randn(7, 6, dtype=torch.float64, generator=random)
    own = x.chunk(processes.world(), dim=1)[processes.rank()]
    found = {}
    for name, parameters in LOSSES.items():
        w = weight.clone().requires_grad_()
        z = normalize(own @ w, dim=-1)
        value = getattr(loss, name)(
            z[: loss.LOSSES[name].views(3)], 0.2, gather=processes.gather, **parameters
        )
        value.backward()
        found[name] = processes.average([w.grad], value.detach()), w.grad
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_loss_and_gradient_are_those_of_one_process(count, group):
    expected = {}
    random = torch.Generator().manual_seed(0)
    x = torch.randn(5, 12, 7, dtype=torch.float64, generator=random)
    weight = torch.randn(7, 6, dtype=torch.float64, generator=random)
    for name, parameters in LOSSES.items():
        w = weight.clone().requires_grad_()
        z = normalize(x @ w, dim=-1)
        value = getattr(loss, name)(z[: loss.LOSSES[name].views(3)], 0.2, **parameters)
        value.backward()
        expected[name] = value.detach(), w.grad
    for found in group(count, gradients).results():
        for name in LOSSES:
            CLOSE(found[name], expected[name])


def exact_view(images, draw, v):
    """A view whose bits cannot depend on how many images there are."""
    return images / 255 * draw.brightness[v][:, None, None, None] + draw.hue[v][:, None, None, None]


def steps(estimator, grad_cache, make_view):
    """Three steps of training: all that they leave, and the images and views that this process saw."""
    flags = [
        "--estimator",
        estimator,
        "--batch_size",
        "12",
        "--num_pos",
        "2",
        "--queue",
        "30",
        "--d_neg",
        "0.5",
    ]
    args = main.parse_args([*flags, "--grad_cache"] if grad_cache else flags)
    torch.manual_seed(0)
    pixels = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8)
    model, cpu, seen = Tiny(5), torch.device("cpu"), []
    run = pretraining.Run(
        args=args,
        device=cpu,
        dtype=torch.float32,
        pixels=pixels,
        model=model,
        encoder=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2, fused=True),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        loss=loss.LOSSES[args.loss],
        progress=pretraining.new_progress(3, cpu),
        moco=MoCo(model, 30, 0.9, 5).double() if estimator == "MoCo" else None,
    )

    def watched(images, draw, v, size, ops):
        seen.append((images, make_view(images, draw, v)))
        return seen[-1][1]

    with mock.patch.object(one_step.views, "make_view", watched):
        assert one_epoch.train_epoch(run, [], lambda: None) == 0
    images, made = ([batch[i] for batch in seen] for i in (0, 1))
    left = [*model.state_dict().values(), *(run.moco.state_dict().values() if run.moco else [])]
    return {
        "left": left,
        "losses": run.progress["losses"],
        "images": torch.stack(images),
        "views": torch.stack(made),
    }


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(
    "estimator, grad_cache", [("SimCLR", False), ("SimCLR", True), ("MoCo", False)]
)
def test_training_steps_are_those_of_one_process(estimator, grad_cache, count, group):
    one = steps(estimator, grad_cache, exact_view)
    several = group(count, steps, estimator, grad_cache, exact_view).results()
    for found in several:
        CLOSE(found["left"], one["left"], atol=1e-9)  # MoCo's queue and momentum encoder among it
        torch.testing.assert_close(found["losses"], one["losses"])
    assert torch.equal(torch.cat([found["images"] for found in several], dim=1), one["images"])
    assert torch.equal(torch.cat([found["views"] for found in several], dim=1), one["views"])


def test_real_views_are_those_of_one_process(group):
    make_view = functools.partial(one_step.views.make_view, size=6)
    one = steps("SimCLR", False, make_view)
    several = group(3, steps, "SimCLR", False, make_view).results()
    views = torch.cat([found["views"] for found in several], dim=1)
    torch.testing.assert_close(
        views, one["views"], rtol=0, atol=1e-5
    )  # sums may run in another order


def evaluation(folder):
    """kNN and linear evaluation of an untrained encoder, its features, and the classifier's inputs."""
    torch.manual_seed(0)
    f = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    pixels, labels = torch.randint(256, (37, 3, 8, 8), dtype=torch.uint8), torch.arange(37) % 7
    pixels[:, 0] = (labels * 30)[:, None, None]
    bank, test = (
        Images(pixels[:23], labels[:23], list("abcdefg")),
        Images(pixels[23:], labels[23:], list("abcdefg")),
    )
    args = linear.parse_args(
        [
            "--model_path",
            "random",
            "--batch_size",
            "10",
            "--epochs",
            "2",
            "--image_size",
            "8",
            "--k",
            "5",
        ]
    )
    cpu, before = torch.device("cpu"), copy.deepcopy(f.state_dict())
    result = linear.evaluate(
        f, bank, test, args, cpu, torch.float32, folder / f"of{processes.rank()}"
    )
    assert all(torch.equal(value, before[key]) for key, value in f.state_dict().items())
    return result, knn.features(f, bank.pixels, cpu, torch.float32, 5)


@pytest.mark.parametrize("count", [2, 3])
def test_evaluation_is_that_of_one_process(count, group, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "several").mkdir()
    one, expected = evaluation(tmp_path / "one")
    for result, features in group(count, evaluation, tmp_path / "several").results():
        torch.testing.assert_close(features, expected)
        for key in ("knn_top1", "knn_top5", "last_epoch", "best_epoch"):
            torch.testing.assert_close(result[key], one[key], rtol=1e-5, atol=1e-9)
    assert sorted(path.name for path in (tmp_path / "several").iterdir()) == [
        "of0_linear.csv",
        "of0_linear.json",
    ]


def exchanges(folder):
    """The smaller exchanges, checked in every process."""
    rank, world = processes.rank(), processes.world()
    for rows in (1, 5, 6, 7, 12):
        x = torch.arange(rows)
        share = processes.share(rows)
        assert len(share) == -(-rows // world)
        assert torch.equal(processes.gather_rows(x[share])[:rows], x)
    assert processes.largest([rank, -rank, 7]) == [world - 1, 0, 7]
    assert processes.total(torch.tensor(rank)).item() == sum(range(world))
    assert processes.alike(5) and not processes.alike(rank)
    assert processes.from_first(lambda: {"rank": rank, "x": torch.ones(2)})["rank"] == 0
    norm = nn.BatchNorm1d(2)
    norm.running_mean += rank
    processes.same_buffers(norm)
    assert norm.running_mean.sum() == 0
    print("only one prints")

    def load(name):
        print("a progress bar", file=sys.stderr)
        began = time.monotonic()
        time.sleep(0.3 if rank == 0 else 0)
        return began, time.monotonic()

    return processes.in_turn(load, "first"), processes.in_turn(load, "second")


def test_rank_0_loads_first_and_only_it_prints(group, tmp_path):
    made = group(3, exchanges, tmp_path)
    for first, *others in zip(*made.results(), strict=True):
        assert all(began >= first[1] for began, _ in others)
    assert made.output().count("only one prints") == 1
    assert made.output().count("a progress bar") == 2
    assert "only one prints" in made.output(0)


# ------------------------------------------------------------------------------------------ whole runs


def program(words, fault=None, elsewhere=None):
    """main.py with the model `Tiny`, ending as it ends; `fault(run)` is called before every step.

    elsewhere: what the results folder is to all but rank 0, as on machines that share no disk.
    """
    main.Model = Tiny
    words = [*words, "--results", elsewhere] if elsewhere and processes.rank() else words
    take_step = one_step.take_step
    if fault:
        one_step.take_step = lambda run, batch: (fault(run), take_step(run, batch))
    sys.argv = ["main.py", *map(str, words)]
    cli.run(main.main)


@pytest.fixture
def words(pictures, tmp_path):
    """Flags for a run of 2 steps an epoch that any number of processes up to 4 can share."""
    return [
        "--dataset_name",
        "folder",
        "--root",
        pictures,
        "--results",
        tmp_path / "results",
        "--image_size",
        8,
        "--batch_size",
        12,
        "--epochs",
        3,
        "--knn_every",
        3,
        "--k",
        5,
        "--lr",
        0.01,
        "--device",
        "cpu",
    ]


def read(folder, ending):
    (path,) = folder.rglob(f"*{ending}")
    return path


def stop_third_step_in_rank_1(run):
    if processes.rank() == 1 and run.progress["epoch"] == 2 and run.progress["step"] == 0:
        os.kill(os.getpid(), signal.SIGTERM)


def stop_fourth_step_in_rank_1(run):  # an epoch's last: nothing of it is left to do but to evaluate
    if processes.rank() == 1 and run.progress["epoch"] == 2 and run.progress["step"] == 1:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    "step, fault", [(1, stop_third_step_in_rank_1), (2, stop_fourth_step_in_rank_1)]
)
def test_signal_to_one_stops_all_and_another_number_goes_on(
    step, fault, words, group, tmp_path, contents
):
    whole = group(1, program, [*words, "--results", tmp_path / "whole"])
    stopped = group(2, program, words, fault)
    assert whole.join() == [0], whole.output()
    assert stopped.join() == [143, 143], stopped.output()
    assert f"stopped at epoch 2, step {step}, state saved" in stopped.output(0)
    assert stopped.output(1) == ""
    assert not list((tmp_path / "results").rglob("*.pth"))
    resumed = group(3, program, words, None, tmp_path / "elsewhere")
    assert resumed.join() == [0, 0, 0], resumed.output()
    assert resumed.output().count(f"going on from epoch 2, step {step}") == 1
    assert not (tmp_path / "elsewhere").exists()

    rows = [
        list(csv.DictReader(read(tmp_path / name, ".csv").open())) for name in ("whole", "results")
    ]
    for one, other in zip(*rows, strict=True):
        for column in (
            "epoch",
            "loss",
            "views",
            "effective_positives",
            "effective_negatives",
            "knn_top1",
        ):
            torch.testing.assert_close(
                float(other[column] or 0), float(one[column] or 0), rtol=1e-5, atol=1e-5
            )
    one, other = (
        torch.load(read(tmp_path / name, ".pth"), weights_only=True)
        for name in ("whole", "results")
    )
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert {name.rsplit(".", 1)[1] for name in contents(tmp_path / "results")} == {
        "csv",
        "json",
        "pth",
        "state",
        "previous",
    }


def lose_parent_of_rank_1(run):
    if processes.rank() == 1 and run.progress["epoch"] == 2:
        os.getppid = lambda: 1


def test_torchruns_own_death_stops_and_saves(words, group, tmp_path):
    made = group(2, program, words, lose_parent_of_rank_1, environment={"TORCHELASTIC_RUN_ID": "x"})
    assert made.join() == [143, 143], made.output()
    assert "stopped at epoch 2, step 1, state saved" in made.output(0)
    assert read(tmp_path / "results", ".state")


def raise_in_rank_1(run):
    if processes.rank() == 1 and run.progress["step"] == 1:
        raise ZeroDivisionError("a fault of rank 1 alone")


def die_in_rank_1(run):
    if processes.rank() == 1 and run.progress["step"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def full_disk(run):
    def save_state(path, state):
        assert processes.rank() == 0
        raise UserError("the disk is full")

    states.save_state = save_state


def not_finite(run):
    if run.progress["step"] == 1:
        with torch.no_grad():
            run.model.g.bias.fill_(torch.nan)


@pytest.mark.parametrize(
    "fault, statuses, message",
    [
        (raise_in_rank_1, [2, 1, 2], "ZeroDivisionError: a fault of rank 1 alone"),
        (die_in_rank_1, [2, -signal.SIGKILL, 2], "error: process"),
        (full_disk, [2, 2, 2], "error: the disk is full"),
        (not_finite, [2, 2, 2], "error: the loss or its gradient is not finite at epoch 1, step 2"),
    ],
)
def test_error_of_one_ends_all_and_is_told_once(fault, statuses, message, words, group, tmp_path):
    made = group(3, program, words, fault)
    assert made.join() == statuses, made.output()
    said = [line for line in made.output().splitlines() if re.match(r"\w*[eE]rror: ", line)]
    assert len(said) == 1 and said[0].startswith(message), made.output()
    states = list((tmp_path / "results").rglob("*.nonfinite.state"))
    assert len(states) == (fault is not_finite)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            ["--batch_size", 13],
            "--batch_size 13 is global: 2 processes need a multiple",
        ),
        (["--batch_size", 2], "--batch_size 2 is global"),
        (["--loss", "nonsense"], "argument --loss: invalid choice: 'nonsense'"),
        (["--bn", "sync"], "--bn sync needs CUDA"),
        (["--device", "mps"], "--device mps: under torchrun"),
        (["--root", "/nowhere"], "--root '/nowhere' needs a folder train"),
    ],
)
def test_wrong_flags_are_told_once(wrong, message, words, group):
    made = group(2, program, [*words, *wrong])
    assert made.join() == [2, 2], made.output()
    assert [line.startswith(f"error: {message}") for line in made.output().splitlines()] == [
        True
    ], made.output()


def torchrun(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        *map(str, words),
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_torchrun_trains_and_a_signal_to_it_saves(words, tmp_path):
    flags = ["--arch", "resnet10", "--epochs", 1000, "--knn_every", 0]
    process = torchrun("main.py", *words, *flags)
    try:
        end = time.monotonic() + 120
        while not list((tmp_path / "results").rglob("*.csv")) and time.monotonic() < end:
            time.sleep(0.1)
        process.terminate()
        output, _ = process.communicate(
            timeout=60
        )  # until the last process that could write is gone
    finally:
        process.kill()
    assert re.search(r"stopped at epoch \d+, step \d+, state saved", output), output
    assert process.returncode != 0
    assert "destroy_process_group" not in output and "Warning" not in output, output
    state = read(tmp_path / "results", ".state")
    assert f"--resume {state}" in output
    assert states.read_state(state)["progress"]["epoch"] >= 2


def test_flags_of_other_launchers_are_not_mistaken(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # Slurm's and MPI's tools leave such traces
    processes.start()
    assert not dist.is_initialized() and processes.world() == 1 and processes.rank() == 0


def test_resuming_is_told_with_torchrun(monkeypatch):
    monkeypatch.setattr(processes, "world", lambda: 4)
    command = states.resume_command(["main.py", "--epochs", "3", "--resume", "x"], "a.state")
    assert command == "torchrun --nproc_per_node=4 main.py --epochs 3 --resume a.state"
