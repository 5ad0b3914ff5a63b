"""What the programs share: flags, their checks, help, and how a program ends."""

import argparse
import io
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TextIO

from attentionce.data.image_folder import FolderOptions
from attentionce.data.images import Images
from attentionce.errors import UserError
from attentionce.training import devices, processes


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """The default follows the help of every flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        given = action.default is not None and action.default is not False
        return super()._get_help_string(action) if given else action.help


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a UserError like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists all flags")


def path(text: str) -> str:
    """A flag's path, with ~ expanded, which a shell leaves in `--flag=~/…`."""
    return os.path.expanduser(text)


def add_data_flags(parser: argparse.ArgumentParser, datasets: Sequence[str]) -> None:
    """Which images, for all programs that read any."""
    add = parser.add_argument_group("images").add_argument
    add("--root", type=path, default="data", help="folder of the data sets, or of your own images")
    add("--dataset_name", default="cifar10", choices=datasets, help="which images")
    text = "side of a folder's images once read, in pixels (default: --image_size, at least 64)"
    add("--store_size", type=int, help=text)
    add("--test_split", metavar="NAME", help="folder of your test images (default: test or val)")
    add_folder_flags(add)


def add_folder_flags(add: Callable[..., Any]) -> None:
    """How the user's own images are read."""
    add("--skip_broken", action="store_true", help="leave out images that cannot be read")
    text = "where to keep your images decoded (default: beside them)"
    add("--cache", type=path, metavar="DIR", help=text)


def source(args: argparse.Namespace, split: str) -> tuple:
    """The arguments of `utils.load`, by the flags of `add_data_flags`."""
    options = FolderOptions(args.test_split, args.skip_broken, args.cache)
    return args.dataset_name, args.root, split, args.store_size, options


def warn_of_small_images(images: Images, args: argparse.Namespace) -> None:
    """Say so if views show less than their size promises."""
    side = min(images.pixels.shape[2:])
    if side < args.image_size:
        more = "; a larger --store_size may help" if args.store_size < args.image_size else ""
        text = f"views of --image_size {args.image_size} are made of images of {side} px{more}"
        print(f"warning: {text}", flush=True)


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Where a program computes, and in which precision."""
    add = parser.add_argument_group("device").add_argument
    add("--device", help="cuda, mps or cpu (default: the first that is there)")
    text = "auto: the fastest that the device supports natively: bf16, fp16 or fp32"
    add("--precision", default="auto", choices=devices.PRECISIONS, help=text)


def add_compile_flag(parser: argparse.ArgumentParser) -> None:
    """Whether encoder and views are compiled."""
    text = "torch.compile of encoder and views; auto: on CUDA"
    parser.add_argument("--compile", default="auto", choices=["auto", "on", "off"], help=text)


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Raise a UserError that names the first flag that is not positive and finite."""
    for name in names:
        value = getattr(args, name)
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"--{name} must be a positive number, not {value}")


def check_at_least(args: argparse.Namespace, **least: float) -> None:
    """Raise a UserError that names the first flag below its least value."""
    for name, smallest in least.items():
        value = getattr(args, name)
        if not value >= smallest:
            raise UserError(f"--{name} must be at least {smallest}, not {value}")


def check_seed(args: argparse.Namespace) -> None:
    """Raise a UserError for a seed that PyTorch's generators do not take."""
    if args.seed >= 2**63:
        raise UserError(f"--seed must be below 2**63, not {args.seed}")


class Log:
    """A stream on which no print fails: if its reader is gone, it goes on as stderr, or nowhere."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, function: Callable, *arguments: Any) -> None:
        try:
            function(*arguments)
        except OSError:
            with suppress(OSError):
                os.dup2(2, self.stream.fileno())
                function(*arguments)

    def write(self, text: str) -> int:
        """As the stream's."""
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """As the stream's."""
        self._try(self.stream.flush)


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and exit with its status.

    A UserError becomes one line on stderr and exit status 2. Of several processes each that fails
    says why; torchrun ends the rest, and its summary has the tracebacks.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a character: print a ?
            setattr(sys, name, Log(stream))
    try:
        processes.start()
        if processes.world() > 1:
            from torch.distributed.elastic.multiprocessing.errors import record

            main = record(main)
        status = main()
    except UserError as error:
        status, why = 2, f"error: {error}"
    except KeyboardInterrupt as error:
        status, why = 130, str(error) or "interrupted"
    except Exception as error:
        reason = devices.out_of_memory(error)
        if reason is None and processes.world() == 1:
            raise
        status, why = 1, f"error: process {processes.rank()}: {error!r}"
        if reason is not None:
            status, why = 2, f"error: {reason}: {devices.memory_advice()}"
        elif "TORCHELASTIC_ERROR_FILE" not in os.environ:  # else torchrun's summary has it
            why = traceback.format_exc()
    else:
        processes.stop()
        sys.exit(status)
    sys.stdout.flush()
    print(why, file=sys.stderr, flush=True)
    if processes.world() > 1:
        os._exit(status)  # the usual exit waits for exchanges with processes that are gone
    sys.exit(status)
