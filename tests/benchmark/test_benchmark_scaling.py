"""Several processes: bytes by formula, the projection, and how the processes are started."""

import json
import math
from subprocess import CompletedProcess

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from tiny_benchmark import ARGS, TINY
from torch.nn.functional import normalize

from attentionce.errors import UserError
from attentionce.training import processes
from benchmark import __main__ as benchmark_main
from benchmark import scaling, this_code


def test_exchanges_are_what_an_epoch_hands_over(monkeypatch):
    """Bytes by formula are those of the collectives' tensors; the second process is faked."""
    seen = []

    def all_gather(parts, x):
        seen.append(("all_gather", x.numel() * x.element_size()))
        for part in parts:
            part.copy_(normalize(torch.randn_like(x), dim=-1))

    def all_reduce(x, op=None):
        seen.append(("all_reduce", x.numel() * x.element_size()))

    run = this_code.assemble(ARGS, "fp32", torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8))
    monkeypatch.setattr(processes, "world", lambda: 2)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    this_code.epoch(run)  # 2 steps of 4 images, 2 of them in this process
    parameters = sum(p.numel() for p in run.model.parameters())
    steps = 2 * list(scaling.exchanges(parameters, 2, 128, 2).values())
    # once per epoch, all embeddings, for the effective numbers
    epoch = ("all_gather", 6 * 2 * 128 * 4)
    assert sorted(seen) == sorted([*steps, epoch])


def test_bytes_on_a_ring():
    assert scaling.sent("all_gather", 100, 4) == 300
    assert scaling.sent("all_reduce", 100, 4) == 150
    assert scaling.exchanges(1000, 16, 128, 1) == {}
    sizes = scaling.exchanges(24_620_000, 256, 128, 8)
    assert sizes["anchors, forward"] == ("all_gather", 2 * 256 * 128 * 4)
    assert sizes["anchors, backward"] == ("all_reduce", 8 * 2 * 256 * 128 * 4)
    assert sizes["gradients, loss"] == ("all_reduce", 4 * 24_620_001)


def test_projection():
    grows = {1: 0.01, 8: 0.03}
    one, eight = scaling.project(0.5, grows, parameters=10**9 - 1, batch=256, link_gb_s=10)
    assert one["sent_bytes"] == 0 and one["images_per_second"] == 512 and one["efficiency"] == 1
    anchors = 2 * 256 * 128 * 4
    assert eight["sent_bytes"] == pytest.approx(7 * anchors + 1.75 * (8 * anchors + 4e9 + 24))
    assert eight["compute_seconds"] == pytest.approx(0.52)
    assert eight["exchange_seconds"] == pytest.approx(eight["sent_bytes"] / 1e10)
    step = 0.52 + eight["exchange_seconds"]
    assert eight["images_per_second"] == pytest.approx(8 * 256 / step)
    assert eight["efficiency"] == pytest.approx(0.5 / step)


def test_scaling_reports_every_number_of_processes(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(benchmark_main.SIZES, "quick", TINY)
    monkeypatch.setattr(scaling.os, "cpu_count", lambda: 6)
    asked, found = [], []

    def launch(args, count, most):
        asked.append((count, most))
        if not found:
            found.append(json.loads(json.dumps(scaling.worker(args, "fp32"))))
        return {"processes": count, "images_per_second": 100.0 * math.sqrt(count), **found[0]}

    monkeypatch.setattr(scaling, "launch", launch)
    flags = ["--device", "cpu", "--scaling", "--quick", "--image_size", 8, "--link_gb_s", 25]
    call(benchmark_main, *flags, "--results", tmp_path)
    assert asked == [(n, 6) for n in (1, 2, 4, 6)]
    written = json.loads((tmp_path / "scaling-cpu.json").read_text())
    assert [len(row["seconds"]) for row in written["measured"]] == [2] * 4
    assert [row["processes"] for row in written["projected"]] == [1, 8, 64, 512]
    for row in written["projected"]:
        assert row["exchange_seconds"] == pytest.approx(row["sent_bytes"] / 25e9)
    printed = capsys.readouterr().out
    assert "assuming 25 GB/s" in printed
    assert "  4 processes       200.0 images/s   50.0% of 4 × one" in printed


def test_scaling_starts_torchrun(monkeypatch):
    started = []

    def run(command, env, cwd, **options):
        started.append((command, env, cwd))
        printed = 'a line before\n{"seconds": [0.5, 1.0, 4.0]}\n'
        return CompletedProcess(command, 0, stdout=printed, stderr="")

    monkeypatch.setattr(scaling.subprocess, "run", run)
    monkeypatch.setattr(scaling.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(scaling.sys, "argv", ["benchmark/__main__.py", "--scaling", "--quick"])
    result = scaling.launch(ARGS, 3, 4)
    ((command, environment, folder),) = started
    assert command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    assert command[5:] == ["-m", "benchmark", "--scaling", "--quick"]
    assert environment["OMP_NUM_THREADS"] == "2" and folder == ROOT
    assert result == {"processes": 3, "seconds": [0.5, 1.0, 4.0], "images_per_second": 12.0}


def test_scaling_says_why_it_failed(monkeypatch):
    errors = "W noise\nerror: --batch_size must be at least 2, not 1\nnoise\n"
    failed = CompletedProcess([], 1, stdout="", stderr=errors)
    monkeypatch.setattr(scaling.subprocess, "run", lambda *command, **options: failed)
    reason = "1 processes failed: error: --batch_size must be at least 2"
    with pytest.raises(UserError, match=reason):
        scaling.launch(ARGS, 1, 2)
