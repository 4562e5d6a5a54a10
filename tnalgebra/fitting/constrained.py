"""Fits whose cores keep constraints: orthonormal, nonnegative, or columns of the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..errors import RuleError
from ..networks import NamedTensor, Network, all_nodes, tensors_of
from ..tensors import in_precision
from .als import Cores, Descent
from .axes import group_axes, split_axes
from .chosen_ranks import chosen_ranks, objective_of, select_rows, tree_or_none
from .columns import choose_columns, sample_columns
from .constraints import (
    COLUMNS,
    NONNEGATIVE,
    ORTHONORMAL,
    SAMPLED,
    check_constraints,
    check_shapes,
    polar_factor,
    with_matrix,
)
from .core_search import measure_errors, search_cores
from .curves import spectra_for
from .held import hold
from .metric import Metric
from .objective import Objective
from .price import within_price
from .report import SearchResult, Settings
from .search import (
    FINALISTS,
    FIRST_SWEEPS,
    MORE_SWEEPS,
    STARTED_TOGETHER,
    in_one_thread,
    results_of,
    sweep_on,
)
from .size import Size
from .starts import grow_start, guesses
from .targets import prepare_target, split_metric
from .trees import CoreTree, open_labels, with_open_axes

_SLOW = 1e-7
"""A start stands still where a sweep takes less than this part of its squared error: constraints make sweeps slow."""

GRADIENT_STEPS = 300
"""The most steps of L-BFGS where a core occurs several times."""


def fit_under_constraints(
    kernel: Tensor,
    right: Network,
    size: Size,
    *,
    constraints: Mapping[str, str],
    before: int,
    settings: Settings,
    constants: Mapping[str, Tensor],
    metric: Metric | None,
    start: Mapping[str, Tensor] | None,
    kept: torch.dtype,
) -> SearchResult:
    """The fit of `fit_cores` to one kernel, with constraints."""
    check_constraints(constraints, right, constants=constants, is_complex=kernel.is_complex())
    target, scale = prepare_target(kernel, right, metric, settings.dtype)
    tree = tree_or_none(right, constants)
    spectra = spectra_for(size, target, right, tree, metric=metric)
    ranks = chosen_ranks(target, right, size, spectra=spectra, constants=constants, before=before)
    check_shapes(constraints, right, {**right.sizes, **ranks})
    # columns are taken from the kernel, and held fixed
    selection = select_rows(constants, right, ranks, target)
    selection = {name: constant.to(kept).to(constant.dtype) for name, constant in selection.items()}
    columns = {
        name: _columns(kernel, right, name, ranks, sampled=kind == SAMPLED, seed=settings.seed).to(kept)
        for name, kind in constraints.items()
        if kind in (COLUMNS, SAMPLED)
    }
    if len(selection) + len(columns) == len(tensors_of(right)):
        raise RuleError("nothing is left to be fitted: all tensors are held fixed", right=right)
    others = {name: kind for name, kind in constraints.items() if name not in columns}
    # a kernel is divided by its scale; columns of it take one such factor each, and orthonormal cores none, so that the
    # terms of a sum may have several numbers of factors
    without_scale = {*selection, *columns, *(name for name, kind in others.items() if kind == ORTHONORMAL)}
    if len(right.terms) > 1 or without_scale.issuperset(tensors_of(right)):
        target, scale = target * scale, 1.0
    shared = {name: (in_precision(core, torch.float64) / scale).to(target) for name, core in columns.items()}
    metrics = [] if metric is None else [split_metric(metric, right)]
    objective = objective_of(target[None], right, ranks, constants={**selection, **shared}, metrics=metrics)
    objective = replace(objective, constraints=others, kept=kept)
    rest = scale ** (1 - len(columns))
    if start is not None:
        start = _unscaled_start(objective, start, rest)
    with in_one_thread(kernel.numel()):
        cores, report = _search(
            objective, right, start, metrics=metrics, tree=None if columns else tree, ranks=ranks, settings=settings
        )
    exact = {name: in_precision(value, torch.float64) for name, value in objective.constants.items()}
    exact |= {name: in_precision(core, torch.float64) for name, core in columns.items()}
    measure = partial(measure_errors, kernel, right, metric=metric, objective=replace(objective, constants=exact))
    objective = objective.of_sizes({name: core[None, None] for name, core in cores.items()})
    cores, report = hold(objective, cores, report, right=right, scale=rest, measure=measure)
    return {**selection, **columns, **cores}, report


def _unscaled_start(objective: Objective, start: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The cores of the start without the scale, of which all but the orthonormal ones have equal parts."""
    part = scale ** (1 / objective.factors)
    parts = {name: 1.0 if objective.constraints.get(name) == ORTHONORMAL else part for name in start}
    return {name: in_precision(core, torch.float64) / parts[name] for name, core in start.items()}


