"""ResNet-50 as torchvision builds it, with a stem for small images if asked."""

from __future__ import annotations

from torch import nn


def resnet50(*, classes: int = 1000, channels: int = 3, cifar_stem: bool = False) -> nn.Module:
    """Build torchvision's ResNet-50 (K. He et al., arXiv 1512.03385) with random weights.

    Args:
        classes: number of logits.
        channels: number of image channels; other than 3 replaces `conv1`.
        cifar_stem: keep the resolution of small images (32x32) at the start: `conv1` is 3x3 with stride 1 and
            padding 1, and the max-pooling is left out.

    Returns:
        The network: (n, channels, height, width) -> (n, classes). Its state dict has torchvision's keys.
    """
    from torchvision.models import ResNet
    from torchvision.models import resnet50 as torchvision_resnet50

    model: ResNet = torchvision_resnet50(weights=None, num_classes=classes)
    if cifar_stem or channels != 3:
        kernel, stride, padding = (3, 1, 1) if cifar_stem else (7, 2, 3)
        model.conv1 = nn.Conv2d(channels, 64, kernel, stride=stride, padding=padding, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if cifar_stem:
        model.register_module("maxpool", nn.Identity())
    return model


def resnet50_cifar(*, classes: int = 10, channels: int = 3) -> nn.Module:
    """Build `resnet50` with the stem for small images (32x32); the arguments are the same."""
    return resnet50(classes=classes, channels=channels, cifar_stem=True)
