"""Where a program computes: device, precision, torch.compile, versions."""

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path

import numpy
import torch
import torchvision

from attentionce.errors import UserError
from attentionce.training import processes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)
ROOT = Path(__file__).resolve().parents[2]  # of a clone
# They decide what a step computes.
CODE = ["loss.py", "model.py", "attentionce/data/views.py", "attentionce/data/blur.py"]
CODE += [f"attentionce/training/{name}.py" for name in ("one_epoch", "one_step", "batchnorm")]
CODE += [f"attentionce/training/{name}.py" for name in ("moco", "pretraining", "processes")]


def choose_device(name: str | None) -> torch.device:
    """The named device, or the first that exists of CUDA, MPS and CPU.

    A GPU with a number becomes the current one, so that nothing else opens a context on GPU 0. Each
    of several processes takes the GPU of its local rank, among those that it sees.

    Raises:
        UserError: There is no such device on this machine, or two processes have the same GPU.
    """
    several = processes.world() > 1
    if name is None:
        mps = torch.backends.mps.is_available() and not several  # gloo does not support MPS
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if several and name not in ("cuda", "cpu"):
        raise UserError(
            f"--device {name}: under torchrun use cuda, of which each process takes one, or cpu"
        )
    try:
        device = torch.device(name)
        if device.type == "cuda" and several:
            visible = max(1, torch.cuda.device_count())
            device = torch.device("cuda", processes.local_rank() % visible)
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()  # `meta` has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise UserError(
            f"--device {name}: this machine has no such device ({reason}); try --device cpu"
        ) from None
    if several and device.type == "cuda":
        gpu = f"{platform.node()} {torch.cuda.get_device_properties(device).uuid}"
        gpus = processes.gather_objects(gpu)
        if len(set(gpus)) < len(gpus):
            raise UserError(
                f"--device cuda: {len(gpus)} processes share {len(set(gpus))} GPUs; start as many "
                "processes as there are GPUs, or use --device cpu"
            )
    return device


def half_precision(device: torch.device) -> str | None:
    """The 16-bit type that the device multiplies natively: bf16, fp16 or None."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        return "fp16" if torch.cuda.get_device_capability(device) >= (7, 0) else None
    bf16_flags = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is Arm's
    return "bf16" if device.type == "cpu" and bf16_flags.intersection(cpu_info().split()) else None


def cpu_info() -> str:
    """What Linux says of the CPU; nothing where it hides that, and on other systems."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that the encoder computes in: `auto` is the fastest that the device has natively.

    Raises:
        UserError: The device cannot compute in it.
    """
    native = half_precision(device) or "fp32"
    if name == "bf16" and device.type == "cuda" and native != "bf16":
        raise UserError(f"--precision bf16: this GPU does not support it; try --precision {native}")
    if name == "fp16" and device.type != "cuda":
        raise UserError(
            f"--precision fp16 needs a CUDA device, not {device.type}; try --precision {native}"
        )
    return DTYPES[native if name == "auto" else name]


def out_of_memory(error: Exception) -> str | None:
    """`CUDA out of memory`, or of the CPU, if PyTorch raised the error for that; else None."""
    error = getattr(error, "inner_exception", error)  # what failed inside the compiler
    if isinstance(error, torch.OutOfMemoryError):
        return str(error).split(". ")[0]
    return "CPU out of memory" if "DefaultCPUAllocator" in str(error) else None


def memory_advice() -> str:
    """What to change if the current device has too little memory."""
    advice = "use main.py's --grad_cache or a smaller --batch_size"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    native = half_precision(device)
    return f"{advice}, or --precision {native} if it is not on yet" if native else advice


def reproducible(strict: bool) -> None:
    """With `strict`, CUDA computes the same bits every time, more slowly."""
    if strict:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS
    torch.use_deterministic_algorithms(strict)
    torch.backends.cudnn.benchmark = not strict


def keep(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The images on the GPU if they take at most an eighth of its free memory."""
    if device.type == "cuda" and pixels.numel() < torch.cuda.mem_get_info(device)[0] / 8:
        return pixels.to(device)
    return pixels


def wants_compiler(choice: str, device: torch.device) -> bool:
    """What `--compile auto`, `on` or `off` means on a device."""
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast to `dtype`; nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def warn_of_unused_gpu(device: torch.device) -> None:
    """Say so if the program runs on the CPU of a machine with an NVIDIA GPU."""
    nvidia = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if device.type == "cpu" and not torch.cuda.is_available() and nvidia:
        print(
            f"warning: this machine has an NVIDIA GPU that PyTorch {torch.__version__} cannot use: "
            "training on the CPU; see https://pytorch.org/get-started for a build that can",
            flush=True,
        )


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    named = re.search(r"model name\s*:(.*)", cpu_info())
    cpu = named[1].strip() if named else platform.processor() or platform.machine()
    return f"{cpu}, {os.cpu_count()} cores"


@functools.cache
def commit() -> str:
    """This code's commit when it is first asked for; of an installed package its version.

    It ends in -dirty if Python files or the Makefile have changed since.
    """
    if not (ROOT / "main.py").exists():  # or git would describe a repository around the package
        return f"version {metadata.version('attentionce')}"

    def git(*words: str) -> str:
        return subprocess.check_output(
            ["git", *words], cwd=ROOT, text=True, stderr=subprocess.DEVNULL
        ).strip()

    try:
        name = git("describe", "--always", "--abbrev=12")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "Makefile")
    except (OSError, subprocess.CalledProcessError):  # no git, or no clone
        return "unknown"
    return f"{name}-dirty" if changed else name


@functools.cache
def code_digests() -> dict[str, str]:
    """A digest of each file that decides what a step computes, by its path in a clone."""
    return {
        name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest()[:16]
        for name in CODE
        if (ROOT / name).exists()
    }


def machine(device: torch.device) -> dict[str, str]:
    """Versions, this code's commit and hardware, for every result file."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": numpy.__version__,
        "device": str(device),
        "device_name": device_name(device),
        "threads": str(torch.get_num_threads()),
        "platform": platform.platform(),
    }
