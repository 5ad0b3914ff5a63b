"""Several processes: their throughput, the bytes that a step exchanges, and a projection.

Each process has a batch of `--batch_size` images, so the global batch grows with the number of
processes. On a CPU every process has the same share of the cores, however many there are.

The projection starts from the time of a step in one process. It adds the exchange at
`--link_gb_s`, which is an assumption, and assumes no overlap and no latency. It also adds what
grows with the number of processes: the loss with its larger number of negatives, and drawing the
random numbers of all images, which every process does. Both are measured. A projection from a
CPU's step says nothing about GPUs.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import loss
from attentionce.data import views
from attentionce.errors import UserError
from attentionce.runs import files
from attentionce.training import devices, processes
from benchmark import this_code
from benchmark.fresh_process import ROOT
from benchmark.this_code import DIM, VIEWS
from benchmark.timing import Call, interleaved, seconds_of
from model import Model
from utils import load

PROJECTED = (8, 64, 512)  # processes
FLOAT = 4  # bytes

# ------------------------------------------------------------------------------------- arithmetic


def exchanges(parameters: int, batch: int, dim: int, count: int) -> dict[str, tuple[str, int]]:
    """What every process exchanges in a step: (collective, bytes of its tensor).

    Args:
        parameters: of the model.
        batch: images per process.
        dim: size of an embedding.
        count: of processes.
    """
    if count == 1:
        return {}
    own = 2 * batch * dim * FLOAT
    return {
        "anchors, forward": ("all_gather", own),
        "anchors, backward": ("all_reduce", own * count),
        "gradients": ("all_reduce", parameters * FLOAT),  # in DistributedDataParallel's buckets
        "loss": ("all_reduce", FLOAT),
        "stop, save, check": ("all_reduce", 3 * 8),
    }


def sent(collective: str, size: int, count: int) -> float:
    """Bytes that each process sends, and receives, when tensors of `size` bytes go round a ring."""
    factors = {"all_gather": count - 1, "all_reduce": 2 * (count - 1) / count}
    return factors[collective] * size


def project(
    step: float, grows: dict[int, float], parameters: int, batch: int, link_gb_s: float
) -> list[dict[str, float]]:
    """A step with every number of processes: its time, images per second, share of ideal scaling.

    Args:
        step: seconds of a step of one process.
        grows: by number of processes, 1 among them, the seconds of what grows with it: the loss of
            `batch` images against all anchors, and drawing all random numbers.
        parameters: of the model.
        batch: images per process.
        link_gb_s: what a process sends, and receives, in GB/s.
    """
    rows = []
    for count, seconds in grows.items():
        size = 0.0
        for collective, tensor in exchanges(parameters, batch, DIM, count).values():
            size += sent(collective, tensor, count)
        compute = step + max(0.0, seconds - grows[1])
        exchange = size / (link_gb_s * 1e9)
        rows.append(
            {
                "processes": count,
                "sent_bytes": size,
                "compute_seconds": compute,
                "exchange_seconds": exchange,
                "images_per_second": count * batch / (compute + exchange),
                "efficiency": step / (compute + exchange),
            }
        )
    return rows


# ------------------------------------------------------------------------------------ measurement


def time_loss(batch: int, count: int, device: torch.device) -> float:
    """Seconds of the loss and its gradient in one of `count` processes, without the exchange."""
    z = normalize(torch.randn(VIEWS, batch, DIM, device=device), dim=-1).requires_grad_()
    others = normalize(torch.randn(2, (count - 1) * batch, DIM, device=device), dim=-1)

    def gather(anchors: Tensor) -> tuple[Tensor, int]:
        return torch.cat([anchors, others], dim=1), 0

    def loss_and_gradient() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss.attentionce(z, gather=gather), z)

    return median_seconds(loss_and_gradient, 5, device)


def time_draw(batch: int, count: int, image_size: int) -> float:
    """Seconds that drawing the random numbers of `count` processes' images takes."""

    def draw() -> views.Draw:
        generator = views.generator(0, 1, 0)
        return views.draw(VIEWS, count * batch, image_size, image_size, generator)

    return median_seconds(draw, 3, torch.device("cpu"))


def median_seconds(call: Call, repetitions: int, device: torch.device) -> float:
    """The median time of a call, after one that does not count."""
    return statistics.median(interleaved({"": lambda: call}, repetitions, device)[""])


