"""What CUDA compiles by default, on a CPU: graphs are counted, and steps give the usual numbers.

A backend that only records graphs runs them as they are, so a graph break, a graph per step, or an
operation that cannot be traced shows here as it would on a GPU. One test goes through inductor.
"""

import collections
import functools

import pytest
import torch
from helpers.device import DEVICE, ON_CPU
from helpers.faults import SOAK
from helpers.programs import Small
from helpers.runs import Exact, left_by, new_run, take_steps

from attentionce.data import views
from attentionce.evaluation.knn import features
from attentionce.training import pretraining, processes
from model import Model

MOCO = "--estimator MoCo --queue 8"


@pytest.fixture
def compile_with(monkeypatch):
    """compile_with(backend): what torch.compile goes through from now on."""

    def function(backend):
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))

    torch.compiler.reset()
    yield function
    torch.compiler.reset()


@pytest.fixture
def graphs(compile_with):
    """Graphs that were compiled so far, by the function that they come from."""
    found = collections.Counter()

    def record(graph, example_inputs):
        calls = [str(node.target) for node in graph.graph.nodes if node.op.startswith("call")]
        found["encoder" if any("conv" in call for call in calls) else "view"] += 1
        return graph.forward

    compile_with(record)
    return found


def compiled_run(*words, **options):
    return new_run("--num_pos", 1, "--compile", "on", *words, count=12, **options)


@pytest.mark.parametrize(
    "encoder, words, views_per_pass, encoders, per_view",
    [(Model, "", 1, 1, 1), (Small, f"{MOCO} --grad_cache", 2, 3, 2)],
)
def test_steps_compile_once(encoder, words, views_per_pass, encoders, per_view, graphs):
    """One graph per function, two where it also runs without gradients; none after two steps.

    Nor after evaluation, saving and resuming.
    """
    torch._dynamo.utils.counters.clear()
    options = {"encoder": encoder, "dtype": torch.bfloat16, "views_per_pass": views_per_pass}
    run = compiled_run(*words.split(), **options)
    take_steps(run, 2)
    steps_to_a_view = len(views.Ops().jitter) + 2
    assert graphs == {"encoder": encoders, "view": per_view * steps_to_a_view}
    assert not torch._dynamo.utils.counters["graph_break"]
    features(run.model.f, run.pixels, DEVICE, torch.float32)
    run.progress.update(epoch=2, step=0)  # another order of the jitter
    pretraining.restore(run, pretraining.state_of(run))
    with torch.compiler.set_stance("fail_on_recompile"):
        take_steps(run, 2)


@pytest.mark.parametrize(
    "words, views_per_pass",
    [("", 3), (f"{MOCO} --grad_cache", 1), pytest.param("inductor", 1, marks=pytest.mark.soak)],
)
def test_compiled_steps_are_uncompiled_ones(words, views_per_pass, graphs, compile_with):
    """Through all of inductor on a CPU only in `make soak`: its C++ takes half a minute."""
    small = 1e-9 if ON_CPU else 1e-4
    if words == "inductor":
        compile_with("inductor" if SOAK or not ON_CPU else "aot_eager_decomp_partition")
        words, small = "", 1e-4  # the views are in float32
    compiled = compiled_run(*words.split(), encoder=Exact, views_per_pass=views_per_pass)
    eager = compiled_run(*words.split(), "--compile", "off", encoder=Exact)
    assert compiled.encoder is not compiled.model
    for run in (compiled, eager):
        # With its own epsilon Adam turns the rounding of a tiny gradient into a whole step.
        run.optimizer.param_groups[0]["eps"] = 0.01
        take_steps(run, 2)
    torch.testing.assert_close(left_by(compiled), left_by(eager), rtol=small, atol=small / 10)


def test_synchronised_batchnorm_is_not_compiled(monkeypatch, capsys):
    """And memory is counted before, on meta tensors, which SyncBatchNorm does not take."""
    monkeypatch.setattr(processes, "world", lambda: 2)
    monkeypatch.setattr(processes, "replicated", lambda model: model)
    run = compiled_run("--bn", "sync")
    assert isinstance(run.model.f[1], torch.nn.SyncBatchNorm)
    assert run.encoder is run.model and not run.compiled
    assert "--bn sync: continuing without torch.compile" in capsys.readouterr().out
    monkeypatch.setattr(processes, "world", lambda: 1)  # one has nothing to synchronise
    assert compiled_run("--bn", "sync").compiled
