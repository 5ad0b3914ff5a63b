"""Pretrain an encoder: python main.py --dataset_name cifar10 --d_pos 1 --d_neg 10"""

import argparse
import functools
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import loss as losses
from attentionce import cli
from attentionce.data import views
from attentionce.data.images import Images
from attentionce.errors import UserError
from attentionce.evaluation.knn import clamp_k, features, knn
from attentionce.runs import file_names, files, locks, signals, states
from attentionce.runs.tensorboard import open_board, write_epoch
from attentionce.training import devices, processes
from attentionce.training.moco import MoCo
from attentionce.training.one_epoch import NonFinite, train_epoch
from attentionce.training.pretraining import Run, new_progress
from model import ARCHS, Model, cost
from utils import DATASETS, load


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The settings, all of them, with the reference's names and defaults where it has them."""
    parser = cli.Parser(description=__doc__, formatter_class=cli.Help)
    add = parser.add_argument
    add(
        "--root",
        default="data",
        help="folder of the data sets; with --dataset_name folder, of your images",
    )
    add("--dataset_name", default="cifar10", metavar="NAME", help=", ".join(DATASETS))
    add(
        "--store_size",
        type=int,
        default=64,
        help="side that the images of a folder are kept at, in pixels",
    )
    add("--image_size", type=int, default=32, help="side of a view, in pixels")
    add(
        "--loss",
        default="attentionce",
        choices=file_names.PARAMETERS,
        help="what the encoder minimises",
    )
    add(
        "--temperature", type=float, default=0.5, help="temperature of the loss and of the kNN vote"
    )
    add(
        "--d_pos",
        type=float,
        default=1.0,
        help="scaling factor of the attention on positives: large, all count alike",
    )
    add(
        "--d_neg",
        type=float,
        default=1.0,
        help="scaling factor of the attention on negatives: small, the hardest alone",
    )
    add("--num_pos", type=int, default=4, help="attentionce: positives an image, M")
    add("--tau_plus", type=float, default=0.1, help="dcl, hcl, bcl: share of false negatives")
    add(
        "--alpha",
        type=float,
        help="bcl: how well the encoder ranks, 0.5 is chance (default: its authors', see README)",
    )
    add(
        "--beta",
        type=float,
        help="hcl, bcl: weight of hard negatives (default: its authors', see README)",
    )
    add(
        "--estimator",
        default="SimCLR",
        choices=["SimCLR", "MoCo"],
        help="the framework; part of the file name",
    )
    add(
        "--momentum",
        type=float,
        default=0.99,
        help="MoCo: what the momentum encoder keeps of itself at a step",
    )
    add("--queue", type=int, default=4096, help="MoCo: negatives in the queue")
    add("--arch", default="resnet50", choices=ARCHS, help="encoder")
    add("--feature_dim", type=int, default=128, help="size of the projection")
    add("--batch_size", type=int, default=256, help="images a step")
    add("--epochs", type=int, default=400, help="passes over the images")
    add("--lr", type=float, default=1e-3, help="learning rate of Adam")
    add("--weight_decay", type=float, default=1e-6, help="of Adam")
    add("--seed", type=int, default=0, help="all randomness is a function of (seed, epoch, step)")
    add(
        "--deterministic",
        action="store_true",
        help="CUDA runs with one seed give the same bits; slower",
    )
    add(
        "--bn",
        default="local",
        choices=["local", "sync"],
        help="BatchNorm's batch: a process's (as DataParallel) or all",
    )
    add("--device", help="cuda, mps or cpu (default: the first that is there)")
    add(
        "--precision",
        default="auto",
        choices=devices.PRECISIONS,
        help="auto: bf16 on CUDA that has it, else fp32",
    )
    add(
        "--grad_cache",
        action="store_true",
        help="the memory of one view instead of all, for one more forward pass",
    )
    add(
        "--compile",
        default="auto",
        choices=["auto", "on", "off"],
        help="torch.compile; auto: on CUDA",
    )
    add("--k", type=int, default=200, help="neighbours of the kNN accuracy")
    add("--knn_every", type=int, default=10, help="epochs between kNN accuracies; 0: never")
    add("--save_every", type=int, help="epochs between weights (default: 200; tinyImageNet: 100)")
    add("--results", default="results", help="folder that weights, metrics and states go to")
    add(
        "--tensorboard",
        action="store_true",
        help="also write scalars, views and the attention for TensorBoard",
    )
    add("--resume", default="auto", help="auto: this command's own state; a state's path; never")
    add("--state_minutes", type=float, default=10, help="minutes between states in mid-epoch")
    args = parser.parse_args(argv)
    if args.save_every is None:
        args.save_every = 100 if args.dataset_name == "tinyImageNet" else 200
    alpha, beta = {"stl10": (0.7, 1.0), "cifar100": (0.7, 1.0), "tinyImageNet": (0.8, 1.0)}.get(
        args.dataset_name, (0.9, 0.9)
    )
    args.alpha = alpha if args.alpha is None else args.alpha
    args.beta = args.beta if args.beta is not None else 1.0 if args.loss == "hcl" else beta
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded or written.

    Raises:
        UserError: names the flag, its value and what would do.
    """
    if args.dataset_name not in DATASETS:
        raise UserError(f"--dataset_name {args.dataset_name} is not one of {', '.join(DATASETS)}")
    for name in ("temperature", "d_pos", "d_neg", "lr"):
        if not (getattr(args, name) > 0 and math.isfinite(getattr(args, name))):
            raise UserError(f"--{name} must be a positive number, not {getattr(args, name)}")
    if args.estimator == "MoCo" and args.loss != "attentionce":
        raise UserError(f"--estimator MoCo goes with --loss attentionce, not {args.loss}")
    if not 0 <= args.momentum <= 1:
        raise UserError(f"--momentum must be between 0 and 1, not {args.momentum}")
    queue = args.batch_size if args.estimator == "MoCo" else 0
    least = {
        "epochs": 1,
        "batch_size": 2,
        "num_pos": 1,
        "feature_dim": 1,
        "image_size": 4,
        "store_size": 4,
        "k": 1,
        "save_every": 1,
        "knn_every": 0,
        "queue": queue,
        "seed": 0,
        "weight_decay": 0,
        "state_minutes": 0,
    }
    for name, smallest in least.items():
        if not getattr(args, name) >= smallest:
            raise UserError(f"--{name} must be at least {smallest}, not {getattr(args, name)}")
    try:
        if args.estimator == "SimCLR":
            loss_function(args)(torch.eye(2).expand(number_of_views(args), 2, 2))
    except ValueError as error:
        raise UserError(f"--loss {args.loss}: {error}") from None


def loss_function(args: argparse.Namespace) -> functools.partial:
    """The loss that `--loss` names, as a function of the embeddings; MoCo's of keys and queue too."""
    if args.estimator == "MoCo":
        return functools.partial(
            losses.attentionce_queue,
            temperature=args.temperature,
            d_pos=args.d_pos,
            d_neg=args.d_neg,
        )
    gather = processes.gather if processes.world() > 1 else None
    parameters = {name: getattr(args, name) for name in file_names.PARAMETERS[args.loss]}
    return functools.partial(
        getattr(losses, args.loss), temperature=args.temperature, gather=gather, **parameters
    )


