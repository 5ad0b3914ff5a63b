"""For torch.hub: the encoder with the names of torchvision's ResNet, and the loss as a module.

encoder = torch.hub.load(REPO, "encoder", weights="cifar10_SimCLR_4model_256_400_1.0_10.0.pth")
criterion = torch.hub.load(REPO, "attentionce", temperature=0.5, d_pos=1.0, d_neg=10.0)
"""

# Not the module `loss` that the caller may have.
from attentionce import loss as _loss  # type: ignore[attr-defined]
from attentionce import model as _model  # type: ignore[attr-defined]

dependencies = ["torch", "torchvision"]


def encoder(weights=None, arch=None, stem=None):
    """A torchvision ResNet without fc, in train mode until .eval().

    It returns features, B×512 or B×2048, and expects images normalised with mean (0.4914, 0.4822,
    0.4465) and std (0.2023, 0.1994, 0.2010).

    Args:
        weights: A file that holds an encoder, whatever program wrote it. None: untrained.
        arch: resnet10, resnet18, resnet34 or resnet50. By default that of the weights;
            untrained, it is resnet50.
        stem: small, for small images: 3×3 conv1, no max-pool. imagenet: torchvision's 7×7 stride-2
            conv1 with max-pool. By default that of the weights; untrained, it is small.

    Raises:
        ValueError: The weights are missing, damaged, or of another arch or stem.
    """
    if weights is None:
        return _model.backbone(arch or "resnet50", stem or "small")
    f, arch = _model.load_encoder(weights, arch, stem)
    return _model.as_resnet(f, arch)


def attentionce(temperature=0.5, d_pos=1.0, d_neg=1.0):
    """The loss as a module: embeddings (2 + M) × batch × dim, two anchors first → mean loss."""
    return _loss.AttentioNCE(temperature, d_pos, d_neg)
