"""Pictures of runs and of what the attention does, as PNG files in pic/.

python -m experiments.plot curves --csv results/photos/*.csv         loss and kNN against epochs
python -m experiments.plot attention --model_path random WEIGHTS     views with their α and β
python -m experiments.plot flags --model_path random WEIGHTS         how many of them count
python -m experiments.plot neighbours --model_path random WEIGHTS    nearest training images
"""

import argparse
from pathlib import Path

import numpy as np

from attentionce import cli
from attentionce.errors import UserError, as_user_error
from attentionce.runs import files
from attentionce.training import devices
from experiments import encoder_figures, results
from experiments.style import plt
from model import ARCHS
from utils import DATASETS


def plot_curves(args: argparse.Namespace) -> plt.Figure:
    """Loss and kNN top-1 against epochs, views and time: mean and range of the seeds of a run.

    Raises:
        UserError: `--csv` has no tables of main.py.
    """
    runs: dict[str, list[np.ndarray]] = {}
    for path in args.csv:
        if not path.endswith("_linear.csv"):  # which linear.py writes beside main.py's
            runs.setdefault(results.title(Path(path)), []).append(read_metrics(path))
    if not runs:
        raise UserError("curves needs --csv, the tables of metrics of main.py, not of linear.py")
    figure, axes = plt.subplots(
        2, 3, figsize=(11, 6), sharex="col", sharey="row", layout="constrained"
    )
    for column, (name, unit, label) in enumerate(
        (
            ("epoch", 1, "epochs"),
            ("views", 1000, "encoded views (thousands)"),
            ("seconds", 60, "minutes of training"),
        )
    ):
        for title, tables in runs.items():
            rows = min(len(table) for table in tables)  # as far as all have come
            for axis, measured in zip(axes[:, column], ("loss", "knn_top1"), strict=True):
                x, y = (np.stack([t[key][:rows] for t in tables]) for key in (name, measured))
                there = ~np.isnan(y).any(0)  # kNN accuracy is not measured after every epoch
                x, y = x[:, there].mean(0) / unit, y[:, there]
                mark = "." if measured == "knn_top1" else ""
                (line,) = axis.plot(x, y.mean(0), marker=mark, label=title)
                axis.fill_between(x, y.min(0), y.max(0), color=line.get_color(), alpha=0.15, lw=0)
        axes[1, column].set_xlabel(label)
        axes[1, column].locator_params(axis="x", nbins=5)
    axes[0, 0].set_ylabel("loss (each on its own scale)" if len(runs) > 1 else "loss")
    axes[1, 0].set_ylabel("kNN top-1 (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncol=2)
    return figure


def read_metrics(path: str) -> np.ndarray:
    """A table of main.py: an array with a field per column, NaN where it has no figure.

    Raises:
        UserError: It is not a table of main.py, or has no rows yet.
    """
    names = ["epoch", "views", "seconds", "loss", "knn_top1"]
    with as_user_error(f"{path} is not a table of metrics of main.py"):
        table = np.genfromtxt(path, delimiter=",", names=True, ndmin=1)[names]
        if not len(table):
            raise ValueError("it has no rows yet")
    return table


PICTURES = {
    "curves": plot_curves,
    "attention": encoder_figures.plot_attention,
    "flags": encoder_figures.plot_flags,
    "neighbours": encoder_figures.plot_neighbours,
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
