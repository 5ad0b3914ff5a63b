"""Steps that do not fit into memory, or do not compile, are taken again with less."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch._functorch.config

from attentionce.data import views
from attentionce.errors import UserError
from attentionce.training import devices, one_step, processes
from attentionce.training.batchnorm import set_views_per_pass
from attentionce.training.pretraining import Run

LOW_BUDGET = 0.5  # of activations that a compiled forward pass keeps once memory has run out
TRIALS = 3  # the first steps of a process; after them memory no longer grows
T = TypeVar("T")


def take_step_or_change(run: Run, batch: torch.Tensor) -> None:
    """`one_step.take_step`; if memory runs out or compiling fails, undo and try with less.

    Only in the first steps. A compiled run first keeps fewer activations; then, like an uncompiled
    one, it works view by view as with `--grad_cache`. If a compiled step fails in any other way,
    the run continues uncompiled. Each change prints one line. Of several processes none can change
    alone: the error ends the run.
    """
    may_change = run.steps_taken < TRIALS and processes.world() == 1
    while True:
        before = one_step.copies(one_step.statistics(run)) if may_change else []
        try:
            one_step.take_step(run, batch)
            run.steps_taken += 1
            return
        except Exception as error:
            change, reason = None, devices.out_of_memory(error)
            if may_change and reason is not None:
                change = save_memory(run)
            elif may_change and run.compiled:
                reason = compiler_failure(error)
                change = uncompile(run) if reason is not None else None
            if change is None:
                raise
        # Outside of the handler, which would hold on to the failed step's tensors.
        undo(run, before)
        print(f"{reason}: continuing {change}", flush=True)


def compiled_or_plain(compiled: Callable[..., T], plain: Callable[..., T]) -> Callable[..., T]:
    """compiled(…); if its first call fails to compile, one line says so and plain(…) takes over."""
    chosen: list[Callable[..., T]] = []

    def call(*args: Any) -> T:
        if chosen:
            return chosen[0](*args)
        try:
            result = compiled(*args)
            chosen.append(compiled)
            return result
        except Exception as error:
            reason = compiler_failure(error)
            if reason is None:
                raise
        print(f"{reason}: continuing without", flush=True)
        chosen.append(plain)
        return plain(*args)

    return call


def compiler_failure(error: Exception) -> str | None:
    """`torch.compile failed (…)`; None if memory, the GPU or the user is the cause."""
    cause = getattr(error, "inner_exception", error)
    if devices.out_of_memory(error) or isinstance(cause, (UserError, torch.AcceleratorError)):
        return None
    return f"torch.compile failed ({type(cause).__name__})"


def save_memory(run: Run) -> str | None:
    """Change the run so that it takes less memory; returns how it continues, None if it cannot."""
    if run.views_per_pass > 1:
        run.views_per_pass = 1
        for model in (run.model, run.moco.model) if run.moco else (run.model,):
            set_views_per_pass(model, 1)
        return "with one view per pass"
    if run.compiled and torch._functorch.config.activation_memory_budget > LOW_BUDGET:
        keep_fewer_activations(run)
        return "with fewer activations kept, about 7 % slower"
    if not run.grad_cache:
        run.grad_cache, run.recompute = True, False
        return "with --grad_cache, about a third slower"
    return None


def keep_fewer_activations(run: Run) -> None:
    """Compile again with a lower budget for activations."""
    torch._functorch.config.activation_memory_budget = LOW_BUDGET
    torch.compiler.reset()
    run.encoder = torch.compile(run.model)
    run.key_encoder = torch.compile(run.moco.model) if run.moco else None


def uncompile(run: Run) -> str:
    """Take encoder and views out of torch.compile; returns how the run continues."""
    run.encoder, run.key_encoder, run.view_ops = run.model, None, views.Ops()
    run.compiled, run.recompute = False, not run.grad_cache
    return "without"


def undo(run: Run, before: list[torch.Tensor]) -> None:
    """Forget what a failed step has left: gradients, and BatchNorm's running statistics."""
    run.optimizer.zero_grad(set_to_none=True)
    for buffer, value in zip(one_step.statistics(run), before, strict=True):
        buffer.copy_(value)
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
