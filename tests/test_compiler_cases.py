"""The compiler against torch's own layers, and every case that is hard for a plan, by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from compiler_cases import assert_same, check, check_at, compiled
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_values
from torch import Tensor, nn

import tnalgebra as tn
from tnalgebra.errors import CompileError, NotationError, SizeError, ValuesError
from tnalgebra.evaluation import evaluate, magnitude
from tnalgebra.layers import layer_network
from tnalgebra.network import Network
from tnalgebra.notation import parse

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

NOMINAL = (9, 8, 10)
OTHERS = ((1, (9, 8, 10)), (3, (11, 13, 7)), (2, (8, 10, 9)))
"""Batches and positions of later calls: odd, even, smaller, larger."""

HALF = settings(max_examples=settings().max_examples // 2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# torch's layers ----------------------------------------------------------------------------------------------


@st.composite
def layers(draw: st.DrawFn) -> nn.Module:
    """A convolution, transposed or not, with any of torch's arguments; no two sizes equal where it can be."""
    axes = draw(st.sampled_from((1, 2, 2, 3)))
    groups, inside, outside = draw(st.sampled_from(((1, 3, 5), (1, 5, 2), (2, 3, 1), (3, 1, 1), (2, 2, 5), (4, 1, 3))))

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(axes))

    kernel, dilation = each(1, 4), each(1, 2)
    stride = (1,) * axes if draw(st.booleans()) else each(1, 3)
    arguments: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": groups, "bias": False}
    channels = (groups * inside, groups * outside)
    torch.manual_seed(draw(st.integers(0, 2**16)))
    if draw(st.integers(0, 2)) == 2:
        padding = tuple(min(p, d * (k - 1)) for p, k, d in zip(each(0, 2), kernel, dilation, strict=True))
        added = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        return TRANSPOSED[axes](*channels, kernel, padding=padding, output_padding=added, **arguments).double()
    padding = "same" if set(stride) == {1} and draw(st.booleans()) else each(0, 2)
    mode = draw(st.sampled_from(("zeros", "reflect", "replicate", "circular")))
    return CONV[axes](*channels, kernel, padding=padding, padding_mode=mode, **arguments).double()


def call_at_other_sizes(module: nn.Module, layer: nn.Module, channels: int, axes: int) -> None:
    """The module computes what the layer computes, at sizes that it was not planned for."""
    for batch, positions in ((2, NOMINAL), *OTHERS):
        x = random(batch, channels, *positions[:axes], seed=batch)
        if axes > 1 and module.plan.request.channels_last:
            x = x.contiguous(memory_format=torch.channels_last if axes == 2 else torch.channels_last_3d)
        # a window has at most 5 * 64 weights of size 1, and x elements of size up to 4
        torch.testing.assert_close(module(x), layer(x), rtol=0, atol=1e-11)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own layer
@HALF
@given(layers(), st.sampled_from(("all", "factored")), st.booleans())
def test_convolutions_are_torchs(layer: nn.Module, candidates: str, channels_last: bool) -> None:
    network, values, _ = layer_network(layer)
    axes, channels = layer.weight.ndim - 2, layer.in_channels
    shape = (2, channels, *NOMINAL[:axes])
    memory = torch.channels_last if channels_last else torch.contiguous_format
    module = tn.compile(network, inputs={"X": shape}, values=values, candidates=candidates, memory_format=memory)
    x = {"X": random(*shape)}
    assert_same(module(**x).detach(), evaluate(network, {**values, **x}), magnitude(network, {**values, **x}))
    call_at_other_sizes(module, layer, channels, axes)
    call_at_other_sizes(module.freeze(), layer, channels, axes)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@HALF
@given(layers(), st.integers(0, 2**16))
def test_gradients_of_convolutions_are_torchs(layer: nn.Module, seed: int) -> None:
    network, values, _ = layer_network(layer)
    shape = (2, layer.in_channels, *NOMINAL[: layer.weight.ndim - 2])
    module = tn.compile(network, inputs={"X": shape}, values=values, backward=True)
    x = random(*shape, seed=seed).requires_grad_()
    expected = layer(x)
    direction = torch.randn_like(expected)
    found = torch.autograd.grad(module(x), [x, module.K], direction)
    for own, theirs in zip(found, torch.autograd.grad(expected, [x, layer.weight], direction), strict=True):
        # sums of up to 2*13*12*14 products of normal numbers
        torch.testing.assert_close(own, theirs, rtol=0, atol=1e-10)


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


