"""One budget for many layers: error curves of what each layer is offered, shared out by one Lagrange multiplier."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import LayerError, RankError, RuleError, StudyError, TnalgebraError, explain
from ..fitting import Metric, MultiplyAddsBudget, ParameterBudget
from ..nn import kernel_layers
from ..rewriting import Fit, Rule, SizedChoices
from .input_metrics import RIDGE, fit_in_order

MetricName: TypeAlias = Literal["frobenius", "input", "output"]
"""Kernels as they are; the layer's output over its inputs; the original output from the inputs left by the layers
before."""

Curves: TypeAlias = Literal["error", "divergence"]
"""What a layer's treatment costs: the squared relative error of its fit; or the divergence of the network's output."""

ModelBudget: TypeAlias = ParameterBudget | MultiplyAddsBudget

FRACTIONS = (0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""Parts of a kernel's parameters at which its error curve is measured."""

CURVE_SWEEPS = 6
"""Sweeps for a point of a curve: the order of the points matters, not their last digit."""


@dataclass(frozen=True, eq=False)
class Treatment:
    """A rule for a layer, and the choices it is applied with."""

    rule: Rule
    choices: SizedChoices


class Way(NamedTuple):
    """A point of a layer's curve: what it takes of the budget, the loss it causes, what is done (None: nothing)."""

    cost: int
    loss: float
    treatment: Treatment | None = None


# The multiplier -----------------------------------------------------------------------------------------------


def allocate(curves: Mapping[str, Sequence[Way]], limit: int) -> dict[str, Way]:
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


def lower_hull(ways: Sequence[Way]) -> list[Way]:
    """The ways on the lower convex hull, from the cheapest to the one of least loss."""
    hull: list[Way] = []
    for way in sorted(ways, key=lambda way: (way.cost, way.loss)):
        if hull and way.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], way):
            hull.pop()
        hull.append(way)
    return hull


def _gain(before: Way, after: Way) -> float:
    """Loss saved for each unit of cost added."""
    return (before.loss - after.loss) / (after.cost - before.cost)


# The curves and the sharer ------------------------------------------------------------------------------------


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
class ErrorCurves:
    """What each layer may be turned into, measured once; any number of budgets can be shared out.

    offered: name -> treatments, as they were given.
    ways: name -> treatments that make the layer smaller, with integer ranks.
    refused: name -> why no treatment can be applied at all.
    """

    offered: Mapping[str, Sequence[Treatment]]
    costs: Costs
    ways: Mapping[str, Sequence[Way]]
    refused: Mapping[str, TnalgebraError]

    def share(self, budget: ModelBudget) -> dict[str, Way]:
        """Choose a way for each layer, by one Lagrange multiplier; treatment None: the layer stays dense.

        Treatments whose ranks are given are one way each, and such a layer never stays dense for the budget's sake.

        Raises:
            RankError: the budget cannot be met; it says the least that can.
        """
        curves: dict[str, list[Way]] = {}
        for name, ways in self.ways.items():
            fixed = ways and all(treatment.choices.get("size") is not None for treatment in self.offered[name])
            curves[name] = [*ways, *([] if fixed else [Way(self.costs.dense[name], 0.0)])]
        whole = self.costs.whole
        rest = whole - sum(self.costs.dense[name] for name in curves)
        limit = int(budget.fraction * whole) - rest
        least = sum(min(way.cost for way in ways) for ways in curves.values())
        if least > limit:
            counted, fix = "parameters", None
            if isinstance(budget, MultiplyAddsBudget):
                counted, fix = "multiply-adds", "candidates='factored', where plans rebuild dense kernels; more layers"
            smallest = math.ceil(1e4 * (rest + least) / whole) / 1e4  # rounded up, so that it can be met
            raise RankError(
                explain(
                    f"a budget of {budget.fraction:g} of {whole} {counted} cannot be met",
                    least=f"{smallest:.4f}: {rest} are not touched, the layers take {least}",
                    fix=fix,
                )
            )
        return allocate(curves, limit)


def measure_curves(
    weights: Mapping[str, Tensor],
    offered: Mapping[str, Sequence[Treatment]],
    costs: Costs,
    *,
    metrics: Mapping[str, Metric] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    loss_of: Callable[[str, Fit], float] | None = None,
) -> ErrorCurves:
    """Fit each layer with all it is offered, at several sizes; layers of one shape are fitted side by side.

    Args:
        metrics: name -> the norm of its fits; by default the Frobenius norm.
        fractions: parts of a kernel's parameters at which treatments without ranks are fitted.
        loss_of: name, fit -> what it costs the network; by default its squared relative error.
    """
    ways: dict[str, list[Way]] = {name: [] for name in offered}
    refused: dict[str, TnalgebraError] = {}
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, weight in weights.items():
        groups.setdefault((weight.shape, weight.dtype, weight.device, *offered[name]), []).append(name)
    for names in groups.values():
        for treatment in offered[names[0]]:
            fixed = treatment.choices.get("size") is not None
            for fraction in [None] if fixed else fractions:
                try:
                    fits = _fit_at(treatment, fraction, {name: weights[name].detach() for name in names}, metrics)
                except TnalgebraError as error:
                    refused.update(dict.fromkeys(names, error))
                    continue
                for name, fit in fits.items():
                    cost = costs.of_fit(name, treatment.rule, fit)
                    if cost < costs.dense[name] and fit.parameters < weights[name].numel():
                        loss = error_of(fit) ** 2 if loss_of is None else loss_of(name, fit)
                        choices: SizedChoices = {**treatment.choices, "size": dict(fit.trace.steps[-1].change.ranks)}
                        ways[name].append(Way(cost, loss, Treatment(treatment.rule, choices)))
    return ErrorCurves(offered, costs, ways, {name: error for name, error in refused.items() if not ways[name]})


