"""The Gauss-Newton matrix of a small problem, written out: one Cholesky factor takes the place of many products.

Its block of two occurrences is a contraction of all other tensors, each of them twice. So the Jacobian, which has a row
for each element of the target, is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, product
from math import prod

import torch
from torch import Tensor

from ..tensors import Operand
from .als import Cores, spread
from .objective import BATCH, PRIME, Objective

LARGEST_MATRIX = 1024
"""The most unknowns of a matrix that is written out."""

LARGEST_SUM = 2**25
"""The most elements of the matrices of all starts together: 256 MiB in float64."""

LARGEST_METRIC = 2**18
"""The most elements of a metric that is contracted with every block."""


@dataclass(frozen=True)
class StepFactor:
    """The Cholesky factor of J^T J with something added to its diagonal.

    Attributes:
        factor: shape (layers, starts, unknowns, unknowns).
        failed: greater than 0 for a start whose matrix is not positive definite; shape (layers, starts).
        sizes: how many elements each core has.
    """

    factor: Tensor
    failed: Tensor
    sizes: Mapping[str, int]

    def solve(self, gradient: Cores) -> Cores:
        """The step with matrix @ step = gradient; 0 for a start whose factor failed."""
        right = torch.cat([core.reshape(*core.shape[:2], -1) for core in gradient.values()], 2)
        step = torch.cholesky_solve(right[..., None], self.factor)[..., 0]
        step = torch.where(spread(self.failed == 0, step), step, 0.0)
        parts = torch.split(step, list(self.sizes.values()), 2)
        return {name: part.reshape(core.shape) for part, (name, core) in zip(parts, gradient.items(), strict=True)}


@dataclass(frozen=True, eq=False)
class GaussMatrix:
    """J^H J for all free cores of an objective, where J is the derivative of the network by their elements."""

    objective: Objective

    def written_out(self, starts: int) -> bool:
        """Whether the matrices are small enough to be computed."""
        objective, unknowns = self.objective, self.objective.unknowns
        moderate = objective.metric is None or objective.metric.numel() <= LARGEST_METRIC
        return moderate and unknowns <= LARGEST_MATRIX and objective.layers * starts * unknowns**2 <= LARGEST_SUM

    @cached_property
    def sizes(self) -> dict[str, int]:
        """How many elements each core has."""
        return {name: prod(shape) for name, shape in self.objective.free.items()}

    def factor(self, values: Cores, damping: Tensor, weights: Mapping[str, Tensor]) -> StepFactor:
        """StepFactor J^T J + damping * (mean of the diagonal, for each core) + weights.

        Args:
            damping: shape (layers, starts).
            weights: for some cores what is added to the diagonal, in their axes or of size 1.
        """
        matrix = self._matrix(values)
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        added = []
        for part, (name, core) in zip(torch.split(diagonal, list(self.sizes.values()), 2), values.items(), strict=True):
            scale = (damping * part.real.mean(2)).clamp(min=torch.finfo(part.dtype).tiny)
            weight = weights[name].expand_as(core).reshape(part.shape) if name in weights else 0.0
            added.append(scale[..., None] + weight * torch.ones_like(part.real))
        diagonal += torch.cat(added, 2)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        return StepFactor(factor, failed, self.sizes)

    def _matrix(self, values: Cores) -> Tensor:
        """Shape (layers, starts, unknowns, unknowns), without the blocks above the diagonal, which are not read.

        The unknowns are those of one core after another.
        """
        objective, batch = self.objective, next(iter(values.values())).shape[:2]
        matrix = objective.target.new_empty(*batch, objective.unknowns, objective.unknowns)
        at, before = {}, 0
        for name, size in self.sizes.items():
            at[name], before = slice(before, before + size), before + size
        for column, row in combinations_with_replacement(objective.places, 2):
            pairs = product(objective.places[row], objective.places[column])
            blocks = [self._block(*pair, values).reshape(*batch, self.sizes[row], -1) for pair in pairs]
            matrix[..., at[row], at[column]] = sum(blocks[1:], blocks[0])
        return matrix

    def _block(self, row: int, column: int, values: Cores) -> Tensor:
        """The block of two occurrences; the axes of the first one's core, then of the second one's."""
        objective = self.objective
        labels, other_labels = (objective.occurrences[place].labels for place in (row, column))
        # in the second copy of the network bonds and labels of the metric have primes, and all others are the same
        same = {*objective.output, *BATCH} - set(objective.coupled)
        both = [label for label in labels if label in other_labels and label in same]

        def again(names: Sequence[str]) -> tuple[str, ...]:
            return tuple(name if name in same else name + PRIME for name in names)

        first = [(tensor.conj(), names) for tensor, names in objective.operands(values, objective.others(row))]
        second = [(tensor, again(names)) for tensor, names in objective.operands(values, objective.others(column))]
        between: list[Operand] = []
        if objective.metric is not None:
            between.append((objective.metric, objective.metric_labels))
        for label in both:  # the derivatives by two values of an open label do not overlap
            identity = torch.eye(objective.sizes[label], dtype=objective.target.dtype, device=objective.target.device)
            between.append((identity, (label, label + PRIME)))
        columns = tuple(name + PRIME if name in both else name for name in again(other_labels))
        block = objective.contract_to([*first, *second, *between], (*labels, *columns))
        return block.expand(*values[objective.occurrences[row].name].shape[:2], *block.shape[2:])
