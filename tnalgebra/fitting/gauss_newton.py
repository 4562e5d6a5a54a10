"""Damped Gauss-Newton on all cores at once: for tied cores, and where alternating would crawl.

The Gauss-Newton matrix is never written down: its product with a vector is two contractions, and conjugate gradients
need no more (the damping of Levenberg and Marquardt; Sorber, Van Barel, De Lathauwer 2013 for CP). To an exact fit it
converges faster than linearly, tied or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .als import Descent, Values, exact, floor
from .objective import BATCH, Problem, total
from .systems import System

# gauss_newton: Damped Gauss-Newton on all cores at once: for tied cores, and where alternating would crawl.


TOLERANCE = 1e-4
"""A start stands still after four steps that each took less than this part of its squared error."""

INNER_ROUNDS = 60
"""Steps of conjugate gradients for one step of all cores."""

LEAST_DAMPING = 1e-12
"""Of a preconditioner, which must have an inverse."""

LARGEST_BLOCK = 1024
"""Unknowns of a core up to which its own system preconditions them."""


def descend(problem: Problem, values: Values, *, steps: int, tolerance: float = TOLERANCE) -> Descent:
    """Levenberg-Marquardt from `values`; every start has a damping of its own. Arguments as for `alternate`."""
    values = dict(values)
    model = problem.model(values)
    loss = problem.loss(model)
    losses = [loss]
    least = floor(problem) * problem.power
    damping = torch.full_like(loss, 1e-3)
    still = loss <= least
    quiet = torch.zeros_like(loss)
    for _ in range(steps):
        residual = problem.applied(problem.target[:, None] - model)
        gradient = _pulled_back(problem, residual, values)
        forcing = _ratio(loss, problem.power.expand_as(loss)).clamp(1e-12, 1e-2)
        step = _solve(problem, values, gradient, damping, forcing)
        trial = {name: values[name] + step[name] for name in values}
        model_there = problem.model(trial)
        loss_there = problem.loss(model_there)
        change = _pushed(problem, step, values)
        expected = 2 * _inner(gradient, step) - total(change * problem.applied(change))
        gain = torch.where(expected > 0, _ratio(loss - loss_there, expected), -1.0)
        better = loss_there < loss
        damping = torch.where(gain > 0.75, damping / 5, torch.where(gain < 0.25, damping * 4, damping)).clamp(
            1e-15, 1e8
        )
        quiet = torch.where(better & (loss - loss_there > tolerance * loss), 0, quiet + 1)
        values = {name: _chosen(better, trial[name], values[name]) for name in values}
        model = _chosen(better, model_there, model)
        loss = torch.where(better, loss_there, loss)
        losses.append(loss)
        still = (loss <= least) | (quiet >= 4)
        if bool((still.all(1) | exact(loss, problem)).all()):
            break
    return Descent(values, tuple(losses), still)


def _chosen(which: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(which.reshape(*which.shape, *[1] * (one.ndim - 2)), one, other)


def _pushed(problem: Problem, step: Mapping[str, Tensor], values: Values) -> Tensor:
    """The derivative of the network along `step`; shape (layers, starts, *sizes of output)."""
    total = None
    for name, places in problem.places.items():
        for place in places:
            operands = [
                (step[name], (*BATCH, *occurrence.labels)) if i == place else problem.operand(i, values)
                for i, occurrence in enumerate(problem.occurrences)
            ]
            part = problem.contracted(operands, problem.output)
            total = part if total is None else total + part
    assert total is not None
    return total


def _pulled_back(problem: Problem, residual: Tensor, values: Values) -> Values:
    """The transpose of `_pushed`: for each core, over all its occurrences."""
    found = {}
    for name, places in problem.places.items():
        parts = [problem.environment(residual, place, values) for place in places]
        found[name] = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
    return found


def _solve(problem: Problem, values: Values, gradient: Values, damping: Tensor, forcing: Tensor) -> Values:
    """(J^T J + damping * scale) step = gradient, by preconditioned conjugate gradients."""
    blocks = {name: _block(problem, name, values, damping) for name in problem.places}

    def product(step: Values) -> Values:
        pulled = _pulled_back(problem, problem.applied(_pushed(problem, step, values)), values)
        return {name: pulled[name] + _times(damping * blocks[name].scale, step[name]) for name in step}

    def preconditioned(residual: Values) -> Values:
        return {name: blocks[name].solved(core) for name, core in residual.items()}

    step = {name: torch.zeros_like(core) for name, core in gradient.items()}
    residual = dict(gradient)
    direction = improved = preconditioned(residual)
    power = first = _inner(residual, improved)
    for _ in range(INNER_ROUNDS):
        moved = product(direction)
        length = _ratio(power, _inner(direction, moved))
        step = {name: step[name] + _times(length, direction[name]) for name in step}
        residual = {name: residual[name] - _times(length, moved[name]) for name in step}
        improved = preconditioned(residual)
        before, power = power, _inner(residual, improved)
        if bool((power <= forcing**2 * first).all()):
            break
        ratio = _ratio(power, before)
        direction = {name: improved[name] + _times(ratio, direction[name]) for name in step}
    return step


@dataclass(frozen=True)
class _Block:
    """A core's own part of J^T J: its mean diagonal, shape (layers, starts); its damped factor where it is small."""

    scale: Tensor
    system: System
    factor: Tensor | None

    def solved(self, core: Tensor) -> Tensor:
        if self.factor is None:
            return _times(_ratio(torch.ones_like(self.scale), self.scale), core)
        return self.system.as_core(torch.cholesky_solve(self.system.as_matrix(core), self.factor))


