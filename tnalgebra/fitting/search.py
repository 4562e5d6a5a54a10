"""The search for cores: many first guesses, the better ones followed, each by what suits its residual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from operator import index
from typing import SupportsIndex

import torch
from torch import Tensor

from ..errors import ValuesError, explain
from . import als, gauss_newton
from .als import Descent, Values
from .degeneracy import corrected
from .objective import Problem, total

SMALL_RESIDUAL = 0.3
"""Relative error below which Gauss-Newton takes over: where the residual is small, its matrix is nearly the Hessian."""

FIRST_SWEEPS, MORE_SWEEPS = 10, 40
"""Alternating sweeps of all starts, then of the better half."""

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
    tolerance: a descent stops where a sweep takes less than this part of the squared error.
    dtype: of the computation.
    slack: part by which the error may grow for smaller components (see `correction`), such as 0.01; 0 leaves it out.
        Trees have no use for it: their best approximation exists.
    """

    seed: int = 0
    starts: int = 8
    sweeps: int = 200
    tolerance: float = 1e-5
    dtype: torch.dtype = torch.float64
    slack: float = 0.0

    def __post_init__(self) -> None:
        for name, least, most in (("seed", 0, 2**63 - 1), ("starts", 1, 4096), ("sweeps", 0, 2**31)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, SupportsIndex) or not least <= index(value) <= most:
                raise ValuesError(explain(f"{name}={value!r}", fix=f"an integer from {least} to {most}"))
            object.__setattr__(self, name, index(value))  # a NumPy integer is no number for JSON
        slack = self.slack
        if isinstance(slack, bool) or not isinstance(slack, int | float) or not 0 <= slack < 1:
            raise ValuesError(explain(f"slack={slack!r}", fix="a number of at least 0 and below 1, such as 0.01"))
        if self.dtype not in (torch.float32, torch.float64):
            raise ValuesError(explain(f"a fit in {self.dtype}", fix="torch.float64 or torch.float32"))


@dataclass(frozen=True, eq=False)
class Ended:
    """Where the search for one kernel ended.

    values: free core -> elements. The other fields are those of a report.
    """

    values: Values
    method: str
    errors: tuple[float, ...]
    starts: tuple[float, ...]
    converged: bool


@dataclass(frozen=True, eq=False)
class _Course:
    """A descent so far: log holds the least loss of each layer after each sweep, shape (layers,)."""

    values: Values
    loss: Tensor
    still: Tensor
    log: tuple[Tensor, ...]
    methods: tuple[str, ...]

    def then(self, descent: Descent, method: str) -> _Course:
        log = tuple(loss.min(1).values for loss in descent.losses)
        methods = self.methods if method in self.methods else (*self.methods, method)
        return _Course(descent.values, descent.losses[-1], descent.converged, (*self.log, *log), methods)

    def best(self, count: int) -> _Course:
        """The `count` best starts of each layer, the best first."""
        order = self.loss.nan_to_num(nan=torch.inf).argsort(dim=1, stable=True)[:, :count]
        rows = torch.arange(len(order), device=order.device)[:, None]
        values = {name: core[rows, order] for name, core in self.values.items()}
        return replace(self, values=values, loss=self.loss[rows, order], still=self.still[rows, order])

    def of(self, layers: Tensor) -> _Course:
        values = {name: core[layers] for name, core in self.values.items()}
        log = tuple(loss[layers] for loss in self.log)
        return replace(self, values=values, loss=self.loss[layers], still=self.still[layers], log=log)


def _begun(problem: Problem, values: Values) -> _Course:
    loss = problem.loss(problem.model(values))
    return _Course(values, loss, torch.zeros_like(loss, dtype=torch.bool), (), ())


def guessed(problem: Problem, settings: Settings) -> list[Ended]:
    """Descend from random cores; where the residual is small but not nil, from more of them too."""
    generator = torch.Generator().manual_seed(settings.seed)
    ended = searched(problem, _guesses(problem, settings.starts, generator), settings)
    again = torch.tensor([number for number, each in enumerate(ended) if _may_be_better(problem, each)])
    if len(again) and settings.sweeps >= FIRST_SWEEPS + MORE_SWEEPS:
        part = problem.of_layers(again.to(problem.target.device))
        others = searched(part, _guesses(part, MORE_GUESSES * settings.starts, generator), settings)
        for number, other in zip(again.tolist(), others, strict=True):
            if other.starts[0] < ended[number].starts[0]:
                ended[number] = other
    return ended


def _work(problem: Problem) -> int:
    return problem.unknowns * problem.target[0].numel()


