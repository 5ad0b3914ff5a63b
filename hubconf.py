"""For torch.hub: the encoder in torchvision's own ResNet naming, for detection, timm-like and other code.

encoder = torch.hub.load(PATH_OR_REPO, "encoder", weights="cifar10_SimCLR_4model_256_400_1.0_1.0.pth")
"""

import sys
from pathlib import Path

dependencies = ["torch", "torchvision", "numpy", "PIL", "tqdm"]

# The caller may have modules of these names: theirs step aside while ours are imported.
_ours = [path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "hubconf"]
_theirs = {name: sys.modules.pop(name) for name in _ours if name in sys.modules}
try:
    from model import as_resnet, backbone, load_model
finally:
    for _name in _ours:
        sys.modules.pop(_name, None)
    sys.modules.update(_theirs)


def encoder(weights=None, arch=None):
    """A torchvision ResNet for small images: 3×3 stride-1 conv1, no max-pool, no fc; it returns features B×512 or B×2048.

    It wants images normalised with mean (0.4914, 0.4822, 0.4465) and std (0.2023, 0.1994, 0.2010), and like torchvision's
    is in train mode until .eval().

    Args:
        weights: a file of main.py or of the reference, opened without running anything in it; None: untrained.
        arch: resnet10, resnet18, resnet34 or resnet50; read off the weights by default (untrained: resnet50).

    Raises:
        ValueError: one line; the weights are missing, damaged, of another arch, or hold more than tensors.
    """
    if weights is None:
        return backbone(arch or "resnet50")
    model, arch = load_model(weights, arch)
    return as_resnet(model.f, arch)
