"""Singular values of layers as linear maps of whole inputs, against those of the map's dense matrix."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tnalgebra as tn
from tests.compiler_cases import CONV, TRANSPOSED, torch_convolutions
from tests.refusals import refused
from tests.strategies import random_values
from tnalgebra.errors import LayerError, NetworkError, SizeError, ValuesError
from tnalgebra.networks import parse, shape_of
from tnalgebra.operators import symbol
from tnalgebra.tensors import evaluate

EXACT = 1e-13
"""Relative to the largest value: sums of at most a few hundred products in float64, and the rounding of two SVDs."""


def dense_matrix(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The matrix of a layer without its bias, column by column."""
    unit = torch.eye(prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        columns = (layer(unit) - layer(torch.zeros_like(unit))).reshape(len(unit), -1)
    return columns.mT


def check(layer: nn.Module, shape: tuple[int, ...], **choices: Any) -> tn.operators.OperatorSpectra:
    """The values, or the largest of them with their bounds, are those of the dense matrix."""
    matrix = dense_matrix(layer, shape)
    expected = torch.linalg.svdvals(matrix)
    spectra = tn.operator_spectra(layer, shape[1:] or None, **choices)
    assert spectra.shape == tuple(matrix.shape)
    assert spectra.singular_values.dtype == torch.float64
    error = (spectra.singular_values - expected[: len(spectra.singular_values)]).abs()
    assert (error <= spectra.bounds + EXACT * expected[0]).all()
    return spectra


@st.composite
def circular_layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution that keeps the positions, or divides them by its stride, and the shape of one input."""
    axes = draw(st.sampled_from((1, 2, 2, 3)))
    stride, dilation, kernel = ([draw(st.integers(1, most)) for _ in range(axes)] for most in (3, 2, 3))
    groups = draw(st.sampled_from((1, 1, 2)))
    channels = [groups * draw(st.integers(1, 3)) for _ in range(2)]
    count = [draw(st.integers(2, 4)) for _ in range(axes)]
    size = [s * m for s, m in zip(stride, count, strict=True)]
    padding = []
    for s, d, k, n in zip(stride, dilation, kernel, size, strict=True):
        # the least symmetric padding with which the window has n / s positions
        padding.append(max(0, -(-(n - s + d * (k - 1) + 1 - n) // 2)))
    layer = CONV[axes](
        *channels, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode="circular"
    )
    return layer.double(), (channels[0], *size)


@settings(max_examples=100)
@given(circular_layers())
def test_circular_layers(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    layer, shape = case
    output = layer(torch.zeros(1, *shape, dtype=torch.float64)).shape[2:]
    stride: Any = layer.stride
    spectra = check(layer, shape)
    if all(s * m == n for s, m, n in zip(stride, output, shape[1:], strict=True)):
        assert spectra.is_complete
        assert spectra.by_frequency is not None
        assert spectra.by_frequency.shape[:-1] == output


SUMS = ["K[o i *k] => U[o a] V[a i *k] + D[o *k] Copy[o i]", "K[o i *k] => U[o a] V[a i] E[*k] + A[o b *k] B[b i]"]


@pytest.mark.parametrize("rewrite", SUMS)
@pytest.mark.parametrize("mode", ["circular", "zeros"])
def test_layers_whose_kernel_is_a_sum(rewrite: str, mode: Any) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 4, 3, stride=2, padding=1, padding_mode=mode).double()
    layer = tn.nn.decomposed(plain, rewrite.replace("*k", "h w"), 2)
    assert check(layer, (4, 6, 8)).is_complete == (mode == "circular")
    dense = layer.to_dense()
    torch.testing.assert_close(tn.orthogonality(layer), tn.orthogonality(dense))
    tn.lipschitz_bound(layer).backward()
    assert all(core.grad is not None and bool(core.grad.any()) for core in layer.cores().values())
    square = tn.nn.decomposed(nn.Conv1d(4, 4, 3, padding=1, padding_mode=mode).double(), rewrite.replace("*k", "h"), 2)
    y = torch.randn(1, 4, 9, dtype=torch.float64)
    torch.testing.assert_close(square(tn.solve(square, y)), y, rtol=1e-6, atol=1e-6)


def test_sums_of_windows() -> None:
    """Windows of two sizes become one; the input itself is a window of one position; others are refused."""
    K, L = (torch.randn(5, 5, size, dtype=torch.float64) for size in (3, 5))
    wide = nn.Conv1d(5, 5, 5, padding=2, bias=False).double()
    with torch.no_grad():
        wide.weight.copy_(L + nn.functional.pad(K, (1, 1)))
        wide.weight[..., 2] += torch.eye(5)
    window = "X[n i x] Conv[x u k:{} | padding={}] {}[o i k]"
    text = f"{window.format(3, 1, 'K')} + {window.format(5, 2, 'L')} + X[n o u] -> [n o u]"
    ours, expected = tn.operator_spectra(text, 9, values={"K": K, "L": L}), tn.operator_spectra(wide, 9)
    torch.testing.assert_close(ours.singular_values, expected.singular_values, rtol=1e-12, atol=1e-12)
    with refused(NetworkError, "differ in more than their kernels", "network.terms"):
        two = f"{window.format(3, 1, 'K')} + {window.format(3, 1, 'K').replace('padding=1', 'padding=1 mode=circular')}"
        tn.operator_spectra(f"{two} -> [n o u]", 9, values={"K": K})


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize(
    ("terms", "stride"),
    [
        (["X[n i x] Conv[x u k:3 | padding=1 mode=M] K[o i k]", "X[n i u] Copy[i o]"], 1),
        (["X[n i x] Conv[x u k:3 | padding=2 dilation=2 mode=M] K[o i k]", "X[n i u] P[o i]"], 1),
        (
            [
                "X[n i x] Conv[x u k:3 | padding=1:3 dilation=2 mode=M] K[o i k]",
                "X[n i x] Conv[x u l:4 | padding=2:1 mode=M] L[o i l]",
            ],
            1,
        ),
        (
            [
                "X[n i x] Conv[x u k:3 | stride=2 padding=1:0 mode=M] K[o i k]",
                "X[n i x] Conv[x u l:1 | stride=2 padding=0:-1] Q[o i l]",  # reaches outside nowhere
            ],
            2,
        ),
    ],
)
def test_sums_of_windows_of_every_mode(terms: list[str], stride: int, mode: str) -> None:
    text = " + ".join(terms).replace("mode=M", f"mode={mode}") + " -> [n o u]"
    shapes = {"K": (3, 3, 3), "L": (3, 3, 4), "P": (3, 3), "Q": (3, 3, 1)}
    generator = torch.Generator().manual_seed(0)
    values = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
        if f"{name}[" in text
    }
    every = torch.eye(3 * 8, dtype=torch.float64).reshape(-1, 3, 8)
    dense = tn.evaluate(text, {**values, "X": every}).flatten(1)
    ours = tn.operator_spectra(text, 8, values=values, count=5)
    assert ours.is_complete == (mode == "circular")
    expected = torch.linalg.svdvals(dense)[: len(ours.singular_values)]
    torch.testing.assert_close(ours.singular_values, expected, rtol=1e-8, atol=1e-8)
    assert dense.shape == (24, 24 // stride)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=60)
@given(torch_convolutions(), st.integers(1, 4))
def test_layers_of_any_kind(layer: nn.Module, count: int) -> None:
    kernel: Any = layer.weight
    channels = layer.in_channels
    shape = (channels, *(9, 8, 10)[: kernel.ndim - 2]) if kernel.ndim < 5 else (channels, 7, 8, 7)
    if prod(shape) <= 800:
        check(layer, shape, count=count)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_transposed_layers(axes: int) -> None:
    torch.manual_seed(axes)
    apart = TRANSPOSED[axes](4, 6, 2, stride=2, groups=2).double()
    assert check(apart, (4, 5, 4, 3)[: axes + 1]).is_complete
    overlapping = TRANSPOSED[axes](2, 3, 3, stride=2, padding=1, output_padding=1).double()
    assert not check(overlapping, (2, 5, 4, 3)[: axes + 1]).is_complete


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate"])
def test_the_largest_values_have_bounds(mode: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode).double()
    spectra = check(layer, (3, 9, 8), count=5)
    assert len(spectra.singular_values) == 5
    assert (spectra.bounds <= 1e-7 * spectra.norm).all()
    assert spectra.condition is None
    assert mode in str(spectra)


def test_equal_values_are_all_counted() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False).double()
    with torch.no_grad():
        layer.weight[:] = layer.weight[:1]
    values = check(layer, (4, 6, 6), count=6).singular_values
    assert values[0] - values[3] < 1e-12


@pytest.mark.parametrize("rewrite", ["tucker2", "cp", "tensor_train", "out kh | in kw"])
def test_decomposed_layers(rewrite: str) -> None:
    torch.manual_seed(0)
    for mode in ("circular", "zeros"):
        dense = nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode, dtype=torch.float64)
        layer = tn.nn.decomposed(dense, rewrite, 3)
        assert check(layer, (4, 5, 6)).is_complete == (mode == "circular")


def test_layers_without_windows() -> None:
    torch.manual_seed(0)
    assert check(nn.Linear(5, 3).double(), (5,)).is_complete
    assert check(nn.AvgPool2d(2).double(), (1, 4, 6)).is_complete
    assert check(nn.Conv2d(3, 5, 2, stride=2).double(), (3, 4, 6)).is_complete


NETWORKS = {
    "two windows": "X[x:6] Conv[x y k:3 | padding=1 mode=circular] Conv[y z h:2 | padding=0:1 mode=circular] a[k] b[h] "
    "-> [z]",
    "a window of another axis": "X[x:6 i:3] Conv[x y k:2 | padding=0:1 mode=circular] W[o:4 i k] -> [o y]",
    "a position without a window": "X[x:4 i:3 y:5] Conv[x u k:2 | padding=1:0 mode=circular] W[o:2 i k] -> [u o y]",
    "a transposed circular window": "X[i:2 y:3] Conv[x:6 y k:2 | stride=2 mode=circular] W[o:3 i k] -> [x o]",
    "a window longer than its axis": "X[x:4] Conv[x y k:6 | padding=3:2 mode=circular] a[k] -> [y]",
    "depthwise": "X[c:3 x:5] Conv[x y k:3 | padding=1 mode=circular] D[c k] -> [y c]",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    network = parse(NETWORKS[name])
    values = {key: value for key, value in random_values(network, 0).items() if key != "X"}
    spectra = tn.operator_spectra(network, values=values)
    labels = next(node.labels for node in network.nodes if node.name == "X")
    shape = shape_of(network, labels)
    columns = [
        evaluate(network, {"X": unit.reshape(shape), **values}).flatten()
        for unit in torch.eye(prod(shape), dtype=torch.float64)
    ]
    expected = torch.linalg.svdvals(torch.stack(columns))
    assert spectra.is_complete
    assert ((spectra.singular_values - expected).abs() <= EXACT * expected[0]).all()


def test_frequencies_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, stride=(2, 1), padding=1, padding_mode="circular").double()
    whole = tn.operator_spectra(layer, (8, 7))
    monkeypatch.setattr(symbol, "MOST_AT_ONCE", 500)
    assert (tn.operator_spectra(layer, (8, 7)).singular_values - whole.singular_values).abs().max() < 1e-14


def test_one_wrong_sign_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A symbol whose windows have other places is another map: the checks above see it."""
    original = symbol._axis

    def moved(*arguments: Any) -> Any:
        axis = original(*arguments)
        return replace(axis, places=tuple((2 * place) % axis.size for place in axis.places))

    monkeypatch.setattr(symbol, "_axis", moved)
    torch.manual_seed(0)
    with pytest.raises(AssertionError):
        check(nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular").double(), (2, 6))


def test_a_result_shows_itself() -> None:
    torch.manual_seed(0)
    spectra = tn.operator_spectra(nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular").double(), 7)
    assert repr(spectra).startswith("<OperatorSpectra of a map of 14 to 21 elements: 14 singular values, all of them")
    assert "by 7 frequencies" in str(spectra)
    assert len(spectra.to_pandas()) == 14
    assert spectra.condition == pytest.approx(float(spectra.singular_values[0] / spectra.singular_values[-1]))
    assert spectra.by_frequency is not None
    assert spectra.by_frequency.max() == spectra.norm


def test_refusals() -> None:
    layer = nn.Conv1d(2, 3, 3, padding=1)
    with refused(LayerError, "ReLU"):
        tn.operator_spectra(nn.ReLU(), 3)
    with refused(SizeError, "'x'", "size="):
        tn.operator_spectra(layer)
    with refused(SizeError, "positions"):
        tn.operator_spectra(nn.Linear(2, 3), 5)
    with refused(SizeError, "count is 0"):
        tn.operator_spectra(layer, 5, count=0)
    with refused(ValuesError, "beside a layer"):
        tn.operator_spectra(layer, 5, values={"K": torch.ones(1)})
    with refused(NetworkError, "2 tensors have no value"):
        tn.operator_spectra("X[i:2] W[o:3 i] -> [o]")
    with refused(NetworkError, "'X' occurs 2 times"):
        tn.operator_spectra("X[i:2] X[j] W[i j] -> [i]", values={"W": torch.ones(2, 2)})
    with refused(ValuesError, "NaN or infinity"):
        tn.operator_spectra("X[i:2] W[o i] -> [o]", values={"W": torch.full((3, 2), torch.nan)})
    with refused(SizeError, "size is 5.0"):
        tn.operator_spectra(layer, 5.0)


@pytest.mark.parametrize("mode", ["circular", "zeros"])
def test_complex_kernels_are_refused(mode: str) -> None:
    """The symbol of a real kernel is known from half of its frequencies, and that of a complex one is not."""
    network = f"X[i:2 x:6] Conv[x u k | padding=1 mode={mode}] K[o i k] -> [o u]"
    values = {"K": torch.ones(2, 2, 3, dtype=torch.complex64)}
    for function in (tn.operator_spectra, tn.inverse, tn.orthogonality, tn.lipschitz_bound):
        with refused(ValuesError, "'K' is complex"):
            function(network, values=values)
    with refused(ValuesError, "'K' is complex"):
        tn.solve(network, torch.ones(2, 6), values=values)
