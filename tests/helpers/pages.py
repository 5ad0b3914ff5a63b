"""What a page of the documentation says, and what a result file holds."""

import csv
import json

from conftest import ROOT

RESULTS = ROOT / "results"


def says(page, sentence):
    """The page has this sentence, wherever its lines break."""
    text = " ".join((ROOT / page).read_text().split())
    assert sentence in text, f"{page} should say: {sentence}"


def found(path):
    return json.loads((RESULTS / path).read_text())


def last_row(path):
    """Of a table of metrics."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))[-1]
