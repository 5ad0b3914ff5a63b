"""The arithmetic of the rows. That the documentation shows them is in tests/test_docs.py."""

import pytest

from benchmark import __main__ as benchmark_main
from benchmark import report


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


def test_a_table_of_what_was_not_measured(refused, tmp_path):
    assert "there is no" in refused(benchmark_main, "--table", "--results", tmp_path)
