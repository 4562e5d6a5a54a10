"""Tensors of other shapes in a layer: an error at the next call, and never numbers that torch's broadcasting made."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import CompileError, LayerError

REWRITES = ("cp", "tucker2", "block_term", "tensor_ring")
X = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))


def layer(rewrite: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return tn.nn.Conv2d.from_conv(nn.Conv2d(6, 8, 3, padding=1, **arguments).eval(), rewrite, 2, starts=1, sweeps=2)


def narrowed(one: Any) -> list[tuple[str, Tensor]]:
    """Every core with one element left of one of its axes."""
    cores = one.cores().items()
    return [(n, core.detach().narrow(axis, 0, 1)) for n, core in cores for axis in range(4) if core.ndim > axis]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_core_of_another_shape(rewrite: str, frozen: bool) -> None:
    base = layer(rewrite)
    expected = base(X)
    for name, core in narrowed(base):
        one = copy.deepcopy(base)
        if frozen:
            one.freeze()
        with refused(CompileError, repr(name), str(tuple(core.shape))):
            torch.func.functional_call(one, {name: core}, (X,))
        torch.testing.assert_close(one(X), expected, rtol=0, atol=1e-4)
        setattr(one, name, nn.Parameter(core.clone()))
        for _ in range(2):
            with refused(CompileError, repr(name), str(tuple(core.shape))):
                one(X)
        setattr(one, name, nn.Parameter(getattr(base, name).detach()))
        torch.testing.assert_close(one(X), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_bias_that_comes_or_goes(rewrite: str) -> None:
    one = layer(rewrite, bias=False)
    expected = one(X)
    one.bias = nn.Parameter(torch.ones(8))
    with refused(CompileError, "without a bias"):
        one(X)
    one.bias = None
    assert torch.equal(one(X), expected)
    other = layer(rewrite)
    other.bias = None
    with refused(CompileError, "'bias'", "missing"):
        other(X)


CHANGES = {
    "padding": (0, 0),
    "stride": 2,
    "dilation": (2, 2),
    "padding_mode": "circular",
    "groups": 2,
    "in_channels": 3,
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_argument_that_is_changed_later(name: str) -> None:
    one = layer("tucker2")
    expected, before = one(X), getattr(one, name)
    with refused(LayerError, name, "to_dense()"):
        setattr(one, name, CHANGES[name])
    setattr(one, name, before)
    assert torch.equal(one(X), expected)
    assert getattr(copy.deepcopy(one), name) == before
