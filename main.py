"""Pretrain an encoder: python main.py --dataset_name cifar10 --d_pos 1 --d_neg 10"""

import argparse
import inspect
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out

from attentionce import cli
from attentionce.data import views
from attentionce.data.folder_layout import NoLabels
from attentionce.data.images import Images, labelled, summary
from attentionce.errors import UserError
from attentionce.evaluation.knn import clamp_k, features, knn
from attentionce.runs import file_names, files, locks, signals, states, tensorboard
from attentionce.training import devices, processes
from attentionce.training.memory import expected_bytes
from attentionce.training.moco import MoCo
from attentionce.training.one_epoch import NonFinite, train_epoch
from attentionce.training.pretraining import Run, new_progress, restore, state_of
from loss import LOSSES
from model import ARCHS, STEMS, Model, cost
from utils import DATASETS, load

# ------------------------------------------------------------------------------------- settings


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The settings, with the reference's names and defaults where it has them."""
    parser = cli.Parser(description=__doc__, formatter_class=cli.Help)
    cli.add_data_flags(parser, DATASETS)
    add_method_flags(parser)
    add_training_flags(parser)
    cli.add_device_flags(parser)
    cli.add_compile_flag(parser)
    add_run_flags(parser)
    args = parser.parse_args(argv)
    if args.save_every is None:
        args.save_every = 100 if args.dataset_name == "tinyImageNet" else 200
    for name, users in losses_by_parameter().items():
        if getattr(args, name) is None:
            user = args.loss if args.loss in users else users[-1]
            setattr(args, name, authors_setting(user, name, args.dataset_name))
    return args


def losses_by_parameter() -> dict[str, list[str]]:
    """Every parameter of a loss besides the temperature, with the losses that take it."""
    users: dict[str, list[str]] = {}
    for loss, entry in LOSSES.items():
        for name in entry.parameters:
            users.setdefault(name, []).append(loss)
    return users


def authors_setting(loss: str, name: str, dataset: str) -> float:
    """A parameter's value on a data set as the loss's authors choose it."""
    default = inspect.signature(LOSSES[loss].function).parameters[name].default
    return LOSSES[loss].settings.get(dataset, {}).get(name, default)


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    """Views, loss, framework and encoder."""
    add = parser.add_argument_group("method").add_argument
    add("--image_size", type=int, default=32, help="side of a view, in pixels")
    add("--loss", default="attentionce", choices=LOSSES, help="what the encoder minimises")
    add("--temperature", type=float, default=0.5, help="of the loss and of the kNN vote")
    add("--num_pos", type=int, default=4, help="positives per image, M, of losses that take any")
    for name, users in losses_by_parameter().items():
        values = {authors_setting(user, name, dataset) for user in users for dataset in DATASETS}
        one = len(values) == 1
        text = f"{', '.join(users)}: {LOSSES[users[0]].parameters[name]}"
        text += "" if one else " (default: its authors', see docs/flags.md)"
        add(f"--{name}", type=float, default=values.pop() if one else None, help=text)
    add("--estimator", default="SimCLR", choices=["SimCLR", "MoCo"], help="the framework")
    add("--momentum", type=float, default=0.99, help="MoCo: of the momentum encoder")
    add("--queue", type=int, default=4096, help="MoCo: negatives in the queue")
    add("--arch", default="resnet50", choices=ARCHS, help="encoder")
    add(
        "--stem",
        default="small",
        choices=STEMS,
        help="small: 3×3 conv1; imagenet: torchvision's 7×7 and max-pool, for 96 px and more",
    )
    add("--feature_dim", type=int, default=128, help="size of the projection")
    add(
        "--bn",
        default="local",
        choices=["local", "sync"],
        help="BatchNorm's batch: that of each process (as in DataParallel) or of all processes",
    )


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """The optimiser's settings, and how a step computes."""
    add = parser.add_argument_group("training").add_argument
    add("--batch_size", type=int, default=256, help="images per step, over all processes")
    add("--epochs", type=int, default=400, help="passes over the images")
    add("--lr", type=float, default=1e-3, help="learning rate of Adam")
    add("--weight_decay", type=float, default=1e-6, help="of Adam")
    add("--seed", type=int, default=0, help="all randomness is a function of (seed, epoch, step)")
    add(
        "--deterministic",
        action="store_true",
        help="the same seed gives the same bits on CUDA too; slower",
    )
    add(
        "--grad_cache",
        action="store_true",
        help="the memory of one view instead of all, for one more forward pass",
    )


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """What a run measures, writes and continues from."""
    add = parser.add_argument_group("run").add_argument
    add("--k", type=int, default=200, help="neighbours that vote in the kNN accuracy")
    add("--knn_every", type=int, default=10, help="epochs between kNN accuracies; 0: never")
    add(
        "--save_every",
        type=int,
        help="epochs between weights (default: 200; tinyImageNet: 100)",
    )
    add(
        "--results", type=cli.path, default="results", help="folder for weights, metrics and states"
    )
    add(
        "--tensorboard",
        action="store_true",
        help="also write scalars, views and the attention for TensorBoard",
    )
    add(
        "--resume",
        type=cli.path,
        default="auto",
        help="auto: this command's own state; a state's path; never",
    )
    add("--state_minutes", type=float, default=10, help="minutes between states within an epoch")


