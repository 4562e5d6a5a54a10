"""Every layer's network against the layer itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.refusals import refused
from tnalgebra.errors import LayerError
from tnalgebra.networks.network import tensor_nodes
from tnalgebra.networks.nodes import MODES
from tnalgebra.networks.notation import parse
from tnalgebra.nn.torch_layers import kernel_labels_of, kernel_layers, layer_network
from tnalgebra.tensors.evaluation import evaluate, magnitude

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
AVERAGE: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


def check(module: nn.Module, shape: tuple[int, ...], *, told: bool) -> None:
    """The layer's network and bias give the layer's output, to 1e-12 of the sum of the absolute terms."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))
    with torch.no_grad():
        expected = module.double()(x)
    network, values, bias = layer_network(module, input_size=shape[2:] if told else None)
    assert parse(str(network)) == network
    assert set(values) == set(tensor_nodes(network)) - {"X"}
    value, scale = evaluate(network, {"X": x, **values}), magnitude(network, {"X": x, **values})
    if bias is not None:
        on_out = bias.reshape(-1, *[1] * (value.ndim - 2))
        value, scale = value + on_out, scale + on_out.abs()
    assert value.shape == expected.shape
    assert ((value - expected).abs() <= 1e-12 * scale).all()


def each(draw: st.DrawFn, axes: int, least: int, most: int) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(least, most), min_size=axes, max_size=axes)))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@given(st.data())
def test_a_convolution_is_its_network(data: st.DataObject) -> None:
    draw: st.DrawFn = data.draw  # type: ignore[assignment]
    axes = draw(st.sampled_from((1, 2, 2, 3)))
    kernel = tuple(draw(st.permutations((1, 2, 3)))[:axes])
    groups = draw(st.sampled_from((1, 2, 4)))
    padding = draw(st.one_of(st.just("valid"), st.just("same"), st.just(each(draw, axes, 0, 3))))
    module = CONVOLUTIONS[axes](
        4,
        groups * 5,
        kernel,
        stride=(1,) * axes if padding == "same" else each(draw, axes, 1, 3),
        padding=padding,
        dilation=each(draw, axes, 1, 3),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(MODES)),
    )
    check(module, (2, 4, *draw(st.permutations((7, 8, 9)))[:axes]), told=draw(st.booleans()))


@given(st.data())
def test_a_transposed_convolution_is_its_network(data: st.DataObject) -> None:
    draw: st.DrawFn = data.draw  # type: ignore[assignment]
    axes = draw(st.sampled_from((1, 2, 2, 3)))
    groups = draw(st.sampled_from((1, 2, 4)))
    stride, dilation = each(draw, axes, 1, 3), each(draw, axes, 1, 3)
    module = TRANSPOSED[axes](
        4,
        groups * 3,
        tuple(draw(st.permutations((1, 2, 3)))[:axes]),
        stride=stride,
        padding=each(draw, axes, 0, 2),
        output_padding=tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)),
        groups=groups,
        bias=draw(st.booleans()),
        dilation=dilation,
    )
    check(module, (2, 4, *draw(st.permutations((5, 6, 7)))[:axes]), told=draw(st.booleans()))


@given(st.permutations((2, 3, 5)), st.booleans())
def test_a_linear_layer_is_its_network(sizes: list[int], bias: bool) -> None:
    n, c, out = sizes
    check(nn.Linear(c, out, bias=bias), (n, c), told=False)


@given(st.data())
def test_an_average_pooling_is_its_network(data: st.DataObject) -> None:
    draw: st.DrawFn = data.draw  # type: ignore[assignment]
    axes = draw(st.sampled_from((1, 2, 3)))
    kernel = tuple(draw(st.permutations((2, 3, 4)))[:axes])
    options: dict[str, Any] = {
        "stride": draw(st.one_of(st.none(), st.just(each(draw, axes, 1, 3)))),
        "padding": draw(st.one_of(st.integers(0, 1), st.just(each(draw, axes, 0, 1)))),
        "ceil_mode": draw(st.booleans()),
        "count_include_pad": draw(st.booleans()),
    }
    if axes > 1:
        options["divisor_override"] = draw(st.sampled_from((None, 5)))
    module = AVERAGE[axes](draw(st.sampled_from((kernel, 2))), **options)
    check(module, (2, 3, *draw(st.permutations((5, 6, 7)))[:axes]), told=True)


@given(st.data())
def test_an_adaptive_average_pooling_is_its_network(data: st.DataObject) -> None:
    draw: st.DrawFn = data.draw  # type: ignore[assignment]
    axes = draw(st.sampled_from((1, 2, 3)))
    one = st.integers(1, 8)
    # torch's 1-d layer takes no None
    entry = one if axes == 1 else st.one_of(st.none(), one)
    output = draw(st.one_of(one, st.tuples(*[entry] * axes)))
    check(ADAPTIVE[axes](output), (2, 3, *draw(st.permutations((5, 6, 8)))[:axes]), told=True)


def test_global_pooling_needs_no_sizes() -> None:
    check(nn.AdaptiveAvgPool2d(1), (2, 3, 5, 7), told=False)
    check(nn.AvgPool2d((2, 3)), (2, 3, 5, 7), told=False)


def test_sizes_are_those_of_the_module() -> None:
    network, values, bias = layer_network(nn.Conv2d(4, 6, (3, 2), groups=2), input_size=(7, 5))
    sizes = [network.sizes[label] for label in ("c", "g", "in", "out", "m", "x", "y", "u", "v")]
    assert sizes == [4, 2, 2, 6, 3, 7, 5, 5, 4]
    assert values["K"].shape == (6, 2, 3, 2)
    assert bias is not None
    assert bias.shape == (6,)
    assert "n" not in network.sizes


