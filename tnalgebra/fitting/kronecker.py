"""Gram matrices that are Kronecker products, solved by the eigenvectors of their factors.

For the core of a Tucker network each bond of rank r has a factor of r rows, in place of one matrix whose rows are as
many as the product of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import networkx
import torch
from torch import Tensor

from .axes import group_axes, split_axes, spread
from .objective import BATCH, LAYER, PRIME, START

_Labels: TypeAlias = tuple[str, ...]


def kronecker_factors(coupled: _Labels, doubled: Sequence[_Labels]) -> list[tuple[_Labels, list[int]]]:
    """The Kronecker factors of a gram matrix; empty where it is not a product of several.

    Args:
        coupled: the labels whose values number its rows; with primes, its columns.
        doubled: the labels of each of the tensors that it is contracted from.

    Returns:
        For each factor, a group of labels that no tensor joins with the others, and the positions of its tensors.
    """
    graph: networkx.Graph[object] = networkx.Graph()
    graph.add_edges_from((label, label + PRIME) for label in coupled)
    for number, labels in enumerate(doubled):
        graph.add_node(number)
        graph.add_edges_from((number, label) for label in labels if label not in BATCH)
    factors = []
    for part in networkx.connected_components(graph):
        group = tuple(label for label in coupled if label in part)
        numbers = [number for number in range(len(doubled)) if number in part]
        if not group or not {label for number in numbers for label in doubled[number]}.issuperset(group):
            return []
        factors.append((group, numbers))
    return factors if len(factors) > 1 else []


@dataclass(frozen=True, eq=False)
class KroneckerSystem:
    """A gram matrix that is a Kronecker product, by its eigenvectors.

    Attributes:
        labels: of the core, whose shape is (layers, starts, *sizes).
        factors: for each factor of the product, the labels whose values number its rows, and its eigenvectors; shape
            (layers, starts, n, n).
        eigenvalues: of the product; shape (layers, starts, *sizes of the core), where a label that no factor has is
            of size 1.
    """

    labels: _Labels
    factors: Sequence[tuple[_Labels, Tensor]]
    eigenvalues: Tensor

    @classmethod
    def of(cls, labels: _Labels, grams: Sequence[tuple[_Labels, Tensor]]) -> KroneckerSystem | None:
        """Decompose factors, each (layers, starts, *sizes, *sizes). None if one is not finite, or without factors."""
        if not grams or not all(bool(gram.isfinite().all()) for _, gram in grams):
            return None
        factors = []
        eigenvalues = grams[0][1].new_ones([1] * (2 + len(labels)))
        for group, gram in grams:
            batch, sizes = gram.shape[:2], gram.shape[2 : 2 + len(group)]
            squares, vectors = torch.linalg.eigh(gram.reshape(*batch, sizes.numel(), sizes.numel()))
            lengths = dict.fromkeys(labels, 1) | dict(zip((*BATCH, *group), (*batch, *sizes), strict=True))
            squares = split_axes(squares.clamp(min=0), lengths, (*BATCH, *labels), *_first(group, labels))
            eigenvalues = eigenvalues * squares
            factors.append((group, vectors))
        return cls(labels, factors, eigenvalues)

    @cached_property
    def mean(self) -> Tensor:
        """The mean of the eigenvalues, which is that of the diagonal; shape (layers, starts, 1, ...)."""
        mean = self.eigenvalues.flatten(2).mean(2).clamp(min=torch.finfo(self.eigenvalues.dtype).tiny)
        return spread(mean, self.eigenvalues)

    def solve(self, core: Tensor, damping: Tensor) -> Tensor:
        """The x with (gram + damping) @ x = core."""
        return self._turn(self._turn(core, adjoint=True) / (self.eigenvalues + damping), adjoint=False)

    def _turn(self, core: Tensor, *, adjoint: bool) -> Tensor:
        """Multiply a core with the eigenvectors, or with their transpose."""
        labels = (*BATCH, *self.labels)
        sizes = dict(zip(labels, core.shape, strict=True))
        for group, vectors in self.factors:
            groups = _first(group, self.labels)
            turned = (vectors.mT if adjoint else vectors) @ group_axes(core, labels, *groups)
            core = split_axes(turned, sizes, labels, *groups)
        return core


def _first(group: _Labels, labels: _Labels) -> list[_Labels]:
    """Groups of labels whose axes are (layers, starts, the group, all other labels)."""
    return [(LAYER,), (START,), group, tuple(label for label in labels if label not in group)]