def decomposed(text: str, layer: Network, channels: tuple[int, int], **sizes: int) -> Network:
    """The layer with its kernel in the form of a decomposition."""
    known = {**RANKS, "out": channels[0], "in": channels[1], **sizes}
    kernel = parse(text)
    labels = {label for node in kernel.nodes for label in node.labels}
    kernel = Network(kernel.nodes, kernel.output, {label: size for label, size in known.items() if label in labels})
    return tn.compose(kernel, layer, into="K")


def dense_kernel(text: str, values: dict[str, Tensor], channels: tuple[int, int], **sizes: int) -> Tensor:
    known = {**RANKS, "out": channels[0], "in": channels[1], **sizes}
    kernel = parse(text)
    labels = {label for node in kernel.nodes for label in node.labels}
    network = Network(kernel.nodes, kernel.output, {label: size for label, size in known.items() if label in labels})
    names = {node.name for node in network.nodes}
    return evaluate(network, {name: value for name, value in values.items() if name in names})


def convolved(x: Tensor, kernel: Tensor, arguments: dict[str, Any]) -> Tensor:
    """torch's convolution; pairs of padding by torch's pad."""
    choices = dict(arguments)
    ends = choices.pop("padding", 0)
    mode = choices.pop("padding_mode", "zeros")
    dilation = torch.broadcast_to(torch.tensor(choices.get("dilation", 1)), (2,)).tolist()
    if ends == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True)]
        ends = tuple((total // 2, total - total // 2) for total in totals)
    pairs = [(end, end) if isinstance(end, int) else end for end in ((ends, ends) if isinstance(ends, int) else ends)]
    grow = [max(end, 0) for pair in reversed(pairs) for end in pair]
    crop = [min(end, 0) for pair in reversed(pairs) for end in pair]
    padded = F.pad(F.pad(x, grow, mode="constant" if mode == "zeros" else mode), crop)
    return F.conv2d(padded, kernel, **choices)


@pytest.mark.parametrize("name", DECOMPOSITIONS)
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_decomposed_convolutions_are_torchs(name: str, arguments: str) -> None:
    text, choices = DECOMPOSITIONS[name], ARGUMENTS[arguments]
    layer = tn.convolution((3, 2), **choices)
    network = decomposed(text, layer, (4, 6), kh=3, kw=2)
    network = Network(network.nodes, network.output, {**network.sizes, "n": 2, "x": 9, "y": 8})
    module = check(network, "X")
    values = {key: tensor.detach() for key, tensor in module.named_parameters()}
    kernel = dense_kernel(text, values, (4, 6), kh=3, kw=2)
    for batch, positions in ((2, NOMINAL), *OTHERS):
        x = random(batch, 6, *positions[:2], seed=batch)
        # a thousand products of kernel elements, themselves sums of products of normal numbers
        torch.testing.assert_close(module(x), convolved(x, kernel, choices), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in DECOMPOSITIONS if name != "spatially separable"])
def test_decomposed_transposed_convolutions_are_torchs(name: str) -> None:
    text = DECOMPOSITIONS[name]
    kernel = parse(text)
    kernel = Network(
        kernel.nodes, [{"out": "in", "in": "out"}.get(label, label) for label in ("in", "out", "kh", "kw")]
    )
    layer = tn.transposed_convolution((3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2))
    network = decomposed(str(kernel), layer, (4, 6), kh=3, kw=2)
    network = Network(network.nodes, network.output, {**network.sizes, "n": 2, "u": 5, "v": 4})
    module = check(network, "X")
    values = {key: tensor.detach() for key, tensor in module.named_parameters()}
    weight = dense_kernel(str(kernel), values, (4, 6), kh=3, kw=2)
    for shape in ((2, 4, 5, 4), (3, 4, 1, 7), (1, 4, 6, 5)):
        x = random(*shape)
        expected = F.conv_transpose2d(x, weight, stride=(2, 3), padding=(1, 0), output_padding=(1, 2))
        torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("text", ["A[out r] B[in r] C[kh r] D[kw r] -> [out in kh kw]", "L[out r] R[r in kh kw]"])
def test_decomposed_grouped_convolutions_are_torchs(text: str) -> None:
    network = decomposed(text, tn.convolution((3, 2), groups=2, padding=1), (4, 3), kh=3, kw=2)
    network = Network(network.nodes, network.output, {**network.sizes, "n": 2, "x": 7, "y": 8, "g": 2})
    module = check(network, "X")
    values = {key: tensor.detach() for key, tensor in module.named_parameters()}
    kernel = dense_kernel(text, values, (4, 3), kh=3, kw=2)
    for batch, positions in OTHERS:
        x = random(batch, 6, *positions[:2])
        torch.testing.assert_close(module(x), F.conv2d(x, kernel, padding=1, groups=2), rtol=1e-10, atol=1e-10)


# The hard cases -----------------------------------------------------------------------------------------------


HARD: dict[str, tuple[str, str, dict[str, int] | None]] = {
    "k still live after the join": (
        "X[n:2 i:3 x:9] Conv[x y k|padding=1] A[o:4 i k:3] B[o k] M[k m:2] -> [n o m y]",
        "X",
        {"n": 3, "x": 12},
    ),
    "k in the output": ("X[n:2 i:3 x:9] Conv[x y k|stride=2] K[o:4 i k:3] -> [n o y k]", "X", {"n": 1, "x": 8}),
    "a mask on x": ("X[n:2 i:3 x:9] M[x] Conv[x y k|padding=1] K[o:4 i k:3] -> [n o y]", "X", {"n": 5}),
    "a mask on x that comes with the input": (
        "X[n:2 i:3 x:9] M[x] Conv[x y k|padding=1] K[o:4 i k:3] -> [n o y]",
        "X M",
        {"n": 5, "x": 11},
    ),
    "y on the kernel": ("X[n:2 i:3 x:9] Conv[x y:7 k] K[o:4 i k:3 y] -> [n o y]", "X", {"n": 5}),
    "y on the kernel, two axes": (
        "X[n:2 i:3 x:5 z:6] Conv[x y:4 k] Conv[z w:4 l|stride=1] K[o:4 i k:2 l:3 y w] -> [n o y w]",
        "X",
        {"n": 1},
    ),
    "x on two windows": (
        "X[n:2 i:3 x:9] Conv[x y k] Conv[x z l] K[o:4 i k:3] L[o l:2] -> [n o y z]",
        "X",
        {"n": 3},
    ),
    "patch covariance": (
        "X[n:2 i:3 x:7 z:6] Conv[x u k:3|padding=1] Conv[z v l:2] X[n j x2 z2] Conv[x2 u k2|padding=1] Conv[z2 v l2]"
        " -> [i k l j k2 l2]",
        "X",
        {"n": 3, "x": 6, "z": 7},
    ),
    "weight gradient": (
        "X[n:2 i:3 x:9 z:8] Conv[x u k:3|stride=2 padding=1] Conv[z v l:2] G[n o:4 u v] -> [o i k l]",
        "X G",
        {"n": 3, "x": 11, "z": 7},
    ),
    "input gradient": (
        "G[n:2 o:4 u:5] Conv[x u k|stride=2 padding=1] K[o i:3 k:3] X[n i x] -> [n]",
        "G X",
        {"n": 3, "u": 6, "x": 12},
    ),
    "padding at one end": ("X[n:2 i:3 x:9] Conv[x y k|padding=0:2] K[o:4 i k:3] -> [n o y]", "X", {"x": 10}),
    "padding that crops": ("X[n:2 i:3 x:9] Conv[x y k|padding=-2:-1 stride=2] K[o:4 i k:3] -> [n o y]", "X", {"x": 10}),
    "Fuse 2x3 against 3x2": ("X[n:4 a:2 b:3] Fuse[i a b] Fuse[i c:3 d:2] K[c d o:5] -> [n o]", "X", {"n": 1}),
    "Fuse 2x3 against 3x2, one part live": (
        "X[n:4 a:2 b:3] Fuse[i a b] Fuse[i c:3 d:2] K[d o:5] -> [n c o]",
        "X",
        None,
    ),
    "a label on both sides, live": ("X[n:2 g:4 x:9] Conv[x y k] K[g k:3] -> [n g y]", "X", {"n": 3, "x": 8}),
    "a label on both sides, dead": ("X[n:2 i:4 x:9] Conv[x y k] K[i k:3] -> [n y]", "X", {"n": 3, "x": 8}),
    "labels on both sides, live and dead": (
        "X[n:2 g:4 i:3 x:9] Conv[x y k] K[i g o:5 k:2] -> [n g o y]",
        "X",
        {"n": 3, "x": 8},
    ),
    "a label on the left only, beside the window": (
        "X[n:2 i:4 x:9 z:5] Conv[x y k] K[o:6 i k:3] -> [n o y z]",
        "X",
        {"n": 3, "x": 8, "z": 7},
    ),
    "labels on the left only, on either side of the channels": (
        "X[n:2 m:3 i:4 x:9 z:5] Conv[x y k] K[o:6 i k:3] -> [z o y m n]",
        "X",
        {"n": 3, "m": 1, "x": 8, "z": 7},
    ),
    "a label on the right only, summed after": ("X[n:2 i:4 x:9] Conv[x y k] K[o:6 i k:3] V[o] -> [n y]", "X", None),
    "transposed": ("X[n:2 i:4 y:5] Conv[x y k|stride=3] K[o:6 i k:2] -> [n o x]", "X", {"n": 1, "y": 6}),
    "transposed, y summed too": ("X[n:2 i:4 y:5] Conv[x y k|stride=2] K[i k:3] M[x r:2] -> [n r]", "X", {"n": 1}),
    "transposed, more positions than windows reach": (
        "X[n:2 i:4 y:3] Conv[x:8 y k|stride=3 padding=1:1] K[o:5 i k:2] -> [n o x]",
        "X",
        {"n": 5},
    ),
    "two windows of one step": (
        "X[n:2 i:3 x:9 z:8] Conv[x y k] Conv[z w l] K[o:4 i k:3 l:2] -> [n o y w]",
        "X",
        {"x": 5},
    ),
    "three windows of one step": (
        "X[n:2 i:3 x:5 z:6 s:7] Conv[x y k] Conv[z w l|stride=2] Conv[s t m|padding=1] K[o:2 i k:3 l:2 m:3]"
        " -> [n o y w t]",
        "X",
        {"x": 6, "z": 5, "s": 9, "n": 1},
    ),
    "four windows": (
        "X[n:2 x:5 z:4 s:3 r:3] Conv[x y k] Conv[z w l] Conv[s t m] Conv[r q p] K[o:2 k:2 l:2 m:2 p:2]"
        " -> [n o y w t q]",
        "X",
        {"n": 1, "x": 6},
    ),
    "a box sum": ("X[n:2 c:3 x:9] Conv[x y k:3|stride=2] -> [n c y]", "X", {"n": 5, "x": 8}),
    "a box sum, dilated": ("X[n:2 c:3 x:9] Conv[x y k:3|dilation=2 padding=1] -> [n c y]", "X", {"n": 5, "x": 8}),
    "a box sum of which y is summed": ("X[n:2 c:3 x:9] Conv[x y k:3] -> [n c]", "X", {"n": 5, "x": 8}),
    "a box sum in a padding mode": ("X[n:2 c:3 x:9] Conv[x y k:3|padding=2:1 mode=reflect] -> [n c y]", "X", {"x": 8}),
    "box sums before channels": (
        "X[n:2 c:3 x:9 z:8] Conv[x u k|stride=2] Conv[z v l|stride=2] Fill[k:2 l:2|value=1/4] W[o:5 c] -> [n o u v]",
        "X",
        {"n": 5, "x": 8, "z": 9},
    ),
    "all positions summed": ("X[n:2 c:3 x:9] Conv[x y k] K[o:4 c k:3] -> [n o]", "X", {"n": 5, "x": 8}),
    "a chain of linear layers": ("X[n:7 i:3] A[j:5 i] B[k:4 j] C[l:6 k] -> [n l]", "X", {"n": 1}),
    "tied tensors": ("X[n:3 i:4] W[j:4 i] W[k:4 j] -> [n k]", "X", {"n": 2}),
    "tied tensors, turned": ("X[n:3 i:4] W[j:5 i] W[j k] -> [n k]", "X", {"n": 2}),
    "a hyperedge": ("X[n:3 i:4] A[r:5 i] B[r] C[r o:2] -> [n o]", "X", {"n": 2}),
    "an open hyperedge": ("X[n:3 i:4] A[r:5 i] B[r] C[r o:2] -> [n r o]", "X", {"n": 2}),
    "a copy with two open labels": ("X[n:3 a:4] Copy[a b c] W[b o:2] -> [n a c o]", "X", {"n": 2}),
    "the output on a copy's labels": ("X[n:3 a:4] Copy[a b] -> [n a b]", "X", {"n": 2}),
    "a diagonal": ("X[n:3 a:4 a] W[a o:2] -> [n o]", "X", {"n": 2}),
    "a trace": ("X[n:3 a:4 a] -> [n]", "X", {"n": 2, "a": 5}),
    "a scalar input": ("x[] K[a:3 b:2] -> [b]", "x", None),
    "a scalar weight": ("X[n:3 a:2] s[] -> [a n]", "X", {"n": 2, "a": 5}),
    "a scalar result": ("X[n:3 a:2] W[a n] -> []", "X", None),
    "no weight": ("X[n:3 a:2] -> [a n]", "X", {"n": 1, "a": 4}),
    "an input without a label in the output": ("X[n:3] W[a:2 b:4] -> [b a]", "X", {"n": 5}),
    "disconnected parts": ("X[n:3 a:2] W[b:4] V[a] U[c:5 b] -> [c n]", "X", {"n": 1}),
    "an outer product": ("X[n:3] W[b:4] -> [n b]", "X", {"n": 1}),
    "labels of size 1": ("X[n:1 i:1 x:5 z:1] Conv[x y k] K[o:1 i k:3] V[z] -> [n o y z]", "X", {"n": 2, "x": 7}),
    "a label of size 1 that grows": ("X[n:1 i:3] Y[n j:2] W[i j o:4] -> [n o]", "X Y", {"n": 3}),
    "a batch of 1": ("X[n:1 i:3 x:6 z:7] Conv[x y k] Conv[z w l] K[o:4 i k:2 l:3] -> [n o y w]", "X", {"n": 4}),
    "covariance": ("X[n:5 i:3] X[n j] -> [i j]", "X", {"n": 2, "i": 4, "j": 4}),
    "covariance with weights between": ("X[n:5 i:3] W[i j:4] W[k j] X[n k] -> [n]", "X", {"n": 2}),
    "two inputs": ("X[n:5 i:3] Y[n j:4] W[o:2 i j] -> [n o]", "X Y", {"n": 2}),
    "two inputs, one with positions": ("X[n:2 i:3 x:9] Conv[x y k] Y[n o:4 i k:3] -> [n o y]", "X Y", {"n": 3, "x": 8}),
    "inputs that meet no weight": ("X[n:5 i:3] Y[n i] W[o:2] -> [n o]", "X Y", {"n": 2, "i": 4}),
    "a weight that meets no input": ("X[n:5] W[a:2 b:3] V[b] -> [n a]", "X", {"n": 2}),
    "attention": ("Q[n:2 h:3 s:4 d:5] K[n h t:6 d] V[n h t e:2] -> [n h s e]", "Q K V", {"n": 1, "s": 7, "t": 3}),
    "a reshape between two layers": (
        "X[n:2 i:3 x:4] Conv[x y k] K[o:4 i k:2] Fuse[f o y:3] W[p:5 f] -> [n p]",
        "X",
        {"n": 1},
    ),
    "two reshapes of a label in the output": (
        "X[n:3 f:6] Fuse[f a:2 b:3] Fuse[f c:3 d:2] K[a p:4] L[d] -> [n f p]",
        "X",
        {"n": 1},
    ),
    "space to depth": (
        "X[n:2 c:3 x:6 y:4] Fuse[x u:3 a:2] Fuse[y v:2 b:2] Fuse[f c a b] W[o:5 f] -> [n o u v]",
        "X",
        {"n": 1},
    ),
    "Monarch": (
        "X[n:3 in:6] Fuse[in a:2 i:3] R[a j:4 i] L[j b:5 a] Fuse[out b j] -> [n out]",
        "X",
        {"n": 1},
    ),
    "a shuffle of channels": (
        "X[n:2 c:6 x:5] Fuse[c a:2 b:3] Fuse[d b a] Conv[x y k] K[o:4 d k:3] -> [n o y]",
        "X",
        {"n": 1, "x": 6},
    ),
    "a repeated label on a window": ("X[n:2 x:3] Conv[x x k:2|padding=1:0] K[k] -> [n x]", "X", {"n": 1}),
    "a repeated label on a reshape": ("X[n:2 f:9] Fuse[f a:3 a] -> [n a]", "X", {"n": 1}),
    "a factor": ("X[n:2 a:3] Fill[a|value=2/3] W[o:4 a] -> [n o]", "X", {"n": 1}),
    "a mean over a label whose size moves": ("X[n:2 c:3 x:9] Fill[x|value=mean] W[o:4 c] -> [n o]", "X", {"x": 4}),
    "a label of a fill alone": ("X[n:2 a:3] Fill[b:4|value=1/2] -> [n b]", "X", {"n": 1}),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_case(name: str) -> None:
    text, inputs, sizes = HARD[name]
    module = check(text, inputs)
    if sizes is not None:
        check_at(module, sizes)


@pytest.mark.parametrize("flatten", [False, True])
def test_patch_tensor(flatten: bool) -> None:
    network = tn.patch_tensor((3, 2), stride=(2, 1), padding=1, flatten=flatten)
    module = check(Network(network.nodes, network.output, {**network.sizes, "n": 2, "in": 3, "x": 9, "y": 8}), "X")
    for shape in ((2, 3, 9, 8), (1, 4, 6, 7)):
        x = random(*shape)
        expected = F.unfold(x, (3, 2), stride=(2, 1), padding=1)
        torch.testing.assert_close(
            module(x).reshape(expected.shape) if flatten else module(x).flatten(4).flatten(1, 3), expected
        )


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


@pytest.mark.parametrize("name", ["1-d", "2-d", "3-d", "divisor_override", "global", "global, 3-d"])
def test_pooling_that_is_bound_to_no_size(name: str) -> None:
    layer, axes = POOLINGS[name]
    network, values, _ = layer_network(layer)
    module = tn.compile(network, inputs={"X": (2, 3, *NOMINAL[:axes])}, values=values)
    for batch, positions in OTHERS:
        x = random(batch, 4, *positions[:axes])
        torch.testing.assert_close(module(x), layer(x), rtol=0, atol=1e-13)


def test_two_linear_layers() -> None:
    network = tn.linear(in_features=5, out_features=3) >> tn.linear(out_features=4)
    module = check(Network(network.nodes, network.output, {**network.sizes, "n": 6}), "X")
    x = random(2, 5)
    expected = x @ module.W.T @ module.W_2.T
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"padding": 1}, {}),
        ({"stride": 2}, {"dilation": 3}),
        ({"dilation": 2, "padding": 1}, {"stride": 2}),
        ({"padding": 1}, {"padding": 1}),
        ({"stride": 2, "padding": 1}, {"stride": 2, "padding": 1}),
        ({"padding": 1, "padding_mode": "circular"}, {"padding": 1, "padding_mode": "reflect"}),
    ],
)
def test_two_convolutions(first: dict[str, Any], second: dict[str, Any]) -> None:
    network = tn.convolution((3,), in_channels=3, out_channels=4, **first) >> tn.convolution(
        (2,), in_channels=4, out_channels=5, **second
    )
    module = check(Network(network.nodes, network.output, {**network.sizes, "n": 2, "x": 15}), "X")
    for batch, width in ((1, 15), (3, 18), (2, 17), (2, 16)):
        check_at(module, {"n": batch, "x": width})


