"""Write the features of images to a file:

python embed.py --model_path results/cifar10/….pth --root DIR --out features.npz
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out

from attentionce import cli
from attentionce.data.decoding import BrokenImage, refuse
from attentionce.data.lazy_images import LazyImages, image_warnings, lazy_folder, read_blocks
from attentionce.errors import UserError
from attentionce.evaluation.knn import features
from attentionce.runs import files
from attentionce.runs.feature_files import WRITERS, Partial, Table
from attentionce.training import devices, processes
from model import ARCHS, STEMS, Model, load_encoder, load_model
from utils import DATASETS, load

# ------------------------------------------------------------------------------------- settings


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The settings."""
    parser = cli.Parser(description=__doc__, formatter_class=cli.Help)
    add = parser.add_argument_group("encoder").add_argument
    add(
        "--model_path",
        type=cli.path,
        required=True,
        metavar="PATH",
        help="weights that hold an encoder, or random for an untrained one",
    )
    add("--arch", choices=ARCHS, help="default: read off the weights; random: resnet50")
    add("--stem", choices=STEMS, help="default: read off the weights; random: small")
    add("--seed", type=int, default=0, help="of an untrained encoder")
    add = parser.add_argument_group("images").add_argument
    add("--root", type=cli.path, default="data", help="folder of your images, or of the data sets")
    add("--dataset_name", default="folder", metavar="NAME", help=", ".join(DATASETS))
    add(
        "--image_size",
        "--store_size",
        type=int,
        default=64,
        help="side that a folder's images are resized and cropped to, in pixels",
    )
    add("--skip_broken", action="store_true", help="leave out images that cannot be read")
    add("--big_images", action="store_true", help="read images above PIL's limit of 89 megapixels")
    add(
        "--batch_size",
        type=int,
        default=512,
        help="images of 32 px to encode at a time; of larger ones fewer, in the same memory",
    )
    add = parser.add_argument_group("output").add_argument
    add(
        "--out",
        type=cli.path,
        default="features.npz",
        metavar="FILE",
        help="ends in .npz, .csv or .safetensors",
    )
    add("--projection", action="store_true", help="also write the projections")
    cli.add_device_flags(parser)
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded or written.

    Raises:
        UserError: Names the flag, its value, and what would work.
    """
    if processes.world() > 1:
        raise UserError("embed.py works in one process: start it without torchrun")
    if args.dataset_name not in DATASETS:
        raise UserError(f"--dataset_name {args.dataset_name} is not one of {', '.join(DATASETS)}")
    cli.check_seed(args)
    cli.check_at_least(args, batch_size=1, image_size=4, seed=0)
    out = Path(args.out)
    if out.suffix not in WRITERS:
        raise UserError(f"--out {out} must end in {', '.join(WRITERS)}")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out {out} must name a file in a folder that exists")


# ------------------------------------------------------------------------------------- program


def main(argv: Sequence[str] | None = None) -> int:
    """Encode the images whose rows are not in the partial file beside `--out`, then write `--out`.

    Returns:
        The exit status.
    """
    args = parse_args(argv)
    check_args(args)
    device = devices.choose_device(args.device)
    dtype = devices.choose_precision(args.precision, device)
    devices.reproducible(False)
    out = Path(args.out)
    encoder, arch = open_encoder(args)
    settings = {"weights": digest(encoder), "precision": str(dtype).removeprefix("torch.")}
    images = open_images(args)
    settings["image size"] = "×".join(map(str, images.size))
    classes = f", {len(images.classes)} classes" if images.classes else ""
    print(f"{len(images.paths):,} images of {settings['image size']} px{classes}", flush=True)
    if images.left_out:
        print(f"left out: {images.left_out}", flush=True)
    print(f"{arch} on {device} in {settings['precision']}", flush=True)
    columns = encoder.columns(arch)
    encoder = encoder.to(device).to(memory_format=torch.channels_last)
    with alone(out):
        path = out.with_name(out.name + ".partial")
        partial = Partial(path, sum(columns.values()), {**settings, "columns": columns})
        marks = images.marks()

        def encode(pixels: Tensor) -> Tensor:
            return features(encoder, pixels, device, dtype, args.batch_size)

        with image_warnings(args.big_images):
            broken = encode_missing(images, marks, partial, args.batch_size, encode)
        if not args.skip_broken or len(broken) == len(marks):
            refuse(broken, " and give the same command again, or leave them out (--skip_broken)")
        table = finished(images, partial.find(marks), partial, columns)
        files.replace(out, lambda file: WRITERS[out.suffix](file, table))
        partial.remove()
    sizes = ", ".join(f"{name} of {size} numbers" for name, size in columns.items())
    without = f", without {len(broken):,} that cannot be read" if broken else ""
    print(f"{out}: {len(table.paths):,} images{without}, {sizes}")
    return 0


def finished(
    images: LazyImages, positions: np.ndarray, partial: Partial, columns: dict[str, int]
) -> Table:
    """The rows of the images that could be read.

    Args:
        positions: Those of the images' rows in `partial`; -1: none.
    """
    good = np.flatnonzero(positions >= 0).tolist()
    rows = positions[good]
    return Table(
        [images.paths[i] for i in good],
        [images.labels[i] for i in good],
        images.classes,
        columns,
        lambda first, last: partial.take(rows[first:last])["numbers"],
    )


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold a lock on the output; on a file system without locks, go on without one.

    Raises:
        UserError: Another process holds it.
    """
    path = out.with_name(out.name + ".lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process writes {out}: wait for it, or name another --out"
        ) from None
    except (OSError, NotImplementedError) as error:
        print(f"cannot lock {path} ({error}): nothing else must write {out} meanwhile", flush=True)
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            path.unlink()