def number_of_views(args: argparse.Namespace) -> int:
    """Two anchors, and M positives where the loss has any."""
    return 2 + args.num_pos if args.loss == "attentionce" else 2


def main() -> int:
    """Check everything that can be checked, then train; returns the exit status."""
    args = parse_args()
    check_args(args)
    if args.batch_size % processes.world() or args.batch_size < 2 * processes.world():
        needed = f"{processes.world()} processes need a multiple of their number, at least two images each"
        raise UserError(
            f"--batch_size {args.batch_size} is that of all processes together: {needed}"
        )
    device = devices.choose_device(args.device)
    dtype = devices.choose_precision(args.precision, device)
    if args.bn == "sync" and device.type != "cuda":
        raise UserError(f"--bn sync needs CUDA, not {device.type}")
    folder = Path(args.results) / args.dataset_name
    if processes.rank() > 0:  # which writes nothing
        return pretrain(args, folder, device, dtype)
    signals.leave_on_signals()
    files.writable_folder(folder)
    path = (
        folder / f"{file_names.stem(args, 'all')}.lock"
    )  # runs that differ in --epochs alone write the same weights
    held = locks.lock(path)
    try:
        states.remove_temporary(args, folder)
        return pretrain(args, folder, device, dtype)
    finally:
        locks.unlock(path, held)


