"""make gpu-profile on a CPU: every part writes its results, and a variant must be the same step."""

import json
from argparse import Namespace
from functools import partial

import pytest
import torch
from tiny_benchmark import in_this_process

from benchmark import gpu_profile, measuring, step_variants
from benchmark.step_variants import captured, with_fields

ARGS = Namespace(**gpu_profile.CPU, device="cpu", compile="off")


@pytest.fixture(autouse=True)
def quick(monkeypatch, small_encoder):
    """Steps of next to no time, and the settings that a part changes for its own process."""
    monkeypatch.setattr(measuring, "in_fresh_process", in_this_process)
    with torch._functorch.config.patch(activation_memory_budget=1.0):
        yield


def profiled(call, folder):
    call(gpu_profile, "--device", "cpu", "--compile", "off", "--results", folder)
    return json.loads((folder / "gpu-profile-cpu.json").read_text())


def test_every_part_is_measured_where_it_can_be(call, tmp_path, capsys):
    found = profiled(call, tmp_path)
    assert found["machine"]["torch"] and found["minutes"] > 0 and found["flags"]["batch_size"] == 4
    ceilings, step, variants, memory = (found[part] for part in gpu_profile.PARTS)
    assert ceilings["copy_gb_s"] > 0 and ceilings["matmul_tflop_s"] > 0
    assert step["images_per_second"] == pytest.approx(4000 / step["ms"])
    assert step["host_ms"]["repetitions"] == 20
    for name in ("optimiser", "convolution, forward", "BatchNorm, backward", "matrix products"):
        assert step["groups"][name]["ms"] > 0 and step["groups"][name]["launches"] >= 1, name
    assert step["longest"][0]["ms"] >= step["longest"][19]["ms"] > 0
    assert variants["as it is"]["agrees"] and variants["as it is"]["ratio_in_round"] == 1
    assert variants["as it is"]["ms"]["repetitions"] == 2
    assert memory["compiled"]["expected_gb"] > memory["grad_cache"]["expected_gb"] > 0
    for needs_cuda in (
        ceilings["clocks"],
        step["gpu_ms"],
        step["allocated_gb"],
        step["idle_ms"],
        variants["CUDA graph"],
        variants["benchmark_limit 0"],
        memory["compiled"]["allocated_gb"],
    ):
        assert needs_cuda is None
    printed = capsys.readouterr().out
    assert '"CUDA graph": null' in printed and "gpu-profile-cpu.json" in printed


def test_a_part_that_fails_loses_only_itself(call, tmp_path, monkeypatch):
    def failing(function, settings):
        return None if function is gpu_profile.step else {"done": function.__name__}

    monkeypatch.setattr(measuring, "in_fresh_process", failing)
    found = profiled(call, tmp_path)
    assert found["step"] is None
    assert all(found[part] == {"done": part} for part in ("ceilings", "variants", "memory"))


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


def test_a_variant_must_be_the_same_step(monkeypatch):
    def other(run, batch):
        return with_fields(run, batch, loss=partial(run.loss, temperature=0.4))

    def broken(run, batch):
        raise RuntimeError("no such plan")

    variants = {"again": with_fields, "graph": partial(captured, capture=run_at_once)}
    for name, variant in {**variants, "other": other, "broken": broken}.items():
        monkeypatch.setitem(step_variants.VARIANTS, name, variant)
    found = gpu_profile.variants(ARGS)
    agreement = {name: found[name]["agrees"] for name in ("as it is", "again", "graph", "other")}
    assert agreement == {"as it is": True, "again": True, "graph": True, "other": False}
    assert found["graph"]["ratio_in_round"] > 0
    assert found["broken"] == {"error": "RuntimeError: no such plan"}
