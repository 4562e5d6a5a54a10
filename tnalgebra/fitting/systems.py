"""The linear least-squares problem of one core while all others stay.

A matrix that is a Kronecker product is solved by the eigenvectors of its factors: of the core of a Tucker network each
bond has a factor of its own, matrices of r rows in place of one of r^2 or more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple, TypeAlias

import networkx
import torch
from torch import Tensor

from ..tensors import Operand, contract
from .objective import BATCH, LAYER, PRIME, Objective, total

LARGEST_SYSTEM = 4096
"""Unknowns up to which a system is solved by Cholesky; above, by conjugate gradients on the contractions."""

LARGEST_GRAM = 2**27
"""Elements of all systems of a core together up to which they are written out: 1 GiB in float64."""

LARGEST_COUPLED = 600
"""The same where a metric couples the unknowns, and makes many of them: conjugate gradients are sooner good enough."""

ROUNDS, NEAR = 10, 0.03
"""Steps of conjugate gradients for one core, and the part of the residual at which they stop before. They start from
the present core, so few steps only descend less, and the next sweep continues."""

LOOSE = 1e-9
"""Damping of a preconditioner, relative to the mean diagonal."""

DAMPING = 1e-14
"""Weight of staying at the present core, relative to the mean diagonal of the system: what makes it solvable."""


_Labels: TypeAlias = tuple[str, ...]


METRIC = "metric/"
"""Its name among the tensors; no tensor of the notation is called like that."""


class Factor(NamedTuple):
    """A Kronecker factor of a gram matrix: coupled labels that no tensor joins with the others.

    operands: by their numbers in `System.doubled`.
    output, absent: what they are contracted to, and which of the axes of layers and starts are then missing.
    order, back: bring the factor's axes of (layers, starts, *core) to the front of the core, and back.
    axes: bring its eigenvalues, (layers, starts, *labels), to the order of the core.
    shape: of the eigenvalues among the core's labels, 1 along the others.
    """

    operands: tuple[int, ...]
    output: _Labels
    absent: tuple[int, ...]
    order: tuple[int, ...]
    back: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class KroneckerSystem:
    """A gram matrix by its eigenvectors, those of its Kronecker factors.

    factors: each with its eigenvectors, shape (layers, starts, n, n).
    eigenvalues: shape (layers, starts, *the core's), 1 along its free labels.
    """

    factors: Sequence[tuple[Factor, Tensor]]
    eigenvalues: Tensor

    @cached_property
    def mean(self) -> Tensor:
        """Of the diagonal, as it is of the eigenvalues; shape (layers, starts, 1, ...)."""
        values = self.eigenvalues
        mean = values.flatten(2).mean(2).clamp(min=torch.finfo(values.dtype).tiny)
        return mean.reshape(*mean.shape, *[1] * (values.ndim - 2))

    def solve(self, core: Tensor, damping: Tensor) -> Tensor:
        """x with (gram + damping) @ x = core."""
        return self._turn(self._turn(core, adjoint=True) / (self.eigenvalues + damping), adjoint=False)

    def _turn(self, core: Tensor, *, adjoint: bool) -> Tensor:
        for factor, vectors in self.factors:
            moved = core.permute(factor.order)
            shape = moved.shape
            turned = (vectors.mT if adjoint else vectors) @ moved.reshape(*shape[:2], vectors.shape[-1], -1)
            core = turned.reshape(*turned.shape[:2], *shape[2:]).permute(factor.back)
        return core


class Solved(NamedTuple):
    """A core, the right side of its equations, and their left side with it; shape (layers, starts, *sizes) each."""

    core: Tensor
    right: Tensor
    image: Tensor


@dataclass(frozen=True, eq=False)
class System:
    """The normal equations of the core at one occurrence: gram @ core = right side.

    What depends on labels and sizes alone is found once.
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
        """Open labels that other tensors carry too: each of their values has a system of its own."""
        objective = self.objective
        elsewhere = {label for i, o in enumerate(objective.occurrences) if i != self.position for label in o.labels}
        shared = (elsewhere & set(objective.output)).union(objective.blocks) - set(objective.coupled)
        return tuple(label for label in self.labels if label in shared and label in objective.output)

    @cached_property
    def free(self) -> _Labels:
        """Open labels that the core carries alone: one right side for each of their values."""
        alone = set(self.objective.output) - {*self.batch, *self.objective.coupled}
        return tuple(label for label in self.labels if label in alone)

    @cached_property
    def coupled(self) -> _Labels:
        """The labels of the unknowns."""
        return tuple(label for label in self.labels if label not in self.batch and label not in self.free)

    @cached_property
    def unknowns(self) -> int:
        return prod(self.objective.sizes[label] for label in self.coupled)

    @cached_property
    def blocks(self) -> int:
        """How many systems there are for each layer and start."""
        return prod(self.objective.sizes[label] for label in self.batch)

    def written_out(self, starts: int) -> bool:
        """Whether the gram matrices are small enough to be made."""
        blocks = self.objective.layers * starts * self.blocks
        most = LARGEST_SYSTEM if self.objective.metric is None else LARGEST_COUPLED
        return self.unknowns <= most and blocks * self.unknowns**2 <= LARGEST_GRAM

    @cached_property
    def others(self) -> list[tuple[str, _Labels]]:
        """Name and labels of all other tensors."""
        return [named for other, named in enumerate(self.objective.named) if other != self.position]

    @cached_property
    def doubled(self) -> list[tuple[str, _Labels]]:
        """All other tensors twice, the second time with primes, and the metric between."""
        primed = {label for _, labels in self.others for label in labels} - {*self.objective.output, *BATCH}
        primed |= {*self.objective.coupled, *self.coupled}
        again = [(name, tuple([n + PRIME if n in primed else n for n in labels])) for name, labels in self.others]
        metric = [] if self.objective.metric is None else [(METRIC, self.objective.metric_labels)]
        return [*self.others, *again, *metric]

    def operands(self, values: Mapping[str, Tensor]) -> list[Operand]:
        """`doubled` with their elements."""
        tensors = {**self.objective.held, **values}
        if self.objective.metric is not None:
            tensors[METRIC] = self.objective.metric
        return [(tensors[name], labels) for name, labels in self.doubled]

    @cached_property
    def _axes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """From the order of the core to that of a matrix, back, and the shape between."""
        order = (*self.batch, *self.coupled, *self.free)
        there = (0, 1, *(2 + self.labels.index(label) for label in order))
        back = (0, 1, *(2 + order.index(label) for label in self.labels))
        return there, back, tuple(self.objective.sizes[label] for label in order)

    def plan(self, operands: Sequence[_Labels], output: _Labels) -> tuple[list[Operand], _Labels, list[int]]:
        """How tensors with these labels are contracted to (layers, starts, *output).

        Returns:
            Ones for the labels of the output that no tensor has, what is contracted to, and the axes that come then.
        """
        there = {label for labels in operands for label in labels}
        target = self.objective.target
        ones: list[Operand] = [
            (
                torch.ones(self.objective.sizes[label.removesuffix(PRIME)], dtype=target.dtype, device=target.device),
                (label,),
            )
            for label in output
            if label not in there
        ]
        kept = tuple(label for label in BATCH if label in there)
        return ones, (*kept, *output), [axis for axis, label in enumerate(BATCH) if label not in there]

    @cached_property
    def _gram_plan(self) -> tuple[list[Operand], _Labels, list[int]]:
        primed = tuple(label + PRIME for label in self.coupled)
        return self.plan([labels for _, labels in self.doubled], (*self.batch, *self.coupled, *primed))

    def gram(self, values: Mapping[str, Tensor]) -> Tensor:
        """Shape (layers, starts, *batch, unknowns, unknowns)."""
        ones, labels, absent = self._gram_plan
        operands = [*self.operands(values), *ones]
        result = contract(operands, labels) if operands else self.objective.target.new_ones(())
        for axis in absent:
            result = result.unsqueeze(axis)
        return result.reshape(*result.shape[: 2 + len(self.batch)], self.unknowns, self.unknowns)

    @cached_property
    def factors(self) -> list[Factor]:
        """The Kronecker factors of the gram matrix; none where it is not a product of several."""
        if self.batch or len(self.coupled) < 2:
            return []
        graph: networkx.Graph[object] = networkx.Graph()
        graph.add_edges_from((label, label + PRIME) for label in self.coupled)
        for number, (_, labels) in enumerate(self.doubled):
            graph.add_node(number)
            graph.add_edges_from((number, label) for label in labels if label not in BATCH)
        factors = [self._factor(part) for part in networkx.connected_components(graph)]
        found = [factor for factor in factors if factor is not None]
        return found if 1 < len(found) == len(factors) else []

    def _factor(self, part: Collection[object]) -> Factor | None:
        """The factor of a connected part of labels and numbers of operands; None where a label has no operand."""
        group = tuple(label for label in self.coupled if label in part)
        within = tuple(number for number in range(len(self.doubled)) if number in part)
        labels = [self.doubled[number][1] for number in within]
        if not group or not {label for each in labels for label in each}.issuperset(group):
            return None
        _, output, absent = self.plan(labels, (*group, *(label + PRIME for label in group)))
        rest = (label for label in self.labels if label not in group)
        order = (0, 1, *(2 + self.labels.index(label) for label in (*group, *rest)))
        back = tuple(order.index(axis) for axis in range(len(order)))
        axes = (0, 1, *(2 + group.index(label) for label in self.labels if label in group))
        shape = tuple(self.objective.sizes[label] if label in group else 1 for label in self.labels)
        return Factor(within, output, tuple(absent), order, back, axes, shape)

    def factor_grams(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """The gram matrix of each factor, its labels still apart."""
        operands = self.operands(values)
        parts = [[operands[number] for number in factor.operands] for factor in self.factors]
        return [contract(part, factor.output) for part, factor in zip(parts, self.factors, strict=True)]

    def split(self, grams: Sequence[Tensor]) -> KroneckerSystem | None:
        """The gram matrix by its factors; None where one of these is not finite."""
        vectors = []
        eigenvalues = self.objective.target.new_ones([1] * (2 + len(self.labels)))
        for factor, gram in zip(self.factors, grams, strict=True):
            for axis in factor.absent:
                gram = gram.unsqueeze(axis)
            sizes = gram.shape[2 : (gram.ndim + 2) // 2]
            gram = gram.reshape(*gram.shape[:2], sizes.numel(), sizes.numel())
            if not bool(gram.isfinite().all()):
                return None
            found = torch.linalg.eigh(gram)
            own = found.eigenvalues.clamp(min=0).reshape(*gram.shape[:2], *sizes)
            eigenvalues = eigenvalues * own.permute(factor.axes).reshape(*gram.shape[:2], *factor.shape)
            vectors.append((factor, found.eigenvectors))
        return KroneckerSystem(vectors, eigenvalues) if vectors else None

    def right_side(self, values: Mapping[str, Tensor]) -> Tensor:
        """The environment of the target: shape (layers, starts, *sizes of the core)."""
        return self.objective.environment(self.objective.pulled[:, None], self.position, values)

    def as_matrix(self, core: Tensor) -> Tensor:
        """(layers, starts, *core) -> (layers, starts, *batch, unknowns, right sides)."""
        moved = core.permute(self._axes[0])
        return moved.reshape(*moved.shape[: 2 + len(self.batch)], self.unknowns, -1)

    def as_core(self, matrix: Tensor) -> Tensor:
        """The inverse of `as_matrix`."""
        _, back, shape = self._axes
        return matrix.reshape(*matrix.shape[:2], *shape).permute(back)

    def solve(self, values: Mapping[str, Tensor], operands: Sequence[Operand], labels: _Labels) -> Solved:
        """The best core, others fixed; where many are best, the nearest to the present one.

        Args:
            operands, labels: what the right side is contracted from, and to.
        """
        present = values[self.name]
        written_out = self.written_out(present.shape[1])
        grams = self.factor_grams(values) if self.factors else []
        gram = self.gram(values) if written_out and not grams else None
        right = contract(operands, labels)
        right = right if right.ndim == present.ndim else right.unsqueeze(1)  # no tensor has an axis for the starts
        split = self.split(grams)
        if split is None and grams and written_out:
            gram = self.gram(values)
        if split is not None:
            extra = DAMPING * split.mean
            core = split.solve(right + extra * present, extra)
            image = right - extra * (core - present)
        elif gram is not None:
            matrix, product = _solve(gram, self.as_matrix(right), self.as_matrix(present))
            core, image = self.as_core(matrix), self.as_core(product)
        else:
            core, image = self._by_conjugate_gradients(values, right, present)
        return Solved(core.contiguous(), right, image)

    def image(self, core: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """gram @ core without the gram matrix."""
        primed = tuple(label + PRIME if label in self.coupled else label for label in self.labels)
        operands = [(core, (*BATCH, *primed)), *self.operands(values)]
        return self.objective.contract_to(operands, self.labels)

    def _by_conjugate_gradients(
        self, values: Mapping[str, Tensor], right: Tensor, core: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A few steps from the present core; the system without the metric is their preconditioner."""
        image = self.image(core, values)
        residual = right - image
        conditioned = self._preconditioner(values, core)
        improved = conditioned(residual)
        direction, power = improved, total(residual * improved)
        enough = NEAR**2 * power
        for _ in range(ROUNDS):
            moved = self.image(direction, values)
            step = ratio(power, total(direction * moved)).reshape(*power.shape, *[1] * len(self.labels))
            core, image, residual = core + step * direction, image + step * moved, residual - step * moved
            improved = conditioned(residual)
            before, power = power, total(residual * improved)
            if bool((power <= enough).all()):
                break
            direction = improved + ratio(power, before).reshape(step.shape) * direction
        return core, image

    @cached_property
    def _plain(self) -> System:
        """The system without the metric."""
        return System(self.objective.without_metric(), self.position)

    def _preconditioner(self, values: Mapping[str, Tensor], core: Tensor) -> Callable[[Tensor], Tensor]:
        if self.objective.metric is None:
            return lambda residual: residual
        plain = self._plain
        split = plain.split(plain.factor_grams(values))
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


@dataclass(frozen=True, eq=False)
class Part:
    """Cores that are solved for one after another, and what the environments of all of them share.

    That is the pulled target contracted with all tensors outside the part; of one core alone, the pulled target.
    """

    systems: Sequence[System]

    @cached_property
    def _shared_plan(self) -> tuple[list[tuple[str, _Labels]], Operand, _Labels]:
        """The tensors outside, the pulled target as it is contracted with them, and the labels of what they share."""
        objective = self.systems[0].objective
        if len(self.systems) == 1:
            return [], (objective.pulled, (LAYER, *objective.output)), (LAYER, *objective.output)
        positions = [system.position for system in self.systems]
        outside = [named for number, named in enumerate(objective.named) if number not in positions]
        return outside, objective.lay_out(positions), (*BATCH, *objective.shared_labels(positions))

    @cached_property
    def _plans(self) -> list[tuple[list[tuple[str, _Labels]], list[Operand], _Labels]]:
        """For each core: the tensors that are contracted with what is shared, ones among them, and the labels then."""
        objective, shared = self.systems[0].objective, self._shared_plan[2]
        positions = [system.position for system in self.systems]
        plans = []
        for system in self.systems:
            within = positions if len(positions) > 1 else range(len(objective.occurrences))
            others = [objective.named[other] for other in within if other != system.position]
            ones, labels, _ = system.plan([shared, *(labels for _, labels in others)], system.labels)
            plans.append((others, ones, labels))
        return plans

    def solve(self, values: dict[str, Tensor]) -> Solved:
        """Solve for each core in turn, in `values`. Returns the last one."""
        outside, target, labels = self._shared_plan
        held = self.systems[0].objective.held
        shared = target[0]
        if outside:
            shared = contract([target, *[({**held, **values}[name], own) for name, own in outside]], labels)
        for system, (others, ones, output) in zip(self.systems, self._plans, strict=True):
            tensors = {**held, **values}
            operands = [(shared, labels), *[(tensors[name], own) for name, own in others], *ones]
            solved = system.solve(values, operands, output)
            values[system.name] = solved.core
        return solved


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


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """0 where nothing is left to divide by."""
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(below.dtype).tiny), 0.0)
