"""Runs of main.py's flags on random images, which read and write no files."""

import torch
from torch import nn

import main
from attentionce.data.images import Images
from attentionce.training import one_step, pretraining
from helpers.device import DEVICE
from helpers.groups import Tiny
from model import Model

FLAGS = "--dataset_name photos --arch resnet10 --image_size 8 --batch_size 4 --compile off"


class Exact(Tiny):
    """A small encoder in float64 with both kinds of BatchNorm, `f.2` and `g.0`."""

    def __init__(self, feature_dim=128, arch="resnet50", stem="small"):
        super().__init__(feature_dim)
        self.f.insert(2, nn.BatchNorm2d(4))
        self.g = nn.Sequential(nn.BatchNorm1d(16), self.g)
        self.double()


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


def left_by(run):
    """What steps have left: losses, Adam's moments, weights and buffers, MoCo's encoder and queue.

    After the first step the first moment is a tenth of the gradient.
    """
    state = pretraining.state_of(run)
    return state["progress"]["losses"], state["optimizer"]["state"], state["model"], state["moco"]
