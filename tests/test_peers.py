"""The real lightly, Lightning and scikit-learn: examples run with them, and numbers agree.

`make peers` runs these in an environment that has the packages; elsewhere they are skipped.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

for package in ("lightly", "lightning"):
    pytest.importorskip(package, reason="make peers installs it")

import lightning  # noqa: E402
from lightly.data import LightlyDataset  # noqa: E402
from lightly.loss import NTXentLoss  # noqa: E402
from lightly.transforms.multi_view_transform import MultiViewTransform  # noqa: E402
from lightly.transforms.simclr_transform import SimCLRViewTransform  # noqa: E402
from lightly.utils.benchmarking.knn import knn_predict  # noqa: E402
from test_docs import BLOCKS  # noqa: E402

import loss  # noqa: E402
from attentionce.evaluation.knn import knn  # noqa: E402
from model import load_encoder  # noqa: E402


def run_example(use):
    """Run the only example of the documentation that contains `use`; the names that it leaves."""
    (block,) = [block for block in BLOCKS.values() if use in block]
    names = {"__name__": "example"}
    exec(compile(block, "example", "exec"), names)
    return names


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder `images` with 64 images, below the current one."""
    folder, random = tmp_path / "images", np.random.RandomState(0)
    folder.mkdir()
    for i in range(64):
        pixels = random.randint(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_lightly_example(images):
    names = run_example("from lightly")
    assert len(names["views"]) == 6 and names["views"][0].shape == (64, 3, 32, 32)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in names["model"].parameters())


def test_the_lightning_example_trains_on_lightlys_batches(images, tmp_path):
    """Two steps of its Trainer; then its checkpoint opens as any weights do."""
    module = run_example("import lightning")["Pretraining"]()
    before = {key: value.clone() for key, value in module.model.state_dict().items()}
    transform = MultiViewTransform([SimCLRViewTransform(input_size=16)] * 4)
    data = LightlyDataset(str(images), transform=transform)
    trainer = lightning.Trainer(max_steps=2, accelerator="cpu", default_root_dir=tmp_path)
    trainer.fit(module, DataLoader(data, batch_size=8, shuffle=True))
    assert trainer.global_step == 2
    after = module.model.state_dict()
    assert not torch.equal(after["f.0.weight"], before["f.0.weight"])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    f, arch = load_encoder(tmp_path / "last.ckpt")
    assert arch == "resnet18"
    for key, value in f.state_dict().items():
        assert torch.equal(value, after[f"f.{key}"]), key


@pytest.mark.parametrize("temperature, batch", [(0.1, 64), (2.0, 2)])
def test_simclr_is_lightlys(temperature, batch):
    """Value and gradient in float64, through the normalisation that lightly's loss does itself."""
    random = torch.Generator().manual_seed(batch)
    x = torch.randn(2, batch, 16, generator=random, dtype=torch.float64, requires_grad=True)
    theirs = NTXentLoss(temperature=temperature)(*x)
    ours = loss.simclr(normalize(x, dim=-1), temperature)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    (expected,) = torch.autograd.grad(theirs, x)
    (found,) = torch.autograd.grad(ours, x)
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("k, temperature", [(5, 0.1), (30, 0.5)])
def test_knn_is_lightlys_and_scikit_learns(k, temperature):
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(7, 8, generator=random)
    labels = torch.randint(7, (330,), generator=random)
    x = normalize(centres[labels] + 1.3 * torch.randn(330, 8, generator=random), dim=1)
    bank, queries = x[:240], x[240:]
    found, _ = knn(bank, labels[:240], queries, labels[240:], 7, k, temperature)

    theirs = knn_predict(queries, bank.T, labels[:240], 7, k, temperature)[:, 0]
    assert found == pytest.approx(100 * (theirs == labels[240:]).double().mean().item())

    def weights(distance):
        return np.exp((1 - distance) / temperature)

    oracle = KNeighborsClassifier(k, weights=weights, metric="cosine")
    oracle.fit(bank.double(), labels[:240])
    theirs = torch.from_numpy(oracle.predict(queries.double()))
    assert found == pytest.approx(100 * (theirs == labels[240:]).double().mean().item())
    assert 20 < found < 100
