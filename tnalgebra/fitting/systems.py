"""The linear least-squares problem of one core while all other cores stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..tensors import Operand, contract, products
from .constraints import ORTHONORMAL, best_nonnegative, best_orthonormal, largest_eigenvalue, polar_factor, with_matrix
from .kronecker import ContractionPlan, Factor, KroneckerSystem, kronecker_factors
from .objective import BATCH, PRIME, Objective, total

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
"""Damping of a preconditioner, relative to the mean of the diagonal; in few digits it is their rounding."""

_DAMPING = 1e-14
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
    def others(self) -> list[tuple[str, _Labels]]:
        """Name and labels of the tensors at all other occurrences in the term."""
        return [self.objective.named[place] for place in self.objective.others(self.position)]

    @cached_property
    def batch(self) -> _Labels:
        """Open labels that other tensors have too: each of their values has a system of its own."""
        objective = self.objective
        shared = {*objective.blocks, *(label for _, labels in self.others for label in labels)} - set(objective.coupled)
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
        objective, others = self.objective, self.others
        primed = {label for _, labels in others for label in labels} - {*objective.output, *BATCH}
        primed |= {*objective.coupled, *self.coupled}
        again = [(name, tuple([n + PRIME if n in primed else n for n in labels])) for name, labels in others]
        return [*others, *again, *([] if objective.metric is None else [(METRIC, objective.metric_labels)])]

    def operands(self, values: Mapping[str, Tensor]) -> list[Operand]:
        """`doubled` with the elements of the tensors, where the first of the two is the conjugate."""
        tensors = {**self.objective.constants, **values}
        if self.objective.metric is not None:
            tensors[METRIC] = self.objective.metric
        first = len(self.others)
        return [
            (tensors[name].conj() if number < first else tensors[name], labels)
            for number, (name, labels) in enumerate(self.doubled)
        ]

    def plan(self, operands: Sequence[_Labels], labels: _Labels) -> ContractionPlan:
        """How tensors with these labels are contracted to (layers, starts, *labels)."""
        present, like = {label for names in operands for label in names}, self.objective.target
        sizes = {label: self.objective.sizes[label.removesuffix(PRIME)] for label in labels if label not in present}
        ones: list[Operand] = [(like.new_ones(size), (label,)) for label, size in sizes.items()]
        kept = tuple([label for label in BATCH if label in present])
        return ContractionPlan(
            ones, (*kept, *labels), [axis for axis, label in enumerate(BATCH) if label not in present]
        )

    @cached_property
    def _gram_plan(self) -> ContractionPlan:
        return self.plan([labels for _, labels in self.doubled], (*self.batch, *_twice(self.coupled)))

    def gram(self, values: Mapping[str, Tensor]) -> Tensor:
        """Shape (layers, starts, *batch, unknowns, unknowns)."""
        result = self._gram_plan.contract(self.operands(values), self.objective.target)
        return result.reshape(*result.shape[: 2 + len(self.batch)], self.unknowns, self.unknowns)

    @cached_property
    def _factors(self) -> list[Factor]:
        doubled = [labels for _, labels in self.doubled]
        found = [] if self.batch else kronecker_factors(self.coupled, doubled)
        factors = []
        for group, numbers in found:
            plan = self.plan([doubled[number] for number in numbers], _twice(group))
            rest = [label for label in self.labels if label not in group]
            order = (0, 1, *(2 + self.labels.index(label) for label in (*group, *rest)))
            back = tuple(order.index(axis) for axis in range(len(order)))
            axes = (0, 1, *(2 + group.index(label) for label in self.labels if label in group))
            shape = tuple(self.objective.sizes[label] if label in group else 1 for label in self.labels)
            factors.append(Factor(numbers, plan, order, back, axes, shape))
        return factors

    def factor_grams(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """The gram matrix of each Kronecker factor, whose labels still have an axis each; none without factors."""
        operands = self.operands(values)
        parts = [[*(operands[number] for number in factor.operands), *factor.plan.ones] for factor in self._factors]
        return [contract(part, factor.plan.labels) for part, factor in zip(parts, self._factors, strict=True)]

    def split(self, grams: Sequence[Tensor]) -> KroneckerSystem | None:
        """The gram matrix by its `factor_grams`; None where there are none, or where one of them is not finite."""
        eigenvalues = self.objective.target.real.new_ones([1] * (2 + len(self.labels)))
        factors = []
        for factor, gram in zip(self._factors, grams, strict=True):
            for axis in factor.plan.absent:
                gram = gram.unsqueeze(axis)
            sizes = gram.shape[2 : (gram.ndim + 2) // 2]
            gram = gram.reshape(*gram.shape[:2], sizes.numel(), sizes.numel())
            if not bool(gram.isfinite().all()):
                return None
            squares, vectors = torch.linalg.eigh(gram)
            squares = squares.clamp(min=0).reshape(*gram.shape[:2], *sizes).permute(factor.axes)
            eigenvalues = eigenvalues * squares.reshape(*gram.shape[:2], *factor.shape)
            factors.append((factor, vectors))
        return KroneckerSystem(factors, eigenvalues) if factors else None

    @cached_property
    def _axes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The axes of a core in the order of a matrix, the way back, and the sizes in between."""
        order = (*self.batch, *self.coupled, *self.free)
        axes = (0, 1, *(2 + self.labels.index(label) for label in order))
        back = (0, 1, *(2 + order.index(label) for label in self.labels))
        return axes, back, tuple(self.objective.sizes[label] for label in order)

    def as_matrix(self, core: Tensor) -> Tensor:
        """Bring (layers, starts, *core) to (layers, starts, *batch, unknowns, right sides)."""
        moved = core.permute(self._axes[0])
        columns = prod(moved.shape[2 + len(self.batch) + len(self.coupled) :])
        return moved.reshape(*moved.shape[: 2 + len(self.batch)], self.unknowns, columns)

    def as_core(self, matrix: Tensor) -> Tensor:
        """The inverse of `as_matrix`."""
        _, back, sizes = self._axes
        return matrix.reshape(*matrix.shape[:2], *sizes).permute(back)

    def weights(self, ridge: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """What a ridge adds to the diagonal of the gram matrix, see `Objective.ridge`; in the axes of the core."""
        weights = self.objective.squared_blocks(values, self.position)
        return weights * ridge.reshape(*ridge.shape, *[1] * len(self.labels))

    def solve(
        self, values: Mapping[str, Tensor], operands: Sequence[Operand], labels: _Labels, ridge: Tensor | None = None
    ) -> Solved:
        """Find the best core while the others stay; of several, the one nearest to the present core.

        Args:
            operands, labels: the tensors that the right side is contracted from, and its labels.
            ridge: the weight of the squared components, see `Objective.ridge`.
        """
        present = values[self.name]
        written_out = self.written_out(present.shape[1])
        weights = None if ridge is None else self.weights(ridge, values)
        # with weights, the gram matrix is not a Kronecker product
        grams = self.factor_grams(values) if self._factors and weights is None else []
        gram = self.gram(values) if written_out and not grams else None
        right = contract(operands, labels)
        right = right if right.ndim == present.ndim else right.unsqueeze(1)  # no tensor has an axis for the starts
        split = self.split(grams) if grams else None
        if split is None and grams and written_out:
            gram = self.gram(values)
        kind = self.objective.constraints.get(self.name)
        if kind is not None:
            if gram is None or weights is None:
                core, image = self._constrained(kind, values, right, gram=gram, split=split)
                return Solved(core, right, image)
            core, image = self._constrained(kind, values, right, gram=self.with_diagonal(gram, weights), split=None)
            return Solved(core, right, image - weights * core)
        if split is not None:
            extra = _DAMPING * split.mean
            core = split.solve(right + extra * present, extra)
            image = right - extra * (core - present)
        elif gram is not None:
            if weights is not None:
                gram = self.with_diagonal(gram, weights)
            matrix, product = _solve(gram, self.as_matrix(right), self.as_matrix(present))
            core, image = self.as_core(matrix), self.as_core(product)
        else:
            core, image = self._by_conjugate_gradients(values, right, present, weights)
        if weights is not None:
            image = image - weights * core
        return Solved(core.contiguous(), right, image)

    def _constrained(
        self,
        kind: str,
        values: Mapping[str, Tensor],
        right: Tensor,
        *,
        gram: Tensor | None,
        split: KroneckerSystem | None,
    ) -> tuple[Tensor, Tensor]:
        """The best core under a constraint, or a better one, and gram @ core."""
        present, output = values[self.name], self.objective.output

        def product(core: Tensor) -> Tensor:
            if gram is not None:
                return self.as_core(gram @ self.as_matrix(core))
            return self.image(core, values) if split is None else split.product(core)

        def largest() -> Tensor:
            if gram is not None:
                squared: Tensor = torch.linalg.eigvalsh(gram)[..., -1:]
                return squared.flatten(2).amax(2)
            return largest_eigenvalue(product, present) if split is None else split.eigenvalues.flatten(2).amax(2)

        if kind == ORTHONORMAL:
            # each open label in the rows alone: the squares of the core sum up to a constant
            constant = not self.batch and not {*self.objective.coupled} & {*self.labels}
            core = best_orthonormal(
                right,
                present,
                polar=lambda core: with_matrix(core, self.labels, output, polar_factor),
                product=product,
                largest=None if constant else largest(),
            )
        else:
            matrix = best_nonnegative(
                self.as_matrix(right),
                self.as_matrix(present),
                gram=gram,
                product=lambda matrix: self.as_matrix(product(self.as_core(matrix))),
                largest=largest,
            )
            core = self.as_core(matrix)
        return core.contiguous(), product(core)

    def with_diagonal(self, gram: Tensor, weights: Tensor) -> Tensor:
        """A gram matrix plus `weights` on its diagonal."""
        added = gram.expand(*weights.shape[:2], *gram.shape[2:]).clone()
        column = self.as_matrix(weights.expand(*weights.shape[:2], *self._shape))[..., 0]
        added.diagonal(dim1=-2, dim2=-1).add_(column)
        return added

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self.objective.sizes[label] for label in self.labels)

    def image(self, core: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Compute gram @ core without the gram matrix."""
        primed = tuple(label + PRIME if label in self.coupled else label for label in self.labels)
        return self.objective.contract_to([(core, (*BATCH, *primed)), *self.operands(values)], self.labels)

    def _by_conjugate_gradients(
        self, values: Mapping[str, Tensor], right: Tensor, core: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """A few steps from the present core, preconditioned by the system without the metric."""

        def product(core: Tensor) -> Tensor:
            image = self.image(core, values)
            return image if weights is None else image + weights * core

        image = product(core)
        residual = right - image
        conditioned = self.without_metric(values)
        improved = conditioned(residual)
        direction, power = improved, total(products(residual, improved))
        enough = NEAR**2 * power
        for _ in range(ROUNDS):
            moved = product(direction)
            step = ratio(power, total(products(direction, moved))).reshape(*power.shape, *[1] * len(self.labels))
            core, image, residual = core + step * direction, image + step * moved, residual - step * moved
            improved = conditioned(residual)
            before, power = power, total(products(residual, improved))
            if bool((power <= enough).all()):
                break
            direction = improved + ratio(power, before).reshape(step.shape) * direction
        return core, image

    def without_metric(self, values: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """The inverse of the system without the metric, which is a preconditioner of the system.

        It is the identity where there was no metric before, or where this system is too large or singular.
        """
        if self.objective.metric is None:
            return lambda residual: residual
        plain = System(self.objective.without_metric(), self.position)
        split, loose = plain.split(plain.factor_grams(values)), max(LOOSE, torch.finfo(values[self.name].dtype).eps)
        if split is not None:
            return lambda residual: split.solve(residual, loose * split.mean)
        if not plain.written_out(values[self.name].shape[1]):
            return lambda residual: residual
        gram = plain.gram(values)
        factor, failed = damped_cholesky(gram, loose * _mean_diagonal(gram)[..., None])
        if bool(failed.any()):
            return lambda residual: residual
        inverse = torch.cholesky_inverse(factor)
        return lambda residual: plain.as_core(inverse @ plain.as_matrix(residual))


def _twice(labels: _Labels) -> _Labels:
    """Labels of the rows and the columns of a gram matrix."""
    return (*labels, *(label + PRIME for label in labels))


def _solve(gram: Tensor, right: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The x with gram @ x = right, and gram @ x. In a singular system x stays as near to the present core as it may."""
    damping = _DAMPING * _mean_diagonal(gram)
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
    return gram.diagonal(dim1=-2, dim2=-1).real.mean(-1).clamp(min=torch.finfo(gram.dtype).tiny)


def damped_cholesky(gram: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """The Cholesky factor of each matrix with `damping` added to its diagonal, and a number above 0 where it failed."""
    damped = gram.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping)
    factor, failed = torch.linalg.cholesky_ex(damped)
    return factor, failed


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 where `below` is not greater than 0."""
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(below.dtype).tiny), 0.0)
