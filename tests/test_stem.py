"""The encoder's first layers: small as in the paper, or torchvision's own."""

import pytest
import torch
import torchvision
from conftest import ROOT

import hubconf
import linear
import main
from attentionce.errors import UserError
from attentionce.runs import files
from model import STEMS, Model, as_resnet, cost, load_encoder, load_model, stem_of


def torchvisions(name):
    """torchvision's own ResNet with statistics of its own, in eval mode, and its features."""
    torch.manual_seed(0)
    resnet = getattr(torchvision.models, name)()
    with torch.no_grad():
        resnet(torch.randn(2, 3, 64, 64))
    return resnet.eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [96, 224])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_imagenet_stem_is_torchvisions(tmp_path, name, size):
    resnet = torchvisions(name)
    torch.save(resnet.state_dict(), tmp_path / "w.pth")
    f, arch = load_encoder(tmp_path / "w.pth")
    f.eval()
    assert arch == name and stem_of(f[0].weight) == "imagenet"
    images = torch.randn(2, 3, size, size)
    with_fc, resnet.fc = resnet.fc, torch.nn.Identity()
    expected = resnet(images)
    assert torch.equal(f(images).flatten(1), expected)
    again = as_resnet(f, arch).eval()
    assert torch.equal(again(images), expected)
    resnet.fc = with_fc
    assert again.state_dict().keys() | {"fc.weight", "fc.bias"} == resnet.state_dict().keys()
    assert [str(again.maxpool), str(again.relu)] == [str(resnet.maxpool), str(resnet.relu)]


def test_stems_have_the_same_keys():
    """So that f.3 is layer1 in both."""
    small, imagenet = (Model(8, "resnet10", stem).state_dict() for stem in STEMS)
    assert list(small) == list(imagenet)
    differing = [key for key in small if small[key].shape != imagenet[key].shape]
    assert differing == ["f.0.weight"]


@pytest.mark.parametrize("stem", STEMS)
def test_the_stem_is_read_off_the_weights(tmp_path, capsys, stem, call):
    torch.manual_seed(0)
    model = Model(8, "resnet10", stem).eval()
    files.save(
        tmp_path / "w.pth", {f"module.{key}": value for key, value in model.state_dict().items()}
    )
    opened = load_model(tmp_path / "w.pth")[0].eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        for one, other in zip(opened(images), model(images), strict=True):
            assert torch.equal(one, other)
    weights = str(tmp_path / "w.pth")
    assert hubconf.encoder(weights, stem=stem).conv1.weight.shape == model.f[0].weight.shape
    other = next(name for name in STEMS if name != stem)
    with pytest.raises(ValueError, match=f"has stem {stem}, not {other}"):
        hubconf.encoder(weights, stem=other)
    with pytest.raises(UserError, match=f"has stem {stem}, not {other}"):
        call(
            linear, "--model_path", weights, "--stem", other, "--export", tmp_path / "x.safetensors"
        )
    call(linear, "--model_path", weights, "--export", tmp_path / "w.safetensors")
    assert f"resnet10, {STEMS[stem]}, no fc" in capsys.readouterr().out
    exported = load_encoder(tmp_path / "w.safetensors")[0].eval()
    with torch.no_grad():
        assert torch.equal(exported(images), model.f(images))


def test_an_untrained_imagenet_encoder_is_torchvisions():
    torch.manual_seed(0)
    resnet = hubconf.encoder(arch="resnet18", stem="imagenet")
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18()
    assert torch.equal(resnet.conv1.weight, theirs.conv1.weight)
    assert str(resnet.maxpool) == str(theirs.maxpool)
    with pytest.raises(ValueError, match="stem 'large' is not one of small, imagenet"):
        Model(8, "resnet10", "large")


@pytest.mark.parametrize("size", [96, 224])
def test_the_imagenet_stem_costs_a_sixteenth_of_the_small_one(size):
    """All but its own convolution sees a quarter of the side."""
    small, imagenet = (cost(Model(8, "resnet10", stem), size) for stem in STEMS)
    assert imagenet[0] - small[0] == 64 * 3 * (7 * 7 - 3 * 3)
    own = [64 * 3 * kernel**2 * side**2 for kernel, side in ((3, size), (7, size // 2))]
    assert (imagenet[1] - own[1]) / (small[1] - own[0]) == pytest.approx(1 / 16, rel=0.01)


@pytest.mark.parametrize("stem", STEMS)
def test_main_trains_it(call, tiny, results, capsys, stem):
    """It says the cost at the views' size, and its weights say which stem it is."""
    flags = [*tiny, "--loss", "simclr", "--image_size", 16, "--stem", stem]
    assert call(main, *flags) == 0
    parameters, macs = cost(Model(128, "resnet10", stem), 16)
    expected = f"resnet10: {parameters / 1e6:.2f} M parameters, {macs / 1e9:.2f} G multiply-adds"
    assert f"{expected} per view of 16 px" in capsys.readouterr().out
    (path,) = results.rglob("*.pth")
    assert stem_of(load_encoder(path)[0][0].weight) == stem


def test_pictures_for_tensorboard_take_the_stem(call, tiny, results):
    pytest.importorskip("tensorboard")
    call(main, *tiny, "--image_size", 16, "--stem", "imagenet", "--num_pos", 1, "--tensorboard")
    assert list(results.rglob("events.*"))


def test_the_costs_in_the_documentation():
    costs = {}
    for stem in STEMS:
        costs[stem] = cost(Model(128, "resnet50", stem), 224)[1] / 1e9
    text = " ".join((ROOT / "docs" / "flags.md").read_text().split())
    assert (
        f"At 224 px a resnet50 costs {costs['imagenet']:.1f} G multiply-adds per view, with "
        f"`--stem small` {costs['small']:.1f} G." in text
    )
