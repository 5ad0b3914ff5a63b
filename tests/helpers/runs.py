"""A run of main.py's flags on random images, which reads and writes no files."""

import torch

import main
from attentionce.data.images import Images
from attentionce.training import pretraining
from helpers.device import DEVICE
from model import Model

FLAGS = "--dataset_name photos --arch resnet10 --image_size 8 --batch_size 4 --compile off"


def new_run(*words, encoder=Model, count=8, dtype=torch.float32):
    """A fresh run on `count` images of 8×8, with a model like `Model`."""
    args = main.parse_args([*FLAGS.split(), *map(str, words)])
    main.check_args(args)
    torch.manual_seed(args.seed)
    model = encoder(args.feature_dim, args.arch)
    pixels = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
    images = Images(pixels, torch.zeros(count), ["one"])
    return pretraining.new_run(args, model, *main.chosen_loss(args), images, DEVICE, dtype)
