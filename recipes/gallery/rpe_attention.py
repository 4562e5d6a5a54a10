"""Attention by features with relative positions: a product with a Toeplitz matrix in the middle.

The paper replaces the exponential of attention by an inner product of features, phi(q) . phi(k), and keeps relative
positional encoding: weights c that depend on i - j alone. The sum over j of c[i - j] phi(k_j) v_j is a product with a
Toeplitz matrix, so that it takes n log n steps by fast Fourier transforms. The sum without v normalises.

A Toeplitz matrix is a vector under one window: i = j + r - (n - 1). The compiler may make it dense, or take the window
with what it meets.
"""

from __future__ import annotations

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, times_faster, value

NUMERATOR = "Q[h i:{n} m] K[h j:{n} m] V[h j d] c[h r] Conv[i j r:{r} | padding={p}] -> [h i d]"

CORES: Cores = {
    "numerator": tn.parse("Q[h:2 i:6 m:4] K[h j:6 m] V[h j d:3] c[h r:11] Conv[i j r | padding=5] -> [h i d]"),
    "denominator": tn.parse("Q[h:2 i:6 m:4] K[h j:6 m] c[h r:11] Conv[i j r | padding=5] -> [h i]"),
}


def toeplitz(c: Tensor, n: int) -> Tensor:
    """The matrices T[h i j] = c[h, i - j + n - 1]."""
    places = torch.arange(n)
    return c[:, places[:, None] - places + n - 1]


def attention(q: Tensor, k: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """(Q K^T o T) V with dense matrices."""
    return (q @ k.transpose(1, 2) * toeplitz(c, q.shape[1])) @ v


def check(cores: Cores) -> dict[str, float]:
    """Dense matrices: Q K^T times the Toeplitz matrix, elementwise, then the values; positive features, normalised."""
    numerator, denominator = cores.values()
    values = random_values(numerator)
    for name in "QKc":
        values[name] = values[name].exp()
    q, k, v, c = (values[name] for name in "QKVc")
    weights = q @ k.transpose(1, 2) * toeplitz(c, 6)
    below = value(denominator, {name: values[name] for name in "QKc"})
    return {
        "numerator": difference(value(numerator, values), attention(q, k, v, c)),
        "attention": difference(
            value(numerator, values) / below[..., None], (weights / weights.sum(2, keepdim=True)) @ v
        ),
    }


def gain() -> dict[str, float]:
    """8 heads, 2048 positions, 16 features, values of 16 channels."""
    n = 2048
    shapes = {"Q": (8, n, 16), "K": (8, n, 16), "V": (8, n, 16), "c": (8, 2 * n - 1)}
    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    program = tn.compile(NUMERATOR.format(n=n, r=2 * n - 1, p=n - 1), inputs=shapes)
    ratio = times_faster(lambda: program(**values), lambda: attention(*(values[name] for name in "QKVc")), rounds=5)
    return {"dense matrices in torch : compiled": ratio}


PAPER = Paper(
    title="Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding",
    arxiv="2106.12566",
    source="the abstract and the statement of the Toeplitz form; public code could not be reached",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The features of queries and keys, the exponential of the position biases, and the "
    "division that normalises.",
)