def test_a_module_of_a_composed_network_has_the_parameters_of_both() -> None:
    network = tn.convolution((3,), in_channels=3, out_channels=4) >> tn.convolution((2,), out_channels=5)
    module = check(Network(network.nodes, network.output, {**network.sizes, "n": 2, "x": 9}), "X")
    assert {name: tuple(value.shape) for name, value in module.named_parameters()} == {"K": (4, 3, 3), "K_2": (5, 4, 2)}


def test_more_than_52_labels_in_one_pair() -> None:
    shared = " ".join(f"s{i}" for i in range(30))
    sizes = {f"s{i}": 2 if i % 6 == 0 else 1 for i in range(30)}
    left, right = " ".join(f"a{i}" for i in range(30)), " ".join(f"b{i}" for i in range(30))
    sizes |= {f"a{i}": 1 + (i == 7) for i in range(30)} | {f"b{i}": 1 + 2 * (i == 4) for i in range(30)}
    network = parse(f"X[n {shared} {left}] W[{right} {shared}] -> [n {left} {right}]")
    check(Network(network.nodes, network.output, {**sizes, "n": 3}), "X")


def test_more_than_52_labels_in_a_network() -> None:
    cores = " ".join(f"A{i}[b{i} x{i} b{i + 1}]" for i in range(30))
    network = parse(
        f"X[n {' '.join(f'x{i}' for i in range(10))}] {cores} -> [n {' '.join(f'x{i}' for i in range(10, 30))} b0 b30]"
    )
    sizes = {f"b{i}": 2 for i in range(31)} | {f"x{i}": 1 + (i % 5 == 0) for i in range(30)}
    check(Network(network.nodes, network.output, {**sizes, "n": 3}), "X")


