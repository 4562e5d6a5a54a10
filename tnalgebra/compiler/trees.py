"""Contraction trees, whose sets of nodes are the bits of integers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal


def bits(mask: int) -> Iterator[int]:
    """The single bits of a set, the lowest first."""
    while mask:
        low = mask & -mask
        yield low
        mask ^= low


@dataclass(frozen=True, eq=False)
class ContractionTree:
    """How the intermediate of a set of nodes is made.

    mask: the set, with one bit for each node: leaves first, then views.
    seconds: predicted for all steps of the tree.
    step: the last step, which makes the intermediate from those of `parts`.
    views: the numbers of the views that the last step applies or absorbs.
    transposed: the direction of the windows that a join absorbs.
    lengths: of the Fourier transforms by which a join applies its windows; empty if it is a convolution.
    is_basis: whether a join is the fast transform of one of its parts into the basis that is the other one.
    """

    mask: int
    seconds: float
    step: Literal["leaf", "pattern", "join", "view"]
    parts: tuple[ContractionTree, ...] = ()
    views: tuple[int, ...] = ()
    transposed: bool = False
    lengths: tuple[int, ...] = ()
    is_basis: bool = False

    @cached_property
    def text(self) -> str:
        """A text that is equal for trees that differ only in prices, or in the order of consecutive views."""
        if not self.parts:
            return f"{self.mask:x}"
        views, parts = [self.views], self.parts
        while self.step == "view" and parts[0].step == "view":
            views, parts = sorted((*views, parts[0].views)), parts[0].parts
        step = f"{self.step[0]}{self.lengths or ''}{'b' if self.is_basis else ''}"
        return f"({' '.join([step, *map(str, views), *(part.text for part in parts)])})"

    @property
    def leaves(self) -> list[ContractionTree]:
        """The tensors that the tree starts from, with views that are dense tensors."""
        return [leaf for part in self.parts for leaf in part.leaves] if self.parts else [self]
