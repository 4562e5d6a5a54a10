"""Systems of a core whose matrix is a Kronecker product, solved by the eigenvectors of its factors.

Of the core of a Tucker network each bond has a factor of its own: matrices of r rows in place of one of r^2 or more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import networkx
import torch
from torch import Tensor

from .problem import BATCH, PRIME


@dataclass(frozen=True, eq=False)
class Split:
    """A gram matrix by its eigenvectors, those of its Kronecker factors.

    labels: of the core.
    vectors: labels of a factor -> shape (layers, starts, n, n).
    eigenvalues: shape (layers, starts, *the core's), 1 along its free labels.
    """

    labels: tuple[str, ...]
    vectors: Mapping[tuple[str, ...], Tensor]
    eigenvalues: Tensor

    @cached_property
    def mean(self) -> Tensor:
        """Of the diagonal, as it is of the eigenvalues; shape (layers, starts, 1, ...)."""
        mean = self.eigenvalues.flatten(2).mean(2).clamp(min=torch.finfo(self.eigenvalues.dtype).tiny)
        return mean.reshape(*mean.shape, *[1] * len(self.labels))

    def solve(self, core: Tensor, damping: Tensor) -> Tensor:
        """x with (gram + damping) @ x = core."""
        return self._turned(self._turned(core, adjoint=True) / (self.eigenvalues + damping), adjoint=False)

    def _turned(self, core: Tensor, *, adjoint: bool) -> Tensor:
        labels = self.labels
        for group, vectors in self.vectors.items():
            rest = [label for label in labels if label not in group]
            order = [0, 1, *(2 + labels.index(label) for label in (*group, *rest))]
            moved = core.permute(order)
            shape = moved.shape
            matrix = vectors.mT if adjoint else vectors
            turned = matrix @ moved.reshape(*shape[:2], vectors.shape[-1], -1)
            turned = turned.reshape(*turned.shape[:2], *shape[2:])
            core = turned.permute([order.index(axis) for axis in range(len(order))])
        return core


@lru_cache(maxsize=1024)
def fallen_apart(
    coupled: tuple[str, ...], operands: tuple[tuple[str, ...], ...]
) -> tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]:
    """Groups of coupled labels that no operand joins, each with its operands; none where there is one group only."""
    graph: networkx.Graph[object] = networkx.Graph()
    graph.add_edges_from((label, label + PRIME) for label in coupled)
    for number, labels in enumerate(operands):
        graph.add_node(number)
        graph.add_edges_from((number, label) for label in labels if label not in BATCH)
    found = []
    for part in networkx.connected_components(graph):
        group = tuple(label for label in coupled if label in part)
        within = tuple(number for number in range(len(operands)) if number in part)
        carried = {label for number in within for label in operands[number]}
        if not group or not carried.issuperset(group):
            return ()
        found.append((group, within))
    return tuple(found) if len(found) > 1 else ()
