"""L-BFGS: a descent on all cores at once by gradients alone, for which no system is solved.

In a metric a gradient takes one product of the residual with the metric. The systems of alternating least squares would
take a product of the metric with every pair of values of the other cores, and a factorisation, for a similar gain. The
metric is nearly the identity in the coordinates of a search (`Objective.whiten`), so that the systems without it are a
preconditioner: the first approximation of the inverse Hessian, which pairs of steps and changes of the gradient improve
(Nocedal and Wright, Numerical Optimization, 2006, algorithm 7.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..tensors import products
from .als import Cores, Descent
from .gauss_newton import pull_back, ridge_weights
from .objective import Objective, total
from .systems import System, ratio

HISTORY = 10
"""The number of steps from which the Hessian is estimated."""

SUFFICIENT = 1e-4
"""A step is taken where the merit falls by at least this part of what its slope promises (Armijo's condition)."""

SHORTENED = 10
"""How often a step that does not lower the merit is shortened: to between a tenth and a half of its length."""

_WINDOW = 5
"""Steps gain unevenly, so that the gain of this many together shows whether a start stands still."""


class _Point(NamedTuple):
    """The elements of all cores, with the loss and the merit, and half the gradient of the merit.

    Elements and gradient have the shape (layers, starts, unknowns), loss and merit (layers, starts, 1).
    """

    cores: Tensor
    loss: Tensor
    merit: Tensor
    gradient: Tensor


class _Pair(NamedTuple):
    """A step, the change of the gradient along it, and 1 / their product; 0 where that is not positive."""

    step: Tensor
    change: Tensor
    inverse: Tensor


def descend_by_gradient(objective: Objective, descent: Descent, *, steps: int, tolerance: float) -> Descent:
    """Descend from every start by L-BFGS. The merit never grows.

    Args:
        steps: the most steps of all cores.
        tolerance: a start stands still where a step takes less than this part of its merit.
    """
    problem = _Problem(objective, descent.values)
    point = problem.evaluate(problem.join(descent.values))
    scale = torch.ones_like(point.loss)
    still = torch.zeros_like(point.loss, dtype=torch.bool)
    pairs: list[_Pair] = []
    losses, merits = [point.loss[..., 0]], [point.merit]
    for _ in range(steps):
        step = _direction(point.gradient, pairs, scale, problem.precondition)
        slope = 2 * _inner(point.gradient, step)
        length = torch.where(still, 0.0, torch.ones_like(slope))
        for _ in range(SHORTENED):
            trial = problem.evaluate(point.cores + length * step)
            lower = trial.merit <= point.merit + SUFFICIENT * length * slope
            if bool((lower | still).all()):
                break
            # the minimum of the parabola through both ends, as a part of the length
            promised = length * slope
            part = (-promised / (2 * (trial.merit - point.merit - promised))).nan_to_num(0.1).clamp(0.1, 0.5)
            length = torch.where(lower, length, length * part)
        still |= ~lower
        before, point = point, _Point(*(torch.where(still, *pair) for pair in zip(point, trial, strict=True)))
        taken, change = point.cores - before.cores, point.gradient - before.gradient
        curvature, conditioned = _inner(taken, change), _inner(change, problem.precondition(change))
        scale = torch.where(curvature > 0, ratio(curvature, conditioned), scale)
        pairs = [*pairs, _Pair(taken, change, ratio(torch.ones_like(curvature), curvature))][-HISTORY:]
        losses.append(point.loss[..., 0])
        merits.append(point.merit)
        if len(merits) > _WINDOW:
            still |= merits[-1 - _WINDOW] - point.merit <= _WINDOW * tolerance * point.merit
        if bool((still[..., 0].all(1) | objective.fits_exactly(losses[-1])).all()):
            break
    values = problem.split(point.cores)
    return descent.then("L-BFGS", values, losses, merit=point.merit[..., 0], still=still[..., 0])


def _direction(
    gradient: Tensor, pairs: Sequence[_Pair], scale: Tensor, precondition: Callable[[Tensor], Tensor]
) -> Tensor:
    """Minus the approximate inverse Hessian times the gradient, by the recursion over pairs of steps and changes."""
    result, parts = -gradient, []
    for step, change, inverse in reversed(pairs):
        parts.append(inverse * _inner(step, result))
        result = result - parts[-1] * change
    result = scale * precondition(result)
    for (step, change, inverse), part in zip(pairs, reversed(parts), strict=True):
        result = result + (part - inverse * _inner(change, result)) * step
    return result


class _Problem:
    """An objective as a function of one vector for each start."""

    def __init__(self, objective: Objective, values: Cores) -> None:
        self.objective = objective
        self.shapes = {name: core.shape[2:] for name, core in values.items()}
        self.systems = {name: [System(objective, n) for n in places] for name, places in objective.places.items()}
        systems = {} if objective.tied else {name: system for name, (system,) in self.systems.items()}
        self.inverses = {name: system.without_metric(values) for name, system in systems.items()}

    def join(self, values: Cores) -> Tensor:
        return torch.cat([values[name].flatten(2) for name in self.shapes], dim=2)

    def split(self, vector: Tensor) -> Cores:
        parts = torch.split(vector, [shape.numel() for shape in self.shapes.values()], dim=2)
        each = zip(self.shapes.items(), parts, strict=True)
        return {name: part.reshape(*part.shape[:2], *shape) for (name, shape), part in each}

    def evaluate(self, vector: Tensor) -> _Point:
        values = self.split(vector)
        residual = self.objective.model(values) - self.objective.target[:, None]
        pulled = self.objective.apply_metric(residual)
        loss = total(products(residual, pulled)).clamp(min=0)
        merit, gradient = self.objective.merit(loss, values), pull_back(self.objective, pulled, values)
        weights = ridge_weights(self.systems, values, self.objective.ridge(loss, values))
        for name, weight in weights.items():
            gradient[name] = gradient[name] + weight * values[name]
        slope = self.join(gradient) * (ratio(merit, loss)[..., None] if weights else 1.0)
        return _Point(vector, loss[..., None], merit[..., None], slope)

    def precondition(self, vector: Tensor) -> Tensor:
        if not self.inverses:
            return vector
        return self.join({name: self.inverses[name](core) for name, core in self.split(vector).items()})


def _inner(one: Tensor, other: Tensor) -> Tensor:
    return products(one, other).sum(2, keepdim=True)
