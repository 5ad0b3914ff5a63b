"""The two programs that are compared, on the same images and random embeddings."""

import argparse
import functools

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

import loss
from attentionce.data.images import Images
from benchmark import reference_recipe, this_code
from benchmark.out_of_memory import empty_if_out_of_memory
from benchmark.this_code import DIM, VIEWS
from benchmark.timing import Call, matmul_rate
from model import Model, cost
from utils import load


def random_views(args: argparse.Namespace) -> Tensor:
    """What a training step is timed on: V×B×3×S×S on the device."""
    size = args.image_size
    return torch.randn(VIEWS, args.batch_size, 3, size, size, device=args.device)


def loss_and_gradient(side: str, batch: int, device: torch.device) -> Call:
    """AttentioNCE and its gradient for random embeddings, ready to be called.

    Args:
        side: "reference" or "this code".
    """
    z = normalize(torch.randn(VIEWS, batch, DIM, device=device), dim=-1).requires_grad_()
    function = reference_recipe.attentionce if side == "reference" else loss.attentionce
    return lambda: torch.autograd.grad(function(z), z)


class Comparison:
    """What the rows share: flags, device, images, and the two programs.

    The methods that return a function prepare one side of a row; what is timed is the function.
    A program is assembled when a row first needs it.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = torch.device(args.device)
        self.precisions = this_code.precisions(args.precision, self.device)
        self.photos = load("photos", "", "pretrain")
        self.runs: dict[str, this_code.Run] = {}  # this code's, by precision

    def images(self, count: int) -> Images:
        """`count` of the embedded photographs (32×32 pixels), repeated if there are fewer."""
        times = -(-count // len(self.photos.pixels))
        pixels = self.photos.pixels.repeat(times, 1, 1, 1)
        labels = self.photos.labels.repeat(times)
        return Images(pixels[:count], labels[:count], self.photos.classes)

    def loader(self, images: Images, views: int, batch_size: int) -> DataLoader:
        """The reference recipe's batches, with this many views of every image."""
        transform = reference_recipe.augmentation(self.args.image_size)
        dataset = reference_recipe.Views(images.pixels, images.labels, transform, views)
        return reference_recipe.loader(dataset, batch_size, self.device)

    @functools.cached_property
    def limits(self) -> dict[str, float | None]:
        """Images per second, by precision, if a step were as fast as products of large matrices.

        A step takes two operations per multiply-add of the encoder in the forward pass and four in
        the backward pass. None where the matrices do not fit into memory.
        """
        _, multiply_adds = cost(Model(DIM, self.args.arch), self.args.image_size)
        operations = 6 * VIEWS * multiply_adds
        limits: dict[str, float | None] = {}
        for precision in self.precisions:
            limits[precision] = None
            with empty_if_out_of_memory(f"limit, {precision}"):
                dtype = this_code.dtype_of(precision, self.device)
                rate = matmul_rate(dtype, self.args.matmul, self.device)
                limits[precision] = rate / operations
        return limits

    # ------------------------------------------------------------------------------ pretraining

    @property
    def epoch_images(self) -> Images:
        """The images of an epoch."""
        return self.images(self.args.epoch_steps * self.args.batch_size)

    @functools.cached_property
    def recipe(self) -> reference_recipe.Recipe:
        """The reference recipe's run."""
        return reference_recipe.Recipe(self.args.arch, self.device)

    def run(self, precision: str) -> this_code.Run:
        """This code's run in this precision."""
        if precision not in self.runs:
            pixels = self.epoch_images.pixels
            self.runs[precision] = this_code.assemble(self.args, precision, pixels)
        return self.runs[precision]

    def reference_step(self, views: Tensor) -> Call:
        return functools.partial(self.recipe.step, views)

    def step(self, precision: str, views: Tensor, grad_cache: bool = False) -> Call:
        return this_code.fixed_step(self.run(precision), views, grad_cache)

    def view_making(self, precision: str) -> Call:
        """Making the views of one training step."""
        pixels = self.images(self.args.batch_size).pixels
        return this_code.view_making_of(self.run(precision), pixels)

    def reference_epoch(self) -> Call:
        loader = self.loader(self.epoch_images, VIEWS, self.args.batch_size)
        return functools.partial(self.recipe.epoch, loader)

    def epoch(self, precision: str) -> Call:
        return functools.partial(this_code.epoch, self.run(precision))

    # ------------------------------------------------------------------------ linear evaluation

    @property
    def linear_images(self) -> tuple[Images, Images, int]:
        """Training images, test images, and images per batch."""
        count = self.args.linear_images
        return self.images(count), self.images(count // 2), min(512, count // 2)

    @functools.cached_property
    def linear(self) -> this_code.Linear:
        """This code's linear evaluation."""
        train, test, batch = self.linear_images
        size = self.args.image_size
        return this_code.Linear(self.args.arch, train, test, batch, size, self.device)

    def linear_encoding(self, precision: str) -> Call:
        return functools.partial(self.linear.encode, precision)

    def linear_epoch(self, precision: str) -> Call:
        if precision not in self.linear.test_features:
            self.linear.encode(precision)
        return functools.partial(self.linear.epoch, precision)

    def reference_linear_epoch(self) -> Call:
        train, test, batch = self.linear_images
        model = Model(DIM, self.args.arch)
        evaluation = reference_recipe.Linear(
            model.f, model.feature_size, len(train.classes), self.device
        )
        tests = reference_recipe.Views(test.pixels, test.labels, reference_recipe.evaluation())
        return functools.partial(
            evaluation.epoch,
            self.loader(train, 1, batch),
            reference_recipe.loader(tests, batch, self.device, shuffle=False),
        )
