"""The error curves of the layers of a model: what each may be turned into, at what cost and error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from ..errors import RankError, TnalgebraError
from ..fitting import Metric, ModelBudget, ParameterBudget
from ..networks import Network
from ..nn import fit_constants
from ..rewriting import Choices, Fit, Outline
from .budget import Treatment, Way, allocate, error_of, group_reasons, ranks_of
from .progress import progress_bar

FRACTIONS = (0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""Parts of a kernel's parameters at which its error curve has points."""

CURVE_STARTS, CURVE_SWEEPS = 2, 4
"""Starts and sweeps of a fit that measures a point: the order of the points matters, not their last digit."""

LEAST_LOSS = 1e-12
"""Losses below this are equal where they are interpolated."""


@dataclass(frozen=True, eq=False)
class Costs:
    """What the budget is spent on.

    counted: "parameters", "multiply-adds" or "nanoseconds".
    whole: of the model as it is.
    dense: name -> of the layer as it is.
    of_network: name, the network of its kernel, names of the network's constants -> of the layer decomposed.
    guess: name, the network of its kernel -> about proportional to `of_network`, and much faster.
    """

    counted: str
    whole: int
    dense: Mapping[str, int]
    of_network: Callable[[str, Network, frozenset[str]], int]
    guess: Callable[[str, Network], float]


def parameter_costs(model: nn.Module, weights: Mapping[str, Tensor]) -> Costs:
    """Count parameters: of the whole model, of the kernels, of the cores of fits."""
    whole = sum(parameter.numel() for parameter in model.parameters())
    dense = {name: weight.numel() for name, weight in weights.items()}

    def count(name: str, network: Network, *constants: object) -> int:
        return network.parameters

    return Costs("parameters", whole, dense, count, count)


@dataclass(eq=False)
class Point:
    """A treatment of a layer at one size.

    treatment: with integer ranks.
    network: of the kernel, with these ranks.
    constants: names of its tensors that are not fitted.
    guess: about proportional to the cost.
    expected: about proportional to the loss, where anything is known about it.
    cost: of the layer; None as long as it was not counted.
    loss: that it causes; None as long as it was not measured.
    """

    treatment: Treatment
    network: Network
    constants: frozenset[str]
    guess: float
    expected: float = 1.0
    cost: int | None = None
    loss: float | None = None

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
    points: Mapping[str, Sequence[Sequence[Point]]]
    refused: Mapping[str, TnalgebraError]
    measure: Callable[[Sequence[tuple[str, Point]]], Mapping[str, TnalgebraError]]

    def ways(self, name: str) -> list[Way]:
        """The points of a layer that make it smaller, with estimates where nothing was measured."""
        ways = [way for curve in self.points[name] for way in _ways_of(curve)]
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
        least = {name: min(each, key=lambda way: way.loss).treatment for name, each in ways.items() if each}
        return {name: treatment for name, treatment in least.items() if treatment is not None}

    def share(self, budget: ModelBudget, *, others: Mapping[str, str] | None = None) -> dict[str, Way]:
        """Choose a way for each layer, by one Lagrange multiplier; treatment None: the layer stays dense.

        Treatments whose sizes are given are one way each, and such a layer never stays dense for the budget's sake.

        Args:
            others: layers that have no curve -> why, for the error.

        Raises:
            RankError: the budget cannot be met; it says the least that can, and why layers stay dense.
        """
        rest = self.costs.whole - sum(self.costs.dense[name] for name in self.points)
        limit = int(budget.fraction * self.costs.whole) - rest
        while True:
            curves: dict[str, list[Way]] = {}
            for name in self.points:
                ways = self.ways(name)
                fixed = ways and all(treatment.is_sized for treatment in self.offered[name])
                curves[name] = [*ways, *([] if fixed else [Way(self.costs.dense[name], 0.0)])]
            chosen = {name: min(ways, key=lambda way: way.cost) for name, ways in curves.items()}
            least = sum(way.cost for way in chosen.values())
            if least <= limit:
                chosen = allocate(curves, limit)
            open_points = self._open_points(chosen)
            if open_points:
                self.measure(open_points)
            elif least <= limit:
                return chosen
            else:
                raise self._too_small(budget, rest, least, others or {})

    def _open_points(self, chosen: Mapping[str, Way]) -> list[tuple[str, Point]]:
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


def _ways_of(curve: Sequence[Point]) -> list[Way]:
    """A way for each point of a curve. Where cost or loss are missing, they are estimated from the points beside."""
    counted = [(point.parameters, point.cost / point.guess) for point in curve if point.cost is not None]
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
            loss = min(1.0, point.expected * math.exp(_between(fitted, point.parameters)))
        ways.append(Way(cost, loss, point.treatment, point.is_measured))
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


