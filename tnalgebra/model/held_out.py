"""Share a budget out in several ways, and keep the plan whose outputs diverge least, on inputs held out of the fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

from ..fitting import Metric, ModelBudget
from ..rewriting import Fit
from .budget import PricedWay, Treatment, error_of
from .curves import LEAST_LOSS, CurvePoint, ErrorCurves, Harm, equal_harm
from .divergence import Divergence

STEEPEST = 2.0
"""The divergence that a layer causes rises with its error to a power of at least one over this, at most this."""


def share_by_divergence(
    curves: ErrorCurves,
    budget: ModelBudget,
    divergence: Divergence,
    *,
    metrics: Mapping[str, Metric],
    others: Mapping[str, str] | None = None,
) -> dict[str, PricedWay]:
    """Share a budget out by several weightings of the layers' errors; the plan with the least divergence is kept.

    The weightings are, with e the squared relative error of a layer and d(e) the divergence when this layer alone is
    decomposed, as a power law through two points of its curve:
    - the same for all layers;
    - the square root of d/e between the two points, and d/e itself;
    - d(e) in the place of e.

    Each plan is judged with quick fits, each layer in the norm of its inputs; those of the curves are used again.

    Args:
        curves: see `measure_curves`; their losses are squared relative errors.
        divergence: of the model's outputs, on inputs that the metrics do not depend on.
        metrics: name -> the norm of its fits.
        others: layers that have no curve -> why, for errors.

    Returns:
        See `ErrorCurves.share`.

    Raises:
        RankError: the budget cannot be met.
    """
    trials = _Trials(curves, budget, divergence, metrics, others or {})
    equal = trials.share(equal_harm)
    laws = {name: trials.law(name, way) for name, way in equal.items() if curves.ways(name)}

    def by_law(name: str, loss: float) -> float:
        log_error, log_divergence, power = laws[name]
        return math.exp(log_divergence + power * (math.log(max(loss, LEAST_LOSS)) - log_error))

    def weighted(power: float) -> Harm:
        weights = {name: math.exp(power * (value - error)) for name, (error, value, _) in laws.items()}
        return lambda name, loss: weights[name] * loss

    plans = [equal, *map(trials.share, (weighted(0.5), weighted(1.0), by_law))]
    return min(plans, key=trials.divergence_of)


@dataclass(frozen=True, eq=False)
class _Trials:
    """Carries out plans on a copy of the model."""

    curves: ErrorCurves
    budget: ModelBudget
    divergence: Divergence
    metrics: Mapping[str, Metric]
    others: Mapping[str, str]
    fits: dict[Treatment, Fit] = field(default_factory=dict)

    def share(self, harm: Harm) -> dict[str, PricedWay]:
        return self.curves.share(self.budget, others=self.others, harm=harm)

    def divergence_of(self, ways: Mapping[str, PricedWay]) -> float:
        """Of the model whose layers are decomposed in these ways."""
        chosen = {name: way.treatment for name, way in ways.items() if way.treatment is not None}
        return self.divergence({name: self._fit(name, treatment).dense() for name, treatment in chosen.items()})

    def law(self, name: str, way: PricedWay) -> tuple[float, float, float]:
        """Logarithms of error and divergence halfway between two points of a layer's curve, and the power between."""
        curve = next((one for one in self.curves.points[name] if any(way.treatment is p.treatment for p in one)), None)
        curve = curve or self.curves.points[name][0]
        points = [curve[len(curve) // 3], curve[2 * len(curve) // 3]]
        fits = [self._fit(name, point.treatment) for point in points]
        measured = self.divergence.each([{name: fit.dense()} for fit in fits])
        errors = [math.log(max(error_of(fit) ** 2, LEAST_LOSS)) for fit in fits]
        values = [math.log(max(value, LEAST_LOSS)) for value in measured]
        between = errors[1] - errors[0]
        power = (values[1] - values[0]) / between if between else 1.0
        return sum(errors) / 2, sum(values) / 2, min(max(power, 1 / STEEPEST), STEEPEST)

    def _fit(self, name: str, treatment: Treatment) -> Fit:
        """A fit of a point of a curve: the quick one, where it was measured by one."""
        if treatment not in self.fits:
            points = chain.from_iterable(self.curves.points[name])
            point: CurvePoint = next(point for point in points if point.treatment is treatment)
            metrics = [self.metrics[name]] if name in self.metrics else None
            weight = self.divergence.original(name)
            self.fits[treatment] = point.fit or treatment.apply([weight], None, metrics=metrics)[0]
        return self.fits[treatment]