# ------------------------------------------------------------------------------------- encoder


class Encoder(nn.Module):
    """Images → features and, if there is a projection head, projections beside them: B×(D + P).

    Neither is normalised.
    """

    def __init__(self, f: nn.Sequential, g: nn.Sequential | None = None):
        super().__init__()
        self.f, self.g = f, g

    def columns(self, arch: str) -> dict[str, int]:
        """How many numbers the feature of an image has, and how many its projection."""
        found = {"feature": 512 * ARCHS[arch][0].expansion}
        if self.g is not None:
            found["projection"] = self.g.state_dict()["3.bias"].numel()
        return found

    def forward(self, images: Tensor) -> Tensor:
        feature = torch.flatten(self.f(images), 1)
        return feature if self.g is None else torch.cat([feature, self.g(feature)], 1)


def open_encoder(args: argparse.Namespace) -> tuple[Encoder, str]:
    """(encoder, arch) of weights, or untrained for `random`."""
    if args.model_path != "random" and not args.projection:
        f, arch = load_encoder(args.model_path, args.arch, args.stem)
        return Encoder(f), arch
    if args.model_path == "random":
        torch.manual_seed(args.seed)
        arch = args.arch or "resnet50"
        model = Model(arch=arch, stem=args.stem or "small")
    else:
        model, arch = load_model(args.model_path, args.arch, args.stem)
    return Encoder(model.f, model.g if args.projection else None), arch


def digest(encoder: Encoder) -> str:
    """A number that changes with the weights."""
    found = hashlib.sha256()
    for name, value in encoder.state_dict().items():
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


# ------------------------------------------------------------------------------------- images


def open_images(args: argparse.Namespace) -> LazyImages:
    """The images of `--root` or of a data set by name."""
    if args.dataset_name == "folder":
        return lazy_folder(args.root, args.image_size)
    return open_data_set(args)


def open_data_set(args: argparse.Namespace) -> LazyImages:
    """The test and training images of a data set, with the path `test/000000` and so on."""
    parts = [
        load(args.dataset_name, args.root, split, args.image_size) for split in ("test", "pretrain")
    ]
    places = [(part, i) for part in parts for i in range(len(part.pixels))]
    paths = [f"test/{i:06d}" for i in range(len(parts[0].pixels))]
    paths += [f"train/{i:06d}" for i in range(len(parts[1].pixels))]

    def read(i: int) -> np.ndarray:
        part, index = places[i]
        return part.pixels[index].numpy()

    height, width = parts[0].pixels.shape[2:]
    labels = torch.cat([part.labels for part in parts]).tolist()
    return LazyImages(
        paths, labels, parts[0].classes, (height, width), read, lambda i: read(i).tobytes()
    )


# ------------------------------------------------------------------------------------- encoding


def encode_missing(
    images: LazyImages,
    marks: np.ndarray,
    partial: Partial,
    batch_size: int,
    encode: Callable[[Tensor], Tensor],
) -> dict[int, BrokenImage]:
    """Encode the images that have no row yet, block after block; each block's rows are then safe.

    Args:
        marks: The images' marks.
        encode: Images uint8 B×3×H×W → rows B×(D + P).

    Returns:
        The images that cannot be read, by index.
    """
    missing = np.flatnonzero(partial.find(marks) < 0).tolist()
    done = len(marks) - len(missing)
    if done:
        print(f"{done:,} of them are finished already", flush=True)
    broken: dict[int, BrokenImage] = {}
    bar = tqdm(total=len(marks), initial=done, unit="image", leave=False, disable=None)
    with bar:
        for index, block in read_blocks(images, missing, batch_size):
            pixels: dict[int, np.ndarray] = {}
            for i, image in zip(index, block, strict=True):
                if isinstance(image, BrokenImage):
                    broken[i] = image
                else:
                    pixels[i] = image
            if pixels:
                rows = encode(torch.from_numpy(np.stack([*pixels.values()])))
                partial.add(marks[[*pixels]], rows.cpu().numpy())
            bar.update(len(index))
    return broken


if __name__ == "__main__":
    cli.run(main)
