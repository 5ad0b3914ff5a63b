"""This code's side of benchmark.py: the parts of main.py, train.py, views.py and linear.py, called one at a time."""

import argparse
import contextlib
import dataclasses
import io
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import linear
import main
from attentionce.data import views
from attentionce.data.images import Images
from attentionce.evaluation.knn import features
from attentionce.training import devices, one_epoch, one_step
from attentionce.training.pretraining import Run
from benchmark.timing import synchronize
from model import Model

VIEWS, DIM = 6, 128  # views an image, size of an embedding


def flags_of(args: argparse.Namespace, **more: object) -> list[str]:
    """The command line of main.py for the benchmark's flags."""
    flags = {
        "dataset_name": "photos",
        "arch": args.arch,
        "batch_size": args.batch_size,
        "image_size": args.image_size,
        "feature_dim": DIM,
        "num_pos": VIEWS - 2,
        "device": args.device,
        "compile": args.compile,
        **more,
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def assemble(args: argparse.Namespace, precision: str, pixels: Tensor) -> Run:
    """A run as main.py assembles it."""
    settings = main.parse_args(flags_of(args, precision=precision, state_minutes=1e9))
    device = devices.choose_device(args.device)
    with contextlib.redirect_stdout(io.StringIO()):
        return main.assemble(settings, pixels, device, devices.choose_precision(precision, device))


def make_views(pixels: Tensor, batch_size: int, make_view: Callable[..., Tensor]) -> None:
    """All views of all images, batch after batch and one at a time, as steps of training make them."""
    for step, images in enumerate(pixels.split(batch_size)):
        draw = views.draw(VIEWS, len(images), *images.shape[2:], views.generator(0, 1, step))
        draw, images = views.to(draw, images.device), images.float()
        for view in range(VIEWS):
            make_view(images, draw, view)


def fixed_step(run: Run, made: Tensor, grad_cache: bool = False) -> Callable[[], None]:
    """A step as train.py takes it, on views that were made beforehand (V×B×3×S×S)."""
    args = argparse.Namespace(**{**vars(run.args), "grad_cache": grad_cache})
    run = dataclasses.replace(run, args=args, make_view=lambda images, draw, view: made[view])
    images = torch.zeros(made.shape[1], 3, 4, 4, dtype=torch.uint8, device=run.device)
    return lambda: one_step.take_step(run, images)


def epoch(run: Run) -> None:
    """An epoch as train.py runs it."""
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        one_epoch.train_epoch(run, [], lambda: None)
    run.progress.update(epoch=run.progress["epoch"] + 1, step=0)


class Linear:
    """Linear evaluation as linear.py does it."""

    def __init__(
        self,
        arch: str,
        train_: Images,
        test: Images,
        batch_size: int,
        image_size: int,
        device: torch.device,
    ):
        self.train, self.test, self.device = linear.on_device(train_, device), test, device
        words = [
            "--model_path",
            "random",
            "--batch_size",
            str(batch_size),
            "--image_size",
            str(image_size),
        ]
        self.args = linear.parse_args(words)
        model = Model(DIM, arch)
        self.f = model.f.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
        self.classifier = nn.Linear(model.feature_size, len(train_.classes)).to(device)
        self.optimizer = torch.optim.Adam(
            self.classifier.parameters(), lr=1e-3, weight_decay=1e-6, fused=True
        )
        self.labels = test.labels.to(device)

    def encode(self, precision: str) -> None:
        """Features of the test images, once for all epochs."""
        self.asked = features(
            self.f, self.test.pixels, self.device, devices.choose_precision(precision, self.device)
        )

    def epoch(self, precision: str) -> None:
        """One pass over the training images, then the accuracy."""
        dtype = devices.choose_precision(precision, self.device)
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            linear.train_epoch(
                self.f,
                self.classifier,
                self.optimizer,
                self.train,
                self.args,
                self.device,
                dtype,
                1,
            )
        linear.accuracy(self.classifier, self.asked, self.labels)


class FirstStep(Exception):
    """The first step is done."""


def first_step(settings: dict) -> float:
    """main.py from nothing to the end of its first step; returns the clock's time then."""
    take_step = one_step.take_step

    def only_one(run: Run, batch: Tensor) -> None:
        take_step(run, batch)
        synchronize(run.device)
        raise FirstStep

    one_step.take_step = only_one
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["main.py", *flags_of(argparse.Namespace(**settings), results=folder)]
        with contextlib.suppress(FirstStep):
            main.main()
        return time.time()
