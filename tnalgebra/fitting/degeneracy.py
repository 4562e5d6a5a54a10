"""Components that cancel each other: how far they do, and the error-preserving correction that makes them smaller."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..tensors import contract
from .als import balance
from .objective import Objective, total
from .systems import System

SWEEPS = 100
"""Most sweeps over all cores."""

_TOLERANCE = 1e-4
"""The correction stops where a sweep takes less than this part of the squared components, in every start."""

LARGEST = 2048
"""Unknowns up to which a core is corrected: an eigendecomposition of its system takes seconds there. Larger cores stay
as they are, and the others are corrected around them."""

PARTS, ROUNDS = 32, 7
"""Points at which a secular equation is looked at side by side, and how often: an interval of 92 in log(weight) is 3e-9
at the end."""

_MARGIN = 1e-6
"""Part of the room below the bound that is left to rounding."""


def degeneracy_of(objective: Objective, values: Mapping[str, Tensor]) -> float:
    """sqrt(sum of ||component||^2) / ||target|| of the only start of the only layer in `values`; 0 for a target of 0.

    A component is one value of every bond; its squared norm is the network of the squared elements, summed over
    everything.
    """
    if not bool(objective.power.max() > 0):
        return 0.0
    squares = [(tensor.square(), labels) for tensor, labels in objective.operands(values)]
    return float((contract(squares, ()) / objective.power.max()).sqrt())


def squared_components(objective: Objective, values: Mapping[str, Tensor]) -> Tensor:
    """The sum of ||component||^2, shape (layers, starts)."""
    squares = [(tensor.square(), labels) for tensor, labels in objective.operands(values)]
    return objective.contract_to(squares, ())


def squared_rest(objective: Objective, position: int, values: Mapping[str, Tensor]) -> Tensor:
    """What the squared elements of the core at `position` are weighted with in `squared_components`.

    Returns:
        Shape (layers or 1, starts or 1, *sizes of that core): the network of the squares of all others.
    """
    occurrence = objective.occurrences[position]
    squares = [(tensor.square(), labels) for tensor, labels in objective.operands(values, objective.others(position))]
    if not squares:
        core = values[occurrence.name]
        return core.new_ones(1, 1, *core.shape[2:])
    return objective.contract_to(squares, occurrence.labels)


def shrink_components(
    objective: Objective,
    values: Mapping[str, Tensor],
    *,
    bound: Tensor | float,
    sweeps: int = SWEEPS,
    tolerance: float = _TOLERANCE,
) -> dict[str, Tensor]:
    """Cores with smaller components, whose error stays within a bound.

    Args:
        objective: with or without a metric. Tied cores stay as they are.
        values: shape (layers, starts, *sizes) each.
        bound: largest ||target - network||^2, in the metric, that broadcasts to (layers, starts). A start that is
            above it may be as far from the target as it is now.
        sweeps: most sweeps over all cores.

    Returns:
        Cores of the shapes in `values`. `squared_components` of them is nowhere larger than of `values`.
    """
    values = dict(values)
    loss = objective.loss(objective.model(values))
    limit = torch.maximum(torch.as_tensor(bound, dtype=loss.dtype, device=loss.device).expand_as(loss), loss)
    systems = [System(objective, places[0]) for places in objective.places.values() if len(places) == 1]
    systems = [each for each in systems if each.unknowns <= LARGEST and each.written_out(loss.shape[1])]
    now = squared_components(objective, values)
    for _ in range(sweeps if systems else 0):
        before = now
        for system in systems:
            values[system.name] = _smaller(system, values, limit)
        values = balance(objective, values)
        now = squared_components(objective, values)
        if not bool((before - now > tolerance * before).any()):
            break
    return values


def _smaller(system: System, values: Mapping[str, Tensor], limit: Tensor) -> Tensor:
    """One core: min sum(weight * core^2) where ||target - network||^2 <= limit, all other cores fixed."""
    objective = system.objective
    name = system.name
    present = values[name]
    weight = squared_rest(objective, system.position, values)
    # without weight the others are 0 there, and whatever the core is, it does nothing
    root = torch.where(weight > 0, weight, 1.0).sqrt().expand_as(present)
    scale = system.as_matrix(root)[..., :1]
    # the system in the eigenvectors of its gram matrix, for cores that are weighted elementwise
    gram = system.gram(values) / (scale * scale.mT)
    squares, vectors = torch.linalg.eigh(gram)
    least = squares.shape[-1] * torch.finfo(gram.dtype).eps * squares[..., -1:].clamp(min=0)
    seen = squares > least  # what rounding of the others hides is left out
    inverse = torch.where(seen, 1 / torch.where(seen, squares, 1.0), 0.0)
    right = vectors.mT @ (system.as_matrix(system.right_side(values)) / scale)
    right = torch.where(seen[..., None], right, 0.0)

    def core(ridge: Tensor) -> Tensor:
        damped = torch.where(seen, 1 / torch.where(seen, squares + _over(ridge, squares), 1.0), 0.0)
        return system.as_core((vectors @ (damped[..., None] * right)) / scale)

    def loss(there: Tensor) -> Tensor:
        return objective.loss(objective.model({**values, name: there}))

    nearest = core(torch.zeros_like(limit))
    room = (1 - _MARGIN) * (limit - loss(nearest)).clamp(min=0)
    power = right.square().sum(-1) * inverse  # what each eigenvector takes from the loss

    def excess(ridges: Tensor) -> Tensor:
        """||target - network||^2 above its minimum, at several ridges a start; it rises from 0 at no ridge."""
        own, ridges = squares.flatten(2)[..., None], ridges[:, :, None]
        part = ridges / torch.where(seen.flatten(2)[..., None], own + ridges, 1.0)
        return (torch.where(seen, power, 0.0).flatten(2)[..., None] * part.square()).sum(2)

    # the largest ridge within the room, by sections of the interval of its logarithm
    largest = squares.flatten(2).amax(2).clamp(min=torch.finfo(gram.dtype).tiny).log()
    low, high = largest - 46, largest + 46
    steps = torch.linspace(0, 1, PARTS, dtype=gram.dtype, device=gram.device)
    for _ in range(ROUNDS):
        points = low[..., None] + (high - low)[..., None] * steps
        within = (excess(points.exp()) <= room[..., None]).sum(-1, keepdim=True).clamp(1, PARTS - 1)
        low, high = points.gather(-1, within - 1)[..., 0], points.gather(-1, within)[..., 0]
    found = core(low.exp())
    better = (loss(found) <= limit) & (_weighted(found, root) < _weighted(present, root))
    return torch.where(better.reshape(*better.shape, *[1] * (present.ndim - 2)), found, present).contiguous()


def _over(ridge: Tensor, squares: Tensor) -> Tensor:
    """One number a start, with axes for the eigenvalues of each batch value."""
    return ridge.reshape(*ridge.shape, *[1] * (squares.ndim - 2))


def _weighted(core: Tensor, root: Tensor) -> Tensor:
    return total((core * root).square())
