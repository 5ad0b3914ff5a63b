"""Call a function in a process that has done nothing else."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]  # of the code

PROGRAM = """
import importlib, json, sys
module, name, arguments = json.loads(sys.argv[1])
print(json.dumps(getattr(importlib.import_module(module), name)(*arguments)))
"""


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What function(*arguments) returns in a process of its own.

    Args:
        function: at the top level of a module that can be imported, so not of `__main__`.
        arguments: these and the result travel as JSON.

    Returns:
        The result; None if the function failed, after one line on stderr that says why.

    Raises:
        ValueError: the function cannot be imported by its name.
    """
    module, name = function.__module__, function.__qualname__
    if module == "__main__" or "." in name:
        raise ValueError(f"{module}.{name} cannot be imported from another process")
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # else this process keeps what the other may need
    command = [sys.executable, "-c", PROGRAM, json.dumps([module, name, arguments])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        shown = ", ".join(str(a) for a in arguments if not isinstance(a, dict))
        print(f"{module}.{name}({shown}), left empty: {lines[-1]}", file=sys.stderr, flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])
