"""First steps that do not fit into memory, or do not compile, are taken again with less."""

import copy

import pytest
import torch
from helpers.device import DEVICE, ON_CPU
from helpers.runs import new_run

import main
from attentionce.data import views
from attentionce.training import fallbacks, one_epoch, one_step
from attentionce.training.memory import activation_bytes, expected_bytes
from model import Model

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 …")


@pytest.fixture
def run_in_float64(monkeypatch):
    """run_in_float64(flags): a run of two steps per epoch."""
    make_view = views.make_view
    monkeypatch.setattr(views, "make_view", lambda *args: make_view(*args).double())

    def function(*words):
        run = new_run("--num_pos", 1, *words)
        for model in (run.model, run.moco):
            if model is not None:
                model.double()
        return run

    return function


def train(run):
    """Weights, statistics and queue after an epoch."""
    assert one_epoch.train_epoch(run, [], lambda: None) == 0
    return [*run.model.state_dict().values(), *(run.moco.state_dict().values() if run.moco else [])]


def fail_first(monkeypatch, name, error):
    """The function `name` of one_step computes all its work, then fails, the first time."""
    function, errors = getattr(one_step, name), [error]

    def failing(*args):
        result = function(*args)
        if errors:
            raise errors.pop()
        return result

    monkeypatch.setattr(one_step, name, failing)


@pytest.fixture
def compile_to_a_copy(monkeypatch):
    """What is compiled from now on runs as it is, but is another object."""
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    with torch._functorch.config.patch(activation_memory_budget=1.0):  # and restore it
        yield lambda: monkeypatch.setattr(torch, "compile", lambda model, **_: copy.copy(model))


CPU_OUT_OF_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't …")


@pytest.mark.parametrize(
    "words, device, error",
    [
        ([], "CUDA", OUT_OF_MEMORY),
        (["--estimator", "MoCo", "--queue", 8], "CPU", CPU_OUT_OF_MEMORY),
    ],
)
def test_out_of_memory_in_the_first_step_changes_no_weight(
    run_in_float64, monkeypatch, capsys, words, device, error
):
    expected = train(run_in_float64(*words))
    run = run_in_float64(*words)
    fail_first(monkeypatch, "plain_step", error)
    torch.testing.assert_close(train(run), expected, rtol=1e-9, atol=1e-9)
    assert run.grad_cache and not run.recompute
    said = capsys.readouterr().out
    assert said.count(f"{device} out of memory: continuing with --grad_cache") == 1


def test_less_memory_in_its_order(compile_to_a_copy, monkeypatch, capsys):
    """Compiled: first fewer activations, then --grad_cache, then the error."""
    compile_to_a_copy()
    run = new_run("--compile", "on")
    for _ in range(3):
        fail_first(monkeypatch, "take_step", OUT_OF_MEMORY)
    capsys.readouterr()
    with pytest.raises(torch.OutOfMemoryError):
        fallbacks.take_step_or_change(run, run.pixels[:4])
    assert torch._functorch.config.activation_memory_budget == fallbacks.LOW_BUDGET
    assert capsys.readouterr().out.splitlines() == [
        "CUDA out of memory: continuing with fewer activations kept, about 7 % slower",
        "CUDA out of memory: continuing with --grad_cache, about a third slower",
    ]


def test_a_compiler_that_fails_is_left_out(run_in_float64, compile_to_a_copy, monkeypatch, capsys):
    expected = train(run_in_float64())
    compile_to_a_copy()
    run = run_in_float64("--compile", "on")
    fail_first(monkeypatch, "project", RuntimeError("Triton: no such GPU"))
    small = 0 if ON_CPU else 1e-9  # the same bits on a CPU
    torch.testing.assert_close(train(run), expected, rtol=small, atol=small)
    assert run.encoder is run.model and run.recompute
    said = capsys.readouterr().out
    assert said.count("torch.compile failed (RuntimeError): continuing without") == 1


def test_other_faults_are_not_hidden(monkeypatch):
    """Uncompiled, or after the first steps, an error is an error."""
    run = new_run()
    for name, error in (("project", ZeroDivisionError()), ("plain_step", OUT_OF_MEMORY)):
        with monkeypatch.context() as patch:
            fail_first(patch, name, error)
            with pytest.raises(type(error)):
                train(run)
        run.steps_taken = fallbacks.TRIALS


def test_a_function_that_does_not_compile_runs_as_it_is(capsys):
    """As linear.py's does. Only the first call decides, and running out of memory is no reason."""
    calls = []

    def compiled(x):
        calls.append(x)
        if x < 0:
            raise {-1: RuntimeError, -2: torch.OutOfMemoryError}[x]("broken")
        return x

    function = fallbacks.compiled_or_plain(compiled, lambda x: 10 * x)
    with pytest.raises(torch.OutOfMemoryError):
        function(-2)
    assert [function(-1), function(1)] == [-10, 10] and calls == [-2, -1]
    assert capsys.readouterr().out == "torch.compile failed (RuntimeError): continuing without\n"
    function = fallbacks.compiled_or_plain(compiled, lambda x: 10 * x)
    assert function(3) == 3
    with pytest.raises(RuntimeError):
        function(-1)


def test_expected_memory():
    """The paper's command: per view and image 12.9 MB in bf16, 8.15 MB with recomputation."""
    model = Model(128, "resnet50")
    before = copy.deepcopy(model.state_dict())
    everything, recomputed = (activation_bytes(model, 32, r) / 2e6 for r in (False, True))
    assert (round(everything, 1), round(recomputed, 2)) == (12.9, 8.15)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    args = main.parse_args([])
    bf16 = torch.bfloat16
    compiled, eager = (expected_bytes(model, args, bf16, c) / 1e9 for c in (True, False))
    assert (round(compiled), round(eager)) == (20, 13)
    args.grad_cache = True
    assert expected_bytes(model, args, bf16, False) / 1e9 == pytest.approx(3.7, abs=0.1)


def test_fp16s_skipped_steps_leave_batchnorm_alone(monkeypatch):
    """A step that is not finite moves neither weights nor running statistics."""
    run = new_run("--num_pos", 1)
    run.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0)
    make_view, before = views.make_view, copy.deepcopy(run.model.state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(views, "make_view", lambda *args: make_view(*args) * torch.inf)
        one_step.take_step(run, run.pixels[:4])
    after = run.model.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert run.progress["skipped"] == 1
    one_step.take_step(run, run.pixels[:4])
    after = run.model.state_dict()
    assert not torch.equal(after["f.1.running_mean"], before["f.1.running_mean"])
    assert all(value.isfinite().all() for value in after.values())
