"""The residual networks for 32x32 images of K. He et al., "Deep residual learning" (arXiv 1512.03385), section 4.2.

A network of depth 6n + 2 has a 3x3 convolution, three stages of n blocks of two 3x3 convolutions with 16, 32 and 64
channels, and a linear classifier. The shortcuts are the paper's option A, which has no parameters.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 64)  # channels of the three stages


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), with the shortcut of option A."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def shortcut(self, features: Tensor) -> Tensor:
        """Keep every `stride`-th pixel and put zero channels around, half before and half after the old ones.

        With h = new_channels // 2, element [n, c, y, x] of the result is features[n, c - h, stride * y, stride * x]
        where that channel exists, else 0.
        """
        before = self.new_channels // 2
        after = self.new_channels - before
        return functional.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, after))

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, in_channels, height, width) to (n, out_channels, ceil(height / stride), ceil(width / stride))."""
        hidden = functional.relu(self.bn1(self.conv1(features)))
        return functional.relu(self.bn2(self.conv2(hidden)) + self.shortcut(features))


class CifarResNet(nn.Module):
    """The network of depth 6 * blocks + 2; see the module's docstring."""

    def __init__(self, blocks: int, *, classes: int, channels: int) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.conv1 = nn.Conv2d(channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(blocks, first, first, stride=1)
        self.layer2 = _stage(blocks, first, second, stride=2)
        self.layer3 = _stage(blocks, second, third, stride=2)
        self.linear = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images, shape (n, channels, height, width), to logits, shape (n, classes)."""
        hidden = functional.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: Tensor = self.linear(hidden.mean(dim=(2, 3)))
        return logits


def _stage(blocks: int, in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    """Chain `blocks` blocks, the first of which changes the channels and the resolution."""
    first = BasicBlock(in_channels, out_channels, stride=stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, stride=1) for _ in range(blocks - 1)))


def resnet20(*, classes: int = 10, channels: int = 3) -> CifarResNet:
    """Build the CIFAR ResNet with 20 layers (3 blocks a stage; 269,722 parameters by default).

    Args:
        classes: number of logits.
        channels: number of image channels.

    Returns:
        The network, initialised after He et al. (arXiv 1502.01852): (n, channels, height, width) -> (n, classes).
    """
    return CifarResNet(3, classes=classes, channels=channels)


def resnet32(*, classes: int = 10, channels: int = 3) -> CifarResNet:
    """Build the CIFAR ResNet with 32 layers (5 blocks a stage); arguments as for `resnet20`."""
    return CifarResNet(5, classes=classes, channels=channels)


def resnet44(*, classes: int = 10, channels: int = 3) -> CifarResNet:
    """Build the CIFAR ResNet with 44 layers (7 blocks a stage); arguments as for `resnet20`."""
    return CifarResNet(7, classes=classes, channels=channels)


def resnet56(*, classes: int = 10, channels: int = 3) -> CifarResNet:
    """Build the CIFAR ResNet with 56 layers (9 blocks a stage); arguments as for `resnet20`."""
    return CifarResNet(9, classes=classes, channels=channels)
