"""Weights that share one budget of Fourier coefficients, mixed for each example, then a convolution.

The paper stores one weight as its Fourier coefficients, splits these into groups of similar frequency, and makes of
each group a weight of its own by the inverse transform. An attention mixes the groups for each example; further
attentions scale window positions, input channels and filters. The result is a convolution with a kernel for each
example.

The inverse transform is a product with two matrices, P along rows and Q along columns of the weight, arranged as a
matrix of (out kh) x (in kw). Real and imaginary part are a label of size 2, and J is the table of the real part of a
product of three complex numbers, so that the whole layer is one network of real tensors: coefficients, groups,
attentions and convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

WEIGHT = "A[n g] M[g a b] G[a b r] P[a row s] Q[b col t] J[r:2 s:2 t:2] Fuse[row out kh:3] Fuse[col in kw:3]"
LAYER = "X[n in x y] Conv[x u kh | padding=1] Conv[y v kw | padding=1] S[n kh kw] C[n in] F[n out]"


NETWORK = f"{WEIGHT} {LAYER} -> [n out u v]"
SIZES = {"n": 2, "g": 4, "a": 12, "b": 7, "out": 4, "in": 4, "x": 5, "y": 7}
CORES: Cores = {"layer": sized(NETWORK, **SIZES)}


def constants(rows: int, cols: int) -> dict[str, Tensor]:
    """P, Q and J of the inverse transform of `rfft2`, whose half plane has each column but the outer ones twice."""
    half = cols // 2 + 1
    twice = torch.full((half,), 2.0, dtype=torch.float64)
    twice[0] = 1
    twice[-1] = 1 + cols % 2
    turns = torch.exp(2j * torch.pi * torch.outer(torch.arange(rows), torch.arange(rows)).double() / rows)
    along = torch.exp(2j * torch.pi * torch.outer(torch.arange(half), torch.arange(cols)).double() / cols)
    units = torch.tensor([1, 1j], dtype=torch.complex128)
    return {
        "P": torch.view_as_real(turns) / rows,
        "Q": torch.view_as_real(twice[:, None] * along) / cols,
        "J": torch.einsum("r,s,t->rst", units, units, units).real,
    }


def masks(rows: int, cols: int, groups: int) -> Tensor:
    """The groups of similar frequency on the half plane of `rfft2`: shape (groups, rows, cols // 2 + 1), 0 or 1."""
    distance = torch.fft.fftfreq(rows)[:, None].square() + torch.fft.rfftfreq(cols).square()
    order = distance.flatten().argsort(stable=True)
    chosen = torch.zeros(groups, order.numel(), dtype=torch.float64)
    for group, places in enumerate(order.chunk(groups)):
        chosen[group, places] = 1
    return chosen.reshape(groups, *distance.shape)


def reference(x: Tensor, attentions: dict[str, Tensor]) -> Tensor:
    """As in the public code: attention on the groups, inverse transform, one grouped convolution."""
    n, channels, *size = x.shape
    mixed = torch.einsum("ng,gab->nab", attentions["A"], attentions["M"]) * torch.view_as_complex(attentions["G"])
    kernels = torch.fft.irfft2(mixed, s=(3 * channels, 3 * channels))
    kernels = kernels.reshape(n, channels, 3, channels, 3).transpose(2, 3)
    kernels = kernels * attentions["S"][:, None, None] * attentions["C"][:, None, :, None, None]
    kernels = kernels * attentions["F"][:, :, None, None, None]
    images = x.reshape(1, n * channels, *size)
    return conv2d(images, kernels.reshape(n * channels, channels, 3, 3), padding=1, groups=n).reshape(x.shape)


def check(cores: Cores) -> dict[str, float]:
    """Masks of groups of frequencies, `irfft2`, and a convolution with one group for each example."""
    values = random_values(cores["layer"]) | constants(12, 12) | {"M": masks(12, 12, 4)}
    return {"layer": difference(value(cores["layer"], values), reference(values["X"], values))}


def gain() -> dict[str, float]:
    """4 examples, 32 channels, 28x28: as it is in the public code, and compiled."""
    fixed = {name: tensor.float() for name, tensor in (constants(96, 96) | {"M": masks(96, 96, 4)}).items()}
    shapes = {"X": (4, 32, 28, 28), "G": (96, 49, 2), "A": (4, 4), "S": (4, 3, 3), "C": (4, 32), "F": (4, 32)}
    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    program = tn.compile(NETWORK, inputs=shapes, values=fixed, constants=[*fixed])
    everything = values | fixed
    ratio = times_faster(lambda: program(**values), lambda: reference(values["X"], everything))
    return {"transform and grouped convolution in torch : compiled": ratio}


PAPER = Paper(
    title="Frequency Dynamic Convolution for Dense Image Prediction",
    arxiv="2503.18783",
    source="`FDConv.forward` and `convert2dftweight` in `FDConv_detection/mmdet_custom/FDConv.py` of "
    "github.com/Linwei-Chen/FDConv",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The attentions are functions of the pooled input and enter as tensors A, S, C, F. The band modulation, "
    "which multiplies feature maps by masks of frequencies and by gates, is not part of this core.",
)
