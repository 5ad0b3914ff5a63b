"""The built package, from another folder, computes what the clone computes and needs little."""

import importlib
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch.nn.functional import normalize

import attentionce
from loss import AttentioNCE
from model import Model

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
given = torch.load("given.pt", weights_only=True)
z = given["z"].requires_grad_()
loss = AttentioNCE(0.5, 2.0, 0.5, gather=gather)(z)
loss.backward()
model = Model(16, "resnet10").eval()
model.load_state_dict(given["weights"])
torch.save([loss.detach(), z.grad, model(given["images"])[1].detach()], "computed.pt")
print(json.dumps(modules))
"""


def python(*arguments, cwd, **variables):
    """Run Python in the folder `cwd`; what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wheel_of(folder, made):
    """The content of the wheel that hatchling builds of a project's folder, which is unpacked."""
    python("-m", "hatchling", "build", "-t", "wheel", "-d", made, cwd=folder)
    (wheel,) = made.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(made)  # as pip does with a package of Python alone
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        return {name: archive.read(name) for name in names}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package of this clone, which holds loss.py and model.py too."""
    folder = tmp_path_factory.mktemp("installed")
    expected = {str(path.relative_to(ROOT)): path for path in ROOT.glob("attentionce/**/*.py")}
    expected |= {f"attentionce/{name}": ROOT / name for name in ("loss.py", "model.py")}
    assert wheel_of(ROOT, folder) == {name: path.read_bytes() for name, path in expected.items()}
    return folder


def test_the_source_package_makes_the_same_wheel(installed, tmp_path):
    python("-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (source,) = tmp_path.glob("attentionce-*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path)
    content = wheel_of(tmp_path / source.name.removesuffix(".tar.gz"), tmp_path / "made")
    assert content == {name: (installed / name).read_bytes() for name in content}
    assert "attentionce/loss.py" in content


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


def test_installed_loss_and_encoder_compute_what_the_clone_computes(installed, tmp_path):
    """Even without what only Unix has; without data sets and programs; the loss without PIL."""
    torch.manual_seed(0)
    z = normalize(torch.randn(6, 8, 16, dtype=torch.float64), dim=-1)
    images, model = torch.randn(3, 3, 12, 12), Model(16, "resnet10").eval()
    given = {"z": z, "images": images, "weights": model.state_dict()}
    torch.save(given, tmp_path / "given.pt")
    only = {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    with_loss, with_model = json.loads(python("-c", USE, cwd=tmp_path, **only))

    leaf = z.clone().requires_grad_()
    loss = AttentioNCE(0.5, 2.0, 0.5)(leaf)
    loss.backward()
    computed = torch.load(tmp_path / "computed.pt", weights_only=True)
    expected = [loss.detach(), leaf.grad, model(images)[1].detach()]
    torch.testing.assert_close(computed, expected)

    assert not {"PIL", "torchvision"} & set(with_loss)
    clone = {path.stem for path in ROOT.glob("*.py")} | {"benchmark", "experiments"}
    assert not clone & set(with_model)
    others = {"attentionce.data", "attentionce.evaluation", "attentionce.cli"}
    assert not others & set(with_model)
