"""Whole models under one budget, and fitted to calibration data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.conversion_cases import SHAPE, assert_same, count, inputs, network, state
from tests.refusals import refused
from tnalgebra.decompositions.families import tucker2
from tnalgebra.errors import DataError, LayerError, RankError
from tnalgebra.fitting.size import MultiplyAddsBudget, ParameterBudget
from tnalgebra.model.convert import convert
from tnalgebra.model.input_metrics import input_metrics
from tnalgebra.model.patterns import optional
from tnalgebra.model.plans import plan_budget
from tnalgebra.nn.torch_layers import kernel_layers

# Calibration ---------------------------------------------------------------------------------------------------------


def test_calibrated_fits_serve_the_output_better() -> None:
    reference = network()
    wanted = torch.cat([reference(x) for x in inputs(6)])
    found = {}
    for name, settings in {
        "frobenius": {},
        "input": {"calibration": inputs(6)},
        "sequential": {"calibration": inputs(6), "sequential": True},
    }.items():
        model, report = convert(network(), {"*": (["out | in kh kw", "out | in"], ParameterBudget(0.5))}, **settings)
        assert (report["3"].output_error is None) == (name == "frobenius")
        with torch.no_grad():
            found[name] = float(torch.dist(torch.cat([model(x) for x in inputs(6)]), wanted))
    assert found["input"] < found["frobenius"]
    assert found["sequential"] < found["input"]


def test_the_metrics_are_those_of_the_layers() -> None:
    """A fit in a metric that is given among the choices is the calibrated fit."""
    model = network()
    metric = input_metrics(model, inputs(), layers=["3"])["3"]
    _, given = convert(network(), {"3": ("out | in kh kw", {"size": 3, "metric": metric})})
    _, calibrated = convert(model, {"3": ("out | in kh kw", 3)}, calibration=inputs())
    assert given["3"].output_error == pytest.approx(calibrated["3"].output_error)
    assert "3" not in kernel_layers(model)


@pytest.mark.parametrize("loader", ["tensor", "list", "generator", "data loader", "labels"])
def test_calibration_data_in_any_form(loader: str) -> None:
    x = torch.cat(inputs())
    dataset = TensorDataset(x, torch.arange(len(x)))
    given: Any = {
        "tensor": x,
        "list": inputs(),
        "generator": (one for one in inputs()),
        "data loader": DataLoader(TensorDataset(x), batch_size=5),
        "labels": DataLoader(dataset, batch_size=7),
    }[loader]
    model = network()
    _, report = convert(model, {"3": ("out | in kh kw", 3)}, calibration=given)
    _, wanted = convert(network(), {"3": ("out | in kh kw", 3)}, calibration=[x])
    # batches of other sizes: float32 sums in another order
    assert report["3"].output_error == pytest.approx(wanted["3"].output_error, rel=1e-4)


# Budgets -------------------------------------------------------------------------------------------------------------


def test_a_budget_of_parameters_is_shared_as_plan_budget_shares_it() -> None:
    model, rewrite = network(), tucker2("out in kh kw")
    (wanted,) = plan_budget(model, {name: [rewrite] for name in ("0", "3", "5")}, ["parameters 0.5"])
    _, report = convert(model, {nn.Conv2d: rewrite}, size=ParameterBudget(0.5))
    assert {name: report[name].ranks for name in report.converted} == {name: one.ranks for name, one in wanted.items()}
    assert report.parameters_after <= 0.5 * report.parameters
    assert count(model) == report.parameters_after


def test_a_budget_of_multiply_adds() -> None:
    losses = []
    for fraction in (0.4, 1.0):
        _, report = convert(
            network(),
            {nn.Conv2d: ["tucker2", "out kh | in kw"], "8": "out | in"},
            size=MultiplyAddsBudget(fraction),
            example=SHAPE,
            candidates="factored",
            fractions=(0.1, 0.3, 0.6),
        )
        assert report.multiply_adds is not None
        assert report.multiply_adds_after is not None
        assert report.multiply_adds_after <= fraction * report.multiply_adds
        losses.append(sum((row.relative_error or 0) ** 2 for row in report.rows))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0


def test_given_ranks_stand_beside_a_budget() -> None:
    model = network()
    _, report = convert(
        model,
        {"0": ("out | in kh kw", 1), "*": ["out | in kh kw", "out | in"]},
        size=ParameterBudget(0.6),
        calibration=((x, None) for x in inputs()),
        sequential=True,
    )
    assert report["0"].ranks == {"r": 1}
    assert report.parameters_after <= 0.6 * report.parameters
    assert all(report[name].output_error is not None for name in report.converted)


def test_under_a_budget_too_every_layer_has_its_reason() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 40), nn.Linear(40, 30))
    _, report = convert(model, {"[02]": "out | in", "1": None}, size=ParameterBudget(0.9))
    assert report["0"].reason == "break-even: nothing that is offered is smaller than the dense layer"
    assert report.converted == ("2",)


def test_a_budget_that_cannot_be_met_gives_all_reasons() -> None:
    model = network()
    model[0].forward = model[0].forward
    nn.utils.parametrizations.weight_norm(model[5])
    request = {"0": "tucker2", "5": "tucker2", "3": None, optional("8"): "out kh | in kw"}
    with refused(
        RankError,
        "at least 'parameters ",
        "0: its forward is replaced",
        "5: its weight is parametrised",
        "3: as asked",
        "8: the cut 'out kh | in kw' does not fit",
    ):
        convert(model, request, size="parameters 0.5")
    many = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))
    with refused(RankError, "0, 1, 2 and 2 more: break-even"):
        convert(many, {"*": "out | in"}, size="parameters 0.5")


def test_budgets_that_cannot_be() -> None:
    model = network()
    before = state(model)
    either = {"*": ["out | in kh kw", "out | in"]}
    with refused(RankError, "0.05", "parameters", "at least 'parameters 0."):
        convert(model, either, size=ParameterBudget(0.05))
    with refused(RankError, "0.001", "multiply-adds", "at least 'multiply-adds 0."):
        convert(model, {nn.Conv2d: "out | in kh kw"}, size=MultiplyAddsBudget(0.001), example=SHAPE)
    with refused(RankError, "layer: '3'", "parameters 0.5"):
        convert(model, {"3": ("tucker2", ParameterBudget(0.5))}, size=ParameterBudget(0.5))
    odd: Any
    for odd, error, facts in (
        ({"size": 0.5}, RankError, ["0.5", "parameters 0.5"]),
        ({"size": MultiplyAddsBudget(0.5)}, DataError, ["example="]),
        ({"sequential": True}, DataError, ["sequential=", "calibration="]),
        ({"calibration": [{"x": inputs()[0]}]}, LayerError, ["batch 1", "argument 'x'"]),
        ({"calibration": [("a", 1)]}, DataError, ["batch 1", "str"]),
        ({"calibration": 3}, DataError, ["int"]),
        ({"calibration": []}, DataError, ["no batches"]),
    ):
        with refused(error, *facts):
            convert(model, {"3": "tucker2"}, **odd)
    assert_same(before, state(model))


@pytest.mark.parametrize("size", ["multiply-adds 0.5", "time 0.5"])
def test_an_example_without_elements_has_nothing_to_share_out(size: str) -> None:
    model = network()
    before = state(model)
    with refused(DataError, size.split()[0], "elements", (0, *SHAPE[1:])):
        convert(model, {"*": "tucker2"}, size=size, example=(0, *SHAPE[1:]))
    assert_same(before, state(model))
