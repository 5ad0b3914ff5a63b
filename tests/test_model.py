"""The encoder against the facts of the reference: keys, shapes, parameters and multiply-adds."""

import copy
import json
from pathlib import Path

import pytest
import torch
from helpers.device import DEVICE
from helpers.outputs import same_bits
from torch import nn

from model import ARCHS, Model, arch_of, as_resnet, cost

GOLDEN = json.loads((Path(__file__).parent / "golden" / "checkpoint_keys.json").read_text())


def test_resnet50_has_the_keys_and_shapes_of_the_reference_in_their_order():
    with torch.device("meta"):
        state = Model(128, "resnet50").state_dict()
    shapes = {f"module.{key}": list(value.shape) for key, value in state.items()}
    assert list(shapes.items()) == list(GOLDEN.items())


def test_projection_has_the_size_that_is_asked_for():
    with torch.device("meta"):
        state = Model(77, "resnet10").state_dict()
    assert state["g.3.weight"].shape == (77, 512) and state["g.3.bias"].shape == (77,)
    assert "g.0.bias" not in state  # BatchNorm follows


def test_counts_are_those_of_the_reference():
    model = Model(128, "resnet50")
    parameters, macs = cost(model)
    assert parameters == sum(p.numel() for p in model.parameters())
    assert (round(parameters / 1e6, 2), round(macs / 1e9, 2)) == (24.62, 1.31)
    parameters, macs = cost(nn.Sequential(model.f, nn.Flatten(), nn.Linear(2048, 10)))
    assert round(parameters / 1e6, 1) == 23.5
    assert macs / 1e9 == pytest.approx(1.30, rel=0.01)


def test_counting_leaves_the_model_as_it_was():
    model = Model(16, "resnet10")
    before = copy.deepcopy(model.state_dict())
    small, large = cost(model, 8), cost(model, 32)
    assert small[0] == large[0] and small[1] < large[1] / 10  # 16 times the pixels
    assert same_bits(model.state_dict(), before)  # thop adds total_ops
    assert model.training and not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("shape", [(8, 8), (9, 13)])
def test_outputs(arch, shape):
    model = Model(24, arch).eval().to(DEVICE)
    images = torch.randn(3, 3, *shape, generator=torch.manual_seed(0)).to(DEVICE)
    with torch.no_grad():
        feature, projection = model(images)
    assert feature.shape == (3, 2048 if arch == "resnet50" else 512)
    assert projection.shape == (3, 24)
    torch.testing.assert_close(feature.norm(dim=1), torch.ones(3, device=DEVICE))
    torch.testing.assert_close(projection.norm(dim=1), torch.ones(3, device=DEVICE))


def test_no_stage_before_the_first_shrinks_the_image():
    """No stride in the first convolution and no max-pool: 8×8 pixels reach the first stage."""
    stem = Model(8, "resnet10").f[:3]
    assert stem(torch.zeros(1, 3, 8, 8)).shape == (1, 64, 8, 8)


@pytest.mark.parametrize("arch", ["resnet10", "resnet50"])
def test_the_same_encoder_under_torchvisions_names(arch):
    model = Model(8, arch).eval()
    resnet = as_resnet(model.f, arch).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(resnet(x), model.f(x).flatten(1))
    names = {"conv1.weight", "layer1.0.conv1.weight", "layer4.0.bn2.running_var"}
    assert names <= resnet.state_dict().keys()


@pytest.mark.parametrize("arch", ARCHS)
def test_the_keys_say_which_arch_it_is(arch):
    with torch.device("meta"):
        assert arch_of(Model(8, arch).state_dict()) == arch


def test_unknown_archs_are_named():
    with pytest.raises(ValueError, match="resnet11.*resnet10"):
        Model(8, "resnet11")
    with torch.device("meta"):
        state = Model(8, "resnet18").state_dict()
    for wrong in ({}, {key: value for key, value in state.items() if not key.startswith("f.5.1")}):
        with pytest.raises(ValueError, match="not of a known arch"):
            arch_of(wrong)
