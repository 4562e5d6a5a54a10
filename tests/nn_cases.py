"""Every argument of torch's layers and what the decomposed layer of that name makes of it: a table that is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch import nn as torch_nn

import tnalgebra.nn as tensor_nn
from tnalgebra.errors import LayerError, TnalgebraError

EQUAL = "equals torch"
REFUSED = "refused: "

CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")
TRANSPOSED = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
NAMES = (*CONVOLUTIONS, *TRANSPOSED, "Linear")

POSITIONS = (9, 8, 7)

TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Of outputs around 1: a few hundred products, summed in another order, cores rounded to the type."""


@dataclass(frozen=True)
class Case:
    """One value of one argument.

    others: arguments that it is given together with.
    outcome: `EQUAL`, or `REFUSED` and the first line of the message.
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
    """Axes of positions: 0 of a linear layer."""
    return 0 if layer == "Linear" else int(layer[-2])


def usual(layer: str) -> dict[str, Any]:
    """The smallest set of arguments."""
    if layer == "Linear":
        return {"in_features": 4, "out_features": 6, "dtype": torch.float64}
    kernel = (3, 2, 1)[: axes_of(layer)]
    return {"in_channels": 4, "out_channels": 6, "kernel_size": kernel, "dtype": torch.float64}


def input_for(layer: str, arguments: dict[str, Any], *, batch: tuple[int, ...] = (2,)) -> Tensor:
    """Normal numbers of a shape that the layer takes."""
    channels = arguments["in_features" if layer == "Linear" else "in_channels"]
    shape = (*batch, channels, *POSITIONS[: axes_of(layer)])
    dtype = arguments["dtype"] or torch.get_default_dtype()
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def outcome(case: Case) -> str:
    """Make both layers, and compare their outputs. Raises AssertionError where they differ."""
    torch.manual_seed(0)
    try:
        made = getattr(tensor_nn, case.layer)(**case.arguments, rewrite="cp", ranks={"r": 2})
    except TnalgebraError as error:
        assert isinstance(error, LayerError), f"{type(error).__name__}: {error}"
        return REFUSED + str(error).splitlines()[0]
    dense = getattr(torch_nn, case.layer)(**case.arguments)
    with torch.no_grad():
        dense.weight.copy_(made.dense_weight())
        if dense.bias is not None:
            dense.bias.copy_(made.bias)
    x = input_for(case.layer, case.arguments)
    expected, value = dense(x), made(x)
    tolerance = TOLERANCES[value.dtype]
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    assert repr(made).split("\n")[1].strip() == dense.extra_repr()
    for name in case.arguments:
        if name not in ("bias", "device", "dtype"):
            assert getattr(made, name) == getattr(dense, name), name
    return EQUAL


def _refused(layer: str, fact: str = "") -> str:
    return REFUSED + (fact or f"torch.nn.{layer} does not take these arguments")


def cases() -> Iterator[Case]:
    """Every argument of every layer, with values that are taken and values that are refused."""
    for layer in NAMES:
        no_network = _refused(layer, f"{layer} has no tensor network")
        yield from (Case(layer, "bias", value, EQUAL) for value in (True, False))
        yield from (Case(layer, "device", value, EQUAL) for value in (None, "cpu"))
        yield Case(layer, "device", "meta", _refused(layer, "the weight has no elements: it is on the meta device"))
        yield from (Case(layer, "dtype", value, EQUAL) for value in (None, *TOLERANCES))
        yield Case(layer, "dtype", torch.complex64, _refused(layer, "the weight is torch.complex64"))
        if layer == "Linear":
            yield from (Case(layer, name, value, EQUAL) for name in ("in_features", "out_features") for value in (1, 7))
            yield from (Case(layer, name, 0, _refused(layer)) for name in ("in_features", "out_features"))
            continue
        axes = axes_of(layer)
        yield from (Case(layer, name, value, EQUAL) for name in ("in_channels", "out_channels") for value in (1, 7))
        yield from (Case(layer, name, 0, _refused(layer)) for name in ("in_channels", "out_channels"))
        yield from (Case(layer, "kernel_size", value, EQUAL) for value in (1, 3, (2, 3, 1)[:axes]))
        yield Case(layer, "kernel_size", 0, _refused(layer))
        yield from (Case(layer, "stride", value, EQUAL) for value in (1, 2, (3, 1, 2)[:axes]))
        yield Case(layer, "stride", 0, _refused(layer))
        yield from (Case(layer, "dilation", value, EQUAL) for value in (1, 2, (3, 1, 2)[:axes]))
        yield Case(layer, "dilation", 0, no_network)
        yield from (Case(layer, "padding", value, EQUAL) for value in (0, 1, (2, 1, 0)[:axes]))
        yield Case(layer, "padding", -1, _refused(layer))
        yield from (Case(layer, "groups", value, EQUAL) for value in (1, 2))
        yield Case(layer, "groups", 4, EQUAL, {"out_channels": 8})
        yield from (Case(layer, "groups", value, _refused(layer)) for value in (0, 3))
        yield Case(layer, "padding_mode", "zeros", EQUAL, {"padding": 1})
        yield Case(layer, "padding_mode", "mirror", _refused(layer))
        others = ("reflect", "replicate", "circular")
        if layer in CONVOLUTIONS:
            odd = (3, 1, 5)[:axes]
            yield Case(layer, "padding", "valid", EQUAL)
            yield Case(layer, "padding", "same", EQUAL, {"kernel_size": odd, "dilation": 2})
            yield Case(layer, "padding", "same", _refused(layer), {"stride": 2})
            yield Case(layer, "padding", "full", _refused(layer))
            yield from (Case(layer, "padding_mode", mode, EQUAL, {"padding": (2, 1, 0)[:axes]}) for mode in others)
            yield from (Case(layer, "padding_mode", m, EQUAL, {"kernel_size": odd, "padding": "same"}) for m in others)
        else:
            yield from (Case(layer, "padding_mode", mode, _refused(layer)) for mode in others)
            yield from (Case(layer, "output_padding", value, EQUAL, {"stride": 3}) for value in (0, 2, (2, 0, 1)[:axes]))
            yield Case(layer, "output_padding", 1, EQUAL, {"dilation": 2})
            yield Case(layer, "output_padding", 1, no_network)
            yield Case(layer, "padding", "same", _refused(layer))


CASES = tuple(cases())
