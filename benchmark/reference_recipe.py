"""The reference recipe that benchmark.py measures against: contrastive pretraining as it is usually put together.

torchvision's transforms on PIL images, view by view, in a DataLoader with two workers; float32 and contiguous tensors;
every view's graph kept until one backward pass; a loss that exponentiates before it takes the logarithm, whose mask of
negatives a Python loop builds at every step; `.item()` at every step; torch.optim.Adam as it comes. Settings are
PyTorch's own: TF32 in convolutions on CUDA, cuDNN without its search for the fastest kernels, one optimiser loop over
the parameters on a CPU and its multi-tensor form on CUDA. Only the network's definition is shared with the rest.
"""

import time

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from attentionce.data.views import MEAN, STD
from model import Model
from utils import load

WORKERS = 2


def augmentation(size: int) -> transforms.Compose:
    """A random view of a PIL image, 3×`size`×`size`, as SimCLR draws it for small images."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([transforms.GaussianBlur(3, sigma=(0.1, 2.0))], p=0.5),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def evaluation() -> transforms.Compose:
    """A PIL image as it is, normalised."""
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


class Views(Dataset):
    """Images (uint8 N×3×H×W), each as a list of `count` results of the transform, with its label."""

    def __init__(
        self, pixels: Tensor, labels: Tensor, transform: transforms.Compose, count: int = 1
    ):
        self.images, self.labels = pixels.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
        self.transform, self.count = transform, count

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[list[Tensor], int]:
        image = Image.fromarray(self.images[i])
        return [self.transform(image) for _ in range(self.count)], self.labels[i]


def loader(views: Views, batch_size: int, device: torch.device, shuffle: bool = True) -> DataLoader:
    """Batches ([views of B×3×S×S], labels), the last partial one dropped where they are shuffled.

    The workers stay from one pass to the next, so that what is timed is their work, not their start.
    """
    options = {
        "num_workers": WORKERS,
        "persistent_workers": True,
        "pin_memory": device.type == "cuda",
    }
    return DataLoader(views, batch_size, shuffle=shuffle, drop_last=shuffle, **options)


def mask_of_negatives(batch: int) -> Tensor:
    """2B × 2B, True where a column is a negative of the row: neither anchor of the row's image."""
    mask = torch.ones(2 * batch, 2 * batch, dtype=torch.bool)
    for i in range(batch):
        for row in (i, i + batch):
            mask[row, i] = mask[row, i + batch] = False
    return mask


def attentionce(
    z: Tensor, temperature: float = 0.5, d_pos: float = 1.0, d_neg: float = 1.0
) -> Tensor:
    """AttentioNCE by its formula, of embeddings views × batch × dim; infinite where an exponential is."""
    anchors, batch = torch.cat([z[0], z[1]]), z.shape[1]
    mask = mask_of_negatives(batch).to(z.device)
    n = 2 * batch - 2
    s = (anchors @ anchors.T).masked_select(mask).view(2 * batch, n)
    beta = n * (torch.softmax(s.detach() / d_neg, dim=1) + 1e-6)
    negatives = torch.exp(beta * s / temperature).sum(1)
    s = torch.stack([(anchors * p.repeat(2, 1)).sum(1) for p in z[2:]])
    alpha = torch.softmax(s.detach() / d_pos, dim=0)
    positives = torch.exp((alpha * s).sum(0) / temperature)
    return -torch.log(positives / (positives + negatives)).mean()


class Recipe:
    """Encoder and optimiser of a pretraining run."""

    def __init__(self, arch: str, device: torch.device):
        self.device = device
        self.model = Model(arch=arch).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, weight_decay=1e-6)

    def step(self, views: list[Tensor] | Tensor) -> float:
        """One step on V views of B×3×S×S, on the device; returns the loss."""
        z = torch.stack([self.model(view)[1] for view in views])
        loss = attentionce(z)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def epoch(self, batches: DataLoader) -> float:
        """One pass over the images; returns the mean loss."""
        losses = [
            self.step([view.to(self.device, non_blocking=True) for view in views])
            for views, _ in batches
        ]
        return sum(losses) / len(losses)


class Linear:
    """A classifier on the features of an encoder `f` that stays as it is."""

    def __init__(self, f: nn.Module, features: int, classes: int, device: torch.device):
        self.f, self.device = f.to(device).requires_grad_(False), device
        self.classifier = nn.Linear(features, classes).to(device)
        self.optimizer = torch.optim.Adam(self.classifier.parameters(), lr=1e-3, weight_decay=1e-6)

    def scores(self, views: list[Tensor]) -> Tensor:
        """B × classes of the batch's only view."""
        return self.classifier(self.f(views[0].to(self.device, non_blocking=True)).flatten(1))

    def epoch(self, train: DataLoader, test: DataLoader) -> float:
        """One pass over the training images, then one over the test images; returns the accuracy in percent."""
        self.f.train()
        for views, labels in train:
            loss = cross_entropy(self.scores(views), labels.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()
        self.f.eval()
        with torch.no_grad():
            hits = [
                (self.scores(views).argmax(1).cpu() == labels).sum().item()
                for views, labels in test
            ]
        return 100 * sum(hits) / len(test.dataset)


def first_step(arch: str, batch_size: int, image_size: int, views: int, device: str) -> float:
    """From nothing to the end of the first step on the embedded photographs; returns the clock's time then."""
    images = load("photos", "", "pretrain")
    batches = loader(
        Views(images.pixels, images.labels, augmentation(image_size), views),
        batch_size,
        torch.device(device),
    )
    run = Recipe(arch, torch.device(device))
    first, _ = next(iter(batches))
    run.step([view.to(run.device) for view in first])  # its .item() waits for the device
    return time.time()
