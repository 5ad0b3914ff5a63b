"""The reference recipe computes what this code computes, every row is measured, and the arithmetic of the tables is right."""

import functools
import importlib
import json
import math
from argparse import Namespace
from subprocess import CompletedProcess

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from torch.nn.functional import normalize

import loss
from attentionce.errors import UserError
from attentionce.training import one_step, processes
from benchmark import __main__ as benchmark_main
from benchmark import reference_recipe, report, scaling, this_code, timing
from benchmark.report import Row
from model import Model

CPU = torch.device("cpu")
TINY = {
    "arch": "resnet10",
    "batch_size": 4,
    "repetitions": 2,
    "view_images": 8,
    "epoch_steps": 2,
    "loss_batches": [16],
    "linear_images": 8,
    "matmul": 64,
}
ARGS = Namespace(**TINY, device="cpu", image_size=8, compile="off", precision="fp32")


def embeddings(batch=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return normalize(
        torch.randn(6, batch, 16, dtype=dtype, generator=generator), dim=-1
    ).requires_grad_()


# ------------------------------------------------------------------------------------------------- the two sides


@pytest.mark.parametrize(
    ("temperature", "d_pos", "d_neg"), [(0.5, 1, 1), (0.5, 0.1, 10), (0.2, 2, 0.5)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_recipes_loss_is_ours(dtype, tolerance, temperature, d_pos, d_neg):
    z = embeddings(dtype=dtype)
    results = [
        f(z, temperature, d_pos, d_neg) for f in (reference_recipe.attentionce, loss.attentionce)
    ]
    gradients = [torch.autograd.grad(result, z)[0] for result in results]
    torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=0)
    torch.testing.assert_close(
        gradients[0], gradients[1], rtol=0, atol=tolerance * gradients[1].abs().max().item()
    )


def test_recipes_mask_leaves_out_both_anchors_of_the_image():
    image = torch.arange(5).repeat(2)
    assert reference_recipe.mask_of_negatives(5).equal(image[:, None] != image)


@pytest.mark.parametrize("grad_cache", [False, True])
def test_both_steps_are_the_same_work(grad_cache, monkeypatch):
    made = torch.randn(6, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = reference_recipe.Recipe("resnet10", CPU)
    run = this_code.assemble(ARGS, "fp32", torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
    run.model.load_state_dict(theirs.model.state_dict())
    shapes = []
    forward = Model.forward
    monkeypatch.setattr(
        Model, "forward", lambda self, x, *a: shapes.append(tuple(x.shape)) or forward(self, x, *a)
    )
    expected = theirs.step(made)
    theirs_shapes, shapes[:] = list(shapes), []
    this_code.fixed_step(run, made, grad_cache)()
    assert theirs_shapes == [(4, 3, 8, 8)] * 6
    assert shapes == theirs_shapes * (2 if grad_cache else 1)
    assert run.progress["losses"][0].item() == pytest.approx(expected, rel=1e-5)
    for (name, a), b in zip(theirs.model.named_parameters(), run.model.parameters(), strict=True):
        # Adam's first step is lr · sign(gradient) wherever that is not rounding
        assert ((a - b).abs() < 1e-4).float().mean() > 0.95, name


def test_both_sides_make_as_many_views(monkeypatch):
    bench = benchmark_main.Bench(ARGS)
    images = bench.images(12)
    batches = [views for views, _ in bench.loader(images, 6, 4)]
    assert [[tuple(view.shape) for view in views] for views in batches] == [[(4, 3, 8, 8)] * 6] * 3
    assert not batches[0][0].equal(batches[0][1])
    asked = []
    this_code.make_views(
        images.pixels, 4, lambda images, draw, view: asked.append((tuple(images.shape), view))
    )
    assert asked == [((4, 3, 32, 32), view) for view in range(6)] * 3


# ------------------------------------------------------------------------------------------------- the table


def in_this_process(function, *arguments):
    """timing.fresh without a process, which would take seconds."""
    module, _, name = function.rpartition(".")
    return json.loads(
        json.dumps(
            getattr(importlib.import_module(module), name)(*json.loads(json.dumps(arguments)))
        )
    )


def test_every_row_is_measured(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(benchmark_main.SIZES, "quick", TINY)
    monkeypatch.setattr(benchmark_main, "fresh", in_this_process)
    monkeypatch.setattr(
        one_step, "take_step", one_step.take_step
    )  # so that what this_code.first_step does to it is undone
    monkeypatch.setattr(benchmark_main, "precisions", lambda asked, device: ["fp32", "bf16"])
    flags = (
        "--device",
        "cpu",
        "--quick",
        "--image_size",
        8,
        "--compile",
        "off",
        "--results",
        tmp_path,
    )
    call(benchmark_main, *flags)
    written = json.loads((tmp_path / "benchmark-cpu.json").read_text())
    assert (
        written["flags"]["batch_size"] == 4
        and "--image_size 8" in written["command"]
        and written["machine"]["torch"]
    )
    both, steps = ["fp32", "bf16"], ["fp32", "bf16", "bf16 grad_cache"]
    expected = {
        "views": ["cpu eager"],
        "step": steps,
        "view making": ["bf16"],
        "limit": both,
        "epoch": both,
        "memory": ["fp32", "fp32 grad_cache", "bf16", "bf16 grad_cache"],
        "loss": ["batch 16"],
        "loss memory": ["batch 16"],
        "linear": both,
        "linear, once": both,
        "start-up": [""],
    }
    assert sorted((r["name"], r["variant"]) for r in written["rows"]) == sorted(
        (n, v) for n in expected for v in expected[n]
    )
    printed = capsys.readouterr().out
    for row in written["rows"]:
        alone = row["name"] in ("view making", "limit", "linear, once")
        assert (row["reference"] is None) == alone, row
        memory = "memory" in row["name"]  # in one process the peak of the first stays that of all
        assert row["ours"]["median"] > 0 or memory, row
        once, often = memory or row["name"] in ("limit", "start-up"), row["name"] == "loss"
        assert row["ours"]["repetitions"] == (1 if once else 12 if often else 2), row
        if not alone and row["reference"]["median"]:
            assert row["ratio"]["of_medians"] == pytest.approx(
                row["ours"]["median"] / row["reference"]["median"]
            )
        assert (row["share_of_limit"] is None) == (row["name"] not in ("step", "epoch")), row
        assert report.line(row) in printed


def test_rates_count_what_was_done(monkeypatch):
    def of_a_second(sides, repetitions, device, warm=True):
        return {name: [1.0] for name in sides}

    monkeypatch.setattr(benchmark_main, "interleaved", of_a_second)
    bench = benchmark_main.Bench(ARGS)
    bench.limits = {"fp32": 8.0}
    found = {
        row.name: row
        for rows in (benchmark_main.view_rows, benchmark_main.step_rows, benchmark_main.epoch_rows)
        for row in rows(bench)
    }
    assert found["views"].ours == found["views"].reference == [8 * 6]
    assert (
        found["step"].ours == found["step"].reference == [4]
        and report.record(found["step"])["share_of_limit"] == 0.5
    )
    assert found["epoch"].ours == found["epoch"].reference == [2 * 4]
    assert found["view making"].ours == [100]


def test_limit_is_six_times_the_multiply_adds(monkeypatch):
    monkeypatch.setattr(benchmark_main, "matmul_rate", lambda dtype, side, device: 1e12)
    bench = benchmark_main.Bench(ARGS)
    bench.runs = {"fp32": Namespace(dtype=torch.float32)}
    macs, hooks = [], []
    model = Model(128, "resnet10").eval()
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            hooks.append(
                module.register_forward_hook(
                    lambda m, x, y: macs.append(y[0].numel() * m.weight[0].numel())
                )
            )
    model(torch.zeros(1, 3, 8, 8))
    # thop counts normalisation too, a hundredth of the products
    assert bench.limits["fp32"] == pytest.approx(1e12 / (6 * 6 * sum(macs)), rel=0.03)


def test_the_limit_is_the_faster_form_of_the_same_product(monkeypatch):
    def timed(sides, repetitions, device):
        results = {name: side() for name, side in sides.items()}
        torch.testing.assert_close(results["convolution"][0, :, :, 0].T, results["product"])
        return {"product": [2.0, 1.0], "convolution": [0.5, 0.75]}

    monkeypatch.setattr(timing, "interleaved", timed)
    assert timing.matmul_rate(torch.float64, 16, torch.device("cpu")) == 2 * 16**3 / 0.5


def test_repetitions_alternate_and_the_first_round_does_not_count():
    calls = []
    sides = {name: functools.partial(calls.append, name) for name in ("reference", "ours")}
    seconds = timing.interleaved(sides, 3, CPU)
    assert calls == ["reference", "ours"] * 4 and [len(s) for s in seconds.values()] == [3, 3]
    calls.clear()
    timing.interleaved(sides, 2, CPU, warm=False)
    assert calls == ["reference", "ours"] * 2


def test_record_of_a_row():
    result = report.record(
        Row("step", "bf16", "images/s", [2.0, 4.0, 3.0], [6.0, 8.0, 12.0], limit=16.0)
    )
    assert result["reference"] == {"median": 3, "min": 2, "max": 4, "repetitions": 3}
    assert result["ours"] == {"median": 8, "min": 6, "max": 12, "repetitions": 3}
    assert result["ratio"] == {"of_medians": pytest.approx(8 / 3), "min": 2, "max": 4}
    assert result["share_of_limit"] == 0.5
    empty = report.record(Row("memory", "fp32", "MB", [], [5.0]))
    assert empty["reference"] is None and empty["ratio"] is None and empty["share_of_limit"] is None
    assert report.line(empty).split() == ["memory", "fp32", "MB", "5"]


def test_readme_has_the_table(capsys, call, tmp_path, refused):
    """The README's figures are the JSON file's, so they cannot drift."""
    call(benchmark_main, "--device", "cpu", "--table", "--results", ROOT / "results")
    text = capsys.readouterr().out
    assert text in (ROOT / "README.md").read_text()
    found = json.loads((ROOT / "results" / "benchmark-cpu.json").read_text())
    measured = [row for row in found["rows"] if row["reference"]]
    assert len(text.splitlines()) == 4 + len(measured) and set(found["flags"]["rows"]) == set(
        benchmark_main.ROWS
    )
    assert "there is no" in refused(
        benchmark_main, "--device", "cpu", "--table", "--results", tmp_path
    )
    second = (
        (ROOT / "README.md")
        .read_text()
        .split("On a second CPU")[1]
        .split("Measured and left out")[0]
    )
    found = json.loads((ROOT / "results" / "without-bf16" / "benchmark-cpu.json").read_text())
    for row in found["rows"]:
        if row["ratio"] and row["name"] in ("views", "epoch", "memory", "loss", "linear"):
            assert f"{row['ratio']['of_medians']:.2f}" in second


def test_memory_is_measured_in_a_process_of_its_own():
    batch = 1024
    peak = timing.fresh("benchmark.__main__.loss_memory", "ours", batch, "cpu")
    quadratic = timing.fresh("benchmark.__main__.loss_memory", "reference", batch, "cpu")
    matrix = 4 * (2 * batch) ** 2
    assert 6 * batch * 128 * 4 < peak < 4 * matrix < quadratic < 20 * matrix


def test_what_fails_in_its_process_is_left_empty(capsys):
    assert timing.fresh("benchmark.timing.resident") is None
    assert "missing 1 required positional argument" in capsys.readouterr().err


def test_flags_that_cannot_work(monkeypatch, refused):
    monkeypatch.setattr(
        benchmark_main.devices, "choose_device", lambda name: torch.device("cuda:1")
    )
    assert "CUDA_VISIBLE_DEVICES" in refused(benchmark_main, "--device", "cuda:1")
    monkeypatch.undo()
    assert "--batch_size" in refused(benchmark_main, "--device", "cpu", "--batch_size", 1)
    assert "--precision fp16" in refused(
        benchmark_main, "--device", "cpu", "--precision", "fp16", "--rows", "step"
    )


# ------------------------------------------------------------------------------------------------- several processes


def test_exchanges_are_what_an_epoch_hands_over(monkeypatch):
    """The bytes by formula against the tensors that train.py gives to the collectives, with a second process made up."""
    seen = []

    def all_gather(parts, x):
        seen.append(("all_gather", x.numel() * x.element_size()))
        for part in parts:
            part.copy_(normalize(torch.randn_like(x), dim=-1))

    def all_reduce(x, op=None):
        seen.append(("all_reduce", x.numel() * x.element_size()))

    run = this_code.assemble(ARGS, "fp32", torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8))
    run.loss = functools.partial(loss.attentionce, gather=processes.gather)
    monkeypatch.setattr(processes, "world", lambda: 2)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    this_code.epoch(run)  # 2 steps of 4 images, 2 of them here
    parameters = sum(p.numel() for p in run.model.parameters())
    steps = 2 * list(scaling.exchanges(parameters, 2, 128, 2).values())
    epoch = (
        "all_gather",
        6 * 2 * 128 * 4,
    )  # once an epoch, all embeddings for the effective numbers
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
    one, eight = scaling.project(
        0.5, {1: 0.01, 8: 0.03}, parameters=10**9 - 1, batch=256, link_gb_s=10
    )
    assert one["sent_bytes"] == 0 and one["images_per_second"] == 512 and one["efficiency"] == 1
    anchors = 2 * 256 * 128 * 4
    assert eight["sent_bytes"] == pytest.approx(7 * anchors + 1.75 * (8 * anchors + 4e9 + 24))
    assert eight["compute_seconds"] == pytest.approx(0.52)
    assert eight["exchange_seconds"] == pytest.approx(eight["sent_bytes"] / 1e10)
    assert eight["images_per_second"] == pytest.approx(8 * 256 / (0.52 + eight["exchange_seconds"]))
    assert eight["efficiency"] == pytest.approx(0.5 / (0.52 + eight["exchange_seconds"]))


def test_scaling_reports_every_number_of_processes(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(benchmark_main.SIZES, "quick", TINY)
    monkeypatch.setattr(scaling.os, "cpu_count", lambda: 6)
    asked, found = [], []

    def launch(args, processes, most):
        asked.append((processes, most))
        found.append(found[0] if found else json.loads(json.dumps(scaling.worker(args, "fp32"))))
        return {
            "processes": processes,
            "images_per_second": 100.0 * math.sqrt(processes),
            **found[0],
        }

    monkeypatch.setattr(scaling, "launch", launch)
    call(
        benchmark_main,
        "--device",
        "cpu",
        "--scaling",
        "--quick",
        "--image_size",
        8,
        "--link_gb_s",
        25,
        "--results",
        tmp_path,
    )
    assert asked == [(n, 6) for n in (1, 2, 4, 6)]
    written = json.loads((tmp_path / "scaling-cpu.json").read_text())
    assert [len(row["seconds"]) for row in written["measured"]] == [2] * 4
    assert [row["processes"] for row in written["projected"]] == [1, 8, 64, 512]
    assert all(
        row["exchange_seconds"] == pytest.approx(row["sent_bytes"] / 25e9)
        for row in written["projected"]
    )
    printed = capsys.readouterr().out
    assert (
        "assuming 25 GB/s" in printed
        and "  4 processes       200.0 images/s   50.0% of 4 × one" in printed
    )


def test_scaling_starts_torchrun(monkeypatch):
    started = []

    def run(command, env, **options):
        started.append((command, env))
        return CompletedProcess(
            command, 0, stdout='a line before\n{"seconds": [0.5, 1.0, 4.0]}\n', stderr=""
        )

    monkeypatch.setattr(scaling.subprocess, "run", run)
    monkeypatch.setattr(scaling.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(scaling.sys, "argv", ["benchmark.py", "--scaling", "--quick"])
    result = scaling.launch(ARGS, 3, 4)
    ((command, environment),) = started
    assert command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    assert (
        command[5:] == ["-m", "benchmark", "--scaling", "--quick"]
        and environment["OMP_NUM_THREADS"] == "2"
    )
    assert result == {"processes": 3, "seconds": [0.5, 1.0, 4.0], "images_per_second": 12.0}


def test_scaling_says_why_it_failed(monkeypatch):
    failed = CompletedProcess(
        [], 1, stdout="", stderr="W noise\nerror: --batch_size must be at least 2, not 1\nnoise\n"
    )
    monkeypatch.setattr(scaling.subprocess, "run", lambda *command, **options: failed)
    with pytest.raises(
        UserError, match="1 processes failed: error: --batch_size must be at least 2"
    ):
        scaling.launch(ARGS, 1, 2)
