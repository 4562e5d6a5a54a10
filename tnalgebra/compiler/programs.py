"""What a lowered network is: a list of torch's own operations on labelled axes, and in which style."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .operations import (
    Operation,
)
from .problem import Leaf
from .search import Tree

Format: TypeAlias = Literal["contiguous", "channels_last"]
Pointwise: TypeAlias = Literal["convolution", "product"]


@dataclass(frozen=True)
class Style:
    """How joins become calls.

    memory_format: that convolutions are brought into; "contiguous" leaves every tensor as it comes.
    pointwise: what contracts channels where no window is absorbed: a convolution with a window of one element, or
        a matrix product.
    """

    memory_format: Format = "contiguous"
    pointwise: Pointwise = "convolution"

    def __str__(self) -> str:
        return f"{self.memory_format}, 1x1 by {'matrix products' if self.pointwise == 'product' else 'convolutions'}"


STYLES = tuple(
    Style(layout, pointwise) for layout in ("contiguous", "channels_last") for pointwise in ("convolution", "product")
)


@dataclass(frozen=True)
class Program:
    """A network as a list of operations.

    operations: in order; each names the values it takes by their position.
    inputs: names, in the order of the call.
    sizes: of every label on any value, at the nominal sizes.
    moving: labels whose size may differ from call to call.
    stored: weight -> its labels in the order in which its elements lie best in memory.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    sizes: Mapping[str, int]
    moving: frozenset[str]
    stored: Mapping[str, tuple[str, ...]]
    patterns: tuple[Leaf, ...]
    style: Style
    tree: Tree

    @property
    def text(self) -> str:
        """Equal for programs that ask torch for the same."""
        return repr((self.operations, sorted(self.stored.items())))