def _columns(
    kernel: Tensor, right: Network, name: str, ranks: Mapping[str, int], *, sampled: bool, seed: int
) -> Tensor:
    """The core that has columns of the kernel, in the type of the kernel."""
    labels, opened = tensors_of(right)[name].labels, open_labels(right)
    rows = [label for label in labels if label in opened]
    (bond,) = (label for label in labels if label not in opened)
    matrix = group_axes(with_open_axes(kernel, right), opened, rows, [label for label in opened if label not in rows])
    numbers = in_precision(matrix / (float(matrix.abs().max()) or 1.0), torch.float64)
    count = ranks.get(bond, right.sizes.get(bond, 0))
    chosen = sample_columns(numbers, count, seed) if sampled else choose_columns(numbers, count)
    return split_axes(matrix[:, chosen], {**right.sizes, bond: count}, labels, rows, (bond,)).contiguous()


# The search ------------------------------------------------------------------------------------------------------


def _search(
    objective: Objective,
    right: Network,
    start: Mapping[str, Tensor] | None,
    *,
    metrics: list[Metric],
    tree: CoreTree | None,
    ranks: Mapping[str, int],
    settings: Settings,
) -> SearchResult:
    """The best cores of one layer: leaves are made orthonormal afterwards, which costs nothing."""
    leaves = _leaves(objective, right)
    strict = {name: kind for name, kind in objective.constraints.items() if name not in leaves}
    loose = replace(objective, constraints=strict)
    if strict:
        # what is nonnegative cannot cancel, and neither can a tree of cores
        stable = tree is None and not loose.tied and {*strict} != {*loose.free}
        loose = replace(loose, stability=settings.stability if stable else 0.0)
        end = _descend(loose, start, tree=tree, ranks=ranks, settings=settings)
        ((cores, report),) = within_price(loose, [end], settings)
    else:
        loose = replace(loose, stability=0.0 if tree is not None else settings.stability)
        ((cores, report),) = search_cores(loose, start, metrics=metrics, tree=tree, ranks=ranks, settings=settings)
    cores = dict(cores)
    for leaf, neighbour in leaves.items():
        _make_orthonormal(cores, objective, leaf, neighbour)
    return cores, report


def _leaves(objective: Objective, right: Network) -> dict[str, str]:
    """The orthonormal cores all of whose bonds go to one core that is free, and that core.

    They lose nothing: by a QR decomposition the core is orthonormal, and the other one takes the triangle.
    """
    free = {name for name, places in objective.places.items() if len(places) == 1}
    free -= objective.constraints.keys()
    leaves = {}
    for name, kind in objective.constraints.items():
        node = tensors_of(right)[name]
        bonds = {*node.labels} - {*objective.output}
        ends = [[other for other in all_nodes(right) for label in other.labels if label == bond] for bond in bonds]
        beside = {other.name for each in ends for other in each if other is not node}
        joined = all(len(each) == 2 and all(isinstance(other, NamedTensor) for other in each) for each in ends)
        if kind == ORTHONORMAL and len(objective.places[name]) == 1 and joined and len(beside) == 1 and beside <= free:
            leaves[name] = beside.pop()
    return leaves


