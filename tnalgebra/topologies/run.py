"""A search, size by size: in which order topologies are fitted, which are left out, and which are fitted again."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from typing import Any

from torch import nn

from ..decompositions import read_rewrite
from ..errors import LayerError, RankError, RuleError, SizeError
from ..fitting import ModelBudget, ParameterBudget, RelativeError, Size, TimeBudget, size_text
from ..model import convert
from ..studies import Row, Store
from ..workers import run_tasks
from .bounds import Bounds, CutErrors, least_fraction_of, prepare_bounds
from .evaluation import Problem, Trial, has_movable_ranks, measure_all
from .ladder import Ladder
from .space import Space
from .suggestions import Suggestions
from .topology import Topology

MOST_LISTED = 2000
"""A space of at most so many topologies is gone through completely; of a larger one, optuna suggests topologies."""

TRIAL_KEYS = ("topology", "size", "stage", "asked", "reason", "ranks", "parameters", "multiply_adds", "error")
"""The fields that every row of a search's file has."""

_CLIMBS = 4
"""Fits of a topology at an error, where topologies are suggested one by one."""

COUNTED = ("listed", "pruned", "refused", "fitted", "evaluations")
"""What is counted of a search."""

_MOVED = 2
"""Of so many topologies, the best ones that have several bonds, the ranks are moved."""

PENALTY = 2.0
"""The score of a topology that did not meet an error, as a part of the kernel's parameters."""


class Ledger:
    """The rows of a search: each is made once, and read from the folder where it exists."""

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self._rows = {self._key(row): row for row in (store.rows if store else ())}

    @staticmethod
    def _key(row: Row) -> tuple[str, ...]:
        return row["topology"], row["size"], row["stage"], json.dumps(row["asked"], sort_keys=True)

    def get(self, fields: Row) -> Row | None:
        """The row with these fields, if it exists."""
        return self._rows.get(self._key(fields))

    def add(self, row: Row) -> Row:
        """Keep a row, and write it into the folder."""
        self._rows[self._key(row)] = row
        if self._store is not None:
            self._store.append(row)
        return row


