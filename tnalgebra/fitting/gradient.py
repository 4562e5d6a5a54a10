"""A gradient method: L-BFGS on all cores at once, for what the methods that solve systems leave in motion."""

from __future__ import annotations

import torch
from torch import Tensor

from .als import Descent, Values
from .problem import Problem

HISTORY = 30
"""Steps that make L-BFGS's picture of the Hessian."""


def descend(problem: Problem, values: Values, *, steps: int) -> Descent:
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
