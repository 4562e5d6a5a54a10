"""The compiler against torch's own layers, dense, decomposed and pooling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tnalgebra as tn
from tests.compiler_cases import (
    NOMINAL,
    OTHERS,
    assert_same,
    candidate_value,
    check,
    check_at,
    random,
    torch_convolutions,
)
from tnalgebra.compiler.operations import Convolve, Pool
from tnalgebra.networks.network import Network
from tnalgebra.networks.notation import parse
from tnalgebra.nn.torch_layers import layer_network
from tnalgebra.tensors.evaluation import evaluate, magnitude

# Dense layers --------------------------------------------------------------------------------------------------------


def call_at_other_sizes(module: nn.Module, layer: nn.Module, channels: int, axes: int) -> None:
    """The module computes what the layer computes, at sizes that it was not planned for."""
    for batch, positions in ((2, NOMINAL), *OTHERS):
        x = random(batch, channels, *positions[:axes], seed=batch)
        if axes > 1 and module.plan.request.channels_last:
            x = x.contiguous(memory_format=torch.channels_last if axes == 2 else torch.channels_last_3d)
        # a window has at most 5 * 64 weights of size 1, and x elements of size up to 4
        torch.testing.assert_close(module(x), layer(x), rtol=0, atol=1e-11)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own layer
@given(torch_convolutions(), st.sampled_from(("all", "factored")), st.booleans(), st.booleans())
def test_convolutions_are_torchs(layer: nn.Module, candidates: str, backward: bool, channels_last: bool) -> None:
    network, values, _ = layer_network(layer)
    axes, channels = layer.weight.ndim - 2, layer.in_channels
    shape = (2, channels, *NOMINAL[:axes])
    memory = torch.channels_last if channels_last else torch.contiguous_format
    options: dict[str, Any] = {"candidates": candidates, "backward": backward, "memory_format": memory}
    module = tn.compile(network, inputs={"X": shape}, values=values, **options)
    x = random(*shape)
    assert_same(module(x).detach(), evaluate(network, {**values, "X": x}), magnitude(network, {**values, "X": x}))
    call_at_other_sizes(module, layer, channels, axes)
    x.requires_grad_()
    direction = random(*layer(x).shape, seed=1)
    ours = torch.autograd.grad(module(x), [x, module.K], direction)
    # sums of up to 2*13*12*14 products of normal numbers
    torch.testing.assert_close(ours, torch.autograd.grad(layer(x), [x, layer.weight], direction), rtol=0, atol=1e-10)
    call_at_other_sizes(module.freeze(), layer, channels, axes)


# Decomposed layers ---------------------------------------------------------------------------------------------------


DECOMPOSITIONS: dict[str, str] = {
    "cp": "A[out r] B[in r] C[kh r] D[kw r] -> [out in kh kw]",
    "tucker2": "U[out a] G[a b kh kw] V[b in] -> [out in kh kw]",
    "tucker": "G[a b c d] U[out a] V[in b] P[kh c] Q[kw d] -> [out in kh kw]",
    "train": "A[out p] B[p in q] C[q kh s] D[s kw]",
    "ring": "A[z out p] B[p in q] C[q kh s] D[s kw z] -> [out in kh kw]",
    "svd": "U[out kh r] S[r] V[r in kw] -> [out in kh kw]",
    "spatially separable": "A[out in kh] B[out in kw] -> [out in kh kw]",
    "block term": "U[out a t] G[a b kh kw t] V[b in t] -> [out in kh kw]",
    "depthwise separable": "D[in kh kw] P[out in] -> [out in kh kw]",
    "reshaped train": "Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2 q] C[q kh kw] -> [out in kh kw]",
}

RANKS = {"r": 5, "a": 4, "b": 3, "c": 2, "d": 2, "p": 3, "q": 4, "s": 2, "z": 2, "t": 2, "o1": 2, "i1": 3}

ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride (2, 1)": {"stride": (2, 1), "padding": 1},
    "same": {"padding": "same", "dilation": (1, 2)},
    "asymmetric": {"padding": ((2, 0), (-1, 3))},
    "reflect": {"padding": (1, 2), "padding_mode": "reflect"},
    "replicate": {"padding": (2, 1), "padding_mode": "replicate", "stride": 3},
    "circular, cropped": {"padding": ((2, -1), (0, 1)), "padding_mode": "circular"},
}


def kernel_network(text: str, channels: tuple[int, int], **sizes: int) -> Network:
    """A kernel in the form of a decomposition, with every size."""
    known = {**RANKS, "out": channels[0], "in": channels[1], **sizes}
    kernel = parse(text)
    labels = {label for node in kernel.nodes for label in node.labels}
    return Network(kernel.nodes, kernel.output, {label: size for label, size in known.items() if label in labels})


def check_decomposed(kernel: Network, layer: Network, **sizes: int) -> None:
    """The layer with this kernel, at the nominal sizes and at others."""
    network = tn.networks.compose(kernel, layer, into="K")
    module = check(Network(network.nodes, network.output, {**network.sizes, "n": 2, **sizes}), "X")
    for batch, positions in OTHERS:
        check_at(
            module, {"n": batch, **dict(zip([label for label in sizes if label in "xyuv"], positions, strict=False))}
        )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, arguments) for name in DECOMPOSITIONS for arguments in ("plain", "asymmetric")),
        *((name, arguments) for name in ("cp", "spatially separable") for arguments in [*ARGUMENTS][1:]),
    ],
)
def test_decomposed_convolutions(name: str, arguments: str) -> None:
    kernel = kernel_network(DECOMPOSITIONS[name], (4, 6), kh=3, kw=2)
    check_decomposed(kernel, tn.networks.convolution((3, 2), **ARGUMENTS[arguments]), x=9, y=8)


@pytest.mark.parametrize("name", [name for name in DECOMPOSITIONS if name != "spatially separable"])
def test_decomposed_transposed_convolutions(name: str) -> None:
    kernel = kernel_network(DECOMPOSITIONS[name], (4, 6), kh=3, kw=2)
    turned = [{"out": "in", "in": "out"}.get(label, label) for label in ("in", "out", "kh", "kw")]
    layer = tn.networks.transposed_convolution((3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2))
    check_decomposed(Network(kernel.nodes, turned, kernel.sizes), layer, u=5, v=4)


@pytest.mark.parametrize("text", ["A[out r] B[in r] C[kh r] D[kw r] -> [out in kh kw]", "L[out r] R[r in kh kw]"])
def test_decomposed_grouped_convolutions(text: str) -> None:
    kernel = kernel_network(text, (4, 3), kh=3, kw=2)
    check_decomposed(kernel, tn.networks.convolution((3, 2), groups=2, padding=1), x=7, y=8, g=2)


# Poolings ------------------------------------------------------------------------------------------------------------


POOLINGS: dict[str, tuple[nn.Module, int]] = {
    "1-d": (nn.AvgPool1d(3, stride=2, padding=1), 1),
    "2-d": (nn.AvgPool2d((3, 2)), 2),
    "2-d, wide steps": (nn.AvgPool2d(2, stride=(3, 1)), 2),
    "3-d": (nn.AvgPool3d((2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 0)), 3),
    "ceil_mode": (nn.AvgPool2d((3, 2), stride=(2, 3), padding=1, ceil_mode=True), 2),
    "count_include_pad=False": (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), 2),
    "divisor_override": (nn.AvgPool2d(2, divisor_override=3), 2),
    "adaptive": (nn.AdaptiveAvgPool2d((3, 4)), 2),
    "adaptive, overlapping": (nn.AdaptiveAvgPool2d((4, 3)), 2),
    "adaptive, as it is": (nn.AdaptiveAvgPool2d((None, 2)), 2),
    "global": (nn.AdaptiveAvgPool2d(1), 2),
    "global, 3-d": (nn.AdaptiveAvgPool3d(1), 3),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_is_torchs(name: str) -> None:
    layer, axes = POOLINGS[name]
    positions = NOMINAL[:axes]
    network, values, _ = layer_network(layer, input_size=positions)
    module = tn.compile(network, inputs={"X": (2, 3, *positions)}, values=values, constants=[*values])
    assert not list(module.parameters())
    for batch in (2, 1, 5):
        x = random(batch, 3, *positions)
        # means of at most 720 normal numbers
        torch.testing.assert_close(module(x), layer(x), rtol=0, atol=1e-13)
        torch.testing.assert_close(module.freeze()(x), layer(x), rtol=0, atol=1e-13)
        module.thaw()


UNBOUND = ("1-d", "2-d", "2-d, wide steps", "3-d", "divisor_override", "global", "global, 3-d")


@pytest.mark.parametrize("name", UNBOUND)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_every_plan_of_a_pooling_is_torchs(name: str, channels_last: bool) -> None:
    """At other sizes than those of the plan too, in value and gradient; some plans are depthwise convolutions."""
    layer, axes = POOLINGS[name]
    network, values, _ = layer_network(layer)
    values = {key: value.double() for key, value in values.items()}
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module = tn.compile(network, inputs={"X": (2, 3, *NOMINAL[:axes])}, values=values, memory_format=layout)
    if "global" not in name:
        kinds = {type(one) for plan in module.plan.candidates for one in plan.program.operations}
        assert {Pool, Convolve} <= kinds
    for batch, channels, positions in ((2, 3, NOMINAL), *((batch, 4, positions) for batch, positions in OTHERS)):
        x = random(batch, channels, *positions[:axes])
        if channels_last and axes > 1:
            x = x.contiguous(memory_format=torch.channels_last if axes == 2 else torch.channels_last_3d)
        x.requires_grad_()
        expected = layer(x)
        direction = random(*expected.shape, seed=1)
        (gradient,) = torch.autograd.grad(expected, x, direction)
        for candidate in module.plan.candidates:
            value = candidate_value(candidate, {"X": x, **values})
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-13)
            ours = torch.autograd.grad(value, x, direction)
            torch.testing.assert_close(ours, (gradient,), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", UNBOUND)
def test_pooling_that_is_bound_to_no_size(name: str) -> None:
    layer, axes = POOLINGS[name]
    network, values, _ = layer_network(layer)
    module = tn.compile(network, inputs={"X": (2, 3, *NOMINAL[:axes])}, values=values)
    for batch, positions in OTHERS:
        x = random(batch, 4, *positions[:axes])
        torch.testing.assert_close(module(x), layer(x), rtol=0, atol=1e-13)