def _fit_at(
    treatment: Treatment,
    fraction: float | None,
    weights: Mapping[str, Tensor],
    metrics: Mapping[str, Metric] | None,
) -> dict[str, Fit]:
    """Fit every kernel at its ranks, or at a part of its parameters; none where even rank 1 is more than that."""
    rule, choices = treatment.rule, treatment.choices
    norms = None if metrics is None or "metric" in choices else [metrics[name] for name in weights]
    choices = {"sweeps": CURVE_SWEEPS, **choices}
    if fraction is not None:
        choices["size"] = ParameterBudget(fraction)
    try:
        fits = rule.apply_many([{rule.tensor: weight} for weight in weights.values()], metrics=norms, **choices)
    except RankError:
        if fraction is None:
            raise
        return {}
    return dict(zip(weights, fits, strict=True))


def error_of(fit: Fit) -> float:
    """Relative error of the layer's output where the fit had a metric, of the kernel otherwise."""
    return fit.relative_error if fit.output_error is None else fit.output_error


def parameter_costs(model: nn.Module, weights: Mapping[str, Tensor]) -> Costs:
    """Count parameters: of the whole model, of the kernels, of the cores of fits."""
    whole = sum(parameter.numel() for parameter in model.parameters())
    return Costs(whole, {name: weight.numel() for name, weight in weights.items()}, lambda *given: given[2].parameters)


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

    def __call__(self, name: str, fit: Fit) -> float:
        """Of the network with the layer's kernel replaced by that of the fit."""
        weight = self.modules[name].weight
        before = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(fit.dense())
            outputs = self._outputs()
            weight.copy_(before)
        return float((self.reference.exp() * (self.reference - outputs)).sum(1).mean().clamp(min=0))


# Plans --------------------------------------------------------------------------------------------------------


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
        RankError: a budget is not a fraction, or cannot be met; it says the least that can.
        LayerError, RuleError: a name that no kernel layer has; a layer without rules.
        StudyError: `curves` is neither of the two, or there are no inputs where they are needed.
        Any other error of a fit, where a layer can be rewritten by none of its rules.
    """
    shares = [ParameterBudget(budget) for budget in budgets]
    if curves not in ("error", "divergence"):
        raise StudyError(explain(f"curves={curves!r}", fix="'error' or 'divergence'"))
    if curves == "divergence" and not inputs:
        raise StudyError(explain("the divergence of outputs needs inputs", fix="inputs=[batch, ...]"))
    modules = kernel_layers(model)
    _check_rules(layers, modules)
    weights = {name: modules[name].weight for name in layers}
    treatments = {rule: Treatment(rule, {"seed": seed}) for rules in layers.values() for rule in rules}
    measured = measure_curves(
        weights,
        {name: [treatments[rule] for rule in rules] for name, rules in layers.items()},
        parameter_costs(model, weights),
        metrics=metrics,
        fractions=fractions,
        loss_of=Divergence(model, inputs) if curves == "divergence" else None,
    )
    for error in measured.refused.values():
        raise error
    return [
        {
            name: Planned(treatment.rule, dict(treatment.choices["size"]), cost)  # type: ignore[arg-type]
            for name, (cost, _, treatment) in measured.share(budget).items()
            if treatment is not None
        }
        for budget in shares
    ]


def _check_rules(layers: Mapping[str, Sequence[Rule]], modules: Mapping[str, nn.Module]) -> None:
    for name, rules in layers.items():
        if name not in modules:
            raise LayerError(explain(f"the model has no kernel layer {name!r}", layers=", ".join(modules)))
        if not rules or not all(isinstance(rule, Rule) for rule in rules):
            given = ", ".join(map(repr, rules)) or "nothing"
            raise RuleError(explain(f"layer {name!r} may be rewritten by {given}", fix="rules: [tn.cut(...), ...]"))


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
        raise StudyError(explain("fits in the input metric need the layers' metrics", fix="metrics=tn.input_metrics"))
    if metric == "output" and not inputs:
        raise StudyError(explain("fits to the outputs need inputs", fix="inputs=[batch, ...]"))
    fits: dict[str, Fit] = {}

    def fit(name: str, weight: Tensor, norm: Metric | None) -> Fit:
        plan = planned[name]
        fits[name] = plan.rule.apply(weight, plan.ranks, metric=norm, seed=seed)
        return fits[name]

    modules = kernel_layers(model)
    if metric != "output":
        return {n: fit(n, modules[n].weight, metrics[n] if metric == "input" and metrics else None) for n in planned}
    if planned:
        fit_in_order(model, inputs, lambda *layer: fit(*layer).dense(), layers=list(planned), ridge=ridge)
    return {name: fits[name] for name in planned}
