"""The encoder against the facts of the reference, and its two stems against torchvision's."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import ROOT
from helpers.device import DEVICE
from helpers.outputs import last, same_bits
from torch import nn

import hubconf
import main
from model import ARCHS, STEMS, Model, as_resnet, cost, load_encoder, stem_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "checkpoint_keys.json").read_text())


def test_resnet50_has_the_keys_and_shapes_of_the_reference_in_their_order():
    with torch.device("meta"):
        state = Model(128, "resnet50").state_dict()
    shapes = {f"module.{key}": list(value.shape) for key, value in state.items()}
    assert list(shapes.items()) == list(GOLDEN.items())


def test_counts_are_those_of_the_reference(monkeypatch):
    """Without thop the parameters alone. The model stays as it was."""
    model = Model(128, "resnet50")
    before = copy.deepcopy(model.state_dict())
    parameters, macs = cost(model)
    assert (round(parameters / 1e6, 2), round(macs / 1e9, 2)) == (24.62, 1.31)
    assert cost(model, 8)[0] == parameters and cost(model, 8)[1] < macs / 10
    assert same_bits(model.state_dict(), before)  # thop adds total_ops
    assert model.training and not any(module._forward_hooks for module in model.modules())
    monkeypatch.setitem(sys.modules, "thop", None)
    assert cost(model) == (parameters, None)


@pytest.mark.parametrize("arch", ARCHS)
def test_outputs(arch):
    model = Model(24, arch).eval().to(DEVICE)
    images = torch.randn(3, 3, 9, 13, generator=torch.manual_seed(0)).to(DEVICE)
    with torch.no_grad():
        feature, projection = model(images)
        assert model.f[:3](images).shape == (3, 64, 9, 13)  # the small stem shrinks nothing
    assert feature.shape == (3, 2048 if arch == "resnet50" else 512)
    assert projection.shape == (3, 24)
    for vectors in (feature, projection):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3, device=DEVICE))


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match="resnet11.*resnet10"):
        Model(8, "resnet11")
    with pytest.raises(ValueError, match="stem 'large' is not one of small, imagenet"):
        Model(8, "resnet10", "large")


# ---- the imagenet stem ----


@torch.no_grad()
def test_the_imagenet_stem_is_torchvisions(tmp_path):
    """Its weights open, compute the same bits, and go back to torchvision's names."""
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18()
    torch.manual_seed(0)
    assert same_bits(
        hubconf.encoder(arch="resnet18", stem="imagenet").conv1.weight, resnet.conv1.weight
    )
    images = torch.randn(2, 3, 96, 96)
    resnet(images)  # so that it has statistics
    torch.save(resnet.eval().state_dict(), tmp_path / "w.pth")
    f, arch = load_encoder(tmp_path / "w.pth")
    f.eval()
    assert arch == "resnet18" and stem_of(f[0].weight) == "imagenet"
    again = as_resnet(f, arch).eval()
    assert again.state_dict().keys() | {"fc.weight", "fc.bias"} == resnet.state_dict().keys()
    assert [str(again.maxpool), str(again.relu)] == [str(resnet.maxpool), str(resnet.relu)]
    resnet.fc = nn.Identity()
    expected = resnet(images)
    assert torch.equal(f(images).flatten(1), expected) and torch.equal(again(images), expected)


def test_stems_differ_in_the_first_convolution_alone():
    """So f.3 is layer1 in both."""
    with torch.device("meta"):
        small, imagenet = (Model(8, "resnet10", stem).state_dict() for stem in STEMS)
    assert list(small) == list(imagenet)
    differing = [key for key in small if small[key].shape != imagenet[key].shape]
    assert differing == ["f.0.weight"]


def test_main_trains_the_imagenet_stem(call, tiny, results, capsys):
    """It says the cost at the views' size; TensorBoard's pictures take the stem too."""
    flags = ["--image_size", 32, "--stem", "imagenet", "--num_pos", 1, "--tensorboard"]
    assert call(main, *tiny, *flags) == 0
    parameters, macs = cost(Model(128, "resnet10", "imagenet"), 32)
    expected = f"resnet10: {parameters / 1e6:.2f} M parameters, {macs / 1e9:.2f} G multiply-adds"
    assert f"{expected} per view of 32 px" in capsys.readouterr().out
    assert stem_of(load_encoder(last(results, ".pth"))[0][0].weight) == "imagenet"
    assert list(results.rglob("events.*"))


def test_the_costs_in_the_documentation():
    small, imagenet = (cost(Model(128, "resnet50", stem), 224)[1] / 1e9 for stem in STEMS)
    text = " ".join((ROOT / "docs" / "flags.md").read_text().split())
    words = f"a resnet50 costs {imagenet:.1f} G multiply-adds per view, with `--stem small` "
    assert f"At 224 px {words}{small:.1f} G." in text
