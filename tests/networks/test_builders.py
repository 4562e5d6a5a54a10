"""The builders against torch, over everything torch lets one set."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tnalgebra.networks as windows
from tests.compiler_cases import NOMINAL, random, torch_convolutions
from tests.refusals import refused
from tnalgebra.errors import NetworkError, SizeError
from tnalgebra.networks import MODES, Network, parse
from tnalgebra.nn.torch_layers import layer_network
from tnalgebra.tensors import evaluate, magnitude

CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def check(network: Network, values: dict[str, Any], expected: Tensor) -> None:
    """The network is `expected`, to the rounding errors of a sum of that magnitude, and its text is the network.

    1e-12 leaves room for a few thousand additions, in any order, of float64 numbers (2.2e-16 each).
    """
    assert parse(str(network)) == network
    value = evaluate(network, values)
    assert value.shape == expected.shape
    assert ((value - expected).abs() <= 1e-12 * magnitude(network, values)).all()


def each(draw: st.DrawFn, axes: int, least: int, most: int) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(least, most), min_size=axes, max_size=axes)))


def flat_ends(ends: list[tuple[int, int]]) -> list[int]:
    """(low, high) of every axis in the order of torch's pad: the last axis first."""
    return [end for low_high in reversed(ends) for end in low_high]


def padded(x: Tensor, ends: list[tuple[int, int]], mode: str) -> Tensor:
    grown = [(max(low, 0), max(high, 0)) for low, high in ends]
    cropped = [(min(low, 0), min(high, 0)) for low, high in ends]
    return F.pad(F.pad(x, flat_ends(grown), mode="constant" if mode == "zeros" else mode), flat_ends(cropped))


