"""Layers whose weight a model reads stay dense, whether an example shows it or the source alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import LayerError


class Reading(nn.Module):
    """Calls one layer, reads two weights of others, facts of one, and what is only a test of None."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read, self.facts = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.inner = nn.Sequential(nn.Linear(8, 8))
        self.inner.add_module("deep", nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        if self.facts.weight is not None:
            x = x.to(self.facts.weight.dtype).reshape(-1, self.facts.weight.shape[1])
        x = functional.linear(self.called(x), weight=self.read.weight)
        return self.other(self.facts(x))

    def other(self, x: Tensor) -> Tensor:
        weight = self.inner.deep.weight
        return self.inner[0](x) @ weight  # type: ignore[operator, no-any-return]

    def never(self) -> Tensor:
        return self.called.weight


def model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), Reading())


PATTERNS = {"*": ("out | in", 2)}
READ = {"1.read": "Reading.forward", "1.inner.deep": "Reading.other"}


def test_the_source_says_what_the_example_shows() -> None:
    without, report = tn.convert(model(), PATTERNS)
    for name in READ:
        assert READ[name] in report[name].reason
        assert "example" in report[name].reason
    with_example, shown = tn.convert(model(), PATTERNS, example=(3, 8))
    assert report.converted == shown.converted
    assert {*report.converted} == {row.name for row in report.rows} - {*READ}
    assert without(torch.ones(3, 8)).shape == with_example(torch.ones(3, 8)).shape == (3, 8)


def test_a_layer_that_is_asked_for_and_read() -> None:
    with refused(LayerError, "'1.read'", "Reading.forward", "example"):
        tn.convert(model(), {"1.read": ("out | in", 2)})


def test_a_branch_that_calls_the_layer() -> None:
    """Only an example shows which branch is taken."""

    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.read = nn.Linear(8, 8), False

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.layer.weight) if self.read else self.layer(x)  # type: ignore[no-any-return]

    one = nn.Sequential(nn.Linear(8, 8), Choosing())
    assert tn.convert(one, PATTERNS, inplace=False)[1].converted == ("0",)
    assert tn.convert(one, PATTERNS, example=(3, 8))[1].converted == ("0", "1.layer")


@pytest.mark.filterwarnings("ignore")
def test_source_that_is_not_known() -> None:
    space: dict[str, Any] = {"nn": nn}
    exec("class Made(nn.Module):\n def forward(self, x):\n  return self.layer(x)", space)
    one = space["Made"]()
    one.layer = nn.Linear(8, 8)
    assert tn.convert(nn.Sequential(one), PATTERNS)[1].converted == ("0.layer",)