def check_args(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded or written.

    Raises:
        UserError: Names the flag, its value, and what would work.
    """
    if args.dataset_name not in DATASETS:
        raise UserError(f"--dataset_name {args.dataset_name} is not one of {', '.join(DATASETS)}")
    cli.check_positive(args, "temperature", "d_pos", "d_neg", "lr")
    loss = LOSSES[args.loss]
    if args.estimator == "MoCo" and loss.queue is None:
        able = ", ".join(name for name, entry in LOSSES.items() if entry.queue)
        raise UserError(f"--estimator MoCo supports only --loss {able}, not {args.loss}")
    if not 0 <= args.momentum <= 1:
        raise UserError(f"--momentum must be between 0 and 1, not {args.momentum}")
    cli.check_at_least(
        args,
        epochs=1,
        batch_size=2,
        num_pos=1,
        feature_dim=1,
        image_size=4,
        store_size=4,
        k=1,
        save_every=1,
        knn_every=0,
        queue=args.batch_size if args.estimator == "MoCo" else 0,
        seed=0,
        weight_decay=0,
        state_minutes=0,
    )
    cli.check_seed(args)
    parameters = {name: getattr(args, name) for name in loss.parameters}
    try:
        loss.function(torch.eye(2).expand(loss.views(1), 2, 2), args.temperature, **parameters)
    except ValueError as error:
        raise UserError(f"--loss {args.loss}: {error}") from None


def check_processes(args: argparse.Namespace, device: torch.device) -> None:
    """Refuse what cannot work with this many processes or on this device."""
    world = processes.world()
    if args.batch_size % world or args.batch_size < 2 * world:
        raise UserError(
            f"--batch_size {args.batch_size} is global: {world} processes need a multiple of "
            f"{world} that gives each at least two images"
        )
    if args.bn == "sync" and device.type != "cuda":
        raise UserError(f"--bn sync needs CUDA, not {device.type}")


# ------------------------------------------------------------------------------------- the run


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything that can be checked, then pretrain.

    Returns:
        The exit status.
    """
    args = parse_args(argv)
    check_args(args)
    device = devices.choose_device(args.device)
    check_processes(args, device)
    dtype = devices.choose_precision(args.precision, device)
    command = cli.command_line(argv, "main.py")
    folder = Path(args.results) / args.dataset_name
    if processes.rank() > 0:  # only rank 0 writes
        with signals.handled():
            return pretrain(args, command, folder, device, dtype)
    files.writable_folder(folder)
    # Runs that differ in --epochs alone write the same weights: one lock for all of them.
    with signals.handled(), locks.held(folder / f"{file_stem(args, 'all')}.lock"):
        signals.leave_on_signals()
        states.remove_temporary(folder, file_stem(args))
        return pretrain(args, command, folder, device, dtype)


def pretrain(
    args: argparse.Namespace,
    command: list[str],
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """Images, model and state; then for every epoch: steps, evaluation, files."""
    defaults = vars(parse_args(["--dataset_name", args.dataset_name, "--loss", args.loss]))
    state = processes.from_first(lambda: states.find_state(args, defaults, folder, file_stem(args)))
    images = load_images(args)
    evaluate = knn_evaluation(args, images, device, dtype) if args.knn_every else None
    run = assemble(args, images.pixels, device, dtype)
    run.fingerprint = images.fingerprint
    if state is not None:
        restore(run, state)

    path = folder / file_stem(args, args.epochs)
    if run.progress["epoch"] > args.epochs:
        return already_trained(run, path, command)
    board = None
    if args.tensorboard and processes.rank() == 0:
        board = tensorboard.open_board(path, run.progress["epoch"])
    received = signals.catch_signals()
    while run.progress["epoch"] <= args.epochs:
        try:
            stop = train_epoch(run, received, lambda: save_state(run, path, ".state"))
        except NonFinite as error:
            kept = save_state(run, path, ".nonfinite.state")
            raise NonFinite(f"{error}; the state before that step is in {kept}") from None
        if stop:
            announce_stop(run, path, command)
            return signals.exit_status(stop)
        if evaluation_due(run, evaluate) and run.saved_at != run.position:
            save_state(run, path, ".state")  # evaluation may outlast the time after a signal
        finish_epoch(run, path, evaluate, command)
        if board is not None:
            tensorboard.write_epoch(board, run.progress["rows"][-1], epoch_pictures(run))
        save_state(run, path, ".state")
    return 0


def load_images(args: argparse.Namespace) -> Images:
    """The images to pretrain on.

    Raises:
        UserError: There are too few, or not the same on every machine.
    """
    options = cli.folder_options(args)
    images = processes.in_turn(
        load, args.dataset_name, args.root, "pretrain", args.store_size, options
    )
    print(f"pretraining on {summary(images)}", flush=True)
    cli.warn_of_small_images(images, args)
    if not processes.alike(len(images.pixels)):
        raise UserError(f"--root {args.root}: not every machine has the same images there")
    if len(images.pixels) < args.batch_size:
        raise UserError(
            f"{len(images.pixels)} images are fewer than a batch: "
            f"--batch_size {args.batch_size} is too large"
        )
    return images


def assemble(
    args: argparse.Namespace, pixels: Tensor, device: torch.device, dtype: torch.dtype
) -> Run:
    """Model, optimiser and everything else that a fresh run needs, on the device."""
    devices.reproducible(args.deterministic)
    torch.manual_seed(args.seed)
    model = Model(args.feature_dim, args.arch, args.stem)
    parameters, macs = cost(model, args.image_size)
    print(
        f"{args.arch}: {parameters / 1e6:.2f} M parameters, {macs / 1e9:.2f} G multiply-adds "
        f"per view of {args.image_size} px",
        flush=True,
    )
    model = model.to(device).to(memory_format=torch.channels_last)
    compiled, loss = uses_compiler(args, device), LOSSES[args.loss]
    expected = expected_bytes(model, args, loss.views(args.num_pos), dtype, compiled)
    if args.bn == "sync" and processes.world() > 1:  # now that memory is counted
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    moco = None
    if args.estimator == "MoCo":
        moco = MoCo(model, args.queue, args.momentum, args.feature_dim).to(device)
    print(
        f"{devices.device_name(device)} ({device}), {str(dtype).removeprefix('torch.')}, "
        f"{'compiled' if compiled else 'not compiled'}, "
        f"about {expected / 1e9:.1f} GB expected for {args.batch_size} images per step",
        flush=True,
    )
    devices.warn_of_unused_gpu(device)
    adam = torch.optim.Adam(
        model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True
    )
    return Run(
        args=args,
        device=device,
        dtype=dtype,
        pixels=devices.keep(pixels, device),
        model=model,
        encoder=processes.replicated(torch.compile(model) if compiled else model),
        optimizer=adam,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        loss=loss,
        progress=new_progress(len(pixels) // args.batch_size, device),
        view_ops=views.compiled() if compiled else views.Ops(),
        moco=moco,
        key_encoder=torch.compile(moco.model) if moco and compiled else None,
        compiled=compiled,
        grad_cache=args.grad_cache,
        # A compiler decides by itself what to keep; --grad_cache keeps no more than one view's.
        recompute=not compiled and not args.grad_cache,
    )


def uses_compiler(args: argparse.Namespace, device: torch.device) -> bool:
    """Whether encoder and views go through torch.compile."""
    wanted = cli.wants_compiler(args, device)
    if wanted and args.bn == "sync" and processes.world() > 1:
        print("--bn sync: continuing without torch.compile, whose graphs it would break", flush=True)
        return False
    return wanted


# ------------------------------------------------------------------------------------- evaluation


def knn_evaluation(
    args: argparse.Namespace, images: Images, device: torch.device, dtype: torch.dtype
) -> Callable[[Model], tuple[float, float]] | None:
    """A function of the model: its kNN accuracy on the test images, top-1 and top-5 in percent.

    The images with labels vote. Without any, or without test images, there is no such function.
    """
    test = processes.in_turn(load_test_images, args)
    if isinstance(test, str):
        print(f"no kNN accuracy: {test}", flush=True)
        return None
    bank = labelled(images)
    print(f"kNN accuracy on {summary(test)}; {len(bank.labels):,} images vote", flush=True)
    k = clamp_k(args.k, len(bank.pixels))

    def evaluate(model: Model) -> tuple[float, float]:
        processes.same_buffers(model)
        known = features(model.f, bank.pixels, device, dtype)
        asked = features(model.f, test.pixels, device, dtype)
        return knn(known, bank.labels, asked, test.labels, len(bank.classes), k, args.temperature)

    return evaluate


def load_test_images(args: argparse.Namespace) -> Images | str:
    """The test images, or why there are none with labels."""
    options = cli.folder_options(args)
    try:
        return load(args.dataset_name, args.root, "test", args.store_size, options)
    except NoLabels as error:
        return str(error)


def evaluation_due(run: Run, evaluate: Callable | None) -> bool:
    """Whether the kNN accuracy is to be measured after the current epoch."""
    epoch = run.progress["epoch"]
    if evaluate is None:
        return False
    return epoch % run.args.knn_every == 0 or epoch == run.args.epochs


def finish_epoch(run: Run, path: Path, evaluate: Callable | None, command: list[str]) -> None:
    """Evaluate, add the epoch's row to the metrics, and write what is due."""
    args, progress = run.args, run.progress
    epoch = progress["epoch"]
    row = {
        "epoch": epoch,
        "loss": progress["losses"].cpu().double().nanmean().item(),
        "views": epoch * run.steps * args.batch_size * run.views,  # encoded so far
        "seconds": round(progress["seconds"], 3),  # of training so far, without evaluation
        "skipped": int(progress["skipped"]),  # by fp16's gradient scaler
        "effective_positives": "",
        "effective_negatives": "",
        "knn_top1": "",
        "knn_top5": "",
    }
    if run.loss.attention:
        row["effective_positives"], row["effective_negatives"] = progress["effective"]
    if evaluate is not None and evaluation_due(run, evaluate):
        row["knn_top1"], row["knn_top5"] = evaluate(run.model)
        progress["best_knn"] = max(progress["best_knn"], row["knn_top1"])
    print_epoch(run, row)
    progress["rows"].append(row)
    progress.update(epoch=epoch + 1, step=0, losses=torch.zeros_like(progress["losses"]))
    write_results(run, path, command)


def print_epoch(run: Run, row: dict[str, Any]) -> None:
    """The epoch in one line: loss, speed, the time that the rest will take, and accuracy."""
    before = run.progress["rows"][-1]["seconds"] if run.progress["rows"] else 0.0
    seconds = max(row["seconds"] - before, 1e-9)
    words = [
        f"loss {row['loss']:.4f}",
        f"{run.steps * run.args.batch_size / seconds:,.0f} images/s",
        f"{tqdm.format_interval(run.seconds_left)} left",
    ]
    if run.scaler.is_enabled():
        words.append(f"{row['skipped']} steps skipped so far")
    if row["knn_top1"] != "":
        words.append(f"kNN top-1 {row['knn_top1']:.2f} %, top-5 {row['knn_top5']:.2f} %")
    print(f"epoch {row['epoch']}/{run.args.epochs}: {', '.join(words)}", flush=True)


def epoch_pictures(run: Run) -> dict[str, Any]:
    """TensorBoard's pictures, with every kNN accuracy and with the first and the last epoch."""
    from attentionce.evaluation.figures import pretraining_pictures

    args, epoch = run.args, run.progress["epoch"] - 1
    if epoch % (args.knn_every or args.epochs) and epoch not in (1, args.epochs):
        return {}
    model = Model(args.feature_dim, args.arch, args.stem).to(run.device)  # without SyncBatchNorm
    model.load_state_dict(run.model.state_dict())
    attention = (args.d_pos, args.d_neg) if run.loss.attention else None
    return pretraining_pictures(model.eval(), run.pixels, args, run.views - 2, attention, epoch)


# ------------------------------------------------------------------------------------- files


def file_stem(args: argparse.Namespace, epoch: int | str = "{epochs}") -> str:
    """The name of the run's files without ending, after an epoch."""
    return file_names.file_stem(args, epoch, LOSSES[args.loss])


def save_state(run: Run, path: Path, ending: str) -> Path:
    """Save all that the run needs to continue from its next step; all processes wait for it."""
    path = path.with_name(path.name + ending)
    if processes.rank() == 0:
        states.save_state(path, state_of(run))
    run.saved_at = run.position
    processes.largest([0])  # if one left earlier, torchrun would end the one that writes
    return path


def write_results(run: Run, path: Path, command: list[str]) -> None:
    """Metrics, flags and, where they are due, weights after the last epoch that is done."""
    args, progress = run.args, run.progress
    epoch = progress["epoch"] - 1
    if processes.rank() > 0:
        return
    files.save_csv(path.with_name(path.name + ".csv"), progress["rows"])
    files.save_json(path.with_name(path.name + ".json"), describe(run, command))
    if epoch % args.save_every == 0 or epoch == args.epochs:
        weights = run.model.state_dict()
        weights = {f"module.{key}": value.cpu().contiguous() for key, value in weights.items()}
        files.save(path.parent / f"{file_stem(args, epoch)}.pth", weights)


def already_trained(run: Run, path: Path, command: list[str]) -> int:
    """Nothing is left to do for a run that was extended or that is called twice.

    Raises:
        UserError: The state that `--resume` names has more epochs than asked for.
    """
    done, epochs = run.progress["epoch"] - 1, run.args.epochs
    if done > epochs:
        raise UserError(
            f"--resume {run.args.resume} has {done} epochs already: give an --epochs above that"
        )
    if not path.with_name(path.name + ".pth").exists():  # perhaps --results names another folder
        write_results(run, path, command)
    print(f"already trained for {epochs} epochs: {path}.pth")
    return 0


def announce_stop(run: Run, path: Path, command: list[str]) -> None:
    """Say where the run stands and how to continue it."""
    epoch, step = run.position
    print(f"stopped at epoch {epoch}, step {step}, state saved; to resume:")
    state = path.with_name(path.name + ".state")
    print(states.resume_command(command, state), flush=True)


def describe(run: Run, command: list[str]) -> dict[str, Any]:
    """What a result file says besides the numbers: flags, command, versions, hardware and time."""
    progress = run.progress
    return {
        "flags": vars(run.args),
        "command": shlex.join(command),
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
