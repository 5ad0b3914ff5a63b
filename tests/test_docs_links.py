"""README.md, docs/ and the other pages: every link leads somewhere, and nothing is left out."""

import re

import pytest
from conftest import ROOT

import attentionce
import loss
from attentionce.presets import PRESETS
from attentionce.runs import states

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")  # [text](target) and ![text](target)


def prose(page):
    """A page without its code."""
    text = FENCE.sub("", page.read_text())
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        count = found.count(words)
        found.append(f"{words}-{count}" if count else words)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    """Every relative link and picture exists, and every #anchor is a heading."""
    for target in LINK.findall(prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists() and file.is_relative_to(ROOT), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_readme_is_short_and_leads_everywhere():
    assert len(README.read_text().splitlines()) <= 200
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in LINK.findall(prose(README))}
    assert linked >= {page for page in PAGES if page.parent.name == "docs"}


def test_every_picture_is_shown():
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
    }
    assert shown == set((ROOT / "pic").rglob("*.png"))


def test_every_module_is_described():
    """docs/files.md names every file of the code."""
    text = (ROOT / "docs" / "files.md").read_text()
    modules = [*ROOT.glob("*.py")]
    for package in ("attentionce", "experiments", "benchmark"):
        modules += (ROOT / package).rglob("*.py")
    for module in modules:
        if module.name != "__init__.py":
            assert f"(../{module.relative_to(ROOT).as_posix()})" in text, module


def test_every_loss_is_described():
    text = (ROOT / "docs" / "flags.md").read_text()
    for name, (_, parameters) in [*loss.POSITIVES.items(), *loss.NEGATIVES.items()]:
        lines = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert any(all(f"`--{p}`" in line for p in parameters) for line in lines), name
    for name, (positives, negatives) in PRESETS.items():
        assert f"| `{name}` | `{positives}` | `{negatives}` |" in text, name


def test_flags_that_may_change_are_listed():
    text = (ROOT / "docs" / "resuming.md").read_text()
    assert all(f"`--{name}`" in text or f"`--{name} " in text for name in states.FREE_FLAGS)


def test_one_version():
    """CITATION.cff, CHANGELOG.md and the package name the same version."""
    changes = (ROOT / "CHANGELOG.md").read_text()
    version, date = re.search(r"^## (\S+) \((\S+)\)$", changes, re.MULTILINE).groups()
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\ndate-released: {date}\n" in citation
    assert attentionce.__version__ == version
