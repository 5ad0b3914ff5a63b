"""Steps that do not fit into memory, or do not compile, are taken again with less."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch._functorch.config

from attentionce.data import views
from attentionce.errors import UserError
from attentionce.training import one_step, processes
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
        torch.OutOfMemoryError: It does not fit even so.
    """
    may_change = run.steps_taken < TRIALS and processes.world() == 1
    while True:
        before = one_step.copies(one_step.statistics(run)) if may_change else []
        try:
            one_step.take_step(run, batch)
            run.steps_taken += 1
            return
        except torch.OutOfMemoryError as error:
            change = less_memory(run) if may_change else None
            reason = str(error).split(". ")[0]
            if change is None:
                raise
        except UserError:
            raise
        except Exception as error:
            if not (run.compiled and may_change):
                raise
            change = uncompile
            reason = f"torch.compile failed ({type(error).__name__})"
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
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = type(error).__name__
        print(f"torch.compile failed ({reason}): continuing without", flush=True)
        chosen.append(plain)
        return plain(*args)

    return call


def less_memory(run: Run) -> Callable[[Run], str] | None:
    """The next change that saves memory, or None."""
    if run.compiled and torch._functorch.config.activation_memory_budget > LOW_BUDGET:
        return keep_fewer_activations
    return None if run.grad_cache else cache_gradients


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
