"""Descents on all cores at once, for tied cores, and where alternating would crawl: damped Gauss-Newton, and L-BFGS.

The Gauss-Newton matrix is never written down: its product with a vector is two contractions, and conjugate gradients
need no more (the damping of Levenberg and Marquardt; Sorber, Van Barel, De Lathauwer 2013 for CP). To an exact fit it
converges faster than linearly, tied or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .als import Cores, Descent, fits_exactly, floor, pick
from .objective import BATCH, Objective, total
from .systems import System, ratio

QUIET = 1e-4
"""A start stands still after four steps that each took less than this part of its squared error."""

INNER_ROUNDS = 60
"""Steps of conjugate gradients for one step of all cores."""

LEAST_DAMPING = 1e-12
"""Of a preconditioner, which must have an inverse."""

LARGEST_BLOCK = 1024
"""Unknowns of a core up to which its own system preconditions them."""

HISTORY = 30
"""Steps that make L-BFGS's picture of the Hessian."""


def descend(objective: Objective, descent: Descent, *, steps: int) -> Descent:
    """Levenberg-Marquardt; every start has a damping of its own."""
    systems = {name: [System(objective, place) for place in places] for name, places in objective.places.items()}
    values = dict(descent.values)
    model = objective.model(values)
    loss = objective.loss(model)
    losses = [loss]
    least = floor(objective) * objective.power
    damping = torch.full_like(loss, 1e-3)
    still = loss <= least
    quiet = torch.zeros_like(loss)
    for _ in range(steps):
        # the step, by conjugate gradients on the damped Gauss-Newton matrix
        residual = objective.apply_metric(objective.target[:, None] - model)
        gradient = _pull_back(objective, residual, values)
        forcing = ratio(loss, objective.power.expand_as(loss)).clamp(1e-12, 1e-2)
        blocks = {name: _block(each, values, damping) for name, each in systems.items()}
        step = _solve(objective, values, gradient, blocks=blocks, damping=damping, forcing=forcing)
        # what it gains, against what the quadratic model expected
        trial = {name: values[name] + step[name] for name in values}
        model_there = objective.model(trial)
        loss_there = objective.loss(model_there)
        change = _push_forward(objective, step, values)
        expected = 2 * _inner(gradient, step) - total(change * objective.apply_metric(change))
        gain = torch.where(expected > 0, ratio(loss - loss_there, expected), -1.0)
        # less damping where the model was right, more where it was not; only better steps are taken
        better = loss_there < loss
        damping = torch.where(gain > 0.75, damping / 5, torch.where(gain < 0.25, damping * 4, damping))
        damping = damping.clamp(1e-15, 1e8)
        quiet = torch.where(better & (loss - loss_there > QUIET * loss), 0, quiet + 1)
        values = pick(better, trial, values)
        model = torch.where(better.reshape(*better.shape, *[1] * (model.ndim - 2)), model_there, model)
        loss = torch.where(better, loss_there, loss)
        losses.append(loss)
        still = (loss <= least) | (quiet >= 4)
        if bool((still.all(1) | fits_exactly(objective, loss)).all()):
            break
    return descent.then("Gauss-Newton", values, losses, still)


def _push_forward(objective: Objective, step: Mapping[str, Tensor], values: Cores) -> Tensor:
    """The derivative of the network along `step`; shape (layers, starts, *sizes of output)."""
    parts = []
    for name, places in objective.places.items():
        for place in places:
            operands = objective.operands(values)
            operands[place] = (step[name], (*BATCH, *objective.occurrences[place].labels))
            parts.append(objective.contract_to(operands, objective.output))
    return sum(parts[1:], parts[0])


def _pull_back(objective: Objective, residual: Tensor, values: Cores) -> Cores:
    """The transpose of `_push_forward`: for each core, over all its occurrences."""
    found = {}
    for name, places in objective.places.items():
        parts = [objective.environment(residual, place, values) for place in places]
        found[name] = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
    return found


def _solve(
    objective: Objective,
    values: Cores,
    gradient: Cores,
    *,
    blocks: Mapping[str, _Block],
    damping: Tensor,
    forcing: Tensor,
) -> Cores:
    """(J^T J + damping * scale) step = gradient, by preconditioned conjugate gradients."""

    def product(step: Cores) -> Cores:
        pulled = _pull_back(objective, objective.apply_metric(_push_forward(objective, step, values)), values)
        return {name: pulled[name] + _times(damping * blocks[name].scale, step[name]) for name in step}

    def preconditioned(residual: Cores) -> Cores:
        return {name: blocks[name].solve(core) for name, core in residual.items()}

    step = {name: torch.zeros_like(core) for name, core in gradient.items()}
    residual = dict(gradient)
    direction = improved = preconditioned(residual)
    power = first = _inner(residual, improved)
    for _ in range(INNER_ROUNDS):
        moved = product(direction)
        length = ratio(power, _inner(direction, moved))
        step = {name: step[name] + _times(length, direction[name]) for name in step}
        residual = {name: residual[name] - _times(length, moved[name]) for name in step}
        improved = preconditioned(residual)
        before, power = power, _inner(residual, improved)
        if bool((power <= forcing**2 * first).all()):
            break
        turn = ratio(power, before)
        direction = {name: improved[name] + _times(turn, direction[name]) for name in step}
    return step


@dataclass(frozen=True)
class _Block:
    """A core's own part of J^T J: its mean diagonal, shape (layers, starts); its damped factor where it is small."""

    scale: Tensor
    system: System
    factor: Tensor | None

    def solve(self, core: Tensor) -> Tensor:
        if self.factor is None:
            return _times(ratio(torch.ones_like(self.scale), self.scale), core)
        return self.system.as_core(torch.cholesky_solve(self.system.as_matrix(core), self.factor))


def _block(systems: Sequence[System], values: Cores, damping: Tensor) -> _Block:
    first = systems[0]
    # occurrences of a tied core add up where their labels play the same parts; what is between them is left out
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


def descend_by_gradient(objective: Objective, descent: Descent, *, steps: int) -> Descent:
    """Minimise the sum of the relative losses of all layers and starts by L-BFGS; what got worse stays as it was."""
    values = descent.values
    before = objective.loss(objective.model(values))
    power = objective.power.clamp(min=torch.finfo(objective.target.dtype).tiny)
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
        loss = objective.loss(objective.model(cores))
        log.append(loss.detach())
        total = (loss / power).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    found = {name: core.detach() for name, core in cores.items()}
    after = objective.loss(objective.model(found))
    better = after < before
    losses = [*log, torch.where(better, after, before)]
    return descent.then("L-BFGS", pick(better, found, values), losses, torch.ones_like(better))
