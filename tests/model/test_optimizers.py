"""Optimizers after a conversion: they continue as if the layers had been exchanged by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.conversion_cases import SHAPE, network
from tests.refusals import refused
from tnalgebra.errors import LayerError
from tnalgebra.model.convert import convert
from tnalgebra.model.optimizers import update_optimizer
from tnalgebra.model.report import ConversionReport


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    model.train()
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(SHAPE, generator=generator)
        nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
        optimizer.step()


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "lr": 0.02, "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim == 1], "lr": 0.01},
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
        lambda groups: torch.optim.AdamW(groups, lr=0.1),
        lambda groups: torch.optim.Adam(groups, lr=0.1, amsgrad=True, fused=True),
        lambda groups: torch.optim.RMSprop(groups, lr=0.1, momentum=0.5, centered=True),
    ],
)
def test_an_optimizer_goes_on_as_after_surgery_by_hand(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model = network().double()
    torch.set_default_dtype(torch.float64)
    try:
        optimizer = make(grouped(model))
        train(model, optimizer, 5)
        _, report = convert(model, {"[35]": ("out | in kh kw", 3)})
        by_hand = copy.deepcopy(model)
        other = make(
            [
                {"params": [p for n, p in by_hand.named_parameters() if p.ndim > 1], "lr": 0.02, "weight_decay": 0.01},
                {"params": [p for n, p in by_hand.named_parameters() if p.ndim == 1], "lr": 0.01},
            ]
        )
        twins = dict(zip(model.parameters(), by_hand.parameters(), strict=True))
        for parameter, twin in twins.items():
            if parameter in optimizer.state:
                other.state[twin] = copy.deepcopy(optimizer.state[parameter])
        update_optimizer(optimizer, report)
        held = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
        assert held[0] == {id(p) for p in model.parameters() if p.ndim > 1}
        assert held[1] == {id(p) for p in model.parameters() if p.ndim == 1}
        assert {id(p) for p in optimizer.state} <= held[0] | held[1]
        update_optimizer(optimizer, report)
        assert [{id(p) for p in group["params"]} for group in optimizer.param_groups] == held
        start = [p.detach().clone() for p in model.parameters()]
        train(model, optimizer, 10)
        train(by_hand, other, 10)
        for before, parameter, twin in zip(start, model.parameters(), by_hand.parameters(), strict=True):
            assert parameter.ndim == 1 or not torch.equal(before, parameter)
            torch.testing.assert_close(parameter, twin, atol=1e-11, rtol=1e-9)
        optimizer.load_state_dict(optimizer.state_dict())
    finally:
        torch.set_default_dtype(torch.float32)


def test_names_and_frozen_weights_in_an_optimizer() -> None:
    model = network()
    model[5].requires_grad_(False)
    optimizer = torch.optim.SGD([(n, p) for n, p in model.named_parameters() if p.requires_grad], lr=0.1)
    _, report = convert(model, {"[35]": ("out | in kh kw", 2)})
    update_optimizer(optimizer, report)
    (group,) = optimizer.param_groups
    named = dict(model.named_parameters())
    assert len(group["params"]) == len(group["param_names"]) == len({*group["param_names"]})
    assert all(named[n] is p for n, p in zip(group["param_names"], group["params"], strict=True))
    assert not any(n.startswith("5") for n in group["param_names"])


def test_optimizers_that_do_not_belong() -> None:
    model = network()
    lbfgs = torch.optim.LBFGS(model.parameters())
    stranger = torch.optim.SGD(network().parameters(), lr=0.1)
    _, report = convert(model, {"3": ("out | in kh kw", 2)})
    with refused(LayerError, "LBFGS"):
        update_optimizer(lbfgs, report)
    with refused(LayerError, "converted layers (1)"):
        update_optimizer(stranger, report)
    update_optimizer(stranger, ConversionReport((), 0, 0))


def test_a_bias_of_another_optimizer_stays_there() -> None:
    model = network()
    weights, others = ([p for p in model.parameters() if (p.ndim > 1) == large] for large in (True, False))
    first, second = torch.optim.SGD(weights, lr=0.1), torch.optim.AdamW(others, lr=0.1)
    _, report = convert(model, {"[35]": ("out | in kh kw", 2), "8": ("out | in", 2)})
    for optimizer in (first, second):
        update_optimizer(optimizer, report)
    assert {id(p) for p in first.param_groups[0]["params"]} == {id(p) for p in model.parameters() if p.ndim > 1}
    assert [id(p) for p in second.param_groups[0]["params"]] == [id(p) for p in others]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_an_optimizer_for_matrices_takes_no_other_core() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 7))
    optimizer = torch.optim.Muon([one.weight for one in model], lr=0.1)
    _, report = convert(model, {"0": ("out | in", 2), "1": ("W[out in] => A[out r z] B[r z in]", {"r": 1, "z": 2})})
    before = [id(p) for p in optimizer.param_groups[0]["params"]]
    with refused(LayerError, "Muon", "1.A", "3 axes"):
        update_optimizer(optimizer, report)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == before
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 7))
    optimizer = torch.optim.Muon([one.weight for one in model], lr=0.1)
    _, report = convert(model, {"0": ("out | in", 2)})
    update_optimizer(optimizer, report)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()


def test_the_parameters_of_a_converted_model_can_be_swapped() -> None:
    """The report holds the biases that stay only as torch lets a parameter be held whose elements it swaps."""
    model, report = convert(network(), {"[35]": ("out | in kh kw", 3)})
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert {one.dtype for one in model.parameters()} == {torch.float64}
    assert report.replaced
