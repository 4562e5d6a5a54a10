"""The fit of the cores of any right side: trees by SVDs, all others by descents from several starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..errors import ValuesError
from ..networks import Network, shape_of
from ..tensors import in_precision, is_finite, relative
from .als import Cores, spread
from .chosen_ranks import SCALE, chosen_ranks, objective_of, select_rows, tree_or_none
from .held import hold
from .linear import is_linear, solve_core
from .metric import Metric
from .objective import Objective
from .price import within_price
from .report import SearchResult, Settings
from .search import (
    FIRST_SWEEPS,
    MORE_SWEEPS,
    follow_starts,
    grow_start,
    pick_nearer,
    refine,
    refine_in_metric,
    search_from_guesses,
    search_tree,
)
from .size import Size
from .targets import in_one_type, prepare_target, split_metric
from .tree_spectra import TreeSpectra
from .trees import CoreTree, cores_of


def fit_cores(
    kernels: Sequence[Tensor],
    right: Network,
    size: Size,
    *,
    before: int,
    settings: Settings,
    constants: Mapping[str, Tensor] | None = None,
    metrics: Sequence[Metric] = (),
    start: Mapping[str, Tensor] | None = None,
    kept: torch.dtype = torch.float64,
) -> list[SearchResult]:
    """Fit the cores of a right side to kernels of one shape, side by side.

    Args:
        kernels: one axis for each output label of `right`.
        right: the sizes of its open labels, and of their parts, are known.
        size: see `chosen_ranks`.
        before: parameters of the left side, of which a budget is a fraction.
        constants: tensors of the right side that are held fixed, by name.
        metrics: one for each kernel, over labels of the output of `right`; none for the Frobenius norm.
        start: cores to start from instead of random ones, by name. Smaller ones are grown, which does not change the
            value of their network.
        kept: the type of the cores that are returned. Ends are compared, and errors measured, for cores of this type.

    Returns:
        For each kernel, all tensors of the right side, constants too, and a report of the fit.

    Raises:
        RankError, SizeError: see `chosen_ranks`.
        ValuesError: a kernel is empty or not finite, or it is complex and has a metric; or a constant, a metric or the
            start does not fit.
    """
    kernels, constants, kept = in_one_type(kernels, constants or {}, dtype=settings.dtype, kept=kept)
    # the targets: kernels over their largest element, or what the metric makes of them, in the axes of the cores
    norms: Sequence[Metric | None] = metrics or [None] * len(kernels)
    prepared = [
        prepare_target(kernel, right, metric, settings.dtype) for kernel, metric in zip(kernels, norms, strict=True)
    ]
    # kernels with equal ranks are fitted together
    tree = tree_or_none(right, constants)
    groups: dict[object, list[int]] = {}
    ranks = []
    for number, (target, _) in enumerate(prepared):
        spectra = None if tree is None else TreeSpectra(target, tree)
        ranks.append(chosen_ranks(target, right, size, spectra=spectra, constants=constants, before=before))
        # the best rows of a constant differ between kernels, and a term that is not fitted has the scale of one
        alone = number if constants or not all(map(cores_of, right.terms)) else None
        groups.setdefault((alone, *sorted(ranks[number].items())), []).append(number)
    fits: dict[int, SearchResult] = {}
    for members in groups.values():
        results = _fit_together(
            [kernels[number] for number in members],
            [prepared[number] for number in members],
            right,
            ranks=ranks[members[0]],
            tree=tree,
            settings=settings,
            constants=constants,
            metrics=[metrics[number] for number in members if metrics],
            start=start,
            kept=kept,
        )
        fits |= zip(members, results, strict=True)
    return [fits[number] for number in range(len(kernels))]


def _fit_together(
    kernels: Sequence[Tensor],
    prepared: Sequence[tuple[Tensor, float]],
    right: Network,
    *,
    ranks: Mapping[str, int],
    tree: CoreTree | None,
    settings: Settings,
    constants: Mapping[str, Tensor],
    metrics: Sequence[Metric],
    start: Mapping[str, Tensor] | None,
    kept: torch.dtype,
) -> list[SearchResult]:
    """The fits of kernels with equal ranks; `prepared` has the target of each and its scale."""
    (one, *others), scales = zip(*prepared, strict=True)
    targets = torch.stack([one, *others]) if others else one[None]
    selection = select_rows(constants, right, ranks, targets[0])
    selection = {name: constant.to(kept).to(constant.dtype) for name, constant in selection.items()}
    split = [split_metric(metric, right) for metric in metrics]
    objective = objective_of(targets, right, ranks, constants=selection, metrics=split, scale=scales[0])
    objective = replace(objective, stability=0.0 if tree is not None else settings.stability, kept=kept)
    unscaled = _unscaled(objective, scales)
    exact = replace(objective, constants={n: in_precision(v, torch.float64) for n, v in unscaled.constants.items()})
    if objective.roots is None:  # the scale cannot be shared among the cores
        objective, scales = unscaled, (1.0,) * len(scales)
    first = None
    if start is not None:
        shares = {name: scales[0] ** root for name, root in (objective.roots or {}).items()}
        first = {name: in_precision(core, torch.float64) / shares.get(name, 1.0) for name, core in start.items()}
    results = search_cores(objective, first, metrics=split, tree=tree, ranks=ranks, settings=settings)
    # one kernel after another, the scale is put back and the errors are measured
    fits = []
    for layer, (kernel, scale, (cores, report)) in enumerate(zip(kernels, scales, results, strict=True)):
        part = objective.of_layers(torch.tensor([layer], device=objective.target.device))
        metric = metrics[layer] if metrics else None
        measure = partial(measure_errors, kernel, right, metric=metric, objective=exact)
        cores, report = hold(part, cores, report, right=right, scale=scale, measure=measure)
        fits.append(({**selection, **cores}, report))
    return fits


def _unscaled(objective: Objective, scales: Sequence[float]) -> Objective:
    """The objective for targets that are not divided by the scales of their kernels."""
    target = objective.target
    factors = torch.tensor(scales, dtype=torch.float64, device=target.device).to(target.dtype)
    constants = {name: torch.ones_like(one) if name == SCALE else one for name, one in objective.constants.items()}
    return replace(objective, target=target * spread(factors, target), constants=constants)


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
    absorbing, linear = objective.absorbing(), tree is None and is_linear(objective)
    if metrics and (linear or absorbing is not None):
        factor = torch.stack([metric.factor().to(objective.target) for metric in metrics])
    if absorbing is not None:
        fits = [
            ({**cores, absorbing: objective.release(cores[absorbing], factor[layer], absorbing)}, report)
            for layer, (cores, report) in enumerate(search(objective.absorb(factor), start))
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
    factors = objective.whitening()
    inverse = {label: torch.linalg.inv(factor) for label, factor in factors.items()}
    whitened = objective.whiten(factors)

    def take_up_each(fits: list[SearchResult], matrices: Mapping[str, Tensor]) -> list[SearchResult]:
        return [
            (objective.take_up(cores, {label: matrix[layer] for label, matrix in matrices.items()}), report)
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
