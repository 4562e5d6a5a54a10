"""Gram matrices that are Kronecker products: their factors, and systems of equations that are solved by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import networkx
import torch
from torch import Tensor

from ..tensors import Operand, contract
from .objective import BATCH, PRIME

_Labels: TypeAlias = tuple[str, ...]


class ContractionPlan(NamedTuple):
    """How tensors are contracted to (layers, starts, *labels), which depends on labels and sizes alone.

    ones: tensors of ones for the labels that no tensor has.
    labels: the labels that they are contracted to.
    absent: the axes of layers or starts that the result lacks.
    """

    ones: list[Operand]
    labels: _Labels
    absent: list[int]

    def contract(self, operands: Sequence[Operand], like: Tensor) -> Tensor:
        """Contract tensors, of which there may be none; `like` has their type."""
        operands = [*operands, *self.ones]
        result = contract(operands, self.labels) if operands else like.new_ones(())
        for axis in self.absent:
            result = result.unsqueeze(axis)
        return result


class Factor(NamedTuple):
    """A Kronecker factor of a gram matrix.

    operands: the numbers of the tensors that it is contracted from, and the plan for it.
    order, back: the axes of a core with those of the factor in front, and the way back.
    axes, shape: how its eigenvalues become a tensor of the shape of the core, of size 1 along all other labels.
    """

    operands: Sequence[int]
    plan: ContractionPlan
    order: tuple[int, ...]
    back: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class KroneckerSystem:
    """A gram matrix that is a Kronecker product, by its eigenvectors.

    For the core of a Tucker network each bond of rank r has a factor of r rows, in place of one matrix whose rows are
    as many as the product of all ranks.

    Attributes:
        factors: each factor with its eigenvectors, shape (layers, starts, n, n).
        eigenvalues: of the product; shape (layers, starts, *sizes of the core), where a label that no factor has is
            of size 1.
    """

    factors: Sequence[tuple[Factor, Tensor]]
    eigenvalues: Tensor

    @cached_property
    def mean(self) -> Tensor:
        """The mean of the eigenvalues, which is that of the diagonal; shape (layers, starts, 1, ...)."""
        values = self.eigenvalues
        mean = values.flatten(2).mean(2).clamp(min=torch.finfo(values.dtype).tiny)
        return mean.reshape(*mean.shape, *[1] * (values.ndim - 2))

    def product(self, core: Tensor) -> Tensor:
        """gram @ core."""
        return self._turn(self._turn(core, adjoint=True) * self.eigenvalues, adjoint=False)

    def solve(self, core: Tensor, damping: Tensor) -> Tensor:
        """The x with (gram + damping) @ x = core."""
        return self._turn(self._turn(core, adjoint=True) / (self.eigenvalues + damping), adjoint=False)

    def _turn(self, core: Tensor, *, adjoint: bool) -> Tensor:
        """Multiply a core with the eigenvectors, or with their adjoint."""
        for factor, vectors in self.factors:
            moved = core.permute(factor.order)
            turned = (vectors.mH if adjoint else vectors) @ moved.reshape(*moved.shape[:2], vectors.shape[-1], -1)
            core = turned.reshape(*turned.shape[:2], *moved.shape[2:]).permute(factor.back)
        return core


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