# Bad input ----------------------------------------------------------------------------------------------------


CONVOLUTION = "X[n in:3 x] Conv[x u k] K[out:4 in k:2] -> [n out u]"


def convolution(**choices: Any) -> tn.Compiled:
    return compiled(*_valued(CONVOLUTION, n=2, x=7), ["X"], **choices)


def _valued(text: str, **sizes: int) -> tuple[Network, dict[str, Tensor]]:
    network = parse(text)
    network = Network(network.nodes, network.output, {**network.sizes, **sizes})
    return network, random_values(network, 0)


KERNEL = random(4, 3, 2)


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"inputs": {}}, CompileError, "there is no input\n  tensors: X K\n  fix:     inputs={'X': shape}"),
        ({"inputs": {"Y": (2, 3)}}, CompileError, "there is no tensor 'Y' to be the input\n  tensors: X K\n"),
        ({"inputs": {"Conv": (7, 6, 2)}}, CompileError, "there is no tensor 'Conv' to be the input"),
        (
            {"inputs": {"X": (2, 3)}},
            CompileError,
            "the input 'X' has 2 axes, its node has 3\n  shape: (2, 3)\n  node:  X[n in x]",
        ),
        ({"inputs": {"X": (2, 5, 7)}}, SizeError, "label 'in' has two sizes\n  first:  3, in X["),
        ({"inputs": {"X": (0, 3, 7)}}, SizeError, "label 'n' would have size 0"),
        ({"inputs": {"X": (2, 3, 1)}}, SizeError, "the window over 'k' reaches 2 elements"),
        ({"values": {}}, CompileError, "no value for 'K'\n  network: X["),
        ({"values": {"K": KERNEL, "X": random(2, 3, 7)}}, CompileError, "'X' is an input and has a value"),
        ({"values": {"K": KERNEL, "Q": KERNEL}}, ValuesError, "a value is given for 'Q', no tensor of the network"),
        ({"values": {"K": KERNEL[:, :2]}}, ValuesError, "the axis 'in' of 'K' has 2 elements, the label has size 3"),
        ({"values": {"K": KERNEL / 0}}, ValuesError, "the value of 'K' holds NaN or infinity"),
        ({"constants": ["Q"]}, CompileError, "the constant 'Q' has no value\n  values: K"),
        ({"candidates": "fast"}, CompileError, "candidates is 'fast'\n  fix: 'all' or 'factored'"),
        ({"memory_format": "nhwc"}, CompileError, "memory_format is 'nhwc'\n  fix: one of torch.contiguous_format, "),
        ({"dynamic": {"x": (4, 9)}}, CompileError, "the size of 'x' decides other sizes, or a weight has it"),
        ({"dynamic": {"in": (1, 9)}}, CompileError, "fix:     a label that stands on inputs only, such as the batch"),
        ({"dynamic": {"b": (1, 9)}}, CompileError, "a range is given for 'b', no label of the network\n  labels: "),
        ({"dynamic": {"n": (5, 4)}}, CompileError, "the range of 'n' is (5, 4)\n  fix: (least, most), at least 1"),
        ({"dynamic": {"n": (0, 4)}}, CompileError, "the range of 'n' is (0, 4)"),
        ({"dynamic": {"n": (1, 2, 3)}}, CompileError, "the range of 'n' is (1, 2, 3)"),
        (
            {"max_elements": 10},
            CompileError,
            "no way to compute the network keeps every tensor within 10 elements\n  network: X[n:2 in:3 x:7] ",
        ),
    ],
)
def test_what_cannot_be_compiled(choices: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"inputs": {"X": (2, 3, 7)}, "values": {"K": KERNEL}, **choices}
    with pytest.raises(error, match=re.escape(message)):
        tn.compile(CONVOLUTION, **arguments)


