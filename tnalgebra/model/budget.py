"""What a layer may be turned into, and one budget for many layers, shared out by one Lagrange multiplier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple, TypeVar

from torch import Tensor

from ..decompositions import read_rewrite
from ..fitting import Metric, ParameterBudget, Size
from ..nn import check_fit_of
from ..rewriting import Choices, Fit, Rule

_W = TypeVar("_W")

_ROUNDING, _EXACT = 1e-9, 1e-6
"""Relative difference of errors that is rounding; relative errors below the second are rounding themselves."""


@dataclass(frozen=True, eq=False)
class Treatment:
    """What a layer may be turned into: a rule at a size, which may still be open, or a fit that exists already.

    parameters: of the cores, once the ranks are known.
    """

    rule: Rule | None
    size: Size | None = None
    choices: Choices = field(default_factory=Choices)
    fit: Fit | None = None
    parameters: int = 0

    @classmethod
    def read(cls, rewrite: str | Rule | Fit, labels: Sequence[str], size: Size | None, choices: Choices) -> Treatment:
        """The treatment by a rewrite. A fit stands for itself, unless a size or choices ask for another one."""
        if isinstance(rewrite, Fit) and size is None and not choices:
            return cls(None, fit=rewrite)
        return cls(read_rewrite(rewrite, labels), size, choices)

    @property
    def name(self) -> str:
        if self.rule is not None:
            return self.rule.name
        assert self.fit is not None
        return " then ".join(step.rule.name for step in self.fit.trace.steps) or "a fit"

    @property
    def is_sized(self) -> bool:
        """Whether nothing is left for a budget to choose."""
        return self.size is not None or self.fit is not None

    def completed(self, size: Size | None, *, seed: int) -> Treatment:
        """With this size and seed where the treatment has none; a rule without bonds takes no size but a budget."""
        if self.rule is None:
            return self
        takes_it = self.rule.ranks or isinstance(size, ParameterBudget)
        choices: Choices = {"seed": seed, **self.choices}
        return Treatment(self.rule, size if self.size is None and takes_it else self.size, choices)

    def at_ranks(self, ranks: Mapping[str, int], parameters: int) -> Treatment:
        """With these integer ranks, if it is not a fit already."""
        return replace(self, size=None if self.fit else dict(ranks), parameters=parameters)

    def apply(self, weights: Sequence[Tensor], size: Size | None, *, metrics: Sequence[Metric] | None) -> list[Fit]:
        """Fit weights of one shape together; `size` is used if the treatment has no size."""
        if self.fit is not None:
            for weight in weights:
                check_fit_of(self.fit, weight)
            return [self.fit] * len(weights)
        assert self.rule is not None
        chosen = self.size if self.size is not None else size
        norms = None if "metric" in self.choices else metrics
        return self.rule.apply_many(list(weights), chosen, metrics=norms, **self.choices)


def ranks_of(fit: Fit) -> dict[str, int]:
    """bond -> rank, as the last step that has the bond chose it."""
    return {bond: rank for step in fit.trace.steps for bond, rank in step.change.ranks.items()}


def error_of(fit: Fit) -> float:
    """Relative error of the layer's output where the fit had a metric, of the kernel otherwise."""
    return fit.relative_error if fit.output_error is None else fit.output_error


def least_error(ways: Sequence[_W], error: Callable[[_W], float], parameters: Callable[[_W], int]) -> _W:
    """The way with the least error; of those whose errors are equal within rounding, the one with fewest parameters."""
    least = max(min(map(error, ways)) * (1 + _ROUNDING), _EXACT)
    return min((way for way in ways if error(way) <= least), key=lambda way: (parameters(way), error(way)))


class PricedWay(NamedTuple):
    """A point of a layer's curve: what it takes of the budget, the loss it causes, what is done (None: nothing).

    measured: whether cost and loss are those of the layer; otherwise they are estimated from its other points.
    """

    cost: int
    loss: float
    treatment: Treatment | None = None
    measured: bool = True


# The multiplier -----------------------------------------------------------------------------------------------


def allocate(curves: Mapping[str, Sequence[PricedWay]], limit: int) -> dict[str, PricedWay]:
    """Choose a way for each layer so that the sum of the losses is small and the costs keep within a limit.

    The sum of the losses plus a multiplier times the costs falls apart into layers: for any multiplier the best ways
    are vertices of the layers' lower convex hulls (Everett 1963). The multiplier is the largest saving of loss for
    each unit of cost that still fits; what is left over is then spent on the single moves that save most.

    Args:
        curves: layer -> its ways, in any order; a layer that may stay dense has that as a way of loss 0. The
            cheapest ways of all layers together are within the limit.
        limit: of the costs of all layers together.
    """
    hulls = {name: lower_hull(ways) for name, ways in curves.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    room = limit - sum(way.cost for way in chosen.values())
    assert room >= 0
    # the steps along all hulls, the steepest first; on one hull they come in order by themselves
    steps = [(_gain(before, after), name, after) for name, hull in hulls.items() for before, after in pairwise(hull)]
    for _, name, after in sorted(steps, key=lambda step: -step[0]):
        cost = after.cost - chosen[name].cost
        if cost > room:
            break
        chosen[name], room = after, room - cost
    while True:  # spend what is left: again and again the move that saves most for its cost, among those that fit
        moves = [
            ((chosen[name].loss - way.loss) / max(way.cost - chosen[name].cost, 1e-9), name, way)
            for name, ways in curves.items()
            for way in ways
            if way.loss < chosen[name].loss and way.cost - chosen[name].cost <= room
        ]
        if not moves:
            return chosen
        _, name, way = max(moves, key=lambda move: move[0])
        chosen[name], room = way, room - (way.cost - chosen[name].cost)


def lower_hull(ways: Sequence[PricedWay]) -> list[PricedWay]:
    """The ways on the lower convex hull, from the cheapest to the one of least loss."""
    hull: list[PricedWay] = []
    for way in sorted(ways, key=lambda way: (way.cost, way.loss)):
        if hull and way.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], way):
            hull.pop()
        hull.append(way)
    return hull


def _gain(before: PricedWay, after: PricedWay) -> float:
    """Loss saved for each unit of cost added."""
    return (before.loss - after.loss) / (after.cost - before.cost)


def group_reasons(reasons: Mapping[str, str], *, most: int | None = None) -> str:
    """A line for each reason, or for the first `most`, with the names of three layers and the number of the others."""
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    lines = [
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") + f": {reason}"
        for reason, names in layers.items()
    ]
    shown = lines[:most]
    return "\n".join(shown + ([f"... and {len(lines) - len(shown)} more"] if len(shown) < len(lines) else []))
