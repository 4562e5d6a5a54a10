"""Layers of a model together: ranks under one budget, fits in every norm."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.refusals import refused
from tnalgebra.decompositions.catalogue import read_rewrite
from tnalgebra.decompositions.cuts import cut
from tnalgebra.errors import DataError, LayerError, RankError, RuleError, StudyError, ValuesError
from tnalgebra.fitting import KeepFraction, MultiplyAddsBudget, ParameterBudget
from tnalgebra.model.convert import convert
from tnalgebra.model.divergence import Divergence
from tnalgebra.model.input_metrics import input_metrics
from tnalgebra.model.plans import Planned, fit_planned, plan_budget
from tnalgebra.nn.torch_layers import kernel_layers
from tnalgebra.rewriting.text import rule

CUT = cut("out kh | in kw")
TUCKER2 = rule("K[out in kh kw] => U[out a] G[a b kh kw] V[b in]")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 10, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(10, 9, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(9, 4),
    ).eval()


def inputs(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 9, 8, generator=generator) for _ in range(count)]


LAYERS = {"2": [CUT, TUCKER2], "4": [CUT]}


def kept(model: nn.Module, plan: dict[str, Planned]) -> int:
    modules = kernel_layers(model)
    whole = sum(parameter.numel() for parameter in model.parameters())
    return whole + sum(planned.parameters - modules[name].weight.numel() for name, planned in plan.items())


@pytest.mark.parametrize("curves", ["error", "divergence"])
def test_a_plan_keeps_within_its_budget_and_a_larger_one_costs_less(curves: str) -> None:
    model = network()
    whole = sum(parameter.numel() for parameter in model.parameters())
    budgets = [0.6, 0.8, 1.0]
    sizes = ["parameters 0.6", ParameterBudget(0.8), ParameterBudget(1.0)]
    plans = plan_budget(model, LAYERS, sizes, curves=curves, inputs=inputs())
    assert plans[-1] == {}
    losses = []
    for budget, plan in zip(budgets, plans, strict=True):
        assert kept(model, plan) <= budget * whole
        fits = fit_planned(model, plan)
        assert all(fit.parameters == plan[name].parameters for name, fit in fits.items())
        losses.append(sum(fit.relative_error**2 for fit in fits.values()))
    assert losses == sorted(losses, reverse=True)


def test_the_divergence_is_that_of_the_network_with_one_layer_replaced() -> None:
    model = network()
    reference = torch.cat([model(batch) for batch in inputs()]).double().log_softmax(1)
    twin = copy.deepcopy(model)
    fit = CUT.apply({"K": model[2].weight}, 4)
    with torch.no_grad():
        twin[2].weight.copy_(fit.dense())
        outputs = torch.cat([twin(batch) for batch in inputs()]).double().log_softmax(1)
    wanted = float((reference.exp() * (reference - outputs)).sum(1).mean().detach())
    assert Divergence(model, inputs())({"2": fit.dense()}) == pytest.approx(wanted, rel=1e-5)


def mean_squared(model: nn.Module, weights: dict[str, Tensor]) -> float:
    """Of the difference of the last convolution's outputs, between the model and the model with other weights."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in weights.items():
            kernel_layers(twin)[name].weight.copy_(weight)
        return sum(float((model[:5](x) - twin[:5](x)).square().sum()) for x in inputs())


def test_each_norm_serves_the_output_better_than_the_one_before() -> None:
    model = network()
    plan = {name: Planned(CUT, {"r": rank}, 0) for name, rank in (("2", 4), ("4", 5))}
    metrics = input_metrics(model, inputs())
    found = {}
    for metric in ("frobenius", "input", "output"):
        fits = fit_planned(model, plan, metric=metric, metrics=metrics, inputs=inputs())
        assert list(fits) == ["2", "4"]
        assert (fits["2"].output_error is None) == (metric == "frobenius")
        found[metric] = mean_squared(model, {name: fit.dense() for name, fit in fits.items()})
    assert found["input"] < 0.9 * found["frobenius"]
    assert found["output"] < 0.98 * found["input"]


@pytest.mark.slow
def test_rules_of_several_kinds_are_chosen_from() -> None:
    model = network()
    offered = {
        name: [read_rewrite(given, "out in kh kw") for given in ("out | in kh kw", "cp", "tucker2")]
        for name in ("2", "4")
    }
    (plan,) = plan_budget(model, offered, ["parameters 0.5"], seed=3)
    best = {name: planned.rule for name, planned in plan.items()}
    assert all(best[name] in offered[name] for name in best)
    again = plan_budget(model, offered, ["parameters 0.5"], seed=3)[0]
    assert {name: (planned.rule, planned.ranks) for name, planned in plan.items()} == {
        name: (planned.rule, planned.ranks) for name, planned in again.items()
    }


