"""The built package holds what the clone holds, works from another folder and needs little."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from conftest import ROOT

import attentionce

USE = """
import json
import os
import signal
import sys

for name in ("fcntl", "resource"):  # Windows has neither
    sys.modules[name] = None
for name in ("tqdm", "filelock", "thop", "skimage"):  # only the programs need these
    sys.modules[name] = None
del os.fork, signal.SIGUSR1

import torch
from attentionce.loss import AttentioNCE
from attentionce.training.processes import gather

modules = [sorted(sys.modules)]
from attentionce.model import Model

modules.append(sorted(sys.modules))
z = torch.nn.functional.normalize(torch.randn(6, 8, 16), dim=-1).requires_grad_()
AttentioNCE(0.5, 2.0, 0.5, gather=gather)(z).backward()
assert z.grad.isfinite().all()
assert Model(16, "resnet10")(torch.randn(3, 3, 12, 12))[1].shape == (3, 16)
print(json.dumps(modules))
"""


def python(*arguments, cwd, **variables):
    """Run Python in the folder `cwd`; what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package: the wheel made of the source package made of this clone."""
    folder = tmp_path_factory.mktemp("installed")
    python("-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (source,) = folder.glob("attentionce-*.tar.gz")
    shutil.unpack_archive(source, folder)
    source = folder / source.name.removesuffix(".tar.gz")
    python("-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source)
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(wheel, folder / "wheel", "zip")  # as pip does with Python alone
    return folder / "wheel"


def test_it_holds_the_modules_of_the_clone(installed):
    expected = {path.relative_to(ROOT): path for path in ROOT.glob("attentionce/**/*.py")}
    expected |= {Path("attentionce", name): ROOT / name for name in ("loss.py", "model.py")}
    found = {path.relative_to(installed): path for path in installed.rglob("*.py")}
    assert found.keys() == expected.keys()
    for name, path in found.items():
        assert path.read_bytes() == expected[name].read_bytes(), name


def test_it_needs_torch_alone(installed):
    """What the programs need is the extra `programs`."""
    (package,) = distributions(path=[str(installed)])
    assert (package.name, package.version) == ("attentionce", attentionce.__version__)
    extra = "; extra == 'programs'"
    assert [line for line in package.requires if extra not in line] == ["torch>=2.4"]
    programs = [line.removesuffix(extra) for line in package.requires if extra in line]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert sorted(programs) == sorted(line.split("#")[0].strip() for line in lines)


def test_in_a_clone_it_has_the_modules_beside_it():
    """As after `pip install -e .`, and with an installed package inside the clone."""
    for name in ("loss", "model"):
        module = importlib.import_module(f"attentionce.{name}")
        assert Path(module.__file__) == ROOT / f"{name}.py"


def test_installed_loss_and_encoder_work_alone(installed, tmp_path):
    """Even without what only Unix has; without data sets and programs; the loss without PIL."""
    only = {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    with_loss, with_model = json.loads(python("-c", USE, cwd=tmp_path, **only))
    assert not {"PIL", "torchvision"} & set(with_loss)
    others = {"attentionce.data", "attentionce.evaluation", "attentionce.cli", "benchmark"}
    others |= {path.stem for path in ROOT.glob("*.py")}
    assert not others & set(with_model)
