"""Device and precision that a run chooses, and what it says about them. GPUs are simulated."""

import platform
import subprocess
from types import SimpleNamespace

import pytest
import torch

from attentionce.errors import UserError
from attentionce.training import devices, processes

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.fixture
def gpus(monkeypatch):
    """gpus(count, capability, bf16): a machine with these GPUs; returns those made current."""

    def make(count=1, capability=(8, 0), bf16=True):
        current = []
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "is_available", lambda: True)
        monkeypatch.setattr(cuda, "device_count", lambda: count)
        monkeypatch.setattr(cuda, "set_device", current.append)
        monkeypatch.setattr(cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(cuda, "is_bf16_supported", lambda including_emulation: bf16)
        monkeypatch.setattr(
            cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=device.index)
        )
        monkeypatch.setattr(torch, "zeros", lambda *_, device: torch.ones(()))
        return current

    return make


@pytest.mark.parametrize(
    "capability, bf16, native, dtype",
    [
        ((9, 0), True, "bf16", torch.bfloat16),  # H100
        ((7, 5), False, "fp16", torch.float16),  # T4, RTX 20xx
        ((6, 1), False, None, torch.float32),  # GTX 10xx
    ],
)
def test_auto_is_the_fastest_native_precision_of_a_gpu(gpus, capability, bf16, native, dtype):
    gpus(1, capability, bf16)
    assert devices.half_precision(CUDA) == native
    assert devices.choose_precision("auto", CUDA) == dtype
    assert devices.choose_precision("fp32", CUDA) == torch.float32
    assert (f"--precision {native}" in devices.memory_advice()) == (native is not None)
    if native != "bf16":
        with pytest.raises(UserError, match=f"try --precision {native or 'fp32'}"):
            devices.choose_precision("bf16", CUDA)


@pytest.mark.parametrize("flags, native", [("avx2 avx512_bf16", True), ("", False)])
def test_auto_on_a_cpu(monkeypatch, flags, native):
    monkeypatch.setattr(devices, "cpu_info", lambda: f"model name : Z80 \nflags : sse {flags}\n")
    assert devices.device_name(CPU).startswith("Z80, ")
    dtype = devices.choose_precision("auto", CPU)
    assert dtype == (torch.bfloat16 if native else torch.float32)
    assert devices.choose_precision("bf16", CPU) == torch.bfloat16  # slow, but it works


def test_auto_on_mps_is_float32():
    assert devices.choose_precision("auto", MPS) == torch.float32
    with pytest.raises(UserError, match="fp16 needs a CUDA device, not mps; try --precision fp32"):
        devices.choose_precision("fp16", MPS)


def test_each_process_takes_a_gpu_of_its_own(gpus, monkeypatch):
    """And the GPU with a number, its own or a named one, becomes the current one."""
    current = gpus(4)
    assert devices.choose_device("cuda:1") == torch.device("cuda", 1)
    monkeypatch.setattr(processes, "world", lambda: 2)
    monkeypatch.setattr(processes, "local_rank", lambda: 3)
    monkeypatch.setattr(processes, "gather_objects", lambda own: [own, f"{platform.node()} 0"])
    assert devices.choose_device(None) == torch.device("cuda", 3)
    assert current == [torch.device("cuda", 1), torch.device("cuda", 3)]
    with pytest.raises(UserError, match="cuda:1: under torchrun"):
        devices.choose_device("cuda:1")
    gpus(1)  # `srun --gpus-per-task=1` shows each process one GPU, its number 0
    with pytest.raises(UserError, match="2 processes share 1 GPUs; start as many processes"):
        devices.choose_device(None)
    monkeypatch.setattr(processes, "gather_objects", lambda own: [own, "another machine 0"])
    assert devices.choose_device(None) == torch.device("cuda", 0)


def test_an_unused_gpu_is_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for found, lines in ((None, 0), ("/usr/bin/nvidia-smi", 1)):
        monkeypatch.setattr(devices.shutil, "which", lambda name, found=found: found)
        devices.warn_of_unused_gpu(CPU)
        said = capsys.readouterr().out
        assert said.count("warning: this machine has an NVIDIA GPU that PyTorch") == lines


def test_commit(monkeypatch, tmp_path):
    """Dirty is a clone whose code differs from it, not one whose documents do.

    An installed package has none: git would describe whatever repository lies around it.
    """

    def git(*words):
        who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    def commit():
        return devices.commit.__wrapped__()

    monkeypatch.setattr(devices, "ROOT", tmp_path)
    monkeypatch.setattr(devices.metadata, "version", lambda name: "0.1.0")
    assert commit() == "version 0.1.0"
    (tmp_path / "inner").mkdir()
    code = [tmp_path / name for name in ("main.py", "inner/views.py", "Makefile")]
    for path in (*code, tmp_path / "README.md"):
        path.write_text("before")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == "unknown"
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    (tmp_path / "README.md").write_text("after")
    (tmp_path / "new.py").write_text("untracked")
    clean = commit()
    assert len(clean) == 12
    for path in code:
        path.write_text("after")
        assert commit() == f"{clean}-dirty"
        path.write_text("before")
