"""The error curves of the layers of a model: what each may be turned into, at what cost and error."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from torch import Tensor, nn

from ..errors import RankError, TnalgebraError
from ..fitting import ModelBudget, ParameterBudget
from ..networks import Network, count_parameters
from ..rewriting import Fit
from .budget import PricedWay, Treatment, allocate, group_reasons, least_error

LEAST_LOSS = 1e-12
"""Losses below this are equal where they are interpolated."""

Harm: TypeAlias = Callable[[str, float], float]
"""Name of a layer, its loss -> what that means for the whole model; it rises with the loss."""


def equal_harm(name: str, loss: float) -> float:
    """The loss itself."""
    return loss


@dataclass(frozen=True, eq=False)
class Costs:
    """What the budget is spent on.

    counted: "parameters", "multiply-adds" or "nanoseconds".
    whole: of the model as it is.
    dense: name -> of the layer as it is.
    of_network: name, the network of its kernel, names of the network's constants -> of the layer decomposed.
    guess: name, the network of its kernel -> about proportional to `of_network`, and much faster.
    is_least: whether a guess counts the same and is never above the cost.
    """

    counted: str
    whole: int
    dense: Mapping[str, int]
    of_network: Callable[[str, Network, frozenset[str]], int]
    guess: Callable[[str, Network], float]
    is_least: bool


def parameter_costs(model: nn.Module, weights: Mapping[str, Tensor]) -> Costs:
    """Count parameters: of the whole model, of the kernels, of the cores of fits."""
    whole = sum(parameter.numel() for parameter in model.parameters())
    dense = {name: weight.numel() for name, weight in weights.items()}

    def count(name: str, network: Network, constants: frozenset[str] = frozenset()) -> int:
        return count_parameters(network, constants)

    return Costs("parameters", whole, dense, count, count, is_least=True)


@dataclass(eq=False)
class CurvePoint:
    """A treatment of a layer at one size.

    treatment: with integer ranks.
    network: of the kernel, with these ranks.
    constants: names of its tensors that are not fitted.
    guess: about proportional to the cost.
    expected: about proportional to the loss, where anything is known about it.
    cost: of the layer; None as long as it was not counted.
    loss: that it causes; None as long as it was not measured.
    fit: the quick one by which it was measured, if there was one.
    """

    treatment: Treatment
    network: Network
    constants: frozenset[str]
    guess: float
    expected: float = 1.0
    cost: int | None = None
    loss: float | None = None
    fit: Fit | None = None

    @property
    def parameters(self) -> int:
        return self.treatment.parameters

    @property
    def is_measured(self) -> bool:
        return self.cost is not None and self.loss is not None


@dataclass(frozen=True, eq=False)
class ErrorCurves:
    """What each layer may be turned into; any number of budgets can be shared out.

    Costs and losses are measured for the points that a budget chooses, and estimated for the others. A point that is
    chosen by an estimate is measured, and the choice is made again.

    offered: name -> treatments, as they were requested.
    costs: what budgets are spent on.
    points: name -> for each treatment its points, from the smallest one; those with fewer parameters than the layer.
    refused: name -> why no treatment can be applied at all.
    measure: sets cost and loss of points, each with the name of its layer.
    """

    offered: Mapping[str, Sequence[Treatment]]
    costs: Costs
    points: Mapping[str, Sequence[Sequence[CurvePoint]]]
    refused: Mapping[str, TnalgebraError]
    measure: Callable[[Sequence[tuple[str, CurvePoint]]], Mapping[str, TnalgebraError]]

    def ways(self, name: str) -> list[PricedWay]:
        """The points of a layer that make it smaller, with estimates where nothing was measured."""
        ways = [way for curve in self.points[name] for way in _ways_of(curve, self.costs)]
        return [way for way in ways if way.cost < self.costs.dense[name]]

    def why_dense(self) -> dict[str, str]:
        """name -> why a layer stays dense under every budget."""
        larger = "break-even: nothing that is offered is smaller than the dense layer"
        return {name: str(self.refused.get(name, larger)) for name in self.points if not self.ways(name)}

    def least_losses(self) -> dict[str, Treatment]:
        """For each layer that can become smaller, the point of least loss, all of them measured."""
        every = [(name, point) for name, curves in self.points.items() for curve in curves for point in curve]
        self.measure(every)
        ways = {name: self.ways(name) for name in self.points}
        least = {
            name: least_error(each, lambda way: math.sqrt(way.loss), lambda way: way.cost).treatment
            for name, each in ways.items()
            if each
        }
        return {name: treatment for name, treatment in least.items() if treatment is not None}

    def share(
        self, budget: ModelBudget, *, others: Mapping[str, str] | None = None, harm: Harm = equal_harm
    ) -> dict[str, PricedWay]:
        """Choose a way for each layer, by one Lagrange multiplier; treatment None: the layer stays dense.

        Treatments whose sizes are given are one way each, and such a layer never stays dense for the budget's sake.

        Args:
            others: layers that have no curve -> why, for the error.
            harm: what the losses of the layers mean for the model, the sum of which is to be small.

        Returns:
            Name -> the way, with the loss of its layer.

        Raises:
            RankError: the budget cannot be met; it says the least that can, and why layers stay dense.
        """
        rest = self.costs.whole - sum(self.costs.dense[name] for name in self.points)
        limit = int(budget.fraction * self.costs.whole) - rest
        while True:
            curves: dict[str, list[PricedWay]] = {}
            for name in self.points:
                ways = [way._replace(loss=harm(name, way.loss)) for way in self.ways(name)]
                fixed = ways and all(treatment.is_sized for treatment in self.offered[name])
                curves[name] = [*ways, *([] if fixed else [PricedWay(self.costs.dense[name], 0.0)])]
            chosen = {name: min(ways, key=lambda way: way.cost) for name, ways in curves.items()}
            least = sum(way.cost for way in chosen.values())
            if least <= limit:
                chosen = allocate(curves, limit)
            open_points = self._open_points(chosen)
            if open_points:
                self.measure(open_points)
            elif least <= limit:
                losses = {way.treatment: way.loss for name in chosen for way in self.ways(name)}
                return {name: way._replace(loss=losses.get(way.treatment, 0.0)) for name, way in chosen.items()}
            else:
                raise self._too_small(budget, rest, least, others or {})

    def _open_points(self, chosen: Mapping[str, PricedWay]) -> list[tuple[str, CurvePoint]]:
        """The chosen points that are not measured; if all of them are, those beside them whose losses are estimated."""
        places = [
            (name, curve, place)
            for name, way in chosen.items()
            for curve in self.points[name]
            for place, point in enumerate(curve)
            if point.treatment is way.treatment
        ]
        estimated = [(name, curve[place]) for name, curve, place in places if not curve[place].is_measured]
        beside = [
            (name, point)
            for name, curve, place in places
            for point in (*curve[max(place - 1, 0) : place], *curve[place + 1 : place + 2])
            if point.loss is None
        ]
        return estimated or beside

    def _too_small(self, budget: ModelBudget, rest: int, least: int, others: Mapping[str, str]) -> RankError:
        """The error of a budget that cannot be met.

        Args:
            rest: cost of what no rewrite touches.
            least: cost of the rewritten layers at their smallest.
        """
        whole = self.costs.whole
        parts = math.ceil(1e4 * (rest + least) / whole)  # rounded up, so that it can be met
        smallest = (parts + (int(parts / 1e4 * whole) < rest + least)) / 1e4
        by_parameters = isinstance(budget, ParameterBudget)
        fix = f"at least '{budget.word} {smallest:g}'"
        rebuilt = "; or candidates='factored', where plans rebuild dense kernels; or more layers"
        counted = self.costs.counted
        return RankError(
            f"a budget of {budget.fraction:g} of {whole} {counted} cannot be met",
            needed=f"{rest} {counted} that no rewrite touches, {least} of the rewritten layers at their smallest",
            dense=group_reasons({**others, **self.why_dense()}) or None,
            fix=fix if by_parameters else f"{fix}{rebuilt}",
        )


def _ways_of(curve: Sequence[CurvePoint], costs: Costs) -> list[PricedWay]:
    """A way for each point of a curve. Where cost or loss are missing, they are estimated from the points beside."""
    counted = [(point.parameters, point.cost / point.guess) for point in curve if point.cost is not None]
    if costs.is_least:
        counted = [(0, 1.0), *counted, (sys.maxsize, 1.0)]
    fitted = [
        (point.parameters, math.log(max(point.loss, LEAST_LOSS) / point.expected))
        for point in curve
        if point.loss is not None
    ]
    ways = []
    for point in curve:
        cost = point.cost or max(1, round(point.guess * _least_beside(counted, point.parameters)))
        loss = point.loss
        if loss is None:
            loss = math.exp(min(0.0, math.log(point.expected) + _between(fitted, point.parameters)))
        ways.append(PricedWay(cost, loss, point.treatment, point.is_measured))
    return ways


def _least_beside(known: Sequence[tuple[int, float]], at: int) -> float:
    """The smaller of the known values on either side. A cost that is taken for too low will be counted."""
    below, above = ([value for place, value in known if sign * (place - at) >= 0] for sign in (-1, 1))
    return min([*below[-1:], *above[:1]])


def _between(known: Sequence[tuple[int, float]], at: int) -> float:
    """Linear between the known values, and beyond the last along the last two."""
    places, values = zip(*known, strict=True)
    if at > places[-1] and len(places) > 1:
        slope = (values[-1] - values[-2]) / max(places[-1] - places[-2], 1)
        return float(values[-1] + slope * (at - places[-1]))
    return float(np.interp(at, places, values))
