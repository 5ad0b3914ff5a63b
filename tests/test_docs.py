"""Every Python block of README.md runs, in packages that are only played here: what each of them calls is checked."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

import linear
import loss
import main
from attentionce import cli
from attentionce.runs import files
from model import Model

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def pretend(monkeypatch, name, **content):
    """A module `name` with this content, and the packages that it is in."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        package = ".".join(parts[:i])
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    vars(sys.modules[name]).update(content)


class Images(torch.utils.data.Dataset):
    """What LightlyDataset gives: views, label and file name of an image."""

    def __init__(self, path, transform):
        self.transform = transform

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return self.transform(torch.full((3, 8, 8), index / 64)), 0, f"{index}.jpg"


class Solo(nn.Module):
    """solo-learn's BaseMethod and SimCLR as one: projections of every view, and the loss of its online classifier."""

    def __init__(self):
        super().__init__()
        self.temperature, self.projector = 0.2, nn.Linear(4, 5)

    def training_step(self, batch, batch_idx):
        return {"z": [self.projector(view) for view in batch[1]], "loss": torch.ones(())}


class SimCLR(Solo):
    def training_step(self, batch, batch_idx):
        raise AssertionError("its own loss is not wanted")


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """The packages that the examples are for, the repository as ./AttentioNCE, and weights of the example's name."""
    views = types.SimpleNamespace(count=0)

    def many(transforms):
        views.count = len(transforms)
        return lambda image: [t(image) for t in transforms]

    pretend(monkeypatch, "lightning", LightningModule=nn.Module)
    pretend(monkeypatch, "lightly.data", LightlyDataset=Images)
    pretend(monkeypatch, "lightly.transforms.multi_view_transform", MultiViewTransform=many)
    noisy = types.SimpleNamespace(
        view=lambda input_size: lambda image: image + 0.1 * torch.randn(image.shape)
    )
    pretend(monkeypatch, "lightly.transforms.simclr_transform", SimCLRViewTransform=noisy.view)
    pretend(monkeypatch, "solo.methods.simclr", SimCLR=SimCLR)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "AttentioNCE").symlink_to(ROOT)
    state = {f"module.{key}": value for key, value in Model(128, "resnet10").state_dict().items()}
    files.save(tmp_path / "cifar10_SimCLR_4model_256_400_1.0_10.0.pth", state)
    torch.manual_seed(0)
    return views


def check_lightning(names, packages):
    module = names["Pretraining"]()
    views = torch.randn(6, 4, 3, 8, 8)
    value = module.training_step(views, 0)
    module.train()
    expected = loss.attentionce(torch.stack([module.model(v)[1] for v in views]), 0.5, 2.0, 0.5)
    torch.testing.assert_close(value, expected)
    value.backward()
    module.configure_optimizers().step()


def check_lightly(names, packages):
    assert packages.count == 6 == len(names["views"]) and len(names["views"][0]) == 64
    assert all(p.grad is not None and p.grad.isfinite().all() for p in names["model"].parameters())


def check_solo(names, packages):
    method, views = names["AttentioNCE"](), torch.randn(6, 3, 4)
    value = method.training_step((None, views, None), 0)
    z = normalize(torch.stack([method.projector(v) for v in views]), dim=-1)
    torch.testing.assert_close(value, 1 + loss.attentionce(z, 0.2, 2.0, 0.5))


def check_hub(names, packages):
    assert [stage.shape for stage in names["stages"].values()] == [
        (1, 128, 32, 32),
        (1, 256, 16, 16),
        (1, 512, 8, 8),
    ]


CHECKS = {
    "import lightning": check_lightning,
    "from lightly": check_lightly,
    "from solo": check_solo,
    "torch.hub": check_hub,
}


def test_readme_has_an_example_of_every_kind():
    assert all(any(use in block for block in BLOCKS) for use in CHECKS)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_example_runs(number, packages):
    block = BLOCKS[number]
    assert len([line for line in block.splitlines() if line.strip()]) < 20
    names = {"__name__": "example"}
    exec(compile(block, f"README.md, Python block {number + 1}", "exec"), names)
    for use, check in CHECKS.items():
        if use in block:
            check(names, packages)


@pytest.mark.parametrize("program", [main, linear])
def test_readme_has_every_flag(program, monkeypatch):
    """With its default and the words of --help."""
    rows = []

    def note(parser, argv):
        for action in parser._actions[1:]:  # the first is --help
            shown = "" if action.default is None or action.default is False else action.default
            shown = "(needed)" if action.required else shown
            choices = f" ({', '.join(action.choices)})" if action.choices else ""
            rows.append(f"| `{action.option_strings[0]}` | {shown} | {action.help}{choices} |")
        raise SystemExit

    monkeypatch.setattr(cli.Parser, "parse_args", note)
    with pytest.raises(SystemExit):
        program.parse_args([])
    print("\n".join(rows))  # what to put there
    assert "\n".join(rows) in TEXT
