"""Damped Gauss-Newton, a descent on all cores at once: for tied cores, and where alternating would be slow.

The Gauss-Newton matrix of a small problem is written out and factored. That of a larger one is never computed: its
product with a vector takes two contractions, and conjugate gradients need only that (damped as by Levenberg and
Marquardt; Sorber, Van Barel, De Lathauwer 2013 for CP). Towards an exact fit
it converges faster than linearly, whether cores are tied or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ..tensors import products
from .als import Cores, Descent, pick, spread
from .gauss_matrix import GaussMatrix, StepFactor
from .objective import BATCH, Objective, total
from .systems import System, damped_cholesky, ratio

QUIET = 1e-4
"""A start stands still after four steps that each take less than this part of its squared error."""

INNER_ROUNDS = 60
"""The most steps of conjugate gradients for one step of all cores."""

LEAST_DAMPING = 1e-12
"""The least damping of a preconditioner, which must have an inverse."""

LARGEST_BLOCK = 1024
"""The most unknowns of a core for which its own system is the preconditioner."""

PROBE = 0.1
"""At which part of a step the network is evaluated for its second derivative."""

BEND = 0.75
"""The largest ratio of twice the bend to the step at which the step is bent."""


def descend(objective: Objective, descent: Descent, *, steps: int) -> Descent:
    """Descend by Levenberg-Marquardt, where every start has a damping of its own.

    Args:
        steps: the most steps of all cores.
    """
    systems = {name: [System(objective, place) for place in places] for name, places in objective.places.items()}
    values = dict(descent.values)
    model = objective.model(values)
    loss = objective.loss(model)
    merit = objective.merit(loss, values)
    losses = [loss]
    least = objective.rounding * objective.power
    damping = torch.full_like(loss, 1e-3)
    still = loss <= least
    quiet = torch.zeros_like(loss)
    matrix = GaussMatrix(objective)
    written_out = matrix.written_out(loss.shape[1])
    for _ in range(steps):
        # the step, by a factor of the damped Gauss-Newton matrix, or by conjugate gradients on it
        residual = objective.apply_metric(objective.target[:, None] - model)
        gradient = pull_back(objective, residual, values)
        forcing = ratio(loss, objective.power.expand_as(loss)).clamp(1e-12, 1e-2)
        weights = ridge_weights(systems, values, objective.ridge(loss, values))
        gradient = {name: gradient[name] - weight * values[name] for name, weight in weights.items()} or gradient
        if written_out:
            factor = matrix.factor(values, damping.clamp(min=LEAST_DAMPING), weights)
            step = factor.solve(gradient)
            change = _push_forward(objective, step, values)
            trial = _along_the_valley(objective, factor, step, change, values=values, model=model)
        else:
            blocks = {name: _block(each, values, damping, weights.get(name)) for name, each in systems.items()}
            step = _solve(objective, values, gradient, blocks=blocks, damping=damping, forcing=forcing)
            change = _push_forward(objective, step, values)
            trial = {name: values[name] + step[name] for name in values}
        # what the step gains, compared with what the quadratic model predicts
        trial_model = objective.model(trial)
        trial_loss = objective.loss(trial_model)
        trial_merit = objective.merit(trial_loss, trial)
        expected = 2 * inner(gradient, step) - total(products(change, objective.apply_metric(change)))
        if weights:
            expected = expected - inner({name: weight * step[name] for name, weight in weights.items()}, step)
        gain = torch.where(expected > 0, ratio((merit - trial_merit) * ratio(loss, merit), expected), -1.0)
        # less damping where the model was right, more where it was not; only better steps are taken
        better = trial_merit < merit
        damping = torch.where(gain > 0.75, damping / 5, torch.where(gain < 0.25, damping * 4, damping))
        damping = damping.clamp(1e-15, 1e8)
        quiet = torch.where(better & (merit - trial_merit > QUIET * merit), 0, quiet + 1)
        values = pick(better, trial, values)
        model = torch.where(spread(better, model), trial_model, model)
        loss = torch.where(better, trial_loss, loss)
        merit = torch.where(better, trial_merit, merit)
        losses.append(loss)
        still = (loss <= least) | (quiet >= 4)
        if bool((still.all(1) | objective.fits_exactly(loss)).all()):
            break
    return descent.then("Gauss-Newton", values, losses, merit=merit, still=still)


def ridge_weights(systems: Mapping[str, Sequence[System]], values: Cores, ridge: Tensor | None) -> Cores:
    """What the ridge adds to the diagonal of the matrix, for each core over all its occurrences; empty without one."""
    if ridge is None:
        return {}
    return {
        name: reduce(torch.add, [system.weights(ridge, values) for system in several])
        for name, several in systems.items()
    }


def _along_the_valley(
    objective: Objective, factor: StepFactor, step: Cores, change: Tensor, *, values: Cores, model: Tensor
) -> Cores:
    """The cores after a step with its second order: a parabola follows a bent valley further than a line.

    This is geodesic acceleration (Transtrum, Machta, Sethna 2011): the second derivative of the network along the step
    is a residual that the same matrix removes. Where the bend is as long as the step, the line is taken.
    """
    ahead = objective.model({name: values[name] + PROBE * step[name] for name in values})
    bend = ((ahead - model) / PROBE - change) * (2 / PROBE)
    pulled = pull_back(objective, objective.apply_metric(bend), values)
    second = factor.solve({name: -core for name, core in pulled.items()})
    slight = (2 * inner(second, second).sqrt() <= BEND * inner(step, step).sqrt()).to(change)
    return {name: values[name] + core + spread(slight, core) * second[name] / 2 for name, core in step.items()}


def _push_forward(objective: Objective, step: Mapping[str, Tensor], values: Cores) -> Tensor:
    """The derivative of the network along `step`; shape (layers, starts, *sizes of output)."""
    parts = []
    for name, places in objective.places.items():
        for place in places:
            term = objective.term_at(place)
            operands = objective.operands(values, term)
            operands[term.index(place)] = (step[name], (*BATCH, *objective.occurrences[place].labels))
            parts.append(objective.contract_to(operands, objective.output))
    return sum(parts[1:], parts[0])


def pull_back(objective: Objective, residual: Tensor, values: Cores) -> Cores:
    """The adjoint of `_push_forward`: for each core, over all its occurrences."""
    pulled = {}
    for name, places in objective.places.items():
        parts = [objective.environment(residual, place, values) for place in places]
        pulled[name] = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
    return pulled


def _solve(
    objective: Objective,
    values: Cores,
    gradient: Cores,
    *,
    blocks: Mapping[str, _Block],
    damping: Tensor,
    forcing: Tensor,
) -> Cores:
    """Solve (J^T J + damping * scale) step = gradient by preconditioned conjugate gradients."""

    def product(step: Cores) -> Cores:
        pulled = pull_back(objective, objective.apply_metric(_push_forward(objective, step, values)), values)
        return {name: pulled[name] + blocks[name].added(damping, step[name]) * step[name] for name in step}

    def preconditioned(residual: Cores) -> Cores:
        return {name: blocks[name].solve(core) for name, core in residual.items()}

    step = {name: torch.zeros_like(core) for name, core in gradient.items()}
    residual = dict(gradient)
    direction = improved = preconditioned(residual)
    power = first = inner(residual, improved)
    for _ in range(INNER_ROUNDS):
        moved = product(direction)
        length = ratio(power, inner(direction, moved))
        step = {name: step[name] + spread(length, direction[name]) * direction[name] for name in step}
        residual = {name: residual[name] - spread(length, moved[name]) * moved[name] for name in step}
        improved = preconditioned(residual)
        before, power = power, inner(residual, improved)
        if bool((power <= forcing**2 * first).all()):
            break
        turn = ratio(power, before)
        direction = {name: improved[name] + spread(turn, direction[name]) * direction[name] for name in step}
    return step


@dataclass(frozen=True)
class _Block:
    """The block of one core in J^T J.

    Attributes:
        scale: the mean of its diagonal; shape (layers, starts).
        factor: its Cholesky factor with damping; None where the block is large, or has no such factor.
        weights: of the ridge, in the axes of the core.
    """

    scale: Tensor
    system: System
    factor: Tensor | None
    weights: Tensor | None

    def added(self, damping: Tensor, core: Tensor) -> Tensor:
        """What is added to the diagonal of the block, in the axes of the core or of size 1."""
        damping = spread(damping * self.scale, core)
        return damping if self.weights is None else damping + self.weights

    def solve(self, core: Tensor) -> Tensor:
        if self.factor is None:
            return spread(ratio(torch.ones_like(self.scale), self.scale), core) * core
        return self.system.as_core(torch.cholesky_solve(self.system.as_matrix(core), self.factor))


def _block(systems: Sequence[System], values: Cores, damping: Tensor, weights: Tensor | None) -> _Block:
    first = systems[0]
    # occurrences of a tied core are added where their labels have the same roles; what couples them is left out
    alike = len({_roles(system) for system in systems}) == 1
    if not alike or first.unknowns > LARGEST_BLOCK or not first.written_out(damping.shape[1]):
        return _Block(torch.ones_like(damping), first, None, weights)
    gram = torch.stack([system.gram(values) for system in systems]).sum(0)
    gram = gram.expand(*damping.shape, *gram.shape[2:])  # beside constants alone it is the same for all starts
    scale = gram.diagonal(dim1=-2, dim2=-1).real.flatten(2).mean(2)
    extra = (damping.clamp(min=LEAST_DAMPING) * scale).clamp(min=torch.finfo(scale.dtype).tiny)
    if weights is not None:
        gram = first.with_diagonal(gram, weights)
    factor, failed = damped_cholesky(gram, spread(extra, gram[..., 0]))
    return _Block(scale, first, None if bool(failed.any()) else factor, weights)


def _roles(system: System) -> tuple[tuple[int, ...], ...]:
    """Which axes of the core are batch, coupled and free."""
    return tuple(tuple(map(system.labels.index, part)) for part in (system.batch, system.coupled, system.free))


def inner(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """The inner product of all cores together; shape (layers, starts)."""
    return torch.stack([total(products(one[name], other[name])) for name in one]).sum(0)
