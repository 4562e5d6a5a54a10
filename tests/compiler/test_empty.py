"""Inputs without elements: a compiled network answers as torch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import CompileError

W, K = torch.arange(20.0).reshape(5, 4) / 20, torch.ones(6, 4, 3, 3) / 9
PADDED = "Conv[x u h | padding=1] Conv[y v w | padding=1]"

# text, nominal shapes, values, shapes of the inputs with n elements along one axis, and what torch computes
CASES: dict[str, tuple[str, Any, Any, Callable[[int], list[tuple[int, ...]]], Callable[..., Tensor]]] = {
    "a linear layer": ("X[n i] W[o i] -> [n o]", {"X": (8, 4)}, {"W": W}, lambda n: [(n, 4)], lambda x: x @ W.T),
    "the batch last": ("X[n i] W[o i] -> [o n]", {"X": (8, 4)}, {"W": W}, lambda n: [(n, 4)], lambda x: W @ x.T),
    "a sum": ("X[n i] W[o i] -> [o]", {"X": (8, 4)}, {"W": W}, lambda n: [(n, 4)], lambda x: (x @ W.T).sum(0)),
    "an axis between": (
        *("X[n m i] W[o i] -> [n m o]", {"X": (8, 3, 4)}, {"W": W}),
        *(lambda n: [(3, n, 4)], lambda x: x @ W.T),
    ),
    "one of two inputs": (
        *("X[n i] Y[m i] -> [n m]", {"X": (8, 4), "Y": (3, 4)}, {}),
        *(lambda n: [(3, 4), (n, 4)], lambda x, y: x @ y.T),
    ),
    "both inputs": (
        *("X[n i] Y[n i] -> [i]", {"X": (8, 4), "Y": (8, 4)}, {}),
        *(lambda n: [(n, 4), (n, 4)], lambda x, y: (x * y).sum(0)),
    ),
    "a convolution": (
        *(f"X[n i x y] {PADDED} K[o i h w] -> [n o u v]", {"X": (2, 4, 8, 8)}, {"K": K}),
        *(lambda n: [(n, 4, 8, 7)], lambda x: functional.conv2d(x, K, padding=1)),
    ),
    "a mean": (
        *("X[n c x y] Fill[x | value=mean] Fill[y | value=mean] -> [n c]", {"X": (2, 4, 8, 8)}, {}),
        *(lambda n: [(n, 4, 8, 8)], lambda x: x.mean((2, 3))),
    ),
}


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_as_torch_does(name: str, n: int) -> None:
    text, nominal, values, shapes, oracle = CASES[name]
    module = tn.compile(text, inputs=nominal, values=values)
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes(n)]
    expected = oracle(*inputs)
    for compiled in (module, module.freeze()):
        actual = compiled(*inputs)
        torch.testing.assert_close(actual, expected)
    ours, theirs = (torch.autograd.grad(value.sum(), inputs) for value in (module.thaw()(*inputs), oracle(*inputs)))
    torch.testing.assert_close(ours, theirs)


def test_positions_that_a_window_needs_are_refused() -> None:
    module = tn.compile(f"X[n i x y] {PADDED} K[o i h w] -> [n o u v]", inputs={"X": (2, 4, 8, 8)}, values={"K": K})
    with refused(CompileError, "'x' would have size 0"):
        module(torch.zeros(2, 4, 0, 8))


def test_inputs_of_which_one_is_empty_do_not_agree() -> None:
    module = tn.compile("X[n i] Y[n i] -> [i]", inputs={"X": (8, 4), "Y": (8, 4)}, values={})
    with refused(CompileError, "do not fit each other"):
        module(torch.zeros(0, 4), torch.zeros(3, 4))


LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), (0, 4, 9)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, padding_mode="circular"), (0, 4, 5, 6)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (0, 4, 5, 6)),
    "Linear": (lambda: nn.Linear(4, 6), (0, 4)),
    "Linear of more axes": (lambda: nn.Linear(4, 6), (3, 0, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    make, shape = LAYERS[name]
    dense = make()
    first, *rest = tn.nn.kernel_labels_of(dense)
    layer = tn.nn.decomposed(dense, f"{first} | {' '.join(rest)}", 2)
    x = torch.zeros(shape, requires_grad=True)
    torch.testing.assert_close(layer(x), dense(x))
    layer(x).sum().backward()
    assert all(not one.grad.any() for one in layer.parameters())
