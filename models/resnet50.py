"""ResNet-50 as torchvision builds it, with a stem for small images or with fewer channels if asked."""

from __future__ import annotations

from torch import nn

WIDTH = 64  # channels of torchvision's first stage; the expansion of a bottleneck makes 256 of them


def resnet50(*, classes: int = 1000, channels: int = 3, width: int = WIDTH, cifar_stem: bool = False) -> nn.Module:
    """Build torchvision's ResNet-50 (K. He et al., arXiv 1512.03385) with random weights.

    Args:
        classes: number of logits.
        channels: number of image channels; other than 3 replaces `conv1`.
        width: channels of the first stage; all other channels are scaled with it. 16 has a sixteenth of the parameters.
        cifar_stem: keep the resolution of small images (32x32) at the start: `conv1` is 3x3 with stride 1 and
            padding 1, and the max-pooling is left out.

    Returns:
        The network: (n, channels, height, width) -> (n, classes). Its state dict has torchvision's keys.
    """
    from torchvision.models import ResNet
    from torchvision.models import resnet50 as torchvision_resnet50
    from torchvision.models.resnet import Bottleneck

    model: ResNet = torchvision_resnet50(weights=None, num_classes=classes)
    if cifar_stem or channels != 3 or width != WIDTH:
        kernel, stride, padding = (3, 1, 1) if cifar_stem else (7, 2, 3)
        model.conv1 = nn.Conv2d(channels, width, kernel, stride=stride, padding=padding, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if width != WIDTH:
        model.bn1 = nn.BatchNorm2d(width)
        model.inplanes = width
        for stage, blocks in enumerate((3, 4, 6, 3)):
            layer = model._make_layer(Bottleneck, width * 2**stage, blocks, stride=1 if stage == 0 else 2)
            model.register_module(f"layer{stage + 1}", layer)
            for module in layer.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        model.fc = nn.Linear(model.inplanes, classes)
    if cifar_stem:
        model.register_module("maxpool", nn.Identity())
    return model


def resnet50_cifar(*, classes: int = 10, channels: int = 3) -> nn.Module:
    """Build `resnet50` with the stem for small images (32x32); the arguments are the same."""
    return resnet50(classes=classes, channels=channels, cifar_stem=True)


def resnet50_cifar16(*, classes: int = 10, channels: int = 3) -> nn.Module:
    """Build `resnet50_cifar` with 16 channels in the first stage instead of 64: 1.5 million parameters."""
    return resnet50(classes=classes, channels=channels, width=16, cifar_stem=True)
