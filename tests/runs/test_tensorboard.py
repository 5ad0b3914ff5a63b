"""`--tensorboard`: what arrives, and what happens without the package."""

import sys

import main


def test_tensorboard(call, refused, tiny, results, small_encoder, monkeypatch):
    """Scalars and both pictures arrive; without the package the run stops before training."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert call(main, *tiny, "--tensorboard") == 0
    tags = EventAccumulator(str(next(results.rglob("*.tensorboard")))).Reload().Tags()
    assert {"loss", "views", "effective_negatives"} <= set(tags["scalars"])
    assert set(tags["images"]) == {"views", "attention"}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = refused(main, *tiny, "--tensorboard", "--resume", "never")
    assert "pip install tensorboard" in message
