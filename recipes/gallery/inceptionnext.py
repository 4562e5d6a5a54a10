"""A depthwise convolution on parts of the channels: a square window, two bands, and the rest left as it is.

The paper finds that depthwise 7x7 convolutions are slow because of memory traffic, and splits the channels: an eighth
gets a 3x3 window, an eighth a band of 1x11, an eighth one of 11x1, and the others pass unchanged.

A part of the channels is a window of one place that is cropped: `Conv[c b one:1 | padding=-10:-4]` takes two channels
from the tenth on, and one that is padded, `Conv[b o one:1 | padding=10:4]`, puts them back. The layer is the sum of
four terms.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value


def layer(channels: int) -> str:
    """The sum for some channels, of which an eighth is in each branch."""
    part = channels // 8

    def branch(first: int, count: int, windows: str) -> str:
        rest = channels - first - count
        crop, place = f"Conv[c b p:1 | padding=-{first}:-{rest}]", f"Conv[b o q:1 | padding={first}:{rest}]"
        return f"X[n c:{channels} x y] {crop} {windows} {place}"

    rows, columns = "Conv[x u h:{} | padding={}]", "Conv[y v w:{} | padding={}]"
    terms = [
        branch(0, 5 * part, f"{rows.format(1, 0)} {columns.format(1, 0)} Fill[h | value=1] Fill[w | value=1]"),
        branch(5 * part, part, f"{rows.format(3, 1)} {columns.format(3, 1)} S[b h w]"),
        branch(6 * part, part, f"{rows.format(1, 0)} {columns.format(11, 5)} W[b h w]"),
        branch(7 * part, part, f"{rows.format(11, 5)} {columns.format(1, 0)} H[b h w]"),
    ]
    return f"{' + '.join(terms)} -> [n o u v]"


CORES: Cores = {"layer": sized(layer(16), n=2, x=7, y=9, u=7, v=9)}


def split(x: Tensor, square: Tensor, wide: Tensor, tall: Tensor) -> Tensor:
    """As in the public code: torch's `split`, three depthwise convolutions, and `cat`."""
    part = len(square)
    rest, *parts = torch.split(x, [x.shape[1] - 3 * part, part, part, part], 1)
    branches = [
        conv2d(channels, kernel[:, None], padding=(kernel.shape[1] // 2, kernel.shape[2] // 2), groups=part)
        for channels, kernel in zip(parts, (square, wide, tall), strict=True)
    ]
    return torch.cat([rest, *branches], 1)


def check(cores: Cores) -> dict[str, float]:
    """`split`, three depthwise convolutions and `cat`."""
    values = random_values(cores["layer"])
    return {"layer": difference(value(cores["layer"], values), split(*(values[name] for name in "XSWH")))}


def gain() -> dict[str, float]:
    """8 images of 96 channels, 56x56, the first stage of InceptionNeXt-T.

    Each term fills channels of its own, so the sum is compiled to one `cat` of the parts, as in the paper's code, and
    the parts of the input are read without a copy. The branches may also be compiled one by one.
    """
    values = {"S": torch.randn(12, 3, 3), "W": torch.randn(12, 1, 11), "H": torch.randn(12, 11, 1)}
    x = torch.randn(8, 96, 56, 56)
    program = tn.compile(layer(96), inputs={"X": tuple(x.shape)}, values=values)
    branches = []
    for kernel in values.values():
        height, width = kernel.shape[1:]
        windows = f"Conv[x u h | padding={height // 2}] Conv[y v w | padding={width // 2}]"
        network = f"X[n b x y] {windows} K[b h w] -> [n b u v]"
        branches.append(tn.compile(network, inputs={"X": (8, 12, 56, 56)}, values={"K": kernel}))

    def joined() -> Tensor:
        rest, *parts = torch.split(x, [60, 12, 12, 12], 1)
        return torch.cat([rest, *(branch(X=part) for branch, part in zip(branches, parts, strict=True))], 1)

    def theirs() -> Tensor:
        return split(x, *values.values())

    return {
        "split and cat in torch : the sum": times_faster(lambda: program(X=x), theirs),
        "split and cat in torch : compiled branches and cat": times_faster(joined, theirs),
    }


PAPER = Paper(
    title="InceptionNeXt: When Inception Meets ConvNeXt",
    arxiv="2303.16900",
    source="`InceptionDWConv2d` in `models/inceptionnext.py` of github.com/sail-sg/inceptionnext",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The biases are added per channel. Norms, activations and the rest of the block are torch's.",
)
