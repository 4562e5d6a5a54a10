"""The points of error curves: from one factorisation of a kernel where it shows the errors, else from a few fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..errors import RankError, TnalgebraError
from ..fitting import Metric, ParameterBudget
from ..networks import count_parameters
from ..rewriting import Choices, Fit, Outline
from .budget import Treatment, error_of, ranks_of
from .curves import LEAST_LOSS, Costs, CurvePoint, ErrorCurves
from .progress import progress_bar

FRACTIONS = (0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""Parts of a kernel's parameters at which its error curve has points."""

CURVE_STARTS, CURVE_SWEEPS = 2, 4
"""Starts and sweeps of a fit that measures a point: the order of the points matters, not their last digit."""


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
    points: dict[str, list[list[CurvePoint]]] = {name: [] for name in offered}
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

    def points(self, name: str, treatment: Treatment, fractions: Sequence[float]) -> list[CurvePoint]:
        """The points of a treatment, each once, without costs; with losses where these need no fit."""
        weight = self.weights[name].detach()
        if treatment.rule is None:
            (fit,) = treatment.apply([weight], None, metrics=None)
            return self._smaller([self._point(name, treatment, fit)], weight)
        sizes = [treatment.size or {}] if treatment.is_sized else [ParameterBudget(part) for part in fractions]
        norm = None if "metric" in treatment.choices else self.metrics.get(name)
        choices: Choices = treatment.choices if norm is None else {**treatment.choices, "metric": norm}
        outline = treatment.rule.outline(weight, **choices)
        points: dict[str, CurvePoint] = {}
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

    def _point(self, name: str, treatment: Treatment, fit: Fit) -> CurvePoint:
        """A point that was fitted already."""
        at_ranks = treatment.at_ranks(ranks_of(fit), fit.parameters)
        return CurvePoint(
            at_ranks,
            fit.network,
            fit.constants,
            self.costs.guess(name, fit.network),
            loss=self._loss(name, fit),
            fit=fit,
        )

    def _outlined(self, name: str, treatment: Treatment, outline: Outline, ranks: Mapping[str, int]) -> CurvePoint:
        network = outline.network(ranks)
        loss = outline.loss(ranks) if self.loss_of is None else None
        expected = 1.0 if loss is None else max(loss, LEAST_LOSS)
        at_ranks = treatment.at_ranks(ranks, count_parameters(network, outline.constants))
        guess = self.costs.guess(name, network)
        return CurvePoint(
            at_ranks, network, outline.constants, guess, expected, loss=loss if outline.curve.is_exact else None
        )

    def _smaller(self, points: Sequence[CurvePoint], weight: Tensor) -> list[CurvePoint]:
        smaller = [point for point in points if point.parameters < weight.numel()]
        return sorted(smaller, key=lambda point: point.parameters)

    def _loss(self, name: str, fit: Fit) -> float:
        return error_of(fit) ** 2 if self.loss_of is None else self.loss_of(name, fit)

    def first(self, curve: Sequence[CurvePoint]) -> Sequence[CurvePoint]:
        """The points of a curve that are measured before any is chosen: all of them where a loss is a forward pass.

        None where losses are known and estimated costs are never too high, so that a choice misses no point.
        """
        if self.loss_of is not None:
            return curve
        if self.costs.is_least and all(point.loss is not None for point in curve):
            return []
        if len(curve) <= 2:
            return curve
        return [curve[len(curve) // 3], curve[2 * len(curve) // 3]]

    def __call__(self, points: Sequence[tuple[str, CurvePoint]]) -> dict[str, TnalgebraError]:
        """Set cost and loss of points. Layers of one shape are fitted side by side.

        Returns:
            name -> the error of a fit that failed.
        """
        failed: dict[str, TnalgebraError] = {}
        groups: dict[tuple[object, ...], list[tuple[str, CurvePoint]]] = {}
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
                point.loss, point.fit = self._loss(name, fit), fit
        return failed

    def _fit(self, treatment: Treatment, names: Sequence[str]) -> list[Fit]:
        """Quick fits of layers of one shape."""
        quick = replace(treatment, choices={"sweeps": CURVE_SWEEPS, "starts": CURVE_STARTS, **treatment.choices})
        metrics = [self.metrics[name] for name in names if name in self.metrics]
        return quick.apply([self.weights[name].detach() for name in names], None, metrics=metrics or None)
