"""How fast this code is, measured side by side with a reference recipe: python -m benchmark."""

VIEWS = 6  # per image: two anchors and four positives
DIM = 128  # of an embedding
