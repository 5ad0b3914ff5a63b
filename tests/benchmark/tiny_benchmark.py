"""What the tests of the benchmark share: sizes that take seconds, and flags for them."""

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
