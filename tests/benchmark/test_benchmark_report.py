"""The arithmetic of the rows, and that the documentation shows what was measured."""

import json

import pytest
from conftest import ROOT

from benchmark import __main__ as benchmark_main
from benchmark import report

SPEED = ROOT / "docs" / "speed.md"


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


def test_the_documentation_has_the_table(capsys, call, tmp_path, refused):
    """The figures of docs/speed.md are those of the JSON file, so they cannot drift."""
    call(benchmark_main, "--device", "cpu", "--table", "--results", ROOT / "results")
    text = capsys.readouterr().out
    assert text in SPEED.read_text()
    found = json.loads((ROOT / "results" / "benchmark-cpu.json").read_text())
    measured = [row for row in found["rows"] if row["reference"]]
    assert len(text.splitlines()) == 4 + len(measured)
    assert set(found["flags"]["rows"]) == set(benchmark_main.ROWS)
    missing = refused(benchmark_main, "--device", "cpu", "--table", "--results", tmp_path)
    assert "there is no" in missing


@pytest.mark.parametrize("folder", ["compiled", "eager"])
def test_the_documentation_has_the_tables_of_the_gpu(folder, capsys, call):
    """They are printed on any machine."""
    folder = ROOT / "results" / "h100" / folder
    call(benchmark_main, "--device", "cuda", "--table", "--results", folder)
    assert capsys.readouterr().out in SPEED.read_text()
