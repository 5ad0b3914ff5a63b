"""Pretrain an encoder: python main.py --dataset_name cifar10 --d_pos 1 --d_neg 10"""

import functools
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out

import loss
from attentionce import cli
from attentionce.data.folder_layout import NoLabels
from attentionce.data.images import Images, labelled, summary
from attentionce.errors import UserError
from attentionce.evaluation.collapse import collapse_numbers
from attentionce.evaluation.figures import pretraining_pictures
from attentionce.evaluation.knn import clamp_k, features, knn
from attentionce.presets import BAYES, PARAMETERS, PRESETS, file_stem, preset_of
from attentionce.runs import files, locks, report, signals, states, tensorboard
from attentionce.training import devices, processes
from attentionce.training.one_epoch import NonFinite, train_epoch
from attentionce.training.pretraining import Run, new_run, restore, state_of
from model import ARCHS, STEMS, Model, cost, start_from
from utils import DATASETS, load

# ------------------------------------------------------------------------------------- settings


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """The settings, with the reference's names and defaults where it has them."""
    parser = cli.Parser(description=__doc__, formatter_class=cli.Help)
    cli.add_data_flags(parser, DATASETS)
    add_method_flags(parser)
    add_training_flags(parser)
    cli.add_device_flags(parser)
    cli.add_compile_flag(parser)
    add_run_flags(parser)
    args = parser.parse_args(argv)
    if args.store_size is None:
        args.store_size = max(64, args.image_size)
    if args.save_every is None:
        args.save_every = 100 if args.dataset_name == "tinyImageNet" else 200
    fill_in_loss(args)
    return args


def fill_in_loss(args: Namespace) -> None:
    """Give the flags of the chosen loss and framework their defaults.

    Raises:
        UserError: Another flag is given, which would have no effect.
    """
    positives, negatives = PRESETS[args.loss]
    args.positives, args.negatives = args.positives or positives, args.negatives or negatives
    args.loss = preset_of(args.positives, args.negatives) or "contrastive"
    defaults: dict[str, Any] = dict(loss.POSITIVES[args.positives][1])
    defaults |= loss.NEGATIVES[args.negatives][1]
    if args.negatives == "bayes":
        defaults |= BAYES.get(args.dataset_name, {})
    if args.positives != "pair":
        defaults |= {"num_pos": 4, "noisy_positives": 0.0}
    if args.estimator == "MoCo":
        defaults |= {"momentum": 0.99, "queue": 4096}
    for name in (*PARAMETERS, "num_pos", "noisy_positives", "momentum", "queue"):
        value = getattr(args, name)
        if value is None:
            setattr(args, name, defaults.get(name))
        elif name not in defaults:
            raise UserError(
                f"--{name} {value} has no effect with --positives {args.positives}, "
                f"--negatives {args.negatives} and --estimator {args.estimator}: leave it out"
            )


def add_method_flags(parser: ArgumentParser) -> None:
    """Views, loss, framework and encoder."""
    add = parser.add_argument_group("method").add_argument
    add("--image_size", type=int, default=32, help="side of a view, in pixels")
    add("--loss", default="attentionce", choices=PRESETS, help="positives and negatives by name")
    add("--positives", choices=loss.POSITIVES, help="instead of the loss's own")
    add("--negatives", choices=loss.NEGATIVES, help="instead of the loss's own")
    add("--temperature", type=float, default=0.5, help="of the loss and of the kNN vote")
    add("--num_pos", type=int, help="positives per image, M (default: 4; pair has none)")
    text = "share of the positives that show another image of the batch (default: 0)"
    add("--noisy_positives", type=float, help=text)
    text = "scale of the attention on positives; large: all count the same (default: 1)"
    add("--d_pos", type=float, help=text)
    text = "scale of the attention on negatives; small: only the hardest count (default: 1)"
    add("--d_neg", type=float, help=text)
    text = "debiased, hard, bayes: assumed share of false negatives (default: 0.1)"
    add("--tau_plus", type=float, help=text)
    authors = "(default: its authors', see docs/flags.md)"
    add("--beta", type=float, help=f"hard, bayes: weight of hard negatives {authors}")
    text = "bayes: how well the encoder ranks already; 0.5 is chance"
    add("--alpha", type=float, help=f"{text} {authors}")
    add("--estimator", default="SimCLR", choices=["SimCLR", "MoCo"], help="the framework")
    add("--momentum", type=float, help="MoCo: of the momentum encoder (default: 0.99)")
    add("--queue", type=int, help="MoCo: negatives in the queue (default: 4096)")
    add("--arch", default="resnet50", choices=ARCHS, help="encoder")
    text = "small: 3×3 conv1; imagenet: torchvision's 7×7 and max-pool, for 96 px and more"
    add("--stem", default="small", choices=STEMS, help=text)
    add("--init", type=cli.path, default="random", metavar="FILE", help="weights to start from")
    add("--feature_dim", type=int, default=128, help="size of the projection")
    text = "BatchNorm's batch: that of each process (as in DataParallel) or of all processes"
    add("--bn", default="local", choices=["local", "sync"], help=text)