def _block(problem: Problem, name: str, values: Values, damping: Tensor) -> _Block:
    systems = [System(problem, place) for place in problem.places[name]]
    first = systems[0]
    # occurrences of a tied core add up where their labels play the same parts; what stands between them is left out
    alike = len({_parts(system) for system in systems}) == 1
    if not alike or first.unknowns > LARGEST_BLOCK or not first.written_out(damping.shape[1]):
        return _Block(torch.ones_like(damping), first, None)
    gram = torch.stack([system.gram(values) for system in systems]).sum(0)
    scale = gram.diagonal(dim1=-2, dim2=-1).flatten(2).mean(2)
    extra = (damping.clamp(min=LEAST_DAMPING) * scale).clamp(min=torch.finfo(scale.dtype).tiny)
    damped = gram.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(extra.reshape(*extra.shape, *[1] * (gram.ndim - 3)))
    factor, failed = torch.linalg.cholesky_ex(damped)
    return _Block(scale, first, None if bool(failed.any()) else factor)


def _parts(system: System) -> tuple[tuple[int, ...], ...]:
    """Which axes of the core are batch, coupled and free."""
    return tuple(tuple(map(system.labels.index, part)) for part in (system.batch, system.coupled, system.free))


def _inner(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """Shape (layers, starts)."""
    return torch.stack([total(one[name] * other[name]) for name in one]).sum(0)


def _times(number: Tensor, core: Tensor) -> Tensor:
    return number.reshape(*number.shape, *[1] * (core.ndim - 2)) * core


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """0 where nothing is left to divide by."""
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(below.dtype).tiny), 0.0)


# gradient: A gradient method: L-BFGS on all cores at once, for what the methods that solve systems leave in motion.


HISTORY = 30
"""Steps that make L-BFGS's picture of the Hessian."""


def descend_by_gradient(problem: Problem, values: Values, *, steps: int) -> Descent:
    """Minimise the sum of the relative losses of all layers and starts; what got worse is as it was before.

    Args:
        values: shape (layers, starts, *sizes) each.
        steps: iterations at most.
    """
    before = problem.loss(problem.model(values))
    power = problem.power.clamp(min=torch.finfo(problem.target.dtype).tiny)
    cores = {name: core.clone().requires_grad_() for name, core in values.items()}
    optimiser = torch.optim.LBFGS(
        list(cores.values()),
        max_iter=steps,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-14,
        tolerance_change=1e-16,
    )
    log = [before]

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = problem.loss(problem.model(cores))
        log.append(loss.detach())
        total = (loss / power).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    found = {name: core.detach() for name, core in cores.items()}
    after = problem.loss(problem.model(found))
    better = after < before
    chosen = {
        name: torch.where(better.reshape(*better.shape, *[1] * (core.ndim - 2)), core, values[name])
        for name, core in found.items()
    }
    return Descent(chosen, (*log, torch.where(better, after, before)), torch.ones_like(better))
