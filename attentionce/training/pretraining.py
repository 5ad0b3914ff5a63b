"""A pretraining run: what it works with, where it stands, and its state as a dictionary."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attentionce.data import views
from attentionce.data.images import Images
from attentionce.errors import UserError, as_user_error
from attentionce.training import devices, processes
from attentionce.training.memory import expected_bytes
from attentionce.training.moco import MoCo

# What the last digits depend on: where it differs, a resumed run says so.
DIGITS = ("torch", "torchvision", "numpy", "device", "threads", "precision")


@dataclass
class Run:
    """A pretraining run. `state_of` has what must survive a restart."""

    args: argparse.Namespace
    device: torch.device
    dtype: torch.dtype  # that the encoder computes in
    pixels: Tensor  # uint8 N×3×H×W, on the device where they fit
    model: nn.Module
    encoder: Callable[..., Any]  # the model, perhaps compiled, perhaps of several processes
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: Callable[..., Tensor]  # of z, and `gather` or MoCo's `queue`
    attention_numbers: Callable[..., dict[str, float]]  # of z, `queue` and `noisy`, for the metrics
    progress: dict[str, Any]
    fingerprint: str = ""  # of the images
    view_ops: views.Ops = views.Ops()  # the steps from images to a view, perhaps compiled
    moco: MoCo | None = None
    key_encoder: Callable[..., Any] | None = None  # MoCo's momentum encoder, or its compiled form
    grad_cache: bool = False  # the memory of one pass, for one more forward pass
    views_per_pass: int = 1  # that the encoder takes at a time
    compiled: bool = False  # encoder and views go through torch.compile
    recompute: bool = False  # the first stage's activations in the backward pass
    steps_taken: int = 0  # by this process
    finite: Tensor | None = None  # whether all steps of this process were, on the device
    good_buffers: list[Tensor] | None = None  # BatchNorm's statistics at the last finite loss
    saved: float = 0.0  # time.monotonic of the last save
    reported: float = 0.0  # and of the last line

    @property
    def views(self) -> int:
        """Views per image: two anchors, and M positives where the loss takes any."""
        return 2 + (self.args.num_pos or 0)

    @property
    def position(self) -> tuple[int, int]:
        """The epoch, from 1, and how many of its steps are done."""
        return self.progress["epoch"], self.progress["step"]

    @property
    def steps(self) -> int:
        """Steps per epoch: the last, partial batch is dropped."""
        return len(self.pixels) // self.args.batch_size

    @property
    def seconds_left(self) -> float:
        """Of training, to the last epoch, at the mean speed so far; only after the first step."""
        epoch, step = self.position
        done = (epoch - 1) * self.steps + step
        return self.progress["seconds"] * (self.args.epochs * self.steps / done - 1)


def new_run(
    args: argparse.Namespace,
    model: nn.Module,
    loss: Callable[..., Tensor],
    attention_numbers: Callable[..., dict[str, float]],
    images: Images,
    device: torch.device,
    dtype: torch.dtype,
) -> Run:
    """An untrained model, with its optimiser and all that a run needs, on the device."""
    model = model.to(device).to(memory_format=torch.channels_last)
    compiled = devices.wants_compiler(args.compile, device)
    synchronise = args.bn == "sync" and processes.world() > 1
    if synchronise and compiled:
        print("--bn sync: continuing without torch.compile, whose graphs it breaks", flush=True)
        compiled = False
    expected = expected_bytes(model, args, dtype, compiled)
    if synchronise:  # now that memory is counted
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    moco = None
    if args.estimator == "MoCo":
        moco = MoCo(model, args.queue, args.momentum, args.feature_dim).to(device)
    print(
        f"{devices.device_name(device)} ({device}), {str(dtype).removeprefix('torch.')}, "
        f"{'compiled' if compiled else 'not compiled'}, "
        f"about {expected / 1e9:.1f} GB expected for {args.batch_size} images per step",
        flush=True,
    )
    devices.warn_of_unused_gpu(device)
    adam = torch.optim.Adam(
        model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True
    )
    return Run(
        args=args,
        device=device,
        dtype=dtype,
        pixels=devices.keep(images.pixels, device),
        fingerprint=images.fingerprint,
        model=model,
        encoder=processes.replicated(torch.compile(model) if compiled else model),
        optimizer=adam,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        loss=loss,
        attention_numbers=attention_numbers,
        progress=new_progress(len(images.pixels) // args.batch_size, device),
        view_ops=views.compiled() if compiled else views.Ops(),
        moco=moco,
        key_encoder=torch.compile(moco.model) if moco and compiled else None,
        compiled=compiled,
        grad_cache=args.grad_cache,
        # A compiler decides by itself what to keep; --grad_cache keeps no more than one view's.
        recompute=not compiled and not args.grad_cache,
    )


def new_progress(steps: int, device: torch.device) -> dict[str, Any]:
    """Where a fresh run stands: before step 0 of epoch 1."""
    return {
        "epoch": 1,
        "step": 0,
        "losses": torch.zeros(steps, device=device),  # one per step of this epoch
        "skipped": torch.zeros((), device=device),  # steps that fp16's gradient scaler skipped
        "seconds": 0.0,  # of training so far
        "attention": {},  # what it looks at, at the epoch's last step
        "best_knn": 0.0,
        "rows": [],  # of the table of metrics, one per epoch
    }


def state_of(run: Run) -> dict[str, Any]:
    """All that changes in a run, and the flags, as a dictionary that `restore` takes."""
    return {
        "flags": vars(run.args),
        "machine": machine_of(run),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "moco": run.moco.state_dict() if run.moco else None,
        "progress": {name: value for name, value in run.progress.items() if name != "rows"},
        "code": devices.code_digests(),
        "images": len(run.pixels),
        "fingerprint": run.fingerprint,
    }


def machine_of(run: Run) -> dict[str, str]:
    """Machine, versions, and what `--precision auto` means there."""
    return {**devices.machine(run.device), "precision": str(run.dtype).removeprefix("torch.")}


def restore(run: Run, state: dict[str, Any]) -> None:
    """Continue from the state that `state_of` returned, perhaps on another machine.

    Raises:
        UserError: The state was made with other images, or is not one of `state_of`.
    """
    fingerprint = state.get("fingerprint", run.fingerprint)  # older states have none
    if (state.get("images"), fingerprint) != (len(run.pixels), run.fingerprint):
        raise UserError(
            f"the state was saved with different images ({state.get('images')}, here are "
            f"{len(run.pixels)}): use those, or start over with --resume never"
        )
    with as_user_error("the state does not fit this run; start over with --resume never"):
        run.model.load_state_dict(state["model"])
        restore_moments(run.optimizer, state["optimizer"]["state"])
        if run.scaler.is_enabled() and state["scaler"]:  # it is empty in a state of bf16 or fp32
            run.scaler.load_state_dict(like(run.scaler.state_dict(), state["scaler"]))
        if run.moco:
            run.moco.load_state_dict(state["moco"])
        run.progress = checked_progress(run, state["progress"])
    there, here = state["machine"], machine_of(run)
    changed = [f"{k} {there.get(k)} (here: {here[k]})" for k in DIGITS if there.get(k) != here[k]]
    if changed:
        print(f"saved with {', '.join(changed)}: the last digits may differ", flush=True)
    epoch, step = run.position
    print(f"continuing from epoch {epoch}, step {step}", flush=True)


def restore_moments(adam: torch.optim.Optimizer, moments: dict[int, dict[str, Tensor]]) -> None:
    """Adam's moments alone: its settings come from the flags, which may be others by now."""
    groups = adam.state_dict()["param_groups"]
    adam.load_state_dict({"state": moments, "param_groups": groups})
    if len(adam.state) not in (0, sum(len(group["params"]) for group in groups)):
        raise ValueError("the optimiser's state is of other parameters")
    for parameter, kept in adam.state.items():
        if kept.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError("the optimiser's state is not Adam's")
        if any(value.shape not in (parameter.shape, ()) for value in kept.values()):
            raise ValueError("the optimiser's tensors have other shapes")


def checked_progress(run: Run, saved: dict[str, Any]) -> dict[str, Any]:
    """The saved progress on the run's device; a ValueError if it cannot be that of this run."""
    progress = like(run.progress, saved)
    if not (progress["epoch"] >= 1 and 0 <= progress["step"] <= run.steps):
        raise ValueError(f"there is no epoch {progress['epoch']}, step {progress['step']}")
    for row in progress["rows"]:  # older code may have had other columns
        if not all(isinstance(row[name], (int, float)) for name in ("epoch", "seconds")):
            raise ValueError("its metrics are not a table")
    # The table may be ahead of the state.
    progress["rows"] = [row for row in progress["rows"] if row["epoch"] < progress["epoch"]]
    return progress


def like(fresh: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """What was saved, on the fresh parts' device; a ValueError for another type or shape.

    A part that is newer than the state stays fresh.
    """
    result = {}
    for name, value in fresh.items():
        part = saved.get(name, value)
        same_kind = type(part) is type(value)
        if not same_kind or (isinstance(value, Tensor) and part.shape != value.shape):
            raise ValueError(f"its {name} is of another kind")
        result[name] = part.to(value) if isinstance(value, Tensor) else part
    return result
