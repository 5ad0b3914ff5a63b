"""kNN accuracy against scikit-learn; features, which leave the encoder alone."""

import pytest
import torch
from helpers.device import DEVICE
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from attentionce.data import views
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


def test_accuracy_is_that_of_scikit_learn():
    bank, bank_labels, queries, labels, classes = clusters()
    all_found = set()
    for k, temperature in [(1, 0.5), (30, 0.07), (30, 5.0), (200, 0.1)]:

        def weights(distance, temperature=temperature):
            return torch.from_numpy((1 - distance) / temperature).exp().numpy()

        oracle = KNeighborsClassifier(k, weights=weights, metric="cosine")
        oracle.fit(bank.double().cpu(), bank_labels.cpu())
        votes = torch.from_numpy(oracle.predict_proba(queries.double().cpu()))
        hit = votes.argsort(1, descending=True)[:, :5] == labels[:, None].cpu()
        top1, top5 = knn.knn(bank, bank_labels, queries, labels, classes, k, temperature)
        assert top1 == pytest.approx(100 * hit[:, 0].double().mean().item())
        if k > 1:  # else only one class has votes, and the other four of the five are arbitrary
            assert top5 == pytest.approx(100 * hit.any(1).double().mean().item())
        all_found.add((top1, top5))
    assert len(all_found) == 4  # else weights or k could be ignored


@pytest.mark.parametrize("block", [1, 7 * 240 + 239])
def test_blocks_equal_the_whole(monkeypatch, block):
    data, largest, topk = clusters(), [], torch.Tensor.topk
    whole = knn.knn(*data, k=20, temperature=0.1)

    def watched(self, *args, **options):
        largest.append(self.numel())
        return topk(self, *args, **options)

    monkeypatch.setattr(knn, "BLOCK", block)
    monkeypatch.setattr(torch.Tensor, "topk", watched)
    assert knn.knn(*data, k=20, temperature=0.1) == whole
    assert max(largest) <= max(block, 240)


def test_few_classes_and_small_temperatures():
    bank, bank_labels, queries, labels, _ = clusters(classes=3)
    assert knn.knn(bank, bank_labels, queries, labels, 3, k=20)[1] == 100
    nearest = knn.knn(bank, bank_labels, queries, labels, 3, k=1)[0]
    top1, _ = knn.knn(bank, bank_labels, queries, labels, 3, k=20, temperature=1e-4)
    assert top1 == nearest  # although exp(1e4) overflows


def test_k_is_clamped_and_says_so(capsys):
    assert (knn.clamp_k(10, 10), knn.clamp_k(200, 24)) == (10, 24)
    assert capsys.readouterr().out == "--k 200 is more than the 24 training images: using 24\n"


@pytest.mark.parametrize("training", [True, False])
def test_features_leave_the_encoder_alone(training):
    f = Model(8, "resnet10").f.to(DEVICE).train(training)
    f(torch.randn(4, 3, 8, 8, device=DEVICE))  # statistics that differ from a batch's own
    before = {key: value.clone() for key, value in f.state_dict().items()}
    pixels = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
    whole = knn.features(f, pixels, DEVICE, torch.float32)
    assert all(module.training == training for module in f.modules())
    assert all(torch.equal(before[key], value) for key, value in f.state_dict().items())
    assert whole.dtype == torch.float32 and not whole.requires_grad
    with torch.no_grad():  # no crop, no resize, running statistics
        expected = f.eval()(views.normalize(pixels.to(DEVICE))).flatten(1)
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(knn.features(f, pixels, DEVICE, torch.float32, batch_size=3), whole)
    half = knn.features(f, pixels, DEVICE, torch.bfloat16)
    assert half.dtype == torch.float32 and not torch.equal(half, whole)
    torch.testing.assert_close(half, whole, rtol=0.1, atol=0.05)


def test_large_images_go_in_smaller_batches_by_safe_copies(monkeypatch):
    """So the encoder's memory does not grow with them; `to_device` knows which copies are safe."""
    sizes, to_device = [], knn.to_device
    monkeypatch.setattr(knn, "to_device", lambda x, d: sizes.append(len(x)) or to_device(x, d))
    f = nn.Conv2d(3, 4, 1).to(DEVICE)
    for side, expected in ((16, [8, 1]), (32, [8, 1]), (64, [2, 2, 2, 2, 1]), (96, 9 * [1])):
        sizes.clear()
        pixels = torch.zeros(9, 3, side, side, dtype=torch.uint8)
        assert len(knn.features(f, pixels, DEVICE, torch.float32, batch_size=8)) == 9
        assert sizes == expected
