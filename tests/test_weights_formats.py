"""Weights in other clothes: every file that holds an encoder opens, and what it lacks is named."""

import random
import sys

import pytest
import torch
from conftest import ROOT
from helpers.samples import mutated

import hubconf
import linear
import main
from attentionce.errors import UserError
from experiments import plot
from model import Model, as_resnet, load_encoder, load_model

IMAGES = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    """A resnet10 whose BatchNorm has statistics of its own."""
    torch.manual_seed(0)
    model = Model(16, "resnet10")
    with torch.no_grad():
        model(torch.randn(8, 3, 8, 8))
    return model.eval()


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def same(f, model):
    """Whether the encoder `f` has the model's weights, to the bit."""
    wanted, found = model.f.state_dict(), f.state_dict()
    return list(wanted) == list(found) and all(torch.equal(found[k], wanted[k]) for k in wanted)


def refusal(path, function=load_encoder, **arguments):
    """The one printable line of the UserError that opening the file ends in."""
    with pytest.raises(UserError) as caught:
        function(path, **arguments)
    message = str(caught.value)
    assert message.isprintable() and str(path) in message and len(message) < 1000
    return message


# ------------------------------------------------------------------------------ what opens

NOTHING = None  # is passed over
COUNTS = {
    "total_ops": torch.zeros(1),
    "f.0.total_ops": torch.zeros(1),
    "total_params": torch.ones(1),
}
FC = {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}


def clothes(model):
    """By name: the content of a file, and what of it the printed line says was passed over."""
    own, f = model.state_dict(), prefixed("f.", model.f.state_dict())
    resnet = as_resnet(model.f, "resnet10").state_dict()
    beside = {"epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    lightning = {
        "epoch": 1,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {**prefixed("model.", own), "criterion.weight": torch.ones(2)},
        "hyper_parameters": {"lr": 1e-3, "names": ["a"]},
    }
    return {
        "the reference's": (prefixed("module.", own), NOTHING),
        "a model's": (own, NOTHING),
        "compiled": (prefixed("_orig_mod.", own), NOTHING),
        "no projection head": (prefixed("module.", f), NOTHING),
        "torchvision's names": (resnet, NOTHING),
        "torchvision's names with fc": ({**resnet, **FC}, "fc"),
        "thop's buffers": ({**own, **COUNTS}, "total_ops, total_params"),
        "numbers": ({**own, "epoch": 3}, "epoch"),
        "state_dict": ({"state_dict": own, **beside}, "epoch, optimizer"),
        "model": ({**beside, "model": prefixed("module.", f)}, "epoch, optimizer"),
        "net": ({"net": {**resnet, **FC}, "acc": 0.5}, "acc, fc"),
        "model_state_dict": ({"model_state_dict": own}, NOTHING),
        "wrapped twice": ({"model": {"state_dict": own, "arch": "x"}, "epoch": 1}, "epoch, arch"),
        "another model": ({"model": {"w": torch.ones(1)}, "net": own}, "model"),
        "Lightning's": (
            lightning,
            "epoch, pytorch-lightning_version, hyper_parameters, criterion",
        ),
        "a prefix": ({**prefixed("backbone.", resnet), "head.weight": torch.ones(1)}, "head"),
        "two encoders": (
            {**prefixed("momentum_model.", own), **prefixed("model.", own)},
            "momentum_model",
        ),
    }


@pytest.mark.parametrize("name", clothes(Model(16, "resnet10")))
def test_what_holds_an_encoder_opens(model, tmp_path, capsys, name):
    content, passed_over = clothes(model)[name]
    path = tmp_path / "w.pth"
    torch.save(content, path)
    f, arch = load_encoder(path)
    assert arch == "resnet10" and same(f, model)
    line = f"{path}: passed over {passed_over}\n" if passed_over else ""
    assert capsys.readouterr().out == line
    assert same(load_encoder(path, "resnet10")[0], model)


def test_the_line_is_short(model, tmp_path, capsys):
    others = {f"extra{i}\n": torch.zeros(1) for i in range(12)}
    torch.save({**model.state_dict(), **others}, tmp_path / "w.pth")
    load_encoder(tmp_path / "w.pth")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("extra6\\n, extra7\\n and 4 more")


def test_this_projects_own_files(tiny, call, results, tmp_path, capsys):
    """Weights, state, --export's safetensors and the hub encoder's state_dict hold one encoder."""
    call(main, *tiny, "--num_pos", 1)
    (weights,) = results.rglob("*.pth")
    (state,) = results.rglob("*.state")
    trained = load_model(weights)[0]
    call(linear, "--model_path", weights, "--export", tmp_path / "w.safetensors")
    resnet = hubconf.encoder(weights=str(weights))
    torch.save(resnet.state_dict(), tmp_path / "hub.pth")
    capsys.readouterr()
    for path in (state, tmp_path / "w.safetensors", tmp_path / "hub.pth"):
        assert same(load_encoder(path)[0], trained), path
    said = capsys.readouterr().out
    assert said.startswith(f"{state}: passed over flags, machine, optimizer, scaler")
    assert said.count("\n") == 1
    assert same(load_model(state)[0].f, trained)

    weights.rename(tmp_path / "moved.pth")
    assert f"there is no file {weights}, but {state} has" in refusal(weights)
    (tmp_path / "moved.pth").rename(weights)

    # the programs
    flags = [*tiny[:4], "--image_size", 8, "--batch_size", 8, "--epochs", 1, "--k", 5]
    exported = tmp_path / "again.safetensors"
    call(linear, "--model_path", state, "--export", exported)
    assert same(load_encoder(exported)[0], trained)
    call(linear, *flags, "--model_path", tmp_path / "w.safetensors", tmp_path / "hub.pth")
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert table[1].split()[:3] == table[2].split()[:3]
    words = ["neighbours", "map", "--model_path", "random", tmp_path / "w.safetensors"]
    call(plot, *words, "--out", tmp_path, *tiny[:4], "--store_size", 8)
    assert (tmp_path / "neighbours.png").exists() and (tmp_path / "map.png").exists()
    path = str(tmp_path / "w.safetensors")
    encoder = torch.hub.load(str(ROOT), "encoder", source="local", weights=path)
    assert torch.equal(encoder.eval()(IMAGES), resnet.eval()(IMAGES))