def pretrain(
    args: argparse.Namespace, folder: Path, device: torch.device, dtype: torch.dtype
) -> int:
    """Assemble the run, restore its state, and train, evaluate and save epoch after epoch."""
    state = processes.from_first(lambda: states.find_state(args, folder))
    images = processes.in_turn(load, args.dataset_name, args.root, "pretrain", args.store_size)
    if not processes.alike(len(images.pixels)):
        raise UserError(f"--root {args.root}: not every machine has the same images there")
    if len(images.pixels) < args.batch_size:
        raise UserError(
            f"{len(images.pixels)} images are fewer than a batch: --batch_size {args.batch_size} is too large"
        )
    evaluate = knn_evaluation(args, images, device, dtype) if args.knn_every else None
    run = assemble(args, images.pixels, device, dtype)
    if state is not None:
        states.restore(run, state)
    path = folder / file_names.stem(args, args.epochs)
    if run.progress["epoch"] > args.epochs:
        return already_trained(run, path)
    board = (
        open_board(path, run.progress["epoch"])
        if args.tensorboard and processes.rank() == 0
        else None
    )
    write = functools.partial(states.write_state, run, path.with_name(path.name + ".state"))
    received = signals.catch_signals()
    while run.progress["epoch"] <= args.epochs:
        try:
            stop = train_epoch(run, received, write)
        except NonFinite as error:
            kept = path.with_name(path.name + ".nonfinite.state")
            states.write_state(run, kept)
            raise NonFinite(f"{error}; the state before that step is in {kept}") from None
        if stop:
            states.announce_stop(run, path)
            return signals.exit_status(stop)
        if evaluation_due(run, evaluate) and run.saved_at != run.position:
            write()  # before what may take longer than a signal leaves
        finish_epoch(run, path, evaluate)
        if board is not None:
            write_epoch(board, run, images.pixels)
        write()
    return 0


