"""Repetitions alternate, and memory has a process of its own."""

import functools

import torch

from benchmark import measuring, rows


def test_repetitions_alternate_and_the_first_round_does_not_count():
    events = []
    sides = {name: functools.partial(events.append, name) for name in ("reference", "fp32")}
    seconds = measuring.interleaved(sides, 3, "cpu")
    assert events == ["reference", "fp32", "fp32", "reference"] * 2
    assert {name: len(times) for name, times in seconds.items()} == {"reference": 3, "fp32": 3}


def test_a_round_on_cuda_is_many_calls_and_two_rounds_do_not_count(monkeypatch):
    events = []
    monkeypatch.setattr(measuring, "synchronize", lambda device: events.append("wait"))
    seconds = measuring.interleaved({"fp32": lambda: events.append("call")}, 3, "cuda", calls=10)
    assert events == ["wait", *["call"] * 10, "wait"] * 5 and len(seconds["fp32"]) == 3


def test_the_limit_is_the_faster_form_of_the_same_product(monkeypatch):
    shapes = []

    def timed(sides, repetitions, device):
        shapes.extend(call().shape for call in sides.values())
        return {"product": [2.0, 1.0], "convolution": [0.5, 0.75]}

    monkeypatch.setattr(measuring, "interleaved", timed)
    assert measuring.matmul_rate(torch.float64, 16, "cpu") == 2 * 16**3 / 0.5
    assert shapes == [(16, 16), (1, 16, 1, 16)]


def test_memory_is_measured_in_a_process_of_its_own(capsys):
    prepare = functools.partial(rows.loss_and_gradient, "this code", 1024, "cpu")
    (peak,) = measuring.peak(prepare, "cpu")
    assert 6 * 1024 * 128 * 4 < 1e6 * peak < 4 * 4 * 2048**2  # of one matrix of similarities
    assert measuring.in_fresh_process(measuring.resident_bytes, "VmNone") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmark.measuring.resident_bytes, left empty: IndexError")
