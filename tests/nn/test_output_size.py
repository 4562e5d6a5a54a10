"""The size of the output that a call of a transposed convolution asks for, against torch's layer, in float64."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnalgebra.nn as layers
from tests.refusals import refused
from tnalgebra.errors import CompileError
from tnalgebra.model import convert

# Sums of a few dozen products around 1, in another order, in float64.
ROUNDING = {"rtol": 1e-11, "atol": 1e-11}

ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"stride": 1},
    {"stride": 2, "padding": 1},
    {"stride": 3, "output_padding": 1, "groups": 2},
    {"stride": 2, "dilation": 3, "output_padding": 2},  # more than an output size may ask for
    {"stride": 4, "padding": 2, "output_padding": 3},
)


def decomposed(module: nn.Module) -> Any:
    return layers.decomposed(module, "tucker2", 2, tune=False)


@pytest.mark.parametrize("batch", [(2,), ()])
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_every_size_that_torch_takes(kind: Any, arguments: dict[str, Any], batch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = decomposed(kind(4, 6, 3, dtype=torch.float64, **arguments))
    dense = layer.to_dense()
    axes = len(dense.kernel_size)
    x = torch.randn(*batch, 4, *(5, 4)[:axes], dtype=torch.float64)
    usual = dense(x).shape[-axes:]
    made = 0
    for change in product(range(-5, 6), repeat=axes):
        asked = [size + one for size, one in zip(usual, change, strict=True)]
        try:
            expected = dense(x, output_size=asked)
        except ValueError:
            expected = None
        if expected is None:
            with pytest.raises(CompileError):
                layer(x, output_size=asked)
            continue
        made += 1
        for size in (asked, expected.shape):
            value = layer(x, output_size=size)
            torch.testing.assert_close(value, expected, **ROUNDING)
            assert value.stride() == expected.stride()
    assert made == layer.stride[0] ** axes


def test_sizes_that_no_output_padding_makes() -> None:
    layer = decomposed(nn.ConvTranspose2d(4, 6, 3, stride=2))
    x = torch.randn(2, 4, 5, 4)
    for asked in ((12, 11), (13, 9), (11,), (2, 11, 9)):
        with refused(CompileError, "output_size", asked, (11, 9), (12, 10)):
            layer(x, output_size=asked)
    with refused(CompileError, "'X'"):
        layer(x[0, 0], output_size=(11, 9))


class UNet(nn.Module):
    """Down and up again to the size that the input has, even or odd."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(self.down(x), output_size=x.shape[2:])
        return x + y


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    """A network with decomposed layers, and the same with dense ones."""
    torch.manual_seed(0)
    model, report = convert(UNet().double(), {"*": ("tucker2", 2)}, tune=False, example=(2, 3, 9, 8))
    assert report.converted == ("down", "up")
    dense: Any = copy.deepcopy(model)
    dense.down, dense.up = dense.down.to_dense(), dense.up.to_dense()
    return model.eval(), dense.eval()


@pytest.mark.parametrize("way", ["called", "frozen", "torch.fx", "exported", "compiled"])
def test_a_network_that_returns_to_the_size_of_its_input(way: str, pair: tuple[nn.Module, nn.Module]) -> None:
    model, dense = pair
    shapes = [(2, 3, 9, 8), (2, 3, 8, 8), (1, 3, 7, 9)]
    called: Any = model
    if way == "frozen":
        model.get_submodule("up").freeze()
    elif way == "torch.fx":
        called = torch.fx.symbolic_trace(model)
    elif way == "compiled":
        called = torch.compile(model, backend="eager")
    for shape in shapes:
        x = torch.randn(shape, dtype=torch.float64)
        if way == "exported":
            called = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(called(x), dense(x), **ROUNDING)


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up: Any = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        larger: Tensor = self.up(x, output_size=(2 * x.shape[2], 2 * x.shape[3] - 1))
        return larger


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_for_every_size(strict: bool) -> None:
    model = Doubled().eval()
    model.up = decomposed(model.up)
    dense = model.up.to_dense()
    example, sizes = torch.randn(2, 4, 9, 8, dtype=torch.float64), {2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    exported = torch.export.export(model, (example,), dynamic_shapes=(sizes,), strict=strict)
    for shape in ((9, 8), (5, 21)):
        x = torch.randn(2, 4, *shape, dtype=torch.float64)
        expected = dense(x, output_size=(2 * shape[0], 2 * shape[1] - 1))
        torch.testing.assert_close(exported.module()(x), expected, **ROUNDING)


def test_gradients_and_memory_formats(pair: tuple[nn.Module, nn.Module]) -> None:
    model, _ = pair
    x = torch.randn(1, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,))
    last = nn.ConvTranspose2d(4, 8, 3, stride=2, padding=1).to(memory_format=torch.channels_last)
    y = torch.randn(2, 4, 6, 5).to(memory_format=torch.channels_last)
    assert decomposed(last)(y, output_size=(12, 9)).is_contiguous(memory_format=torch.channels_last)