def assemble(
    args: argparse.Namespace, pixels: Tensor, device: torch.device, dtype: torch.dtype
) -> Run:
    """Model, optimiser and everything else that a fresh run needs, on the device."""
    devices.reproducible(args.deterministic)
    torch.manual_seed(args.seed)
    model = Model(args.feature_dim, args.arch)
    parameters, macs = cost(model, args.image_size)
    size = f"{parameters / 1e6:.2f} M parameters, {macs / 1e9:.2f} G multiply-adds a view of {args.image_size} px"
    print(f"{args.arch}: {size}", flush=True)
    model = model.to(device, memory_format=torch.channels_last)
    if args.bn == "sync" and processes.world() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    compiled = args.compile == "on" or (
        args.compile == "auto" and device.type == "cuda" and devices.compiles(device)
    )
    moco = (
        MoCo(model, args.queue, args.momentum, args.feature_dim).to(device)
        if args.estimator == "MoCo"
        else None
    )
    ops = views.compiled() if compiled else views.Ops()
    return Run(
        args=args,
        device=device,
        dtype=dtype,
        pixels=devices.keep(pixels, device),
        model=model,
        encoder=torch.compile(model) if compiled else model,
        optimizer=torch.optim.Adam(
            model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True
        ),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        loss=loss_function(args),
        views=number_of_views(args),
        make_view=functools.partial(views.make_view, size=args.image_size, ops=ops),
        progress=new_progress(len(pixels) // args.batch_size, device),
        moco=moco,
        key_encoder=torch.compile(moco.model) if moco and compiled else None,
    )


def knn_evaluation(
    args: argparse.Namespace, images: Images, device: torch.device, dtype: torch.dtype
) -> Callable:
    """A function of the model: its kNN accuracy, top-1 and top-5 in percent, of test images in a bank of training images."""
    bank = (
        images
        if args.dataset_name != "stl10"
        else processes.in_turn(load, "stl10", args.root, "train")
    )
    test = processes.in_turn(load, args.dataset_name, args.root, "test", args.store_size)
    k = clamp_k(args.k, len(bank.pixels))

    def evaluate(model: Model) -> tuple[float, float]:
        processes.same_buffers(model)
        known, asked = (features(model.f, split.pixels, device, dtype) for split in (bank, test))
        return knn(known, bank.labels, asked, test.labels, len(bank.classes), k, args.temperature)

    return evaluate


def evaluation_due(run: Run, evaluate: Callable | None) -> bool:
    """Whether the kNN accuracy is to be measured after the current epoch."""
    epoch = run.progress["epoch"]
    return evaluate is not None and (epoch % run.args.knn_every == 0 or epoch == run.args.epochs)


def finish_epoch(run: Run, path: Path, evaluate: Callable | None) -> None:
    """Evaluate, add the epoch's row to the metrics, and write what is due."""
    args, progress = run.args, run.progress
    epoch = progress["epoch"]
    row = {
        "epoch": epoch,
        "loss": progress["losses"].cpu().double().nanmean().item(),
        "views": epoch * run.steps * args.batch_size * run.views,  # encoded so far
        "seconds": round(progress["seconds"], 3),  # of training so far, evaluation not counted
        "skipped": int(progress["skipped"]),  # by fp16's gradient scaler
        "effective_positives": "",
        "effective_negatives": "",
        "knn_top1": "",
        "knn_top5": "",
    }
    if args.loss == "attentionce":
        row["effective_positives"], row["effective_negatives"] = progress["effective"]
    if evaluation_due(run, evaluate):
        row["knn_top1"], row["knn_top5"] = evaluate(run.model)
        progress["best_knn"] = max(progress["best_knn"], row["knn_top1"])
        print(
            f"epoch {epoch}: kNN top-1 {row['knn_top1']:.2f} %, top-5 {row['knn_top5']:.2f} %",
            flush=True,
        )
    progress["rows"].append(row)
    progress.update(epoch=epoch + 1, step=0, losses=torch.zeros_like(progress["losses"]))
    write_results(run, path)


def write_results(run: Run, path: Path) -> None:
    """Metrics, flags and, where they are due, weights after the last epoch that is done."""
    args, progress = run.args, run.progress
    epoch = progress["epoch"] - 1
    if processes.rank() > 0:
        return
    files.save_csv(path.with_name(path.name + ".csv"), progress["rows"])
    files.save_json(path.with_name(path.name + ".json"), describe(run))
    if epoch % args.save_every == 0 or epoch == args.epochs:
        state_dict = {
            f"module.{key}": value.cpu().contiguous()
            for key, value in run.model.state_dict().items()
        }
        files.save(path.parent / f"{file_names.stem(args, epoch)}.pth", state_dict)


def already_trained(run: Run, path: Path) -> int:
    """Nothing is left to do for a run that has been extended or that is called twice.

    Raises:
        UserError: the state that `--resume` names is one of more epochs.
    """
    done, epochs = run.progress["epoch"] - 1, run.args.epochs
    if done > epochs:
        raise UserError(
            f"--resume {run.args.resume} has {done} epochs already: give an --epochs above that"
        )
    if not path.with_name(
        path.name + ".pth"
    ).exists():  # --results names another folder than before, perhaps
        write_results(run, path)
    print(f"already trained for {epochs} epochs: {path}.pth")
    return 0


def describe(run: Run) -> dict[str, object]:
    """What a result file says beside the numbers: every flag, command, versions, hardware and time."""
    progress = run.progress
    return {
        "flags": vars(run.args),
        "command": shlex.join(sys.argv),
        "machine": devices.machine(run.device),
        "precision": str(run.dtype).removeprefix("torch."),
        "processes": processes.world(),
        "epochs_done": progress["epoch"] - 1,
        "best_knn": progress["best_knn"],
        "last": progress["rows"][-1],
        "hours": progress["seconds"] / 3600,
    }


if __name__ == "__main__":
    cli.run(main)
