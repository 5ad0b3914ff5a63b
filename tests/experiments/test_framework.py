"""experiments/framework.py draws the README's picture."""

import numpy as np
from conftest import ROOT
from PIL import Image

from experiments import framework


def test_the_picture_is_the_committed_one(tmp_path):
    """Up to fonts and rounding, which versions and machines may do in another way."""
    framework.save(tmp_path / "framework.png")
    drawn, committed = (
        np.asarray(Image.open(folder / "framework.png").convert("RGB"), dtype=float)
        for folder in (tmp_path, ROOT / "pic")
    )
    assert drawn.shape == committed.shape
    assert abs(drawn - committed).mean() < 5  # other views or another encoder: 10