def measure_curves(
    weights: Mapping[str, Tensor],
    offered: Mapping[str, Sequence[Treatment]],
    costs: Costs,
    *,
    metrics: Mapping[str, Metric] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    loss_of: Callable[[str, Fit], float] | None = None,
    progress: bool = False,
) -> ErrorCurves:
    """Find what each layer may be turned into, at several sizes.

    The squared errors of trees follow from one factorisation of each kernel. Other right sides are fitted at a few
    sizes, layers of one shape side by side.

    Args:
        metrics: name -> the norm of its fits; by default the Frobenius norm.
        fractions: parts of a kernel's parameters, which are the sizes of treatments without sizes.
        loss_of: name, fit -> what it costs the network, which is then measured at every point; by default its squared
            relative error.
        progress: show a bar.
    """
    measure = _Measurement(weights, costs, metrics or {}, loss_of)
    points: dict[str, list[list[Point]]] = {name: [] for name in offered}
    refused: dict[str, TnalgebraError] = {}
    with progress_bar("error curves", sum(map(len, offered.values())), shown=progress) as bar:
        for name, treatments in offered.items():
            for treatment in treatments:
                bar.update()
                try:
                    curve = measure.points(name, treatment, fractions)
                except TnalgebraError as error:
                    refused[name] = error
                    continue
                if curve:
                    points[name].append(curve)
        first = [(name, point) for name, curves in points.items() for curve in curves for point in measure.first(curve)]
        failed = measure(first)
    refused |= failed
    for name in failed:
        points[name] = [curve for curve in points[name] if any(point.loss is not None for point in curve)]
    return ErrorCurves(
        offered, costs, points, {name: error for name, error in refused.items() if not points[name]}, measure
    )


@dataclass(frozen=True, eq=False)
class _Measurement:
    """Counts the costs of points, and fits those whose loss is not known."""

    weights: Mapping[str, Tensor]
    costs: Costs
    metrics: Mapping[str, Metric]
    loss_of: Callable[[str, Fit], float] | None

    def points(self, name: str, treatment: Treatment, fractions: Sequence[float]) -> list[Point]:
        """The points of a treatment, each once, without costs; with losses where these need no fit."""
        weight = self.weights[name].detach()
        if treatment.rule is None:
            (fit,) = treatment.apply([weight], None, metrics=None)
            return self._smaller([self._point(name, treatment, fit)], weight)
        sizes = [treatment.size or {}] if treatment.is_sized else [ParameterBudget(part) for part in fractions]
        norm = None if "metric" in treatment.choices else self.metrics.get(name)
        choices: Choices = treatment.choices if norm is None else {**treatment.choices, "metric": norm}
        outline = treatment.rule.outline(weight, **choices)
        points: dict[str, Point] = {}
        for size in sizes:
            try:
                if outline is None:
                    (fit,) = self._fit(replace(treatment, size=size), [name])
                    point = self._point(name, treatment, fit)
                else:
                    point = self._outlined(name, treatment, outline, outline.ranks(size))
            except RankError:
                if treatment.is_sized:
                    raise
                continue  # even rank 1 is larger than this part
            points.setdefault(repr(point.treatment.size), point)
        return self._smaller(list(points.values()), weight)

    def _point(self, name: str, treatment: Treatment, fit: Fit) -> Point:
        """A point that was fitted already."""
        at_ranks = treatment.at_ranks(ranks_of(fit), fit.parameters)
        return Point(
            at_ranks, fit.network, fit_constants(fit), self.costs.guess(name, fit.network), loss=self._loss(name, fit)
        )

    def _outlined(self, name: str, treatment: Treatment, outline: Outline, ranks: Mapping[str, int]) -> Point:
        network = outline.network(ranks)
        loss = outline.loss(ranks) if self.loss_of is None else None
        expected = 1.0 if loss is None else max(loss, LEAST_LOSS)
        at_ranks = treatment.at_ranks(ranks, network.parameters)
        guess = self.costs.guess(name, network)
        return Point(
            at_ranks, network, outline.constants, guess, expected, loss=loss if outline.curve.is_exact else None
        )

    def _smaller(self, points: Sequence[Point], weight: Tensor) -> list[Point]:
        smaller = [point for point in points if point.parameters < weight.numel()]
        return sorted(smaller, key=lambda point: point.parameters)

    def _loss(self, name: str, fit: Fit) -> float:
        return error_of(fit) ** 2 if self.loss_of is None else self.loss_of(name, fit)

    def first(self, curve: Sequence[Point]) -> Sequence[Point]:
        """The points of a curve that are measured before any is chosen: all of them where a loss is a forward pass."""
        if self.loss_of is not None or len(curve) <= 2:
            return curve
        return [curve[len(curve) // 3], curve[2 * len(curve) // 3]]

    def __call__(self, points: Sequence[tuple[str, Point]]) -> dict[str, TnalgebraError]:
        """Set cost and loss of points. Layers of one shape are fitted side by side.

        Returns:
            name -> the error of a fit that failed.
        """
        failed: dict[str, TnalgebraError] = {}
        groups: dict[tuple[object, ...], list[tuple[str, Point]]] = {}
        for name, point in points:
            if point.cost is None:
                point.cost = self.costs.of_network(name, point.network, point.constants)
            if point.loss is None:
                weight = self.weights[name]
                alike = (point.treatment.rule, repr(point.treatment), weight.shape, weight.dtype, weight.device)
                groups.setdefault((*alike, name in self.metrics), []).append((name, point))
        for group in groups.values():
            names = [name for name, _ in group]
            try:
                fits = self._fit(group[0][1].treatment, names)
            except TnalgebraError as error:
                failed.update(dict.fromkeys(names, error))
                continue
            for (name, point), fit in zip(group, fits, strict=True):
                point.loss = self._loss(name, fit)
        return failed

    def _fit(self, treatment: Treatment, names: Sequence[str]) -> list[Fit]:
        """Quick fits of layers of one shape."""
        quick = replace(treatment, choices={"sweeps": CURVE_SWEEPS, "starts": CURVE_STARTS, **treatment.choices})
        metrics = [self.metrics[name] for name in names if name in self.metrics]
        return quick.apply([self.weights[name].detach() for name in names], None, metrics=metrics or None)
