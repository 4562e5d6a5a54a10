"""A small convolutional network for fields on a grid: it maps some channels to others of the same size."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class WaveNet(nn.Module):
    """3x3 convolutions with circular padding and GELU between them; all but the first and the last add to their input.

    Circular, for fields on a periodic grid: the network then commutes with shifts of its input, as their equation does.
    """

    def __init__(self, *, inputs: int, outputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1, padding_mode="circular")
        self.middle = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, padding_mode="circular") for _ in range(depth - 2)
        )
        self.last = nn.Conv2d(width, outputs, 3, padding=1, padding_mode="circular")

    def forward(self, fields: Tensor) -> Tensor:
        """Map fields, shape (n, inputs, height, width), to fields, shape (n, outputs, height, width)."""
        hidden = functional.gelu(self.first(fields))
        for convolution in self.middle:
            hidden = hidden + functional.gelu(convolution(hidden))
        result: Tensor = self.last(hidden)
        return result


def wave_net(*, inputs: int = 3, outputs: int = 1, width: int = 40, depth: int = 7) -> WaveNet:
    """Build the network with torch's default initialisation.

    Args:
        inputs: number of input channels: two frames of a wave and the speed of its medium.
        outputs: number of output channels.
        width: channels in between.
        depth: number of convolutions, at least 2; a value depends on its neighbours up to `depth` cells away.

    Returns:
        The network: (n, inputs, height, width) -> (n, outputs, height, width), for grids of any size from 3x3.
    """
    return WaveNet(inputs=inputs, outputs=outputs, width=width, depth=depth)
