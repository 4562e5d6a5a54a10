"""Convolutions that keep the norm of whole images, by a penalty on the kernel.

The paper says for which channels, strides and paddings an orthogonal convolution exists, and that a penalty from
earlier work is enough to learn one: the kernel moved over itself has to be a unit at the centre and zero elsewhere. A
small penalty bounds how far the layer is from an isometry, for images of any size.

The kernel moved over itself is a tied tensor under two windows, and the unit kernel is the second term of a sum. The
singular values of the layer as a map of images show what the penalty achieves.
"""

from __future__ import annotations

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, times_faster, value

OVERLAP = "K[o:4 i:5 a:3 b:3] Conv[a u h | padding=2] Conv[b v w | padding=2] K[m:4 i h:3 w:3]"
UNIT = "Copy[o m] Conv[u p:1 q:1 | padding=-2] Conv[v r:1 s:1 | padding=-2] Fill[ | value=-1]"

CORES: Cores = {
    "kernel over itself, less the unit kernel": tn.parse(f"{OVERLAP} + {UNIT} -> [o m u v]"),
    "circular layer": tn.parse(
        "X[n:1 i:5 x:6 y:7] Conv[x u h:3 | padding=1 mode=circular] Conv[y v w:3 | padding=1 mode=circular] "
        "K[o:4 i h w] -> [n o u v]"
    ),
}


def penalty(kernel: Tensor) -> Tensor:
    """The kernel moved over itself by torch, less a unit at the centre."""
    result = torch.conv2d(kernel, kernel, padding=2)
    result[:, :, 2, 2] -= torch.eye(len(kernel), dtype=kernel.dtype)
    return result


def matrix(kernel: Tensor, height: int, width: int) -> Tensor:
    """The matrix of the circular layer, from the images that it makes of all unit images."""
    units = torch.eye(kernel.shape[1] * height * width, dtype=kernel.dtype).reshape(-1, kernel.shape[1], height, width)
    padded = torch.nn.functional.pad(units, (1, 1, 1, 1), mode="circular")
    return torch.conv2d(padded, kernel).flatten(1)


def check(cores: Cores) -> dict[str, float]:
    """torch's `conv2d` of the kernel with itself; all singular values of the dense matrix of the layer."""
    overlap, layer = cores.values()
    values = random_values(layer)
    kernel, expected = values["K"], penalty(values["K"])
    spectra = tn.operator_spectra(layer, values={"K": kernel})
    dense = torch.linalg.svdvals(matrix(kernel, 6, 7))
    scalar = tn.orthogonality(layer, values={"K": kernel})
    return {
        "penalty": difference(value(overlap, {"K": kernel}), expected),
        "its square norm": difference(scalar, expected.square().sum()),
        "layer": difference(value(layer, values).flatten(1), values["X"].flatten(1) @ matrix(kernel, 6, 7)),
        "singular values": difference(spectra.singular_values, dense),
    }


def gain() -> dict[str, float]:
    """All singular values of 8 to 4 channels on 16x16 positions, before and after 200 steps on the penalty."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular").double()
    dense = matrix(conv.weight.detach(), 16, 16)
    ratio = times_faster(lambda: tn.operator_spectra(conv, 16), lambda: torch.linalg.svdvals(dense), rounds=2)
    before = tn.operator_spectra(conv, 16).singular_values
    optimizer = torch.optim.Adam(conv.parameters(), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        tn.orthogonality(conv).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = tn.operator_spectra(conv, 16).singular_values
    return {
        "time, dense SVD : by frequency": ratio,
        "condition number before": float(before.max() / before.min()),
        "condition number after": float(after.max() / after.min()),
    }


PAPER = Paper(
    title="Existence, Stability and Scalability of Orthogonal Convolutional Neural Networks",
    arxiv="2108.05623",
    source="`deconv_orth_dist` in `imagenet/utils.py` of "
    "github.com/samaonline/Orthogonal-Convolutional-Neural-Networks, the code of the penalty",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The theorems on existence and on the distance from an isometry. The square of the penalty's norm is one "
    "more contraction; the training is torch's.",
)
