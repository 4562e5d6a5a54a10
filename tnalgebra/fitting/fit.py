"""The fit of the cores of any right side: trees by SVDs, all others by descents from several starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..networks import Network
from ..tensors import in_precision
from .als import spread
from .chosen_ranks import SCALE, chosen_ranks, objective_of, select_rows, tree_or_none
from .constrained import fit_under_constraints
from .core_search import measure_errors, search_cores
from .curves import spectra_for
from .held import hold
from .metric import Metric
from .objective import Objective
from .report import SearchResult, Settings
from .search import in_one_thread
from .size import Size
from .targets import in_one_type, prepare_target, split_metric
from .trees import CoreTree, cores_of


def fit_cores(
    kernels: Sequence[Tensor],
    right: Network,
    size: Size,
    *,
    before: int,
    settings: Settings,
    constants: Mapping[str, Tensor] | None = None,
    constraints: Mapping[str, str] | None = None,
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
        constraints: for some of the cores, by name:

            - "orthonormal": as the matrix of its open labels against its bonds, the core has orthonormal columns.
            - "nonnegative": no element is below 0.
            - "columns": the columns of that matrix are columns of the kernel, whose matrix has the open labels of the
              core as rows and all others as columns. They are chosen by `choose_columns`.
            - "sampled columns": the same, chosen by `sample_columns` with the seed of the settings.
        metrics: one for each kernel, over labels of the output of `right`; none for the Frobenius norm.
        start: cores to start from instead of random ones, by name. Smaller ones are grown, which does not change the
            value of their network.
        kept: the type of the cores that are returned. Ends are compared, and errors measured, for cores of this type.

    Returns:
        For each kernel, all tensors of the right side, constants too, and a report of the fit.

    Raises:
        RuleError: a constraint is unknown or cannot hold.
        RankError, SizeError: see `chosen_ranks`; or a core has too many columns for its constraint.
        ValuesError: a kernel is empty or not finite, or it is complex and has a metric; or a constant, a metric or the
            start does not fit.
    """
    kernels, constants, kept = in_one_type(kernels, constants or {}, dtype=settings.dtype, kept=kept)
    norms: Sequence[Metric | None] = metrics or [None] * len(kernels)
    if constraints:
        fit = partial(
            fit_under_constraints, before=before, settings=settings, constants=constants, start=start, kept=kept
        )
        pairs = zip(kernels, norms, strict=True)
        return [fit(kernel, right, size, constraints=constraints, metric=norm) for kernel, norm in pairs]
    # the targets: kernels over their largest element, or what the metric makes of them, in the axes of the cores
    prepared = [
        prepare_target(kernel, right, metric, settings.dtype) for kernel, metric in zip(kernels, norms, strict=True)
    ]
    # kernels with equal ranks are fitted together
    tree = tree_or_none(right, constants)
    groups: dict[object, list[int]] = {}
    ranks = []
    for number, (target, _) in enumerate(prepared):
        spectra = spectra_for(size, target, right, tree, metric=norms[number])
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
    with in_one_thread(kernels[0].numel()):
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