def test_a_home_folder(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert same(load_encoder("~/w.pth")[0], model)


# ------------------------------------------------------------------------------ what does not


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        ("", "layer2.0.conv1.weight"),
        ("", "conv1.weight"),
        ("backbone.", "backbone.bn1.running_var"),
        ("backbone.", "backbone.layer4.0.downsample.0.weight"),
    ],
)
def test_what_is_wrong_has_its_name_in_the_file(model, tmp_path, prefix, key):
    state = prefixed(prefix, as_resnet(model.f, "resnet10").state_dict())
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {k: value for k, value in state.items() if k != key}}, path)
    assert f"{key} is missing" in refusal(path)
    torch.save({"state_dict": {**state, key: torch.ones(5, 2)}}, path)
    wanted = tuple(state[key].shape)
    assert f"{key} has shape (5, 2) instead of {wanted}" in refusal(path)
    extra = f"{prefix}layer1.0.se.weight"
    torch.save({"state_dict": {**state, extra: torch.ones(1)}}, path)
    assert f"{extra!r} is not part of the model" in refusal(path)


def test_the_model_needs_its_projection_head(model, tmp_path):
    torch.save(as_resnet(model.f, "resnet10").state_dict(), tmp_path / "w.pth")
    assert "g.0.weight is missing" in refusal(tmp_path / "w.pth", load_model)
    broken = {**model.state_dict(), "g.3.weight": torch.ones(2, 2), "g.3.bias": 7}
    torch.save(broken, tmp_path / "w.pth")
    assert same(load_encoder(tmp_path / "w.pth")[0], model)
    assert "g.3.bias holds a int" in refusal(tmp_path / "w.pth", load_model)


def test_of_several_encoders_none_is_guessed(model, tmp_path):
    state = model.state_dict()
    torch.save({**prefixed("student.", state), **prefixed("teacher.", state)}, tmp_path / "w.pth")
    assert "several encoders, 'student.', 'teacher.'" in refusal(tmp_path / "w.pth")


class Command:
    """Pickled, this is a call."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return type(self.marker).touch, (self.marker,)


@pytest.mark.parametrize("place", ["beside", "inside", "as the state_dict"])
def test_nothing_that_could_run_is_opened(model, tmp_path, place):
    """Though the weights beside it would be good."""
    evil = Command(tmp_path / "marker")
    content = {
        "beside": {"state_dict": model.state_dict(), "hyper_parameters": evil},
        "inside": {"state_dict": {**model.state_dict(), "evil": evil}},
        "as the state_dict": {"state_dict": evil, "model": model.state_dict()},
    }[place]
    torch.save(content, tmp_path / "w.ckpt")
    assert "holds more than tensors" in refusal(tmp_path / "w.ckpt")
    assert not (tmp_path / "marker").exists()
    torch.load(tmp_path / "w.ckpt", weights_only=False)
    assert (tmp_path / "marker").exists()  # the file is what the test takes it for


@pytest.mark.parametrize(
    "page",
    ["<!DOCTYPE html><html>404", "\ufeff\n <HTML lang=en>", "<?xml version='1.0'?><Error/>"],
)
def test_a_web_page_is_called_one(tmp_path, page):
    for name in ("w.pth", "w.safetensors", "w.state"):
        (tmp_path / name).write_text(page, encoding="utf-8")
        assert "is a web page, not weights: download it again" in refusal(tmp_path / name)


def contains_itself(state):
    state["model"] = state
    return state


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"state_dict": {}},
        {"model": {"model": {"model": {"model": {"f.3.0.conv1.weight": torch.ones(1)}}}}},
        {3: torch.ones(1), None: 4, ("a", "b"): 5},
        contains_itself({"w": torch.ones(1)}),
        {"f": torch.ones(1), "g": 3, "f.3.": 1, "module": 2},
    ],
)
def test_no_encoder(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    assert "not of a known arch" in refusal(tmp_path / "w.pth")
    assert "is missing" in refusal(tmp_path / "w.pth", arch="resnet10")


# ------------------------------------------------------------------------------ safetensors


@pytest.fixture
def exported(model, tmp_path, call):
    torch.save(model.state_dict(), tmp_path / "w.pth")
    call(linear, "--model_path", tmp_path / "w.pth", "--export", tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_safetensors_needs_its_package(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "needs one more package: pip install safetensors" in refusal(exported)


def test_safetensors_by_their_content(exported, model):
    other = exported.rename(exported.with_name("weights"))
    assert same(load_encoder(other)[0], model)


def test_damaged_safetensors(exported, tmp_path):
    """Each ends in one line, or in an encoder; most of the damage is done to the header."""
    content, draw, refused = exported.read_bytes(), random.Random(0), 0
    length = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / "damaged"
    path.write_bytes(content[:-1])
    assert "truncated, damaged" in refusal(path)
    for _ in range(60):
        path.write_bytes(mutated(content[:length], draw) + content[length:])
        try:
            load_encoder(path)
        except UserError as error:
            assert str(error).isprintable() and str(path) in str(error)
            refused += 1
    assert 40 < refused
