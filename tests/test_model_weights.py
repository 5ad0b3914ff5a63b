"""Weights open in a model that fits them; what does not fit is named."""

import os

import pytest
import torch
from helpers.outputs import same_bits
from helpers.weights import refusal

from attentionce.runs import files
from model import Model, load_model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.pth"


@pytest.fixture(scope="module")
def state():
    """The weights of a resnet10 with a projection of 24."""
    return Model(24, "resnet10").state_dict()


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes(path, state, prefix):
    files.save(path, {prefix + key: value for key, value in state.items()})
    model, arch = load_model(path)
    assert arch == "resnet10"
    assert list(model.state_dict()) == list(state)
    assert same_bits(model.state_dict(), state)


@pytest.mark.parametrize("dim", [1, 24, 300])
def test_the_projection_is_as_large_as_the_weights_say(path, dim):
    files.save(path, Model(dim, "resnet10").state_dict())
    model, _ = load_model(path)
    assert model(torch.zeros(2, 3, 8, 8))[1].shape == (2, dim)


@pytest.mark.parametrize("arch", ["resnet18", "resnet34"])
def test_the_arch_is_read_off_the_weights(path, arch):
    files.save(path, Model(8, arch).state_dict())
    assert load_model(path)[1] == arch


@pytest.mark.parametrize(
    "key",
    ["f.0.weight", "f.1.num_batches_tracked", "g.3.bias", "g.1.running_var", "f.6.0.conv2.weight"],
)
def test_a_missing_key_is_named(path, state, key):
    files.save(path, {k: value for k, value in state.items() if k != key})
    assert f"{key} is missing" in refusal(load_model, path)


@pytest.mark.parametrize("key", ["f.8.weight", "f.3.0.conv3.bias", "g.4.weight", "g.0.bias"])
def test_a_key_too_many_is_named(path, state, key):
    files.save(path, {**state, f"module.{key}": torch.zeros(1)})
    assert f"{key!r} is not part of the model" in refusal(load_model, path)


def test_a_key_that_is_there_twice_is_named(path, state):
    files.save(path, {**state, "module.f.0.weight": torch.zeros(64, 3, 3, 3)})
    assert "f.0.weight twice" in refusal(load_model, path)


@pytest.mark.parametrize(
    "key", ["f.0.weight", "f.1.running_mean", "g.0.weight", "g.3.weight", "f.1.num_batches_tracked"]
)
def test_another_shape_is_named(path, state, key):
    files.save(path, {**state, key: torch.zeros(5, 2)})
    message = refusal(load_model, path)
    assert f"{key} has shape (5, 2) instead of {tuple(state[key].shape)}" in message


def test_another_arch_is_named(path, state):
    files.save(path, state)
    message = refusal(load_model, path, "resnet18")
    assert "resnet18" in message and "f.3.1.conv1.weight is missing" in message
    assert "more" in message
    refusal(load_model, path, "resnet50")
    assert load_model(path, "resnet10")[1] == "resnet10"


def test_weights_of_another_program(path):
    files.save(path, {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)})
    assert "not of a known arch" in refusal(load_model, path)
    files.save(path, {})
    assert "not of a known arch" in refusal(load_model, path)


@pytest.mark.parametrize("value", [3.5, None, {"weight": torch.zeros(1)}, [torch.zeros(1)], "text"])
def test_values_that_are_not_tensors_are_named(path, state, value):
    files.save(path, {**state, "f.1.bias": value})
    assert f"f.1.bias holds a {type(value).__name__}, not a tensor" in refusal(load_model, path)


def test_a_failed_load_makes_no_file(path):
    path.write_bytes(b"no zip")
    refusal(load_model, path)
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == b"no zip"


def test_a_tensor_that_claims_more_than_its_storage(path, state):
    """One number in the file, seen as 10¹²: it must not be given a projection of that size."""
    huge = {
        **state,
        "g.3.bias": torch.zeros(1).expand(10**12),
        "g.3.weight": torch.zeros(1, 1).expand(10**12, 512),
    }
    torch.save(huge, path)
    assert "g.3" in refusal(load_model, path)
