"""AttentioNCE: a contrastive loss that weighs positives and negatives by attention."""

__version__ = "0.1.0"
