"""The search for cores: many first guesses, the better ones followed, each by what suits its residual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from operator import index
from typing import SupportsIndex, TypeAlias

import torch
from torch import Tensor

from ..errors import ValuesError, explain
from .als import Cores, Descent, alternate, balance, fits_exactly, floor
from .degeneracy import shrink_components
from .gauss_newton import descend, descend_by_gradient
from .objective import Objective, total

SMALL_RESIDUAL = 0.3
"""Relative error below which Gauss-Newton takes over: where the residual is small, its matrix is nearly the Hessian."""

FIRST_SWEEPS, MORE_SWEEPS = 10, 40
"""Alternating sweeps of all starts, then of the better half."""

SLOW = 1e-5
"""A start stands still where an alternating sweep takes less than this part of its squared error."""

FINALISTS = 2
"""Starts that are followed to the end where the residual stays large: there they end alike."""

MORE_GUESSES = 3
"""Times as many starts again where the first ended with a small residual: another basin may fit exactly."""

FOUND = 1e3
"""Times the error of rounding: what ended below has nothing better to look for."""

CANDIDATES = 6
"""Most starts that Gauss-Newton follows where the residual is small."""

CHEAP, DEAR = 2**20, 2**25
"""Unknowns times elements of the target: up to the first, a large residual gets L-BFGS's steps too, and a tied
network a second wave of guesses; above the second, nothing gets a second wave."""

TREE_SWEEPS = 20
"""Sweeps after the SVDs of a tree of several bonds, which are within sqrt(bonds) of the best already."""

FIRST_STEPS, STEPS = 20, 100
"""Gauss-Newton steps of all starts of a tied network, then of the better half, or of those that have alternated."""


@dataclass(frozen=True)
class Settings:
    """How cores are searched for.

    seed: of the first guesses.
    starts: first guesses, fitted side by side; the best is kept. Trees need none.
    sweeps: most sweeps over all cores.
    dtype: of the computation.
    slack: part by which the error may grow for smaller components (see `correction`), such as 0.01; 0 leaves it out.
        Trees have no use for it: their best approximation exists.
    """

    seed: int = 0
    starts: int = 8
    sweeps: int = 200
    dtype: torch.dtype = torch.float64
    slack: float = 0.0

    def __post_init__(self) -> None:
        for name, least, most in (("seed", 0, 2**63 - 1), ("starts", 1, 4096), ("sweeps", 0, 2**31)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, SupportsIndex) or not least <= index(value) <= most:
                raise ValuesError(explain(f"{name}={value!r}", fix=f"an integer from {least} to {most}"))
            object.__setattr__(self, name, index(value))  # JSON cannot hold a NumPy integer
        slack = self.slack
        if isinstance(slack, bool) or not isinstance(slack, int | float) or not 0 <= slack < 1:
            raise ValuesError(explain(f"slack={slack!r}", fix="a number of at least 0 and below 1, such as 0.01"))
        if self.dtype not in (torch.float32, torch.float64):
            raise ValuesError(explain(f"a fit in {self.dtype}", fix="torch.float64 or torch.float32"))


@dataclass(frozen=True)
class FitReport:
    """How a fit went.

    method: what found the cores.
    errors: relative error after each sweep or step, in the norm that was minimised.
    starts: the relative error at which each start that was followed to the end stopped, the kept one first.
    converged: whether it stood still, rather than used up its sweeps.
    degeneracy: sqrt(sum of ||component||^2) / ||K||, a component being one value of every bond; far above 1, large
        components cancel each other (de Silva and Lim 2008), and rounding or noise in the cores is amplified so much.
    relative_error, output_error: of the result, as `Change` has them; the first is in the Frobenius norm.
    """

    method: str
    errors: tuple[float, ...]
    starts: tuple[float, ...]
    converged: bool
    degeneracy: float = 0.0
    relative_error: float = 0.0
    output_error: float | None = None

    def __str__(self) -> str:
        state = "stood still" if self.converged else "used up its sweeps"
        starts = " ".join(f"{error:.3g}" for error in self.starts)
        return (
            f"{self.method}: {len(self.errors)} sweeps, {state} at {self.errors[-1]:.4g} "
            f"(starts {starts}), degeneracy {self.degeneracy:.3g}"
        )


SearchResult: TypeAlias = tuple[Cores, FitReport]
"""What a search found for one kernel: free core -> elements; the report has no degeneracy yet, nor the errors of the
result."""


def search_from_guesses(objective: Objective, settings: Settings) -> list[SearchResult]:
    """Descend from random cores; where the residual is small but not nil, from more of them too."""
    generator = torch.Generator().manual_seed(settings.seed)
    found = follow_starts(objective, _guesses(objective, settings.starts, generator), settings)
    again = torch.tensor([n for n, (_, report) in enumerate(found) if _may_be_better(objective, report.starts[0])])
    if len(again) and settings.sweeps >= FIRST_SWEEPS + MORE_SWEEPS:
        part = objective.of_layers(again.to(objective.target.device))
        others = follow_starts(part, _guesses(part, MORE_GUESSES * settings.starts, generator), settings)
        for number, other in zip(again.tolist(), others, strict=True):
            if other[1].starts[0] < found[number][1].starts[0]:
                found[number] = other
    return found


def _work(objective: Objective) -> int:
    return objective.unknowns * objective.target[0].numel()


def _may_be_better(objective: Objective, error: float) -> bool:
    """Whether another basin may hold an exact fit; or, for ties, whose basins are many, just a better one."""
    least = sqrt(floor(objective)) * FOUND
    if objective.tied and _work(objective) <= CHEAP:
        return error > least
    return least < error <= SMALL_RESIDUAL and _work(objective) <= DEAR


def _guesses(objective: Objective, starts: int, generator: torch.Generator) -> Cores:
    """Random cores of equal norms, whose network has about the norm of the target."""
    reference = objective.target
    values = {
        name: torch.randn(starts, *shape, dtype=torch.float64, generator=generator)
        .to(reference)
        .expand(objective.layers, -1, *[-1] * len(shape))
        for name, shape in objective.free.items()
    }
    values = balance(objective, values)
    norms = objective.norms(values)
    wanted = total(objective.target[:, None].square()).sqrt()
    scale = torch.where(norms > 0, wanted / norms, 1.0) ** (1 / len(objective.occurrences_of_free))
    return {name: core * scale.reshape(*scale.shape, *[1] * (core.ndim - 2)) for name, core in values.items()}


def grow_start(objective: Objective, start: Mapping[str, Tensor], seed: int) -> Cores:
    """Given cores as the only start, grown to the objective's sizes so that the network's value stays.

    New values of a bond are 0 on the first of its cores and small and random on the others, so that the next sweep can
    use them.

    Raises:
        ValuesError: a core is missing, or larger than the objective has it; the network of all of them overflows.
    """
    generator = torch.Generator().manual_seed(seed)
    values: Cores = {}
    emptied: set[str] = set()
    for name, shape in objective.free.items():
        if name not in start:
            raise ValuesError(explain(f"the start has no core {name!r}", cores=" ".join(start) or "none"))
        core = start[name].to(objective.target)
        if core.ndim != len(shape) or any(old > new for old, new in zip(core.shape, shape, strict=True)):
            raise ValuesError(
                explain(f"the start's core {name!r} has shape {tuple(core.shape)}", needed=f"at most {shape}")
            )
        labels = objective.occurrences[objective.places[name][0]].labels
        new = {label for label, old, size in zip(labels, core.shape, shape, strict=True) if old < size}
        scale = 0.0 if new - emptied else 1e-2 * float(core.abs().mean())
        emptied |= new
        noise = scale * torch.randn(shape, dtype=torch.float64, generator=generator).to(core)
        noise[tuple(slice(old) for old in core.shape)] = core
        values[name] = noise.expand(objective.layers, 1, *shape).contiguous()
    if not bool(objective.loss(objective.model(values)).isfinite().all()):
        raise ValuesError(explain("the start's network is not finite", fix="cores whose network is near the kernel"))
    return values


def follow_starts(objective: Objective, values: Cores, settings: Settings) -> list[SearchResult]:
    """Descend from all starts of `values`; of each layer, the best end."""
    sweeps = settings.sweeps
    if sweeps == 0:
        return _found(objective, Descent.begin(objective, values))
    starts = next(iter(values.values())).shape[1]
    unknown = objective.target.new_full((objective.layers, starts), torch.inf)
    descent = Descent(values, unknown, torch.zeros_like(unknown, dtype=torch.bool))
    if objective.tied:
        descent = _by_gauss_newton(objective, descent, min(FIRST_STEPS, sweeps))
        descent = _by_gauss_newton(objective, descent.best(-(-starts // 2)), min(STEPS, sweeps))
        return _found(objective, _by_gradient(objective, descent, sweeps))
    descent = _alternate(objective, descent, min(FIRST_SWEEPS, sweeps))
    if _work(objective) > CHEAP:  # below, many starts take hardly longer than few
        descent = descent.best(-(-starts // 2))
    descent = _alternate(objective, descent, min(MORE_SWEEPS, sweeps - FIRST_SWEEPS))
    return _finish(objective, descent, sweeps - FIRST_SWEEPS - MORE_SWEEPS, gradient_steps=sweeps)


def _finish(objective: Objective, descent: Descent, sweeps: int, *, gradient_steps: int) -> list[SearchResult]:
    """Layers with a small residual by Gauss-Newton, the others by more sweeps of the best starts."""
    small = descent.loss.min(1).values <= SMALL_RESIDUAL**2 * objective.power[:, 0]
    found: dict[int, SearchResult] = {}
    for which in (small, ~small):
        layers = which.nonzero()[:, 0]
        if not len(layers):
            continue
        part, there = objective.of_layers(layers), descent.of_layers(layers)
        if which is small:
            there = _by_gauss_newton(part, there.best(CANDIDATES), min(STEPS, sweeps))
        else:
            cheap = _work(part) <= CHEAP
            there = _alternate(part, there if cheap else there.best(FINALISTS), sweeps)
            if sweeps > 0 and cheap:  # where components cancel, alternating crawls before it arrives
                there = _by_gradient(part, there, gradient_steps)
        found |= dict(zip(layers.tolist(), _found(part, there), strict=True))
    return [found[layer] for layer in range(objective.layers)]


def refine_tree(objective: Objective, fits: list[Cores], settings: Settings) -> list[SearchResult]:
    """After the SVDs of a tree: where it has several bonds, sweeps take what they left."""
    values, objective = _stacked(objective, fits)  # a bond may have become smaller
    swept = len(values) > 2 and settings.sweeps > 0
    descent = Descent.begin(objective, values)
    descent = descent.then("SVD", values, [descent.loss], torch.full_like(descent.still, not swept))
    if swept:
        descent = _alternate(objective, descent, min(TREE_SWEEPS, settings.sweeps))
    return _found(objective, descent)


def pick_nearer(objective: Objective, layer: int, *ends: SearchResult) -> SearchResult:
    """Of several ends for a layer, the one that is nearest in the objective's metric."""
    part = objective.of_layers(torch.tensor([layer], device=objective.target.device))
    models = [part.model({name: core[None, None] for name, core in cores.items()}) for cores, _ in ends]
    losses = [float(part.loss(model)) for model in models]
    return ends[losses.index(min(losses))]


