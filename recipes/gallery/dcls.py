"""Kernels of a few weights at learnt, real-valued positions.

The paper makes large sparse kernels: each channel has a few weights, and each weight a position within the window that
is learnt too. Interpolation spreads a weight over the four pixels around its position, so that the positions have
gradients.

The interpolation factors over the axes, A along the height and B along the width, so that a kernel is a CP
decomposition for each channel whose bond counts the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, value

CORES: Cores = {
    "kernel": tn.parse("w[c:4 e:5] A[kh:9 e c] B[kw:9 e c] -> [c kh kw]"),
    "layer": tn.parse(
        "X[n:2 c:4 x:8 y:7] Conv[x u kh:9 | padding=4] Conv[y v kw:9 | padding=4] w[c e:5] A[kh e c] B[kw e c] "
        "-> [n c u v]"
    ),
}


def hats(positions: Tensor, size: int) -> Tensor:
    """The part of each weight at each pixel: shape (size, e, c), for positions of shape (c, e) around the middle."""
    pixels = torch.arange(size, dtype=positions.dtype)[:, None, None]
    return (1 - (pixels - positions.T - size // 2).abs()).clamp(min=0)


def scattered(weights: Tensor, down: Tensor, right: Tensor, size: int) -> Tensor:
    """The kernels by four additions for each weight, at the pixels around its position."""
    kernels = torch.zeros(len(weights), size, size, dtype=weights.dtype)
    for channel, element in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
        row, column = (float(axis[channel, element]) + size // 2 for axis in (down, right))
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            part = abs(1 - i - row % 1) * abs(1 - j - column % 1)
            kernels[channel, int(row) + i, int(column) + j] += part * weights[channel, element]
    return kernels


def check(cores: Cores) -> dict[str, float]:
    """Each weight is scattered bilinearly over the four pixels around its position, then `conv2d`."""
    kernel, layer = cores.values()
    values = random_values(layer)
    generator = torch.Generator().manual_seed(1)
    down, right = (7 * torch.rand(4, 5, dtype=torch.float64, generator=generator) - 3.5 for _ in range(2))
    values |= {"A": hats(down, 9), "B": hats(right, 9)}
    expected = scattered(values["w"], down, right, 9)
    images = torch.conv2d(values["X"], expected[:, None], padding=4, groups=4)
    return {
        "kernel": difference(value(kernel, {name: values[name] for name in "wAB"}), expected),
        "layer": difference(value(layer, values), images),
    }


def gain() -> dict[str, float]:
    """The numbers of 34 weights in a window of 17x17, each with two coordinates, against a dense window."""
    return {"parameters kept of a 17x17 window with 34 weights": 3 * 34 / 17**2}


PAPER = Paper(
    title="Dilated convolution with learnable spacings",
    arxiv="2112.03740",
    source="`ConstructKernel2d.forward_v0` in `DCLS/construct/modules.py` of "
    "github.com/K-H-Ismail/Dilated-Convolution-with-Learnable-Spacings-PyTorch",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The hat function of the positions, which makes A and B and has the gradients of the positions. The later "
    "versions of the public code divide by the sum over the window, another function.",
)