def test_a_batch_in_a_range_is_computed_for_every_size() -> None:
    module = check(
        Network(parse(CONVOLUTION).nodes, ["n", "out", "u"], {"n": 2, "x": 7, "in": 3, "out": 4, "k": 2}),
        "X",
        dynamic={"n": (1, 64)},
    )
    for batch in (1, 7, 65):
        check_at(module, {"n": batch})


@pytest.mark.parametrize(
    "name", ["training", "forward", "T_destination", "code", "plan", "freeze", "_parameters", "self"]
)
def test_names_that_a_module_has_itself(name: str) -> None:
    message = f"a tensor is called {name!r}, which a module has for itself\n  fix: another name in the network"
    with pytest.raises(CompileError, match=re.escape(message)):
        tn.compile(CONVOLUTION.replace("K[", f"{name}["), inputs={"X": (2, 3, 7)}, values={name: KERNEL})
    with pytest.raises(CompileError, match=re.escape(message)):
        tn.compile(CONVOLUTION.replace("X[", f"{name}["), inputs={name: (2, 3, 7)}, values={"K": KERNEL})


@pytest.mark.parametrize(
    "name", ["T", "torch", "input", "size", "pattern_0", "frozen_0", "lambda", "class", "None", "x", "X_1"]
)
def test_names_that_only_look_taken(name: str) -> None:
    check(*_named(CONVOLUTION.replace("K[", f"{name}[")), "X")
    check(*_named(CONVOLUTION.replace("X[", f"{name}[")), name)
    check(f"X[n:2 i:3] {name}[o:4 i] Copy[o p q] -> [n p q]", "X")
    check(f"{name}[n:2 i:3] W[o:4 i] Copy[o p q] -> [n p q]", name)


