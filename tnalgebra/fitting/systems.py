"""Systems of a core whose matrix is a Kronecker product, solved by the eigenvectors of its factors.

Of the core of a Tucker network each bond has a factor of its own: matrices of r rows in place of one of r^2 or more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod
from typing import NamedTuple

import networkx
import torch
from torch import Tensor

from ..tensors import Operand, contract
from .objective import BATCH, PRIME, Problem, total

# kronecker: Systems of a core whose matrix is a Kronecker product, solved by the eigenvectors of its factors.


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


# systems: The linear least-squares problem of one core while all others stay.


LARGEST_SYSTEM = 4096
"""Unknowns up to which a system is solved by Cholesky; above, by conjugate gradients on the contractions."""

LARGEST_GRAM = 2**27
"""Elements of all systems of a core together up to which they are written out: 1 GiB in float64."""

LARGEST_COUPLED = 600
"""The same where a metric couples the unknowns, and makes many of them: conjugate gradients are sooner good enough."""

ROUNDS, NEAR = 10, 0.03
"""Steps of conjugate gradients for one core, and the part of the residual at which they stop before. They start from
the core there is, so few steps only descend less; the next sweep goes on."""

LOOSE = 1e-9
"""Damping of a preconditioner, relative to the mean diagonal."""

DAMPING = 1e-14
"""Weight of staying at the present core, relative to the mean diagonal of the system: what makes it solvable."""


class Solved(NamedTuple):
    """A core, the right side of its equations, and their left side with it; shape (layers, starts, *sizes) each."""

    core: Tensor
    right: Tensor
    image: Tensor

    def loss(self, power: Tensor) -> Tensor:
        """||target - network||^2, less exact than from a residual; shape (layers, starts).

        Args:
            power: ||target||^2; shape (layers, 1).
        """
        return (power + total(self.core * (self.image - 2 * self.right))).clamp(min=0)


class Half(NamedTuple):
    """Occurrences that are solved for one after another, and what their environments share."""

    positions: tuple[int, ...]
    shared: Operand


@dataclass(frozen=True, eq=False)
class System:
    """The normal equations of the core at one occurrence: gram @ core = right side."""

    problem: Problem
    position: int

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return self.problem.occurrences[self.position].labels

    @cached_property
    def batch(self) -> tuple[str, ...]:
        problem = self.problem
        elsewhere = {label for i, o in enumerate(problem.occurrences) if i != self.position for label in o.labels}
        shared = elsewhere.union(problem.blocks)
        return tuple(
            label
            for label in self.labels
            if label in problem.output and label in shared and label not in problem.coupled
        )

    @cached_property
    def free(self) -> tuple[str, ...]:
        return tuple(
            label
            for label in self.labels
            if label in self.problem.output and label not in self.batch and label not in self.problem.coupled
        )

    @cached_property
    def coupled(self) -> tuple[str, ...]:
        return tuple(label for label in self.labels if label not in self.batch and label not in self.free)

    @cached_property
    def sizes(self) -> dict[str, int]:
        return dict(
            zip(
                self.labels,
                self.problem.free[self.problem.occurrences[self.position].name],
                strict=True,
            )
        )

    @property
    def unknowns(self) -> int:
        return prod(self.sizes[label] for label in self.coupled)

    def written_out(self, starts: int) -> bool:
        """Whether the gram matrices are small enough to be made."""
        blocks = self.problem.layers * starts * prod(self.sizes[label] for label in self.batch)
        most = LARGEST_SYSTEM if self.problem.metric is None else LARGEST_COUPLED
        return self.unknowns <= most and blocks * self.unknowns**2 <= LARGEST_GRAM

    def doubled(self, values: Mapping[str, Tensor]) -> list[Operand]:
        """All other tensors twice, the second time with primes, and the metric between."""
        problem = self.problem
        others = problem.others(self.position, values)
        primed = set(problem.coupled).union(
            label for _, labels in others for label in labels if label not in (*problem.output, *BATCH)
        )
        primed |= set(self.coupled)
        again = [(tensor, tuple(n + PRIME if n in primed else n for n in labels)) for tensor, labels in others]
        metric = [problem.metric_operand()] if problem.metric is not None else []
        return [*others, *again, *metric]

    def gram(self, values: Mapping[str, Tensor]) -> Tensor:
        """Shape (layers, starts, *batch, unknowns, unknowns)."""
        operands = self.doubled(values)
        there = {label for _, labels in operands for label in labels}
        reference = operands[0][0] if operands else self.problem.target
        for label in (*self.coupled, *(label + PRIME for label in self.coupled)):
            if label not in there:
                ones = torch.ones(
                    self.sizes[label.removesuffix(PRIME)],
                    dtype=reference.dtype,
                    device=reference.device,
                )
                operands.append((ones, (label,)))
        primed = tuple(label + PRIME for label in self.coupled)
        kept = [label for label in BATCH if label in there]
        wanted = (*kept, *self.batch, *self.coupled, *primed)
        result = contract(operands, wanted) if operands else torch.ones((), dtype=reference.dtype)
        for axis, label in enumerate(BATCH):
            if label not in kept:
                result = result.unsqueeze(axis)
        return result.reshape(*result.shape[: 2 + len(self.batch)], self.unknowns, self.unknowns)

    def split(self, values: Mapping[str, Tensor]) -> Split | None:
        """The gram matrix as a Kronecker product of small ones; None where nothing falls apart.

        Of the core of a Tucker network each bond has a factor of its own: matrices of r rows in place of one of r^2.
        """
        if self.batch or len(self.coupled) < 2:
            return None
        operands = self.doubled(values)
        groups = fallen_apart(self.coupled, tuple(tuple(labels) for _, labels in operands))
        vectors: dict[tuple[str, ...], Tensor] = {}
        eigenvalues = self.problem.target.new_ones([1] * (2 + len(self.labels)))
        for group, within in groups:
            primed = tuple(label + PRIME for label in group)
            gram = self.problem.contracted([operands[number] for number in within], (*group, *primed))
            rows = prod(self.sizes[label] for label in group)
            gram = gram.reshape(*gram.shape[:2], rows, rows)
            if not bool(gram.isfinite().all()):
                return None
            found = torch.linalg.eigh(gram)
            shape = [self.sizes[label] if label in group else 1 for label in self.labels]
            order = [group.index(label) for label in self.labels if label in group]
            own = found.eigenvalues.clamp(min=0).reshape(*gram.shape[:2], *(self.sizes[label] for label in group))
            own = own.permute(0, 1, *(2 + axis for axis in order)).reshape(*gram.shape[:2], *shape)
            eigenvalues = eigenvalues * own
            vectors[group] = found.eigenvectors
        return Split(self.labels, vectors, eigenvalues) if groups else None

    def right_side(self, values: Mapping[str, Tensor], half: Half | None = None) -> Tensor:
        """The environment of the target: shape (layers, starts, *sizes of the core)."""
        problem = self.problem
        if half is None:
            return problem.environment(problem.pulled[:, None], self.position, values)
        others = [problem.operand(other, values) for other in half.positions if other != self.position]
        return problem.contracted([half.shared, *others], self.labels, shaped=self.position)

    def as_matrix(self, core: Tensor) -> Tensor:
        """(layers, starts, *core) -> (layers, starts, *batch, unknowns, right sides)."""
        order = [2 + self.labels.index(label) for label in (*self.batch, *self.coupled, *self.free)]
        moved = core.permute(0, 1, *order)
        return moved.reshape(*moved.shape[: 2 + len(self.batch)], self.unknowns, -1)

    def as_core(self, matrix: Tensor) -> Tensor:
        """The inverse of `as_matrix`."""
        order = (*self.batch, *self.coupled, *self.free)
        shaped = matrix.reshape(*matrix.shape[:2], *(self.sizes[label] for label in order))
        return shaped.permute(0, 1, *(2 + order.index(label) for label in self.labels))

    def solved(self, values: Mapping[str, Tensor], half: Half | None = None) -> Solved:
        """The best core, others fixed; where many are best, the nearest to the present one."""
        right = self.right_side(values, half)
        present = values[self.problem.occurrences[self.position].name]
        starts = max(right.shape[1], present.shape[1])
        split = self.split(values)
        if split is not None:
            extra = DAMPING * split.mean
            core = split.solve(right + extra * present, extra)
            image = right - extra * (core - present)
        elif self.written_out(starts):
            gram = self.gram(values)
            matrix, product = _solve(gram, self.as_matrix(right), self.as_matrix(present))
            core, image = self.as_core(matrix), self.as_core(product)
        else:
            core, image = self._by_conjugate_gradients(values, right, present)
        return Solved(core.contiguous(), right, image)

    def image(self, core: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """gram @ core without the gram matrix."""
        primed = tuple(
            label + PRIME if label not in self.batch and label not in self.free else label for label in self.labels
        )
        operands = [(core, (*BATCH, *primed)), *self.doubled(values)]
        return self.problem.contracted(operands, self.labels, shaped=self.position)

    def _by_conjugate_gradients(
        self, values: Mapping[str, Tensor], right: Tensor, core: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A few steps from the present core; the system without the metric is their preconditioner."""
        image = self.image(core, values)
        residual = right - image
        conditioned = self._preconditioner(values, core)
        improved = conditioned(residual)
        direction, power = improved, _inner(residual, improved)
        enough = NEAR**2 * power
        for _ in range(ROUNDS):
            moved = self.image(direction, values)
            step = _ratio(power, _inner(direction, moved)).reshape(*power.shape, *[1] * len(self.labels))
            core, image, residual = (
                core + step * direction,
                image + step * moved,
                residual - step * moved,
            )
            improved = conditioned(residual)
            before, power = power, _inner(residual, improved)
            if bool((power <= enough).all()):
                break
            direction = improved + _ratio(power, before).reshape(step.shape) * direction
        return core, image

    def _preconditioner(self, values: Mapping[str, Tensor], core: Tensor) -> Callable[[Tensor], Tensor]:
        plain = System(replace(self.problem, metric=None, coupled=(), blocks=()), self.position)
        if self.problem.metric is None:
            return lambda residual: residual
        split = plain.split(values)
        if split is not None:
            return lambda residual: split.solve(residual, LOOSE * split.mean)
        if not plain.written_out(core.shape[1]):
            return lambda residual: residual
        gram = plain.gram(values)
        mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(gram.dtype).tiny)
        gram.diagonal(dim1=-2, dim2=-1).add_(LOOSE * mean[..., None])
        factor, failed = torch.linalg.cholesky_ex(gram)
        if bool(failed.any()):
            return lambda residual: residual
        return lambda residual: plain.as_core(torch.cholesky_solve(plain.as_matrix(residual), factor))


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """Shape (layers, starts)."""
    return total(one * other)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(below.dtype).tiny), 0.0)


def _solve(gram: Tensor, right: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """x with gram @ x = right, and gram @ x; a singular system stays as near to the present as it may."""
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(gram.dtype).tiny)
    damping = DAMPING * mean
    while True:
        damped = gram.clone()
        damped.diagonal(dim1=-2, dim2=-1).add_(damping[..., None])
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed.any()):
            break
        damping = torch.where(failed > 0, 100 * damping, damping)
        if not bool(damping.isfinite().all()) or not bool(gram.isfinite().all()):
            break  # the caller sees what is not finite in the loss
    extra = damping[..., None, None]
    solution = torch.cholesky_solve(right + extra * present, factor)
    return solution, right - extra * (solution - present)