@st.composite
def paddings(
    draw: st.DrawFn, kernel: tuple[int, ...], dilation: tuple[int, ...], unstrided: bool
) -> tuple[Any, list[tuple[int, int]]]:
    """The argument `padding` in each of its forms, and the (low, high) that it means."""
    axes = len(kernel)
    form = draw(st.sampled_from(("one", "each", "pairs", "mixed", "valid", *(["same"] if unstrided else []))))
    match form:
        case "one":
            number = draw(st.integers(0, 3))
            return number, [(number, number)] * axes
        case "each":
            numbers = each(draw, axes, 0, 3)
            return numbers, [(number, number) for number in numbers]
        case "valid":
            return form, [(0, 0)] * axes
        case "same":
            totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
            return form, [(total // 2, total - total // 2) for total in totals]
    ends = list(zip(each(draw, axes, -1, 3), each(draw, axes, -1, 3), strict=True))
    if form == "pairs":
        return tuple(ends), ends
    number = draw(st.integers(0, 3))
    return [*ends[1:], number], [*ends[1:], (number, number)]


# Laws ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own layer
@given(torch_convolutions(), st.integers(0, 10**6))
def test_convolutions_are_torchs(layer: nn.Module, seed: int) -> None:
    network, values, _ = layer_network(layer)
    x = random(2, layer.in_channels, *NOMINAL[: layer.weight.ndim - 2], seed=seed)
    check(network, {"X": x, **values}, layer(x).detach())


@given(st.data())
def test_patches_and_their_product_with_a_kernel_are_torchs(data: st.DataObject) -> None:
    """In every form of the arguments."""
    draw: st.DrawFn = data.draw  # type: ignore[assignment]
    axes = draw(st.sampled_from((1, 2, 2, 3)))
    kernel = tuple(draw(st.permutations((1, 2, 3, 4)))[:axes])
    stride = (1,) * axes if draw(st.booleans()) else each(draw, axes, 1, 3)
    # a window of 4, twice as wide, would be longer than an input that is cropped on both sides
    dilation = tuple(1 if k == 4 else d for k, d in zip(kernel, each(draw, axes, 1, 2), strict=True))
    padding, ends = draw(paddings(kernel, dilation, set(stride) == {1}))
    mode, flatten = draw(st.sampled_from(MODES)), draw(st.booleans())
    x, w = random(2, 5, *NOMINAL[:axes]), random(6, 5, *kernel, seed=1)
    numbers: dict[str, Any] = {"stride": stride, "dilation": dilation}
    numbers = {name: one[0] if len(set(one)) == 1 and draw(st.booleans()) else one for name, one in numbers.items()}
    arguments = {**numbers, "padding": padding, "padding_mode": mode}
    image = padded(x, ends, mode)
    check(windows.convolution(kernel, **arguments), {"X": x, "K": w}, CONV[axes](image, w, **numbers))
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        image = image.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    image = image.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
    if flatten:
        image = image.flatten(2 + axes).flatten(1, 1 + axes)
    check(windows.patch_tensor(kernel, flatten=flatten, **arguments), {"X": x}, image)


@given(st.data())
def test_uneven_ends_crop_a_transposed_convolution(data: st.DataObject) -> None:
    draw: st.DrawFn = data.draw  # type: ignore[assignment]
    kernel, stride, low, high = (draw(st.integers(a, b)) for a, b in ((1, 4), (1, 3), (-1, 2), (-1, 2)))
    x, w = random(2, 3, 7, seed=kernel), random(3, 5, kernel, seed=stride)
    network = windows.transposed_convolution((kernel,), stride=stride, padding=((low, high),))
    expected = F.pad(F.conv_transpose1d(x, w, stride=stride), (-low, -high))
    check(network, {"X": x, "K": w}, expected)


@st.composite
def poolings(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[str, Any]]:
    axes = draw(st.sampled_from((1, 2, 3)))
    kernel = tuple(draw(st.permutations((1, 2, 3, 4, 5)))[:axes])
    options: dict[str, Any] = {
        "stride": draw(st.one_of(st.none(), st.just(each(draw, axes, 1, 6)))),
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel),
        "ceil_mode": draw(st.booleans()),
        "count_include_pad": draw(st.booleans()),
    }
    if axes > 1:
        options["divisor_override"] = draw(st.sampled_from((None, None, 3, -7)))
    return kernel, options


@given(poolings(), st.permutations((5, 6, 7)), st.booleans())
def test_average_pooling_is_torchs(
    pooling: tuple[tuple[int, ...], dict[str, Any]], positions: list[int], sized: bool
) -> None:
    kernel, options = pooling
    x = random(2, 3, *positions[: len(kernel)], seed=sum(kernel))
    stride = options["stride"] or kernel
    counted = options["count_include_pad"] or not any(options["padding"]) or options.get("divisor_override")
    needed = not counted or (options["ceil_mode"] and max(stride) > 1)
    size = tuple(x.shape[2:]) if needed or sized else None
    network, constants = windows.average_pooling(kernel, **options, input_size=size)
    check(network, {"X": x, **constants}, AVERAGE[len(kernel)](x, kernel, **options))
    if needed:
        with refused(SizeError, "needs input_size"):
            windows.average_pooling(kernel, **options)


@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_every_small_average_pooling_is_torchs(ceil_mode: bool, count_include_pad: bool) -> None:
    """All windows of up to 4 with every stride and padding on inputs of up to 7."""
    options: dict[str, Any] = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    for size, kernel in product(range(1, 8), range(1, 5)):
        x = random(2, 3, size, seed=size)
        for padding, stride in product(range(kernel // 2 + 1), range(1, kernel + 3)):
            every = {"stride": stride, "padding": padding, "input_size": size, **options}
            try:
                expected = F.avg_pool1d(x, kernel, stride, padding, **options)
            except RuntimeError:
                with refused(SizeError, f"input_size is {size}", f"window has {kernel}"):
                    windows.average_pooling((kernel,), **every)
                continue
            network, constants = windows.average_pooling((kernel,), **every)
            torch.testing.assert_close(evaluate(network, {"X": x, **constants}), expected, rtol=1e-12, atol=1e-14)


@given(st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=1, max_size=3), st.permutations((5, 6, 8)))
def test_adaptive_average_pooling_is_torchs(output_size: list[int | None], positions: list[int]) -> None:
    axes = len(output_size)
    x = random(2, 3, *positions[:axes], seed=axes)
    network, constants = windows.adaptive_average_pooling(output_size, input_size=x.shape[2:])
    expected = ADAPTIVE[axes](x, tuple(size or x.shape[axis] for axis, size in enumerate(output_size, start=2)))
    check(network, {"X": x, **constants}, expected)
    divides = all(size is None or x.shape[axis] % size == 0 for axis, size in enumerate(output_size, start=2))
    assert (constants == {}) == divides
    if not set(output_size) - {1, None}:
        without = windows.adaptive_average_pooling(output_size)
        check(without.network, {"X": x}, expected)


@pytest.mark.parametrize("known", [{}, {"in_features": 3}, {"out_features": 5}, {"in_features": 3, "out_features": 5}])
def test_linear_is_torchs(known: dict[str, int]) -> None:
    x, w = random(2, 3, seed=0), random(5, 3, seed=1)
    check(windows.linear(**known), {"X": x, "W": w}, F.linear(x, w))


@pytest.mark.parametrize(("axes", "groups", "stride"), [(1, 1, 2), (2, 2, 1), (3, 1, 1)])
def test_two_layers_are_one_network(axes: int, groups: int, stride: int) -> None:
    """`conv >> pool` and `conv >> conv` are torch's composition: padding between the two included."""
    kernel, window = (3, 2, 1)[:axes], (2, 3, 2)[:axes]
    padding = tuple(k // 2 for k in kernel)
    first = windows.convolution(kernel, padding=padding, groups=groups)
    x, w = random(2, 4, *NOMINAL[:axes]), random(6, 4 // groups, *kernel, seed=1)
    between = CONV[axes](x, w, padding=padding, groups=groups)
    options: dict[str, Any] = {"stride": stride, "padding": 1, "count_include_pad": False, "ceil_mode": True}
    pool, constants = windows.average_pooling(window, **options, input_size=tuple(between.shape[2:]))
    check(first >> pool, {"X": x, "K": w, **constants}, AVERAGE[axes](between, window, **options))
    second, w_2 = windows.convolution(window, stride=stride, padding=1), random(2, 6, *window, seed=2)
    expected = CONV[axes](between, w_2, stride=stride, padding=1)
    check(first >> second, {"X": x, "K": w, "K_2": w_2}, expected)


# What is written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "arguments", "text"),
    [
        ("convolution", {}, "X[n in x] Conv[x u k:3] K[out in k] -> [n out u]"),
        (
            *("convolution", {"kernel_size": (3, 2), "stride": (2, 1), "padding": ((1, 0), (0, 2)), "in_channels": 4}),
            "X[n in:4 x y] Conv[x u kh:3 | stride=2 padding=1:0] Conv[y v kw:2 | padding=0:2] K[out in kh kw]"
            " -> [n out u v]",
        ),
        (
            *("convolution", {"kernel_size": (1, 2, 3), "padding": "same", "padding_mode": "circular"}),
            "X[n in x y z] Conv[x u kd:1 | mode=circular] Conv[y v kh:2 | padding=0:1 mode=circular]"
            " Conv[z w kw:3 | padding=1 mode=circular] K[out in kd kh kw] -> [n out u v w]",
        ),
        (
            *("convolution", {"groups": 2, "in_channels": 4, "out_channels": 6, "dilation": 2}),
            "X[n c:4 x] Fuse[c g:2 in:2] Conv[x u k:3 | dilation=2] K[out:6 in k] Fuse[out g m:3] -> [n out u]",
        ),
        (
            *("transposed_convolution", {"stride": 2, "padding": 1, "output_padding": 1}),
            "X[n in u] Conv[x u k:3 | stride=2 padding=1:0] K[in out k] -> [n out x]",
        ),
        (
            *("transposed_convolution", {"kernel_size": (3, 3), "groups": 2, "in_channels": 4}),
            "X[n c:4 u v] Fuse[c g:2 in:2] Conv[x u kh:3] Conv[y v kw:3] K[c m kh kw] Fuse[out g m] -> [n out x y]",
        ),
        ("patch_tensor", {"kernel_size": (3, 2)}, "X[n in x y] Conv[x u kh:3] Conv[y v kw:2] -> [n in kh kw u v]"),
        (
            *("patch_tensor", {"flatten": True}),
            "X[n in x] Conv[x u k:3] Fuse[feature in k] Fuse[position u] -> [n feature position]",
        ),
        (
            *("average_pooling", {"kernel_size": (2, 3), "stride": 2, "padding": 1}),
            "X[n c x y] Conv[x u kh:2 | stride=2 padding=1] Conv[y v kw:3 | stride=2 padding=1]"
            " Fill[kh | value=1/2] Fill[kw | value=1/3] -> [n c u v]",
        ),
        (
            *("average_pooling", {"kernel_size": (2,), "ceil_mode": True, "input_size": 5}),
            "X[n c x:5] Conv[x u:3 k:2 | stride=2 padding=0:1] Du[u] -> [n c u]",
        ),
        (
            *("adaptive_average_pooling", {"output_size": (3, 4), "input_size": (6, 6)}),
            "X[n c x:6 y:6] Conv[x u:3 kh:2 | stride=2] Fill[kh | value=1/2] Pv[y v] -> [n c u v]",
        ),
        (
            *("adaptive_average_pooling", {"output_size": (1, None)}),
            "X[n c x y] Fill[x | value=mean] Fill[u:1 | value=1] Copy[y v] -> [n c u v]",
        ),
        ("linear", {"out_features": 5}, "X[n in] W[out:5 in] -> [n out]"),
    ],
)
def test_the_text_of_a_builder(builder: str, arguments: dict[str, Any], text: str) -> None:
    built, written = build(builder, **arguments), parse(text)
    built = built.network if isinstance(built, windows.Pooling) else built
    assert (built.nodes, built.output) == (written.nodes, written.output)
    assert set(written.sizes.items()) <= set(built.sizes.items())
    assert parse(str(built)) == built


def build(builder: str, **arguments: Any) -> Any:
    """With a kernel of three elements, if nothing else is said."""
    usual = {} if builder in ("linear", "adaptive_average_pooling") else {"kernel_size": (3,)}
    return getattr(windows, builder)(**usual | arguments)


def test_a_depthwise_kernel_has_one_channel_a_group() -> None:
    network = windows.convolution((3, 2), groups=6, in_channels=6, out_channels=12)
    assert network.sizes.items() >= {"c": 6, "g": 6, "in": 1, "out": 12, "m": 2}.items()


# What is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "arguments", "facts"),
    [
        ("convolution", {"kernel_size": 3}, "kernel_size is 3"),
        ("convolution", {"kernel_size": (3, 3, 3, 3)}, "kernel_size is (3, 3, 3, 3)"),
        ("convolution", {"kernel_size": ()}, "kernel_size is ()"),
        ("convolution", {"kernel_size": (0, 3)}, "kernel_size is 0"),
        ("convolution", {"kernel_size": (2.0,)}, "kernel_size is 2.0"),
        ("convolution", {"kernel_size": (True,)}, "kernel_size is True"),
        ("convolution", {"kernel_size": (2**41,)}, f"kernel_size is {2**41}"),
        ("convolution", {"stride": 0}, "stride is 0"),
        ("convolution", {"stride": (1, 1, 1)}, "stride has 3 entries"),
        ("convolution", {"stride": "2"}, "stride is '2'"),
        ("convolution", {"dilation": 0}, "dilation is 0"),
        ("convolution", {"padding": -1}, "padding is -1"),
        ("convolution", {"padding": (1, 2)}, "padding has 2 entries"),
        ("convolution", {"padding": ((1, 2, 3),)}, "padding has 3 numbers"),
        ("convolution", {"padding": ((1, 0.5),)}, "padding is 0.5"),
        ("convolution", {"padding": "full"}, "padding is 'full'"),
        ("convolution", {"padding": "same", "stride": 2}, "'same' with a stride"),
        ("convolution", {"padding_mode": "edge"}, "padding_mode is 'edge'"),
        ("convolution", {"groups": 0}, "groups is 0"),
        ("convolution", {"groups": 2, "in_channels": 3, "out_channels": 4}, "in_channels=3"),
        ("convolution", {"groups": 2, "in_channels": 4, "out_channels": 5}, "out_channels=5"),
        ("convolution", {"in_channels": 0}, "in_channels is 0"),
        ("transposed_convolution", {"padding": "same"}, "'same'"),
        ("transposed_convolution", {"padding_mode": "reflect"}, "'reflect'"),
        ("transposed_convolution", {"stride": 2, "output_padding": 2}, "output_padding is 2"),
        ("transposed_convolution", {"output_padding": -1}, "output_padding is -1"),
        ("average_pooling", {"padding": 2}, "padding is 2"),
        ("average_pooling", {"padding": ((1, 1),)}, "padding is (1, 1)"),
        ("average_pooling", {"padding": "same"}, "padding is 'same'"),
        ("average_pooling", {"divisor_override": 0}, "divisor_override is 0"),
        ("average_pooling", {"divisor_override": 0.5}, "divisor_override is 0.5"),
        ("average_pooling", {"input_size": (4, 5)}, "input_size has 2 entries"),
        ("adaptive_average_pooling", {"output_size": 7}, "output_size is 7"),
        ("adaptive_average_pooling", {"output_size": (0,)}, "output_size is 0"),
        ("adaptive_average_pooling", {"output_size": (1, 1, 1, 1)}, "output_size is (1, 1, 1, 1)"),
        ("linear", {"in_features": 0}, "in_features is 0"),
    ],
)
def test_an_argument_is_refused_by_name(builder: str, arguments: dict[str, Any], facts: str) -> None:
    with refused(NetworkError, facts):
        build(builder, **arguments)


@pytest.mark.parametrize(
    ("builder", "arguments", "facts"),
    [
        ("average_pooling", {"stride": 2, "ceil_mode": True}, ["input_size", "number of windows"]),
        ("average_pooling", {"padding": 1, "count_include_pad": False}, ["input_size", "number of elements"]),
        ("average_pooling", {"kernel_size": (5,), "input_size": 3}, ["input_size is 3", "5 elements"]),
        ("adaptive_average_pooling", {"output_size": (7, 1)}, ["input_size", "output_size (7, 1)"]),
    ],
)
def test_a_size_that_is_needed_is_asked_for(builder: str, arguments: dict[str, Any], facts: list[str]) -> None:
    with refused(SizeError, *facts):
        build(builder, **arguments)
