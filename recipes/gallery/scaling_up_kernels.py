"""Depthwise windows of 31x31 and more, with a small window beside them in training.

The paper collects rules for networks with very large depthwise windows: few of them rather than many small ones, each
with a parallel small window while it is trained, and fast implementations. It continues RepLKNet (31x31) and
UniRepLKNet.

A small window beside a large one is a sum of two layers, or one layer whose kernel is the sum. Cost is what large
windows are about: the compiler may compute them by Fourier transforms.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

LAYER = "X[n c x y] Conv[x u a:{k} | padding={p}] Conv[y v b:{k} | padding={p}] {kernel} -> [n c u v]"
SMALL = "K[c h w:5] Conv[a:9 i:1 h:5 | padding=-2] Conv[b:9 j:1 w:5 | padding=-2]"

CORES: Cores = {
    "kernel": sized(f"L[c a:9 b:9] + {SMALL} -> [c a b]", c=3),
    "layer": sized(LAYER.format(k=9, p=4, kernel="L[c a b]"), n=2, c=3, x=12, y=11),
}


def check(cores: Cores) -> dict[str, float]:
    """The small kernel padded and added, as RepLKNet merges it; and both branches by torch's `conv2d`."""
    kernel, layer = cores.values()
    values, x = random_values(kernel), random_values(layer)["X"]
    large, small = values["L"], values["K"]
    computed = value(kernel, values)
    branches = conv2d(x, large[:, None], padding=4, groups=3) + conv2d(x, small[:, None], padding=2, groups=3)
    return {
        "kernel": difference(computed, large + pad(small, (2, 2, 2, 2))),
        "layer": difference(value(layer, {"X": x, "L": computed}), branches),
    }


def gain() -> dict[str, float]:
    """4 images of 32 channels, 56x56: torch's depthwise convolution, and compiled."""
    x, ratios = torch.randn(4, 32, 56, 56), {}
    for k in (13, 31, 51):
        kernel = torch.randn(32, k, k)
        program = tn.compile(
            LAYER.format(k=k, p=k // 2, kernel="L[c a b]"), inputs={"X": tuple(x.shape)}, values={"L": kernel}
        )
        ratio = times_faster(partial(program, X=x), partial(direct, x, kernel), rounds=5)
        ratios[f"conv2d in torch : compiled, {k}x{k}"] = ratio
    return ratios


def direct(x: Tensor, kernel: Tensor) -> Tensor:
    """torch's depthwise convolution."""
    return conv2d(x, kernel[:, None], padding=len(kernel[0]) // 2, groups=len(kernel))


PAPER = Paper(
    title="Scaling Up Your Kernels: Large Kernel Design in ConvNets towards Universal Representations",
    arxiv="2410.08049",
    source="`fuse_bn` and `ReparamLargeKernelConv` in `replknet.py` of github.com/DingXiaoH/RepLKNet-pytorch, and the "
    "code of UniRepLKNet",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The architecture around the windows, and how it is trained.",
)
