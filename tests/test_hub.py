"""The encoder in other people's code: by torch.hub, and as safetensors for torchvision's ResNet."""

import sys
import types

import pytest
import torch
import torchvision
from conftest import ROOT
from torch import nn
from torchvision.models.resnet import BasicBlock

import linear
from attentionce.runs import files
from model import ARCHS, Model, load_encoder


def load(**arguments):
    return torch.hub.load(str(ROOT), "encoder", source="local", **arguments)


def torchvisions(arch):
    """torchvision's ResNet, with the three changes that small images need."""
    resnet = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])
    if arch != "resnet10":
        resnet = getattr(torchvision.models, arch)()
    resnet.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    resnet.maxpool, resnet.fc = nn.Identity(), nn.Identity()
    return resnet.eval()


@torch.no_grad()
@pytest.mark.parametrize("arch", ["resnet10", "resnet50"])
def test_hub_and_export_are_the_encoder_bit_for_bit(arch, tmp_path, call, capsys):
    from safetensors import safe_open
    from safetensors.torch import load_file

    model, images = Model(16, arch), torch.randn(4, 3, 12, 12)
    model(images)  # so that BatchNorm has statistics
    weights, exported = tmp_path / "w.pth", tmp_path / "w.safetensors"
    files.save(weights, {f"module.{key}": value for key, value in model.state_dict().items()})
    expected = model.eval().f(images).flatten(1)
    encoder = load(weights=str(weights))  # the arch is read off them
    assert type(encoder) is torchvision.models.ResNet and encoder.training
    assert torch.equal(encoder.eval()(images), expected)

    call(linear, "--model_path", weights, "--export", exported)
    assert f"{arch}, 3×3 stride-1 conv1" in capsys.readouterr().out
    resnet = torchvisions(arch)
    resnet.load_state_dict(load_file(exported), strict=True)
    assert torch.equal(resnet(images), expected)
    assert torch.equal(load_encoder(exported)[0].eval()(images).flatten(1), expected)
    with safe_open(exported, "pt") as file:
        facts = {"mean": "(0.4914, 0.4822, 0.4465)", "std": "(0.2023, 0.1994, 0.201)"}
        assert file.metadata() == {"format": "pt", "arch": arch, **facts}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pth", "w.safetensors"]


def test_without_weights_it_is_untrained():
    with torch.device("meta"):
        assert list(load().state_dict()) == list(torchvisions("resnet50").state_dict())
        for arch in ARCHS:
            assert list(load(arch=arch).state_dict()) == list(torchvisions(arch).state_dict())


def test_hub_leaves_the_callers_modules_alone(monkeypatch, encoder):
    names = [path.stem for path in ROOT.glob("*.py")]
    theirs = {name: types.ModuleType(name) for name in names}
    for name, module in theirs.items():
        monkeypatch.setitem(sys.modules, name, module)
    before = set(sys.modules)
    assert load(weights=str(encoder))(torch.zeros(2, 3, 8, 8)).shape == (2, 512)
    assert all(sys.modules[name] is module for name, module in theirs.items() if name != "hubconf")
    assert set(names) & set(sys.modules) <= before


def test_hub_refuses(encoder, monkeypatch):
    monkeypatch.chdir(encoder.parent)
    torch.save({"a": print}, "code.pth")
    for arguments, message in (
        ({"weights": "code.pth"}, "code.pth holds more than tensors"),
        ({"weights": "encoder.pth", "arch": "resnet18"}, "encoder.pth does not fit resnet18: f.3."),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            load(**arguments)


def test_export_refuses(refused, encoder, tmp_path, monkeypatch):
    words = "--export", tmp_path / "nowhere" / "w.safetensors", "--model_path", encoder
    assert "cannot write" in refused(linear, *words)
    assert "--export writes one encoder" in refused(linear, *words, "random")
    assert "has stem small, not imagenet" in refused(linear, *words, "--stem", "imagenet")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "pip install safetensors" in refused(linear, *words)
