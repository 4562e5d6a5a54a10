"""Large kernels from a slow network are multiplied with the activations that they then act on.

The paper replaces attention by kernels as large as the image. A slow network of coordinates makes a hyper-kernel W. Its
elementwise product with the activations Z depends on the context, and the fast network applies this product to Z again:
globally as a matrix product of each channel, locally as a depthwise convolution with a kernel for each example.

Z occurs twice, so it is a tied tensor. The product of W and the context is not a step of its own: it is one contraction
with the rest.
"""

from __future__ import annotations

import torch
from torch.nn.functional import conv2d

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, times_faster, value

LOCAL = "Z[n c x y] Conv[x u a | padding={p}] Conv[y v b | padding={p}] W[c a b] S[n c a b] -> [n c u v]"

CORES: Cores = {
    "global": tn.parse("Z[n:2 c:3 x:5 y:5] W[c x y] Z[n c y z:5] -> [n c x z]"),
    "local": tn.parse(
        "Z[n:2 c:3 x:7 y:6] Conv[x u a:3 | padding=1] Conv[y v b:3 | padding=1] W[c a b] S[n c a b] -> [n c u v]"
    ),
}


def grouped(z: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """A depthwise convolution with kernels of shape (n, c, a, b), each for one example, in one grouped call."""
    n, c, x, y = z.shape
    window = kernels.shape[2:]
    out = conv2d(z.reshape(1, n * c, x, y), kernels.reshape(n * c, 1, *window), padding=window[0] // 2, groups=n * c)
    return out.reshape(n, c, x, y)


def check(cores: Cores) -> dict[str, float]:
    """A product and a matrix product, as in the public code, and one grouped convolution over all examples."""
    whole, local = cores.values()
    one, two = random_values(whole), random_values(local)
    return {
        "global": difference(value(whole, one), torch.matmul(one["Z"] * one["W"], one["Z"])),
        "local": difference(value(local, two), grouped(two["Z"], two["W"] * two["S"])),
    }


def gain() -> dict[str, float]:
    """8 examples, 32 channels, 56x56, windows of 31x31."""
    z, w, s = torch.randn(8, 32, 56, 56), torch.randn(32, 31, 31), torch.randn(8, 32, 31, 31)
    program = tn.compile(LOCAL.format(p=15), inputs={"Z": tuple(z.shape), "W": tuple(w.shape), "S": tuple(s.shape)})
    ratio = times_faster(lambda: program(Z=z, W=w, S=s), lambda: grouped(z, w * s), rounds=5)
    return {"grouped convolution in torch : compiled": ratio}


PAPER = Paper(
    title="HyperZ.Z.W Operator Connects Slow-Fast Networks for Full Context Interaction",
    arxiv="2401.17948",
    source="`models/modules/hyperzzw.py` and `local_conv.py` of the author's code, in the copy "
    "github.com/lalalune/Terminator",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The slow network (sines of coordinates), gates, standardisation and the local loss are functions. Kernels "
    "enter as tensors.",
)
