"""Running out of memory costs one cell; the JSON file has every row as soon as it is measured."""

import json
import weakref

import pytest
import torch
from tiny_benchmark import ARGS, CPU, TINY

from benchmark import __main__ as benchmark_main
from benchmark import memory, reference_recipe, report, rows, this_code, timing
from benchmark.comparison import Comparison
from benchmark.fresh_process import in_fresh_process
from benchmark.report import Row

TOO_MANY = 10**15  # numbers, more than any address space holds


def cuda():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB")


def mps():
    raise RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")


def cpu():
    torch.empty(TOO_MANY)


def python():
    raise MemoryError


def work():
    pass


@pytest.mark.parametrize("fail", [cuda, mps, cpu, python])
@pytest.mark.parametrize("when", ["while it is prepared", "at the first call", "at the third call"])
def test_the_side_is_left_empty_and_the_others_go_on(fail, when, capsys):
    calls = []

    def prepare():
        if when == "while it is prepared":
            fail()

        def side():
            calls.append("")
            if len(calls) == (3 if when == "at the third call" else 1):
                fail()

        return side

    sides = {"reference": prepare, "fp32": lambda: work}
    seconds = timing.interleaved(sides, 4, CPU, row="step")
    assert seconds["reference"] == [] and len(seconds["fp32"]) == 4
    assert len(calls) == {"w": 0, "f": 1, "t": 3}[when.removeprefix("at the ")[0]]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("step, reference: out of memory, left empty (")


def test_other_errors_are_not_hidden():
    def fail():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        timing.interleaved({"reference": lambda: fail}, 2, CPU, row="step")
    with pytest.raises(torch.OutOfMemoryError):  # a measurement that is not a row of the table
        timing.interleaved({"": lambda: cuda}, 2, CPU)


def test_what_the_side_held_is_free_again():
    held = []

    def side():
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        cuda()

    def other():
        assert held and held[0]() is None

    timing.interleaved({"reference": lambda: side, "fp32": lambda: other}, 2, CPU, row="step")


def measured(call, folder, *names):
    flags = ["--device", "cpu", "--quick", "--image_size", 8, "--compile", "off"]
    call(benchmark_main, *flags, "--precision", "fp32", "--results", folder, "--rows", *names)
    written = json.loads((folder / "benchmark-cpu.json").read_text())
    return {(row["name"], row["variant"]): row for row in written["rows"]}


@pytest.fixture
def tiny_sizes(monkeypatch):
    monkeypatch.setitem(benchmark_main.SIZES, "quick", TINY)


def test_the_reference_runs_out_of_memory(tiny_sizes, call, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference_recipe.Recipe, "step", lambda self, views: cuda())
    found = measured(call, tmp_path, "step", "epoch")
    for key in (("step", "fp32"), ("step", "fp32 grad_cache"), ("epoch", "fp32")):
        row = found[key]
        assert row["reference"] is None and row["ratio"] is None, key
        assert row["ours"]["median"] > 0 and row["share_of_limit"] > 0, key
    printed = capsys.readouterr()
    assert [text.split(" (")[0] for text in printed.err.splitlines()] == [
        "step, reference: out of memory, left empty",
        "epoch, reference: out of memory, left empty",
    ]
    assert all(report.line(row) in printed.out for row in found.values())


def test_this_code_runs_out_of_memory(tiny_sizes, call, tmp_path, monkeypatch, capsys):
    fixed_step = this_code.fixed_step

    def without_memory(run, views, grad_cache=False):
        step = fixed_step(run, views, grad_cache)
        return step if grad_cache else cuda

    monkeypatch.setattr(this_code, "fixed_step", without_memory)
    found = measured(call, tmp_path, "step", "epoch")
    row = found["step", "fp32"]
    assert row["reference"]["median"] > 0
    assert row["ours"] is None and row["ratio"] is None and row["share_of_limit"] is None
    assert found["step", "fp32 grad_cache"]["ratio"]["of_medians"] > 0
    assert found["view making", "fp32"]["ours"] is None
    assert found["epoch", "fp32"]["ratio"]["of_medians"] > 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("step, fp32: out of memory, left empty (CUDA out of memory.")


def test_a_process_of_its_own_runs_out_of_memory(monkeypatch, capsys):
    assert in_fresh_process(memory.loss_memory, "this code", 10**12, "cpu") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmark.memory.loss_memory(this code, 1000000000000, cpu)")
    assert "can't allocate memory" in line

    def peak(function, *arguments):
        return None if function is memory.reference_step_memory else 5_000_000

    monkeypatch.setattr(rows, "in_fresh_process", peak)
    for row in rows.memory_rows(Comparison(ARGS)):
        assert row.reference == [] and row.this_code == [5.0]


def test_a_whole_row_runs_out_of_memory(tiny_sizes, call, tmp_path, monkeypatch, capsys):
    def no_views(comparison):
        yield Row("views", "cpu eager", "views/s", [1.0], [2.0])
        cpu()

    monkeypatch.setitem(benchmark_main.ROWS, "views", no_views)
    found = measured(call, tmp_path, "views", "epoch")
    assert list(found) == [("views", "cpu eager"), ("epoch", "fp32")]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("views: out of memory, left empty (")


def test_the_json_file_is_written_row_by_row(tiny_sizes, call, tmp_path, monkeypatch):
    path = tmp_path / "benchmark-cpu.json"

    def on_disk():
        return [row["variant"] for row in json.loads(path.read_text())["rows"]]

    def interrupted(comparison):
        assert not path.exists()
        yield Row("views", "first", "views/s", [1.0], [2.0])
        assert on_disk() == ["first"]
        yield Row("views", "second", "views/s", [1.0], [2.0])
        raise KeyboardInterrupt

    monkeypatch.setitem(benchmark_main.ROWS, "views", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(call, tmp_path, "views", "epoch")
    assert on_disk() == ["first", "second"]
    assert [file.name for file in tmp_path.iterdir()] == ["benchmark-cpu.json"]
