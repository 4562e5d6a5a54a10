"""Alternating least squares: each core in turn is the best for the others, so the loss never grows."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from .objective import Problem, total
from .systems import Half, System

Values = dict[str, Tensor]


FIRST_MOMENTUM, MORE_MOMENTUM = 0.5, 1.05
"""How far ahead a sweep starts, in steps of the last one, and by what that grows at each sweep that goes down."""

MOST_SPLIT = 8
"""Cores up to which all ways to part them are tried."""

CANCELLED = 1e-10
"""Part of the target's square below which a loss is taken from the residual: a difference of squares has lost it."""


@dataclass(frozen=True)
class Descent:
    """Where a descent ended, and how.

    values: free core -> shape (layers, starts, *sizes).
    losses: ||target - network||^2 after each sweep; each of shape (layers, starts).
    converged: whether it stood still, rather than used up its sweeps; shape (layers, starts).
    """

    values: Values
    losses: tuple[Tensor, ...]
    converged: Tensor


def alternate(problem: Problem, values: Values, *, sweeps: int, tolerance: float) -> Descent:
    """Solve for one core after another; each sweep starts a little ahead, along the way the last one went.

    The momentum grows while the loss falls. Where a sweep ends higher, the cores are as they were before it, and the
    momentum halves (Mitchell, Ye, De Sterck 2020), so the loss never grows, and valleys take half as many sweeps.

    Args:
        values: the start, shape (layers, starts, *sizes) each.
        tolerance: stop where a sweep takes less than this part of the loss, in every start, or where some start is
            exact to rounding.
    """
    parts = _parts([System(problem, places[0]) for places in problem.places.values()])
    before = values
    values, loss = _swept(problem, parts, values)
    losses = [loss]
    momentum = torch.zeros_like(loss)
    still = torch.zeros_like(loss, dtype=torch.bool)
    for sweep in range(1, sweeps):
        ahead = {name: core + _shaped(momentum, core) * (core - before[name]) for name, core in values.items()}
        found, loss = _swept(problem, parts, ahead)
        lower = loss <= losses[-1]
        # the first two sweeps go far, and tell no direction
        before = values if sweep > 1 else found
        values = chosen(lower, found, values)
        losses.append(torch.where(lower, loss, losses[-1]))
        still = lower & (losses[-2] - losses[-1] <= tolerance * losses[-2]) | still & ~lower
        still |= losses[-1] <= floor(problem) * problem.power
        faster = (momentum * MORE_MOMENTUM).clamp(FIRST_MOMENTUM, 1.0)
        momentum = torch.where(lower, faster, momentum / 2) if sweep > 1 else torch.zeros_like(loss)
        if bool((still.all(1) | exact(losses[-1], problem)).all()):
            break
    return Descent(values, tuple(losses), still)


Parts: TypeAlias = list[list[System]]


def _parts(systems: list[System]) -> Parts:
    """Two parts of the cores whose common environments are small; each core alone if there are none such.

    Of a CP of `out in kh kw` with few components, `out kh` and `in kw`: then a sweep goes over the target twice, not
    four times.
    """
    problem = systems[0].problem
    sizes = dict(zip(problem.output, problem.target.shape[1:], strict=True))
    for system in systems:
        sizes |= system.sizes
    best, least = [[system] for system in systems], problem.target[0].numel()
    if len(systems) > MOST_SPLIT:
        return best
    for chosen in range(1, 2 ** (len(systems) - 1)):
        parts = [[system for i, system in enumerate(systems) if (chosen >> i & 1) == side] for side in (0, 1)]
        labels = (problem.shared_labels([system.position for system in part]) for part in parts if len(part) > 1)
        elements = sum(prod(sizes.get(label, 1) for label in each) for each in labels)
        if max(map(len, parts)) > 1 and elements < least:
            best, least = parts, elements
    return best


def _swept(problem: Problem, parts: Parts, values: Values) -> tuple[Values, Tensor]:
    """One sweep, part after part; the target is contracted once with what is outside a part."""
    values = dict(values)
    for part in parts:
        positions = tuple(system.position for system in part)
        half = None if len(part) == 1 else Half(positions, problem.shared(positions, values))
        for system in part:
            solved = system.solved(values, half)
            values[problem.occurrences[system.position].name] = solved.core
    loss = solved.loss(problem.power)
    if bool((loss <= CANCELLED * problem.power).any()):
        loss = problem.loss(problem.model(values))
    balance(problem, values)
    return values, loss


def chosen(which: Tensor, ones: Values, others: Values) -> Values:
    """The cores of `ones` for the starts where `which` is true, those of `others` elsewhere."""
    return {name: torch.where(_shaped(which, core), core, others[name]) for name, core in ones.items()}


def _shaped(numbers: Tensor, core: Tensor) -> Tensor:
    """Numbers of shape (layers, starts), to be multiplied with a core."""
    return numbers.reshape(*numbers.shape, *[1] * (core.ndim - 2))


def floor(problem: Problem) -> float:
    """The squared relative error that is nothing but rounding."""
    return (50 * torch.finfo(problem.target.dtype).eps) ** 2


def exact(loss: Tensor, problem: Problem) -> Tensor:
    """Whether some start has nothing left to gain; shape (layers,)."""
    return (loss <= floor(problem) * problem.power).any(1)


def balance(problem: Problem, values: Values) -> None:
    """Give all cores one norm, so that no system is ill for want of scale. Ties stay as they are."""
    if problem.tied or len(values) < 2:
        return
    norms = {name: total(core.square()).sqrt() for name, core in values.items()}
    mean = torch.stack([norm.log() for norm in norms.values()]).mean(0).exp()
    for name, core in values.items():
        scale = torch.where((norms[name] > 0) & (mean > 0), mean / norms[name], 1.0)
        values[name] = core * _shaped(scale, core)