def refine_in_metric(objective: Objective, found: list[SearchResult], settings: Settings) -> list[SearchResult]:
    """Descend in the objective's metric from cores that were found without it."""
    values, objective = _stacked(objective, [cores for cores, _ in found])
    descent = Descent.begin(objective, values, f"{found[0][1].method}, then in the metric")
    if objective.tied:
        descent = _by_gauss_newton(objective, descent, min(STEPS, settings.sweeps))
    else:
        descent = _alternate(objective, descent, settings.sweeps)
    return _found(objective, descent)


def stabilise(objective: Objective, found: list[SearchResult], settings: Settings) -> list[SearchResult]:
    """Smaller components, at an error that is at most `settings.slack` larger, in the objective's metric."""
    values, objective = _stacked(objective, [cores for cores, _ in found])
    loss = objective.loss(objective.model(values))
    values = shrink_components(objective, values, bound=(1 + settings.slack) ** 2 * loss, sweeps=settings.sweeps)
    after = _found(objective, Descent.begin(objective, values))
    changed = []
    for (_, old), (cores, new) in zip(found, after, strict=True):
        errors, starts = (*old.errors, *new.errors), (*new.starts, *old.starts[1:])
        method = f"{old.method}, corrected"
        changed.append((cores, replace(old, method=method, errors=errors, starts=starts)))
    return changed


