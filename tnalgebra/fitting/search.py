"""The search for cores: of many first guesses, the better ones are followed by the method that suits their residual."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import sqrt
from typing import NamedTuple

import torch

from .als import Cores, Descent, alternate, balance, pick
from .condensed import condense, expand, leading_subspaces
from .digits import FEW_DIGITS, SMALL_LOSS_IN_FEW, few_digits_suffice
from .gauss_matrix import GaussMatrix
from .gauss_newton import descend
from .objective import Objective
from .quasi_newton import descend_by_gradient
from .report import FitReport, SearchResult, Settings
from .starts import guesses
from .subspaces import fit_by_subspaces, fits_by_subspaces
from .trees import CoreTree, fit_tree

SMALL_RESIDUAL = 0.3
"""Below this relative error Gauss-Newton is used: where the residual is small, its matrix is nearly the Hessian."""

FIRST_SWEEPS, MORE_SWEEPS = 10, 40
"""Alternating sweeps of all starts, and then of the better half."""

SLOW = 1e-5
"""A start stands still where an alternating sweep takes less than this part of its squared error."""

LAST_SWEEPS, HALVED = 2, (2, 2)
"""Sweeps that are kept for the whole target where a search begins in subspaces, and the sweeps after each of which the
better half of its starts is followed."""

FINALISTS = 2
"""The starts that are followed to the end where the residual stays large, because starts have similar ends there."""

SLOW_TREE = 2e-4
"""The same for a tree in a metric, where the last sweeps gain little for their time: cuts of random kernels in metrics
of condition 1000 ended at most 0.9 % above the error of a descent to the end."""

MORE_GUESSES = 3
"""A second wave has this many times the starts of the first, because another basin may fit exactly."""

FOUND = 1e3
"""Below this multiple of the error of rounding, a fit needs no second wave."""


STARTED_TOGETHER = 2**27
"""The most starts times elements of the target, so that what all starts need at once fits into memory: a matrix of
4096 x 11008 has two starts. Kernels of less than 8 million elements have as many as are asked for by default."""


MOST_ALONE = 2**16
"""Elements of the largest kernel that is fitted in one thread."""


class Stage(NamedTuple):
    """A part of a descent by Gauss-Newton.

    steps: the most steps.
    starts: how many are followed, the best ones of the stage before.
    stiffness: the factor of the stability. Starts that first come to where components are small arrive sooner, and
        often at less error.
    """

    steps: int
    starts: int
    stiffness: float


STAGES = (Stage(8, 8, 5.0), Stage(12, 4, 3.0), Stage(20, 2, 1.0), Stage(60, 1, 1.0))
"""The descent where the residual or the problem is small."""

MOST_CUBES = 2**30
"""The most starts times unknowns^3, which is about the work of a step where the matrices are written out."""

STRUCTURED = 0.5
"""A small residual with fewer unknowns than this part of the target's elements may be that of a kernel that another
start fits exactly. With more of them, any kernel has small residuals."""

CHEAP, DEAR = 2**20, 2**25
"""Limits of unknowns times elements of the target. Up to the first, all starts are followed, and a tied network has a
second wave of guesses. Above the second, no network has a second wave."""

TREE_SWEEPS = 20
"""Sweeps after the SVDs of a tree of several bonds, whose error is at most sqrt(bonds) times the least one."""

COARSE = 1e-4
"""Types whose rounding is above this are coarse: ends are compared after it."""

GRADIENTS = 4
"""Steps of L-BFGS in a metric that count as one sweep: together they take less time than an alternating sweep, and gain
about as much."""

FIRST_STEPS, MORE_STEPS = 20, 100
"""Gauss-Newton steps of all starts of a tied network, then of the better half; the latter also after alternating."""


@contextmanager
def in_one_thread(elements: int) -> Iterator[None]:
    """Fit small kernels in one thread, in which they take no longer, so that a seed gives the same cores anywhere.

    Sums are rounded in another order on each number of threads, and long descents lead from there to other basins. On a
    busy machine threads wait for each other at every one of many short calls.
    """
    threads = torch.get_num_threads()
    if threads == 1 or elements > MOST_ALONE:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def search_from_guesses(objective: Objective, settings: Settings) -> list[SearchResult]:
    """Descend from random cores, and from a second wave of them where an exact fit may have been missed."""
    generator = torch.Generator().manual_seed(settings.seed)
    starts = max(1, min(settings.starts, STARTED_TOGETHER // max(1, objective.target[0].numel())))
    if not objective.tied and _work(objective) > DEAR and settings.sweeps > LAST_SWEEPS:
        return _search_in_subspaces(objective, settings, generator, starts=starts)
    results = follow_starts(objective, guesses(objective, starts, generator), settings)
    again = torch.tensor([n for n, (_, report) in enumerate(results) if _may_be_better(objective, report.starts[0])])
    if len(again) and settings.sweeps >= FIRST_SWEEPS + MORE_SWEEPS:
        part = objective.of_layers(again.to(objective.target.device))
        others = follow_starts(part, guesses(part, MORE_GUESSES * starts, generator), settings)
        for number, other in zip(again.tolist(), others, strict=True):
            if other[1].starts[0] < results[number][1].starts[0]:
                results[number] = other
    return results


def _search_in_subspaces(
    objective: Objective, settings: Settings, generator: torch.Generator, *, starts: int
) -> list[SearchResult]:
    """Descend first towards the coordinates of the target in leading subspaces, and in the end towards the target."""
    bases = leading_subspaces(objective)
    small = condense(objective, bases)
    values = guesses(small, starts, generator)
    unknown = objective.power.new_full((objective.layers, starts), torch.inf)
    descent = Descent(values, unknown, unknown, torch.zeros_like(unknown, dtype=torch.bool))
    most = min(FIRST_SWEEPS + MORE_SWEEPS, settings.sweeps - LAST_SWEEPS)
    for sweeps in HALVED:
        descent = sweep_on(small, descent, min(sweeps, most - len(descent.log)))
        descent = descent.best(-(-descent.loss.shape[1] // 2))
    descent = sweep_on(small, descent, most - len(descent.log)).best(FINALISTS)
    left_out = (objective.power - small.power)[:, 0]
    values = expand(objective, descent.values, bases)
    loss = objective.loss_of(values)
    descent = replace(
        descent,
        values=values,
        loss=loss,
        merit=objective.merit(loss, values),
        still=torch.zeros_like(descent.still),
        log=tuple([(before + left_out).clamp(min=0) for before in descent.log]),
    )
    return _finish(objective, descent, settings.sweeps - len(descent.log))


def _work(objective: Objective) -> int:
    return objective.unknowns * objective.target[0].numel()


def _may_be_better(objective: Objective, error: float) -> bool:
    """Whether another basin may have an exact fit, or for tied cores, which have many basins, a better one."""
    least = sqrt(objective.rounding) * FOUND
    if objective.tied and _work(objective) <= CHEAP:
        return error > least
    structured = objective.unknowns <= STRUCTURED * objective.target[0].numel()
    return structured and least < error <= SMALL_RESIDUAL and _work(objective) <= DEAR


def follow_starts(objective: Objective, values: Cores, settings: Settings) -> list[SearchResult]:
    """Descend from all starts of `values`. Returns the best end of each layer."""
    sweeps = settings.sweeps
    if sweeps == 0:
        return results_of(objective, Descent.begin(objective, values))
    starts = next(iter(values.values())).shape[1]
    unknown = objective.power.new_full((objective.layers, starts), torch.inf)
    descent = Descent(values, unknown, unknown, torch.zeros_like(unknown, dtype=torch.bool))
    if objective.tied:
        descent = step_on(objective, descent, min(FIRST_STEPS, sweeps))
        descent = step_on(objective, descent.best(-(-starts // 2)), min(MORE_STEPS, sweeps))
        return results_of(objective, _by_gradient(objective, descent, sweeps))
    written_out = GaussMatrix(objective).written_out(starts)
    first = _stiffer(objective, STAGES[0].stiffness) if written_out else objective
    descent = sweep_on(first, descent, min(FIRST_SWEEPS, sweeps))
    descent = descent.best(-(-starts // 2))
    descent = sweep_on(first, descent, min(MORE_SWEEPS, sweeps - FIRST_SWEEPS))
    sweeps -= FIRST_SWEEPS + MORE_SWEEPS
    if written_out:
        return results_of(objective, _by_stages(objective, descent, sweeps))
    return _finish(objective, descent, sweeps)


def _finish(objective: Objective, descent: Descent, sweeps: int) -> list[SearchResult]:
    """Follow layers with a small residual by Gauss-Newton, and the others by more sweeps of the best starts."""
    small = descent.loss.min(1).values <= SMALL_RESIDUAL**2 * objective.power[:, 0]
    results: dict[int, SearchResult] = {}
    for which in (small, ~small):
        layers = which.nonzero()[:, 0]
        if not len(layers):
            continue
        part, state = objective.of_layers(layers), descent.of_layers(layers)
        if which is small:
            state = _by_stages(part, state, sweeps)
        else:
            state = sweep_on(part, state if _work(part) <= CHEAP else state.best(FINALISTS), sweeps)
        results |= dict(zip(layers.tolist(), results_of(part, state), strict=True))
    return [results[layer] for layer in range(objective.layers)]


def search_tree(
    objective: Objective, tree: CoreTree, ranks: Mapping[str, int], settings: Settings
) -> list[SearchResult]:
    """Fit the cores of a tree to each layer: by subspaces, and where these are not determined well enough by SVDs."""
    results: dict[int, SearchResult] = {}
    if fits_by_subspaces(tree):
        sweeps = min(TREE_SWEEPS, settings.sweeps)
        for layer, target in enumerate(objective.target):
            fit = fit_by_subspaces(target, tree, ranks, sweeps=sweeps, kept=objective.kept)
            if fit is not None:
                method = "SVD" if len(fit.errors) == 1 else "SVD, orthogonal iteration"
                report = FitReport(method, tuple(fit.errors), (fit.errors[-1],), fit.converged)
                results[layer] = fit.cores, report
    rest = [layer for layer in range(objective.layers) if layer not in results]
    if rest:
        part = objective.of_layers(torch.tensor(rest, device=objective.target.device))
        fits = [fit_tree(target, tree, ranks) for target in part.target]
        results |= dict(zip(rest, _refine_tree(part, fits, settings), strict=True))
    return [results[layer] for layer in range(objective.layers)]


def _refine_tree(objective: Objective, fits: list[Cores], settings: Settings) -> list[SearchResult]:
    """Improve the SVDs of a tree by sweeps, if it has several bonds."""
    values, objective = stacked(objective, fits)  # a bond may have become smaller
    swept = len(values) > 2 and settings.sweeps > 0
    descent = Descent.begin(objective, values)
    still = torch.full_like(descent.still, not swept)
    descent = descent.then("SVD", values, [descent.loss], merit=descent.merit, still=still)
    if swept:
        descent = sweep_on(objective, descent, min(TREE_SWEEPS, settings.sweeps))
    return results_of(objective, descent)


def pick_nearer(objective: Objective, layer: int, *ends: SearchResult) -> SearchResult:
    """Of several ends for one layer, the one that is nearest to the target in the metric of the objective."""
    part = objective.of_layers(torch.tensor([layer], device=objective.target.device))
    models = [part.model({name: core[None, None] for name, core in cores.items()}) for cores, _ in ends]
    losses = [float(part.loss(model)) for model in models]
    return ends[losses.index(min(losses))]


def refine(objective: Objective, fits: list[SearchResult], settings: Settings, *, then: str = "") -> list[SearchResult]:
    """Descend from cores that were fitted to another objective; `then` is added to the name of their method."""
    values, objective = stacked(objective, [cores for cores, _ in fits])
    descent = Descent.begin(objective, values, *(fits[0][1].method + then).split(", "))
    return results_of(objective, descend_further(objective, descent, settings.sweeps))


def stacked(objective: Objective, fits: Sequence[Cores]) -> tuple[Cores, Objective]:
    """The cores of all layers as one start, and the objective for cores of their sizes."""
    values = {name: torch.stack([fit[name] for fit in fits])[:, None] for name in fits[0]}
    return values, objective.of_sizes(values)


def sweep_on(objective: Objective, descent: Descent, sweeps: int, tolerance: float = SLOW) -> Descent:
    """Alternate, unless all starts of a layer stand still or one of them fits exactly."""
    if sweeps <= 0 or bool((descent.still.all(1) | objective.fits_exactly(descent.loss)).all()):
        return descent
    return alternate(objective, descent, sweeps=sweeps, tolerance=tolerance)


def descend_further(objective: Objective, descent: Descent, sweeps: int) -> Descent:
    """Descend from all starts by the method that suits the objective, for the time of this many sweeps."""
    if objective.tied:
        return step_on(objective, descent, min(MORE_STEPS, sweeps))
    return sweep_on(objective, descent, sweeps)


def refine_in_metric(
    objective: Objective, fits: list[SearchResult], settings: Settings, *, then: str
) -> list[SearchResult]:
    """Descend in a metric from the cores of a tree. Those of loops are found by sweeps, which gain more there."""
    values, objective = stacked(objective, [cores for cores, _ in fits])
    descent = Descent.begin(objective, values, *(fits[0][1].method + then).split(", "))
    follow = partial(descend_by_gradient, steps=GRADIENTS * settings.sweeps, tolerance=SLOW_TREE / GRADIENTS)
    small = SMALL_LOSS_IN_FEW * objective.power
    if few_digits_suffice(objective.kept, objective.target.dtype) and bool((descent.loss > small).all()):
        descent = _in_few_digits(objective, descent, follow)
        if bool((descent.loss > small).all()):
            return results_of(objective, descent)
    return results_of(objective, follow(objective, descent))


def _in_few_digits(objective: Objective, descent: Descent, follow: Callable[[Objective, Descent], Descent]) -> Descent:
    """Follow in few digits. Its end is measured in all digits, and a start that has no smaller loss then stays."""
    few = objective.in_precision(FEW_DIGITS)
    values = {name: core.to(few.target) for name, core in descent.values.items()}
    ended = follow(few, Descent.begin(few, values, *descent.methods))
    values = {name: core.to(objective.target) for name, core in ended.values.items()}
    loss = objective.loss_of(values)
    values, loss = pick(loss < descent.loss, values, descent.values), torch.minimum(loss, descent.loss)
    return replace(ended, values=values, loss=loss, merit=objective.merit(loss, values))


def step_on(objective: Objective, descent: Descent, steps: int) -> Descent:
    exact = bool(objective.fits_exactly(descent.loss).all())
    return descent if exact else descend(objective, descent, steps=steps)


def _by_stages(objective: Objective, descent: Descent, steps: int) -> Descent:
    """Follow the better starts by Gauss-Newton, fewer of them in each stage."""
    written_out = GaussMatrix(objective).written_out(descent.loss.shape[1])
    most = max(1, MOST_CUBES // objective.unknowns**3)
    for stage in STAGES:
        stiffer = _stiffer(objective, stage.stiffness)
        descent = replace(descent, merit=stiffer.merit(descent.loss, descent.values))
        descent = descent.best(min(stage.starts, most) if written_out else stage.starts)
        descent = step_on(stiffer, descent, min(stage.steps, steps))
        steps -= min(stage.steps, steps)
    return replace(descent, merit=objective.merit(descent.loss, descent.values))


def _stiffer(objective: Objective, factor: float) -> Objective:
    """The same objective, where small components are worth more."""
    return replace(objective, stability=factor * objective.stability)


def _by_gradient(objective: Objective, descent: Descent, steps: int) -> Descent:
    """Descend by L-BFGS from the best start, and keep its end where it is better."""
    descent = descent.best(1)
    exact = bool(objective.fits_exactly(descent.loss).all())
    return descent if exact else descend_by_gradient(objective, descent, steps=steps, tolerance=SLOW)


def results_of(objective: Objective, descent: Descent) -> list[SearchResult]:
    """The best start of each layer: of cores that are held in a short type, the best one after the rounding."""
    if torch.finfo(objective.kept).eps > COARSE:
        values = balance(objective, descent.values)
        rounded = {name: core.to(objective.kept).to(core) for name, core in values.items()}
        descent = replace(descent, merit=objective.loss_of(rounded))
    descent = descent.best(descent.loss.shape[1])
    power = objective.power[:, 0].clamp(min=torch.finfo(objective.target.dtype).tiny)
    starts = (descent.loss / power[:, None]).sqrt()
    log = [(loss / power).sqrt() for loss in descent.log] or [starts[:, 0]]
    results = []
    for layer in range(objective.layers):
        cores = {name: core[layer, 0].contiguous() for name, core in descent.values.items()}
        errors = tuple([float(error[layer]) for error in log])
        method = ", ".join(descent.methods) or "no descent"
        report = FitReport(method, errors, tuple(starts[layer].tolist()), bool(descent.still[layer, 0]))
        results.append((cores, report))
    return results
