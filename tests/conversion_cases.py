"""What the tests of whole models share: a network, its inputs, everything that a failure must leave."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tnalgebra.fitting.ranks import KeepFraction

EXACT = KeepFraction(1.0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 10, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(10, 12, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 7),
    ).eval()


SHAPE = (4, 3, 9, 8)


def inputs(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a failed conversion must leave: objects, values, modes, hooks."""
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "parameters": [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
        "values": {name: value.clone() for name, value in model.state_dict().items()},
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert {k: v for k, v in before.items() if k != "values"} == {k: v for k, v in after.items() if k != "values"}
    assert before["values"].keys() == after["values"].keys()
    assert all(torch.equal(value, after["values"][name]) for name, value in before["values"].items())
