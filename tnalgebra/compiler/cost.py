"""What the steps of a plan cost: one model for multiply-adds, bytes, calls, and what backward keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .lowering import Format
from .operations import Work


@dataclass(frozen=True)
class Constants:
    """Speeds of one device in one memory format."""

    call: float = 5e-6
    convolution: float = 1 / 6e10
    product: float = 1 / 8e10
    element: float = 4 / 1e10


class CostModel:
    """Seconds of steps on one device, in one memory format.

    Args:
        backward: whether the backward pass is paid too.
        frozen: whether what only weights go into is computed once and costs nothing.
    """

    def __init__(self, constants: Constants, *, backward: bool = False, frozen: bool = False) -> None:
        self.constants, self.backward, self.frozen = constants, backward, frozen

    def convolution(
        self, *, multiply_adds: int, groups: int, summed: int, new: int, read: int, written: int, weights: bool
    ) -> float:
        """A convolution with `summed` channels in and `new` channels out of each group."""
        c = self.constants
        return self._whole(2 * c.call + multiply_adds * c.convolution + (read + written) * c.element, 2, weights)

    def product(self, *, multiply_adds: int, groups: int, summed: int, left: int, right: int, weights: bool) -> float:
        """`groups` matrix products of (left, summed) with (summed, right)."""
        c = self.constants
        moved = groups * (left * summed + summed * right + left * right)
        return self._whole(c.call + multiply_adds * c.product + moved * c.element, 2, weights)

    def pointwise(self, *, read: int, written: int, weights: bool) -> float:
        """A product element by element, a sum along axes, or a copy in another order."""
        return self._whole(self.constants.call + (read + written) * self.constants.element, 1, weights)

    def _whole(self, forward: float, factor: int, weights: bool) -> float:
        if weights and self.frozen:
            return 0.0
        return forward * (1 + factor) if self.backward else forward

    def seconds(self, work: Work, *, weights: bool) -> float:
        """Seconds of one lowered operation."""
        if work.kind == "convolution":
            return self.convolution(
                multiply_adds=work.multiply_adds,
                groups=work.groups,
                summed=work.summed,
                new=work.new,
                read=work.read,
                written=work.written,
                weights=weights,
            )
        if work.kind == "product":
            return self.product(
                multiply_adds=work.multiply_adds,
                groups=work.groups,
                summed=work.summed,
                left=work.left,
                right=work.new,
                weights=weights,
            )
        if work.kind == "pointwise":
            return self.pointwise(read=work.read, written=work.written, weights=weights)
        return 0.0 if weights and self.frozen else self.constants.call / 5


def constants_for(device: torch.device, dtype: torch.dtype, memory_format: Format) -> Constants:
    """The constants measured for a device, or the ones that come with the package."""
    return Constants()
