"""Alternating least squares: each core in turn is the best for the others, so the loss never grows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import Problem
from .systems import System

Values = dict[str, Tensor]


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
    """Solve for one core after another.

    Args:
        values: the start, shape (layers, starts, *sizes) each.
        tolerance: stop where a sweep takes less than this part of the loss, in every start, or where some start is
            exact to rounding.
    """
    systems = [System(problem, places[0]) for places in problem.places.values()]
    values = dict(values)
    losses: list[Tensor] = []
    still = torch.zeros(next(iter(values.values())).shape[:2], dtype=torch.bool, device=problem.target.device)
    for _ in range(sweeps):
        for system in systems:
            solved = system.solved(values)
            values[problem.occurrences[system.position].name] = solved.core
        balance(problem, values)
        losses.append(solved.loss)
        if len(losses) > 1:
            before, now = losses[-2], losses[-1]
            still = (before - now <= tolerance * before) | (now <= floor(problem) * problem.power)
            if bool((still.all(1) | exact(now, problem)).all()):
                break
    return Descent(values, tuple(losses), still)


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
    norms = {name: torch.linalg.vector_norm(core.flatten(2), dim=2) for name, core in values.items()}
    mean = torch.stack([norm.log() for norm in norms.values()]).mean(0).exp()
    for name, core in values.items():
        scale = torch.where((norms[name] > 0) & (mean > 0), mean / norms[name], 1.0)
        values[name] = core * scale.reshape(*scale.shape, *[1] * (core.ndim - 2))
