"""The rows of the table: as JSON, as printed lines, and as a Markdown table."""

import statistics
from typing import Any

HEADER = """| | | unit | reference recipe | this code | ratio | of limit |
| --- | --- | --- | :---: | :---: | :---: | :---: |"""


def row(
    name: str,
    variant: str,
    unit: str,
    reference: list[float],
    this_code: list[float],
    limit: float | None = None,
) -> dict[str, Any]:
    """A row of the JSON file: both sides' medians with their spread, and their ratio.

    The ratio is this code / reference, of the medians; its spread is that of the rounds, in each of
    which both sides were measured once. A side is empty if it was not measured; `limit` is the most
    that the machine allows.
    """
    ratio = of_limit = None
    if reference and this_code:
        rounds = [this / ref for this, ref in zip(this_code, reference, strict=True)]
        of_medians = statistics.median(this_code) / statistics.median(reference)
        ratio = {"of_medians": of_medians, "min": min(rounds), "max": max(rounds)}
    if this_code and limit:
        of_limit = statistics.median(this_code) / limit
    result = {"name": name, "variant": variant, "unit": unit, "limit": limit}
    sides = {"reference": summary(reference), "ours": summary(this_code)}
    return {**result, **sides, "ratio": ratio, "share_of_limit": of_limit}


def summary(values: list[float]) -> dict[str, float] | None:
    """Median and spread; None if there are no values."""
    if not values:
        return None
    median = statistics.median(values)
    return {"median": median, "min": min(values), "max": max(values), "repetitions": len(values)}


def line(found: dict[str, Any]) -> str:
    """A row of the Markdown table: medians with three digits or more, and their ratio."""
    cells = [found["name"], found["variant"], found["unit"]]
    for side in ("reference", "ours"):
        median = found[side]["median"] if found[side] else None
        digits = ",.0f" if median and median >= 100 else ".3g"
        cells.append("" if median is None else f"{median:{digits}}")
    cells.append(f"{found['ratio']['of_medians']:.2f}" if found["ratio"] else "")
    cells.append(f"{found['share_of_limit']:.0%}" if found["share_of_limit"] else "")
    return f"| {' | '.join(cells)} |"


def markdown(found: dict[str, Any]) -> str:
    """What the JSON file has of both sides, as a table in Markdown."""
    flags, machine = found["flags"], found["machine"]
    device, torch_version = machine["device_name"], machine["torch"].split("+")[0]
    size = f"batches of {flags['batch_size']} × 6 views of {flags['image_size']} px"
    lines = [f"{device}, torch {torch_version}, {flags['arch']}, {size}:", "", HEADER]
    return "\n".join(lines + [line(row) for row in found["rows"] if row["ratio"]])
