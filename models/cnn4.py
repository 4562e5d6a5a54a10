"""A four-layer convolutional network, small enough to train in seconds on a laptop CPU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Cnn4(nn.Module):
    """Four 3x3 convolutions with ReLU, 2x2 max-pooling after the second and the fourth, a linear classifier."""

    def __init__(self, *, classes: int, channels: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.conv1 = nn.Conv2d(channels, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1)
        self.conv4 = nn.Conv2d(third, fourth, 3, padding=1)
        self.linear = nn.Linear(fourth, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, shape (n, channels, height, width), to logits, shape (n, classes)."""
        hidden = functional.relu(self.conv1(images))
        hidden = functional.max_pool2d(functional.relu(self.conv2(hidden)), 2)
        hidden = functional.relu(self.conv3(hidden))
        hidden = functional.max_pool2d(functional.relu(self.conv4(hidden)), 2)
        logits: Tensor = self.linear(hidden.mean(dim=(2, 3)))
        return logits


def cnn4(*, classes: int = 10, channels: int = 1, widths: tuple[int, int, int, int] = (32, 64, 64, 128)) -> Cnn4:
    """Build the four-layer network with torch's default initialisation.

    The features are averaged over all positions before the classifier, so one network takes images of any size
    from 4x4 pixels; 8x8 (digits), 28x28 and 32x32 are what it is meant for.

    Args:
        classes: number of logits.
        channels: number of image channels, 1 for grey and 3 for colour.
        widths: number of output channels of `conv1` to `conv4`.

    Returns:
        The network: (n, channels, height, width) -> (n, classes).
    """
    return Cnn4(classes=classes, channels=channels, widths=widths)
