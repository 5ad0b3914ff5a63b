"""Pictures of runs and of what the attention does, as PNG files in pic/.

python -m experiments.plot curves --csv results/photos/*.csv         loss and kNN against epochs
python -m experiments.plot attention --model_path random WEIGHTS     views with their α and β
python -m experiments.plot flags --model_path random WEIGHTS         how many of them count
python -m experiments.plot neighbours --model_path random WEIGHTS    nearest training images
python -m experiments.plot map --model_path random WEIGHTS           t-SNE of test features
"""

import argparse
from pathlib import Path

from attentionce import cli
from attentionce.runs import files
from attentionce.training import devices
from experiments import encoder_figures, result_figures
from experiments.style import plt
from model import ARCHS
from utils import DATASETS

PICTURES = {
    "curves": result_figures.plot_curves,
    "attention": encoder_figures.plot_attention,
    "flags": encoder_figures.plot_flags,
    "neighbours": encoder_figures.plot_neighbours,
    "map": encoder_figures.plot_map,
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Which pictures, and of what."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("pictures", nargs="+", choices=PICTURES, metavar="PICTURE", help=", ".join(PICTURES))
    add("--csv", nargs="+", default=[], help="metrics of main.py")
    add("--model_path", nargs="+", default=["random"], help="weights; random: untrained")
    add("--arch", default="resnet10", choices=ARCHS, help="of random weights")
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
    for picture in args.pictures:
        figure = PICTURES[picture](args)
        figure.savefig(out / f"{picture}.png")
        plt.close(figure)
        print(out / f"{picture}.png")


if __name__ == "__main__":
    cli.run(main)
