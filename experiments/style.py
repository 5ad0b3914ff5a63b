"""matplotlib as the pictures use it: drawn into files, in one style. Importing this sets it up."""

import sys

try:
    import matplotlib.pyplot as plt
except ImportError as error:
    print(f"error: pictures need pip install matplotlib ({error})", file=sys.stderr)
    raise SystemExit(2) from None

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]

plt.switch_backend("Agg")
plt.rc("axes", grid=True, prop_cycle=plt.cycler(color=COLOURS))
plt.rc("axes.spines", top=False, right=False)
plt.rc("font", size=11)
plt.rc("figure", dpi=150)
plt.rc("grid", alpha=0.3)
plt.rc("savefig", bbox="tight")