def _named(text: str) -> tuple[Network]:
    return (_valued(text, n=2, x=7)[0],)


def test_a_name_with_a_dot_is_not_in_the_notation() -> None:
    with pytest.raises(NotationError, match=r"character '\.' has no meaning here"):
        tn.compile("X[n i] weight.x[o i]", inputs={"X": (2, 3)})


def test_sizes_that_contradict() -> None:
    with pytest.raises(SizeError, match=r"label 'n' has sizes 2 and 4\n  where: Y\[n b\]"):
        tn.compile("X[n a] Y[n b]", inputs={"X": (2, 3), "Y": (4, 5)})
    with pytest.raises(SizeError, match="label 'n' has sizes 2 and 3"):
        tn.compile("X[n n]", inputs={"X": (2, 3)})
    with pytest.raises(SizeError, match="label 'u' has two sizes"):
        tn.compile("X[x] Conv[x u k] K[k:2] Y[u]", inputs={"X": (5,), "Y": (3,)}, values={"K": [1.0, 2.0]})


def test_a_size_that_is_not_known() -> None:
    with pytest.raises(SizeError, match=r"the size of label 'a' is unknown\n  where: Copy\[a b\]\n  known: n=2"):
        tn.compile("X[n] Copy[a b] -> [n a]", inputs={"X": (2,)})


