"""A feedforward layer f(W x) becomes a product of two random features, one of the input and one of the weights.

The paper writes the layer as a kernel between the input x and a row w of the weights, and replaces it by an inner
product of features, phi(x) . psi(w), in which inputs and parameters meet only at the end. For f = exp the features
are exp(g . x - |x|^2 / 2) / sqrt(m) with m Gaussian vectors g; their inner product has the mean exp(x . w). A linear
layer behind it is contracted with the features of the weights, which the paper calls bundling: two layers become one
matrix with m columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, value

CORES: Cores = {
    "layer": tn.parse("P[n:5 m:32] Q[o:6 m] -> [n o]"),
    "bundled with a linear layer": tn.parse("P[n:5 m:32] Q[o:6 m] L[c:4 o] -> [n c]"),
}


def inputs(features: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """X, shape (n, d), W, shape (o, d), and the Gaussian vectors, shape (m, d)."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(rows, 3, dtype=torch.float64, generator=generator) for rows in (5, 6, features)]
    return 0.5 * draws[0], 0.5 * draws[1], draws[2]


def phi(rows: Tensor, gaussian: Tensor) -> Tensor:
    """Positive random features of exp: shape (rows, m). A function, which the algebra takes as a tensor."""
    exponents = rows @ gaussian.T - rows.square().sum(1, keepdim=True) / 2
    return torch.exp(exponents - math.log(len(gaussian)) / 2)


def check(cores: Cores) -> dict[str, float]:
    """The sum over the Gaussian vectors, of one exponential each: exp(g . (x + w) - (|x|^2 + |w|^2) / 2) / m."""
    x, w, g = inputs(32)
    linear = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sums = x[:, None] + w
    norms = (x.square().sum(1)[:, None] + w.square().sum(1)) / 2
    expected = torch.stack([torch.exp(sums @ vector - norms) for vector in g]).mean(0)
    values = {"P": phi(x, g), "Q": phi(w, g)}
    layer, bundled = cores.values()
    return {
        "layer": difference(value(layer, values), expected),
        "bundled": difference(value(bundled, {**values, "L": linear}), expected @ linear.T),
    }


def gain() -> dict[str, float]:
    """The relative error against exp(X W^T), as a root mean square over 20 draws, falls like m to the power -1/2."""
    errors = {}
    for features in (64, 1024):
        draws = [inputs(features, seed) for seed in range(20)]
        squares = [difference(phi(x, g) @ phi(w, g).T, torch.exp(x @ w.T)) ** 2 for x, w, g in draws]
        errors[features] = (sum(squares) / len(squares)) ** 0.5
    slope = torch.tensor(errors[1024] / errors[64]).log() / torch.tensor(16.0).log()
    return {f"relative error, m = {m}": error for m, error in errors.items()} | {"exponent of m": float(slope)}


PAPER = Paper(
    title="Scalable Neural Network Kernels",
    arxiv="2310.13225",
    source="`input_to_rfs_torch_vectorized` in `src/nnk/nnk.py` of github.com/arijitthegame/neural-network-kernels",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The features are exponentials, sines or other functions of a projection. They are computed before, and "
    "enter as the tensors P and Q.",
)
