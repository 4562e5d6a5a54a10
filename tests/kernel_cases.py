"""Tensors, unfoldings and claims that the tests of cuts and decompositions share."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from tests.strategies import random_values
from tnalgebra.fitting import Metric
from tnalgebra.networks import NamedTensor, all_nodes, parse
from tnalgebra.rewriting import Fit, Rule

SIZES = {"out": 7, "in": 5, "kh": 3, "kw": 2}
SEVEN = [
    "out | in kh kw",
    "in | out kh kw",
    "kh | out in kw",
    "kw | out in kh",
    "out in | kh kw",
    "out kh | in kw",
    "out kw | in kh",
]

Matrix: TypeAlias = NDArray[np.float64]
Case: TypeAlias = tuple[Rule, dict[str, Matrix], Tensor]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


KERNEL = gaussian(*SIZES.values())


@st.composite
def tensors(draw: st.DrawFn, axes: int) -> Tensor:
    """Axes of different sizes in any order; of any rank, or with a spectrum that falls fast, or of small integers."""
    shape = draw(st.permutations((2, 3, 4, 5, 6)))[:axes]
    tensor = gaussian(*shape, seed=draw(st.integers(0, 2**32 - 1)))
    match draw(st.integers(0, 3)):
        case 1:  # low rank
            vectors = [gaussian(size, 2, seed=draw(st.integers(0, 2**32 - 1))) for size in shape]
            tensor = torch.ones(2, dtype=torch.float64)
            for vector in vectors:
                tensor = tensor.unsqueeze(-2) * vector
            tensor = tensor.sum(-1)
        case 2:  # falling fast
            for axis, size in enumerate(shape):
                decay = 0.1 ** torch.arange(size, dtype=torch.float64)
                tensor = tensor * decay.reshape([-1 if other == axis else 1 for other in range(axes)])
        case 3:  # equal values
            tensor = tensor.round()
    return tensor * draw(st.sampled_from((1.0, 1.0, 1e-150, 1e150)))


def unfolding(tensor: Tensor, labels: str, rows: str) -> Matrix:
    """The matrix whose rows are numbered by the labels `rows`, with numpy alone."""
    order = labels.split()
    left = rows.split()
    numbers = (tensor if tensor.is_complex() else tensor.double()).numpy()
    array = np.transpose(numbers, [order.index(x) for x in (*left, *(y for y in order if y not in left))])
    return array.reshape(math.prod(array.shape[: len(left)]), -1)


def tail(matrix: Matrix, rank: int) -> float:
    """Relative error of the best matrix of a rank."""
    values = np.linalg.svd(matrix, compute_uv=False)
    values = values / (values[0] or 1)
    return float(np.linalg.norm(values[rank:]) / (np.linalg.norm(values) or 1))


def check_claim(fit: Fit) -> None:
    """The reported error is the measured one, and the sizes are those of the values."""
    *_, step = fit.trace.steps
    assert step.relative_error == pytest.approx(fit.relative_error, rel=1e-6, abs=1e-9)
    for node in all_nodes(fit.network):
        if isinstance(node, NamedTensor):
            assert tuple(fit.values[node.name].shape) == tuple(fit.network.sizes[label] for label in node.labels)
    assert fit.parameters == sum(value.numel() for name, value in fit.values.items() if name not in fit.constants)
    assert fit.network.output == fit.trace.start.output


def values_of(text: str, seed: int = 0) -> dict[str, Tensor]:
    return random_values(parse(text), seed)


def metric_of(seed: int, labels: str = "in kh kw", *, grouped: bool = False, crossed: bool = False) -> Metric:
    """Of 200 inputs of `KERNEL` that are strongly correlated; `crossed`: the outputs are near those of `KERNEL`."""
    words = tuple(labels.split())
    sizes = [SIZES[label] for label in words]
    rest = [label for label in SIZES if label not in ("out", *words)]
    d = math.prod(sizes)
    inputs = gaussian(7 if grouped else 1, 200, d, seed=seed) @ torch.diag(0.7 ** torch.arange(d, dtype=torch.float64))
    inputs = inputs @ torch.linalg.qr(gaussian(d, d, seed=seed + 1))[0] + 0.1 * gaussian(1, 200, d, seed=seed + 2)
    covariance = inputs.mT @ inputs / 200
    cross = power = None
    if crossed:
        rows = KERNEL.permute([list(SIZES).index(label) for label in ("out", *rest, *words)])
        wanted = rows.reshape(7, -1, d) + 0.1 * gaussian(7, rows.numel() // (7 * d), d, seed=seed + 3)
        cross = (wanted @ covariance).reshape(rows.shape)
        power = 1.1 * float((wanted @ covariance * wanted).sum())
    shape = (*([7] if grouped else []), *sizes, *sizes)
    outputs = ("out", *rest) if crossed else ("out",)
    return Metric(words, covariance.reshape(shape), ("out",) if grouped else (), cross, power, outputs)


def measured(dense: Tensor, metric: Metric, kernel: Tensor = KERNEL) -> float:
    """The error of the output, by the metric itself."""
    if metric.cross is not None:
        return metric.output_error(dense, tuple(SIZES))
    return metric.relative(kernel - dense, kernel, tuple(SIZES))


TREES: dict[str, tuple[str, dict[str, str]]] = {
    "two cores": ("K[o i] => L[o r] R[r i]", {"r": "o"}),
    "turned": ("K[o i] => L[r i] R[o r]", {"r": "o"}),
    "tucker2": ("K[o i h w] => U[o a] G[a b h w] V[b i]", {"a": "o", "b": "i"}),
    "tucker": (
        "K[o i h w] => G[a b c d] U[o a] V[i b] P[h c] Q[w d]",
        {"a": "o", "b": "i", "c": "h", "d": "w"},
    ),
    "train": ("K[o i h w] => A[o p] B[p i q] C[q h s] D[s w]", {"p": "o", "q": "o i", "s": "w"}),
    "train in another order": (
        "K[o i h w] => A[h p] B[q p o] C[s w q] D[i s]",
        {"p": "h", "q": "h o", "s": "i"},
    ),
    "hierarchical": (
        "K[o i h w] => U[o a] V[i b] P[h c] Q[w d] S[a b e] T[c d e]",
        {"a": "o", "b": "i", "c": "h", "d": "w", "e": "o i"},
    ),
    "star": ("K[o i h] => G[a b c] U[a o] V[b i] P[c h]", {"a": "o", "b": "i", "c": "h"}),
    "1-d": ("K[o i k] => A[o p] B[k q] C[p i q]", {"p": "o", "q": "k"}),
    "3-d": (
        "K[o i d h w] => U[o a] G[a b e] V[b i] P[e d f] Q[f h w]",
        {"a": "o", "b": "i", "e": "o i", "f": "h w"},
    ),
}
"""Rule, and for each bond the open labels on one side of it."""
