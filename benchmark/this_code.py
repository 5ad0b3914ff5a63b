"""This code's side of the benchmark: what main.py and linear.py do, one part at a time."""

import argparse
import contextlib
import io
import itertools
import math
import signal
import time
from functools import partial

import torch
from torch import Tensor, nn

import linear
import main
from attentionce.data import views
from attentionce.data.images import Images
from attentionce.evaluation import linear_classifier
from attentionce.evaluation.knn import features
from attentionce.training import devices, one_epoch, one_step
from attentionce.training.pretraining import Run, new_run
from benchmark import DIM, VIEWS
from benchmark.measuring import Call, random_views
from model import Model
from utils import load


def assemble(args: argparse.Namespace, variant: str, pixels: Tensor) -> Run:
    """main.py's run on these images, uint8 N×3×H×W.

    Its variant is a precision, or a precision and "grad_cache".
    """
    precision, *cached = variant.split()
    words = f"--dataset_name photos --arch {args.arch} --batch_size {args.batch_size} "
    words += f"--image_size {args.image_size} --feature_dim {DIM} --num_pos {VIEWS - 2} "
    words += f"--device {args.device} --precision {precision} --compile {args.compile}"
    settings = main.parse_args([*words.split(), *(f"--{flag}" for flag in cached)])
    device = devices.choose_device(args.device)
    dtype = devices.choose_precision(precision, device)
    images = Images(pixels, torch.zeros(len(pixels)), [])
    devices.reproducible(False)
    with contextlib.redirect_stdout(io.StringIO()):
        model = main.new_model(settings, fresh=True)
        run = new_run(settings, model, *main.chosen_loss(settings), images, device, dtype)
    run.saved = run.reported = math.inf  # it is neither saved nor reported on
    return run


def view_making(args: argparse.Namespace, images: Images, device: str, compiled: bool) -> Call:
    """All views of all images, batch by batch and view by view as the training steps make them."""
    pixels = images.pixels.to(device)
    ops = views.compiled() if compiled else views.Ops()

    def make_views() -> None:
        for step, batch in enumerate(pixels.split(256)):
            height, width = batch.shape[2:]
            draw = views.draw(VIEWS, len(batch), height, width, views.generator(0, 1, step))
            draw, batch = views.to(draw, device), batch.float()
            for view in range(VIEWS):
                views.make_view(batch, draw, view, args.image_size, ops)

    return make_views


def step(args: argparse.Namespace, variant: str) -> Call:
    """A training step on views that were made beforehand."""
    batch = torch.zeros(args.batch_size, 3, 4, 4, dtype=torch.uint8, device=args.device)
    # An epoch of two steps, of which the first is timed: the last one also reports the attention.
    run = assemble(args, variant, torch.cat([batch, batch]))
    run.view_ops = ready(random_views(args))
    return partial(one_step.take_step, run, batch)


def ready(made: Tensor) -> views.Ops:
    """Operations that make no view but hand over those that were made beforehand, in turn."""
    following = itertools.cycle(made)
    return views.Ops(lambda *_: next(following), [lambda view, *_: view] * 4, lambda view, *_: view)


def epoch(args: argparse.Namespace, variant: str, images: Images) -> Call:
    """Training for one epoch."""
    run = assemble(args, variant, images.pixels)

    def train() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # where the progress bar goes
            one_epoch.train_epoch(run, [], lambda: None)
        run.progress.update(epoch=run.progress["epoch"] + 1, step=0)

    return train


def first_step(args: argparse.Namespace) -> float:
    """All of main.py up to its first step; returns the time then (seconds since 1970)."""
    load("photos", "", "test")  # main.py reads them before training, for the kNN accuracy
    run = assemble(args, args.precision, load("photos", "", "pretrain").pixels)
    # A signal that has come ends the epoch after its first step, and that waits for the device.
    one_epoch.train_epoch(run, [signal.SIGTERM], lambda: None)
    return time.time()


def linear_evaluation(
    args: argparse.Namespace, precision: str, train: Images, test: Images
) -> tuple[Call, Call]:
    """An epoch of linear.py on an untrained encoder with its test.

    And encoding the test images, which linear.py does once for all epochs.
    """
    words = f"--model_path random --batch_size {min(512, len(test.pixels))} "
    words += f"--image_size {args.image_size} --compile {args.compile}"
    settings, model = linear.parse_args(words.split()), Model(DIM, args.arch)
    device = torch.device(args.device)
    dtype = devices.choose_precision(precision, device)
    f = model.f.to(device).to(memory_format=torch.channels_last).requires_grad_(False).eval()
    encode = partial(features, f, test.pixels, device, dtype)
    encode_view = linear_classifier.view_encoder(f, settings, device, dtype)
    classifier = nn.Linear(model.feature_size, len(train.classes)).to(device)
    adam = torch.optim.Adam(classifier.parameters(), lr=1e-3, weight_decay=1e-6, fused=True)
    data = (linear_classifier.on_device(train, device), settings, device)
    test_features, labels = encode(), test.labels.to(device)

    def train_and_test() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # where the progress bar goes
            linear_classifier.fit_epoch(encode_view, classifier, adam, *data, 1, [])
        linear_classifier.accuracy(classifier, test_features, labels)

    return train_and_test, encode
