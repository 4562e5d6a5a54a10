"""Fits of one topology to the kernels of a search, as a row; and ranks that are moved from one bond to another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..decompositions import read_rewrite
from ..errors import RankError, RuleError, SizeError
from ..fitting import Metric, MultiplyAddsBudget, ParameterBudget, Settings, Size, size_text
from ..model import compare, error_of
from ..networks import kernel_multiply_adds, tensors_of
from ..rewriting import Choices, Fit
from ..studies import Row
from ..tensors import in_precision
from .topology import Topology

SETTINGS: Mapping[str, Choices] = {"quick": {"starts": 4, "sweeps": 25}, "full": {}}
"""Name of a stage -> how its fits are made."""

_MOVED_SWEEPS = 20
_PROBE_SWEEPS = 6
_MOST_MOVES = 6
_TRIED_EXCHANGES = 3
_LEAST_GAIN = 1e-3


@dataclass(frozen=True, eq=False)
class Problem:
    """The kernels that a topology is fitted to, all with the same labels.

    layer: the layer of a single kernel, whose multiply-adds are counted on an example; None for a kernel alone.
    """

    kernels: Mapping[str, Tensor]
    labels: tuple[str, ...]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    layer: nn.Module | None = None
    example: Any = None
    seed: int = 0

    @property
    def parameters(self) -> int:
        return sum(kernel.numel() for kernel in self.kernels.values())


@dataclass(frozen=True)
class Trial:
    """A fit that is to be made.

    topology: a name or the notation.
    size: of the bonds, unless their ranks are known.
    stage: "quick" or "full"; or "moved", which gives other ranks and not a fit.
    ranks: name of a kernel -> the rank of each bond.
    """

    topology: str
    size: Size
    stage: str
    ranks: Mapping[str, Mapping[str, int]] | None = None

    @property
    def fields(self) -> Row:
        """What distinguishes its row from others."""
        ranks = None if self.ranks is None else {name: dict(each) for name, each in self.ranks.items()}
        return {"topology": self.topology, "size": size_text(self.size), "stage": self.stage, "asked": ranks}


def measure_all(problem: Problem, trials: Sequence[Trial]) -> Iterator[Row]:
    """The row of each trial."""
    for trial in trials:
        yield measure_trial(problem, trial) if trial.stage in SETTINGS else move_ranks(problem, trial)


def measure_trial(problem: Problem, trial: Trial) -> Row:
    """Fit a topology to every kernel.

    Returns:
        A row: the ranks of each kernel, counts, the root of the mean squared error, and the reason if it has no fit.
    """
    start = time.perf_counter()
    row: Row = {**trial.fields, "reason": ""}
    try:
        fits = _fit(problem, trial)
    except (RankError, RuleError, SizeError) as error:
        row["reason"] = str(error)
        fits = {}
    positions = (1,) * (len(problem.labels) - 2)
    row["ranks"] = {name: _ranks_of(fit) for name, fit in fits.items()}
    row["parameters"] = sum(fit.parameters for fit in fits.values()) or None
    row["multiply_adds"] = sum(kernel_multiply_adds(fit.network, positions) for fit in fits.values()) or None
    row["error"] = _mean([error_of(fit) for fit in fits.values()])
    row["relative_error"] = _mean([fit.relative_error for fit in fits.values()])
    row["seconds"] = round(time.perf_counter() - start, 3)
    return row


def _mean(errors: Sequence[float]) -> float | None:
    return math.sqrt(sum(error**2 for error in errors) / len(errors)) if errors else None


def _fit(problem: Problem, trial: Trial) -> dict[str, Fit]:
    """The fit of each kernel. Kernels of one shape and size are fitted side by side."""
    rule = read_rewrite(trial.topology, problem.labels)
    if trial.ranks is None and isinstance(trial.size, MultiplyAddsBudget):
        return {name: _fit_to_multiply_adds(problem, trial) for name in problem.kernels}
    groups: dict[object, list[str]] = {}
    each = {name: trial.size if trial.ranks is None else trial.ranks[name] for name in problem.kernels}
    for name, kernel in problem.kernels.items():
        groups.setdefault((kernel.shape, kernel.dtype, repr(each[name])), []).append(name)
    fits: dict[str, Fit] = {}
    for names in groups.values():
        metrics = [problem.metrics[name] for name in names if name in problem.metrics] or None
        kernels = [{rule.tensor: problem.kernels[name].detach()} for name in names]
        settings: Choices = {"seed": problem.seed, **SETTINGS[trial.stage]}
        fits |= zip(names, rule.apply_many(kernels, each[names[0]], metrics=metrics, **settings), strict=True)
    return fits


def _fit_to_multiply_adds(problem: Problem, trial: Trial) -> Fit:
    (name,) = problem.kernels
    whole = problem.kernels[name] if problem.layer is None else problem.layer
    (row,) = compare(
        whole,
        trial.topology,
        trial.size,
        labels=problem.labels,
        metric=problem.metrics.get(name),
        example=problem.example,
        seed=problem.seed,
        starts=SETTINGS[trial.stage].get("starts", Settings.starts),
        progress=False,
    ).rows
    if row.fit is None:
        raise RankError(row.reason)
    return row.fit


# Ranks --------------------------------------------------------------------------------------------------------


def has_movable_ranks(problem: Problem, topology: str, ranks: Mapping[str, int]) -> bool:
    """Whether a topology has several bonds whose ranks do not follow from spectra, as those of a tree do."""
    if len(ranks) < 2:
        return False
    rule = read_rewrite(topology, problem.labels)
    (kernel,) = problem.kernels.values()
    outline = rule.outline(kernel)
    return not rule.fixed and outline is not None and outline.curve.tree is None


def move_ranks(problem: Problem, trial: Trial) -> Row:
    """Better ranks within the budget, by moving sizes from one bond to another.

    A few sweeps from the cores of the fit before show what a bond loses that is smaller, and gains that is larger.

    Args:
        problem: of one kernel.
        trial: with a budget of parameters and the ranks to start from, of a topology that `has_movable_ranks`.

    Returns:
        A row without a fit: the ranks, and how many fits were made.
    """
    assert trial.ranks is not None
    assert isinstance(trial.size, ParameterBudget)
    ((name, kernel),) = problem.kernels.items()
    rule, ranks = read_rewrite(trial.topology, problem.labels), trial.ranks[name]
    empty = dict.fromkeys(("parameters", "multiply_adds", "error"))
    moved: Row = {**trial.fields, **empty, "ranks": {name: dict(ranks)}, "reason": "", "fits": 0}
    choices: Choices = {"seed": problem.seed, "sweeps": _MOVED_SWEEPS, "metric": problem.metrics.get(name)}
    topology = Topology(rule)
    probe: Choices = {**choices, "sweeps": _PROBE_SWEEPS}
    fit = rule.apply(kernel, ranks, **choices)
    limit = math.floor(trial.size.fraction * kernel.numel())
    moved["fits"] += 1
    for _ in range(_MOST_MOVES):
        exchanges, probes = _exchanges(fit, topology, limit, partial(rule.apply, kernel, **probe))
        moved["fits"] += probes
        before = error_of(fit)
        for larger in exchanges[:_TRIED_EXCHANGES]:
            start: Choices = {**choices, "start": _shrunk(fit, larger)}
            other = rule.apply(kernel, larger, **start)
            moved["fits"] += 1
            if error_of(other) <= (1 - _LEAST_GAIN) * before:
                fit = other
                break
        else:
            break
    return {**moved, "ranks": {name: _ranks_of(fit)}}


def _ranks_of(fit: Fit) -> dict[str, int]:
    return dict(fit.trace.steps[-1].change.ranks)


def _exchanges(fit: Fit, topology: Topology, limit: int, apply: Callable[..., Fit]) -> tuple[list[dict[str, int]], int]:
    """Ranks where a bond is as much larger as the limit allows, and perhaps another smaller, the most promising first.

    Those come first where the smaller bond loses little for a parameter, and the larger one gains much.

    Args:
        limit: the most parameters.
        apply: fits the kernel at ranks, from a start.

    Returns:
        The ranks of each exchange, and how many fits were made for their order.
    """
    ranks, sizes = _ranks_of(fit), fit.network.sizes

    def count(trial: Mapping[str, int]) -> int:
        return sum(prod({**sizes, **trial}[label] for label in core) for core in topology.cores.values())

    def rate(bond: str, step: int) -> float:
        """The squared error that a parameter takes away, at a smaller or a larger bond."""
        trial = {**ranks, bond: ranks[bond] + step}
        change = error_of(apply(trial, start=_shrunk(fit, trial))) ** 2 - error_of(fit) ** 2
        return -change / (count(trial) - count(ranks))

    steps = {bond: max(1, rank // 8) for bond, rank in ranks.items()}
    losses = {bond: rate(bond, -step) for bond, step in steps.items() if step < ranks[bond]}
    gains = {bond: rate(bond, step) for bond, step in steps.items()}
    smaller = {"": dict(ranks)} | {bond: {**ranks, bond: ranks[bond] - steps[bond]} for bond in losses}
    pairs = [(gains[two] - losses.get(one, 0.0), one, two) for one in smaller for two in gains if one != two]
    listed = []
    for _, one, two in sorted(pairs, reverse=True):
        trial = dict(smaller[one])
        while count({**trial, two: trial[two] + 1}) <= limit:
            trial[two] += 1
        if trial[two] > ranks[two]:
            listed.append(trial)
    return listed, len(losses) + len(gains)


def _shrunk(fit: Fit, ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """The cores of a fit, without the values of bonds that have the smallest norms, where the ranks are smaller."""
    labels = {name: node.labels for name, node in tensors_of(fit.network).items()}
    values = {name: in_precision(core, torch.float64) for name, core in fit.values.items()}
    for bond, rank in ranks.items():
        ends = [(name, axes.index(bond)) for name, axes in labels.items() if bond in axes]
        if rank < values[ends[0][0]].shape[ends[0][1]]:
            norms = [torch.linalg.vector_norm(values[name].movedim(axis, 0).flatten(1), dim=1) for name, axis in ends]
            kept = torch.stack(norms).log().sum(0).argsort(descending=True)[:rank].sort().values
            values |= {name: values[name].index_select(axis, kept) for name, axis in ends}
    return values
