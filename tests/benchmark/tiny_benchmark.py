"""What the tests of the benchmark share: sizes that take seconds, and flags for them."""

import importlib
import pickle
from argparse import Namespace

TINY = {
    "arch": "resnet10",
    "batch_size": 4,
    "repetitions": 2,
    "view_images": 8,
    "epoch_steps": 2,
    "loss_batches": [16],
    "linear_images": 8,
    "matmul": 64,
}
FLAGS = ["--device", "cpu", "--image_size", 8, "--compile", "off"]
ARGS = Namespace(
    **TINY, device="cpu", image_size=8, compile="off", precision="fp32", precisions=["fp32"]
)


def in_this_process(function, *arguments):
    """in_fresh_process without a process, which would take seconds."""
    found = getattr(importlib.import_module(function.__module__), function.__qualname__)
    return pickle.loads(pickle.dumps(found(*pickle.loads(pickle.dumps(arguments)))))
