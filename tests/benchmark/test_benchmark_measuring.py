"""Repetitions alternate, memory has a process of its own, and running out of it costs one cell."""

import functools
import weakref

import pytest
import torch

from benchmark import measuring, rows

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB")
MPS = RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")


def work():
    pass


def test_repetitions_alternate_and_the_first_round_does_not_count():
    events = []

    def prepare(name):
        events.append(f"prepare {name}")
        return functools.partial(events.append, name)

    sides = {name: functools.partial(prepare, name) for name in ("reference", "fp32")}
    seconds = measuring.interleaved("step", sides, 3, "cpu")
    assert events == ["prepare reference", "prepare fp32"] + ["reference", "fp32"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"reference": 3, "fp32": 3}


def test_a_round_on_cuda_is_many_calls_and_two_rounds_do_not_count(monkeypatch, capsys):
    events, retries = [], iter([3, 5, 5])
    monkeypatch.setattr(measuring, "synchronize", lambda device: events.append("wait"))
    monkeypatch.setattr(measuring, "allocator_retries", lambda: next(retries))
    sides = {"fp32": lambda: lambda: events.append("call")}
    seconds = measuring.interleaved("step", sides, 3, "cuda", calls=10)
    assert events == ["wait", *["call"] * 10, "wait"] * 5 and len(seconds["fp32"]) == 3
    assert capsys.readouterr().err == "step: memory was short, 2 allocations had to wait\n"


@pytest.mark.parametrize("error, at", [(CUDA, 0), (MPS, 1), (MemoryError(), 3), (None, 3)])
def test_the_side_is_left_empty_and_the_others_go_on(error, at, capsys):
    """It runs out of memory while it is prepared, at the first call, or at the third."""
    calls = []

    def side():
        calls.append("")
        if len(calls) > at - 1:
            if error is not None:
                raise error
            torch.empty(10**15)  # more than any address space holds
        return side

    prepare = side if at == 0 else lambda: side
    seconds = measuring.interleaved("step", {"reference": prepare, "fp32": lambda: work}, 4, "cpu")
    assert seconds["reference"] == [] and len(seconds["fp32"]) == 4 and len(calls) == max(at, 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("step, reference: out of memory, left empty (")


def test_other_errors_are_not_hidden():
    def fail():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        measuring.interleaved("step", {"reference": lambda: fail}, 2, "cpu")


def test_what_the_side_held_is_free_again():
    held = []

    def side():
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        raise CUDA

    def other():
        assert held and held[0]() is None

    measuring.interleaved("step", {"reference": lambda: side, "fp32": lambda: other}, 2, "cpu")


def test_the_limit_is_the_faster_form_of_the_same_product(monkeypatch):
    shapes = []

    def timed(row, sides, repetitions, device):
        shapes.extend(prepare()().shape for prepare in sides.values())
        return {"product": [2.0, 1.0], "convolution": [0.5, 0.75]}

    monkeypatch.setattr(measuring, "interleaved", timed)
    assert measuring.matmul_rate(torch.float64, 16, "cpu") == 2 * 16**3 / 0.5
    assert shapes == [(16, 16), (1, 16, 1, 16)]


def test_memory_is_measured_in_a_process_of_its_own(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)  # from where the benchmark cannot be imported
    peak = measuring.in_fresh_process(rows.loss_memory, "this code", 1024, "cpu")
    assert 6 * 1024 * 128 * 4 < peak < 4 * 4 * 2048**2  # of one matrix of similarities
    assert measuring.in_fresh_process(measuring.linux_bytes, "/proc/meminfo") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmark.measuring.linux_bytes(/proc/meminfo), left empty: TypeError")
