"""The rows of the table: as JSON, as printed lines, and as a Markdown table."""

import statistics
from typing import Any, NamedTuple

SIDES = ("reference", "ours")  # of a row in the JSON file; ours is this code


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
    reference, this_code = summary(row.reference), summary(row.this_code)
    ratio = share = None
    if reference and this_code:
        rounds = [this / ref for this, ref in zip(row.this_code, row.reference, strict=True)]
        of_medians = this_code["median"] / reference["median"]
        ratio = {"of_medians": of_medians, "min": min(rounds), "max": max(rounds)}
    if row.limit and this_code:
        share = this_code["median"] / row.limit
    return {
        "name": row.name,
        "variant": row.variant,
        "unit": row.unit,
        "reference": reference,
        "ours": this_code,
        "limit": row.limit,
        "ratio": ratio,
        "share_of_limit": share,
    }


def summary(values: list[float]) -> dict[str, float] | None:
    """Median and spread; None if there are no values."""
    if not values:
        return None
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "repetitions": len(values),
    }


HEADER = f"{'':47}{'reference':>28}{'this code':>28}{'ratio':>20}{'of limit':>10}"


def line(result: dict[str, Any]) -> str:
    """A record as a printed line: medians, with (smallest … largest) of several repetitions."""
    text = f"{result['name']:16}{result['variant']:17}{result['unit']:14}"
    for side in SIDES:
        text += f"{median_and_spread(result[side]):>28}"
    ratio, share = result["ratio"], result["share_of_limit"]
    cell = ""
    if ratio:
        cell = short(ratio["of_medians"])
        if result["ours"]["repetitions"] > 1:
            cell += f" ({ratio['min']:.2f} … {ratio['max']:.2f})"
    text += f"{cell:>20}"
    if share:
        text += f"{share:10.1%}"
    return text.rstrip()


def median_and_spread(values: dict[str, float] | None) -> str:
    """A side of a record, in short."""
    if values is None:
        return ""
    if values["repetitions"] == 1:
        return short(values["median"])
    return f"{short(values['median'])} ({short(values['min'])} … {short(values['max'])})"


def short(value: float) -> str:
    """A number with three significant digits, or more before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(found: dict[str, Any]) -> str:
    """The content of the benchmark's JSON file as a table in Markdown: medians and their ratio.

    Only rows that were measured on both sides.
    """
    flags, machine = found["flags"], found["machine"]
    device, torch_version = machine["device_name"], machine["torch"].split("+")[0]
    size = f"batches of {flags['batch_size']} × 6 views of {flags['image_size']} px"
    lines = [
        f"{device}, torch {torch_version}, {flags['arch']}, {size}:",
        "",
        "| | | unit | reference recipe | this code | ratio | of limit |",
        "| --- | --- | --- | :---: | :---: | :---: | :---: |",
    ]
    for row in found["rows"]:
        if row["ratio"]:
            cells = [row["name"], row["variant"], row["unit"]]
            cells += [short(row[side]["median"]) for side in SIDES]
            cells.append(f"{row['ratio']['of_medians']:.2f}")
            cells.append(f"{row['share_of_limit']:.0%}" if row["share_of_limit"] else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
