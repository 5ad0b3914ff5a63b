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

# The share of activations that a compiled forward pass keeps once memory has run out. It costs
# about a fifteenth of the step's memory traffic.
LOW_BUDGET = 0.5
TRIALS = 3  # the first steps of a process; after them memory no longer grows
T = TypeVar("T")


def take_step_or_change(run: Run, batch: torch.Tensor) -> None:
    """`one_step.take_step`; if memory runs out or compiling fails, undo and try with less.

    Only in the first steps. A compiled run first keeps fewer activations; then, like an uncompiled
    one, it works view by view as with `--grad_cache`. If a compiled step fails in any other way,
    the run goes on uncompiled. Each change prints one line. Of several processes none can change
    alone: the error ends the run.

    Raises:
        torch.OutOfMemoryError, RuntimeError: It does not fit even so.
    """
    may_change = run.steps_taken < TRIALS and processes.world() == 1
    while True:
        before = one_step.copies(one_step.statistics(run)) if may_change else []
        try:
            one_step.take_step(run, batch)
            run.steps_taken += 1
            return
        except Exception as error:
            cause = getattr(error, "inner_exception", error)  # what failed inside the compiler
            change, reason = None, devices.out_of_memory(cause)
            not_compiling = isinstance(cause, (UserError, torch.AcceleratorError))
            if may_change and reason is not None:
                change = less_memory(run)
            elif may_change and run.compiled and not not_compiling:
                change, reason = uncompile, f"torch.compile failed ({type(cause).__name__})"
            if change is None:
                raise
        # Outside of the handler, which would hold on to the failed step's tensors.
        undo(run, before)
        print(f"{reason}: continuing {change(run)}", flush=True)


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
            cause = getattr(error, "inner_exception", error)
            if devices.out_of_memory(cause) or isinstance(cause, torch.AcceleratorError):
                raise
            reason = type(cause).__name__
        print(f"torch.compile failed ({reason}): continuing without", flush=True)
        chosen.append(plain)
        return plain(*args)

    return call


def less_memory(run: Run) -> Callable[[Run], str] | None:
    """The next change that saves memory, or None."""
    if run.views_per_pass > 1:
        return one_view_per_pass
    if run.compiled and torch._functorch.config.activation_memory_budget > LOW_BUDGET:
        return keep_fewer_activations
    return None if run.grad_cache else cache_gradients


def one_view_per_pass(run: Run) -> str:
    """Encode one view at a time; says so in words."""
    run.views_per_pass = 1
    for model in (run.model, run.moco.model) if run.moco else (run.model,):
        set_views_per_pass(model, 1)
    return "with one view per pass"


def keep_fewer_activations(run: Run) -> str:
    """Compile again with a lower budget for activations; says so in words."""
    torch._functorch.config.activation_memory_budget = LOW_BUDGET
    torch.compiler.reset()
    run.encoder = torch.compile(run.model)
    if run.moco is not None:
        run.key_encoder = torch.compile(run.moco.model)
    return "with fewer activations kept, about 7 % slower"


def cache_gradients(run: Run) -> str:
    """Work view by view, as `--grad_cache` does; says so in words."""
    run.grad_cache, run.recompute = True, False
    return "with --grad_cache, about a third slower"


def uncompile(run: Run) -> str:
    """Neither the encoder nor the views go through torch.compile any more; says so in words."""
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
