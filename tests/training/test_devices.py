"""Device and precision that a run chooses, and what it says about them. GPUs are simulated."""

import platform
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
        ((8, 6), True, "bf16", torch.bfloat16),  # RTX 30xx
        ((7, 5), False, "fp16", torch.float16),  # T4, RTX 20xx
        ((7, 0), False, "fp16", torch.float16),  # V100
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


@pytest.mark.parametrize(
    "flags, native",
    [("avx2 avx512_bf16", True), ("amx_bf16", True), ("bf16 fp", True), ("", False)],
)
def test_auto_on_a_cpu(monkeypatch, flags, native):
    monkeypatch.setattr(devices.Path, "read_text", lambda self: f"flags : sse {flags}\n")
    devices.cpu_has_bf16.cache_clear()
    try:
        dtype = devices.choose_precision("auto", CPU)
        assert dtype == (torch.bfloat16 if native else torch.float32)
        assert devices.choose_precision("bf16", CPU) == torch.bfloat16  # slow, but it works
    finally:
        devices.cpu_has_bf16.cache_clear()


def test_auto_on_mps_is_float32():
    assert devices.choose_precision("auto", MPS) == torch.float32
    with pytest.raises(UserError, match="fp16 needs a CUDA device, not mps; try --precision fp32"):
        devices.choose_precision("fp16", MPS)


def test_a_named_gpu_becomes_the_current_one(gpus):
    current = gpus(2)
    assert devices.choose_device("cuda:1") == torch.device("cuda", 1)
    assert current == [torch.device("cuda", 1)]


def play_processes(monkeypatch, local_rank, world, everyone):
    monkeypatch.setattr(processes, "world", lambda: world)
    monkeypatch.setattr(processes, "local_rank", lambda: local_rank)
    monkeypatch.setattr(processes, "gather_objects", lambda own: [own, *everyone])


@pytest.mark.parametrize("local_rank, count, index", [(2, 4, 2), (3, 1, 0), (5, 4, 1)])
def test_local_ranks_wrap_to_the_gpus_that_are_visible(gpus, monkeypatch, local_rank, count, index):
    """`srun --gpus-per-task=1` shows each process one GPU, its number 0."""
    gpus(count)
    play_processes(monkeypatch, local_rank, 2, ["another machine 0"])
    assert devices.choose_device(None) == torch.device("cuda", index)


def test_two_processes_with_one_gpu_are_refused(gpus, monkeypatch):
    gpus(1)
    play_processes(monkeypatch, 1, 2, [f"{platform.node()} 0"])
    with pytest.raises(UserError, match="2 processes share 1 GPUs; start as many processes"):
        devices.choose_device(None)


def test_several_processes_choose_no_number(monkeypatch):
    monkeypatch.setattr(processes, "world", lambda: 4)
    with pytest.raises(UserError, match="cuda:1: under torchrun"):
        devices.choose_device("cuda:1")


@pytest.mark.parametrize("gpu", [True, False])
def test_an_unused_gpu_is_said(monkeypatch, capsys, gpu):
    monkeypatch.setattr(devices, "has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    devices.warn_of_unused_gpu(CPU)
    said = capsys.readouterr().out
    assert (said != "") == gpu
    assert not gpu or "warning: this machine has an NVIDIA GPU that PyTorch cannot use" in said


def test_an_installed_package_has_no_commit(monkeypatch, tmp_path):
    """git would describe whatever repository the environment happens to lie in."""
    monkeypatch.setattr(devices, "ROOT", tmp_path)
    monkeypatch.setattr(devices.metadata, "version", lambda name: "0.1.0")
    assert devices.commit.__wrapped__() == "version 0.1.0"
