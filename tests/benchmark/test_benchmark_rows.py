"""Every row is measured and written at once, and rates count what was done."""

import json

import pytest
from helpers.programs import Small
from tiny_benchmark import ARGS, FLAGS, TINY, in_this_process

from attentionce.training import devices
from benchmark import __main__ as benchmark_main
from benchmark import measuring, reference_recipe, report, rows, this_code


def five_megabytes(prepare, device):
    """peak_bytes: in this process an earlier peak may well remain the highest."""
    prepare()()
    return 5_000_000


@pytest.fixture
def measured(call, tmp_path, monkeypatch, small_encoder):
    """measured("step", …): these rows of tiny size, by name and variant."""
    monkeypatch.setattr(reference_recipe, "Model", Small)
    monkeypatch.setattr(this_code, "Model", Small)
    monkeypatch.setattr(Small, "feature_size", 16, raising=False)
    sizes = {name: (value, value, value) for name, value in TINY.items()}
    monkeypatch.setattr(benchmark_main, "SIZES", sizes)
    monkeypatch.setattr(measuring, "in_fresh_process", in_this_process)
    monkeypatch.setattr(measuring, "peak_bytes", five_megabytes)

    def function(*names, precision="fp32"):
        flags = [*FLAGS, "--precision", precision, "--results", tmp_path, "--rows", *names]
        call(benchmark_main, *flags)
        written = json.loads((tmp_path / "benchmark-cpu.json").read_text())
        return {(row["name"], row["variant"]): row for row in written["rows"]}

    return function


def test_every_row_is_measured(measured, tmp_path, monkeypatch, capsys):
    both = ["fp32", "bf16"]
    monkeypatch.setattr(devices, "half_precision", lambda device: "bf16")
    found = measured(*benchmark_main.ROWS, precision="auto")
    written = json.loads((tmp_path / "benchmark-cpu.json").read_text())
    assert written["flags"]["batch_size"] == 4 and written["machine"]["torch"]
    assert written["command"].startswith("python -m benchmark --device cpu --image_size 8")
    assert written["minutes"] > 0
    expected = [("views", "cpu eager"), ("step", "bf16 grad_cache"), ("view making", "bf16")]
    expected += [("loss", "batch 16"), ("loss memory", "batch 16"), ("start-up", "")]
    expected += [("memory", f"{precision} grad_cache") for precision in both]
    for name in ("step", "limit", "epoch", "memory", "linear", "linear, once"):
        expected += [(name, precision) for precision in both]
    assert sorted(found) == sorted(expected)
    printed = capsys.readouterr().out
    for (name, _), row in found.items():
        assert report.line(row) in printed
        one_sided = name in ("view making", "limit", "linear, once")
        assert (row["reference"] is None) == one_sided, row
        assert row["ours"]["median"] > 0, row
        once = name in ("memory", "loss memory", "limit", "start-up")
        assert row["ours"]["repetitions"] == (1 if once else 12 if name == "loss" else 2), row
        assert (row["share_of_limit"] is None) == (name not in ("step", "epoch")), row


def test_rates_count_what_was_done(monkeypatch):
    def one_second(sides, repetitions, device, calls=1):
        return {name: [1.0] for name in sides}

    monkeypatch.setattr(measuring, "interleaved", one_second)
    monkeypatch.setattr(rows, "limit", lambda args, precision: 8.0)
    measures = rows.view_rows, rows.step_rows, rows.epoch_rows
    found = {row["name"]: row for measure in measures for row in measure(ARGS)}
    for name, rate in {"views": 8 * 6, "step": 4, "epoch": 2 * 4}.items():
        assert found[name]["ours"]["median"] == found[name]["reference"]["median"] == rate
    assert found["step"]["share_of_limit"] == 0.5
    assert found["view making"]["ours"]["median"] == 100


def test_the_limit_is_six_times_the_multiply_adds_of_six_views(monkeypatch):
    monkeypatch.setattr(measuring, "matmul_rate", lambda dtype, side, device: 1e12)
    monkeypatch.setattr(rows, "cost", lambda model, image_size: (5e6, 2e7))
    assert rows.limit(ARGS, "fp32") == pytest.approx(1e12 / (6 * 6 * 2e7))


def test_a_start_that_failed_stays_empty(monkeypatch):
    ends = iter([None, 2e9, 2e9, 2e9])  # of the reference, this code, the reference, …
    monkeypatch.setattr(measuring, "in_fresh_process", lambda *call: next(ends))
    args = type(ARGS)(**{**vars(ARGS), "repetitions": 4})
    (row,) = rows.startup_rows(args)
    assert row["reference"] is None and row["ours"]["repetitions"] == 2


def test_the_json_file_is_written_row_by_row(measured, tmp_path, monkeypatch):
    path = tmp_path / "benchmark-cpu.json"

    def interrupted(args):
        for number in (1, 2):
            yield report.row("views", f"row {number}", "views/s", [1.0], [2.0])
            assert len(json.loads(path.read_text())["rows"]) == number
        raise KeyboardInterrupt

    monkeypatch.setitem(benchmark_main.ROWS, "views", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured("views", "epoch")
    assert [file.name for file in tmp_path.iterdir()] == ["benchmark-cpu.json"]


def test_record_of_a_row():
    result = report.row("step", "bf16", "images/s", [2.0, 4.0, 3.0], [6.0, 8.0, 12.0], limit=16.0)
    assert result["reference"] == {"median": 3, "min": 2, "max": 4, "repetitions": 3}
    assert result["ours"] == {"median": 8, "min": 6, "max": 12, "repetitions": 3}
    assert result["ratio"] == {"of_medians": pytest.approx(8 / 3), "min": 2, "max": 4}
    assert result["share_of_limit"] == 0.5
    assert report.line(result) == "| step | bf16 | images/s | 3 | 8 | 2.67 | 50% |"
    empty = report.row("memory", "fp32", "MB", [], [5.0])
    assert empty["reference"] is None and empty["ratio"] is None and empty["share_of_limit"] is None
    assert report.line(empty) == "| memory | fp32 | MB |  | 5 |  |  |"


def test_flags_that_cannot_work(refused, tmp_path):
    assert "--batch_size" in refused(benchmark_main, *FLAGS, "--batch_size", 1)
    assert "--precision fp16" in refused(benchmark_main, *FLAGS, "--precision", "fp16")
    assert "there is no" in refused(benchmark_main, "--table", "--results", tmp_path)
