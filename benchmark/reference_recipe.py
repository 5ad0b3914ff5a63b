"""The reference recipe of the benchmark: contrastive pretraining as it is usually written.

torchvision's transforms on PIL images, view by view, in a DataLoader with two workers; float32 and
contiguous tensors; the graphs of all views kept until one backward pass; a loss that exponentiates
before it takes the logarithm, with a mask of negatives that a Python loop builds at every step;
`.item()` at every step. Settings are PyTorch's own. Only the network is this code's.
"""

import argparse
import functools
import time

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from attentionce.data.images import Images
from attentionce.data.views import MEAN, STD
from benchmark import DIM, VIEWS
from benchmark.measuring import Call, random_views
from model import Model
from utils import load

# A PIL image without augmentation, normalised.
PLAIN = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def augmentation(size: int) -> transforms.Compose:
    """A random view of a PIL image, 3×`size`×`size`, as SimCLR augments small images."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([transforms.GaussianBlur(3, sigma=(0.1, 2.0))], p=0.5),
            PLAIN,
        ]
    )


class Views(Dataset):
    """Images with labels; each image as a list of `count` results of the transform."""

    def __init__(self, images: Images, transform: transforms.Compose, count: int):
        self.images = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.labels.tolist()
        self.transform, self.count = transform, count

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[list[Tensor], int]:
        image = Image.fromarray(self.images[i])
        return [self.transform(image) for _ in range(self.count)], self.labels[i]


def loader(
    args: argparse.Namespace, images: Images, batch_size: int, views: int, train: bool = True
) -> DataLoader:
    """Batches ([views of B×3×S×S], labels) of random views, or of the test images as they are.

    The workers stay from one pass to the next, so that their work is timed, not their start.
    """
    return DataLoader(
        Views(images, augmentation(args.image_size) if train else PLAIN, views),
        batch_size,
        shuffle=train,
        drop_last=train,
        num_workers=2,
        persistent_workers=True,
        pin_memory=args.device == "cuda",
    )


def view_making(args: argparse.Namespace, images: Images) -> Call:
    """All views of all images."""
    batches = loader(args, images, min(256, len(images.pixels)), VIEWS)
    return lambda: [None for _ in batches]


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
    """AttentioNCE of embeddings V×B×dim by its formula; infinite where an exponential overflows."""
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


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """One step of the optimiser; returns the loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


class Recipe:
    """A pretraining run: encoder and optimiser."""

    def __init__(self, args: argparse.Namespace):
        self.device = torch.device(args.device)
        self.model = Model(DIM, args.arch).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, weight_decay=1e-6)

    def step(self, views: list[Tensor] | Tensor) -> float:
        """Train on V views of B×3×S×S; returns the loss."""
        on_device = [view.to(self.device, non_blocking=True) for view in views]
        z = torch.stack([self.model(view)[1] for view in on_device])
        return update(self.optimizer, attentionce(z))


def step(args: argparse.Namespace) -> Call:
    """A training step on views that were made beforehand."""
    return functools.partial(Recipe(args).step, random_views(args))


def epoch(args: argparse.Namespace, images: Images) -> Call:
    """Training on every batch once."""
    recipe, batches = Recipe(args), loader(args, images, args.batch_size, VIEWS)
    return lambda: [recipe.step(views) for views, _ in batches]


def first_step(args: argparse.Namespace) -> float:
    """All of a program up to its first step; returns the time then (seconds since 1970)."""
    batches = loader(args, load("photos", "", "pretrain"), args.batch_size, VIEWS)
    recipe = Recipe(args)
    recipe.step(next(iter(batches))[0])  # its .item() waits for the device
    return time.time()


def linear_epoch(args: argparse.Namespace, train: Images, test: Images) -> Call:
    """An epoch of a linear classifier on an untrained encoder, then its test."""
    device, model = torch.device(args.device), Model(DIM, args.arch)
    f, classifier = model.f.requires_grad_(False), nn.Linear(model.feature_size, len(train.classes))
    network = nn.Sequential(f, nn.Flatten(), classifier).to(device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3, weight_decay=1e-6)
    batch_size = min(512, len(test.pixels))
    train_batches = loader(args, train, batch_size, 1)
    test_batches = loader(args, test, batch_size, 1, train=False)

    def train_and_test() -> int:
        f.train()
        for (view,), labels in train_batches:
            scores = network(view.to(device, non_blocking=True))
            update(optimizer, cross_entropy(scores, labels.to(device)))
        f.eval()
        hits = 0
        with torch.no_grad():
            for (view,), labels in test_batches:
                scores = network(view.to(device, non_blocking=True))
                hits += (scores.argmax(1).cpu() == labels).sum().item()
        return hits

    return train_and_test
