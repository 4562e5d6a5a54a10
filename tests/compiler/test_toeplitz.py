"""A window whose kernel is small, as a Toeplitz matrix: the same values and gradients as by a convolution."""

from __future__ import annotations

import pytest
import torch

import tnalgebra as tn
from tests.compiler_cases import check, check_at
from tests.strategies import random_values
from tnalgebra.compiler.operations import Toeplitz
from tnalgebra.networks import parse

ATTENTION = "Q[h:2 i:7 m:3] K[h j m] V[h j d:4] c[h r:13] Conv[i j r | padding=6] -> [h i d]"


def uses_toeplitz(module: tn.compiler.Compiled) -> bool:
    return any(isinstance(operation, Toeplitz) for operation in module.plan.candidates[0].program.operations)


def test_attention_with_relative_positions() -> None:
    module = check(ATTENTION, "Q K V")
    assert uses_toeplitz(module)
    check_at(module, {"i": 5, "j": 5})
    check_at(module, {"i": 9, "j": 9})


@pytest.mark.parametrize("names", ["x y", "y x"])
@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "padding=3",
        "padding=2:-1",
        "padding=-2:3",
        "stride=2 padding=1:0",
        "stride=3 padding=-1:2",
        "dilation=2 padding=3:1",
        "stride=2 dilation=3 padding=5:4",
        "padding=-1 mode=circular",
    ],
)
def test_every_attribute_of_a_window(attributes: str, names: str) -> None:
    """Two inputs meet in both labels of the window, so that its matrix has to be made."""
    network = parse(
        f"A[{names} b:200] B[{names} b] Conv[x:11 y k:3 | {attributes}] c[k] C[b] -> []".replace("| ]", "]")
    )
    module = check(network, "A B")
    assert any(
        isinstance(operation, Toeplitz) for one in module.plan.candidates for operation in one.program.operations
    )


def test_gradients_of_the_kernel() -> None:
    network = parse(ATTENTION)
    values = random_values(network, 0)
    module = tn.compile(
        network,
        inputs={name: tuple(values[name].shape) for name in "QKV"},
        values={"c": values["c"]},
    )
    assert uses_toeplitz(module)
    assert torch.autograd.gradcheck(
        lambda c: torch.func.functional_call(module, {"c": c}, tuple(values[n] for n in "QKV")),
        values["c"].requires_grad_(),
    )


def test_a_frozen_matrix_has_the_sizes_of_the_call() -> None:
    module = check(ATTENTION, "Q K V").freeze()
    check_at(module, {"i": 5, "j": 5})
    check_at(module, {"i": 8, "j": 8})
