"""make gpu-profile on a CPU: every part writes its results, and a variant must be the same step."""

import json
from argparse import Namespace
from functools import partial

import pytest
import torch
from tiny_benchmark import in_this_process

from benchmark import gpu_profile, measuring, step_variants
from benchmark.step_variants import captured, with_fields

ARGS = Namespace(**gpu_profile.CPU, device="cpu")


@pytest.fixture
def profiled(call, tmp_path, monkeypatch, small_encoder):
    """profiled("step", …): what is written of these parts, measured in this process."""
    monkeypatch.setattr(measuring, "in_fresh_process", in_this_process)

    def function(*parts):
        flags = ["--device", "cpu", "--results", tmp_path]
        call(gpu_profile, *flags, "--parts", *(parts or gpu_profile.PARTS))
        return json.loads((tmp_path / "gpu-profile-cpu.json").read_text())

    with torch._functorch.config.patch(activation_memory_budget=1.0):  # which `memory` changes
        yield function


def test_every_part_is_measured_where_it_can_be(profiled, capsys):
    found = profiled("ceilings", "step", "3 views per pass", "memory")
    assert found["machine"]["torch"] and found["minutes"] > 0 and found["flags"]["batch_size"] == 4
    assert found["ceilings"]["copy_gb_s"] > 0 and found["ceilings"]["matmul_tflop_s"] > 0
    step, variant, memory = found["step"], found["3 views per pass"], found["memory"]
    assert step["images_per_second"] == pytest.approx(4000 / step["ms"])
    for name in ("optimiser", "convolution, forward", "BatchNorm, backward", "matrix products"):
        assert step["groups"][name]["ms"] > 0 and step["groups"][name]["launches"] >= 1, name
    assert step["longest"][0]["ms"] >= step["longest"][19]["ms"] > 0
    assert variant["agrees"] and variant["ratio_in_round"] > 0
    assert variant["ms"]["as it is"]["repetitions"] == variant["ms"]["variant"]["repetitions"] == 2
    assert memory["compiled"]["expected_gb"] > memory["grad_cache"]["expected_gb"] > 0
    for needs_cuda in (step["allocated_gb"], step["idle_ms"], memory["compiled"]["allocated_gb"]):
        assert needs_cuda is None
    assert '"3 views per pass": {' in capsys.readouterr().out


def test_every_variant_has_a_process_and_one_that_fails_loses_only_itself(profiled, monkeypatch):
    def measured(function, *arguments):
        return None if arguments[0] == "CUDA graph" else function.__name__

    monkeypatch.setattr(measuring, "in_fresh_process", measured)
    found = profiled()
    assert list(found) == ["machine", "flags", *gpu_profile.PARTS, "minutes"]
    assert list(gpu_profile.PARTS)[2:5] == ["CUDA graph", "benchmark_limit 0", "6 views per pass"]
    assert found["CUDA graph"] is None
    assert found["step"] == "step" and found["conv_1x1_as_mm"] == "variant"


def run_at_once(run, forward_and_backward):
    """cuda_graph without CUDA: a replay computes again, into the same tensors."""

    def gradients():
        return [parameter.grad for parameter in run.model.parameters()]

    loss, z = forward_and_backward()
    first = gradients()

    def replay():
        run.optimizer.zero_grad(set_to_none=True)
        loss.copy_(forward_and_backward()[0])
        for gradient, again in zip(first, gradients(), strict=True):
            gradient.copy_(again)
        run.optimizer.zero_grad(set_to_none=True)

    return replay, (loss, z)


def with_another_loss(run, batch):
    return with_fields(run, batch, loss=partial(run.loss, temperature=0.4))


@pytest.mark.parametrize(
    "variant, agrees",
    [
        (partial(captured, capture=run_at_once), True),
        (step_variants.every_plan, True),
        (with_another_loss, False),
    ],
)
def test_a_variant_must_be_the_same_step(variant, agrees, monkeypatch, small_encoder):
    monkeypatch.setitem(gpu_profile.VARIANTS, "some", variant)
    assert gpu_profile.variant("some", ARGS)["agrees"] == agrees