def worker(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Train epochs in this process together with the others.

    Returns:
        Seconds per step, one figure per repetition. If there is one process only: also what the
        projection needs, by number of processes.
    """
    device, batch = devices.choose_device(args.device), args.batch_size
    whole = argparse.Namespace(**{**vars(args), "batch_size": batch * processes.world()})
    images = args.epoch_steps * whole.batch_size
    photos = load("photos", "", "pretrain").pixels
    pixels = photos.repeat(-(-images // len(photos)), 1, 1, 1)[:images]
    run = this_code.assemble(whole, precision, pixels)

    def train() -> None:
        this_code.epoch(run)

    seconds = []
    for _ in range(1 + args.repetitions):
        processes.largest([0])  # waits until all processes are here
        seconds.append(seconds_of(train, device) / args.epoch_steps)
    result: dict[str, Any] = {"seconds": seconds[1:]}  # the first does not count
    if processes.world() == 1:
        counts = (1, *PROJECTED)
        result["loss_seconds"] = {n: time_loss(batch, n, device) for n in counts}
        result["draw_seconds"] = {n: time_draw(batch, n, args.image_size) for n in counts}
    return result


def launch(args: argparse.Namespace, count: int, most: int) -> dict[str, Any]:
    """Run worker() in `count` processes under torchrun.

    Args:
        most: the largest number of processes that will be measured, which share a CPU's cores.

    Returns:
        What worker() returned in rank 0, with the throughput of all processes.

    Raises:
        UserError: a process failed.
    """
    environment = dict(os.environ)
    if args.device == "cpu":
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // most))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = [f"--nproc_per_node={count}", "-m", "benchmark", *sys.argv[1:]]
    done = subprocess.run(
        [*torchrun, *program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.splitlines()
        errors = [text for text in lines if text.startswith("error: ") or "Error" in text]
        reason = errors[0] if errors else done.stderr[-300:]
        raise UserError(f"--scaling with {count} processes failed: {reason}")
    result = json.loads(done.stdout.splitlines()[-1])
    result["images_per_second"] = count * args.batch_size / statistics.median(result["seconds"])
    return {"processes": count, **result}


# ----------------------------------------------------------------------------------------- report


def main(args: argparse.Namespace, precision: str) -> None:
    """Measure, print and write results/scaling-{device}.json.

    In a process that torchrun started: be measured, and print the result as JSON.
    """
    if "RANK" in os.environ:
        print(json.dumps(worker(args, precision)))
        return
    folder = files.writable_folder(Path(args.results))
    parameters = sum(p.numel() for p in Model(DIM, args.arch).parameters())
    machine = devices.machine(torch.device(args.device))
    size = f"{args.batch_size} × {VIEWS} views per process"
    print(f"{machine['device_name']}: {args.arch}, {precision}, {size}")
    measured = measure(args)
    print_exchanges(parameters, args.batch_size)
    one = measured[0]
    grows = {}
    for count, loss_seconds in one["loss_seconds"].items():
        grows[int(count)] = loss_seconds + one["draw_seconds"][count]
    step = statistics.median(one["seconds"])
    projected = project(step, grows, parameters, args.batch_size, args.link_gb_s)
    print_projection(projected, args.link_gb_s)
    counts = (2, *PROJECTED)
    path = folder / f"scaling-{args.device}.json"
    content = {
        "machine": machine,
        "flags": vars(args),
        "command": shlex.join(["python", "-m", "benchmark", *sys.argv[1:]]),
        "precision": precision,
        "parameters": parameters,
        "measured": measured,
        "exchanges": {n: exchanges(parameters, args.batch_size, DIM, n) for n in counts},
        "projected": projected,
    }
    files.save_json(path, content)
    print(f"\nwritten to {path}")


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Launch and print 1, 2, 4, … processes, up to one per core or GPU."""
    most = torch.cuda.device_count() if args.device == "cuda" else os.cpu_count() or 1
    powers = {2**i for i in range(most.bit_length())}
    measured: list[dict[str, Any]] = []
    for count in sorted(powers | {most}):
        measured.append(launch(args, count, most))
        rate = measured[-1]["images_per_second"]
        share = rate / (count * measured[0]["images_per_second"])
        rates = f"{rate:10.1f} images/s  {share:6.1%} of {count} × one"
        print(f"{count:3} processes  {rates}", flush=True)
    return measured


def print_exchanges(parameters: int, batch: int) -> None:
    """One line for each thing that a step exchanges."""
    counts = (2, *PROJECTED)
    title = "MB that each process sends per step"
    print(f"\n{title:36}" + "".join(f"{n:>10} processes" for n in counts))
    exchanged = {n: exchanges(parameters, batch, DIM, n) for n in counts}
    for name, (collective, _) in exchanged[2].items():
        text = f"  {name:22}{collective:12}"
        for n in counts:
            megabytes = sent(*exchanged[n][name], n) / 1e6
            text += f"{megabytes:>20,.6f}"
        print(text)


def print_projection(projected: list[dict[str, float]], link_gb_s: float) -> None:
    """One line for each number of processes above one."""
    assumed = f"assuming {link_gb_s:g} GB/s per process, no overlap, no latency"
    print(f"\nprojected from one process of this machine, {assumed}:")
    for row in projected[1:]:
        compute, exchange = row["compute_seconds"], row["exchange_seconds"]
        seconds = f"{compute:.4f} s computing + {exchange:.4f} s exchange per step"
        rate = f"{row['images_per_second']:12,.0f} images/s"
        print(
            f"{row['processes']:4} processes  {seconds}  {rate}  {row['efficiency']:.1%} of ideal"
        )
