"""A convolution whose kernel differs from place to place.

The paper compares how many examples fully connected, locally connected and convolutional networks need on a task in
which a weak signal may appear in any patch of an image. Locality alone and weight sharing alone each save examples, by
factors that it proves.

A locally connected layer is a convolution whose kernel carries the positions u v of the output. Without the window
labels in common it would be fully connected; without u v it is a convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import unfold

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

LAYER = "X[n in x y] Conv[x u kh:3] Conv[y v kw:3] K[out in kh kw u v] -> [n out u v]"

CORES: Cores = {
    "locally connected": sized(LAYER, **{"in": 3}, n=2, x=6, y=7, out=4),
    "disjoint patches": tn.parse("X[n:2 d:12] Fuse[d p:3 k:4] W[p m:5 k] -> [n p m]"),
}


def unfolded(x: Tensor, kernel: Tensor) -> Tensor:
    """Columns of torch's `unfold`, times the kernel of each place."""
    _, channels, kh, kw, u, v = kernel.shape
    columns = unfold(x, (kh, kw)).reshape(len(x), channels, kh, kw, u, v)
    return torch.einsum("ncabuv,ocabuv->nouv", columns, kernel)


def check(cores: Cores) -> dict[str, float]:
    """Unfolded patches and one einsum; a loop over the disjoint patches of the paper's task."""
    layer, patches = cores.values()
    one, two = random_values(layer), random_values(patches)
    loop = [two["X"][:, 4 * place : 4 * place + 4] @ two["W"][place].T for place in range(3)]
    return {
        "locally connected": difference(value(layer, one), unfolded(one["X"], one["K"])),
        "disjoint patches": difference(value(patches, two), torch.stack(loop, 1)),
    }


def gain() -> dict[str, float]:
    """32 images of 16 channels, 16x16, to 16 channels."""
    x, kernel = torch.randn(32, 16, 16, 16), torch.randn(16, 16, 3, 3, 14, 14)
    program = tn.compile(LAYER, inputs={"X": tuple(x.shape)}, values={"K": kernel})
    ratio = times_faster(lambda: program(X=x), lambda: unfolded(x, kernel))
    return {"unfold and einsum in torch : compiled": ratio}


PAPER = Paper(
    title="Role of Locality and Weight Sharing in Image-Based Tasks: A Sample Complexity Separation between CNNs, "
    "LCNs, and FCNs",
    arxiv="2403.15707",
    source="the definitions in the abstract and in published summaries; the layer is the usual one of this name",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The bounds on the number of examples are theorems about training. The thresholds of the networks' units "
    "are functions.",
)
