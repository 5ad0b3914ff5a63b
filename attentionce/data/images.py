"""What all readers of data sets share: the result, what to say about it, and downloads."""

import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import NamedTuple

import torch

from attentionce.errors import as_user_error


class Images(NamedTuple):
    """A data set. `pixels` may be a read-only memory-mapped file: index it, never write to it."""

    pixels: torch.Tensor  # uint8 N×3×H×W, contiguous
    labels: torch.Tensor  # int64 N; -1: unlabelled, which come last unless all were asked for
    classes: list[str]
    source: str = ""  # which part of which data set
    left_out: str = ""  # how many files were not read, and why
    fingerprint: str = ""  # differs between any two sets of images
    paths: Sequence[str] = ()  # inside the folder of the images, with / on every system


def summary(images: Images) -> str:
    """How many images of what size, with which labels, and what was left out, in one line."""
    count = len(images.pixels)
    labels = int((images.labels >= 0).sum())
    classes = f"{len(images.classes)} class{'' if len(images.classes) == 1 else 'es'}"
    if labels == count:
        what = f"{count:,} images of {classes}"
    elif labels:
        what = f"{count:,} images, {labels:,} of {classes} and {count - labels:,} without labels"
    else:
        what = f"{count:,} images without labels"
    height, width = images.pixels.shape[2:]
    line = f"{what}, {width}×{height} px ({images.source})"
    return f"{line}; left out: {images.left_out}" if images.left_out else line


def labelled(images: Images) -> Images:
    """The images that have a label, as a part of the same memory."""
    count = int((images.labels >= 0).sum())
    return images._replace(pixels=images.pixels[:count], labels=images.labels[:count])


@contextmanager
def fetching(archive: str, md5: str, url: str, root: str, folder: str) -> Iterator[None]:
    """Around a download by torchvision: a UserError that says which file to put where."""
    advice = (
        f"no usable {archive}: put {archive} (md5 {md5}, from {url}) into the folder {root!r} "
        f"and remove any {folder} from it"
    )
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # or a network that swallows packets would hang the program
    try:
        with redirect_stdout(sys.stderr), as_user_error(advice):
            yield
    finally:
        socket.setdefaulttimeout(timeout)
