"""The links of a chain along time: products, windows, functions and sums of chains; and the weights of products."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from ..compiler import Compiled
from .timing import TimeWindow


@dataclass(frozen=True)
class Windowed:
    """A window over an axis of the frames that come: a step of a chain."""

    window: TimeWindow
    axis: int


@dataclass(frozen=True)
class Call:
    """A function of the frames or windows that come, which are its first argument: a step of a chain."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Branches:
    """Chains that take the same frames, and whose results are added: a step of a chain."""

    chains: tuple[Sequence[Link], ...]


Link: TypeAlias = "nn.Module | Windowed | Call | Branches"


class FrameProduct(nn.Module):
    """A product of a frame, or of a window of frames, with weights; its result is one frame.

    Frames have one element along the axis of time, a window has several.

    Args:
        compiled: the product; of a single frame it takes the tensor without the axis of time.
        squeezed: the axis of time of a single frame; None if windows are taken.
        axis: the axis of time of the result.
    """

    def __init__(self, compiled: Compiled, squeezed: int | None, axis: int) -> None:
        super().__init__()
        self.compiled = compiled
        self.squeezed = squeezed
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """The product of one tensor with the weights."""
        if self.squeezed is not None:
            x = x.squeeze(self.squeezed)
        product: Tensor = self.compiled(x)
        return product.unsqueeze(self.axis)


@dataclass(frozen=True)
class Weights:
    """The values of all tensors of a network but its input.

    values: by name; parameters are used themselves.
    constants: names of those that are not trained.
    bias: an output label along which `values["bias"]` is added.
    tune: whether plans are measured.
    """

    values: Mapping[str, Any]
    constants: Collection[str] = ()
    bias: str | None = None
    tune: bool = True

    @property
    def of_tensors(self) -> dict[str, Any]:
        """The values without the bias."""
        return {name: value for name, value in self.values.items() if self.bias is None or name != "bias"}