def _stacked(objective: Objective, fits: Sequence[Cores]) -> tuple[Cores, Objective]:
    """Cores of all layers as one start, and the objective for cores of their sizes."""
    values = {name: torch.stack([fit[name] for fit in fits])[:, None] for name in fits[0]}
    return values, objective.of_sizes(values)


def _alternate(objective: Objective, descent: Descent, sweeps: int) -> Descent:
    if sweeps <= 0 or bool((descent.still.all(1) | fits_exactly(objective, descent.loss)).all()):
        return descent
    return alternate(objective, descent, sweeps=sweeps, tolerance=SLOW)


def _by_gauss_newton(objective: Objective, descent: Descent, steps: int) -> Descent:
    exact = bool(fits_exactly(objective, descent.loss).all())
    return descent if exact else descend(objective, descent, steps=steps)


def _by_gradient(objective: Objective, descent: Descent, steps: int) -> Descent:
    """L-BFGS on the best start, kept where it is better."""
    descent = descent.best(1)
    exact = bool(fits_exactly(objective, descent.loss).all())
    return descent if exact else descend_by_gradient(objective, descent, steps=steps)


def _found(objective: Objective, descent: Descent) -> list[SearchResult]:
    """The best start of each layer."""
    descent = descent.best(descent.loss.shape[1])
    power = objective.power[:, 0].clamp(min=torch.finfo(objective.target.dtype).tiny)
    starts = (descent.loss / power[:, None]).sqrt()
    log = [(loss / power).sqrt() for loss in descent.log] or [starts[:, 0]]
    found = []
    for layer in range(objective.layers):
        cores = {name: core[layer, 0].contiguous() for name, core in descent.values.items()}
        errors = tuple([float(error[layer]) for error in log])
        method = ", ".join(descent.methods) or "no descent"
        report = FitReport(method, errors, tuple(starts[layer].tolist()), bool(descent.still[layer, 0]))
        found.append((cores, report))
    return found
