"""matplotlib as the pictures use it: drawn into files, in one style. Importing this sets it up."""

import sys

try:
    import matplotlib.pyplot as plt
    from matplotlib.patheffects import withStroke
except ImportError as error:
    advice = "pictures need two more packages: pip install matplotlib scikit-learn"
    print(f"error: {advice} ({error})", file=sys.stderr)
    raise SystemExit(2) from None

__all__ = ["COLOURS", "plt", "withStroke"]

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]

plt.switch_backend("Agg")
plt.rcParams.update(
    {
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.prop_cycle": plt.cycler(color=COLOURS),
        "figure.dpi": 150,
        "savefig.bbox": "tight",
    }
)
