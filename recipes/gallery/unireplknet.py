"""A large window is trained beside small dilated ones, and all are merged into it afterwards.

The paper builds networks from few large depthwise windows. While they are trained, each has parallel branches of small
windows with several dilations, each with its batch norm. For use, every branch is placed in the large window and added.

A dilated window is placed by a window: `Conv[a:7 i:1 h | dilation=2 padding=-1:-1]` has the small kernel's places h at
the places a of the large one. The branches beside each other are a sum of layers, which is the layer of the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, value

BRANCHES = {7: ((5, 1), (3, 2), (3, 3)), 13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))}
"""The size of the large window -> the sizes and dilations of the small ones, as in the public code."""


def merged(size: int) -> str:
    """The kernel of all branches."""
    terms = [f"L[c a:{size} b:{size}]"]
    for number, (small, dilation) in enumerate(BRANCHES[size]):
        window = f"dilation={dilation} padding={(dilation * (small - 1) + 1 - size) // 2}"
        places = f"Conv[a:{size} i:1 h:{small} | {window}] Conv[b:{size} j:1 w:{small} | {window}]"
        terms.append(f"K{number}[c h:{small} w:{small}] {places}")
    return f"{' + '.join(terms)} -> [c a b]"


def beside(size: int) -> str:
    """The layer of all branches."""
    terms = [("L", size, 1), *((f"K{number}", *branch) for number, branch in enumerate(BRANCHES[size]))]
    texts = [
        f"X[n c x y] Conv[x u h:{k} | dilation={d} padding={d * (k // 2)}] "
        f"Conv[y v w:{k} | dilation={d} padding={d * (k // 2)}] {name}[c h w]"
        for name, k, d in terms
    ]
    return f"{' + '.join(texts)} -> [n c u v]"


CORES: Cores = {"merged kernel": sized(merged(7), c=4), "branches": sized(beside(7), n=2, c=4, x=9, y=8)}


class Block(nn.Module):
    """The block of the paper, with batch norms; its large window is `convolutions[0]`."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        windows = ((size, 1), *BRANCHES[size])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels, k, padding=d * (k // 2), dilation=d, groups=channels, bias=False)
            for k, d in windows
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in windows)

    def forward(self, x: Tensor) -> Tensor:
        branches = [norm(conv(x)) for conv, norm in zip(self.convolutions, self.norms, strict=True)]
        return torch.stack(branches).sum(0)


def place(kernels: list[Tensor], size: int) -> Tensor:
    """The public code's merge: zeros between the places of a small kernel, by a transposed convolution; padding."""
    total = kernels[0].clone()
    one = torch.ones(1, 1, 1, 1, dtype=total.dtype)
    for kernel, (_, dilation) in zip(kernels[1:], BRANCHES[size], strict=True):
        wide = torch.conv_transpose2d(kernel[:, None], one, stride=dilation)[:, 0]
        total += pad(wide, [(size - wide.shape[1]) // 2] * 4)
    return total


def check(cores: Cores) -> dict[str, float]:
    """Zeros between the places of each small kernel, padding and addition; and torch's convolutions side by side."""
    kernel, branches = cores.values()
    values = random_values(branches)
    x, *kernels = values.values()
    layers = [
        conv2d(x, k[:, None], padding=d * (len(k[0]) // 2), dilation=d, groups=4)
        for k, d in zip(kernels, (1, 1, 2, 3), strict=True)
    ]
    return {
        "merged kernel": difference(value(kernel, dict(list(values.items())[1:])), place(kernels, 7)),
        "branches": difference(value(branches, values), torch.stack(layers).sum(0)),
    }


PAPER = Paper(
    title="UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series and "
    "Image Recognition",
    arxiv="2311.15599",
    source="`DilatedReparamBlock` in `unireplknet.py` of github.com/AILab-CVC/UniRepLKNet",
    cores=CORES,
    check=check,
    outside="Batch norms while they are trained: merging takes their statistics as they are in evaluation.",
)
