"""Budgets that are shared out by the divergence of the outputs on inputs held out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn
from tests.conversion_cases import assert_same, count, inputs, network, state
from tests.refusals import refused
from tnalgebra.errors import DataError, LayerError, RankError
from tnalgebra.model.divergence import Divergence, mean_divergence

OFFERED = ["out kh | in kw", "tucker2"]


class Branches(nn.Module):
    """A network whose second branch hardly matters, with steps in place, and one output or several."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Conv2d(3, 12, 3)
        self.second = nn.Conv2d(3, 12, 3)
        self.last = nn.Linear(12, outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu_(self.first(x)) + 1e-3 * torch.relu_(self.second(x))
        return self.last(hidden.mean((2, 3)))


class Untraceable(Branches):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > -1e9 else -x)


def kernels(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    weights = {name: model.get_submodule(name).get_parameter("weight").detach() for name in ("first", "second", "last")}
    return {name: weight + 0.3 * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}


@pytest.mark.parametrize("kind", [Branches, Untraceable])
@pytest.mark.parametrize("outputs", [1, 4])
def test_each_change_is_that_of_a_network_with_these_kernels(kind: type[Branches], outputs: int) -> None:
    model = kind(outputs).eval()
    new = kernels(model)
    changes = [{"last": new["last"]}, {}, {"first": new["first"]}, {"second": new["second"]}, new]
    measured = Divergence(model, inputs()).each(changes)
    for value, change in zip(measured, changes, strict=True):
        twin = copy.deepcopy(model)
        twin.load_state_dict({f"{name}.weight": kernel for name, kernel in change.items()}, strict=False)
        x = torch.cat(inputs())
        old, other = model(x).double().detach(), twin(x).double().detach()
        if outputs == 1:
            wanted = (other - old).square().sum() / old.square().sum()
        else:
            wanted = nn.functional.kl_div(
                other.log_softmax(1), old.log_softmax(1), log_target=True, reduction="sum"
            ) / len(x)
        assert value == pytest.approx(float(wanted), rel=1e-4)
        assert mean_divergence(model, twin, inputs()) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("sequential", [False, True])
def test_layers_that_hardly_matter_pay_for_those_that_do(sequential: bool) -> None:
    dense = Branches(4).eval()
    smooth = [x.cumsum(2).cumsum(3) / 20 for x in inputs(6)]
    models = {}
    for name, held_out in {"equal": None, "held out": smooth[4:]}.items():
        models[name], report = tn.convert(
            dense,
            {torch.nn.Conv2d: OFFERED},
            size="parameters 0.6",
            calibration=smooth[:4],
            held_out=held_out,
            sequential=sequential,
            inplace=False,
        )
        assert report.parameters_after <= 0.6 * report.parameters
    far = {name: mean_divergence(dense, model, smooth[4:]) for name, model in models.items()}
    assert far["held out"] < 0.5 * far["equal"]


def test_without_calibration_and_in_any_form() -> None:
    x = torch.cat(inputs())
    reports = [
        tn.convert(network(), {"*": OFFERED}, size="parameters 0.7", held_out=held_out)[1]
        for held_out in (x, [x], ((x, None) for _ in range(1)))
    ]
    assert len({str(report) for report in reports}) == 1
    assert reports[0].parameters_after <= 0.7 * count(network())


def test_refusals_leave_the_model_as_it_was() -> None:
    model = network()
    before = state(model)
    with refused(DataError, "held_out=", "not one", "parameters 0.5"):
        tn.convert(model, {"*": "tucker2"}, size=3, held_out=inputs())
    with refused(DataError, "no batches"):
        tn.convert(model, {"*": "tucker2"}, size="parameters 0.7", held_out=[])
    with refused(RankError, 0.01, "cannot be met"):
        tn.convert(model, {"*": "tucker2"}, size="parameters 0.01", held_out=inputs())
    assert_same(before, state(model))

    class Several(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    with refused(LayerError, "Several", "tuple"):
        tn.convert(Several(*network()), {"*": "tucker2"}, size="parameters 0.7", held_out=inputs())
