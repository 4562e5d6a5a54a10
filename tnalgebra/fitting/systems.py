"""The linear least-squares problem of one core while all other cores stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..tensors import Operand, contract
from .axes import group_axes, split_axes, spread
from .kronecker import KroneckerSystem, kronecker_factors
from .objective import BATCH, LAYER, PRIME, START, Objective, total

LARGEST_SYSTEM = 4096
"""The most unknowns of a system that is solved by Cholesky; a larger one is solved by conjugate gradients."""

LARGEST_GRAM = 2**27
"""The most elements of all gram matrices of a core together that are written out: 1 GiB in float64."""

LARGEST_COUPLED = 600
"""`LARGEST_SYSTEM` where a metric couples many unknowns: conjugate gradients are faster there."""

ROUNDS, NEAR = 10, 0.03
"""The most steps of conjugate gradients for one core, and the part of the residual at which they stop earlier. They
start from the present core, so that with fewer steps the loss falls less, and the next sweep continues."""

LOOSE = 1e-9
"""Damping of a preconditioner, relative to the mean of the diagonal."""

DAMPING = 1e-14
"""Weight of the distance from the present core, relative to the mean of the diagonal: it makes systems solvable."""

_Labels: TypeAlias = tuple[str, ...]

METRIC = "metric/"
"""Name of the metric among the tensors. No tensor of the notation has such a name."""


class Solved(NamedTuple):
    """A core, the right side of its equations, and their left side at this core; each (layers, starts, *sizes)."""

    core: Tensor
    right: Tensor
    image: Tensor


@dataclass(frozen=True, eq=False)
class System:
    """The normal equations of the core at one occurrence: gram @ core = right side.

    What depends on labels and sizes alone is computed once.
    """

    objective: Objective
    position: int

    @cached_property
    def name(self) -> str:
        return self.objective.occurrences[self.position].name

    @cached_property
    def labels(self) -> _Labels:
        return self.objective.occurrences[self.position].labels

    @cached_property
    def batch(self) -> _Labels:
        """Open labels that other tensors have too: each of their values has a system of its own."""
        objective = self.objective
        shared = objective.labels_elsewhere(self.position).union(objective.blocks) - set(objective.coupled)
        return tuple(label for label in self.labels if label in shared and label in objective.output)

    @cached_property
    def free(self) -> _Labels:
        """Open labels that only this core has: each of their values is one right side."""
        alone = set(self.objective.output) - {*self.batch, *self.objective.coupled}
        return tuple(label for label in self.labels if label in alone)

    @cached_property
    def coupled(self) -> _Labels:
        """All other labels, whose values together number the unknowns."""
        return tuple(label for label in self.labels if label not in self.batch and label not in self.free)

    @cached_property
    def unknowns(self) -> int:
        return prod(self.objective.sizes[label] for label in self.coupled)

    def written_out(self, starts: int) -> bool:
        """Whether the gram matrices are small enough to be computed."""
        blocks = self.objective.layers * starts * prod(self.objective.sizes[label] for label in self.batch)
        most = LARGEST_SYSTEM if self.objective.metric is None else LARGEST_COUPLED
        return self.unknowns <= most and blocks * self.unknowns**2 <= LARGEST_GRAM

    @cached_property
    def doubled(self) -> list[tuple[str, _Labels]]:
        """Name and labels of all other tensors twice, the second time with primes, and of the metric between them."""
        objective = self.objective
        others = [objective.named[other] for other in objective.others(self.position)]
        primed = {label for _, labels in others for label in labels} - {*objective.output, *BATCH}
        primed |= {*objective.coupled, *self.coupled}
        again = [(name, tuple([n + PRIME if n in primed else n for n in labels])) for name, labels in others]
        return [*others, *again, *([] if objective.metric is None else [(METRIC, objective.metric_labels)])]

    def operands(self, values: Mapping[str, Tensor]) -> list[Operand]:
        """`doubled` with the elements of the tensors."""
        tensors = {**self.objective.constants, **values}
        if self.objective.metric is not None:
            tensors[METRIC] = self.objective.metric
        return [(tensors[name], labels) for name, labels in self.doubled]

    def gram(self, values: Mapping[str, Tensor]) -> Tensor:
        """Shape (layers, starts, *batch, unknowns, unknowns)."""
        labels = (*self.batch, *_twice(self.coupled))
        result = self.objective.contract_to(self.operands(values), labels)
        return result.reshape(*result.shape[: 2 + len(self.batch)], self.unknowns, self.unknowns)

    @cached_property
    def _factors(self) -> list[tuple[_Labels, list[int]]]:
        return [] if self.batch else kronecker_factors(self.coupled, [labels for _, labels in self.doubled])

    def split(self, values: Mapping[str, Tensor]) -> KroneckerSystem | None:
        """The gram matrix by its Kronecker factors; None where it has none, or where one of them is not finite."""
        operands = self.operands(values) if self._factors else []
        grams = [
            (group, self.objective.contract_to([operands[number] for number in numbers], _twice(group)))
            for group, numbers in self._factors
        ]
        return KroneckerSystem.of(self.labels, grams)

    @cached_property
    def _groups(self) -> list[_Labels]:
        return [(LAYER,), (START,), *((label,) for label in self.batch), self.coupled, self.free]

    def as_matrix(self, core: Tensor) -> Tensor:
        """Bring (layers, starts, *core) to (layers, starts, *batch, unknowns, right sides)."""
        return group_axes(core, (*BATCH, *self.labels), *self._groups)

    def as_core(self, matrix: Tensor) -> Tensor:
        """The inverse of `as_matrix`."""
        sizes = {**self.objective.sizes, LAYER: matrix.shape[0], START: matrix.shape[1]}
        return split_axes(matrix, sizes, (*BATCH, *self.labels), *self._groups)

    def solve(self, values: Mapping[str, Tensor], operands: Sequence[Operand]) -> Solved:
        """Find the best core while the others stay; of several, the one nearest to the present core.

        Args:
            operands: what the right side is contracted from.
        """
        present = values[self.name]
        right = self.objective.contract_to(operands, self.labels)
        split = self.split(values)
        if split is not None:
            extra = DAMPING * split.mean
            core = split.solve(right + extra * present, extra)
            image = right - extra * (core - present)
        elif self.written_out(present.shape[1]):
            matrix, product = _solve(self.gram(values), self.as_matrix(right), self.as_matrix(present))
            core, image = self.as_core(matrix), self.as_core(product)
        else:
            core, image = self._by_conjugate_gradients(values, right, present)
        return Solved(core.contiguous(), right, image)

    def image(self, core: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Compute gram @ core without the gram matrix."""
        primed = tuple(label + PRIME if label in self.coupled else label for label in self.labels)
        return self.objective.contract_to([(core, (*BATCH, *primed)), *self.operands(values)], self.labels)

    def _by_conjugate_gradients(
        self, values: Mapping[str, Tensor], right: Tensor, core: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A few steps from the present core, preconditioned by the system without the metric."""
        image = self.image(core, values)
        residual = right - image
        conditioned = self._preconditioner(values, core)
        improved = conditioned(residual)
        direction, power = improved, total(residual * improved)
        enough = NEAR**2 * power
        for _ in range(ROUNDS):
            moved = self.image(direction, values)
            step = spread(ratio(power, total(direction * moved)), core)
            core, image, residual = core + step * direction, image + step * moved, residual - step * moved
            improved = conditioned(residual)
            before, power = power, total(residual * improved)
            if bool((power <= enough).all()):
                break
            direction = improved + spread(ratio(power, before), core) * direction
        return core, image

    @cached_property
    def _plain(self) -> System:
        """The system without the metric."""
        return System(self.objective.without_metric(), self.position)

    def _preconditioner(self, values: Mapping[str, Tensor], core: Tensor) -> Callable[[Tensor], Tensor]:
        if self.objective.metric is None:
            return lambda residual: residual
        plain = self._plain
        split = plain.split(values)
        if split is not None:
            return lambda residual: split.solve(residual, LOOSE * split.mean)
        if not plain.written_out(core.shape[1]):
            return lambda residual: residual
        gram = plain.gram(values)
        factor, failed = damped_cholesky(gram, LOOSE * _mean_diagonal(gram)[..., None])
        if bool(failed.any()):
            return lambda residual: residual
        return lambda residual: plain.as_core(torch.cholesky_solve(plain.as_matrix(residual), factor))


@dataclass(frozen=True, eq=False)
class Part:
    """Cores that are solved for one after another, and what the right sides of all of them share.

    They share the pulled target contracted with all tensors outside the part; for a single core, the pulled target.
    """

    systems: Sequence[System]

    @cached_property
    def _positions(self) -> list[int]:
        return [system.position for system in self.systems]

    @cached_property
    def _target(self) -> Operand:
        objective = self.systems[0].objective
        if len(self.systems) == 1:
            return objective.pulled, (LAYER, *objective.output)
        return objective.lay_out(self._positions)

    def solve(self, values: dict[str, Tensor]) -> Solved:
        """Solve for each core in turn and put it into `values`. Returns the last one."""
        objective, shared, within = self.systems[0].objective, self._target, self._positions
        if len(within) > 1:
            labels = (*BATCH, *objective.shared_labels(within))
            shared = contract([shared, *objective.operands(values, objective.others(*within))], labels), labels
        else:
            within = list(range(len(objective.occurrences)))
        for system in self.systems:
            others = objective.operands(values, [other for other in within if other != system.position])
            solved = system.solve(values, [shared, *others])
            values[system.name] = solved.core
        return solved


def _twice(labels: _Labels) -> _Labels:
    """Labels of the rows and the columns of a gram matrix."""
    return (*labels, *(label + PRIME for label in labels))


def _solve(gram: Tensor, right: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The x with gram @ x = right, and gram @ x. In a singular system x stays as near to the present core as it may."""
    damping = DAMPING * _mean_diagonal(gram)
    while True:
        factor, failed = damped_cholesky(gram, damping[..., None])
        if not bool(failed.any()):
            break
        damping = torch.where(failed > 0, 100 * damping, damping)
        if not bool(damping.isfinite().all()) or not bool(gram.isfinite().all()):
            break  # the loss will not be finite, which the caller sees
    extra = damping[..., None, None]
    solution = torch.cholesky_solve(right + extra * present, factor)
    return solution, right - extra * (solution - present)


def _mean_diagonal(gram: Tensor) -> Tensor:
    """The mean of the diagonal of each matrix, greater than 0."""
    return gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(gram.dtype).tiny)


def damped_cholesky(gram: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """The Cholesky factor of each matrix with `damping` added to its diagonal, and a number above 0 where it failed."""
    damped = gram.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping)
    factor, failed = torch.linalg.cholesky_ex(damped)
    return factor, failed


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 where `below` is not greater than 0."""
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(below.dtype).tiny), 0.0)
