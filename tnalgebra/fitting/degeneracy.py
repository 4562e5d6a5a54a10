"""Components that cancel each other: how far they do, and the error-preserving correction that makes them smaller.

A component is the term of a network at one value of every bond; each term of a sum has its own. Where a best
approximation does not exist, as for CP and for loops, a search makes components ever larger that cancel each other (de
Silva and Lim 2008). Then rounding of the cores is amplified, and training such a network does not converge. The
correction solves

    min sum over components of ||component||^2   subject to   ||target - network||^2 <= bound

for one core after another (Phan et al., "Stable low-rank tensor decomposition for compression of convolutional neural
network", ECCV 2020, section 3). As functions of one core both sides are quadratic and the left one is diagonal, so a
core is a ridge regression whose weight is the root of a secular equation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..tensors import squares
from .als import balance, spread
from .objective import Objective, total
from .systems import System

SWEEPS = 100
"""The most sweeps over all cores."""

_TOLERANCE = 1e-4
"""The correction stops where a sweep takes less than this part of the squared components, in every start."""

LARGEST = 2048
"""The most unknowns of a core that is corrected: the eigendecomposition of its system takes seconds there. Larger cores
stay as they are, and the other cores are corrected around them."""

PARTS, ROUNDS = 32, 7
"""At how many points a secular equation is evaluated at once, and how often: an interval of 92 in log(weight) becomes
one of 3e-9."""

_MARGIN = 1e-6
"""Part of the distance to the bound that is left to rounding."""


def degeneracy_of(objective: Objective, values: Mapping[str, Tensor]) -> float:
    """Measure how far components cancel each other: sqrt(sum of ||component||^2) / ||target||, without the metric.

    Args:
        objective: of one layer.
        values: of one start, with both axes in front.

    Returns:
        A number that is far above 1 where large components cancel each other; 0 for a target of zeros.
    """
    power = squares(objective.target).sum()
    return float((objective.squared_components(values) / power).sqrt().squeeze()) if bool(power > 0) else 0.0


def shrink_components(
    objective: Objective,
    values: Mapping[str, Tensor],
    *,
    bound: Tensor | float,
    sweeps: int = SWEEPS,
    tolerance: float = _TOLERANCE,
) -> dict[str, Tensor]:
    """Find cores with smaller components whose error stays within a bound.

    Args:
        objective: with or without a metric. Tied cores stay as they are.
        values: of all free cores; shape (layers, starts, *sizes) each.
        bound: the largest ||target - network||^2 in the metric; broadcasts to (layers, starts). A start whose error is
            above it may keep that error.
        sweeps: the most sweeps over all cores.

    Returns:
        Cores of the shapes in `values`. The sum of their squared components is nowhere larger than before.
    """
    values = dict(values)
    loss = objective.loss_of(values)
    limit = torch.maximum(torch.as_tensor(bound, dtype=loss.dtype, device=loss.device).expand_as(loss), loss)
    systems = [System(objective, places[0]) for places in objective.places.values() if len(places) == 1]
    systems = [each for each in systems if each.unknowns <= LARGEST and each.written_out(loss.shape[1])]
    now = objective.squared_components(values)
    for _ in range(sweeps if systems else 0):
        before = now
        for system in systems:
            values[system.name] = _shrink(system, values, limit)
        values = balance(objective, values)
        now = objective.squared_components(values)
        if not bool((before - now > tolerance * before).any()):
            break
    return values


def _shrink(system: System, values: Mapping[str, Tensor], limit: Tensor) -> Tensor:
    """Find one core: min sum(weight * core^2) where ||target - network||^2 <= limit, while all other cores stay."""
    objective, name = system.objective, system.name
    present = values[name]
    weight = objective.squared_components(values, system.position)
    # where the weight is 0, the other cores are 0, and the core has no effect
    root = torch.where(weight > 0, weight, 1.0).sqrt().expand_as(present)
    scale = system.as_matrix(root)[..., :1]
    # the system in the eigenvectors of its gram matrix, for the core multiplied with the root of the weight
    gram = system.gram(values) / (scale * scale.mT)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    least = eigenvalues.shape[-1] * torch.finfo(gram.dtype).eps * eigenvalues[..., -1:].clamp(min=0)
    seen = eigenvalues > least  # the other eigenvalues are only rounding
    inverse = torch.where(seen, 1 / torch.where(seen, eigenvalues, 1.0), 0.0)
    environment = objective.environment(objective.pulled_for(system.position, values), system.position, values)
    right = vectors.mH @ (system.as_matrix(environment) / scale)
    right = torch.where(seen[..., None], right, 0.0)

    def core(ridge: Tensor) -> Tensor:
        damped = torch.where(seen, 1 / torch.where(seen, eigenvalues + spread(ridge, eigenvalues), 1.0), 0.0)
        return system.as_core((vectors @ (damped[..., None] * right)) / scale)

    def loss(trial: Tensor) -> Tensor:
        return objective.loss_of({**values, name: trial})

    nearest = core(torch.zeros_like(limit))
    room = (1 - _MARGIN) * (limit - loss(nearest)).clamp(min=0)
    power = squares(right).sum(-1) * inverse  # what each eigenvector takes from the loss

    def excess(ridges: Tensor) -> Tensor:
        """||target - network||^2 above its minimum, for several ridges of each start: 0 at ridge 0, and rising."""
        ridges = ridges[:, :, None]
        part = ridges / torch.where(seen.flatten(2)[..., None], eigenvalues.flatten(2)[..., None] + ridges, 1.0)
        return (torch.where(seen, power, 0.0).flatten(2)[..., None] * part.square()).sum(2)

    # the largest ridge within the room, by sections of the interval of its logarithm
    largest = eigenvalues.flatten(2).amax(2).clamp(min=torch.finfo(gram.dtype).tiny).log()
    low, high = largest - 46, largest + 46
    steps = torch.linspace(0, 1, PARTS, dtype=eigenvalues.dtype, device=gram.device)
    for _ in range(ROUNDS):
        points = low[..., None] + (high - low)[..., None] * steps
        within = (excess(points.exp()) <= room[..., None]).sum(-1, keepdim=True).clamp(1, PARTS - 1)
        low, high = points.gather(-1, within - 1)[..., 0], points.gather(-1, within)[..., 0]
    smaller = core(low.exp())
    better = (loss(smaller) <= limit) & (total(squares(smaller * root)) < total(squares(present * root)))
    return torch.where(spread(better, present), smaller, present).contiguous()