def add_training_flags(parser: ArgumentParser) -> None:
    """The optimiser's settings, and how a step computes."""
    add = parser.add_argument_group("training").add_argument
    add("--batch_size", type=int, default=256, help="images per step, over all processes")
    add("--epochs", type=int, default=400, help="passes over the images")
    add("--lr", type=float, default=1e-3, help="learning rate of Adam")
    add("--weight_decay", type=float, default=1e-6, help="of Adam")
    add("--seed", type=int, default=0, help="all randomness is a function of (seed, epoch, step)")
    text = "the same seed gives the same bits on CUDA too; slower"
    add("--deterministic", action="store_true", help=text)
    text = "the memory of one view instead of all, for one more forward pass"
    add("--grad_cache", action="store_true", help=text)


def add_run_flags(parser: ArgumentParser) -> None:
    """What a run measures, writes and continues from."""
    add = parser.add_argument_group("run").add_argument
    add("--k", type=int, default=200, help="neighbours that vote in the kNN accuracy")
    add("--knn_every", type=int, default=10, help="epochs between kNN accuracies; 0: never")
    text = "epochs between weights (default: 200; tinyImageNet: 100)"
    add("--save_every", type=int, help=text)
    text = "folder for weights, metrics and states"
    add("--results", type=cli.path, default="results", help=text)
    text = "also write scalars, views and the attention for TensorBoard"
    add("--tensorboard", action="store_true", help=text)
    text = "auto: this command's own state; a state's path; never"
    add("--resume", type=cli.path, default="auto", help=text)
    add("--state_minutes", type=float, default=10, help="minutes between states")


def check_args(args: Namespace) -> None:
    """Raise a UserError for flags that cannot work, before anything is loaded or written."""
    cli.check_positive(args, "temperature", "lr")
    cli.check_at_least(args, epochs=1, batch_size=2, feature_dim=1, store_size=4, k=1, save_every=1)
    cli.check_at_least(args, knn_every=0, seed=0, weight_decay=0, state_minutes=0)
    # At smaller sizes a stage would stride over a single pixel.
    cli.check_at_least(args, image_size=32 if args.stem == "imagenet" else 8)
    cli.check_seed(args)
    for name in ("noisy_positives", "momentum"):
        if not 0 <= (getattr(args, name) or 0) <= 1:
            raise UserError(f"--{name} must be between 0 and 1, not {getattr(args, name)}")
    if args.num_pos is not None:
        cli.check_at_least(args, num_pos=1)
    if args.estimator == "MoCo":
        if args.positives == "pair":
            raise UserError("--estimator MoCo needs positives as its keys: not --positives pair")
        cli.check_at_least(args, queue=args.batch_size)
    try:
        loss.ingredients(**loss_flags(args))
    except ValueError as error:
        raise UserError(f"--{error}") from None


def loss_flags(args: Namespace) -> dict[str, Any]:
    """The flags that are arguments of `loss.contrastive`."""
    names = ("positives", "negatives", "temperature", *PARAMETERS)
    return {name: getattr(args, name) for name in names}


