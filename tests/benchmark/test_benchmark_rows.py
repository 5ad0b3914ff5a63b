"""Every row is measured, rates count what was done, and flags that cannot work are refused."""

import importlib
import json
from argparse import Namespace

import pytest
import torch
from tiny_benchmark import ARGS, TINY

from attentionce.training import one_step
from benchmark import __main__ as benchmark_main
from benchmark import comparison as comparing
from benchmark import report, rows, this_code
from benchmark.comparison import Comparison
from model import Model


def in_this_process(function, *arguments):
    """in_fresh_process without a process, which would take seconds."""
    found = getattr(importlib.import_module(function.__module__), function.__qualname__)
    return json.loads(json.dumps(found(*json.loads(json.dumps(arguments)))))


def test_every_row_is_measured(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(benchmark_main.SIZES, "quick", TINY)
    monkeypatch.setattr(rows, "in_fresh_process", in_this_process)
    # this_code.first_step replaces it; this undoes that
    monkeypatch.setattr(one_step, "take_step", one_step.take_step)
    monkeypatch.setattr(this_code, "precisions", lambda asked, device: ["fp32", "bf16"])
    small = ["--device", "cpu", "--quick", "--image_size", 8, "--compile", "off"]
    call(benchmark_main, *small, "--results", tmp_path)
    written = json.loads((tmp_path / "benchmark-cpu.json").read_text())
    assert written["flags"]["batch_size"] == 4 and written["machine"]["torch"]
    assert written["command"].startswith("python -m benchmark --device cpu")
    assert "--image_size 8" in written["command"] and written["minutes"] > 0
    both = ["fp32", "bf16"]
    expected = {
        "views": ["cpu eager"],
        "step": ["fp32", "bf16", "bf16 grad_cache"],
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
    names = [(name, variant) for name, variants in expected.items() for variant in variants]
    assert sorted((row["name"], row["variant"]) for row in written["rows"]) == sorted(names)
    printed = capsys.readouterr().out
    for row in written["rows"]:
        check_row(row)
        assert report.line(row) in printed


def check_row(row):
    one_sided = row["name"] in ("view making", "limit", "linear, once")
    assert (row["reference"] is None) == one_sided, row
    memory = "memory" in row["name"]  # in one process the first peak remains the highest
    assert row["ours"]["median"] > 0 or memory, row
    repetitions = 2
    if memory or row["name"] in ("limit", "start-up"):
        repetitions = 1
    elif row["name"] == "loss":
        repetitions = 12
    assert row["ours"]["repetitions"] == repetitions, row
    if not one_sided and row["reference"]["median"]:
        ratio = row["ours"]["median"] / row["reference"]["median"]
        assert row["ratio"]["of_medians"] == pytest.approx(ratio)
    assert (row["share_of_limit"] is None) == (row["name"] not in ("step", "epoch")), row


def test_rates_count_what_was_done(monkeypatch):
    def one_second(sides, repetitions, device, warm=True, row=None):
        return {name: [1.0] for name in sides}

    monkeypatch.setattr(rows, "interleaved", one_second)
    comparison = Comparison(ARGS)
    comparison.limits = {"fp32": 8.0}
    found = {}
    for measure in (rows.view_rows, rows.step_rows, rows.epoch_rows):
        for row in measure(comparison):
            found[row.name] = row
    assert found["views"].this_code == found["views"].reference == [8 * 6]
    assert found["step"].this_code == found["step"].reference == [4]
    assert report.record(found["step"])["share_of_limit"] == 0.5
    assert found["epoch"].this_code == found["epoch"].reference == [2 * 4]
    assert found["view making"].this_code == [100]


def test_the_limit_is_six_times_the_multiply_adds(monkeypatch):
    monkeypatch.setattr(comparing, "matmul_rate", lambda dtype, side, device: 1e12)
    multiply_adds = []

    def count(module, inputs, output):
        multiply_adds.append(output[0].numel() * module.weight[0].numel())

    model = Model(128, "resnet10").eval()
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, 8, 8))
    # thop also counts normalisation, a hundredth of the products
    limit = 1e12 / (6 * 6 * sum(multiply_adds))
    assert Comparison(ARGS).limits == {"fp32": pytest.approx(limit, rel=0.03)}


def test_the_start_is_empty_if_a_repetition_failed(monkeypatch):
    ends = iter([None, 2e9, 2e9, 2e9])  # of the reference, this code, the reference, …
    monkeypatch.setattr(rows, "in_fresh_process", lambda *call: next(ends))
    (row,) = rows.startup_rows(Namespace(args=Namespace(**{**vars(ARGS), "repetitions": 4})))
    assert row.reference == [] and len(row.this_code) == 2


def test_flags_that_cannot_work(monkeypatch, refused):
    with monkeypatch.context() as patch:
        second_gpu = torch.device("cuda:1")
        patch.setattr(benchmark_main.devices, "choose_device", lambda name: second_gpu)
        assert "CUDA_VISIBLE_DEVICES" in refused(benchmark_main, "--device", "cuda:1")
    assert "--batch_size" in refused(benchmark_main, "--device", "cpu", "--batch_size", 1)
    fp16 = ["--device", "cpu", "--precision", "fp16", "--rows", "step"]
    assert "--precision fp16" in refused(benchmark_main, *fp16)
