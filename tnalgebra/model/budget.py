"""One budget for many layers: which point of its error curve each layer gets, by one Lagrange multiplier."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias, TypeVar, Unpack

import torch
from torch import Tensor, nn

from ..errors import LayerError, RankError, RuleError, StudyError, TnalgebraError, explain
from ..fitting import Metric, MultiplyAddsBudget, ParameterBudget
from ..nn import DenseLayer, kernel_layers
from ..rewriting import Choices, Fit, Rule
from .input_metrics import RIDGE, fit_in_order

# allocation: One budget for many layers: which point of its error curve each layer gets, by one Lagrange multiplier.


class Point(NamedTuple):
    """A way to treat a layer: what it takes, and what it costs the network."""

    parameters: int
    loss: float


def allocate(curves: Mapping[str, Sequence[Point]], limit: int) -> dict[str, int]:
    """Choose a point for each layer so that the sum of the losses is small and the parameters keep within a limit.

    The sum of losses plus a multiplier times the parameters falls apart into layers: for any multiplier the best
    points are vertices of the layers' lower convex hulls (Everett 1963). The multiplier is the largest saving of loss
    a parameter that still fits; what is left over is then spent on the single moves that save most.

    Args:
        curves: layer -> its points, in any order; a layer that may stay dense has that as a point of loss 0.
        limit: parameters of all layers together.

    Returns:
        layer -> number of its point.

    Raises:
        RankError: the smallest points of all layers together are above the limit, or a layer has no point.
    """
    for name, points in curves.items():
        if not points:
            raise RankError(explain(f"layer {name!r} has no way to be treated"))
    least = {name: min(range(len(p)), key=lambda i: (p[i].parameters, p[i].loss)) for name, p in curves.items()}
    total = sum(curves[name][number].parameters for name, number in least.items())
    if total > limit:
        raise RankError(
            explain(
                f"a budget of {limit} parameters for {len(curves)} layers cannot be met",
                least=f"{total}, each layer at its smallest",
                fix="a larger budget, smaller ranks, or another decomposition",
            )
        )
    chosen = dict(least)
    # the steps along all hulls, the steepest first; on a hull they come in order by themselves
    steps = [
        (_gain(curves[name][before], curves[name][after]), name, after)
        for name, points in curves.items()
        for before, after in _steps(lower_hull(points))
    ]
    for _, name, after in sorted(steps, key=lambda step: -step[0]):
        total_after = total + curves[name][after].parameters - curves[name][chosen[name]].parameters
        if total_after > limit:
            break
        chosen[name], total = after, total_after
    return _filled(curves, chosen, limit - total)


def allocate_part(
    curves: Mapping[str, Sequence[Point]],
    part: float,
    *,
    whole: int,
    rest: int,
    counted: str = "parameters",
    fix: str | None = None,
) -> dict[str, int]:
    """Choose a point for each layer, so that a part of a whole model is kept; see `allocate`.

    Args:
        part: in (0, 1].
        whole: what the model takes as it is.
        rest: what of that the curves do not stand for: it stays.
        counted: what is shared out, in messages.
        fix: what to do where the budget cannot be met, likewise.

    Raises:
        RankError: the budget cannot be met, and the least part that can.
    """
    try:
        return allocate(curves, int(part * whole) - rest)
    except RankError as error:
        least = rest + sum(min(point.parameters for point in curve) for curve in curves.values())
        smallest = math.ceil(1e4 * least / whole) / 1e4  # rounded up, so that it can be met
        raise RankError(
            explain(
                f"a budget of {part:g} of {whole} {counted} cannot be met",
                least=f"{smallest:.4f}: {rest} are not touched, the layers take {least - rest}",
                fix=fix,
            )
        ) from error


def lower_hull(points: Sequence[Point]) -> list[int]:
    """Numbers of the points on the lower convex hull, from the fewest parameters to the least loss."""
    order = sorted(range(len(points)), key=lambda i: (points[i].parameters, points[i].loss))
    hull: list[int] = []
    for number in order:
        if hull and points[number].loss >= points[hull[-1]].loss:
            continue
        while len(hull) > 1 and _gain(points[hull[-2]], points[hull[-1]]) <= _gain(points[hull[-1]], points[number]):
            hull.pop()
        hull.append(number)
    return hull


def _steps(hull: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise(hull))


def _gain(before: Point, after: Point) -> float:
    """Loss saved for each parameter added."""
    return (before.loss - after.loss) / (after.parameters - before.parameters)


def _filled(curves: Mapping[str, Sequence[Point]], chosen: dict[str, int], room: int) -> dict[str, int]:
    """Spend what is left: again and again the move that saves most loss a parameter, among those that fit."""
    while True:
        moves = []
        for name, points in curves.items():
            now = points[chosen[name]]
            for number, point in enumerate(points):
                cost = point.parameters - now.parameters
                if point.loss < now.loss and cost <= room:
                    moves.append(((now.loss - point.loss) / max(cost, 1e-9), name, number, cost))
        if not moves:
            return chosen
        _, name, number, cost = max(moves, key=lambda move: move[0])
        chosen[name], room = number, room - cost


# compression: Decompose the layers of a model together: ranks of all under one budget, fits in the norm that matters.


MetricName: TypeAlias = Literal["frobenius", "input", "output"]
"""Kernels as they are; the layer's output over its inputs; the original output from the inputs left by the layers
before."""

Curves: TypeAlias = Literal["error", "divergence"]
"""What a layer's treatment costs: the squared relative error of its fit; or the divergence of the network's output."""

FRACTIONS = (0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""Parts of a kernel's parameters at which its error curve is measured."""

