"""What may import what, as the syntax trees show it, and how many files stand at the top."""

import ast
import re
import sys
from collections.abc import Iterator

from conftest import ROOT

# What each file or package may import of this project, besides itself. A package's name stands for
# everything in it; where several lines fit a file, the longest name counts.
BOTTOM = ("attentionce.errors", "attentionce.presets", "attentionce.progress")
SHARED = ("attentionce.data", "attentionce.training.devices", "attentionce.training.processes")
PARTS = ("attentionce", "loss", "model", "utils")
MAY_IMPORT = {
    "attentionce.__init__": (),
    "attentionce.errors": (),
    "attentionce.presets": (),
    "attentionce.progress": (),
    "attentionce.weights": ("attentionce.errors", "attentionce.runs.files"),
    "attentionce.data": (*BOTTOM, "attentionce.runs.locks"),
    "attentionce.training": (*BOTTOM, "attentionce.data"),
    "attentionce.evaluation": (*BOTTOM, *SHARED),
    "attentionce.evaluation.linear_classifier": (
        *BOTTOM,
        "attentionce.data",
        "attentionce.training",
        "attentionce.runs",
        "attentionce.weights",
        "attentionce.evaluation",
    ),
    "attentionce.runs": (*BOTTOM, *SHARED),
    "attentionce.runs.report": (*BOTTOM, "attentionce.training", "attentionce.runs"),
    "attentionce.cli": (*BOTTOM, *SHARED),
    "loss": (),
    "model": ("attentionce.errors", "attentionce.weights"),
    "utils": (*BOTTOM, "attentionce.data"),
    "hubconf": ("attentionce",),
    "main": PARTS,
    "linear": PARTS,
    "embed": PARTS,
    "reproduce": (*PARTS, "main", "linear", "experiments"),
    "experiments": (*PARTS, "main", "linear"),
    "benchmark": (*PARTS, "main", "linear"),
}
# What these may import from outside the project and the standard library; the others are free.
MAY_REQUIRE = {
    "attentionce.__init__": (),
    "attentionce.errors": (),
    "attentionce.presets": (),
    "loss": ("torch",),
}

SOURCES = sorted(ROOT.glob("*.py"))
for _package in ("attentionce", "benchmark", "experiments"):
    SOURCES += sorted(ROOT.glob(f"{_package}/**/*.py"))
# attentionce/data/views.py is attentionce.data.views.
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
OURS = {name.split(".")[0] for name in MODULES}


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and module of every import, also of those inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            package = "." * node.level + (node.module or "")
            for name in node.names:
                module = f"{package}.{name.name}"
                yield node.lineno, module if module in MODULES else package


def within(module: str, packages: tuple[str, ...]) -> bool:
    """Whether the module is one of these packages or in one of them."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def allowed(importer: str, imported: str) -> bool:
    """Whether the tables above let the module `importer` import the module `imported`."""
    fitting = [name for name in MAY_IMPORT if within(importer, (name,))]
    if not fitting or imported.startswith("."):
        return False
    rule = max(fitting, key=len)
    first = imported.split(".")[0]
    if first in OURS:
        return within(imported, (rule, *MAY_IMPORT[rule]))
    if first in sys.stdlib_module_names or rule not in MAY_REQUIRE:
        return True
    return first in MAY_REQUIRE[rule]


def test_imports_go_downwards():
    wrong = [
        f"{path}:{line}: may not import {imported}"
        for importer, path in MODULES.items()
        for line, imported in imports(path.read_text())
        if not allowed(importer, imported)
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_that_go_upwards_are_noticed():
    inner = "def f():\n    from attentionce.training import devices, NAME"
    lines = [(2, "attentionce.training.devices"), (2, "attentionce.training")]
    assert list(imports(inner)) == lines
    assert allowed("attentionce.runs.states", "attentionce.training.devices")
    assert not allowed("attentionce.runs.states", "attentionce.training.one_step")
    assert allowed("loss", "torch") and allowed("loss", "math") and not allowed("loss", "numpy")
    assert not allowed("new_file", "torch")


def test_at_most_nine_python_files_at_the_top():
    assert len(list(ROOT.glob("*.py"))) <= 9


def test_no_line_escapes_the_formatter():
    for path in [*SOURCES, *ROOT.glob("tests/**/*.py")]:
        assert not re.search(r"#\s*fmt:\s*(skip|off)", path.read_text()), path
