"""The best cores for an objective, in the Frobenius norm or in a metric, and the errors of what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..errors import ValuesError
from ..networks import Network, shape_of
from ..tensors import in_precision, is_finite, relative
from .als import Cores
from .linear import is_linear, solve_core
from .metric import Metric
from .objective import Objective
from .price import within_price
from .report import SearchResult, Settings
from .search import (
    FIRST_SWEEPS,
    MORE_SWEEPS,
    follow_starts,
    pick_nearer,
    refine,
    refine_in_metric,
    search_from_guesses,
    search_tree,
)
from .starts import grow_start
from .trees import CoreTree
from .whitening import absorb_metric, absorbing_core, release_metric, take_up, whiten, whitening_factors


def search_cores(
    objective: Objective,
    start: Mapping[str, Tensor] | None,
    *,
    metrics: Sequence[Metric],
    tree: CoreTree | None,
    ranks: Mapping[str, int],
    settings: Settings,
) -> list[SearchResult]:
    """The best cores for each layer of the objective, in its metric."""
    search = partial(_search_in_frobenius, tree=tree, ranks=ranks, settings=settings)
    absorbing, linear = absorbing_core(objective), tree is None and is_linear(objective)
    if metrics and (linear or absorbing is not None):
        factor = torch.stack([(metric.factor() / math.sqrt(metric.unit)).to(objective.target) for metric in metrics])
    if absorbing is not None:
        fits = [
            ({**cores, absorbing: release_metric(objective, cores[absorbing], factor[layer], absorbing)}, report)
            for layer, (cores, report) in enumerate(search(absorb_metric(objective, factor), start))
        ]
    elif metrics:
        solved = solve_core(objective, factor) if linear else None
        fits = solved or _search_in_metric(objective, start, search, settings, is_tree=tree is not None)
    else:
        fits = search(objective, start)
    return fits if linear or tree is not None else within_price(objective, fits, settings)


def _search_in_frobenius(
    objective: Objective,
    start: Mapping[str, Tensor] | None,
    *,
    tree: CoreTree | None,
    ranks: Mapping[str, int],
    settings: Settings,
) -> list[SearchResult]:
    first = None if start is None else grow_start(objective, start, settings.seed)
    solved = solve_core(objective) if tree is None and is_linear(objective) else None
    if solved is not None:
        return solved
    if first is not None:
        return follow_starts(objective, first, settings)
    if tree is None:
        return search_from_guesses(objective, settings)
    return search_tree(objective, tree, ranks, settings)


def _search_in_metric(
    objective: Objective,
    start: Mapping[str, Tensor] | None,
    search: Callable[..., list[SearchResult]],
    settings: Settings,
    *,
    is_tree: bool,
) -> list[SearchResult]:
    """Descend in the metric from a quick fit of the whitened target without it, or from the `start`.

    For a tree, a fit of the target itself is another start, which takes little time.
    """
    search = partial(search, settings=replace(settings, sweeps=min(settings.sweeps, FIRST_SWEEPS + MORE_SWEEPS)))
    factors = whitening_factors(objective)
    inverse = {label: torch.linalg.inv(factor) for label, factor in factors.items()}
    whitened = whiten(objective, factors)

    def take_up_each(fits: list[SearchResult], matrices: Mapping[str, Tensor]) -> list[SearchResult]:
        return [
            (take_up(objective, cores, {label: matrix[layer] for label, matrix in matrices.items()}), report)
            for layer, (cores, report) in enumerate(fits)
        ]

    starts = []
    if start is None:
        starts.append(search(whitened.without_metric(), None))
    if start is not None or is_tree:
        starts.append(take_up_each(search(objective.without_metric(), start), factors))
    nearest = [pick_nearer(whitened, layer, *ends) for layer, ends in enumerate(zip(*starts, strict=True))]
    descend = refine_in_metric if is_tree else refine
    return take_up_each(descend(whitened, nearest, settings, then=", then in the metric"), inverse)


def measure_errors(
    kernel: Tensor, right: Network, cores: Cores, *, metric: Metric | None, objective: Objective
) -> tuple[float, float | None]:
    """The relative error of cores in the Frobenius norm, and that of the output, computed in float64."""
    approximation = objective.model(
        {name: in_precision(core, torch.float64)[None, None] for name, core in cores.items()}
    )[0, 0]
    if not is_finite(approximation):
        fix = "constants of moderate size, dtype=torch.float64"
        raise ValuesError("the fit is not finite", right=right, fix=fix)
    approximation = approximation.reshape(shape_of(right, right.output))
    kernel = in_precision(kernel.detach(), torch.float64).reshape(approximation.shape)
    error = relative(kernel - approximation, kernel)
    if metric is None:
        return error, None
    if metric.cross is None:
        return error, metric.relative(kernel - approximation, kernel, right.output)
    return error, metric.output_error(approximation, right.output)
