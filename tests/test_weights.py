"""Every file that holds an encoder opens, runs nothing, and what does not fit is named."""

import re
import sys

import pytest
import torch
from helpers.outputs import last, same_bits
from helpers.weights import refusal
from torch import nn

import main
from model import Model, as_resnet, load_encoder, load_model

torch.manual_seed(0)
MODEL = Model(16, "resnet10")
with torch.no_grad():
    MODEL(torch.randn(8, 3, 8, 8))  # so that BatchNorm has statistics of its own
STATE = MODEL.state_dict()
RESNET = as_resnet(MODEL.f, "resnet10").state_dict()
CHILDREN = nn.Sequential(*as_resnet(MODEL.f, "resnet10").children()).state_dict()
OTHER = {key: value + 1 for key, value in RESNET.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.pth"


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def same(f, model=MODEL):
    """Whether the encoder `f` has the model's weights, to the bit."""
    return same_bits(dict(f.state_dict()), dict(model.f.state_dict()))


# ---- what opens ----

F = prefixed("f.", MODEL.f.state_dict())
FC = {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
COUNTS = dict.fromkeys(("total_ops", "f.0.total_ops", "total_params"), torch.zeros(1))
BESIDE = {"epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
LIGHTNING = {
    "epoch": 1,
    "pytorch-lightning_version": "2.6.6",
    "state_dict": {**prefixed("model.", STATE), "criterion.weight": torch.ones(2)},
    "hyper_parameters": {"lr": 1e-3, "names": ["a"]},
}
# By name: the content of a file, and what of it the printed line says was passed over.
CONTENTS = {
    "the reference's": (prefixed("module.", STATE), ""),
    "a model's": (STATE, ""),
    "compiled": (prefixed("_orig_mod.module.", STATE), ""),
    "no projection head": (prefixed("module.", F), ""),
    "torchvision's names": ({**RESNET, **FC}, "fc"),
    "thop's buffers": ({**STATE, **COUNTS, "epoch": 3}, "total_ops, total_params, epoch"),
    "state_dict": ({"state_dict": STATE, **BESIDE}, "epoch, optimizer"),
    "net": ({"net": {**RESNET, **FC}, "acc": 0.5}, "acc, fc"),
    "wrapped twice": ({"model": {"model_state_dict": STATE}, "epoch": 1}, "epoch"),
    "another model": ({"model": {"w": torch.ones(1)}, "net": STATE}, "model"),
    "Lightning's": (LIGHTNING, "epoch, pytorch-lightning_version, hyper_parameters, criterion"),
    "a prefix": ({**prefixed("backbone.", RESNET), "head.weight": torch.ones(1)}, "head"),
    "a ResNet's children": (CHILDREN, ""),
    "a ResNet's children, prefixed": ({**prefixed("backbone.", CHILDREN), "head": 1}, "head"),
    "MoCo's": (
        {**prefixed("module.encoder_k.", OTHER), **prefixed("module.encoder_q.", RESNET)},
        "encoder_k",
    ),
    "a momentum encoder": (
        {**prefixed("backbone.", RESNET), **prefixed("momentum_backbone.", OTHER)},
        "momentum_backbone",
    ),
    "many": (
        {**STATE, **{f"extra{i}\n": torch.zeros(1) for i in range(12)}},
        ", ".join(f"extra{i}\\n" for i in range(8)) + " and 4 more",
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_holds_an_encoder_opens(path, capsys, name):
    content, passed_over = CONTENTS[name]
    torch.save(content, path)
    f, arch = load_encoder(path)
    assert arch == "resnet10" and same(f)
    line = f"{path}: passed over {passed_over}\n" if passed_over else ""
    assert capsys.readouterr().out == line


def test_arch_and_projection_are_read_off_the_weights(path):
    model = Model(300, "resnet18")
    torch.save(model.state_dict(), path)
    found, arch = load_model(path)
    assert arch == "resnet18" and same_bits(dict(found.state_dict()), dict(model.state_dict()))


def test_weights_and_state_of_a_run(tiny, call, results, tmp_path, capsys, monkeypatch):
    call(main, *tiny, "--num_pos", 1)
    weights, state = last(results, ".pth"), last(results, ".state")
    trained = load_model(weights)[0]
    capsys.readouterr()
    assert same(load_encoder(state)[0], trained)
    said = capsys.readouterr().out
    assert said.startswith(f"{state}: passed over flags, machine, optimizer, scaler")
    weights.rename(tmp_path / "moved.pth")
    assert f"{weights} does not exist, but {state} has" in refusal(load_encoder, weights)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same(load_encoder("~/moved.pth")[0], trained)


@pytest.mark.parametrize("content", [STATE, RESNET], ids=["a model", "an encoder"])
def test_pretraining_starts_from_weights(call, refused, tiny, results, path, capsys, content):
    """A projection head of another kind stays untrained; a run without --init is another one."""
    flags = [*tiny, "--num_pos", 1, "--feature_dim", 16, "--lr", 1e-30, "--seed", 1]
    torch.save({**STATE, "g.0.weight": torch.full((512, 512), torch.nan)}, path)
    assert "g.0.weight has values that are not" in refused(main, *flags, "--init", path)
    torch.save(content, path)
    assert "does not fit this --arch" in refused(main, *flags, "--init", path, "--arch=resnet18")
    assert call(main, *flags, "--init", path) == 0
    head = "and projection head" if content is STATE else "; the projection head is untrained"
    assert re.search(f"starting from {path}: encoder *{head}\n", capsys.readouterr().out)
    trained = load_model(last(results, ".pth"))[0]
    assert torch.equal(trained.f[6][0].conv2.weight, STATE["f.6.0.conv2.weight"])
    assert torch.equal(trained.g[0].weight, STATE["g.0.weight"]) == (content is STATE)
    assert f"--init random (there: {path})" in refused(main, *flags)


# ---- what does not fit ----


@pytest.mark.parametrize(
    "prefix, state, key",
    [("", STATE, "g.1.bias"), ("backbone.", CHILDREN, "1.running_var")],
)
def test_what_is_wrong_has_its_name_in_the_file(path, prefix, state, key):
    load = load_model if state is STATE else load_encoder
    good, state, key = state[key], prefixed(prefix, state), prefix + key
    torch.save({"state_dict": {k: value for k, value in state.items() if k != key}}, path)
    assert f"{key} is missing" in refusal(load, path)
    for value, why in (
        (torch.ones(5, 2), f"has shape (5, 2) instead of {tuple(good.shape)}"),
        (torch.full_like(good, torch.nan), "has values that are not finite"),
        ([torch.zeros(1)], "holds a list, not a tensor"),
    ):
        torch.save({"state_dict": {**state, key: value}}, path)
        assert f"{key} {why}" in refusal(load, path)


@pytest.mark.parametrize(
    "state, key, why",
    [
        (STATE, "f.8.weight", "'f.8.weight' is not part of the model"),
        (STATE, "f.other.weight", "'f.other.weight' is not part of the model"),
        (RESNET, "layer1.0.se.weight", "'layer1.0.se.weight' is not part of the model"),
        (STATE, "module.f.0.weight", "f.0.weight twice"),
    ],
)
def test_a_key_too_many_is_named(path, state, key, why):
    torch.save({**state, key: torch.zeros(1)}, path)
    assert why in refusal(load_model if state is STATE else load_encoder, path)


def test_counters_of_batches_may_be_missing(path):
    torch.save({key: value for key, value in STATE.items() if "num_batches" not in key}, path)
    assert torch.equal(load_encoder(path)[0][1].running_var, MODEL.f[1].running_var)


def test_another_arch_and_another_stem_are_named(path):
    torch.save(STATE, path)
    message = refusal(load_model, path, "resnet18")
    assert "does not fit resnet18: f.3.1.conv1.weight is missing" in message and "more" in message
    assert "has stem small, not imagenet" in refusal(load_encoder, path, None, "imagenet")


def test_the_model_needs_its_projection_head(path):
    torch.save({**STATE, "g.3.bias": 7}, path)
    assert same(load_encoder(path)[0])
    assert "g.3.bias holds a int" in refusal(load_model, path)
    torch.save(RESNET, path)
    assert "g.0.weight is missing" in refusal(load_model, path)


def test_of_several_encoders_none_is_guessed(path):
    torch.save({**prefixed("student.", STATE), **prefixed("teacher.", STATE)}, path)
    assert "several encoders, 'student.f.', 'teacher.f.'" in refusal(load_encoder, path)


HOSTILE: dict = {"f": torch.ones(1), 3: 3, ("f.3.", None): 1, "module": 2}
HOSTILE["model"] = HOSTILE


@pytest.mark.parametrize("content", [{}, {"conv1.weight": torch.zeros(64, 3, 7, 7)}, HOSTILE])
def test_no_encoder(path, content):
    torch.save(content, path)
    assert "not of a known arch" in refusal(load_encoder, path)
    assert "is missing" in refusal(load_encoder, path, "resnet10")


# ---- what could do harm ----


def test_a_tensor_that_claims_more_than_its_storage(path):
    """One number in the file, seen as 10¹²: it must not be given a projection of that size."""
    torch.save({**STATE, "g.3.bias": torch.zeros(1).expand(10**12)}, path)
    assert "g.3" in refusal(load_model, path)


def test_damaged_safetensors(tmp_path, monkeypatch):
    from safetensors.torch import save

    path, content = tmp_path / "weights", save(RESNET)  # known by their content, not their name
    path.write_bytes(content)
    assert same(load_encoder(path)[0])
    for damaged in (content[:-1], content[:9] + content[10:]):
        path.write_bytes(damaged)
        assert "truncated, damaged" in refusal(load_encoder, path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    path.write_bytes(content)
    assert "needs one more package: pip install safetensors" in refusal(load_encoder, path)
