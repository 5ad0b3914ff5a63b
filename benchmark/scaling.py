"""Several processes: throughput on this machine, the bytes that a step exchanges, and what that means for many like it.

Each process has a batch of `--batch_size` of its own, so the global batch grows with their number. On a CPU every process
has the same share of the cores, however many there are. The projection takes a step's time from one process and adds the
exchange at `--link_gb_s` (an assumption, as is that nothing overlaps and that latency is nothing) and what the loss's
larger number of negatives and drawing everybody's random numbers cost, which is measured. From a CPU's step it says
nothing about GPUs.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

import loss
from attentionce.data import views
from attentionce.errors import UserError
from attentionce.runs import files
from attentionce.training import devices, processes
from benchmark import this_code
from benchmark.this_code import DIM, VIEWS
from benchmark.timing import ROOT, interleaved, synchronize
from model import Model
from utils import load

PROJECTED = (8, 64, 512)  # processes
FLOAT = 4  # bytes


def exchanges(parameters: int, batch: int, dim: int, count: int) -> dict[str, tuple[str, int]]:
    """What every process hands over in a step: (collective, bytes of its tensor).

    Args:
        parameters: of the model; batch: images a process; dim: size of an embedding.
    """
    if count == 1:
        return {}
    own = 2 * batch * dim * FLOAT
    return {
        "anchors, forward": ("all_gather", own),
        "anchors, backward": ("all_reduce", own * count),
        "gradients, loss": ("all_reduce", (parameters + 1) * FLOAT),
        "stop, save, look": ("all_reduce", 3 * 8),
    }


def sent(collective: str, size: int, count: int) -> float:
    """Bytes that a process sends, and as many that it receives, when tensors of `size` bytes go round a ring."""
    return {"all_gather": count - 1, "all_reduce": 2 * (count - 1) / count}[collective] * size


def project(
    step: float, grows: dict[int, float], parameters: int, batch: int, link_gb_s: float
) -> list[dict[str, float]]:
    """A step at every number of processes: seconds of computing and of exchange, images/s, and the share of ideal scaling.

    Args:
        step: seconds of a step of one process.
        grows: seconds of what grows with 1, 8, … processes: the loss of `batch` images against everybody's anchors, and
            drawing everybody's random numbers.
    """
    rows = []
    for n in grows:
        size = sum(sent(*exchange, n) for exchange in exchanges(parameters, batch, DIM, n).values())
        compute = step + max(0.0, grows[n] - grows[1])
        exchange = size / (link_gb_s * 1e9)
        rows.append(
            {
                "processes": n,
                "sent_bytes": size,
                "compute_seconds": compute,
                "exchange_seconds": exchange,
                "images_per_second": n * batch / (compute + exchange),
                "efficiency": step / (compute + exchange),
            }
        )
    return rows


def time_loss(batch: int, count: int, device: torch.device) -> float:
    """Seconds of the loss and its gradient for one of many processes, the others' anchors being there."""
    z = normalize(torch.randn(VIEWS, batch, DIM, device=device), dim=-1).requires_grad_()
    others = normalize(torch.randn(2, (count - 1) * batch, DIM, device=device), dim=-1)

    def gather(anchors: torch.Tensor) -> tuple[torch.Tensor, int]:
        return torch.cat([anchors, others], dim=1), 0

    side = {"": lambda: torch.autograd.grad(loss.attentionce(z, gather=gather), z)}
    return statistics.median(interleaved(side, 5, device)[""])


def time_draw(batch: int, count: int, image_size: int) -> float:
    """Seconds in which every process draws the random numbers of the whole step, its own and the others'."""
    side = {
        "": lambda: views.draw(
            VIEWS, count * batch, image_size, image_size, views.generator(0, 1, 0)
        )
    }
    return statistics.median(interleaved(side, 3, torch.device("cpu"))[""])


