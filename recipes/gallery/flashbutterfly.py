"""Long convolutions by Fourier transforms that are products of small matrices.

The paper learns convolution kernels as long as the sequence, and computes them by Fourier transforms. A transform of
N = N1 N2 points is split into transforms of N1 and of N2 points with a twist between them, a butterfly, so that it
becomes products of matrices that a GPU likes. Butterflies whose matrices are learnt are more expressive for the same
cost.

A position is a pair (a, b) by `Fuse`, a frequency a pair (q, p), and the elements are complex. The learnt form is the
decomposition `monarch`. The convolution itself is a window as long as the sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

CONVOLUTION = "U[b h x] Conv[y x s | padding=0:{last}] K[h s] -> [b h y]"

CORES: Cores = {
    "butterfly": tn.parse("X[n:2 t:12] Fuse[t a:4 b:3] F[p:4 a] T[p b] G[q:3 b] Fuse[f q p] -> [n f]"),
    "learnt butterfly": tn.parse("X[n:2 t:12] Fuse[t a:4 i:3] R[a j:5 i] L[j b:2 a] Fuse[f b j] -> [n f]"),
    "causal convolution": sized(CONVOLUTION.format(last=11), b=2, h=3, x=12, s=12),
}


def roots(rows: int, columns: int, order: int) -> Tensor:
    """exp(-2 pi i row column / order), shape (rows, columns)."""
    return torch.exp(-2j * torch.pi * torch.outer(torch.arange(rows), torch.arange(columns)).double() / order)


def block_diagonal(blocks: Tensor) -> Tensor:
    """The transposes of matrices, shape (n, rows, columns), one after the other on a diagonal."""
    result: Tensor = torch.block_diag(*blocks.transpose(1, 2))  # type: ignore[no-untyped-call]
    return result


def by_fourier(u: Tensor, kernel: Tensor) -> Tensor:
    """As in the public code: transforms of twice the length, a product, and the first half."""
    length = u.shape[-1]
    spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    result: Tensor = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
    return result


def check(cores: Cores) -> dict[str, float]:
    """torch's `fft`; block-diagonal matrices and a transposition; products of spectra of twice the length."""
    butterfly, learnt, convolution = cores.values()
    constants = {"F": roots(4, 4, 4), "T": roots(4, 3, 12), "G": roots(3, 3, 3)}
    x = random_values(butterfly)["X"] + 0j
    two, three = random_values(learnt), random_values(convolution)
    middle = (two["X"] @ block_diagonal(two["R"])).reshape(2, 4, 5).transpose(1, 2).reshape(2, 20)
    out = (middle @ block_diagonal(two["L"])).reshape(2, 5, 2).transpose(1, 2).reshape(2, 10)
    return {
        "butterfly": difference(value(butterfly, {"X": x} | constants), torch.fft.fft(x)),
        "learnt butterfly": difference(value(learnt, two), out),
        "causal convolution": difference(value(convolution, three), by_fourier(three["U"], three["K"])),
    }


def gain() -> dict[str, float]:
    """32 channels and 4096 positions: a window of 4096 in torch, Fourier transforms in torch, and compiled."""
    u, kernel = torch.randn(1, 32, 4096), torch.randn(32, 4096)
    program = tn.compile(CONVOLUTION.format(last=4095), inputs={"U": tuple(u.shape)}, values={"K": kernel})

    def direct() -> Tensor:
        padded = torch.nn.functional.pad(u, (4095, 0))
        return torch.conv1d(padded, kernel.flip(1)[:, None], groups=32)

    return {
        "conv1d in torch : compiled": times_faster(lambda: program(U=u), direct, rounds=3),
        "Fourier transforms in torch : compiled": times_faster(lambda: program(U=u), lambda: by_fourier(u, kernel)),
    }


PAPER = Paper(
    title="Simple Hardware-Efficient Long Convolutions for Sequence Modeling",
    arxiv="2302.06646",
    source="`LongConv.forward` in `standalone_long_convs.py` of github.com/HazyResearch/safari; the butterfly in the "
    "paper's abstract and in that of its successor, arXiv 2311.05908",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The squash and smooth operators on the kernel, which are functions of its elements, and how a "
    "GPU's memory is used.",
)