def check_processes(args: Namespace, device: torch.device) -> None:
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
    """Check everything that can be checked, then pretrain; returns the exit status."""
    args = parse_args(argv)
    check_args(args)
    devices.code_digests()  # of the code that runs, even if it is edited meanwhile
    device = devices.choose_device(args.device)
    check_processes(args, device)
    dtype = devices.choose_precision(args.precision, device)
    command = sys.argv if argv is None else ["main.py", *argv]
    path = Path(args.results, args.dataset_name, file_stem(args, args.epochs))
    if processes.rank() > 0:  # only rank 0 writes
        with signals.handled():
            return pretrain(args, command, path, device, dtype)
    files.writable_folder(path.parent)
    # Runs that differ in --epochs alone write the same weights: one lock for all of them.
    lock = path.with_name(f"{file_stem(args, 'all')}.lock")
    taken = f"this run ({lock}): wait for it, or name another --results"
    with signals.handled(), locks.held(lock, taken):
        text = "stopped before the first step; the same command starts again"
        signals.leave_on_signals(lambda: print(text, flush=True))
        states.remove_temporary(path.parent, file_stem(args))
        return pretrain(args, command, path, device, dtype)


def pretrain(
    args: Namespace, command: list[str], path: Path, device: torch.device, dtype: torch.dtype
) -> int:
    """Images, model and state; then for every epoch: steps, evaluation, files."""
    chosen = ["--positives", args.positives, "--negatives", args.negatives]
    chosen += ["--estimator", args.estimator, "--dataset_name", args.dataset_name]
    defaults = vars(parse_args(chosen))
    state = processes.from_first(
        lambda: states.find_state(args, defaults, path.parent, file_stem(args))
    )
    if processes.from_first(lambda: state and report.is_done(state, path, args.epochs)):
        return 0
    images = load_images(args)
    evaluate = knn_evaluation(args, images, device, dtype) if args.knn_every else None
    devices.reproducible(args.deterministic)
    run = new_run(args, new_model(args, state is None), *chosen_loss(args), images, device, dtype)
    if state is not None:
        restore(run, state)
        report.write_metrics(run, path)  # a longer run has a table of its own
    if run.progress["epoch"] > args.epochs:  # a state from elsewhere
        report.write_results(run, path, command)
        return 0
    board = None
    if args.tensorboard and processes.rank() == 0:
        board = tensorboard.open_board(path, run.progress["epoch"])
    received = signals.catch_signals(path.with_name(path.name + ".state"))
    run.saved = run.reported = time.monotonic()
    while (epoch := run.progress["epoch"]) <= args.epochs:
        try:
            stop = train_epoch(run, received, lambda: save_state(run, path, ".state"))
        except NonFinite as error:
            kept = save_state(run, path, ".nonfinite.state")
            raise NonFinite(f"{error}; the state before that step is in {kept}") from None
        if stop:
            report.announce_stop(run, path, command)
            return signals.exit_status(stop)
        accuracy = None
        if evaluate is not None and (epoch % args.knn_every == 0 or epoch == args.epochs):
            if stop := processes.maxima([max(received, default=0)])[0]:
                leave(run, path, command)
                return signals.exit_status(stop)
            with signals.handled():
                signals.leave_on_signals(lambda: leave(run, path, command))
                accuracy = evaluate(run.model)
        report.finish_epoch(run, path, accuracy, command)
        if board is not None:
            tensorboard.write_epoch(board, run.progress["rows"][-1], epoch_pictures(run, epoch))
    save_state(run, path, ".state")
    return 0


def leave(run: Run, path: Path, command: list[str]) -> None:
    """Save the state and say how to resume, when a signal comes during evaluation."""
    save_state(run, path, ".state")
    report.announce_stop(run, path, command)