def test_values_of_two_types() -> None:
    message = "the values differ in dtype or device\n  values: V torch.float32 on cpu, W torch.float64 on cpu"
    with pytest.raises(CompileError, match=re.escape(message)):
        tn.compile("X[n a] V[a] W[a]", inputs={"X": (2, 3)}, values={"V": torch.ones(3), "W": torch.ones(3).double()})


def test_integers_become_the_floating_type_of_the_others() -> None:
    module = tn.compile("X[n a] V[a] W[a]", inputs={"X": (2, 3)}, values={"V": [1, 2, 3], "W": random(3)})
    assert module.V.dtype == torch.float64


X: Tensor = random(2, 3, 7)


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ((), {}, "the input 'X' is missing\n  inputs: X"),
        ((X, X), {}, "2 inputs are given\n  inputs: X"),
        ((), {"Y": X}, "'Y' is no input\n  inputs: X"),
        ((X,), {"X": X}, "'X' is given twice\n  inputs: X"),
        ((X[0],), {}, "the input 'X' has 2 axes, its node has 3\n  shape: (3, 7)\n  node:  X[n:2 in:3 x:7]"),
        ((X[:, :2],), {}, "the axis 'in' of the input 'X' has 2 elements, needed are 3\n  shape: (2, 2, 7)\n  node:"),
        ((X.float(),), {}, "the input 'X' is torch.float32, the weights are torch.float64\n  fix: X.to(torch.float64)"),
        ((X.long(),), {}, "the input 'X' is torch.int64\n  fix: floating point numbers"),
        (
            (X[:, :, :1],),
            {},
            "the sizes of the inputs do not fit\n  shapes:  X (2, 3, 1)\n  because: the window over 'k'",
        ),
    ],
)
def test_calls_that_cannot_be_computed(arguments: Sequence[Tensor], named: dict[str, Tensor], message: str) -> None:
    module = convolution()
    with pytest.raises(CompileError, match=re.escape(message)):
        module(*arguments, **named)
    with pytest.raises(CompileError, match=re.escape(message)):
        module.freeze()(*arguments, **named)


