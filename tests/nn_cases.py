"""Every argument of torch's layers, and whether the decomposed layer of that name honours it: a table that is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch import nn as torch_nn

import tnalgebra.nn as tensor_nn
from tnalgebra.errors import LayerError, TnalgebraError
from tnalgebra.fitting.ranks import KeepFraction, ParameterBudget, RelativeError

EQUAL = "equals torch"
REFUSED = "refused: "

CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")
TRANSPOSED = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
NAMES = (*CONVOLUTIONS, *TRANSPOSED, "Linear")
LAYERS = (*NAMES, "Embedding")

PLANNING = ("input_size", "batch_size", "candidates", "tune", "backward", "memory_format")
OWN = ("rewrite", "size", "sizes", "fixed", "at", "bind", *PLANNING)
"""Arguments that torch's layers do not have."""

POSITIONS = (9, 8, 7)

TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Of outputs around 1: a few hundred products, summed in another order, cores rounded to the type."""


@dataclass(frozen=True, eq=False)
class Case:
    """One value of one argument.

    others: arguments that it is given together with.
    outcome: `EQUAL`, or `REFUSED` and how the reason begins.
    """

    layer: str
    argument: str
    value: Any
    outcome: str
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        return {**usual(self.layer), **self.others, self.argument: self.value}

    def __str__(self) -> str:
        others = "".join(f" {name}={value}" for name, value in self.others.items())
        return f"{self.layer} {self.argument}={self.value}{others}"


def axes_of(layer: str) -> int:
    """Axes of positions: 0 of a linear layer and of an embedding."""
    return 0 if layer in ("Linear", "Embedding") else int(layer[-2])


def usual(layer: str) -> dict[str, Any]:
    """The smallest set of arguments."""
    if layer == "Linear":
        return {"in_features": 4, "out_features": 6, "dtype": torch.float64}
    if layer == "Embedding":
        return {"num_embeddings": 12, "embedding_dim": 6, "dtype": torch.float64}
    kernel = (3, 2, 1)[: axes_of(layer)]
    return {"in_channels": 4, "out_channels": 6, "kernel_size": kernel, "dtype": torch.float64}


def input_for(layer: str, arguments: dict[str, Any], *, batch: tuple[int, ...] = (2,)) -> Tensor:
    """Normal numbers of a shape that the layer takes; numbers of rows for an embedding."""
    if layer == "Embedding":
        return torch.randint(arguments["num_embeddings"], (*batch, 5), generator=torch.Generator().manual_seed(1))
    channels = arguments["in_features" if layer == "Linear" else "in_channels"]
    shape = (*batch, channels, *POSITIONS[: axes_of(layer)])
    dtype = arguments["dtype"] or torch.get_default_dtype()
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


@cache
def outcome(case: Case) -> str:
    """Make both layers, and compare their outputs. Raises AssertionError where they differ."""
    torch.manual_seed(0)
    theirs = {name: value for name, value in case.arguments.items() if name not in OWN}
    refusal: type[TnalgebraError] = TnalgebraError if case.argument in OWN else LayerError
    try:
        made = getattr(tensor_nn, case.layer)(**{"rewrite": "cp", "size": {"r": 2}, **case.arguments})
    except refusal as error:
        return REFUSED + reason(error)
    dense = getattr(torch_nn, case.layer)(**theirs)
    if dense.weight.is_meta:
        assert all(tensor.is_meta for tensor in made.parameters())
        dense, made = dense.to_empty(device="cpu"), made.to_empty(device="cpu")
        made.reset_parameters()
    with torch.no_grad():
        dense.weight.copy_(made.dense_weight())
        if made.bias is not None:
            dense.bias.copy_(made.bias)
    x = input_for(case.layer, case.arguments)
    expected, value = dense(x), made(x)
    tolerance = TOLERANCES[value.dtype]
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    assert repr(made).split("\n")[1].strip() == dense.extra_repr()
    for name in theirs:
        if name not in ("bias", "device", "dtype"):
            assert getattr(made, name) == getattr(dense, name), name
    return EQUAL


def reason(error: Exception) -> str:
    """What a message says is false: in its `because`, if it has one."""
    first, *rest = str(error).splitlines()
    because = (line.split(":", 1)[1].strip() for line in rest if line.strip().startswith("because:"))
    return next(because, first)


def cases() -> Iterator[Case]:
    """Every argument of every layer, with values that are taken and values that are refused."""
    for layer in LAYERS:
        yield from _of_all(layer)
        yield from _of_own(layer)
        if layer == "Embedding":
            yield from _of_embeddings(layer)
            continue
        if layer == "Linear":
            yield from _equal(layer, "in_features", 2, 7)
            yield from _equal(layer, "out_features", 2, 7)
            yield from (_refused(layer, name, 0, f"{name} is 0") for name in ("in_features", "out_features"))
            continue
        yield from _of_windows(layer)
        yield from _of_convolutions(layer) if layer in CONVOLUTIONS else _of_transposed(layer)


def _equal(layer: str, argument: str, *values: Any, **others: Any) -> Iterator[Case]:
    return (Case(layer, argument, value, EQUAL, others) for value in values)


def _refused(layer: str, argument: str, value: Any, fact: str, **others: Any) -> Case:
    return Case(layer, argument, value, REFUSED + fact.format(layer=layer), others)


def _of_all(layer: str) -> Iterator[Case]:
    if layer != "Embedding":
        yield from _equal(layer, "bias", True, False)
    yield from _equal(layer, "device", None, "cpu", "meta")
    yield from _equal(layer, "dtype", None, *TOLERANCES)
    yield _refused(layer, "dtype", torch.complex64, "the weight is torch.complex64")


def _of_own(layer: str) -> Iterator[Case]:
    axes = axes_of(layer)
    halves, pair = "K[first *rest] => Fuse[first p q] A[p r] B[q *rest r]", "K[first *rest] => A[first r] B[r *rest]"
    first = 12 if layer == "Embedding" else 4 if layer in TRANSPOSED else 6
    fixed = {"A": torch.eye(first, 3, dtype=torch.float64)}
    yield from _equal(layer, "rewrite", "cp")
    yield from _equal(layer, "rewrite", "tensor_train", size=ParameterBudget(0.7))
    yield from _equal(layer, "rewrite", pair)
    yield _refused(layer, "rewrite", "cq", "no rule is called 'cq'")
    yield from _equal(layer, "size", 3, {"r": 3}, "r=3", "parameters 0.5", ParameterBudget(0.5))
    yield from _equal(layer, "size", KeepFraction(0.5), RelativeError(0.1), rewrite=pair)
    if axes:  # of a matrix, the bond of cp is one of two tensors
        yield _refused(layer, "size", KeepFraction(0.5), "it occurs on ")
    yield _refused(layer, "size", None, "no size is given for 'r'")
    yield _refused(layer, "size", {"r": 0}, "the rank 0 is less than 1")
    yield _refused(layer, "size", {"q": 3}, "the rule 'cp' has no bond 'q'")
    yield from _equal(layer, "sizes", {"p": 2}, rewrite=halves)
    yield _refused(layer, "sizes", {"z": 2}, "the rule 'cp' has no label 'z' on its right side")
    yield from _equal(layer, "fixed", fixed, rewrite=pair, size=None)
    yield from _equal(layer, "at", None, 0)
    yield _refused(layer, "at", 1, "at=1: the rule 'cp' applies at 1 place")
    yield from _equal(layer, "bind", None, {"K": "K"})
    yield _refused(layer, "bind", {"L": "K"}, "the rule 'cp' has no variable 'L'")
    yield from _equal(layer, "batch_size", 1, 3)
    yield _refused(layer, "batch_size", 0, "batch_size is 0")
    yield from _equal(layer, "candidates", "all", "factored")
    yield _refused(layer, "candidates", "some", "candidates is 'some'")
    yield from _equal(layer, "backward", False, True)
    yield from _equal(layer, "tune", False, True, batch_size=1)
    if not axes:
        return
    yield from _equal(layer, "input_size", 5, (9, 4, 6)[:axes])
    yield _refused(layer, "input_size", 0, "input_size is 0")
    yield _refused(layer, "input_size", (1, 2, 3, 4), "input_size has 4 entries, the window has ")
    last = {2: torch.channels_last, 3: torch.channels_last_3d}
    yield from _equal(layer, "memory_format", None, torch.contiguous_format, *([last[axes]] if axes in last else []))
    yield _refused(layer, "memory_format", torch.preserve_format, "memory_format is torch.preserve_format")


def _of_embeddings(layer: str) -> Iterator[Case]:
    yield from _equal(layer, "num_embeddings", 1, 7, size=1)
    yield from _equal(layer, "embedding_dim", 1, 7, size=1)
    yield from _equal(layer, "padding_idx", None, 3, -2)
    yield from _equal(layer, "norm_type", 2.0, 1.0)
    yield from (_refused(layer, name, 0, f"{name} is 0") for name in ("num_embeddings", "embedding_dim"))
    yield _refused(layer, "padding_idx", 12, "Padding_idx must be within num_embeddings")
    yield from _equal(layer, "max_norm", None)
    yield _refused(layer, "max_norm", 1.0, "it rescales the rows that are read in place")
    for name, reason in (("scale_grad_by_freq", "it divides the gradient"), ("sparse", "its gradient holds the rows")):
        yield from _equal(layer, name, False)
        yield _refused(layer, name, True, reason)


def _of_windows(layer: str) -> Iterator[Case]:
    axes = axes_of(layer)
    yield from _equal(layer, "in_channels", 1, 7)
    yield from _equal(layer, "out_channels", 1, 7)
    yield from _equal(layer, "kernel_size", 1, 3, (2, 3, 1)[:axes])
    yield from _equal(layer, "stride", 1, 2, (3, 1, 2)[:axes])
    yield from _equal(layer, "dilation", 1, 2, (3, 1, 2)[:axes])
    yield from _equal(layer, "padding", 0, 1, (2, 1, 0)[:axes])
    yield from _equal(layer, "groups", 1, 2)
    yield from _equal(layer, "groups", 4, out_channels=8)
    yield from _equal(layer, "padding_mode", "zeros", padding=1)
    yield _refused(layer, "in_channels", 0, "in_channels is 0")
    yield _refused(layer, "out_channels", 0, "out_channels is 0")
    yield _refused(layer, "kernel_size", 0, "kernel_size is 0")
    yield _refused(layer, "stride", 0, "stride is 0")
    yield _refused(layer, "dilation", 0, "dilation is 0")
    yield _refused(layer, "padding", -1, "padding is -1")
    yield _refused(layer, "groups", 0, "groups must be a positive integer")
    yield _refused(layer, "groups", 3, "in_channels must be divisible by groups")


def _of_convolutions(layer: str) -> Iterator[Case]:
    axes = axes_of(layer)
    odd, padding, modes = (3, 1, 5)[:axes], (2, 1, 0)[:axes], ("reflect", "replicate", "circular")
    yield from _equal(layer, "padding", "valid")
    yield from _equal(layer, "padding", "same", kernel_size=odd, dilation=2)
    yield from _equal(layer, "padding_mode", *modes, padding=padding)
    yield from _equal(layer, "padding_mode", *modes, padding="same", kernel_size=odd)
    yield _refused(layer, "padding", "same", "padding='same' is not supported for strided convolutions", stride=2)
    yield _refused(layer, "padding", "full", "Invalid padding string 'full'")
    yield _refused(layer, "padding_mode", "mirror", "padding_mode must be one of")


def _of_transposed(layer: str) -> Iterator[Case]:
    yield from _equal(layer, "output_padding", 0, 2, (2, 0, 1)[: axes_of(layer)], stride=3)
    yield from _equal(layer, "output_padding", 1, dilation=2)
    yield _refused(layer, "output_padding", 1, "output_padding is 1, which is neither less than the stride 1")
    yield _refused(layer, "padding", "same", "padding of a transposed convolution is 'same'")
    for mode in ("reflect", "replicate", "circular"):
        yield _refused(layer, "padding_mode", mode, 'Only "zeros" padding mode is supported for {layer}')


CASES = tuple(cases())
