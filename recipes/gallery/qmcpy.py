"""Kernel matrices of well-chosen points are circulant or diagonal in a fast basis.

The library of the paper makes low-discrepancy points, and kernels that suit them. For a shift-invariant kernel on the
points of a lattice, the Gram matrix depends on i - j modulo n: products and solutions take n log n steps by Fourier
transforms. For digital nets the Gram matrix depends on the exclusive or of i and j, and the Walsh-Hadamard transform
takes the place of Fourier's.

A circulant matrix is a vector under a circular window. The Walsh-Hadamard transform is a tied 2x2 matrix on each binary
digit of a position, which `Fuse` splits off; all of it is the basis "hadamard" by its name.
"""

from __future__ import annotations

import torch
from scipy.linalg import hadamard
from torch import Tensor

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, times_faster, value

GRAM = "c[k:{n}] Conv[x:{n} y:{n} k | padding=0:{last} mode=circular] f[y] -> [x]"
DIGITS = "Fuse[i a:2 b:2 c:2] H[a p:2] H[b q:2] H[c r:2] Fuse[o p q r]"
NET = "X[i:{n}] P[o:{n} i] s[o] P[o j:{n}] -> [j]"

CORES: Cores = {
    "Gram matrix of a lattice": tn.parse(GRAM.format(n=8, last=7)),
    "Walsh-Hadamard transform": tn.parse(f"X[i:8] {DIGITS} -> [o]"),
    "Gram matrix of a digital net": tn.parse(NET.format(n=8)),
}


def kernel(distance: Tensor) -> Tensor:
    """The product over dimensions of 1 + the periodic kernel of smoothness 1, of differences modulo 1."""
    x = distance % 1
    return (1 + 2 * torch.pi**2 * (x * x - x + 1 / 6) / torch.arange(1, x.shape[-1] + 1) ** 2).prod(-1)


def lattice(n: int) -> Tensor:
    """A lattice of rank 1 in three dimensions: shape (n, 3)."""
    return torch.arange(n, dtype=torch.float64)[:, None] * torch.tensor([1.0, 3.0, 5.0]) / n % 1


def check(cores: Cores) -> dict[str, float]:
    """The Gram matrix from all pairs of points, its solutions by elimination, and scipy's Hadamard matrix."""
    gram, walsh, net = cores.values()
    points, generator = lattice(8), torch.Generator().manual_seed(0)
    dense = kernel(points[:, None] - points)
    f, s = torch.randn(2, 8, dtype=torch.float64, generator=generator)
    matrix = torch.from_numpy(hadamard(8)).double() / 8**0.5
    butterfly = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    places = torch.arange(8)
    column = matrix @ s / 8**0.5  # the Gram matrix of the net has these elements at i xor j
    return {
        "product": difference(value(gram, {"c": dense[0], "f": f}), dense @ f),
        "solution": difference(tn.solve(gram, f, values={"c": dense[0]}), torch.linalg.solve(dense, f)),
        "Walsh-Hadamard transform": difference(value(walsh, {"X": f, "H": butterfly}), matrix @ f),
        "digital net": difference(value(net, {"X": f, "P": "hadamard", "s": s}), column[places[:, None] ^ places] @ f),
    }


def gain() -> dict[str, float]:
    """Interpolation at 1024 points of a lattice, and of a digital net, from the first column of the Gram matrix."""
    n = 1024
    dense = kernel(lattice(n)[:, None] - lattice(n))
    f = torch.randn(n, dtype=torch.float64)
    network = tn.parse(GRAM.format(n=n, last=n - 1))
    on_lattice = times_faster(
        lambda: tn.solve(network, f, values={"c": dense[0]}), lambda: torch.linalg.solve(dense, f), rounds=5
    )
    places = torch.arange(n)
    column = torch.exp(-places.double()) + (places == 0)
    gram = column[places[:, None] ^ places]
    transform = tn.compile("c[i] P[o i] -> [o]", inputs={"c": (n,)}, values={"P": "hadamard"})
    product = tn.compile(NET.format(n=n), inputs={"X": (n,), "s": (n,)}, values={"P": "hadamard"})
    on_net = times_faster(
        lambda: product(X=f, s=1 / (n**0.5 * transform(column))), lambda: torch.linalg.solve(gram, f), rounds=5
    )
    return {
        "dense solution in torch : by frequency": on_lattice,
        "dense solution in torch : by Walsh functions": on_net,
    }


PAPER = Paper(
    title="QMCPy: A Python Software for Randomized Low-Discrepancy Sequences, Quasi-Monte Carlo, and Fast "
    "Kernel Methods",
    arxiv="2502.14256",
    source="`KernelShiftInvar` in `qmcpy/kernel/si_dsi_kernels.py` and `fast_transform/ft_pytorch.py` of "
    "github.com/QMCSoftware/QMCSoftware",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The points and their randomisations, the kernels' Bernoulli polynomials and Walsh functions, and the "
    "tuning of their parameters.",
)