CURVE_SWEEPS = 6
"""Sweeps for a point of a curve: the order of the points matters, not their last digit."""


@dataclass(frozen=True, eq=False)
class Planned:
    """What is to be done to a layer: a rule, the ranks of its bonds, the parameters of its cores."""

    rule: Rule
    ranks: dict[str, int]
    parameters: int


def plan_budget(
    model: nn.Module,
    layers: Mapping[str, Sequence[Rule]],
    budgets: Sequence[float],
    *,
    metrics: Mapping[str, Metric] | None = None,
    curves: Curves = "error",
    inputs: Sequence[Tensor] = (),
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
) -> list[dict[str, Planned]]:
    """Share a budget of parameters out among layers, by one Lagrange multiplier over their error curves.

    Each layer is fitted with each of its rules at several sizes. A curve's points are the parameters and what they
    cost; a layer may also stay as it is, which costs nothing.

    Args:
        layers: name of a layer -> the rules it may be rewritten by.
        budgets: parts of all parameters of the model, in (0, 1], those of layers that are not touched included.
        metrics: name -> the norm of its fits; by default the Frobenius norm.
        curves: "error": the squared relative error of the fit, in its norm. "divergence": the mean Kullback-Leibler
            divergence of the network's softmax outputs on `inputs` when this layer alone is replaced; a forward
            pass over them for each point.
        inputs: batches of the network's inputs.
        seed: of the fits.
        fractions: parts of a kernel's parameters at which its curves are measured.

    Returns:
        For each budget: name -> what to do. A layer that is not in it stays as it is.

    Raises:
        RankError: a budget is no fraction, or cannot be met; it says the least that can.
        LayerError, RuleError: a name that no kernel layer has; a layer without rules.
        StudyError: `curves` is none of the two, or there are no inputs where they are needed.
    """
    for budget in budgets:
        if isinstance(budget, bool) or not 0 < budget <= 1:
            raise RankError(
                explain(f"a budget of {budget!r}", fix="the part of all parameters that is kept, in (0, 1]")
            )
    if curves not in ("error", "divergence"):
        raise StudyError(explain(f"curves={curves!r}", fix="'error' or 'divergence'"))
    if curves == "divergence" and not inputs:
        raise StudyError(explain("the divergence of outputs needs inputs", fix="inputs=[batch, ...]"))
    modules = kernel_layers(model)
    for name, offered in layers.items():
        if name not in modules:
            raise LayerError(explain(f"the model has no kernel layer {name!r}", layers=", ".join(modules)))
        if not offered or not all(isinstance(rule, Rule) for rule in offered):
            given = ", ".join(map(repr, offered)) or "nothing"
            raise RuleError(explain(f"layer {name!r} may be rewritten by {given}", fix="rules: [tn.cut(...), ...]"))
    choices = _choices(layers, modules, metrics, fractions, seed)
    points = {
        name: [Point(modules[name].weight.numel(), 0.0)]
        + [Point(planned.parameters, error**2) for planned, _, error in found]
        for name, found in choices.items()
    }
    if curves == "divergence":
        judge = Divergence(model, inputs)
        for name, found in choices.items():
            losses = judge.losses(name, [weight for _, weight, _ in found])
            points[name][1:] = [Point(p.parameters, loss) for p, loss in zip(points[name][1:], losses, strict=True)]
    whole = sum(parameter.numel() for parameter in model.parameters())
    rest = whole - sum(modules[name].weight.numel() for name in layers)
    plans = []
    for budget in budgets:
        chosen = allocate_part(points, budget, whole=whole, rest=rest)
        plans.append({name: choices[name][number - 1][0] for name, number in chosen.items() if number})
    return plans


Choice: TypeAlias = tuple[Planned, Tensor, float]
"""A treatment of a kernel: what is done, the kernel it gives, the relative error it makes."""


def _choices(
    layers: Mapping[str, Sequence[Rule]],
    modules: Mapping[str, DenseLayer],
    metrics: Mapping[str, Metric] | None,
    fractions: Sequence[float],
    seed: int,
) -> dict[str, list[Choice]]:
    """For each layer every treatment that saves something; layers of one shape are fitted side by side."""
    found: dict[str, list[Choice]] = {name: [] for name in layers}
    weights = {name: modules[name].weight for name in layers}
    for names, rules in side_by_side(weights, layers):
        own = [weights[name] for name in names]
        norms = None if metrics is None else [metrics[name] for name in names]
        for rule in rules:
            for fraction in fractions:
                fits = fits_of_size(rule, own, fraction, metrics=norms, seed=seed)
                for name, fit in zip(names, fits, strict=bool(fits)):
                    if fit.parameters < weights[name].numel():
                        ranks = dict(fit.trace.steps[-1].change.ranks)
                        found[name].append((Planned(rule, ranks, fit.parameters), fit.dense(), error_of(fit)))
    return found


