"""Two reaches of depthwise windows on the same channels, and a gate made of waves.

The paper's spatial mixer halves the channels, adds a part of their difference from the mean, and takes two paths: a 3x3
window, and two dilated 3x3 windows in a row, which see 9x9 places. Both are put beside each other and mixed. Its
channel mixer multiplies features with complex weights, like waves with phases.

The path of two dilated windows is one network; the step before is a sum of three terms. A complex weight on pairs of
channels is the table of complex products with a label of size 2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

WINDOWS = (
    "X[n c x y] Conv[x r a:3 | dilation=2 padding=2] Conv[y s b:3 | dilation=2 padding=2] A[c a b] "
    "Conv[r u h:3 | dilation=2 padding=2] Conv[s v w:3 | dilation=2 padding=2] B[c h w] -> [n c u v]"
)
MEAN = "Fill[a | value=mean] Fill[b | value=mean] Fill[x | value=1] Fill[y | value=1] Fill[ | value=-1]"

CORES: Cores = {
    "difference from the mean": sized(
        f"X[n c x y] + g[c] X[n c x y] + g[c] X[n c a b] {MEAN} -> [n c x y]", n=2, c=4, x=6, y=7, a=6, b=7
    ),
    "two dilated windows": sized(WINDOWS, n=2, c=4, x=9, y=8),
    "waves": tn.parse("X[n:2 c:6 x:4 y:3] Fuse[c d:3 r:2] z[d s:2] J[r s t:2] Fuse[e d t] -> [n e x y]"),
}


def complex_products() -> Tensor:
    """J[r s t]: the part t of the product of the units r and s, where 0 is 1 and 1 is i."""
    units = torch.tensor([1, 1j], dtype=torch.complex128)
    return torch.view_as_real(torch.outer(units, units))


def chain(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """torch's dilated depthwise convolutions, one after the other."""
    for kernel in (first, second):
        x = conv2d(x, kernel[:, None], padding=2, dilation=2, groups=len(kernel))
    return x


def check(cores: Cores) -> dict[str, float]:
    """torch's mean, dilated depthwise convolutions, and complex numbers."""
    mean, windows, waves = cores.values()
    one, two, three = map(random_values, (mean, windows, waves))
    x, g = one["X"], one["g"].view(-1, 1, 1)
    pairs = three["X"].reshape(2, 3, 2, 4, 3).permute(0, 3, 4, 1, 2).contiguous()
    turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(three["z"]))
    return {
        "difference from the mean": difference(value(mean, one), x + g * (x - x.mean((2, 3), keepdim=True))),
        "two dilated windows": difference(value(windows, two), chain(two["X"], two["A"], two["B"])),
        "waves": difference(
            value(waves, three | {"J": complex_products()}), turned.permute(0, 3, 4, 1, 2).reshape(2, 6, 4, 3)
        ),
    }


def gain() -> dict[str, float]:
    """8 images of 64 channels, 28x28."""
    x, first, second = torch.randn(8, 64, 28, 28), torch.randn(64, 3, 3), torch.randn(64, 3, 3)
    program = tn.compile(WINDOWS, inputs={"X": tuple(x.shape)}, values={"A": first, "B": second})
    return {"in torch : compiled": times_faster(lambda: program(X=x), lambda: chain(x, first, second))}


PAPER = Paper(
    title="SpaRTAN: Spatial Reinforcement Token-based Aggregation Network for Visual Recognition",
    arxiv="2507.10999",
    source="`SMixer` and `CMixer` in `src/model/spartan.py` of github.com/henry-pay/SpaRTAN",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The gates: squeeze and excitation, activations, and the largest channel that the channel mixer looks up.",
)
