"""Runs of main.py's flags on random images, which read and write no files."""

import torch
from torch import nn
from torch.nn.functional import normalize

import main
from attentionce.data.images import Images
from attentionce.training import one_step, pretraining
from helpers.device import DEVICE
from model import Model

FLAGS = "--dataset_name photos --arch resnet10 --image_size 8 --batch_size 4 --compile off"


class Exact(nn.Module):
    """A small encoder in float64: both kinds of BatchNorm, and a stage that may be recomputed."""

    def __init__(self, feature_dim=128, arch="resnet50", stem="small"):
        super().__init__()
        convolution = nn.Conv2d(3, 4, 3, stride=2, bias=False)
        self.f = nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU())
        hidden = nn.Linear(36, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()
        self.g = nn.Sequential(*hidden, nn.Linear(8, feature_dim))
        self.double()

    def forward(self, x, recompute=None):
        x = x.double()
        feature = (self.f(x) if recompute is None else recompute(self.f, x)).flatten(1)
        return normalize(feature, dim=-1), normalize(self.g(feature), dim=-1)


def new_run(*words, encoder=Model, count=8, dtype=torch.float32, views_per_pass=1, device=DEVICE):
    """A fresh run on `count` images of 8×8, with a model like `Model`."""
    args = main.parse_args([*FLAGS.split(), *map(str, words)])
    main.check_args(args)
    torch.manual_seed(args.seed)
    model = encoder(args.feature_dim, args.arch)
    pixels = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
    images = Images(pixels, torch.zeros(count), ["one"])
    run = pretraining.new_run(args, model, *main.chosen_loss(args), images, device, dtype)
    run.views_per_pass = views_per_pass
    if run.moco is not None:
        run.moco.to(next(model.parameters()).dtype)  # the queue
    return run


def take_steps(run, count=1):
    """Steps of an epoch, each on the run's first batch."""
    for _ in range(count):
        one_step.take_step(run, run.pixels[: run.args.batch_size])
        run.progress["step"] += 1