Offered = TypeVar("Offered", bound=Hashable)


def side_by_side(
    weights: Mapping[str, Tensor], offered: Mapping[str, Sequence[Offered]]
) -> list[tuple[list[str], tuple[Offered, ...]]]:
    """Names of layers whose weights are of one kind and that are offered the same, with what that is."""
    groups: dict[tuple[object, tuple[Offered, ...]], list[str]] = {}
    for name, weight in weights.items():
        groups.setdefault(((weight.shape, weight.dtype, weight.device), tuple(offered[name])), []).append(name)
    return [(names, ways) for (_, ways), names in groups.items()]


def fits_of_size(
    rule: Rule,
    weights: Sequence[Tensor],
    fraction: float,
    *,
    metrics: Sequence[Metric] | None,
    **choices: Unpack[Choices],
) -> list[Fit]:
    """Fit kernels of one shape at a part of their parameters; none where even rank 1 is more than that.

    The sweeps are few unless `choices` say how many.
    """
    own: Choices = {"sweeps": CURVE_SWEEPS, **choices, "ranks": ParameterBudget(fraction)}
    try:
        return rule.apply_many([{rule.tensor: weight.detach()} for weight in weights], metrics=metrics, **own)
    except RankError:
        return []


def error_of(fit: Fit) -> float:
    """Relative error of the layer's output where the fit had a metric, of the kernel otherwise."""
    return fit.relative_error if fit.output_error is None else fit.output_error


class Divergence:
    """KL(original || with a layer replaced) of the softmax outputs, mean over the inputs, in nats."""

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        self.model = deepcopy(model).eval()
        self.modules = kernel_layers(self.model)
        self.inputs = inputs
        self.reference = self._outputs()

    def _outputs(self) -> Tensor:
        with torch.inference_mode():
            return torch.cat([self.model(batch).double().log_softmax(1) for batch in self.inputs])

    def losses(self, name: str, weights: Sequence[Tensor]) -> list[float]:
        """One for each weight of the layer."""
        own = self.modules[name].weight
        before = own.detach().clone()
        found = []
        with torch.no_grad():
            for weight in weights:
                own.copy_(weight)
                outputs = self._outputs()
                found.append(float((self.reference.exp() * (self.reference - outputs)).sum(1).mean().clamp(min=0)))
            own.copy_(before)
        return found


def fit_planned(
    model: nn.Module,
    planned: Mapping[str, Planned],
    *,
    metric: MetricName = "frobenius",
    metrics: Mapping[str, Metric] | None = None,
    inputs: Sequence[Tensor] = (),
    ridge: float = RIDGE,
    seed: int = 0,
) -> dict[str, Fit]:
    """Fit the layers of a plan.

    Args:
        metric: "frobenius": each kernel for itself. "input": each in the norm of its own inputs, which `metrics`
            holds. "output": in the order they run, each to the original network's output, from the inputs it gets
            in the network as compressed so far.
        metrics: name -> metric, for "input".
        inputs: batches of the network's inputs, for "output".
        ridge: of the covariances for "output", see `Metric.with_ridge`.
        seed: of the fits.

    Returns:
        name -> fit, in the order of the plan; `fit.dense()` is the layer's new weight.

    Raises:
        StudyError: `metric` is none of the three, or lacks what it needs.
    """
    if metric not in ("frobenius", "input", "output"):
        raise StudyError(explain(f"metric={metric!r}", fix="'frobenius', 'input' or 'output'"))
    if metric == "input" and (metrics is None or not metrics.keys() >= planned.keys()):
        raise StudyError(explain("fits in the input metric need the layers' metrics", fix="calibration.input_metrics"))
    if metric == "output" and not inputs:
        raise StudyError(explain("fits to the outputs need inputs", fix="inputs=[batch, ...]"))

    def fitted(name: str, weight: Tensor, norm: Metric | None) -> Fit:
        plan = planned[name]
        return plan.rule.apply({plan.rule.tensor: weight}, ranks=plan.ranks, metric=norm, seed=seed)

    modules = kernel_layers(model)
    if metric != "output":
        return {
            name: fitted(name, modules[name].weight, metrics[name] if metric == "input" and metrics else None)
            for name in planned
        }
    fits: dict[str, Fit] = {}

    def keep(name: str, weight: Tensor, norm: Metric) -> Tensor:
        fits[name] = fitted(name, weight, norm)
        return fits[name].dense()

    if planned:
        fit_in_order(model, inputs, keep, layers=list(planned), ridge=ridge)
    return {name: fits[name] for name in planned}


# conversion_budget: One budget of parameters or multiply-adds for all layers of a conversion, several rewrites offered to each.


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
