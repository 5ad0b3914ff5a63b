"""What a page of the documentation says, and what a result file holds."""

import csv
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
RESULTS = ROOT / "results"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)  # language, code


def says(page, sentence):
    """The page has this sentence, wherever its lines break."""
    text = " ".join((ROOT / page).read_text().split())
    assert sentence in text, f"{page} should say: {sentence}"


def says_all(text, values):
    """Pages, and indented below each what it says, with `{name:.1f}` in the place of a value."""
    page = ""
    for line in text.strip().splitlines():
        if line.startswith(" "):
            says(page, line.strip().format_map(values).replace("%", " %"))
        else:
            page = line


def found(path):
    return json.loads((RESULTS / path).read_text())


def last_row(path):
    """Of a table of metrics."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))[-1]
