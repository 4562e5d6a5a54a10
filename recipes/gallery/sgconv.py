"""A convolution as long as the sequence, made of few numbers: short pieces, stretched and damped.

The paper asks what makes state space models good at long sequences, and finds two properties of their kernels: few
parameters for their length, and decay. Its kernel is a row of pieces with equally many parameters each; every piece is
interpolated to twice the length of the one before and damped by a constant factor.

Interpolation is a fixed matrix, the place of a piece in the kernel is a padded window, and the row is a sum. Pieces,
kernel and convolution can be one network or two.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

CONVOLUTION = "U[b h x] Conv[y x s | padding=0:{last}] K[h s] -> [b h y]"


def kernel(pieces: int, size: int) -> str:
    """The sum of pieces W0, W1, ... of some size, stretched by B0, B1, ..., damped by d0, d1, ..."""
    length, first, terms = size * 2 ** (pieces - 1), 0, []
    for number in range(pieces):
        wide = size * 2 ** max(0, number - 1)
        window = f"Conv[t{number}:{wide} s p{number}:1 | padding={first}:{length - first - wide}]"
        terms.append(f"W{number}[h k{number}:{size}] B{number}[t{number} k{number}] d{number}[h] {window}")
        first += wide
    return f"{' + '.join(terms)} -> [h s]"


CORES: Cores = {
    "kernel": sized(kernel(3, 4), h=5),
    "causal convolution": sized(CONVOLUTION.format(last=15), b=2, h=5, x=16, s=16),
}


def stretching(size: int, factor: int) -> Tensor:
    """The matrix of torch's linear interpolation: shape (factor size, size)."""
    units = torch.eye(size, dtype=torch.float64)[None]
    return interpolate(units, scale_factor=factor, mode="linear")[0].T


def row(pieces: list[Tensor], damping: Tensor) -> Tensor:
    """As in the public code: each piece interpolated, times a power of the channel's damping, and `cat`."""
    last = len(pieces) - 1
    stretched = [
        interpolate(piece[None], scale_factor=2 ** max(0, n - 1), mode="linear")[0] for n, piece in enumerate(pieces)
    ]
    return torch.cat([one * damping[:, None] ** (last - n) for n, one in enumerate(stretched)], 1)


def by_fourier(u: Tensor, weights: Tensor) -> Tensor:
    """The causal convolution by transforms of twice the length."""
    length = u.shape[-1]
    product = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(weights, n=2 * length)
    result: Tensor = torch.fft.irfft(product, n=2 * length)[..., :length]
    return result


def check(cores: Cores) -> dict[str, float]:
    """torch's `interpolate` and `cat`; products of spectra of twice the length."""
    pieces, convolution = cores.values()
    values = random_values(pieces)
    damping = torch.linspace(1.5, 2.5, 5, dtype=torch.float64)
    for n in range(3):
        values |= {f"B{n}": stretching(4, 2 ** max(0, n - 1)), f"d{n}": damping ** (2 - n)}
    expected = row([values[f"W{n}"] for n in range(3)], damping)
    computed = value(pieces, values)
    u = random_values(convolution)["U"]
    return {
        "kernel": difference(computed, expected),
        "convolution": difference(value(convolution, {"U": u, "K": computed}), by_fourier(u, expected)),
    }


def gain() -> dict[str, float]:
    """16 channels and 4096 positions, a kernel of 7 pieces of 64 numbers: a window of 4096 in torch, and compiled."""
    u, weights = torch.randn(1, 16, 4096), torch.randn(16, 4096)
    program = tn.compile(CONVOLUTION.format(last=4095), inputs={"U": tuple(u.shape)}, values={"K": weights})
    flipped = weights.flip(1)[:, None]
    ratio = times_faster(lambda: program(U=u), lambda: torch.conv1d(pad(u, (4095, 0)), flipped, groups=16), rounds=3)
    return {"parameters kept": 7 * 64 / 4096, "conv1d in torch : compiled": ratio}


PAPER = Paper(
    title="What Makes Convolutional Models Great on Long Sequence Modeling?",
    arxiv="2210.09298",
    source="`GConv.forward` in `gconv_standalone.py` of github.com/ctlllll/SGConv",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The division by the kernel's first norm, and damping by learnt powers, which are functions.",
)
