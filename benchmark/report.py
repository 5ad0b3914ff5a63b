"""The rows of the table: as JSON, as printed lines, and as a Markdown table."""

import statistics
from typing import Any, NamedTuple

SIDES = ("reference", "ours")  # of a row in the JSON file; ours is this code
HEADER = """| | | unit | reference recipe | this code | ratio | of limit |
| --- | --- | --- | :---: | :---: | :---: | :---: |"""


class Row(NamedTuple):
    """What each repetition gave on both sides, in the unit; empty where a side was not measured."""

    name: str
    variant: str
    unit: str
    reference: list[float]
    this_code: list[float]
    limit: float | None = None  # the most that the machine allows, in the unit


def record(row: Row) -> dict[str, Any]:
    """A row as in the JSON file: both sides' medians with their spread, and their ratio.

    The ratio is this code / reference. It is that of the medians; its spread is that of the
    rounds, in each of which both sides were measured once.
    """
    reference, ours = summary(row.reference), summary(row.this_code)
    ratio = None
    if reference and ours:
        rounds = [this / ref for this, ref in zip(row.this_code, row.reference, strict=True)]
        ratio = {
            "of_medians": ours["median"] / reference["median"],
            "min": min(rounds),
            "max": max(rounds),
        }
    return {
        "name": row.name,
        "variant": row.variant,
        "unit": row.unit,
        "reference": reference,
        "ours": ours,
        "limit": row.limit,
        "ratio": ratio,
        "share_of_limit": ours["median"] / row.limit if ours and row.limit else None,
    }


def summary(values: list[float]) -> dict[str, float] | None:
    """Median and spread; None if there are no values."""
    if not values:
        return None
    median = statistics.median(values)
    return {"median": median, "min": min(values), "max": max(values), "repetitions": len(values)}


def short(value: float) -> str:
    """A number with three significant digits, or more before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def line(result: dict[str, Any]) -> str:
    """A record as a row of the table: medians and their ratio."""
    cells = [result["name"], result["variant"], result["unit"]]
    cells += [short(result[side]["median"]) if result[side] else "" for side in SIDES]
    cells.append(f"{result['ratio']['of_medians']:.2f}" if result["ratio"] else "")
    cells.append(f"{result['share_of_limit']:.0%}" if result["share_of_limit"] else "")
    return f"| {' | '.join(cells)} |"


def markdown(found: dict[str, Any]) -> str:
    """The content of the benchmark's JSON file as a table in Markdown.

    Only rows that were measured on both sides.
    """
    flags, machine = found["flags"], found["machine"]
    device, torch_version = machine["device_name"], machine["torch"].split("+")[0]
    size = f"batches of {flags['batch_size']} × 6 views of {flags['image_size']} px"
    lines = [f"{device}, torch {torch_version}, {flags['arch']}, {size}:", "", HEADER]
    return "\n".join(lines + [line(row) for row in found["rows"] if row["ratio"]])
