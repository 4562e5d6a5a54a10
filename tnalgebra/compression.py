"""Decompose the layers of a model together: ranks of all under one budget, fits in the norm that matters."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar, Unpack

import torch
from torch import Tensor, nn

from .allocation import Point, allocate_part
from .calibration import RIDGE, fit_in_order
from .errors import LayerError, RankError, RuleError, StudyError, explain
from .fitting.metric import Metric
from .layers import KernelLayer, kernel_layers
from .options import Choices
from .ranks import ParameterBudget
from .rewriting import Fit, Rule

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
    modules: Mapping[str, KernelLayer],
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
