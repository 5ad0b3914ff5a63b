"""Every file that holds an encoder opens, runs nothing, and what does not fit is named."""

import os
import random
import sys

import pytest
import torch
from helpers.outputs import last, same_bits
from helpers.samples import mutated
from helpers.weights import refusal

import hubconf
import linear
import main
from attentionce.errors import UserError
from model import Model, as_resnet, load_encoder, load_model

torch.manual_seed(0)
MODEL = Model(16, "resnet10")
with torch.no_grad():
    MODEL(torch.randn(8, 3, 8, 8))  # so that BatchNorm has statistics
STATE = MODEL.state_dict()
RESNET = as_resnet(MODEL.f, "resnet10").state_dict()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.pth"


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def same(f, model=MODEL):
    """Whether the encoder `f` has the model's weights, to the bit and in their order."""
    wanted, found = model.f.state_dict(), f.state_dict()
    return list(wanted) == list(found) and same_bits(dict(found), dict(wanted))


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
    "torchvision's names": (RESNET, ""),
    "torchvision's names with fc": ({**RESNET, **FC}, "fc"),
    "thop's buffers": ({**STATE, **COUNTS}, "total_ops, total_params"),
    "numbers": ({**STATE, "epoch": 3}, "epoch"),
    "state_dict": ({"state_dict": STATE, **BESIDE}, "epoch, optimizer"),
    "model": ({**BESIDE, "model": prefixed("module.", F)}, "epoch, optimizer"),
    "net": ({"net": {**RESNET, **FC}, "acc": 0.5}, "acc, fc"),
    "model_state_dict": ({"model_state_dict": STATE}, ""),
    "wrapped twice": ({"model": {"state_dict": STATE, "arch": "x"}, "epoch": 1}, "epoch, arch"),
    "another model": ({"model": {"w": torch.ones(1)}, "net": STATE}, "model"),
    "Lightning's": (LIGHTNING, "epoch, pytorch-lightning_version, hyper_parameters, criterion"),
    "a prefix": ({**prefixed("backbone.", RESNET), "head.weight": torch.ones(1)}, "head"),
    "two encoders": (
        {**prefixed("momentum_model.", STATE), **prefixed("model.", STATE)},
        "momentum_model",
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
    assert same(load_encoder(path, "resnet10")[0])


def test_arch_and_projection_are_read_off_the_weights(path):
    model = Model(300, "resnet18")
    torch.save(model.state_dict(), path)
    found, arch = load_model(path)
    assert arch == "resnet18" and same_bits(dict(found.state_dict()), dict(model.state_dict()))


def test_this_projects_own_files(tiny, call, results, tmp_path, capsys, monkeypatch):
    """Weights, state, --export's safetensors and the hub encoder's state_dict hold one encoder."""
    call(main, *tiny, "--num_pos", 1)
    weights, state = last(results, ".pth"), last(results, ".state")
    trained = load_model(weights)[0]
    exported, hub = tmp_path / "w.safetensors", tmp_path / "hub.pth"
    call(linear, "--model_path", state, "--export", exported)
    torch.save(hubconf.encoder(weights=str(weights)).state_dict(), hub)
    capsys.readouterr()
    assert all(same(load_encoder(path)[0], trained) for path in (state, exported, hub))
    said = capsys.readouterr().out
    assert said.startswith(f"{state}: passed over flags, machine, optimizer, scaler")
    assert said.count("\n") == 1
    weights.rename(tmp_path / "moved.pth")
    assert f"there is no file {weights}, but {state} has" in refusal(load_encoder, weights)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same(load_encoder("~/moved.pth")[0], trained)


# ---- what does not fit ----


@pytest.mark.parametrize(
    "prefix, state, key",
    [
        ("", STATE, "f.0.weight"),
        ("", STATE, "f.1.num_batches_tracked"),
        ("", STATE, "g.1.bias"),
        ("", RESNET, "layer2.0.conv1.weight"),
        ("backbone.", RESNET, "bn1.running_var"),
    ],
)
def test_what_is_wrong_has_its_name_in_the_file(path, prefix, state, key):
    load = load_model if state is STATE else load_encoder
    shape, state, key = tuple(state[key].shape), prefixed(prefix, state), prefix + key
    torch.save({"state_dict": {k: value for k, value in state.items() if k != key}}, path)
    assert f"{key} is missing" in refusal(load, path)
    torch.save({"state_dict": {**state, key: torch.ones(5, 2)}}, path)
    assert f"{key} has shape (5, 2) instead of {shape}" in refusal(load, path)
    for value in (3.5, None, {"weight": torch.zeros(1)}, [torch.zeros(1)], "text"):
        torch.save({**state, key: value}, path)
        assert f"{key} holds a {type(value).__name__}, not a tensor" in refusal(load, path)


def contains_itself(state):
    state["model"] = state
    return state


NO_ARCH = "not of a known arch"


@pytest.mark.parametrize(
    "load, content, arguments, message",
    [
        (load_model, {**STATE, "f.8.weight": STATE["g.3.bias"]}, (), "'f.8.weight' is not part of"),
        (load_model, {**STATE, "g.4.weight": STATE["g.3.bias"]}, (), "'g.4.weight' is not part of"),
        (load_encoder, {**RESNET, "layer1.0.se": 3}, (), "'layer1.0.se' is not part of the model"),
        (load_model, {**STATE, "module.g.3.bias": 3}, (), "g.3.bias twice"),
        (load_model, STATE, ("resnet18",), "fit resnet18: f.3.1.conv1.weight is missing"),
        (load_model, STATE, ("resnet18",), " more"),
        (load_model, STATE, ("resnet50",), "f.3.0.conv3.weight is missing"),
        (load_encoder, STATE, (None, "imagenet"), "has stem small, not imagenet"),
        (load_model, RESNET, (), "g.0.weight is missing"),
        (
            load_encoder,
            {**prefixed("student.", STATE), **prefixed("teacher.", STATE)},
            (),
            "several encoders, 'student.', 'teacher.'",
        ),
        (load_encoder, {}, (), NO_ARCH),
        (load_encoder, {"conv1.weight": torch.zeros(64, 3, 7, 7), **FC}, (), NO_ARCH),
        (load_encoder, {"model": {"model": {"model": {"model": STATE}}}}, (), NO_ARCH),
        (load_encoder, {3: torch.ones(1), None: 4, ("a", "b"): 5}, (), NO_ARCH),
        (load_encoder, {"f": torch.ones(1), "g": 3, "f.3.": 1, "module": 2}, (), NO_ARCH),
        (load_encoder, contains_itself({"w": torch.ones(1)}), (), NO_ARCH),
        (load_encoder, contains_itself({"w": torch.ones(1)}), ("resnet10",), "is missing"),
    ],
)
def test_what_does_not_fit_is_named(path, load, content, arguments, message):
    torch.save(content, path)
    assert message in refusal(load, path, *arguments)


def test_an_encoder_does_not_need_the_projection_head(path):
    torch.save({**STATE, "g.3.weight": torch.ones(2, 2), "g.3.bias": 7}, path)
    assert same(load_encoder(path)[0])
    assert "g.3.bias holds a int" in refusal(load_model, path)


# ---- what could do harm ----


class Command:
    """Pickled, this is a call."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return type(self.marker).touch, (self.marker,)


@pytest.mark.parametrize("part", ["beside", "inside", "as the state_dict"])
def test_nothing_that_could_run_is_opened(path, tmp_path, part):
    """Though the weights beside it would be good."""
    evil = Command(tmp_path / "marker")
    content = {
        "beside": {"state_dict": STATE, "hyper_parameters": evil},
        "inside": {"state_dict": {**STATE, "evil": evil}},
        "as the state_dict": {"state_dict": evil, "model": STATE},
    }[part]
    torch.save(content, path)
    assert "holds more than tensors" in refusal(load_encoder, path)
    assert not (tmp_path / "marker").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "marker").exists()  # the file is what the test takes it for


def test_a_tensor_that_claims_more_than_its_storage(path):
    """One number in the file, seen as 10¹²: it must not be given a projection of that size."""
    huge = {"g.3.bias": torch.zeros(1).expand(10**12)}
    huge["g.3.weight"] = torch.zeros(1, 1).expand(10**12, 512)
    torch.save({**STATE, **huge}, path)
    assert "g.3" in refusal(load_model, path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.state"])
def test_a_web_page_is_called_one(tmp_path, name):
    for page in ("<!DOCTYPE html><html>404", "\ufeff\n <HTML lang=en>", "<?xml version='1.0'?>"):
        (tmp_path / name).write_text(page, encoding="utf-8")
        message = refusal(load_encoder, tmp_path / name)
        assert "is a web page, not weights: download it again" in message
    assert os.listdir(tmp_path) == [name]


def test_damaged_safetensors(tmp_path, monkeypatch):
    """Each ends in one line, or in an encoder; most of the damage is done to the header."""
    from safetensors.torch import save

    path, content = tmp_path / "weights", save(RESNET)  # known by their content, not their name
    path.write_bytes(content)
    assert same(load_encoder(path)[0])
    path.write_bytes(content[:-1])
    assert "truncated, damaged" in refusal(load_encoder, path)
    draw, refused = random.Random(0), 0
    length = 8 + int.from_bytes(content[:8], "little")
    for _ in range(60):
        path.write_bytes(mutated(content[:length], draw) + content[length:])
        try:
            load_encoder(path)
        except UserError as error:
            assert str(error).isprintable() and str(path) in str(error)
            refused += 1
    assert 40 < refused
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    path.write_bytes(content)
    assert "needs one more package: pip install safetensors" in refusal(load_encoder, path)