def _make_orthonormal(cores: dict[str, Tensor], objective: Objective, leaf: str, neighbour: str) -> None:
    labels, beside = (objective.occurrences[objective.places[name][0]].labels for name in (leaf, neighbour))
    sizes = {
        **dict(zip(labels, cores[leaf].shape, strict=True)),
        **dict(zip(beside, cores[neighbour].shape, strict=True)),
    }
    rows, bonds = ([n for n in labels if (n in objective.output) == is_open] for is_open in (True, False))
    others = [label for label in beside if label not in bonds]
    basis, triangle = torch.linalg.qr(group_axes(cores[leaf], labels, rows, bonds))
    cores[leaf] = split_axes(basis, sizes, labels, rows, bonds).contiguous()
    moved = triangle @ group_axes(cores[neighbour], beside, bonds, others)
    cores[neighbour] = split_axes(moved, sizes, beside, bonds, others).contiguous()


def _descend(
    objective: Objective,
    start: Mapping[str, Tensor] | None,
    *,
    tree: CoreTree | None,
    ranks: Mapping[str, int],
    settings: Settings,
) -> SearchResult:
    """Alternate from first guesses that keep the constraints, and from the cores that a tree has without them."""
    if start is not None:
        values = _project(objective, grow_start(objective, start, settings.seed))
    else:
        generator = torch.Generator().manual_seed(settings.seed)
        starts = max(1, min(settings.starts, STARTED_TOGETHER // max(1, objective.target[0].numel())))
        values = _project(objective, guesses(objective, starts, generator))
        if tree is not None and not objective.tied:
            plain = replace(objective.without_metric(), constraints={}, stability=0.0)
            ((cores, _),) = search_cores(plain, None, metrics=[], tree=tree, ranks=ranks, settings=settings)
            if all(cores[name].shape == shape for name, shape in objective.free.items()):
                near = _project(objective, {name: core[None, None] for name, core in cores.items()})
                values = {name: torch.cat([near[name], core], 1) for name, core in values.items()}
    descent = Descent.begin(objective, values)
    if objective.tied:
        descent = _by_gradient(objective, descent, settings)
    else:
        sweeps = settings.sweeps
        descent = sweep_on(objective, descent, min(FIRST_SWEEPS, sweeps), _SLOW)
        descent = sweep_on(objective, descent.best(-(-descent.loss.shape[1] // 2)), min(MORE_SWEEPS, sweeps), _SLOW)
        descent = sweep_on(objective, descent.best(FINALISTS), sweeps, _SLOW)
    return results_of(objective, descent)[0]


def _project(objective: Objective, values: Cores) -> Cores:
    """Cores near these that keep the constraints: polar factors, and absolute values."""
    result = dict(values)
    for name, kind in objective.constraints.items():
        labels = objective.occurrences[objective.places[name][0]].labels
        polar = kind == ORTHONORMAL
        core = result[name]
        result[name] = with_matrix(core, labels, objective.output, polar_factor) if polar else core.abs()
    return result


def _by_gradient(objective: Objective, descent: Descent, settings: Settings) -> Descent:
    """Descend by L-BFGS on elements without constraints: squares are nonnegative, QR factors orthonormal."""
    kinds = objective.constraints
    roots = {name: core.sqrt() if kinds.get(name) == NONNEGATIVE else core for name, core in descent.values.items()}
    raw = {name: core.detach().clone().requires_grad_() for name, core in roots.items()}

    def cores() -> Cores:
        constrained = dict(raw)
        for name, kind in kinds.items():
            labels = objective.occurrences[objective.places[name][0]].labels
            if kind == ORTHONORMAL:  # by QR, as the derivative of an SVD does not exist at equal singular values
                core = with_matrix(raw[name], labels, objective.output, lambda matrix: torch.linalg.qr(matrix)[0])
            constrained[name] = core if kind == ORTHONORMAL else raw[name].square()
        return constrained

    power = objective.power.clamp(min=torch.finfo(objective.target.dtype).tiny)
    log = [descent.loss]

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = objective.loss_of(cores())
        log.append(loss.detach())
        total = (loss / power).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    steps = min(GRADIENT_STEPS, settings.sweeps)
    optimiser = torch.optim.LBFGS(
        list(raw.values()), max_iter=steps, history_size=30, line_search_fn="strong_wolfe", tolerance_change=1e-16
    )
    optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        ends = {name: core.detach() for name, core in cores().items()}
        loss = objective.loss_of(ends)
    return descent.then("L-BFGS", ends, [*log, loss], merit=loss, still=torch.ones_like(descent.still))
