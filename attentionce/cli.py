"""Parser, help, and how a program ends."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch

from attentionce.errors import UserError
from attentionce.training import processes


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults behind the help, but for flags that have none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        given = action.default is not None and action.default is not False
        return super()._get_help_string(action) if given else action.help


class Parser(argparse.ArgumentParser):
    """argparse, whose complaints are a UserError like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists all flags")


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and exit with its status; a UserError becomes one line on stderr and exit status 2.

    Of several processes only the first to fail says why, and all leave at once.
    """
    try:
        processes.start()
        status = main()
    except UserError as error:
        line = " ".join(str(error).split())
        status, why = (
            2,
            f"error: {''.join(c if c.isprintable() else '?' for c in line)}\n",
        )  # names in it may be anyone's
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        status, why = (
            2,
            f"error: {reason}: take main.py's --grad_cache, a smaller --batch_size, or --precision bf16\n",
        )
    except KeyboardInterrupt:
        status, why = 130, "interrupted\n"
    except Exception:
        if processes.world() == 1:
            raise
        status, why = 1, traceback.format_exc()
    else:
        processes.stop()
        sys.exit(status)
    sys.stdout.flush()
    if processes.first_to_fail():
        sys.stderr.write(why)
        sys.stderr.flush()
    if processes.world() > 1:
        os._exit(status)  # the usual way out waits for exchanges with processes that are gone
    sys.exit(status)
