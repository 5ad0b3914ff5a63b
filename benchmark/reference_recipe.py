"""The reference recipe of the benchmark: contrastive pretraining as it is usually written.

torchvision's transforms on PIL images, view by view, in a DataLoader with two workers; float32 and
contiguous tensors; the graphs of all views kept until one backward pass; a loss that exponentiates
before it takes the logarithm, with a mask of negatives that a Python loop builds at every step;
`.item()` at every step; torch.optim.Adam with its defaults.

Settings are PyTorch's own: on CUDA, TF32 in convolutions, cuDNN without its search for the fastest
kernels, and the multi-tensor optimiser; on a CPU, an optimiser that loops over the parameters. Only
the definition of the network is shared with the rest of the code.
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
    """A random view of a PIL image, 3×`size`×`size`, as SimCLR augments small images."""
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
    """A PIL image without augmentation, normalised."""
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


class Views(Dataset):
    """Images with labels; each image as a list of `count` results of the transform.

    Args:
        pixels: uint8 N×3×H×W.
    """

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
    """Batches ([views of B×3×S×S], labels); if shuffled, without the last partial batch.

    The workers stay from one pass to the next, so that their work is timed, not their start.
    """
    return DataLoader(
        views,
        batch_size,
        shuffle=shuffle,
        drop_last=shuffle,
        num_workers=WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )


def mask_of_negatives(batch: int) -> Tensor:
    """2B × 2B, True where the column is a negative of the row, so not an anchor of its image."""
    mask = torch.ones(2 * batch, 2 * batch, dtype=torch.bool)
    for i in range(batch):
        for row in (i, i + batch):
            mask[row, i] = mask[row, i + batch] = False
    return mask


def attentionce(
    z: Tensor, temperature: float = 0.5, d_pos: float = 1.0, d_neg: float = 1.0
) -> Tensor:
    """AttentioNCE by its formula; infinite where an exponential overflows.

    Args:
        z: embeddings, views × batch × dim, L2-normalised.
    """
    anchors, batch = torch.cat([z[0], z[1]]), z.shape[1]
    mask = mask_of_negatives(batch).to(z.device)
    n = 2 * batch - 2
    s = (anchors @ anchors.T).masked_select(mask).view(2 * batch, n)
    beta = n * (torch.softmax(s.detach() / d_neg, dim=1) + 1e-6)
    negatives = torch.exp(beta * s / temperature).sum(1)
    s = torch.stack([(anchors * positive.repeat(2, 1)).sum(1) for positive in z[2:]])
    alpha = torch.softmax(s.detach() / d_pos, dim=0)
    positives = torch.exp((alpha * s).sum(0) / temperature)
    return -torch.log(positives / (positives + negatives)).mean()


class Recipe:
    """A pretraining run: encoder and optimiser."""

    def __init__(self, arch: str, device: torch.device):
        self.device = device
        self.model = Model(arch=arch).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, weight_decay=1e-6)

    def step(self, views: list[Tensor] | Tensor) -> float:
        """Train on V views of B×3×S×S, which are on the device; returns the loss."""
        z = torch.stack([self.model(view)[1] for view in views])
        loss = attentionce(z)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def epoch(self, batches: DataLoader) -> float:
        """Train on every batch once; returns the mean loss."""
        losses = []
        for views, _ in batches:
            on_device = [view.to(self.device, non_blocking=True) for view in views]
            losses.append(self.step(on_device))
        return sum(losses) / len(losses)


class Linear:
    """Linear evaluation: a classifier on the features of an encoder `f` that stays as it is."""

    def __init__(self, f: nn.Module, features: int, classes: int, device: torch.device):
        self.f, self.device = f.to(device).requires_grad_(False), device
        self.classifier = nn.Linear(features, classes).to(device)
        self.optimizer = torch.optim.Adam(self.classifier.parameters(), lr=1e-3, weight_decay=1e-6)

    def scores(self, views: list[Tensor]) -> Tensor:
        """B × classes, of a batch with one view per image."""
        return self.classifier(self.f(views[0].to(self.device, non_blocking=True)).flatten(1))

    def epoch(self, train: DataLoader, test: DataLoader) -> float:
        """Train on every batch once, then test; returns the test accuracy in percent."""
        self.f.train()
        for views, labels in train:
            loss = cross_entropy(self.scores(views), labels.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()
        self.f.eval()
        hits = images = 0
        with torch.no_grad():
            for views, labels in test:
                hits += (self.scores(views).argmax(1).cpu() == labels).sum().item()
                images += len(labels)
        return 100 * hits / images


def first_step(arch: str, batch_size: int, image_size: int, views: int, device_name: str) -> float:
    """From the start of the process to the end of the first step, on the embedded photographs.

    Returns:
        The time at the end (seconds since 1970).
    """
    device = torch.device(device_name)
    images = load("photos", "", "pretrain")
    dataset = Views(images.pixels, images.labels, augmentation(image_size), views)
    run = Recipe(arch, device)
    first, _ = next(iter(loader(dataset, batch_size, device)))
    run.step([view.to(device) for view in first])  # its .item() waits for the device
    return time.time()
