"""One budget of parameters or multiply-adds for all layers of a conversion, several rewrites offered to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .allocation import Point, allocate_part
from .compression import CURVE_SWEEPS, error_of, fits_of_size, side_by_side
from .errors import TnalgebraError
from .fitting.metric import Metric
from .options import Choices
from .ranks import MultiplyAddsBudget, ParameterBudget
from .rewriting import Fit, Rule

ModelBudget = ParameterBudget | MultiplyAddsBudget


@dataclass(frozen=True, eq=False)
class Treatment:
    """A rule for a layer, and the choices it is applied with."""

    rule: Rule
    choices: Choices

    def with_ranks(self, ranks: Mapping[str, int]) -> Treatment:
        return Treatment(self.rule, {**self.choices, "ranks": dict(ranks)})


@dataclass(frozen=True, eq=False)
class Way:
    """A point of a layer's curve: what is done, what it takes of the budget, the error it makes."""

    treatment: Treatment
    cost: int
    error: float


@dataclass(frozen=True, eq=False)
class Costs:
    """What the budget is spent on.

    whole: of the model as it is.
    dense: name -> of the layer as it is.
    of_fit: name, rule, fit -> of the layer decomposed.
    """

    whole: int
    dense: Mapping[str, int]
    of_fit: Callable[[str, Rule, Fit], int]


@dataclass(frozen=True, eq=False)
class Shares:
    """What a budget gives to the layers; those that are nowhere here stay dense, since that is worth its price.

    picked: name -> treatment.
    refused: name -> why no treatment can be applied.
    larger: layers that no treatment makes smaller.
    """

    picked: Mapping[str, Treatment]
    refused: Mapping[str, str]
    larger: frozenset[str]


def share(
    budget: ModelBudget,
    weights: Mapping[str, Tensor],
    offered: Mapping[str, Sequence[Treatment]],
    costs: Costs,
    *,
    metrics: Mapping[str, Metric] | None,
    fractions: Sequence[float],
) -> Shares:
    """Choose one treatment, with integer ranks, for each layer that is not to stay dense.

    One Lagrange multiplier over the layers' error curves, see `allocation.allocate`: what a layer costs the model is
    the squared relative error of its fit, in the norm of its metric where there is one. Treatments whose ranks are
    given are one point each, and such a layer never stays dense for the budget's sake.

    Raises:
        RankError: the budget cannot be met; it says the least that can.
    """
    ways, refused = _curves(weights, offered, costs, metrics, fractions)
    points: dict[str, list[Point]] = {}
    for name, found in ways.items():
        fixed = bool(found) and all(treatment.choices.get("ranks") is not None for treatment in offered[name])
        stay = [] if fixed else [Point(costs.dense[name], 0.0)]
        points[name] = [*(Point(way.cost, way.error**2) for way in found), *stay]
    rest = costs.whole - sum(costs.dense[name] for name in points)
    counted, fix = "parameters", None
    if isinstance(budget, MultiplyAddsBudget):
        counted, fix = "multiply-adds", "candidates='factored', where plans rebuild dense kernels; more layers"
    chosen = allocate_part(points, budget.fraction, whole=costs.whole, rest=rest, counted=counted, fix=fix)
    picked = {name: ways[name][number].treatment for name, number in chosen.items() if number < len(ways[name])}
    return Shares(picked, refused, frozenset(name for name, found in ways.items() if not found))


def _curves(
    weights: Mapping[str, Tensor],
    offered: Mapping[str, Sequence[Treatment]],
    costs: Costs,
    metrics: Mapping[str, Metric] | None,
    fractions: Sequence[float],
) -> tuple[dict[str, list[Way]], dict[str, str]]:
    """For each layer every treatment that saves something; layers of one shape are fitted side by side."""
    ways: dict[str, list[Way]] = {name: [] for name in offered}
    refused: dict[str, str] = {}
    for names, treatments in side_by_side(weights, offered):
        for treatment in treatments:
            given = treatment.choices.get("ranks")
            for fraction in fractions if given is None else [None]:
                try:
                    fits = _fits(treatment, [weights[name] for name in names], names, metrics, fraction)
                except TnalgebraError as error:
                    refused.update({name: str(error) for name in names})
                    continue
                for name, fit in zip(names, fits, strict=bool(fits)):
                    chosen = treatment.with_ranks(fit.trace.steps[-1].change.ranks)
                    cost = costs.of_fit(name, treatment.rule, fit)
                    if cost < costs.dense[name] and fit.parameters < weights[name].numel():
                        ways[name].append(Way(chosen, cost, error_of(fit)))
    refused = {name: reason for name, reason in refused.items() if not ways[name]}
    return ways, refused


def _fits(
    treatment: Treatment,
    weights: Sequence[Tensor],
    names: Sequence[str],
    metrics: Mapping[str, Metric] | None,
    fraction: float | None,
) -> list[Fit]:
    """Of every kernel, at a part of its parameters, or at the ranks that the treatment has."""
    rule, own = treatment.rule, treatment.choices
    norms = None if metrics is None or "metric" in own else [metrics[name] for name in names]
    if fraction is not None:
        return fits_of_size(rule, weights, fraction, metrics=norms, **own)
    own = {"sweeps": CURVE_SWEEPS, **own}
    return rule.apply_many([{rule.tensor: weight.detach()} for weight in weights], metrics=norms, **own)
