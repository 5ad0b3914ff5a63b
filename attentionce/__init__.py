"""AttentioNCE: a contrastive loss that weighs positives and negatives by attention."""

__version__ = "0.1.0"

from pathlib import Path

# In a clone, loss.py and model.py lie beside this folder; installed, they are in it.
if (Path(__file__).parents[1] / "loss.py").exists():
    __path__.append(str(Path(__file__).parents[1]))
