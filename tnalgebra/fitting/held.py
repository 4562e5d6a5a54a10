"""The end of a fit: cores in the type in which they are held, and errors that are measured for these numbers.

Where components cancel each other, rounding of the cores is amplified: in bfloat16, cores of degeneracy 100 lose about
half of the kernel. Then cores with a larger error before the rounding, and smaller components, have a smaller one after
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch

from ..networks import Network
from ..tensors import in_precision
from .als import Cores
from .constraints import ORTHONORMAL
from .degeneracy import degeneracy_of, shrink_components
from .gauge import balanced
from .objective import Objective
from .report import FitReport, SearchResult

SMALL_LOSS = 1e-3
"""Where rounding makes an error larger by less than this part, cores are not changed because of it."""

PARTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Which part of what rounding adds to an error may be added to it before the rounding, so that components shrink."""

CORRECTION_SWEEPS = 20
"""The most sweeps of a correction."""

Errors: TypeAlias = tuple[float, float | None]
"""The relative error in the Frobenius norm, and that of the output where there is a metric."""


def hold(
    objective: Objective,
    cores: Cores,
    report: FitReport,
    *,
    right: Network,
    scale: float,
    measure: Callable[[Cores], Errors],
) -> SearchResult:
    """Bring cores to the type in which they are held.

    Args:
        objective: of this layer alone; its `kept` is the type.
        cores: the end of the search.
        scale: of the kernel, by which the target was divided; 1 where the objective has no `roots`.
        measure: the errors of cores of the kernel itself.

    Returns:
        Balanced cores, and the report with their degeneracy and errors.
    """
    fixed = {name for name, kind in objective.constraints.items() if kind == ORTHONORMAL}
    if not bool(objective.target.any()):  # a descent towards zero would never end
        cores = {name: core if name in fixed else torch.zeros_like(core) for name, core in cores.items()}
        report = FitReport(report.method, (0.0,), (0.0,), converged=True)
    roots = objective.roots or dict.fromkeys(cores, 0.0)
    shared = {name: 1.0 if name in fixed else scale ** roots[name] for name in cores}
    finished = partial(_finished, objective, right, shared)
    exact, held = finished(cores)
    errors = measure(held)
    before = after = _criterion(errors)
    degeneracy = degeneracy_of(objective, _in_batch(objective, exact))
    if exact and (objective.metric is not None or degeneracy * _rounding(objective) > SMALL_LOSS):
        before = _criterion(measure({name: core * shared[name] for name, core in exact.items()}))
    rounding = math.sqrt(max(after**2 - before**2, 0.0))
    correctable = not objective.tied and not objective.constraints
    if correctable and after > (1 + SMALL_LOSS) * before and rounding > SMALL_LOSS:
        start = _in_batch(objective, cores)
        objective = objective.of_sizes(start)
        for smaller in _smaller(objective, start, rounding):
            trial, rounded = finished({name: core[0, 0] for name, core in smaller.items()})
            measured = measure(rounded)
            if not _criterion(measured) < after:
                break
            exact, held, errors, after = trial, rounded, measured, _criterion(measured)
            degeneracy = degeneracy_of(objective, _in_batch(objective, exact))
            report = replace(report, method=report.method.removesuffix(_CORRECTED) + _CORRECTED)
    return held, replace(report, degeneracy=degeneracy, relative_error=errors[0], output_error=errors[1])


def _finished(objective: Objective, right: Network, shared: Mapping[str, float], cores: Cores) -> tuple[Cores, Cores]:
    """Balanced cores in float64, and these with their shares of the scale, in the type in which they are held."""
    exact = {name: in_precision(core, torch.float64) for name, core in cores.items()}
    exact |= balanced(right, {name: core for name, core in exact.items() if name not in objective.constraints})
    return exact, {name: (core * shared[name]).to(objective.kept) for name, core in exact.items()}


def _smaller(objective: Objective, start: Cores, rounding: float) -> Iterator[Cores]:
    """Cores with ever smaller components, whose errors before the rounding are larger by ever larger parts of it."""
    loss = objective.loss_of(start)
    for part in PARTS:
        bound = loss + (part * rounding) ** 2 * objective.power
        yield shrink_components(objective, start, bound=bound, sweeps=CORRECTION_SWEEPS)


def _in_batch(objective: Objective, cores: Cores) -> Cores:
    return {name: core[None, None].to(objective.target) for name, core in cores.items()}


def _rounding(objective: Objective) -> float:
    """How much of ||target|| the rounding of the cores may change at the most, for a degeneracy of 1.

    Each component changes by less than `factors` roundings of its norm, and the norms of n components add up to at most
    sqrt(n) times the root of the sum of their squares.
    """
    if objective.kept in (torch.float64, objective.target.dtype):
        return 0.0
    components = 0
    for term in objective.terms:
        labels = {label for position in term for label in objective.occurrences[position].labels}
        components += math.prod([objective.sizes.get(label, 1) for label in labels - {*objective.output}])
    return objective.factors * torch.finfo(objective.kept).eps * math.sqrt(components)


_CORRECTED = ", corrected for rounding"


def _criterion(errors: Errors) -> float:
    return errors[0] if errors[1] is None else errors[1]
