"""Repetitions alternate, the limit is a limit, and what needs a process of its own gets one."""

import functools

import pytest
import torch
from tiny_benchmark import CPU

from benchmark import memory, timing
from benchmark.fresh_process import in_fresh_process


def test_the_limit_is_the_faster_form_of_the_same_product(monkeypatch):
    def timed(sides, repetitions, device):
        results = {name: prepare()() for name, prepare in sides.items()}
        torch.testing.assert_close(results["convolution"][0, :, :, 0].T, results["product"])
        return {"product": [2.0, 1.0], "convolution": [0.5, 0.75]}

    monkeypatch.setattr(timing, "interleaved", timed)
    assert timing.matmul_rate(torch.float64, 16, CPU) == 2 * 16**3 / 0.5


def test_repetitions_alternate_and_the_first_round_does_not_count():
    events = []

    def prepare(name):
        events.append(f"prepare {name}")
        return functools.partial(events.append, name)

    sides = {name: functools.partial(prepare, name) for name in ("reference", "this code")}
    prepared = ["prepare reference", "prepare this code"]
    seconds = timing.interleaved(sides, 3, CPU)
    assert events == prepared + ["reference", "this code"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"reference": 3, "this code": 3}
    events.clear()
    timing.interleaved(sides, 2, CPU, warm=False)
    assert events == prepared + ["reference", "this code"] * 2


def test_memory_is_measured_in_a_process_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # from where the benchmark cannot be imported
    batch = 1024
    peak = in_fresh_process(memory.loss_memory, "this code", batch, "cpu")
    quadratic = in_fresh_process(memory.loss_memory, "reference", batch, "cpu")
    matrix = 4 * (2 * batch) ** 2
    assert 6 * batch * 128 * 4 < peak < 4 * matrix < quadratic < 20 * matrix


def test_what_fails_in_its_process_is_left_empty(capsys):
    assert in_fresh_process(memory.resident) is None
    assert "missing 1 required positional argument" in capsys.readouterr().err


def test_only_functions_that_can_be_imported_get_a_process():
    def local():
        return 1

    with pytest.raises(ValueError, match="cannot be imported"):
        in_fresh_process(local)
    local.__module__, local.__qualname__ = "__main__", "local"
    with pytest.raises(ValueError, match="__main__.local cannot be imported"):
        in_fresh_process(local)
