"""Pictures of runs and of what the attention does, as PNG files in pic/.

python -m experiments.plot curves --csv results/photos/*.csv         loss and kNN against epochs
python -m experiments.plot attention --model_path random WEIGHTS     views with their α and β
python -m experiments.plot numbers --model_path random WEIGHTS …     how many negatives count
python -m experiments.plot flags --model_path random WEIGHTS         the same against d_pos, d_neg
python -m experiments.plot neighbours --model_path random WEIGHTS    nearest training images
python -m experiments.plot map --model_path random WEIGHTS           t-SNE of test features
python -m experiments.plot accuracy --study cifar10                  linear accuracy of a study
python -m experiments.plot grid                                      accuracy on d_pos × d_neg
"""

import argparse
from pathlib import Path

from attentionce import cli
from attentionce.data.images import Images
from attentionce.errors import UserError
from attentionce.runs import files
from attentionce.training import devices
from experiments import encoder_figures, result_figures, studies
from experiments.style import Figure, plt
from utils import DATASETS, load

OF_ENCODERS = {
    "attention": encoder_figures.plot_attention,
    "numbers": encoder_figures.plot_numbers,
    "flags": encoder_figures.plot_flags,
    "neighbours": encoder_figures.plot_neighbours,
    "map": encoder_figures.plot_map,
}
OF_RESULTS = {
    "curves": result_figures.plot_curves,
    "accuracy": result_figures.plot_accuracy,
    "grid": result_figures.plot_grid,
}
PICTURES = [*OF_ENCODERS, *OF_RESULTS]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Which pictures, and of what."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("pictures", nargs="+", choices=PICTURES, metavar="PICTURE", help=", ".join(PICTURES))
    add("--csv", nargs="+", default=[], help="metrics of main.py")
    add(
        "--model_path",
        nargs="+",
        default=["random"],
        metavar="PATH",
        help="weights; random: untrained",
    )
    add("--dataset_name", default="photos", choices=DATASETS)
    add("--root", default="data", help="folder of the data sets")
    add("--store_size", type=int, default=64, help="side of the images of a folder, in pixels")
    add("--image_size", type=int, default=32, help="side of a view, in pixels")
    add("--batch_size", type=int, default=256, help="images whose anchors are negatives")
    add("--num_pos", type=int, default=4, help="positives per image")
    add("--d_pos", type=float, default=1.0)
    add("--d_neg", type=float, default=1.0)
    add("--seed", type=int, default=0)
    add("--device", help="cuda, mps or cpu (default: the first available)")
    add("--results", default="results", help="folder of reproduce.py's results")
    add("--study", default="cifar10", help="accuracy: data set and flags, as given to reproduce.py")
    add(
        "--beside",
        choices=studies.TITLES,
        help="accuracy: the data set whose published figures are drawn (default: the study's)",
    )
    add("--out", default="pic", help="folder of the pictures")
    return parser.parse_args(argv)


def main() -> None:
    """Draw the pictures that are asked for, and print their paths.

    Raises:
        UserError: A picture lacks what it is drawn from.
    """
    args = parse_args()
    args.device = devices.choose_device(args.device)
    out = files.writable_folder(Path(args.out))
    if "curves" in args.pictures and not args.csv:
        raise UserError("curves needs --csv, the tables of metrics of main.py")
    needs_images = any(picture in OF_ENCODERS for picture in args.pictures)
    images = open_images(args) if needs_images else None
    for picture in args.pictures:
        figure = draw(picture, args, images)
        figure.savefig(out / f"{picture}.png")
        plt.close(figure)
        print(out / f"{picture}.png")


def open_images(args: argparse.Namespace) -> Images:
    """The test images of the data set; `--batch_size` is lowered to as many as there are.

    Raises:
        UserError: There are too few.
    """
    images = load(args.dataset_name, args.root, "test", args.store_size)
    args.batch_size = min(args.batch_size, len(images.pixels))
    if args.batch_size < 4:
        raise UserError(
            f"{args.batch_size} images are too few for a picture: --batch_size must be at least 4"
        )
    return images


def draw(picture: str, args: argparse.Namespace, images: Images | None) -> Figure:
    """One picture; those of encoders need images."""
    if images is not None and picture in OF_ENCODERS:
        return OF_ENCODERS[picture](args, images)
    return OF_RESULTS[picture](args)


if __name__ == "__main__":
    cli.run(main)
