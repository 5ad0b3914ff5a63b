"""What CUDA compiles by default, on a CPU: graphs are counted, and steps give the usual numbers.

A backend that only records graphs runs them as they are, so a graph break, a graph per step, or an
operation that cannot be traced shows here as it would on a GPU. One test goes through inductor.
"""

import collections
import functools

import pytest
import torch
from helpers.device import DEVICE, ON_CPU
from helpers.programs import Small

import main
from attentionce.data import views
from attentionce.evaluation.knn import features
from attentionce.training import one_epoch, one_step
from attentionce.training.pretraining import restore, state_of
from loss import LOSSES

# Adam's first steps move a weight by the learning rate, up or down, however small its gradient is.
# Where that is a GPU's rounding, two runs may differ by twice as much per step.
STEPS_OF_ADAM = 2 * 6 * 1e-3


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that were compiled so far, by the function that they come from."""
    found = collections.Counter()

    def record(graph, example_inputs):
        found[name_of(graph)] += 1
        return graph.forward

    torch.compiler.reset()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", functools.partial(real, backend=record))
    yield found
    torch.compiler.reset()


def name_of(graph):
    """What is compiled: one of the steps to a view, or the encoder by its convolutions."""
    calls = [str(node.target) for node in graph.graph.nodes if node.op.startswith("call")]
    return "encoder" if any("conv" in call for call in calls) else "view"


def new_run(monkeypatch, *words, precision="fp32"):
    monkeypatch.setattr(main, "cost", lambda model, image_size: (0, 0))
    flags = "--dataset_name photos --arch resnet10 --image_size 8 --batch_size 4 --num_pos 1"
    args = main.parse_args([*flags.split(), "--compile", "on", *words])
    pixels = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    return main.assemble(args, pixels, DEVICE, dtype)


def train(run):
    """One epoch of three steps."""
    assert one_epoch.train_epoch(run, [], lambda: None) == 0
    assert run.encoder is not run.model, "the compiler was left out"
    run.progress.update(epoch=run.progress["epoch"] + 1, step=0)


CASES = {
    **{loss: ["--loss", loss] for loss in LOSSES},
    "grad_cache": ["--grad_cache"],
    "MoCo": ["--estimator", "MoCo", "--queue", "8"],
    "MoCo, grad_cache": ["--estimator", "MoCo", "--queue", "8", "--grad_cache"],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_compile_once(case, precision, graphs, monkeypatch):
    """One graph per function, two where it also runs without gradients; none after two steps."""
    torch._dynamo.utils.counters.clear()
    run = new_run(monkeypatch, *CASES[case], precision=precision)
    batch = run.pixels[:4]
    for _ in range(2):
        one_step.take_step(run, batch)
        run.progress["step"] += 1
    without_gradients = "MoCo" in case or "grad_cache" in case
    encoders = {"MoCo, grad_cache": 3}.get(case, 2 if without_gradients else 1)
    assert graphs["encoder"] == encoders
    assert not torch._dynamo.utils.counters["graph_break"]
    steps_to_a_view = len(views.Ops().jitter) + 2
    assert graphs["view"] == (2 if without_gradients else 1) * steps_to_a_view
    before = dict(graphs)
    run.progress.update(epoch=2, step=0)  # another order of the jitter
    one_step.take_step(run, batch)
    assert dict(graphs) == before


def test_no_new_graph_after_evaluation_saving_and_resuming(graphs, monkeypatch):
    """Nor does any of them change what is trained."""
    run, untouched = new_run(monkeypatch), new_run(monkeypatch)
    for each in (run, untouched):
        train(each)
    before = dict(graphs)
    features(run.model.f, run.pixels, DEVICE, torch.float32)
    restore(run, state_of(run))
    for each in (run, untouched):
        train(each)
    assert dict(graphs) == before
    pairs = zip(run.model.state_dict().values(), untouched.model.state_dict().values(), strict=True)
    for one, other in pairs:
        small = 0 if ON_CPU else STEPS_OF_ADAM
        torch.testing.assert_close(one, other, rtol=small, atol=small)


@pytest.mark.parametrize("case", ["attentionce", "grad_cache", "MoCo"])
def test_recorded_graphs_are_the_same_step(case, graphs, monkeypatch):
    compiled = new_run(monkeypatch, *CASES[case])
    eager = new_run(monkeypatch, *CASES[case], "--compile", "off")
    for run in (compiled, eager):
        # With its own epsilon Adam turns the rounding of a tiny gradient into a whole step.
        run.optimizer.param_groups[0]["eps"] = 0.01
        one_step.take_step(run, run.pixels[:4])
        run.progress["step"] += 1
    assert graphs["encoder"]
    for one, other in zip(first_gradients(compiled), first_gradients(eager), strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm()
    for run in (compiled, eager):
        one_step.take_step(run, run.pixels[:4])
        run.progress["step"] += 1
    tolerance = {} if ON_CPU else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(compiled.progress["losses"], eager.progress["losses"], **tolerance)
    for name, value in eager.model.state_dict().items():
        there = compiled.model.state_dict()[name]
        torch.testing.assert_close(there, value, rtol=1e-4, atol=1e-5 if ON_CPU else 1e-4)


def first_gradients(run):
    """A tenth of each parameter's gradient, if one step has been taken: Adam's first moments."""
    return [moments["exp_avg"] for moments in run.optimizer.state.values()]


def test_a_step_through_inductor(monkeypatch):
    """The compiler that CUDA uses by default, with its code for CPUs and a small encoder."""
    monkeypatch.setattr(main, "Model", Small)
    torch.compiler.reset()
    compiled = new_run(monkeypatch)
    eager = new_run(monkeypatch, "--compile", "off")
    for run in (compiled, eager):
        one_step.take_step(run, run.pixels[:4])
    assert compiled.encoder is not compiled.model
    torch.testing.assert_close(
        compiled.progress["losses"], eager.progress["losses"], rtol=1e-4, atol=1e-4
    )
    torch.compiler.reset()


def test_memory_is_expected_before_batchnorm_synchronises(monkeypatch):
    """SyncBatchNorm runs on a GPU alone, and memory is counted on tensors without a device."""

    def expected_bytes(model, *_):
        norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        assert norms and not any(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
        return 0

    monkeypatch.setattr(main, "expected_bytes", expected_bytes)
    monkeypatch.setattr(main.processes, "world", lambda: 2)
    monkeypatch.setattr(main.processes, "replicated", lambda model: model)
    run = new_run(monkeypatch, "--bn", "sync")
    assert isinstance(run.model.f[1], torch.nn.SyncBatchNorm)


def test_sync_batchnorm_goes_on_uncompiled(monkeypatch, capsys):
    args = main.parse_args(["--bn", "sync", "--compile", "on"])
    assert main.uses_compiler(args, DEVICE)  # one process has nothing to synchronise
    monkeypatch.setattr(main.processes, "world", lambda: 2)
    assert not main.uses_compiler(args, DEVICE)
    assert "--bn sync: continuing without torch.compile" in capsys.readouterr().out