def _may_be_better(problem: Problem, ended: Ended) -> bool:
    """Whether another basin may hold an exact fit; or, for ties, whose basins are many, just a better one."""
    least = sqrt(als.floor(problem)) * FOUND
    if problem.tied and _work(problem) <= CHEAP:
        return ended.starts[0] > least
    return least < ended.starts[0] <= SMALL_RESIDUAL and _work(problem) <= DEAR


def _guesses(problem: Problem, starts: int, generator: torch.Generator) -> Values:
    """Random cores of equal norms, whose network has about the norm of the target."""
    reference = problem.target
    values = {
        name: torch.randn(starts, *shape, dtype=torch.float64, generator=generator)
        .to(reference)
        .expand(problem.layers, -1, *[-1] * len(shape))
        for name, shape in problem.free.items()
    }
    return _of_the_targets_norm(problem, values)


def _of_the_targets_norm(problem: Problem, values: Values) -> Values:
    als.balance(problem, values)
    norms = problem.norms(values)
    wanted = total(problem.target[:, None].square()).sqrt()
    ratio = torch.where(norms > 0, wanted / norms, 1.0) ** (1 / len(problem.occurrences_of_free))
    return {name: core * ratio.reshape(*ratio.shape, *[1] * (core.ndim - 2)) for name, core in values.items()}


def grown(problem: Problem, start: Mapping[str, Tensor], seed: int) -> Values:
    """Given cores as the only start, grown to the problem's sizes so that the network's value stays.

    New values of a bond are 0 on the first of its cores and small and random on the others, so that the next sweep can
    use them.

    Raises:
        ValuesError: a core is missing, or larger than the problem has it; the network of all of them overflows.
    """
    generator = torch.Generator().manual_seed(seed)
    values: Values = {}
    emptied: set[str] = set()
    for name, shape in problem.free.items():
        if name not in start:
            raise ValuesError(explain(f"the start has no core {name!r}", cores=" ".join(start) or "none"))
        core = start[name].to(problem.target)
        if core.ndim != len(shape) or any(old > new for old, new in zip(core.shape, shape, strict=True)):
            raise ValuesError(
                explain(f"the start's core {name!r} has shape {tuple(core.shape)}", needed=f"at most {shape}")
            )
        labels = problem.occurrences[problem.places[name][0]].labels
        new = {label for label, old, size in zip(labels, core.shape, shape, strict=True) if old < size}
        scale = 0.0 if new - emptied else 1e-2 * float(core.abs().mean())
        emptied |= new
        noise = scale * torch.randn(shape, dtype=torch.float64, generator=generator).to(core)
        noise[tuple(slice(old) for old in core.shape)] = core
        values[name] = noise.expand(problem.layers, 1, *shape).contiguous()
    if not bool(problem.loss(problem.model(values)).isfinite().all()):
        raise ValuesError(explain("the start's network is not finite", fix="cores whose network is near the kernel"))
    return values


