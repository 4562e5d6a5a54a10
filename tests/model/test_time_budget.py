"""Budgets of measured time: the choice from times that are known, and the report of those that are measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.refusals import refused
from tnalgebra.errors import DataError, RankError
from tnalgebra.fitting import TimeBudget, read_size
from tnalgebra.model import new_layers, timing
from tnalgebra.model.compare import compare
from tnalgebra.model.convert import convert
from tnalgebra.model.plans import plan_budget
from tnalgebra.model.surgery import LayerCall
from tnalgebra.model.timing import time_in_turns, time_layers, time_models, time_ratio

SHAPE = (2, 3, 12, 12)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Conv2d(24, 8, 3)).eval()


def test_where_time_goes_with_multiply_adds_both_budgets_choose_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def layers_in_time(model: Any, layers: Any, example: Any) -> tuple[float, dict[str, float]]:
        positions = {"0": 100, "2": 64, "4": 36}
        seconds = {name: 1e-9 * 2 * positions[name] * layers[name].weight.numel() for name in layers}
        return sum(seconds.values()), seconds

    def ratio(layer: Any, reference: Any, calls: Any) -> float:
        return float(layer.plan.multiply_adds) / calls[0].multiply_adds

    monkeypatch.setattr(new_layers, "time_layers", layers_in_time)
    monkeypatch.setattr(new_layers, "time_ratio", ratio)
    request: dict[Any, Any] = {nn.Conv2d: ["tucker2", "out kh | in kw"]}
    for part in (0.4, 0.7):
        _, wanted = convert(network(), request, size=f"multiply-adds {part}", example=SHAPE)
        _, report = convert(network(), request, size=f"time {part}", example=SHAPE)
        assert [(row.rule, row.ranks) for row in report.rows] == [(row.rule, row.ranks) for row in wanted.rows]
        assert wanted.seconds is None
        assert report.seconds is not None
        assert report.seconds_after is not None
        assert f"time kept: {report.seconds_after / report.seconds:.3f}" in str(report)


def test_a_budget_of_measured_time() -> None:
    model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512)).eval()
    _, report = convert(model, {nn.Linear: "out | in"}, size=TimeBudget(0.8), example=(256, 512), seed=1)
    assert report.converted
    assert report.multiply_adds_after is not None
    assert report.multiply_adds is not None
    assert report.multiply_adds_after < report.multiply_adds


def test_layers_are_parts_of_the_time_of_their_model() -> None:
    model = network()
    whole, layers = time_layers(model, {"2": model[2], "4": model[4]}, SHAPE)
    assert layers.keys() == {"2", "4"}
    assert 0 < sum(layers.values()) < whole
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(seconds > 0 for seconds in time_models((model, SHAPE), (model[:1], SHAPE)))
    assert model[0].training is False


def test_contenders_take_turns() -> None:
    order: list[str] = []
    first, second = time_in_turns([lambda: order.append("a"), lambda: order.append("b")], torch.device("cpu"), rounds=6)
    assert len(first) == len(second) == 6
    assert order == ["a"] * 2 + ["b"] * 2 + ["a", "b"] * 6


def test_the_ratio_of_two_layers_is_that_of_their_fastest_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Slow(nn.Linear):
        def __init__(self, seconds: list[float]) -> None:
            super().__init__(4, 4)
            self.seconds = seconds

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal now
            now += self.seconds[0]
            self.seconds = [*self.seconds[1:], self.seconds[0]]
            return x

    monkeypatch.setattr(timing, "perf_counter", lambda: now)
    calls = [LayerCall((3, 4), torch.contiguous_format, 48)] * 2
    ratio = time_ratio(Slow([3.0, 5.0, 9.0]), Slow([4.0, 2.0]), calls)
    assert ratio == 3.0 / 2.0


def test_where_a_budget_of_time_has_no_meaning() -> None:
    model = network()
    assert str(read_size("time 0.7")) == "time 0.7"
    with refused(DataError, "time"):
        convert(model, {nn.Conv2d: "tucker2"}, size="time 0.5")
    with refused(RankError, "time 0.5", "one layer"):
        convert(model, {nn.Conv2d: ("tucker2", "time 0.5")}, example=SHAPE)
    with refused(RankError, "time 0.5", "whole model"):
        compare(model[0], "tucker2", "time 0.5")
    with refused(RankError, "time 0.5"):
        plan_budget(model, {"2": ["tucker2"]}, ["time 0.5"])
    with refused(RankError, "TimeBudget(0.0)", "greater than 0"):
        read_size("time 0")