def worker(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Seconds a step, one a repetition, of this process together with the others: train.py's own epochs."""
    device, batch = devices.choose_device(args.device), args.batch_size
    whole = argparse.Namespace(**{**vars(args), "batch_size": batch * processes.world()})
    images = args.epoch_steps * whole.batch_size
    photos = load("photos", "", "pretrain").pixels
    run = this_code.assemble(
        whole, precision, photos.repeat(-(-images // len(photos)), 1, 1, 1)[:images]
    )
    seconds = []
    for _ in range(1 + args.repetitions):
        processes.largest([0])  # all begin together
        start = time.perf_counter()
        this_code.epoch(run)
        synchronize(device)
        seconds.append((time.perf_counter() - start) / args.epoch_steps)
    result: dict[str, Any] = {"seconds": seconds[1:]}
    if processes.world() == 1:
        result["loss_seconds"] = {n: time_loss(batch, n, device) for n in (1, *PROJECTED)}
        result["draw_seconds"] = {n: time_draw(batch, n, args.image_size) for n in (1, *PROJECTED)}
    return result


def launch(args: argparse.Namespace, count: int, most: int) -> dict[str, Any]:
    """worker() under torchrun, as rank 0 reports it.

    Raises:
        UserError: it failed.
    """
    environment = dict(os.environ)
    if args.device == "cpu":
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // most))
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={count}",
    ]
    done = subprocess.run(
        [*torchrun, "-m", "benchmark", *sys.argv[1:]],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        why = [
            line
            for line in done.stderr.splitlines()
            if line.startswith("error: ") or "Error" in line
        ]
        raise UserError(
            f"--scaling with {count} processes failed: {why[0] if why else done.stderr[-300:]}"
        )
    result = json.loads(done.stdout.splitlines()[-1])
    result["images_per_second"] = count * args.batch_size / statistics.median(result["seconds"])
    return {"processes": count, **result}


def print_exchanges(parameters: int, batch: int) -> None:
    """A line for everything that a step exchanges."""
    counts = (2, *PROJECTED)
    print(
        f"\n{'MB that a process sends in a step':36}"
        + "".join(f"{n:>10} processes" for n in counts)
    )
    for name, (collective, _) in exchanges(parameters, batch, DIM, 2).items():
        sizes = [sent(*exchanges(parameters, batch, DIM, n)[name], n) / 1e6 for n in counts]
        print(f"  {name:22}{collective:12}" + "".join(f"{size:>20,.6f}" for size in sizes))


def main(args: argparse.Namespace, precision: str) -> None:
    """Measure, print and write results/scaling-{device}.json; in a process that torchrun started: be measured."""
    if "RANK" in os.environ:
        print(json.dumps(worker(args, precision)))
        return
    files.writable_folder(Path(args.results))
    most = torch.cuda.device_count() if args.device == "cuda" else os.cpu_count() or 1
    parameters = sum(p.numel() for p in Model(DIM, args.arch).parameters())
    machine = devices.machine(torch.device(args.device))
    print(
        f"{machine['device_name']}: {args.arch}, {precision}, {args.batch_size} × {VIEWS} views a process"
    )
    measured = []
    for count in sorted({2**i for i in range(most.bit_length())} | {most}):
        measured.append(launch(args, count, most))
        rate = measured[-1]["images_per_second"]
        share = rate / count / measured[0]["images_per_second"]
        print(
            f"{count:3} processes  {rate:10.1f} images/s  {share:6.1%} of {count} × one",
            flush=True,
        )
    print_exchanges(parameters, args.batch_size)
    grows = {
        int(n): loss + measured[0]["draw_seconds"][n]
        for n, loss in measured[0]["loss_seconds"].items()
    }
    step = statistics.median(measured[0]["seconds"])
    projected = project(step, grows, parameters, args.batch_size, args.link_gb_s)
    print(
        f"\nprojected from one process of this machine, assuming {args.link_gb_s:g} GB/s a process, no overlap, no latency:"
    )
    for row in projected[1:]:
        print(
            "{processes:4} processes  {compute_seconds:.4f} s computing + {exchange_seconds:.4f} s exchange a step  "
            "{images_per_second:12,.0f} images/s  {efficiency:.1%} of ideal".format(**row)
        )
    path = Path(args.results) / f"scaling-{args.device}.json"
    facts = {
        "machine": machine,
        "flags": vars(args),
        "command": shlex.join(["python", *sys.argv]),
        "precision": precision,
    }
    exchanged = {n: exchanges(parameters, args.batch_size, DIM, n) for n in (2, *PROJECTED)}
    found = {
        "parameters": parameters,
        "measured": measured,
        "exchanges": exchanged,
        "projected": projected,
    }
    files.save_json(path, {**facts, **found})
    print(f"\n{path} has it all")