def test_sizes_of_each_layer_and_budgets_of_multiply_adds() -> None:
    model, shape = network(), (2, 3, 9, 8)
    sizes = ["r=3", KeepFraction(0.2), MultiplyAddsBudget(0.6), "multiply-adds 1.0"]
    by_rank, by_fraction, by_adds, whole = plan_budget(
        model,
        {name: ["out kh | in kw", "in | out kh kw"] for name in ("2", "4")},
        sizes,
        example=shape,
        fractions=(0.2, 0.5),
    )
    assert {name: planned.ranks for name, planned in by_rank.items()} == {"2": {"r": 3}, "4": {"r": 3}}
    for name, planned in by_rank.items():
        errors = {
            one: cut(one).apply(kernel_layers(model)[name].weight, 3).relative_error
            for one in ("out kh | in kw", "in | out kh kw")
        }
        assert planned.rule.name == min(errors, key=lambda one: errors[one])
    assert by_fraction["2"].parameters == fit_planned(model, by_fraction)["2"].parameters
    request = {name: (planned.rule, planned.ranks) for name, planned in by_adds.items()}
    _, report = convert(model, request, example=shape, inplace=False)
    assert report.multiply_adds_after <= 0.6 * report.multiply_adds
    assert whole == {}


def test_what_cannot_be_planned() -> None:
    model = network()
    small = ParameterBudget(0.5)
    for layers, size, options, error, facts in (
        (LAYERS, "parameters 0.1", {}, RankError, ("0.1 of", "at least 'parameters 0.")),
        (LAYERS, 0.5, {}, RankError, ("0.5", "parameters 0.5")),
        (LAYERS, "multiply-adds 0.5", {}, DataError, ("example=",)),
        (LAYERS, small, {"curves": "loss"}, StudyError, ("'loss'",)),
        (LAYERS, small, {"curves": "divergence"}, StudyError, ("inputs=[batch, ...]",)),
        ({"1": [CUT]}, small, {}, LayerError, ("'1'", "layers: 0, 2, 4, 7")),
        ({"2": ["tukker"]}, small, {}, RuleError, ("'tukker'",)),
        ({"2": "cp"}, small, {}, RuleError, ("'2'", "'cp'")),
        ({"2": []}, small, {}, RuleError, ("'2'", "[]")),
        ({"2": [rule("K[out in] => A[out r] B[r in]")]}, small, {}, ValuesError, ("4 axes",)),
    ):
        with refused(error, *facts):
            plan_budget(model, layers, [size], **options)
    plan = {"2": Planned(CUT, {"r": 4}, 0)}
    for metric, fact in (("euclid", "'euclid'"), ("input", "metrics="), ("output", "inputs=[batch, ...]")):
        with refused(StudyError, fact):
            fit_planned(model, plan, metric=metric)


def test_one_tensor_is_one_batch() -> None:
    model, x = network(), inputs(1)[0]
    settings: dict[str, Any] = {"curves": "divergence", "fractions": (0.5,)}
    (alone,), (listed,) = (
        plan_budget(model, {"2": [CUT]}, ["parameters 0.9"], inputs=one, **settings) for one in (x, [x])
    )
    assert {name: planned.ranks for name, planned in alone.items()} == {
        n: planned.ranks for n, planned in listed.items()
    }
    plan = {"2": Planned(CUT, {"r": 4}, 0)}
    fits = [fit_planned(model, plan, metric="output", inputs=one)["2"] for one in (x, [x])]
    assert torch.equal(fits[0].dense(), fits[1].dense())
    converted = [convert(model, {"2": (CUT, 4)}, calibration=one, inplace=False)[1] for one in (x, [x])]
    assert converted[0]["2"].output_error == converted[1]["2"].output_error


@pytest.mark.parametrize("rewrites", [["tucker2", "tensor_train"], ["tensor_train", "tucker2"]])
def test_of_equal_errors_the_rewrite_with_fewer_parameters_is_taken(rewrites: list[str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 7))
    (plan,) = plan_budget(model, {"0": rewrites}, ["keep 0.5"], progress=False)
    assert (plan["0"].rule.name, plan["0"].parameters) == ("tensor_train", 4 * (20 + 7))
    _, report = convert(model, {"*": rewrites}, size="keep 0.5", progress=False)
    assert (report["0"].rule, report["0"].parameters_after) == ("tensor_train", 4 * (20 + 7) + 7)
