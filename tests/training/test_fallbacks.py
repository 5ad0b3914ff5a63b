"""First steps that do not fit into memory, or do not compile, are taken again with less."""

import copy

import pytest
import torch
from helpers.device import DEVICE, ON_CPU
from helpers.programs import Small
from helpers.runs import Exact, left_by, new_run, take_steps
from torch._dynamo.exc import BackendCompilerFailed

import main
from attentionce.data import views
from attentionce.training import fallbacks, one_epoch, one_step
from attentionce.training.memory import activation_bytes, expected_bytes
from model import Model

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 …")
CPU_OUT_OF_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't …")
BROKEN_GPU = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def in_compiler(error):
    return BackendCompilerFailed(len, error, None)


def train(*words):
    """A run in float64 after an epoch of two steps."""
    run = new_run("--num_pos", 1, *words, encoder=Exact)
    assert one_epoch.train_epoch(run, [], lambda: None) == 0
    return run


def fail(monkeypatch, name, *errors):
    """The function `name` of one_step computes its work, then raises these errors, one a call.

    But not while it encodes without gradients.
    """
    function, left = getattr(one_step, name), [*errors]

    def failing(*args):
        result = function(*args)
        if left and torch.is_grad_enabled():
            raise left.pop(0)
        return result

    monkeypatch.setattr(one_step, name, failing)


@pytest.fixture
def compile_to_a_copy(monkeypatch):
    """What is compiled runs as it is, but is another object."""
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda model, **_: copy.copy(model))
    with torch._functorch.config.patch(activation_memory_budget=1.0):  # and restore it
        yield


@pytest.mark.parametrize(
    "words, device, error",
    [("", "CUDA", OUT_OF_MEMORY), ("--estimator MoCo --queue 8", "CPU", CPU_OUT_OF_MEMORY)],
)
def test_out_of_memory_in_the_first_step_changes_no_weight(
    monkeypatch, capsys, words, device, error
):
    expected = left_by(train(*words.split()))
    fail(monkeypatch, "plain_step", error)
    run = train(*words.split())
    torch.testing.assert_close(left_by(run), expected, rtol=1e-9, atol=1e-9)
    assert run.grad_cache and not run.recompute
    said = capsys.readouterr().out
    assert said.count(f"{device} out of memory: continuing with --grad_cache") == 1


def test_less_memory_in_its_order(compile_to_a_copy, monkeypatch, capsys):
    """One view per pass, fewer activations where it is compiled, --grad_cache, then the error.

    It may come from within the compiler.
    """
    run = new_run("--compile", "on", encoder=Small, views_per_pass=6)
    errors = OUT_OF_MEMORY, in_compiler(OUT_OF_MEMORY), OUT_OF_MEMORY, OUT_OF_MEMORY
    fail(monkeypatch, "take_step", *errors)
    capsys.readouterr()
    with pytest.raises(torch.OutOfMemoryError):
        fallbacks.take_step_or_change(run, run.pixels[:4])
    assert torch._functorch.config.activation_memory_budget == fallbacks.LOW_BUDGET
    assert capsys.readouterr().out.splitlines() == [
        "CUDA out of memory: continuing with one view per pass",
        "CUDA out of memory: continuing with fewer activations kept, about 7 % slower",
        "CUDA out of memory: continuing with --grad_cache, about a third slower",
    ]
    assert run.views_per_pass == run.model.f[1].views == 1


@pytest.mark.parametrize("words", ["", "--grad_cache"])
def test_a_compiler_that_fails_is_left_out(words, compile_to_a_copy, monkeypatch, capsys):
    """With --grad_cache in the second pass, where BatchNorm's statistics stand still."""
    expected = left_by(train(*words.split()))
    fail(monkeypatch, "project", in_compiler(RuntimeError("Triton: no such GPU")))
    run = train(*words.split(), "--compile", "on")
    small = 0 if ON_CPU else 1e-9  # the same bits on a CPU
    torch.testing.assert_close(left_by(run), expected, rtol=small, atol=small)
    assert run.encoder is run.model and run.recompute == (words == "")
    said = capsys.readouterr().out
    assert said.count("torch.compile failed (RuntimeError): continuing without") == 1


@pytest.mark.parametrize(
    "words, error, steps_taken",
    [
        ("", ZeroDivisionError(), 0),
        ("", OUT_OF_MEMORY, fallbacks.TRIALS),
        ("--compile on", RuntimeError(), fallbacks.TRIALS),
        ("--compile on", in_compiler(BROKEN_GPU), 0),
    ],
)
def test_other_faults_are_not_hidden(words, error, steps_taken, compile_to_a_copy, monkeypatch):
    """Uncompiled, after the first steps, or of the GPU: an error is an error."""
    run = new_run(*words.split(), encoder=Small)
    run.steps_taken = steps_taken
    fail(monkeypatch, "project", error)
    with pytest.raises(type(error)):
        fallbacks.take_step_or_change(run, run.pixels[:4])


def test_a_function_that_does_not_compile_runs_as_it_is(capsys):
    """As linear.py's does. Only the first call decides, and other errors are no reason."""
    errors = {-1: RuntimeError(), -2: OUT_OF_MEMORY}

    def compiled(x):
        if x in errors:
            raise errors[x]
        return x

    function = fallbacks.compiled_or_plain(compiled, lambda x: 10 * x)
    with pytest.raises(torch.OutOfMemoryError):
        function(-2)
    assert [function(-1), function(1)] == [-10, 10]
    assert capsys.readouterr().out == "torch.compile failed (RuntimeError): continuing without\n"
    function = fallbacks.compiled_or_plain(compiled, lambda x: 10 * x)
    assert function(3) == 3
    with pytest.raises(RuntimeError):
        function(-1)


def test_expected_memory():
    """The paper's command: per view and image 12.9 MB in bf16, 8.15 MB with recomputation."""
    model, args = Model(128, "resnet50"), main.parse_args([])
    everything, recomputed = (activation_bytes(model, 32, r) / 2e6 for r in (False, True))
    assert (round(everything, 1), round(recomputed, 2)) == (12.9, 8.15)
    compiled, eager = (expected_bytes(model, args, torch.bfloat16, c) / 1e9 for c in (True, False))
    assert (round(compiled), round(eager)) == (20, 13)
    args.grad_cache = True
    assert round(expected_bytes(model, args, torch.bfloat16, False) / 1e9, 1) == 3.7


def test_fp16s_skipped_steps_leave_batchnorm_alone(monkeypatch):
    """A step that is not finite moves neither weights nor running statistics."""
    run = new_run("--num_pos", 1, encoder=Small)
    run.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0)
    make_view, before = views.make_view, copy.deepcopy(run.model.state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(views, "make_view", lambda *args: make_view(*args) * torch.inf)
        take_steps(run)
    after = run.model.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert run.progress["skipped"] == 1
    take_steps(run)
    after = run.model.state_dict()
    assert not torch.equal(after["f.1.running_mean"], before["f.1.running_mean"])
    assert all(value.isfinite().all() for value in after.values())