def test_autocast_lets_another_type_pass() -> None:
    network, values = _valued(CONVOLUTION, n=2, x=7)
    module = compiled(network, {name: value.float() for name, value in values.items()}, ["X"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = module(values["X"].bfloat16())
    assert value.dtype == torch.bfloat16
    # bfloat16 has 8 bits; sums of six products
    torch.testing.assert_close(value.double(), evaluate(network, values), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("shape", [(3, 2), (1, 2)])
@pytest.mark.parametrize("text", ["X[n:4 i:3] Y[n j:2] -> [n i j]", "X[n:4 i:3] Y[n j:2] -> [i j]"])
def test_inputs_that_disagree(text: str, shape: tuple[int, int]) -> None:
    module = tn.compile(text, inputs={"X": (4, 3), "Y": (4, 2)})
    message = (
        f"the sizes of the inputs do not fit\n  shapes:  X (4, 3), Y {shape}\n  because: label 'n' has sizes 4 and"
    )
    with pytest.raises(CompileError, match=re.escape(message)):
        module(torch.ones(4, 3), torch.ones(shape))
    assert module(torch.ones(3, 3), torch.ones(3, 2)).shape[-1] == 2


def test_an_input_that_a_window_gives_another_size() -> None:
    module = tn.compile(
        "X[x:9] Conv[x u k] K[k:3] Y[u] -> []", inputs={"X": (9,), "Y": (7,)}, values={"K": torch.ones(3)}
    )
    assert module(torch.ones(5), torch.ones(3)) == 9
    for size in (1, 4):
        with pytest.raises(CompileError, match="the sizes of the inputs do not fit"):
            module(torch.ones(5), torch.ones(size))


def test_two_inputs_without_weights_are_of_one_type() -> None:
    module = tn.compile("X[n i] Y[n j] -> [n i j]", inputs={"X": (4, 3), "Y": (4, 2)})
    assert module(torch.ones(4, 3).double(), torch.ones(4, 2).double()).dtype == torch.float64
    with pytest.raises(CompileError, match=r"the input 'Y' is torch\.float64, 'X' is torch\.float32"):
        module(torch.ones(4, 3), torch.ones(4, 2).double())