@dataclass
class SearchRun:
    """One search.

    counts: how many topologies were listed, pruned, refused and fitted, and in how many fits.
    """

    problem: Problem
    space: Space
    ledger: Ledger
    model: nn.Module | None
    test: Callable[[nn.Module], float] | None
    calibration: Any
    trials: int
    finalists: int
    scheduler: Any = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    _known: dict[str, dict[str, Bounds]] = field(default_factory=dict)

    def at(self, size: Size) -> list[Row]:
        """The rows at a size, the best one first. Raises RankError if no topology meets it."""
        return self._at_error(size) if isinstance(size, RelativeError) else self._within(size)

    def _measure(self, groups: Iterable[Sequence[Trial]], take: Callable[[Trial, Row], None]) -> None:
        """Make trials, in this process or on workers, and take the row of each as it comes."""

        def missing() -> Iterator[list[Trial]]:
            for group in groups:
                new = []
                for trial in group:
                    row = self.ledger.get(trial.fields)
                    if row is None:
                        new.append(trial)
                    else:
                        self._count(row)
                        take(trial, row)
                if new:
                    yield new

        tasks = run_tasks(measure_all, missing(), shared=self.problem, scheduler=self.scheduler)
        with closing(tasks):  # workers stop where this is stopped
            for trial, row in tasks:
                self._count(self.ledger.add(row))
                take(trial, row)

    def _row(self, trial: Trial) -> Row:
        """The row of one trial."""
        rows: list[Row] = []
        self._measure([[trial]], lambda _, row: rows.append(row))
        return rows[0]

    def _count(self, row: Row) -> None:
        self.counts["evaluations"] += row.get("fits", row["error"] is not None)

    # what is known of topologies --------------------------------------------------------------------------

    @cached_property
    def _listed(self) -> list[Topology] | None:
        """All topologies; None if there are too many."""
        topologies = self.space.topologies(self.problem.labels, most=MOST_LISTED + 1)
        return topologies if len(topologies) <= MOST_LISTED else None

    @cached_property
    def _errors(self) -> dict[str, CutErrors]:
        return {
            name: CutErrors(kernel, self.problem.labels, self.problem.metrics.get(name))
            for name, kernel in self.problem.kernels.items()
        }

    def _bounds(self, topology: Topology) -> dict[str, Bounds]:
        """For each kernel."""
        if topology.name not in self._known:
            self._known[topology.name] = {
                name: prepare_bounds(errors, topology) for name, errors in self._errors.items()
            }
        return self._known[topology.name]

    def _least_error(self, topology: Topology, size: Size) -> float:
        """What the error of a topology is at the least; inf if it does not exist at this size."""
        if not isinstance(size, ParameterBudget):
            return 0.0
        try:
            each = [
                bounds.within(math.floor(size.fraction * bounds.errors.kernel.numel())).error
                for bounds in self._bounds(topology).values()
            ]
        except SizeError:  # a label cannot be split into these parts, which the fit will say
            return 0.0
        return math.sqrt(sum(error**2 for error in each) / len(each))

    def _candidates(self, size: Size) -> Iterable[Topology]:
        """The topologies in the order in which they are looked at."""
        if self._listed is None:
            return Suggestions(self.space, self.problem.labels, trials=self.trials, seed=self.problem.seed)
        return sorted(self._listed, key=lambda topology: self._least_error(topology, size))

    def _unmet(self, size: Size, reasons: Sequence[str]) -> RankError:
        # what would be right for this one topology may be wrong for others
        one, other = min(reasons, key=len, default="").partition("\n")[0], "a space with other topologies"
        because, larger = f"{one} (of one of {len(reasons)} topologies)" if one else None, "a larger size"
        if isinstance(size, ParameterBudget) and self._known:
            least, name = min((least_fraction_of(each.values()), name) for name, each in self._known.items())
            if least > size.fraction:
                because = f"the smallest one, {name!r}, is a fraction of {least:g} where its bonds have size 1"
                larger = f"{size_text(ParameterBudget(least))!r} at the least"
        fact = f"no topology of the space meets {size_text(size)!r}"
        return RankError(fact, because=because, fix=f"{larger}, or {other}")

    # at a budget -----------------------------------------------------------------------------------------

    def _within(self, size: Size) -> list[Row]:
        """The least error within a budget."""
        screened = size
        if isinstance(size, ModelBudget) and self._is_converted(size):
            screened = ParameterBudget(size.fraction)
        best: dict[str, Row] = {}
        quick: dict[str, Row] = {}
        reasons: list[str] = []
        candidates = self._candidates(screened)
        told = candidates if isinstance(candidates, Suggestions) else None
        waiting: dict[str, tuple[Topology, int]] = {}

        def groups() -> Iterator[list[Trial]]:
            for topology in candidates:
                self.counts["listed"] += 1
                if self._least_error(topology, screened) >= min(map(_error, best.values()), default=math.inf):
                    self.counts["pruned"] += 1
                    if told is not None:
                        told.tell(topology, None)
                    continue
                trials = self._screening(topology, screened)
                waiting[topology.name] = topology, len(trials)
                yield trials

        def take(trial: Trial, row: Row) -> None:
            topology, remaining = waiting[trial.topology]
            waiting[trial.topology] = topology, remaining - 1
            best[trial.topology] = min(best.get(trial.topology, row), row, key=_error)
            if trial.stage == "quick":
                quick[trial.topology] = row
            if remaining > 1:
                return
            row = best[trial.topology]
            self.counts["refused" if row["error"] is None else "fitted"] += 1
            if row["error"] is None:
                reasons.append(row["reason"])
            if told is not None:
                told.tell(topology, row["error"])

        self._measure(groups(), take)
        best = {name: row for name, row in best.items() if row["error"] is not None}
        if not best:
            raise self._unmet(size, reasons)
        finalists = sorted(best, key=lambda name: _error(quick[name]))[: self.finalists]
        rows = self._finish(best, finalists, screened)
        return self._convert(rows, size) if self._is_converted(size) else rows

    def _screening(self, topology: Topology, size: Size) -> list[Trial]:
        """A quick fit, and a full one at the ranks that the cuts of a loop ask for where these are few."""
        ranks = self._ranks_of_cuts(topology, size)
        full = [] if ranks is None else [Trial(topology.name, size, "full", ranks)]
        return [Trial(topology.name, size, "quick"), *full]

    def _finish(self, best: dict[str, Row], finalists: Sequence[str], size: Size) -> list[Row]:
        """The rows with full fits of the finalists, and other ranks of the best ones.

        Args:
            best: name of a topology -> its best row so far.
            finalists: those whose quick fits were the best. Full fits at the ranks of cuts are not compared with these.
        """

        def take(trial: Trial, row: Row) -> None:
            if trial.stage == "full":
                first = best[trial.topology]
                again = first["stage"] == "quick" and first["ranks"] == row["ranks"]
                best[trial.topology] = row if again else min(first, row, key=_error)
            elif row["ranks"] != row["asked"]:
                moved.append(Trial(trial.topology, size, "full", row["ranks"]))

        def by_error() -> list[Row]:
            return sorted(best.values(), key=_error)

        moved: list[Trial] = []
        self._measure(([Trial(name, size, "full")] for name in finalists), take)
        if isinstance(size, ParameterBudget) and len(self.problem.kernels) == 1:
            (kernel,) = self.problem.kernels
            movable = (
                row for row in by_error() if has_movable_ranks(self.problem, row["topology"], row["ranks"][kernel])
            )
            chosen = list(islice(movable, _MOVED))
            self._measure(([Trial(row["topology"], size, "moved", row["ranks"])] for row in chosen), take)
            self._measure(([trial] for trial in moved), take)
        return by_error()

    def _is_converted(self, size: Size) -> bool:
        """Whether the best topologies are converted: under a size of a whole model, or of a layer's time."""
        return self.model is not None and (self.problem.layer is None or isinstance(size, TimeBudget))

    def _ranks_of_cuts(self, topology: Topology, size: Size) -> dict[str, dict[str, int]] | None:
        """Ranks of a loop that all cuts allow; None where trees or other sizes need none, and of sums."""
        if not isinstance(size, ParameterBudget) or len(self.problem.kernels) > 1 or not topology.has_spectral_ranks:
            return None
        ((name, bounds),) = self._bounds(topology).items()
        ranks = bounds.within(math.floor(size.fraction * bounds.errors.kernel.numel())).ranks
        return None if ranks is None else {name: dict(zip(bounds.bonds, ranks, strict=True))}

    def _convert(self, rows: list[Row], size: Size) -> list[Row]:
        """The best topologies, each as the only one and all as a choice, converted under the budget and tested."""
        assert self.model is not None
        names = list(self.problem.kernels)
        chosen = [row["topology"] for row in rows[: self.finalists]]
        ways = [[one] for one in chosen] + ([chosen] if len(chosen) > 1 and len(names) > 1 else [])
        converted: list[Row] = []
        reasons: list[str] = []
        for topologies in ways:
            fields = {"topology": " or ".join(topologies), "size": size_text(size), "stage": "converted", "asked": None}
            row = self.ledger.get(fields) or self.ledger.add({**self._converted(topologies, size), **fields})
            if row["reason"]:
                reasons.append(row["reason"])
            else:
                converted.append(row)
        if not converted:
            raise self._unmet(size, reasons)
        tested = self.test is not None
        return sorted(converted, key=lambda row: (-row["accuracy"] if tested else 0.0, row["error"]))

    def _converted(self, topologies: Sequence[str], size: Size) -> Row:
        problem, model = self.problem, self.model
        assert model is not None
        layers = ["0"] if problem.layer is not None else list(problem.kernels)
        holder = nn.Sequential(model) if problem.layer is not None else model
        rules = [read_rewrite(name, problem.labels) for name in topologies]
        row: Row = dict.fromkeys(("parameters", "multiply_adds", "error", "accuracy"), None)
        try:
            small, report = convert(
                holder,
                dict.fromkeys(layers, rules),
                size=size,
                example=problem.example,
                calibration=self.calibration,
                inplace=False,
                tune=isinstance(size, TimeBudget),
                seed=problem.seed,
                progress=False,
            )
        except (LayerError, RankError, RuleError) as error:
            return {**row, "ranks": {}, "reason": str(error)}
        errors = [
            one.relative_error if one.output_error is None else one.output_error
            for one in report.rows
            if one.name in layers
        ]
        row["error"] = math.sqrt(sum((error or 0.0) ** 2 for error in errors) / len(layers))
        row["parameters"], row["multiply_adds"] = report.parameters_after, report.multiply_adds_after
        row["accuracy"] = None if self.test is None else float(self.test(small))
        row["seconds_after"] = report.seconds_after
        return {**row, "ranks": {one.name: dict(one.ranks) for one in report.rows if one.rule}, "reason": ""}

    # at an error -----------------------------------------------------------------------------------------

    def _at_error(self, size: RelativeError) -> list[Row]:
        """The fewest parameters at an error."""
        if len(self.problem.kernels) > 1:
            fact = f"{size_text(size)!r} is a size of one kernel, and the model has {len(self.problem.kernels)}"
            raise RankError(fact, fix="a budget, such as 'parameters 0.5'")
        met: list[Row] = []
        candidates = self._candidates(size)
        if isinstance(candidates, Suggestions):
            for topology in candidates:
                self.counts["listed"] += 1
                ladders = self._ladders([topology], size)
                reached = self._climb(ladders, size, met, most=_CLIMBS)
                candidates.tell(topology, met[0]["parameters"] if reached else PENALTY * self.problem.parameters)
        else:
            topologies = list(candidates)
            self.counts["listed"] += len(topologies)
            self._climb(self._ladders(topologies, size), size, met, most=self.trials)
        if not met:
            raise self._unmet(size, [])
        return met

    def _ladders(self, topologies: Sequence[Topology], size: RelativeError) -> list[Ladder]:
        """Of all but sums, which are refused: how an error is shared out between terms is not known."""
        products = [topology for topology in topologies if len(topology.terms) == 1]
        self.counts["refused"] += len(topologies) - len(products)
        (kernel,) = self.problem.kernels
        return [Ladder(topology, self._bounds(topology)[kernel], size.error) for topology in products]

    def _climb(self, ladders: Sequence[Ladder], size: RelativeError, met: list[Row], *, most: int) -> bool:
        """Fit ranks in the order of their parameters until one of them meets the error and none can have fewer.

        Args:
            met: the rows that met it before, the best one first; a better one is put before them.
            most: fits.
        """
        order = count()
        heap = [(ladder.parameters, next(order), ladder) for ladder in ladders]
        heapq.heapify(heap)
        reached, fitted = False, set[str]()
        while heap and most > 0:
            parameters, _, ladder = heapq.heappop(heap)
            if met and parameters >= met[0]["parameters"]:
                heap.append((parameters, 0, ladder))
                break
            if ladder.ranks is not None:
                asked = {name: dict(ladder.ranks) for name in self.problem.kernels} if ladder.ranks else None
                row = self._row(Trial(ladder.topology.name, size, "full", asked))
                most -= 1
                if row["error"] is not None:
                    fitted.add(ladder.topology.name)
                    if row["error"] <= size.error and not (met and row["parameters"] >= met[0]["parameters"]):
                        met.insert(0, row)
                        reached = True
                        continue
                ladder.climb(row["error"])
            else:
                ladder.climb(None)
            if ladder.parameters < math.inf:
                heapq.heappush(heap, (ladder.parameters, next(order), ladder))
        self.counts["fitted"] += len(fitted)
        self.counts["pruned"] += len({ladder.topology.name for *_, ladder in heap} - fitted)
        return reached


def _error(row: Row) -> float:
    return math.inf if row["error"] is None else float(row["error"])
