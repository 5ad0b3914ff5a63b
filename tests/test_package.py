"""The built package, from another folder, computes what the clone computes and needs little."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions

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

for name in ("fcntl", "grp", "pwd", "resource", "termios"):  # Windows has none of these
    sys.modules[name] = None
for module, name in ((os, "posix_fallocate"), (os, "fork"), (os, "getuid"), (signal, "SIGUSR1")):
    vars(module).pop(name, None)

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
with torch.no_grad():
    features, projections = model(given["images"])
torch.save([loss.detach(), z.grad, features, projections], "computed.pt")
print(json.dumps(modules))
"""


def python(*arguments, cwd, **variables):
    """Run Python in the folder `cwd`; what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def wheel_of(folder, made):
    """The wheel that hatchling builds of a project's folder, into the folder `made`."""
    python("-m", "hatchling", "build", "-t", "wheel", "-d", made, cwd=folder)
    (wheel,) = made.glob("*.whl")
    return wheel


def contents_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        return {name: archive.read(name) for name in names}


def test_wheel_and_source_hold_the_package_with_loss_and_model(tmp_path):
    expected = {str(path.relative_to(ROOT)): path for path in ROOT.glob("attentionce/**/*.py")}
    expected |= {f"attentionce/{name}": ROOT / name for name in ("loss.py", "model.py")}
    expected = {name: path.read_bytes() for name, path in expected.items()}
    assert contents_of(wheel_of(ROOT, tmp_path / "clone")) == expected
    python("-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (source,) = tmp_path.glob("attentionce-*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path)
    unpacked = tmp_path / source.name.removesuffix(".tar.gz")
    assert contents_of(wheel_of(unpacked, tmp_path / "source")) == expected


def test_installed_loss_and_encoder_compute_what_the_clone_computes(tmp_path):
    """Even without what only Unix has, and without PIL, data sets and programs.

    The encoder is torchvision's, which imports PIL and its own data sets by itself.
    """
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel_of(ROOT, tmp_path / "wheel")) as archive:
        archive.extractall(installed)  # as pip does with a package of Python alone
    (package,) = distributions(path=[str(installed)])
    assert (package.name, package.version) == ("attentionce", attentionce.__version__)
    assert package.metadata["License-Expression"] == "MIT"
    assert package.metadata["Requires-Python"] == ">=3.10"
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert sorted(package.requires) == sorted(line.split("#")[0].strip() for line in lines)

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
    with torch.no_grad():
        features, projections = model(images)
    computed = torch.load(tmp_path / "computed.pt", weights_only=True)
    torch.testing.assert_close(computed, [loss.detach(), leaf.grad, features, projections])

    assert not {"PIL", "torchvision"} & set(with_loss)
    clone = {path.stem for path in ROOT.glob("*.py")} | {"benchmark", "experiments"}
    assert not clone & set(with_model)
    others = {"attentionce.data", "attentionce.evaluation", "attentionce.cli", "skimage", "thop"}
    assert not others & set(with_model)
