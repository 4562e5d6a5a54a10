"""Alternating least squares: each core in turn becomes the best one while the others stay, so the loss never grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from ..tensors import products
from .constraints import ORTHONORMAL
from .objective import Objective
from .parts import Part, divided
from .systems import System

Cores: TypeAlias = dict[str, Tensor]
"""The elements of each free core by name; shape (layers, starts, *sizes)."""

FIRST_MOMENTUM, MORE_MOMENTUM = 0.5, 1.05
"""How far ahead a sweep starts, in steps of the sweep before, and by which factor this grows while the loss falls."""

CANCELLED = 1e-10
"""Below this part of ||target||^2 a loss is computed from the residual: a difference of squares is too inexact."""


@dataclass(frozen=True, eq=False)
class Descent:
    """The state of a descent of all starts of all layers side by side.

    Attributes:
        values: of the free cores.
        loss: ||target - network||^2; shape (layers, starts).
        merit: what is minimised, see `Objective.merit`; shape (layers, starts).
        still: whether a start came to a stop before its sweeps were used up; shape (layers, starts).
        log: the least loss of each layer after each sweep or step; each of shape (layers,).
        methods: names of the methods, in the order in which they were used.
    """

    values: Cores
    loss: Tensor
    merit: Tensor
    still: Tensor
    log: tuple[Tensor, ...] = ()
    methods: tuple[str, ...] = ()

    @classmethod
    def begin(cls, objective: Objective, values: Cores, *methods: str) -> Descent:
        loss = objective.loss_of(values)
        still = torch.zeros_like(loss, dtype=torch.bool)
        return cls(values, loss, objective.merit(loss, values), still, methods=methods)

    def then(self, method: str, values: Cores, losses: Sequence[Tensor], *, merit: Tensor, still: Tensor) -> Descent:
        """The state after a method, whose losses all have the shape of `loss`."""
        log = tuple([loss.min(1).values for loss in losses])
        methods = self.methods if method in self.methods else (*self.methods, method)
        return Descent(values, losses[-1], merit, still, (*self.log, *log), methods)

    def best(self, count: int) -> Descent:
        """The `count` best starts of each layer, the best first."""
        order = self.merit.nan_to_num(nan=torch.inf).argsort(dim=1, stable=True)[:, :count]
        rows = torch.arange(len(order), device=order.device)[:, None]
        values = {name: core[rows, order] for name, core in self.values.items()}
        loss, merit, still = self.loss[rows, order], self.merit[rows, order], self.still[rows, order]
        return replace(self, values=values, loss=loss, merit=merit, still=still)

    def of_layers(self, layers: Tensor) -> Descent:
        values = {name: core[layers] for name, core in self.values.items()}
        log = tuple(loss[layers] for loss in self.log)
        loss, merit, still = self.loss[layers], self.merit[layers], self.still[layers]
        return replace(self, values=values, loss=loss, merit=merit, still=still, log=log)


def alternate(objective: Objective, descent: Descent, *, sweeps: int, tolerance: float) -> Descent:
    """Solve for one core after another, and start each sweep a little ahead in the direction of the sweep before it.

    This momentum grows while the merit falls. Where a sweep ends with a larger merit, the cores before it are kept and
    the momentum is halved (Mitchell, Ye, De Sterck 2020). So the merit never grows, and valleys take half as many
    sweeps.

    Args:
        sweeps: the most sweeps over all cores.
        tolerance: a start stands still where a sweep takes less than this part of its merit. The descent ends when all
            starts of each layer stand still, or one of them is exact to rounding.
    """
    systems = [System(objective, places[0]) for places in objective.places.values()]
    of_terms = [[system for system in systems if system.position in term] for term in objective.terms]
    parts = [part for several in of_terms if several for part in divided(several)]
    least = objective.rounding * objective.power
    before = descent.values
    stable = objective.stability > 0  # otherwise the merit is the loss
    values, loss = _sweep(objective, parts, before, objective.ridge(descent.loss, before) if stable else None)
    losses, merit = [loss], objective.merit(loss, values) if stable else loss
    momentum = torch.zeros_like(loss)
    still = torch.zeros_like(loss, dtype=torch.bool)
    for sweep in range(1, sweeps):
        ahead = {name: core + spread(momentum, core) * (core - before[name]) for name, core in values.items()}
        swept, loss = _sweep(objective, parts, ahead, objective.ridge(losses[-1], values) if stable else None)
        after = objective.merit(loss, swept) if stable else loss
        lower = after <= merit
        # the first two sweeps change much, and show no direction
        before = values if sweep > 1 else swept
        values = pick(lower, swept, values)
        losses.append(torch.where(lower, loss, losses[-1]))
        still = lower & (merit - after <= tolerance * merit) | still & ~lower
        merit = torch.where(lower, after, merit)
        still |= losses[-1] <= least
        faster = (momentum * MORE_MOMENTUM).clamp(FIRST_MOMENTUM, 1.0)
        momentum = torch.where(lower, faster, momentum / 2) if sweep > 1 else torch.zeros_like(loss)
        if bool((still.all(1) | (losses[-1] <= least).any(1)).all()):
            break
    return descent.then("alternating least squares", values, losses, merit=merit, still=still)


def _sweep(objective: Objective, parts: list[Part], values: Cores, ridge: Tensor | None) -> tuple[Cores, Tensor]:
    """One sweep over all parts. For each part, the target is contracted once with what is outside of it."""
    values = dict(values)
    for part in parts:
        solved = part.solve(values, ridge)
    if len(objective.terms) > 1:
        values = balance(objective, values)
        return values, objective.loss_of(values)
    # ||target - network||^2 as a difference of squares, which is cheaper and less exact than the residual
    taken = products(solved.core, solved.image - 2 * solved.right)
    loss = (objective.power + taken.reshape(*taken.shape[:2], -1).sum(2)).clamp(min=0)
    if bool((loss <= CANCELLED * objective.power).any()):
        loss = objective.loss_of(values)
    return balance(objective, values), loss


def pick(which: Tensor, ones: Cores, others: Cores) -> Cores:
    """The cores of `ones` for the starts where `which` is true, those of `others` elsewhere."""
    return {name: torch.where(spread(which, core), core, others[name]) for name, core in ones.items()}


def spread(numbers: Tensor, like: Tensor) -> Tensor:
    """Give numbers, which belong to the first axes of `like`, an axis of size 1 for each of its other axes."""
    return numbers.reshape(*numbers.shape, *[1] * (like.ndim - numbers.ndim))


def balance(objective: Objective, values: Mapping[str, Tensor]) -> Cores:
    """Give all cores of a term one norm, so that no system is ill-conditioned by their scales.

    Tied cores stay as they are, and so do orthonormal ones.
    """
    if objective.tied:
        return dict(values)
    balanced = dict(values)
    for term in objective.terms:
        names = [objective.occurrences[position].name for position in term]
        cores = {n: values[n] for n in names if n in values and objective.constraints.get(n) != ORTHONORMAL}
        if len(cores) < 2:
            continue
        norms = torch.stack(
            [torch.linalg.vector_norm(core.reshape(*core.shape[:2], -1), dim=2) for core in cores.values()]
        )
        logs = norms.log()
        scales = torch.where((norms > 0).all(0), (logs.mean(0) - logs).exp(), 1.0)
        balanced |= {
            name: core * spread(scale, core) for (name, core), scale in zip(cores.items(), scales, strict=True)
        }
    return balanced
