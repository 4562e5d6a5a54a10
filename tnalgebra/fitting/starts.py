"""Where a search begins: random cores, or cores of a caller that are grown to their sizes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import ValuesError
from ..tensors import squares
from .als import Cores, balance, spread
from .objective import Objective, total


def guesses(objective: Objective, starts: int, generator: torch.Generator) -> Cores:
    """Random cores of equal norms, whose network has about the norm of the target."""
    reference = objective.target
    values = {
        name: torch.randn(starts, *shape, dtype=_double(reference), generator=generator)
        .to(reference)
        .expand(objective.layers, -1, *[-1] * len(shape))
        for name, shape in objective.free.items()
    }
    values = balance(objective, values)
    norms = objective.norms(values)
    wanted = total(squares(objective.target[:, None])).sqrt()
    scale = torch.where(norms > 0, wanted / norms, 1.0)
    roots = objective.roots or dict.fromkeys(values, 1 / objective.factors)
    return {name: core * spread(scale ** roots[name], core) for name, core in values.items()}


def _double(like: Tensor) -> torch.dtype:
    return torch.complex128 if like.is_complex() else torch.float64


def grow_start(objective: Objective, start: Mapping[str, Tensor], seed: int) -> Cores:
    """Grow given cores to the sizes of the objective, without a change of the network's value, as the only start.

    New values of a bond are 0 on the first core that has the bond, and small random numbers on the others, so that the
    next sweep can use them.

    Raises:
        ValuesError: a core is missing or larger than in the objective, or the value of the network is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    values: Cores = {}
    emptied: set[str] = set()
    for name, shape in objective.free.items():
        if name not in start:
            raise ValuesError(f"the start has no core {name!r}", cores=" ".join(start) or "none")
        core = start[name].to(objective.target)
        if core.ndim != len(shape) or any(old > new for old, new in zip(core.shape, shape, strict=True)):
            raise ValuesError(
                f"the core {name!r} of the start has shape {tuple(core.shape)}", needed=f"at most {shape}"
            )
        labels = objective.occurrences[objective.places[name][0]].labels
        new = {label for label, old, size in zip(labels, core.shape, shape, strict=True) if old < size}
        scale = 0.0 if new - emptied else 1e-2 * float(core.abs().mean())
        emptied |= new
        noise = scale * torch.randn(shape, dtype=_double(core), generator=generator).to(core)
        noise[tuple(slice(old) for old in core.shape)] = core
        values[name] = noise.expand(objective.layers, 1, *shape).contiguous()
    if not bool(objective.loss_of(values).isfinite().all()):
        raise ValuesError("the network of the start is not finite", fix="cores whose network is near the kernel")
    return values