def load_images(args: Namespace) -> Images:
    """The images to pretrain on; a UserError if they are too few or not the same everywhere."""
    images = processes.in_turn(load, *cli.source(args, "pretrain"))
    print(f"pretraining on {summary(images)}", flush=True)
    cli.warn_of_small_images(images, args)
    if len(set(processes.gather_objects(images.fingerprint))) > 1:
        raise UserError(f"--root {args.root}: not every machine has the same images there")
    if len(images.pixels) < args.batch_size:
        text = f"{len(images.pixels)} images are fewer than a batch"
        raise UserError(f"{text}: --batch_size {args.batch_size} is too large")
    return images


def new_model(args: Namespace, fresh: bool) -> Model:
    """The model as `--seed` makes it or `--init` has it; one printed line says what it costs."""
    torch.manual_seed(args.seed)
    model = Model(args.feature_dim, args.arch, args.stem)
    if args.init != "random" and fresh:
        start_from(model, args.init)
    parameters, macs = cost(model, args.image_size)
    operations = "" if macs is None else f", {macs / 1e9:.2f} G multiply-adds"
    size = f"{parameters / 1e6:.2f} M parameters{operations} per view of {args.image_size} px"
    print(f"{args.arch}: {size}", flush=True)
    return model


def chosen_loss(args: Namespace) -> tuple[Callable[..., Tensor], Callable[..., dict]]:
    """The loss of the flags, and a function that tells what its attention looks at."""
    numbers = functools.partial(loss.attention_numbers, d_pos=args.d_pos, d_neg=args.d_neg)
    return functools.partial(loss.contrastive, **loss_flags(args)), numbers


def knn_evaluation(
    args: Namespace, images: Images, device: torch.device, dtype: torch.dtype
) -> Callable[[Any], dict[str, float]] | None:
    """A function of the model: its kNN accuracy on the test images, in percent, and three numbers
    that show collapse.

    The images with labels vote. Without any, or without test images, there is no such function.
    """
    test = processes.in_turn(load_test_images, args)
    if isinstance(test, str):
        print(f"no kNN accuracy: {test}", flush=True)
        return None
    bank = labelled(images)
    print(f"kNN accuracy on {summary(test)}; {len(bank.labels):,} images vote", flush=True)
    k = clamp_k(args.k, len(bank.pixels))

    def evaluate(model: Any) -> dict[str, float]:
        processes.same_buffers(model)
        train = features(model.f, bank.pixels, device, dtype)
        tested = features(model.f, test.pixels, device, dtype)
        labelled_features = train, bank.labels, tested, test.labels
        top1, top5 = knn(*labelled_features, len(bank.classes), k, args.temperature)
        numbers = collapse_numbers(model.f, test.pixels, tested, args.image_size, args.seed, dtype)
        return {"knn_top1": top1, "knn_top5": top5, **numbers}

    return evaluate


def load_test_images(args: Namespace) -> Images | str:
    """The test images, or why there are none with labels."""
    try:
        return load(*cli.source(args, "test"))
    except NoLabels as error:
        return str(error)


def epoch_pictures(run: Run, epoch: int) -> dict[str, Any]:
    """TensorBoard's pictures, with every kNN accuracy and with the first and the last epoch."""
    args = run.args
    if epoch % (args.knn_every or args.epochs) and epoch not in (1, args.epochs):
        return {}
    model = Model(args.feature_dim, args.arch, args.stem).to(run.device)  # without SyncBatchNorm
    model.load_state_dict(run.model.state_dict())

    def weights(z: Tensor) -> tuple[Tensor, Tensor]:
        return loss.positive_weights(z, args.d_pos), loss.negative_weights(z, args.d_neg)

    shown = weights if args.loss == "attentionce" else None
    return pretraining_pictures(model, run.pixels, args, shown, epoch)


def save_state(run: Run, path: Path, ending: str) -> Path:
    """Save all that the run needs to continue from its next step; all processes wait for it."""
    path = path.with_name(path.name + ending)
    if processes.rank() == 0:
        files.save(path, state_of(run), previous=states.previous(path))
    run.saved = time.monotonic()
    processes.maxima([0])  # if one left earlier, torchrun would end the one that writes
    return path


if __name__ == "__main__":
    cli.run(main)
