"""kNN accuracy against scikit-learn and a loop; features, which leave the encoder alone."""

import math

import pytest
import torch
from helpers.device import DEVICE
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from attentionce.data import views
from attentionce.errors import UserError
from attentionce.evaluation import knn
from model import Model


def clusters(classes=9, bank=240, queries=90, dim=8):
    """Features with so much noise that weights and number of neighbours matter."""
    random = torch.manual_seed(1)
    centres = torch.randn(classes, dim, generator=random)
    labels = torch.randint(classes, (bank + queries,), generator=random)
    lengths = torch.rand(bank + queries, 1, generator=random) + 0.1  # must not matter
    x = lengths * (centres[labels] + 1.3 * torch.randn(bank + queries, dim, generator=random))
    x, labels = x.to(DEVICE), labels.to(DEVICE)
    return x[:bank], labels[:bank], x[bank:], labels[bank:], classes


def loop(bank, bank_labels, queries, labels, classes, k, temperature):
    """The definition, one query at a time, in float64."""
    bank, queries = bank.double().cpu(), queries.double().cpu()
    hits = [0, 0]
    for query, label in zip(queries, labels, strict=True):
        cosines = [float(query @ other / query.norm() / other.norm()) for other in bank]
        votes = [0.0] * classes
        for i in sorted(range(len(bank)), key=lambda i: -cosines[i])[:k]:
            votes[bank_labels[i]] += math.exp(cosines[i] / temperature)
        ranking = sorted(range(classes), key=lambda c: -votes[c])
        hits[0] += ranking[0] == int(label)
        hits[1] += int(label) in ranking[:5]
    return tuple(100 * hit / len(labels) for hit in hits)


@pytest.mark.parametrize(
    ("k", "temperature"), [(1, 0.5), (20, 0.07), (20, 5.0), (200, 0.1), (240, 0.5)]
)
def test_accuracy_follows_the_definition(k, temperature):
    data = clusters()
    top1, top5 = knn.knn(*data, k=k, temperature=temperature)
    expected = loop(*data, k, temperature)
    assert top1 == pytest.approx(expected[0], abs=1e-9)
    if k > 1:  # else only one class has votes, and the other four of the five are arbitrary
        assert top5 == pytest.approx(expected[1], abs=1e-9)
    assert 20 < top1 < top5 < 100


def test_the_test_data_tell_settings_apart():
    """Else the test above could pass with weights or k ignored."""
    data = clusters()
    settings = [(1, 0.5), (20, 0.07), (20, 5.0), (200, 0.1), (200, 5.0)]
    assert len({loop(*data, k, temperature) for k, temperature in settings}) == 5


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_accuracy_is_that_of_scikit_learn(temperature):
    bank, bank_labels, queries, labels, classes = clusters()

    def weights(distance):
        return torch.from_numpy((1 - distance) / temperature).exp().numpy()

    oracle = KNeighborsClassifier(30, weights=weights, metric="cosine")
    oracle.fit(bank.double().cpu(), bank_labels.cpu())
    votes = torch.from_numpy(oracle.predict_proba(queries.double().cpu()))
    hit = votes.argsort(1, descending=True)[:, :5] == labels[:, None].cpu()
    expected = 100 * hit[:, 0].double().mean().item(), 100 * hit.any(1).double().mean().item()
    found = knn.knn(bank, bank_labels, queries, labels, classes, k=30, temperature=temperature)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("block", [1, 7 * 240, 7 * 240 + 239, 90 * 240])
def test_blocks_equal_the_whole(monkeypatch, block):
    data = clusters()
    whole = knn.knn(*data, k=20, temperature=0.1)
    largest = 0
    topk = torch.Tensor.topk

    def watched(self, *args, **options):
        nonlocal largest
        largest = max(largest, self.numel())
        return topk(self, *args, **options)

    monkeypatch.setattr(knn, "BLOCK", block)
    monkeypatch.setattr(torch.Tensor, "topk", watched)
    assert knn.knn(*data, k=20, temperature=0.1) == whole
    assert largest <= max(block, 240)


def test_few_classes_and_small_temperatures():
    bank, bank_labels, queries, labels, _ = clusters(classes=3)
    assert knn.knn(bank, bank_labels, queries, labels, 3, k=20)[1] == 100
    nearest = knn.knn(bank, bank_labels, queries, labels, 3, k=1)[0]
    top1, _ = knn.knn(bank, bank_labels, queries, labels, 3, k=20, temperature=1e-4)
    assert top1 == nearest  # although exp(1e4) overflows


def test_k_is_clamped_and_says_so(capsys):
    assert knn.clamp_k(10, 10) == 10
    assert capsys.readouterr().out == ""
    assert knn.clamp_k(200, 24) == 24
    said = capsys.readouterr().out
    assert "--k 200" in said
    assert "24" in said
    with pytest.raises(UserError, match="--k"):
        knn.clamp_k(0, 10)


@pytest.mark.parametrize("training", [True, False])
def test_features_leave_the_encoder_alone(training):
    f = Model(8, "resnet10").f.to(DEVICE).train(training)
    f(torch.randn(4, 3, 8, 8, device=DEVICE))  # statistics that differ from a batch's own
    before = {key: value.clone() for key, value in f.state_dict().items()}
    pixels = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
    whole = knn.features(f, pixels, DEVICE, torch.float32)
    assert all(module.training == training for module in f.modules())
    assert all(torch.equal(before[key], value) for key, value in f.state_dict().items())
    assert whole.shape == (10, 512)
    assert whole.dtype == torch.float32
    assert not whole.requires_grad
    with torch.no_grad():  # no crop, no resize, running statistics
        expected = f.eval()(views.normalize(pixels.to(DEVICE))).flatten(1)
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(knn.features(f, pixels, DEVICE, torch.float32, batch_size=3), whole)


def test_large_images_go_in_smaller_batches():
    """So the encoder's memory does not grow with them."""
    sizes, f = [], nn.Conv2d(3, 4, 1).to(DEVICE)
    f.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    for side, batch in ((16, 8), (32, 8), (64, 2), (96, 1)):
        sizes.clear()
        pixels = torch.zeros(9, 3, side, side, dtype=torch.uint8)
        knn.features(f, pixels, DEVICE, torch.float32, batch_size=8)
        assert max(sizes) == batch
        assert sum(sizes) == 9


def test_images_go_to_the_device_by_a_safe_copy(monkeypatch):
    """All of them go through `to_device`, which does not copy to MPS in the background."""
    copied = []

    def to_device(x, device):
        copied.append(len(x))
        return x.to(device)

    monkeypatch.setattr(knn, "to_device", to_device)
    pixels = torch.zeros(9, 3, 32, 32, dtype=torch.uint8)
    knn.features(nn.Conv2d(3, 4, 1).to(DEVICE), pixels, DEVICE, torch.float32, batch_size=4)
    assert copied == [4, 4, 1]


def test_features_in_half_precision_are_float32():
    f = Model(8, "resnet10").f.to(DEVICE).eval()
    pixels = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    exact = knn.features(f, pixels, DEVICE, torch.float32)
    half = knn.features(f, pixels, DEVICE, torch.bfloat16)
    assert half.dtype == torch.float32
    assert not torch.equal(exact, half)
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.05)
