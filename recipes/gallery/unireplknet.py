"""A large window is trained beside small dilated ones, and all are merged into it afterwards.

The paper builds networks from few large depthwise windows. While they are trained, each has parallel branches of small
windows with several dilations, each with its batch norm. For use, every branch is placed in the large window and added.

A dilated window is placed by a window: `Conv[a:7 i:1 h | dilation=2 padding=-1:-1]` has the small kernel's places h at
the places a of the large one. The branches beside each other are a sum of layers, which is the layer of the sum.
`tn.merge_branches` does this to models.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

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
    """The block of the paper, with batch norms of random statistics; its large window is `convolutions[0]`."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for k, d in ((size, 1), *BRANCHES[size]):
            window: dict[str, Any] = {"padding": d * (k // 2), "dilation": d, "groups": channels, "bias": False}
            self.convolutions.append(nn.Conv2d(channels, channels, k, **window))
            self.norms.append(nn.BatchNorm2d(channels))
        for name, numbers in self.norms.state_dict().items():
            if "tracked" not in name:
                nn.init.uniform_(numbers, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (norm(conv(x)) for conv, norm in zip(self.convolutions, self.norms, strict=True))
        result: Tensor = sum(others, first)
        return result


def place(kernels: list[Tensor], size: int) -> Tensor:
    """The public code's merge: zeros between the places of a small kernel, by a transposed convolution; padding."""
    total = kernels[0].clone()
    one = torch.ones(1, 1, 1, 1, dtype=total.dtype)
    for kernel, (_, dilation) in zip(kernels[1:], BRANCHES[size], strict=True):
        wide = torch.conv_transpose2d(kernel[:, None], one, stride=dilation)[:, 0]
        total += pad(wide, [(size - wide.shape[1]) // 2] * 4)
    return total


def check(cores: Cores) -> dict[str, float]:
    """A block in torch, and its kernels as the public code merges them, times the scales of the batch norms."""
    kernel, branches = cores.values()
    x = random_values(branches)["X"]
    module: Any = Block(4, 7).double().eval()
    scales = [norm.weight / (norm.running_var + norm.eps).sqrt() for norm in module.norms]
    kernels = [conv.weight[:, 0] * s.view(-1, 1, 1) for conv, s in zip(module.convolutions, scales, strict=True)]
    values = {name: tensor.detach() for name, tensor in zip(("L", "K0", "K1", "K2"), kernels, strict=True)}
    merged_model, _ = tn.merge_branches(module, x)
    convolution = next(one for one in merged_model.modules() if isinstance(one, nn.Conv2d))
    placed, output = place([*values.values()], 7), module(x).detach()
    return {
        "merged kernel": difference(value(kernel, values), placed),
        "branches": difference(value(branches, {"X": x, **values}), output - module(torch.zeros_like(x)).detach()),
        "kernel of the merged block": difference(convolution.weight[:, 0], placed),
        "output of the merged block": difference(merged_model(x), output),
    }


def gain() -> dict[str, float]:
    """4 images of 32 channels, 28x28, windows of 13 and 7: the block with its branches, and merged."""
    x, ratios = torch.randn(4, 32, 28, 28), {}
    for size in (13, 7):
        module = Block(32, size).eval()
        model, _ = tn.merge_branches(module, x)
        ratios[f"branches in torch : merged, {size}x{size}"] = times_faster(partial(model, x), partial(module, x))
    return ratios


PAPER = Paper(
    title="UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series and "
    "Image Recognition",
    arxiv="2311.15599",
    source="`DilatedReparamBlock` in `unireplknet.py` of github.com/AILab-CVC/UniRepLKNet",
    cores=CORES,
    check=check,
    gain=gain,
    outside="Batch norms while they are trained: merging takes their statistics as they are in evaluation.",
)
