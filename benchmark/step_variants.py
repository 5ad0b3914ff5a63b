"""Ways to take the same training step, which gpu_profile.py compares.

Each makes the step of a fresh run and its batch, ready to be called.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attentionce.data import views
from attentionce.training import one_step
from attentionce.training.pretraining import Run
from benchmark import this_code
from benchmark.measuring import Call


def with_fields(run: Run, batch: Tensor, **fields: Any) -> Call:
    """The step of a run some of whose fields are others."""
    return partial(one_step.take_step, replace(run, **fields), batch)


def every_plan(run: Run, batch: Tensor) -> Call:
    """cuDNN tries all its plans instead of ten. It keeps them per thread, so this has its own."""
    pool, flags = ThreadPoolExecutor(1), torch.backends.cudnn.flags

    def take_step() -> None:
        with flags(enabled=True, benchmark=True, benchmark_limit=0, allow_tf32=True):
            with torch.autograd.set_multithreading_enabled(False):  # the backward pass stays here
                one_step.take_step(run, batch)

    return lambda: pool.submit(take_step).result()


def pointwise_as_products(run: Run, batch: Tensor) -> Call:
    """The compiler makes matrix products of 1×1 convolutions."""
    if not run.compiled:
        raise ValueError("this is for compiled steps")
    encoder = torch.compile(run.model, options={"conv_1x1_as_mm": True})
    return with_fields(run, batch, encoder=encoder)


def cuda_graph(run: Run, forward_and_backward: Call) -> tuple[Call, Any]:
    """Capture the call in a CUDA graph; returns what replays it, and the call's result."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):  # compiles, and chooses cuDNN's plans
            forward_and_backward()
            run.optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = forward_and_backward()
    return graph.replay, result


def captured(
    run: Run, batch: Tensor, capture: Callable[[Run, Call], tuple[Call, Any]] = cuda_graph
) -> Call:
    """Forward, loss and backward pass are captured once and replayed; the rest is as always."""
    size, parameters = run.args.image_size, list(run.model.parameters())
    made = torch.zeros(run.views, len(batch), 3, size, size, device=run.device)
    ready, draw = replace(run, view_ops=this_code.ready(made)), one_step.draw_views(run, batch)
    inputs = one_step.Batch(batch.float(), draw, None)
    plain = partial(one_step.plain_step, ready, inputs, run.views)
    replay, (loss, _) = capture(run, partial(plain, partial(one_step.batch_loss, run)))
    gradients = [parameter.grad for parameter in parameters]

    def take_step() -> None:
        draw, images = one_step.draw_views(run, batch), batch.float()
        for v in range(run.views):
            made[v] = views.make_view(images, draw, v, size, run.view_ops)
        replay()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        run.progress["losses"][0] = one_step.update_weights(run, loss)

    return take_step


# The cheapest to compile and most promising first.
VARIANTS: dict[str, Callable[[Run, Tensor], Call]] = {
    "CUDA graph": captured,
    "benchmark_limit 0": every_plan,
    "6 views per pass": partial(with_fields, views_per_pass=6),
    "3 views per pass": partial(with_fields, views_per_pass=3),
    "2 views per pass": partial(with_fields, views_per_pass=2),
    "conv_1x1_as_mm": pointwise_as_products,
}
