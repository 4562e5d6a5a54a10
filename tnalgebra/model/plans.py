"""Plans for the layers of a model under a size: which rule and which ranks each gets; and the fits of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from ..compiler import Candidates
from ..decompositions import read_rewrite
from ..errors import DataError, LayerError, RankError, RuleError, StudyError
from ..fitting import Metric, MultiplyAddsBudget, ParameterBudget, Rank, Size, TimeBudget, read_size
from ..nn import kernel_labels_of, kernel_layers
from ..rewriting import Fit, Rule
from .budget import Treatment
from .curves import Costs, ErrorCurves, parameter_costs
from .divergence import Divergence
from .example import Example
from .input_metrics import RIDGE, fit_in_order
from .measure_curves import FRACTIONS, measure_curves
from .new_layers import LayerMaker
from .surgery import find_sites, record_calls

MetricName: TypeAlias = Literal["frobenius", "input", "output"]
"""Kernels as they are; the layer's output over its inputs; the original output from the inputs left by the layers
before."""

Curves: TypeAlias = Literal["error", "divergence"]
"""What a layer's treatment costs: the squared relative error of its fit; or the divergence of the network's output."""


@dataclass(frozen=True, eq=False)
class Planned:
    """What is to be done to a layer: a rule, the ranks of its bonds, the parameters of its cores."""

    rule: Rule
    ranks: Mapping[str, Rank]
    parameters: int


def plan_budget(
    model: nn.Module,
    layers: Mapping[str, Sequence[str | Rule | Fit]],
    sizes: Sequence[object],
    *,
    example: Example | None = None,
    candidates: Candidates = "all",
    metrics: Mapping[str, Metric] | None = None,
    curves: Curves = "error",
    inputs: Tensor | Sequence[Tensor] = (),
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    progress: bool = True,
) -> list[dict[str, Planned]]:
    """Choose a rule and ranks for each of some layers, at each of several sizes of the model.

    Each layer is fitted with each of its rewrites at several sizes. A budget is shared out by one Lagrange multiplier
    over these error curves; a layer may also stay as it is, which causes no error. Under any other size, which is each
    layer's own, a layer gets the rewrite with the least error of those that make it smaller.

    Args:
        model: a network; it stays as it is.
        layers: name of a layer -> the rewrites that it may get: names, cuts, rules, notation, or fits, which stand for
            their rules.
        sizes: `ParameterBudget`, of all parameters of the model, layers that are not named included;
            `MultiplyAddsBudget`, of all kernel layers' multiply-adds at the example; or sizes of each layer, such as
            8, `KeepFraction`, `RelativeError`. Texts are read too: "parameters 0.5".
        example: for `MultiplyAddsBudget`, an input of the model in any form that `convert` takes.
        candidates: of the plans whose multiply-adds are counted, see `compile`.
        metrics: name -> the norm of its fits; by default the Frobenius norm.
        curves: "error": the squared relative error of the fit, in its norm. "divergence": that of the network's outputs
            on `inputs` when this layer alone is replaced, see `Divergence`; a forward pass over them for each point.
        inputs: batches of the network's inputs, or one tensor, which is one batch.
        seed: of the fits.
        fractions: parts of a kernel's parameters at which its curves are measured.
        progress: show a bar, where stderr is a terminal.

    Returns:
        For each size: name -> what to do. A layer that is not in it stays as it is.

    Raises:
        RankError: a size cannot be read, or a budget cannot be met; the message has the least that can.
        LayerError, RuleError: no kernel layer has a name; a layer has no rewrite, or one that cannot be read.
        DataError: a `MultiplyAddsBudget` without an example.
        StudyError: `curves` is neither of the two, or inputs are missing where they are needed.
        Exception: any other error of a fit, if none of its rules can rewrite a layer.

    Example:
        >>> (plan,) = tn.model.plan_budget(model, {"conv2": ["tucker2", "out kh | in kw"]}, ["parameters 0.5"])
    """
    read = [read_size(size) for size in sizes]
    timed = next((size for size in read if isinstance(size, TimeBudget)), None)
    if timed is not None:
        fact = f"{str(timed)!r} has no plan that another run could have again, because it depends on measured times"
        raise RankError(fact, fix="tn.convert(..., size=...), or 'multiply-adds 0.5'")
    if curves not in ("error", "divergence"):
        raise StudyError(f"curves={curves!r} is not known", fix="'error' or 'divergence'")
    batches = [inputs] if isinstance(inputs, Tensor) else inputs
    if curves == "divergence" and not batches:
        raise StudyError("the divergence of outputs needs inputs", fix="inputs=[batch, ...]")
    treatments = _treatments(layers, kernel_layers(model))
    weights = {name: module.weight for name, module in kernel_layers(model).items() if name in layers}
    parameters = parameter_costs(model, weights)
    settings: dict[str, Any] = {"metrics": metrics, "fractions": fractions, "progress": progress}
    settings["loss_of"] = _loss_by_divergence(model, batches) if curves == "divergence" else None
    measured: dict[type, ErrorCurves] = {}
    plans = []
    for size in read:
        if isinstance(size, ParameterBudget | MultiplyAddsBudget):
            if type(size) not in measured:
                by_parameters = isinstance(size, ParameterBudget)
                costs = parameters if by_parameters else _multiply_adds(model, list(weights), example, candidates)
                measured[type(size)] = _measure(weights, treatments, None, costs, seed=seed, settings=settings)
            shared = measured[type(size)].share(size)
            chosen = {name: way.treatment for name, way in shared.items() if way.treatment is not None}
        else:
            chosen = _measure(weights, treatments, size, parameters, seed=seed, settings=settings).least_losses()
        plans.append({name: _planned(treatment) for name, treatment in chosen.items()})
    return plans


def _loss_by_divergence(model: nn.Module, batches: Sequence[Tensor]) -> Callable[[str, Fit], float]:
    divergence = Divergence(model, batches)
    return lambda name, fit: divergence({name: fit.dense()})


def _planned(treatment: Treatment) -> Planned:
    assert treatment.rule is not None
    assert isinstance(treatment.size, dict)
    return Planned(treatment.rule, treatment.size, treatment.parameters)


def _measure(
    weights: Mapping[str, Tensor],
    treatments: Mapping[str, Sequence[Treatment]],
    size: Size | None,
    costs: Costs,
    *,
    seed: int,
    settings: Mapping[str, Any],
) -> ErrorCurves:
    """The curves of all layers, for treatments that have no size or this one. Raises where one has no treatment."""
    completed = {one: one.completed(size, seed=seed) for offered in treatments.values() for one in offered}
    offered = {name: [completed[one] for one in of_layer] for name, of_layer in treatments.items()}
    measured = measure_curves(weights, offered, costs, **settings)
    for error in measured.refused.values():
        raise error
    return measured


def _multiply_adds(model: nn.Module, names: Sequence[str], example: Example | None, candidates: Candidates) -> Costs:
    if example is None:
        raise DataError("multiply-adds are counted at an example input", fix="example=x, or its shape")
    sites = find_sites(model)
    return LayerMaker(sites, record_calls(model, example, sites), candidates).costs(names)


def _treatments(
    layers: Mapping[str, Sequence[str | Rule | Fit]], modules: Mapping[str, nn.Module]
) -> dict[str, list[Treatment]]:
    """Name -> a treatment for each rewrite; layers with a rewrite in common share its treatment."""
    known: dict[tuple[object, ...], Treatment] = {}
    treatments: dict[str, list[Treatment]] = {}
    for name, rewrites in layers.items():
        if name not in modules:
            raise LayerError(f"the model has no kernel layer {name!r}", layers=", ".join(modules))
        if isinstance(rewrites, str) or not rewrites:
            fact = f"layer {name!r} needs a list of rewrites, and {rewrites!r} is given"
            raise RuleError(fact, fix="['tucker2', 'out kh | in kw']")
        labels = kernel_labels_of(modules[name])
        treatments[name] = [known.setdefault((one, labels), Treatment(read_rewrite(one, labels))) for one in rewrites]
    return treatments


def fit_planned(
    model: nn.Module,
    planned: Mapping[str, Planned],
    *,
    metric: MetricName = "frobenius",
    metrics: Mapping[str, Metric] | None = None,
    inputs: Tensor | Sequence[Tensor] = (),
    ridge: float = RIDGE,
    seed: int = 0,
) -> dict[str, Fit]:
    """Fit the layers of a plan.

    Args:
        model: the network that was planned for; it stays as it is.
        planned: one of the plans of `plan_budget`.
        metric: "frobenius": each kernel for itself. "input": each in the norm of its own inputs, from `metrics`.
            "output": in the order in which the layers run, each to the output that it has in the original network,
            from the inputs that it gets when the layers before are fitted.
        metrics: name -> metric, for "input".
        inputs: batches of the network's inputs, or one tensor, which is one batch, for "output".
        ridge: of the covariances for "output", see `Metric.with_ridge`.
        seed: of the fits.

    Returns:
        name -> fit, in the order of the plan; `fit.dense()` is the layer's new weight.

    Raises:
        StudyError: `metric` is none of the three, or lacks what it needs.

    Example:
        >>> fits = tn.model.fit_planned(model, plan, metric="output", inputs=batches)
    """
    if metric not in ("frobenius", "input", "output"):
        raise StudyError(f"metric={metric!r}", fix="'frobenius', 'input' or 'output'")
    if metric == "input" and (metrics is None or not metrics.keys() >= planned.keys()):
        raise StudyError("fits in the input metric need the layers' metrics", fix="metrics=tn.input_metrics")
    batches = [inputs] if isinstance(inputs, Tensor) else inputs
    if metric == "output" and not batches:
        raise StudyError("fits to the outputs need inputs", fix="inputs=[batch, ...]")
    fits: dict[str, Fit] = {}

    def fit(name: str, weight: Tensor, norm: Metric | None) -> Fit:
        plan = planned[name]
        fits[name] = plan.rule.apply(weight, plan.ranks, metric=norm, seed=seed)
        return fits[name]

    modules = kernel_layers(model)
    if metric != "output":
        return {n: fit(n, modules[n].weight, metrics[n] if metric == "input" and metrics else None) for n in planned}
    if planned:
        fit_in_order(model, batches, lambda *layer: fit(*layer).dense(), layers=list(planned), ridge=ridge)
    return {name: fits[name] for name in planned}
