"""Where a program computes: device, precision, torch.compile, versions."""

import functools
import hashlib
import os
import platform
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

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROOT = Path(__file__).resolve().parents[2]  # of a clone
# What a step computes is decided here.
CODE = ["loss.py", "model.py", "attentionce/data/views.py", "attentionce/data/blur.py"]
STEP = ("one_step", "batchnorm", "moco", "pretraining")
CODE += [f"attentionce/training/{name}.py" for name in STEP]


def choose_device(name: str | None) -> torch.device:
    """The named device, or the first that exists of CUDA, MPS and CPU.

    A GPU with a number becomes the current one, so that nothing else opens a context on GPU 0. Each
    of several processes takes the GPU of its local rank, among those that it sees.

    Raises:
        UserError: There is no such device on this machine.
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
        refuse_shared(device)
    return device


def refuse_shared(device: torch.device) -> None:
    """Each of several processes needs a GPU of its own.

    Raises:
        UserError: Two of them have the same.
    """
    own = f"{platform.node()} {torch.cuda.get_device_properties(device).uuid}"
    everyone = processes.gather_objects(own)
    if len(set(everyone)) < len(everyone):
        raise UserError(
            f"--device cuda: {len(everyone)} processes share {len(set(everyone))} GPUs; start as "
            "many processes as there are GPUs, or use --device cpu"
        )


def half_precision(device: torch.device) -> str | None:
    """The 16-bit type that the device multiplies natively: bf16, fp16 or None."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        return "fp16" if torch.cuda.get_device_capability(device) >= (7, 0) else None
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else None


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively (AVX-512 BF16, AMX or Arm's BF16)."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that the encoder computes in.

    `auto` is the fastest that the device supports natively: bf16, else fp16 (on CUDA), else fp32.

    Raises:
        UserError: The device cannot compute in it.
    """
    native = half_precision(device)
    if name == "auto":
        return DTYPES[native or "fp32"]
    if name == "bf16" and device.type == "cuda" and native != "bf16":
        raise UserError(
            f"--precision bf16: this GPU does not support it; try --precision {native or 'fp32'}"
        )
    if name == "fp16" and device.type != "cuda":
        raise UserError(
            f"--precision fp16 needs a CUDA device, not {device.type}; "
            f"try --precision {native or 'fp32'}"
        )
    return DTYPES[name]


def out_of_memory(error: Exception) -> str | None:
    """`CUDA out of memory`, or of the CPU, if PyTorch raised the error for that; else None."""
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
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
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
    if device.type == "cpu" and not torch.cuda.is_available() and has_nvidia_gpu():
        build = "" if torch.version.cuda else f" ({torch.__version__} is a build for CPUs)"
        print(
            f"warning: this machine has an NVIDIA GPU that PyTorch cannot use{build}: training on "
            "the CPU; see https://pytorch.org/get-started for a build that can",
            flush=True,
        )


def has_nvidia_gpu() -> bool:
    """Whether the system shows an NVIDIA GPU, whatever PyTorch was built for."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {os.cpu_count()} cores"


def cpu_name() -> str:
    """The CPU's name according to the system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@functools.cache
def commit() -> str:
    """This code's commit when it is first asked for; of an installed package its version."""
    if not (ROOT / "main.py").exists():  # or git would describe a repository around the package
        return f"version {metadata.version('attentionce')}"
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    if shutil.which("git") is None:
        return "unknown"
    answer = subprocess.run(git, capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else "unknown"


def code_digests() -> dict[str, str]:
    """A digest of each file that decides what a step computes, by its path in a clone."""
    files = [ROOT / name for name in CODE if (ROOT / name).exists()]
    return {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in files
    }


def machine(device: torch.device) -> dict[str, str]:
    """Versions, this code's commit and hardware, as they go into every result file."""
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
