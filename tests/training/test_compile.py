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
from helpers.runs import new_run

from attentionce.data import views
from attentionce.evaluation.knn import features
from attentionce.training import one_epoch, one_step, pretraining, processes
from model import Model

# Adam's first steps move a weight by the learning rate, up or down, however small its gradient is.
# Where that is a GPU's rounding, two runs may differ by twice as much per step.
STEPS_OF_ADAM = 2 * 6 * 1e-3
MOCO = "--estimator MoCo --queue 8"


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that were compiled so far, by the function that they come from."""
    found = collections.Counter()

    def record(graph, example_inputs):
        calls = [str(node.target) for node in graph.graph.nodes if node.op.startswith("call")]
        found["encoder" if any("conv" in call for call in calls) else "view"] += 1
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=record))
    yield found
    torch.compiler.reset()


def compiled_run(*words, **options):
    return new_run("--num_pos", 1, "--compile", "on", *words, **options)


def take_steps(run, count):
    for _ in range(count):
        one_step.take_step(run, run.pixels[:4])
        run.progress["step"] += 1


@pytest.mark.parametrize(
    "encoder, words, encoders, per_view",
    [
        (Model, "", 1, 1),
        (Small, "--grad_cache", 2, 2),
        (Small, MOCO, 2, 2),
        (Small, f"{MOCO} --grad_cache", 3, 2),
    ],
)
def test_steps_compile_once(encoder, words, encoders, per_view, graphs):
    """One graph per function, two where it also runs without gradients; none after two steps."""
    torch._dynamo.utils.counters.clear()
    run = compiled_run(*words.split(), encoder=encoder, count=12, dtype=torch.bfloat16)
    take_steps(run, 2)
    steps_to_a_view = len(views.Ops().jitter) + 2
    assert graphs == {"encoder": encoders, "view": per_view * steps_to_a_view}
    assert not torch._dynamo.utils.counters["graph_break"]
    before = dict(graphs)
    run.progress.update(epoch=2, step=0)  # another order of the jitter
    take_steps(run, 1)
    assert graphs == before


@pytest.mark.parametrize(
    "words", ["", "--grad_cache", MOCO, pytest.param("inductor", marks=pytest.mark.soak)]
)
def test_compiled_steps_are_uncompiled_ones(words, graphs, monkeypatch):
    """Through all of inductor on a CPU only in `make soak`: its C++ takes half a minute."""
    tolerance = {} if ON_CPU and words != "inductor" else {"rtol": 1e-4, "atol": 1e-4}
    if words == "inductor":
        backend = "inductor" if SOAK or not ON_CPU else "aot_eager_decomp_partition"
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
        words = ""
    compiled, eager = (
        compiled_run(*words.split(), "--compile", choice, encoder=Small, count=12)
        for choice in ("on", "off")
    )
    assert compiled.encoder is not compiled.model
    for run in (compiled, eager):
        # With its own epsilon Adam turns the rounding of a tiny gradient into a whole step.
        run.optimizer.param_groups[0]["eps"] = 0.01
        take_steps(run, 1)
    moments = (run.optimizer.state.values() for run in (compiled, eager))
    for one, other in zip(*moments, strict=True):  # a tenth of the gradient
        assert (one["exp_avg"] - other["exp_avg"]).norm() <= 1e-3 * other["exp_avg"].norm()
    for run in (compiled, eager):
        take_steps(run, 1)
    torch.testing.assert_close(compiled.progress["losses"], eager.progress["losses"], **tolerance)
    for name, value in eager.model.state_dict().items():
        there = compiled.model.state_dict()[name]
        torch.testing.assert_close(there, value, rtol=1e-4, atol=1e-5 if ON_CPU else 1e-4)


def test_no_new_graph_after_evaluation_saving_and_resuming(graphs):
    """Nor does any of them change what is trained."""
    run, untouched = (compiled_run(encoder=Small, count=12) for _ in range(2))

    def train():
        for each in (run, untouched):
            assert one_epoch.train_epoch(each, [], lambda: None) == 0
            each.progress.update(epoch=each.progress["epoch"] + 1, step=0)

    train()
    before = dict(graphs)
    features(run.model.f, run.pixels, DEVICE, torch.float32)
    pretraining.restore(run, pretraining.state_of(run))
    train()
    assert graphs == before and graphs["encoder"]
    small = 0 if ON_CPU else STEPS_OF_ADAM
    pairs = zip(run.model.state_dict().values(), untouched.model.state_dict().values(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=small, atol=small)


def test_synchronised_batchnorm_is_not_compiled(monkeypatch, capsys):
    """And memory is counted before, on meta tensors, which SyncBatchNorm does not take."""
    monkeypatch.setattr(processes, "world", lambda: 2)
    monkeypatch.setattr(processes, "replicated", lambda model: model)
    run = compiled_run("--bn", "sync")
    assert isinstance(run.model.f[1], torch.nn.SyncBatchNorm)
    assert run.encoder is run.model and not run.compiled
    assert "--bn sync: continuing without torch.compile" in capsys.readouterr().out
    monkeypatch.setattr(processes, "world", lambda: 1)  # one has nothing to synchronise
    assert pretraining.uses_compiler(run.args, DEVICE)