def searched(problem: Problem, values: Values, settings: Settings) -> list[Ended]:
    """Descend from all starts of `values`; of each layer, the best end."""
    if settings.sweeps == 0:
        return _ended(problem, _begun(problem, values))
    starts = next(iter(values.values())).shape[1]
    unknown = problem.target.new_full((problem.layers, starts), torch.inf)
    course = _Course(values, unknown, torch.zeros_like(unknown, dtype=torch.bool), (), ())
    if problem.tied:
        course = _by_gauss_newton(problem, course, min(FIRST_STEPS, settings.sweeps))
        course = _by_gauss_newton(problem, course.best(-(-starts // 2)), min(STEPS, settings.sweeps))
        return _ended(problem, _by_gradient(problem, course, settings))
    cheap = _work(problem) <= CHEAP  # there many starts take hardly longer than few
    course = _alternated(problem, course, min(FIRST_SWEEPS, settings.sweeps), settings)
    course = course if cheap else course.best(-(-starts // 2))
    course = _alternated(problem, course, min(MORE_SWEEPS, settings.sweeps - FIRST_SWEEPS), settings)
    return _followed(problem, course, settings, settings.sweeps - FIRST_SWEEPS - MORE_SWEEPS)


def _followed(problem: Problem, course: _Course, settings: Settings, sweeps: int) -> list[Ended]:
    """To the end: layers with a small residual by Gauss-Newton, the others by more sweeps of the best starts."""
    small = course.loss.min(1).values <= SMALL_RESIDUAL**2 * problem.power[:, 0]
    found: dict[int, Ended] = {}
    for which in (small, ~small):
        layers = which.nonzero()[:, 0]
        if not len(layers):
            continue
        part, there = problem.of_layers(layers), course.of(layers)
        if which is small:
            there = _by_gauss_newton(part, there.best(CANDIDATES), min(STEPS, sweeps))
        else:
            cheap = _work(part) <= CHEAP
            there = _alternated(part, there if cheap else there.best(FINALISTS), sweeps, settings)
            if sweeps > 0 and cheap:  # where components cancel, alternating crawls before it arrives
                there = _by_gradient(part, there, settings)
        found |= dict(zip(layers.tolist(), _ended(part, there), strict=True))
    return [found[layer] for layer in range(problem.layers)]


def decomposed(problem: Problem, fits: list[Values], settings: Settings) -> list[Ended]:
    """After the SVDs of a tree: where it has several bonds, sweeps take what they left."""
    values = {name: torch.stack([fit[name] for fit in fits])[:, None] for name in fits[0]}
    problem = problem.of_sizes(values)  # a bond may have become smaller
    course = _begun(problem, values)
    swept = len(values) > 2 and settings.sweeps > 0
    course = course.then(Descent(values, (course.loss,), torch.full_like(course.still, not swept)), "SVD")
    if swept:
        course = _alternated(problem, course, min(TREE_SWEEPS, settings.sweeps), settings)
    return _ended(problem, course)


def nearer(problem: Problem, layer: int, *ends: Ended) -> Ended:
    """Of several ends for a layer, the one that is nearest in the problem's metric."""
    part = problem.of_layers(torch.tensor([layer], device=problem.target.device))
    losses = [
        float(part.loss(part.model({name: core[None, None] for name, core in each.values.items()}))) for each in ends
    ]
    return ends[losses.index(min(losses))]


def refined(problem: Problem, ended: list[Ended], settings: Settings) -> list[Ended]:
    """Descend in the problem's metric from cores that were found without it."""
    values = {name: torch.stack([each.values[name] for each in ended])[:, None] for name in ended[0].values}
    problem = problem.of_sizes(values)
    course = _begun(problem, values)
    course = replace(course, methods=(f"{ended[0].method}, then in the metric",))
    if problem.tied:
        course = _by_gauss_newton(problem, course, min(STEPS, settings.sweeps))
    else:
        course = _alternated(problem, course, settings.sweeps, settings)
    return _ended(problem, course)


def stabilised(problem: Problem, ended: list[Ended], settings: Settings) -> list[Ended]:
    """Smaller components, at an error that is at most `settings.slack` larger, in the problem's metric."""
    values = {name: torch.stack([each.values[name] for each in ended])[:, None] for name in ended[0].values}
    problem = problem.of_sizes(values)
    loss = problem.loss(problem.model(values))
    found = corrected(problem, values, bound=(1 + settings.slack) ** 2 * loss, sweeps=settings.sweeps)
    after = _ended(problem, _begun(problem, found))
    return [
        replace(
            each,
            values=new.values,
            method=f"{each.method}, corrected",
            errors=(*each.errors, *new.errors),
            starts=(*new.starts, *each.starts[1:]),
        )
        for each, new in zip(ended, after, strict=True)
    ]


def _alternated(problem: Problem, course: _Course, sweeps: int, settings: Settings) -> _Course:
    if sweeps <= 0 or bool((course.still.all(1) | als.exact(course.loss, problem)).all()):
        return course
    descent = als.alternate(problem, course.values, sweeps=sweeps, tolerance=settings.tolerance)
    return course.then(descent, "alternating least squares")


def _by_gauss_newton(problem: Problem, course: _Course, steps: int) -> _Course:
    if bool(als.exact(course.loss, problem).all()):
        return course
    return course.then(gauss_newton.descend(problem, course.values, steps=steps), "Gauss-Newton")


def _by_gradient(problem: Problem, course: _Course, settings: Settings) -> _Course:
    """L-BFGS on the best start, kept where it is better."""
    course = course.best(1)
    if bool(als.exact(course.loss, problem).all()):
        return course
    return course.then(gauss_newton.descend_by_gradient(problem, course.values, steps=settings.sweeps), "L-BFGS")


def _ended(problem: Problem, course: _Course) -> list[Ended]:
    course = course.best(course.loss.shape[1])
    power = problem.power[:, 0].clamp(min=torch.finfo(problem.target.dtype).tiny)
    starts = (course.loss / power[:, None]).sqrt()
    log = [(loss / power).sqrt() for loss in course.log] or [starts[:, 0]]
    return [
        Ended(
            {name: core[layer, 0].contiguous() for name, core in course.values.items()},
            ", ".join(course.methods) or "no descent",
            tuple(float(error[layer]) for error in log),
            tuple(starts[layer].tolist()),
            bool(course.still[layer, 0]),
        )
        for layer in range(problem.layers)
    ]
