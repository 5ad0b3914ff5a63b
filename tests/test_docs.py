"""README.md and docs/: their generated tables are current, and their examples run.

python tests/test_docs.py            rewrites every generated table
python tests/test_docs.py main.py    rewrites this one
"""

import contextlib
import importlib
import io
import re
import shlex
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torchvision
from helpers.pages import FENCE, PAGES, ROOT
from PIL import Image
from torch import nn
from torch.nn.functional import normalize

sys.path.insert(0, str(ROOT))  # for `python tests/test_docs.py`

import loss  # noqa: E402
import reproduce  # noqa: E402
from attentionce import cli  # noqa: E402
from attentionce.runs import files  # noqa: E402
from experiments import studies  # noqa: E402
from model import Model  # noqa: E402
from utils import load  # noqa: E402

RESULTS = str(ROOT / "results")
GENERATED = re.compile(r"<!-- generated: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


# ------------------------------------------------------------------------------- tables


def flag_table(program):
    """The flags of a program with the defaults and words of its --help."""
    rows = ["| flag | default | meaning |", "| --- | --- | --- |"]

    def note(parser, argv):
        for action in parser._actions[1:]:  # the first is --help
            shown = "" if action.default is None or action.default is False else action.default
            shown = "(needed)" if action.required else shown
            choices = f" ({', '.join(action.choices)})" if action.choices else ""
            rows.append(f"| `{action.option_strings[0]}` | {shown} | {action.help}{choices} |")
        raise SystemExit

    with mock.patch.object(cli.Parser, "parse_args", note), contextlib.suppress(SystemExit):
        program.parse_args([])
    return "\n".join(rows)


def published_table():
    """The published figures, and what this code measured of the same rows."""
    columns = ["data set", "method", "d_pos", "d_neg", "epochs", "published"]
    columns += ["as published, best epoch", "frozen, last epoch"]
    names = ["Method", "d_pos", "d_neg", "Epochs", "Published, %"]
    names += ["As published, best epoch, %", "Frozen, last epoch, %"]
    lines = [reproduce.markdown(columns), "| --- | --- |" + " :---: |" * 6]
    for row in studies.all_rows(reproduce.parse_args(["--results", RESULTS])):
        if row.published:
            cells = reproduce.cells(row)
            line = [row.study.title, *(cells[name] for name in names)]
            lines.append(reproduce.markdown(line))
    return "\n".join(lines)


def printed(module, *words):
    """What a program of this project prints."""
    output = io.StringIO()
    with mock.patch.object(sys, "argv", [module, *words]), contextlib.redirect_stdout(output):
        importlib.import_module(module).main()
    return output.getvalue().strip()


def generate(name):
    """The table that a page has between `<!-- generated: name -->` and `<!-- end -->`."""
    if name in ("main.py", "linear.py", "embed.py"):
        return flag_table(importlib.import_module(name.removesuffix(".py")))
    if name == "published":
        return published_table()
    measured = {"benchmark": "", "h100": "/h100/compiled", "h100-not-compiled": "/h100/eager"}
    if name in measured:
        words = ["--device", "cuda" if measured[name] else "cpu"]
        words += ["--results", RESULTS + measured[name]]
        return printed("benchmark.__main__", "--table", *words)
    words = [name]
    if name == "folder":  # with the flags of the command above it
        text = (ROOT / "docs" / "results.md").read_text()
        command = re.search(r"python reproduce\.py (folder .*?)\n\n", text, re.DOTALL)[1]
        words = shlex.split(command.replace("\\\n", ""))
    return printed("reproduce", "--table", *words, "--results", RESULTS)


TABLES = dict(table for page in PAGES for table in GENERATED.findall(page.read_text()))


@pytest.mark.parametrize("name", TABLES)
def test_tables(name):
    """They are what the programs say: they cannot drift from the flags and the results."""
    assert TABLES[name].strip() == generate(name), "python tests/test_docs.py rewrites the tables"


def test_there_is_a_table_of_every_program_and_study():
    assert TABLES.keys() >= {"main.py", "linear.py", "embed.py", "published", *studies.NAMES}
    assert "### Your own images (cifar10-jpeg)" in TABLES["folder"]


def rewrite(wanted):
    """Make the wanted tables again, or all."""
    for page in PAGES:
        text = page.read_text()
        for name, old in GENERATED.findall(text):
            if name in wanted or not wanted:
                text = text.replace(f"{name} -->\n{old}", f"{name} -->\n\n{generate(name)}\n\n")
        page.write_text(text)


# ------------------------------------------------------------------------------- examples

PROGRAMS = r"((?:main|linear|embed|reproduce)\.py|benchmark|experiments\.plot)"
WORDS = r"([^`#\n]+(?:\n[^`\n]+(?=`))?)"  # in a paragraph, a line may break among them
COMMAND = re.compile(rf"(?:python|python -m|torchrun [^`\n]*) {PROGRAMS} {WORDS}")
COMMANDS = {
    (program.removesuffix(".py"), words.strip())
    for page in PAGES
    for program, words in COMMAND.findall(page.read_text().replace("\\\n", " "))
}


@pytest.mark.parametrize("program, words", sorted(COMMANDS))
def test_commands(program, words):
    """Every command has flags that its program knows."""
    module = importlib.import_module("benchmark.__main__" if program == "benchmark" else program)
    with contextlib.suppress(SystemExit):  # of --help
        module.parse_args(shlex.split(words))


BLOCKS = {
    f"{page.name} {number}": code
    for page in PAGES
    for number, (language, code) in enumerate(FENCE.findall(page.read_text()), 1)
    if language == "python"
}


class Solo(nn.Module):
    """solo-learn's BaseMethod: projections, and the online classifier's loss."""

    def __init__(self):
        super().__init__()
        self.temperature, self.projector = 0.2, nn.Linear(4, 5)

    def training_step(self, batch, batch_idx):
        return {"z": [self.projector(view) for view in batch[1]], "loss": torch.ones(())}


class SimCLR(Solo):
    training_step = None  # its own loss is not wanted


class CIFAR10(list):
    """torchvision's data set with six training and three test images of two classes."""

    classes = ["cat", "dog"]

    def __init__(self, root, train, download):
        assert download
        shades = range(0, 240, 40 if train else 80)
        super().__init__((Image.new("RGB", (32, 32), (s, s, s)), s // 40 % 2) for s in shades)


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Stand-ins for solo-learn and CIFAR-10, a clone ./AttentioNCE, weights, and features.npz."""
    monkeypatch.setitem(sys.modules, "solo.methods.simclr", SimpleNamespace(SimCLR=SimCLR))
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", CIFAR10)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "AttentioNCE").symlink_to(ROOT)
    torch.manual_seed(0)
    state = {f"module.{key}": value for key, value in Model(128, "resnet10").state_dict().items()}
    files.save(tmp_path / "cifar10_SimCLR_4model_256_400_1.0_10.0.pth", state)
    path, feature = np.array([f"{i:02d}.png" for i in range(12)]), torch.rand(12, 8)
    feature[::2] *= -1
    np.savez("features.npz", path=path, feature=feature)


def check_readers_code(names):
    encoder, views = names["encoder"], names["views"]
    z = normalize(torch.stack([encoder(view) for view in views]), dim=-1)
    (expected,) = torch.autograd.grad(loss.attentionce(z, 0.5, 1.0, 10.0), [encoder.weight])
    torch.testing.assert_close(encoder.weight.grad, expected)


def check_solo(names):
    method, views = names["AttentioNCE"](), torch.randn(6, 3, 4)
    value = method.training_step((None, views, None), 0)
    z = normalize(torch.stack([method.projector(v) for v in views]), dim=-1)
    torch.testing.assert_close(value, 1 + loss.attentionce(z, 0.2, 2.0, 0.5))


def check_hub_encoder(names):
    shapes = [tuple(stage.shape) for stage in names["stages"].values()]
    assert shapes == [(1, 128, 32, 32), (1, 256, 16, 16), (1, 512, 8, 8)]


def check_hub_loss(names):
    torch.testing.assert_close(names["loss"], loss.attentionce(names["z"], 0.5, 1.0, 10.0))


def check_neighbours(names):
    """The nearest are alike; clusters are of every image."""
    path, z, cluster = names["path"], names["z"], names["cluster"]
    assert set(path[np.argsort(-z @ z[0])[:6]]) == {f"{i:02d}.png" for i in range(0, 12, 2)}
    assert np.allclose((z**2).sum(1), 1) and len(set(cluster.tolist())) == 10


def check_jpegs(names):
    """The folder is one that main.py reads, with all images and the classes of the data set."""
    for split, count in (("pretrain", 6), ("test", 3)):
        images = load("folder", "data/cifar10-jpeg", split, 64)
        assert len(images.pixels) == count and images.classes == ["cat", "dog"]
        assert images.pixels.shape[1:] == (3, 32, 32)


CHECKS = {
    "import CIFAR10": check_jpegs,
    "KMeans": check_neighbours,
    "from attentionce.loss import": check_readers_code,
    "from solo": check_solo,
    '"encoder", source=': check_hub_encoder,
    '"attentionce", source=': check_hub_loss,
}
PEERS = ("import lightning", "from lightly")  # which tests/test_peers.py runs


@pytest.mark.parametrize("name", [n for n in BLOCKS if not any(use in BLOCKS[n] for use in PEERS)])
def test_example_runs(name, packages):
    (check,) = [check for use, check in CHECKS.items() if use in BLOCKS[name]]
    # the reader's own
    names = {"__name__": "example", "encoder": nn.Linear(4, 5), "views": torch.randn(6, 3, 4)}
    exec(compile(BLOCKS[name], name, "exec"), names)
    check(names)


if __name__ == "__main__":
    rewrite(sys.argv[1:])
