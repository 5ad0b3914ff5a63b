"""Several processes: bytes by formula, the projection, and how the processes are started."""

import json
import math
from subprocess import CompletedProcess

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from tiny_benchmark import ARGS, TINY

from attentionce.errors import UserError
from benchmark import __main__ as benchmark_main
from benchmark import scaling, this_code


def exchanged_in_an_epoch():
    """(collective, bytes) of all that one of two processes hands over in an epoch of two steps."""
    seen, all_gather, all_reduce = [], dist.all_gather, dist.all_reduce

    def note(name, x):
        seen.append((name, x.numel() * x.element_size()))

    def hook(state, bucket):
        note("gradients", bucket.buffer())
        future = all_reduce(bucket.buffer().div_(2), async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    pixels = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    run = this_code.assemble(ARGS, "fp32", pixels)
    run.encoder.register_comm_hook(None, hook)
    dist.all_gather = lambda parts, x: (note("all_gather", x), all_gather(parts, x))
    dist.all_reduce = lambda x, *args: (note("all_reduce", x), all_reduce(x, *args))
    this_code.epoch(run)  # 2 steps of 4 images, 2 of them in each process
    return seen, sum(p.numel() for p in run.model.parameters())


def test_exchanges_are_what_an_epoch_hands_over(group):
    """Bytes by formula are those of the collectives' tensors and of the gradients' buckets."""
    for seen, parameters in group(2, exchanged_in_an_epoch).results():
        formula = scaling.exchanges(parameters, 2, 128, 2)
        buckets = [size for name, size in seen if name == "gradients"]
        assert sum(buckets) == 2 * formula.pop("gradients")[1] and len(buckets) > 2
        # once per epoch, all embeddings, for the effective numbers
        epoch = ("all_gather", 6 * 2 * 128 * 4)
        others = [entry for entry in seen if entry[0] != "gradients"]
        assert sorted(others) == sorted([*formula.values(), *formula.values(), epoch])


def test_bytes_on_a_ring():
    assert scaling.sent("all_gather", 100, 4) == 300
    assert scaling.sent("all_reduce", 100, 4) == 150
    assert scaling.exchanges(1000, 16, 128, 1) == {}
    sizes = scaling.exchanges(24_620_000, 256, 128, 8)
    assert sizes["anchors, forward"] == ("all_gather", 2 * 256 * 128 * 4)
    assert sizes["anchors, backward"] == ("all_reduce", 8 * 2 * 256 * 128 * 4)
    assert sizes["gradients"] == ("all_reduce", 4 * 24_620_000)


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
