"""The benchmark's rows as JSON, as lines and as a Markdown table."""

import statistics
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A line of the table: what each repetition gave on both sides, in the unit; empty where a side was not measured."""

    name: str
    variant: str
    unit: str
    reference: list[float]
    ours: list[float]
    limit: float | None = None  # the most that the machine allows, in the unit


def record(row: Row) -> dict[str, Any]:
    """A row as the JSON file has it: medians with smallest and largest, and ours / reference, whose spread is the rounds'."""
    reference, ours = summary(row.reference), summary(row.ours)
    result = {
        **row._asdict(),
        "reference": reference,
        "ours": ours,
        "ratio": None,
        "share_of_limit": None,
    }
    if reference and ours:
        rounds = [o / r for o, r in zip(row.ours, row.reference, strict=True)]
        result["ratio"] = {
            "of_medians": ours["median"] / reference["median"],
            "min": min(rounds),
            "max": max(rounds),
        }
    if row.limit and ours:
        result["share_of_limit"] = ours["median"] / row.limit
    return result


def summary(values: list[float]) -> dict[str, float] | None:
    """Median and spread; None of nothing."""
    if not values:
        return None
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "repetitions": len(values),
    }


HEADER = f"{'':16}{'':17}{'':14}{'reference':>28}{'this code':>28}{'ratio':>20}{'of limit':>10}"


def line(result: dict[str, Any]) -> str:
    """A record as a line of the table: median (smallest … largest)."""
    cells = [f"{result['name']:16}{result['variant']:17}{result['unit']:14}"]
    for side in ("reference", "ours"):
        values = result[side]
        one = values and values["repetitions"] == 1
        spread = "" if not values or one else f" ({short(values['min'])} … {short(values['max'])})"
        cells.append(f"{short(values['median']) + spread if values else '':>28}")
    ratio, share = result["ratio"], result["share_of_limit"]
    of_rounds = f" ({ratio['min']:.2f} … {ratio['max']:.2f})" if ratio and not one else ""
    cells.append(f"{short(ratio['of_medians']) + of_rounds if ratio else '':>20}")
    cells.append(f"{share:10.1%}" if share else "")
    return "".join(cells).rstrip()


def short(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(found: dict[str, Any]) -> str:
    """What a JSON file of the benchmark says, as the table of the README: medians of both sides and their ratio."""
    flags, machine = found["flags"], found["machine"]
    size = f"batches of {flags['batch_size']} × 6 views of {flags['image_size']} px"
    lines = [
        f"{machine['device_name']}, torch {machine['torch'].split('+')[0]}, {flags['arch']}, {size}:",
        "",
        "| | | unit | reference recipe | this code | ratio | of limit |",
        "| --- | --- | --- | :---: | :---: | :---: | :---: |",
    ]
    for row in found["rows"]:
        if row["ratio"]:
            medians = [short(row[side]["median"]) for side in ("reference", "ours")]
            share = f"{row['share_of_limit']:.0%}" if row["share_of_limit"] else ""
            cells = [
                row["name"],
                row["variant"],
                row["unit"],
                *medians,
                f"{row['ratio']['of_medians']:.2f}",
                share,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
