"""This code's side of the benchmark: what main.py and linear.py do, one part at a time."""

import argparse
import contextlib
import dataclasses
import functools
import io
import sys
import tempfile
import time
from collections.abc import Callable
from unittest import mock

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

VIEWS = 6  # per image: two anchors and four positives
DIM = 128  # of an embedding


def precisions(asked: str, device: torch.device) -> list[str]:
    """The precisions to measure: the one asked for, or for `auto` fp32 and bf16 where it is fast.

    bf16 is slow, and left out, on a device that does not support it natively.
    """
    if asked != "auto":
        devices.choose_precision(asked, device)
        return [asked]
    native = devices.half_precision(device) == "bf16"
    return ["fp32", "bf16"] if native else ["fp32"]


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """The type that the encoder computes in."""
    return devices.choose_precision(precision, device)


# ------------------------------------------------------------------------------------- pretraining


def flags_of(args: argparse.Namespace, **more: object) -> list[str]:
    """The command line of main.py that corresponds to the benchmark's flags."""
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
    words = []
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    return words


def assemble(args: argparse.Namespace, precision: str, pixels: Tensor) -> Run:
    """A run on these images (uint8 N×3×H×W), as main.py assembles it."""
    settings = main.parse_args(flags_of(args, precision=precision, state_minutes=1e9))
    device = devices.choose_device(args.device)
    with contextlib.redirect_stdout(io.StringIO()):
        return main.assemble(settings, pixels, device, dtype_of(precision, device))


def make_views(pixels: Tensor, batch_size: int, make_view: Callable[..., Tensor]) -> None:
    """Make all views of all images, batch by batch and view by view, as the training steps do."""
    for step, images in enumerate(pixels.split(batch_size)):
        height, width = images.shape[2:]
        draw = views.draw(VIEWS, len(images), height, width, views.generator(0, 1, step))
        draw, images = views.to(draw, images.device), images.float()
        for view in range(VIEWS):
            make_view(images, draw, view)


def view_making(
    pixels: Tensor, device: torch.device, batch_size: int, image_size: int, compiled: bool
) -> functools.partial:
    """`make_views` of these images on the device, ready to be called."""
    ops = views.compiled() if compiled else views.Ops()
    make_view = functools.partial(views.make_view, size=image_size, ops=ops)
    return functools.partial(make_views, pixels.to(device), batch_size, make_view)


def view_making_of(run: Run, pixels: Tensor) -> functools.partial:
    """`make_views` of one batch of images with a run's settings, ready to be called."""
    make_view = functools.partial(views.make_view, size=run.args.image_size, ops=run.view_ops)
    return functools.partial(make_views, pixels.to(run.device), len(pixels), make_view)


def fixed_step(run: Run, made: Tensor, grad_cache: bool = False) -> Callable[[], None]:
    """A training step on views that were made beforehand (V×B×3×S×S), ready to be called."""

    def ready_view(images: Tensor, draw: views.Draw, v: int, size: int, ops: views.Ops) -> Tensor:
        return made[v]

    def step() -> None:
        with mock.patch.object(views, "make_view", ready_view):
            one_step.take_step(run, images)

    args = argparse.Namespace(**{**vars(run.args), "grad_cache": grad_cache})
    run = dataclasses.replace(
        run, args=args, grad_cache=grad_cache, recompute=run.recompute and not grad_cache
    )
    images = torch.zeros(made.shape[1], 3, 4, 4, dtype=torch.uint8, device=run.device)
    return step


def epoch(run: Run) -> None:
    """Train for one epoch."""
    with contextlib.redirect_stderr(io.StringIO()):  # where the progress bar goes
        one_epoch.train_epoch(run, [], lambda: None)
    run.progress.update(epoch=run.progress["epoch"] + 1, step=0)


# ------------------------------------------------------------------------------- linear evaluation


class Linear:
    """A linear classifier on an untrained encoder, as linear.py fits it."""

    def __init__(
        self,
        arch: str,
        train: Images,
        test: Images,
        batch_size: int,
        image_size: int,
        device: torch.device,
    ):
        self.train, self.test, self.device = linear.on_device(train, device), test, device
        sizes = ["--batch_size", str(batch_size), "--image_size", str(image_size)]
        self.args = linear.parse_args(["--model_path", "random", *sizes])
        model = Model(DIM, arch).to(memory_format=torch.channels_last)
        self.f = model.f.to(device).requires_grad_(False).eval()
        self.classifier = nn.Linear(model.feature_size, len(train.classes)).to(device)
        self.optimizer = torch.optim.Adam(
            self.classifier.parameters(), lr=1e-3, weight_decay=1e-6, fused=True
        )
        self.labels = test.labels.to(device)
        self.test_features: dict[str, Tensor] = {}  # by precision
        self.encode_views: dict[str, linear.Encode] = {}  # by precision

    def encode(self, precision: str) -> None:
        """The features of the test images, which serve all epochs."""
        dtype = dtype_of(precision, self.device)
        self.test_features[precision] = features(self.f, self.test.pixels, self.device, dtype)

    def epoch(self, precision: str) -> None:
        """One pass over the training images, then the accuracy on the test images."""
        if precision not in self.encode_views:
            dtype = dtype_of(precision, self.device)
            self.encode_views[precision] = linear.Encode(self.f, self.args, self.device, dtype)
        encode = self.encode_views[precision]
        with contextlib.redirect_stderr(io.StringIO()):  # where the progress bar goes
            linear.train_epoch(
                encode, self.classifier, self.optimizer, self.train, self.args, self.device, 1
            )
        linear.accuracy(self.classifier, self.test_features[precision], self.labels)


# ---------------------------------------------------------------------------------------- start-up


class FirstStep(Exception):
    """The first step is done."""


def first_step(settings: dict) -> float:
    """main.py from its start to the end of its first step, on the embedded photographs.

    Args:
        settings: the benchmark's flags, as a dictionary.

    Returns:
        The time at the end (seconds since 1970).
    """
    take_step = one_step.take_step

    def stop_after_one(run: Run, batch: Tensor) -> None:
        take_step(run, batch)
        synchronize(run.device)
        raise FirstStep

    one_step.take_step = stop_after_one
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["main.py", *flags_of(argparse.Namespace(**settings), results=folder)]
        with contextlib.suppress(FirstStep):
            main.main()
        return time.time()
