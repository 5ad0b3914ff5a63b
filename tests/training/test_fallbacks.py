"""First steps that do not fit into memory, or do not compile, are taken again with less."""

import copy

import pytest
import torch
from helpers.device import DEVICE, ON_CPU

import main
from attentionce.training import fallbacks, one_epoch, one_step
from attentionce.training.memory import activation_bytes, expected_bytes
from model import Model

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 …")


def new_run(monkeypatch, *words):
    """A run in float64 of two steps per epoch."""
    monkeypatch.setattr(main, "cost", lambda model, image_size: (0, 0))
    flags = "--dataset_name photos --arch resnet10 --image_size 8 --batch_size 4 --num_pos 1"
    args = main.parse_args([*flags.split(), "--compile", "off", *words])
    pixels = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
    run = main.assemble(args, pixels, DEVICE, torch.float32)
    for model in (run.model, run.moco):
        if model is not None:
            model.double()
    return run


def encode_in_float64(monkeypatch):
    make_view = one_step.views.make_view
    monkeypatch.setattr(one_step.views, "make_view", lambda *args: make_view(*args).double())


def train(run):
    assert one_epoch.train_epoch(run, [], lambda: None) == 0
    return [*run.model.state_dict().values(), *(run.moco.state_dict().values() if run.moco else [])]


def assert_same_run(found, expected):
    """To the bit on a CPU."""
    small = 0 if ON_CPU else 1e-9
    torch.testing.assert_close(found, expected, rtol=small, atol=small)


def fail_first(monkeypatch, name, error):
    """The step function `name` of one_step computes all its work, then fails, the first time."""
    step, calls = getattr(one_step, name), []

    def failing(*args):
        calls.append(name)
        result = step(*args)
        if len(calls) == 1:
            raise error
        return result

    monkeypatch.setattr(one_step, name, failing)
    return calls


CPU_OUT_OF_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't …")


@pytest.mark.parametrize(
    "estimator, device, error",
    [("SimCLR", "CUDA", OUT_OF_MEMORY), ("MoCo", "CPU", CPU_OUT_OF_MEMORY)],
)
def test_out_of_memory_in_the_first_step_changes_no_weight(
    monkeypatch, capsys, estimator, device, error
):
    words = ["--estimator", estimator, "--queue", "8"]
    encode_in_float64(monkeypatch)
    expected = train(new_run(monkeypatch, *words))
    run = new_run(monkeypatch, *words)
    fail_first(monkeypatch, "plain_step", error)
    found = train(run)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert run.grad_cache and not run.recompute
    said = capsys.readouterr().out
    assert said.count(f"{device} out of memory: continuing with --grad_cache") == 1


def test_less_memory_in_its_order(monkeypatch, capsys):
    """Compiled: first fewer activations, then --grad_cache, then the error."""
    monkeypatch.setattr(torch, "compile", lambda model, **_: copy.copy(model))
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch._functorch.config, "activation_memory_budget", 1.0)
    run = new_run(monkeypatch, "--compile", "on")

    def fail(*_):
        raise OUT_OF_MEMORY

    monkeypatch.setattr(one_step, "take_step", fail)
    capsys.readouterr()
    with pytest.raises(torch.OutOfMemoryError):
        fallbacks.take_step(run, run.pixels[:4])
    assert torch._functorch.config.activation_memory_budget == fallbacks.LOW_BUDGET
    assert capsys.readouterr().out.splitlines() == [
        "CUDA out of memory: continuing with fewer activations kept, about 7 % slower",
        "CUDA out of memory: continuing with --grad_cache, about a third slower",
    ]


def test_a_compiler_that_fails_is_left_out(monkeypatch, capsys):
    encode_in_float64(monkeypatch)
    expected = train(new_run(monkeypatch))
    monkeypatch.setattr(torch, "compile", lambda model, **_: copy.copy(model))
    run = new_run(monkeypatch, "--compile", "on")
    fail_first(monkeypatch, "embed", RuntimeError("Triton: no such GPU"))
    found = train(run)
    assert_same_run(found, expected)
    assert run.encoder is run.model and run.recompute
    assert (
        capsys.readouterr().out.count("torch.compile failed (RuntimeError): continuing without")
        == 1
    )


def test_other_faults_are_not_hidden(monkeypatch):
    """Uncompiled, or after the first steps, an error is an error."""
    encode_in_float64(monkeypatch)
    run = new_run(monkeypatch)
    fail_first(monkeypatch, "embed", ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        train(run)
    run = new_run(monkeypatch)
    run.steps_taken = fallbacks.TRIALS
    fail_first(monkeypatch, "plain_step", OUT_OF_MEMORY)
    with pytest.raises(torch.OutOfMemoryError):
        train(run)


def test_expected_memory(monkeypatch):
    """The paper's command: per view and image 12.9 MB in bf16, 8.15 MB with recomputation."""
    model = Model(128, "resnet50")
    before = copy.deepcopy(model.state_dict())
    everything, recomputed = (activation_bytes(model, 32, r) / 2e6 for r in (False, True))
    assert (round(everything, 1), round(recomputed, 2)) == (12.9, 8.15)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    args = main.parse_args([])
    bf16 = torch.bfloat16
    compiled, eager = (expected_bytes(model, args, 6, bf16, c) / 1e9 for c in (True, False))
    assert (round(compiled), round(eager)) == (20, 13)
    args.grad_cache = True
    assert expected_bytes(model, args, 6, bf16, False) / 1e9 == pytest.approx(3.7, abs=0.1)


def test_fp16s_skipped_steps_leave_batchnorm_alone(monkeypatch):
    """A step that is not finite moves neither weights nor running statistics."""
    run = new_run(monkeypatch)
    run.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0)
    encode_in_float64(monkeypatch)
    make_view = one_step.views.make_view
    before = copy.deepcopy(run.model.state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(one_step.views, "make_view", lambda *args: make_view(*args) * torch.inf)
        one_step.take_step(run, run.pixels[:4])
    after = run.model.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert run.progress["skipped"] == 1
    one_step.take_step(run, run.pixels[:4])
    assert not torch.equal(run.model.state_dict()["f.1.running_mean"], before["f.1.running_mean"])
    assert all(value.isfinite().all() for value in run.model.state_dict().values())