def test_values_share_the_modules_memory_and_carry_no_gradient() -> None:
    module = nn.Linear(3, 5)
    _, values, bias = layer_network(module)
    assert values["W"].data_ptr() == module.weight.data_ptr()
    assert not values["W"].requires_grad
    assert bias is not None
    assert not bias.requires_grad


def test_a_parametrised_layer_has_the_weight_it_computes_with() -> None:
    module = parametrizations.weight_norm(nn.Conv1d(3, 5, 2))
    with torch.no_grad():
        module.parametrizations["weight"].original0.mul_(3.0)
    check(module, (2, 3, 7), told=False)


# Kernels of a model -------------------------------------------------------------------------------------------


def test_the_kernels_of_a_model_in_order() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.ConvTranspose1d(2, 3, 2), nn.ReLU(), nn.Conv3d(1, 2, 1)),
        shared,
        nn.MaxPool2d(2),
        shared,
    )
    assert [*kernel_layers(model).items()] == [
        ("0", model[0]),
        ("2.0", model[2][0]),
        ("2.2", model[2][2]),
        ("3", shared),
    ]
    assert kernel_layers(shared) == {"": shared}
    assert kernel_layers(nn.ReLU()) == {}


@pytest.mark.parametrize(
    ("module", "labels"),
    [
        (nn.Linear(2, 3), "out in"),
        (nn.Conv1d(2, 3, 5), "out in k"),
        (nn.Conv3d(2, 3, (5, 7, 4)), "out in kd kh kw"),
        (nn.ConvTranspose2d(2, 3, (5, 7)), "in out kh kw"),
    ],
)
def test_the_labels_of_a_kernel_are_those_of_its_network(module: nn.Module, labels: str) -> None:
    assert " ".join(kernel_labels_of(module)) == labels
    network = layer_network(module).network
    (place,) = tensor_nodes(network)["W" if isinstance(module, nn.Linear) else "K"]
    assert kernel_labels_of(module) == network.nodes[place].labels
    assert tuple(network.sizes[label] for label in kernel_labels_of(module)) == module.get_parameter("weight").shape


# What is refused ----------------------------------------------------------------------------------------------

MAX_POOLINGS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.MaxPool2d(2),
    lambda: nn.AdaptiveMaxPool1d(2),
    lambda: nn.FractionalMaxPool3d(2, output_size=2),
    lambda: nn.MaxUnpool2d(2),
    lambda: nn.LPPool2d(2, 3),
)


@pytest.mark.parametrize("build", MAX_POOLINGS)
def test_poolings_that_are_not_sums_of_products_are_refused(build: Callable[[], nn.Module]) -> None:
    module = build()
    with refused(LayerError, "not a sum of products", type(module).__name__, "average pooling"):
        layer_network(module)


class Standardised(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(input, weight / weight.norm(), bias)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Named(nn.Conv2d):
    """A subclass that computes what its base computes."""


def test_a_subclass_without_a_forward_of_its_own_is_known() -> None:
    check(Named(3, 4, 2), (2, 3, 5, 6), told=False)


@pytest.mark.parametrize(
    ("build", "input_size", "facts"),
    [
        (lambda: nn.ReLU(), None, ["ReLU", "Conv1d", "AdaptiveAvgPool3d"]),
        (lambda: Standardised(2, 3, 3), None, ["Standardised", "Conv2d", "forward"]),
        (lambda: Scaled(2, 3), None, ["Scaled", "Linear", "forward"]),
        (lambda: nn.AvgPool2d(3, 2, ceil_mode=True), None, ["AvgPool2d", "stride=2", "input_size"]),
        (lambda: nn.AvgPool2d(3, padding=2), None, ["padding is 2"]),
        (lambda: nn.AvgPool2d((3, 3, 3), 2), None, ["kernel_size", "3 entries", "2 axes"]),  # type: ignore[arg-type]
        (lambda: nn.AdaptiveAvgPool2d((2, 1)), None, ["input_size"]),
        (lambda: nn.Conv2d(2, 3, 3, padding=-1), None, ["padding is -1"]),
        (lambda: nn.Conv2d(2, 3, 3, stride=0), None, ["stride is 0"]),
        (lambda: nn.Conv2d(2, 3, 3), (2, 5), ["'kh'", "'x'"]),
        (lambda: nn.Conv2d(2, 3, 3), (5, 5, 5), ["input_size", "3 entries", "2 axes"]),
        (lambda: nn.Conv2d(2, 3, 3), (5, 0), ["input_size is 0"]),
        (lambda: nn.ConvTranspose2d(2, 3, 3, output_padding=1), None, ["output_padding is 1"]),
        (lambda: nn.Linear(2, 3), (5,), ["input_size"]),
        (lambda: nn.LazyLinear(3), None, ["LazyLinear", "run the model once"]),
    ],
)
def test_a_layer_is_refused_by_name(
    build: Callable[[], nn.Module], input_size: tuple[int, ...] | None, facts: list[str]
) -> None:
    with refused(LayerError, *facts):
        layer_network(build(), input_size=input_size)


def test_a_layer_without_a_kernel_has_no_labels() -> None:
    with refused(LayerError, "ReLU", "Conv1d"):
        kernel_labels_of(nn.ReLU())
