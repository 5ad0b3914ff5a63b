"""Where a program runs: device, precision, versions; and how it ends when the user made a mistake."""

import functools
import os
import platform
import shutil
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import numpy
import torch
import torchvision

from attentionce.errors import UserError
from attentionce.training import processes

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def choose_device(name: str | None) -> torch.device:
    """The named device; by default the first that exists of CUDA, MPS and CPU. Of several processes each has its own GPU.

    Raises:
        UserError: no such device on this machine.
    """
    several = processes.world() > 1
    if name is None:
        mps = torch.backends.mps.is_available() and not several  # gloo has no MPS
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if several and name not in ("cuda", "cpu"):
        raise UserError(
            f"--device {name}: under torchrun it is cuda, of which each process takes its own, or cpu"
        )
    if several and name == "cuda" and processes.local_rank() >= torch.cuda.device_count():
        found = f"process {processes.local_rank() + 1} of this machine finds {torch.cuda.device_count()} GPUs"
        raise UserError(
            f"--device cuda: {found}; start as many processes as GPUs, or take --device cpu"
        )
    try:
        device = torch.device(name)
        if several and device.type == "cuda":
            torch.cuda.set_device(processes.local_rank())
        torch.zeros(1, device=device).item()  # `meta` has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise UserError(
            f"--device {name}: this machine has no such device ({reason}); try --device cpu"
        ) from None
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that the encoder computes in; `auto` is bfloat16 on CUDA that has it, else float32.

    Raises:
        UserError: the device cannot compute in it.
    """
    bf16_cuda = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        return torch.bfloat16 if bf16_cuda else torch.float32
    if name == "bf16" and device.type == "cuda" and not bf16_cuda:
        raise UserError("--precision bf16: this GPU does not have it; try --precision fp16")
    if name == "fp16" and device.type != "cuda":
        raise UserError(
            f"--precision fp16 needs a CUDA device, not {device.type}; try --precision fp32"
        )
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def reproducible(strict: bool) -> None:
    """With `strict`, CUDA computes the same bits every time, by slower kernels; without, cuDNN picks the fastest ones."""
    if strict:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # cuBLAS reads it when CUDA starts
    torch.use_deterministic_algorithms(strict)
    torch.backends.cudnn.benchmark = not strict


def keep(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The images on the GPU, if they take no more than an eighth of what is free there; else where they are."""
    if device.type == "cuda" and pixels.numel() < torch.cuda.mem_get_info(device)[0] / 8:
        return pixels.to(device)
    return pixels


def compiles(device: torch.device) -> bool:
    """Whether torch.compile works here, which needs a C compiler and a GPU that Triton knows; says so if not."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except Exception as error:  # of whatever the toolchain lacks
        print(
            f"torch.compile does not work here ({type(error).__name__}): going on without",
            flush=True,
        )
        return False
    return True


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast to `dtype`; does nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def cpu_name() -> str:
    """As the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@functools.cache
def commit() -> str:
    """This code's, as it is when it is first asked for."""
    git = [
        "git",
        "-C",
        str(Path(__file__).parents[2]),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]
    answer = subprocess.run(git, capture_output=True, text=True) if shutil.which("git") else None
    return answer.stdout.strip() if answer and answer.returncode == 0 else "unknown"


def machine(device: torch.device) -> dict[str, str]:
    """Versions, this code's commit and hardware, as they go into every result file."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{cpu_name()}, {os.cpu_count()} cores"
    )
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": numpy.__version__,
        "device": str(device),
        "device_name": name,
        "threads": str(torch.get_num_threads()),
        "platform": platform.platform(),
    }
