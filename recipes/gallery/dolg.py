"""Local features lose what the global one already says: their component along it is subtracted.

The paper makes one descriptor of an image for retrieval. At every position the local feature is projected onto the
global feature, the projection is subtracted, and what remains, orthogonal to the global feature, is averaged over the
image and joined with it.

Projection and subtraction are a sum whose second term has the factor -1; s is one over the square of the global
feature's norm. Averaging commutes with both, so the network of the average has no projection at any position.
"""

from __future__ import annotations

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

MEANS = "Fill[x | value=mean] Fill[y | value=mean]"
ALONG = "L[n d x y] g[n d] g[n c] s[n] Fill[ | value=-1]"

CORES: Cores = {
    "orthogonal component": sized(f"L[n c x y] + {ALONG} -> [n c x y]", n=2, c=5, d=5, x=4, y=3),
    "its average": sized(f"L[n c x y] {MEANS} + {ALONG} {MEANS} -> [n c]", n=2, c=5, d=5, x=4, y=3),
}


def orthogonal(local: Tensor, whole: Tensor) -> Tensor:
    """As in the public code: two batched matrix products, a division by the square of the norm, a difference."""
    along = torch.bmm(whole[:, None], local.flatten(2))
    projection = torch.bmm(whole[:, :, None], along).view(local.shape)
    result: Tensor = local - projection / whole.norm(dim=1).square().view(-1, 1, 1, 1)
    return result


def check(cores: Cores) -> dict[str, float]:
    """Batched matrix products and a division, at each position; then the average."""
    component, average = cores.values()
    values = random_values(component)
    values["s"] = values["g"].square().sum(1).reciprocal()
    expected = orthogonal(values["L"], values["g"])
    return {
        "component": difference(value(component, values), expected),
        "average": difference(value(average, values), expected.mean((2, 3))),
    }


def gain() -> dict[str, float]:
    """4 images, 1024 channels, 32x32 positions: the average of the component, as in the public code and compiled."""
    values = {"L": torch.randn(4, 1024, 32, 32), "g": torch.randn(4, 1024)}
    values["s"] = values["g"].square().sum(1).reciprocal()
    shapes = {name: tuple(tensor.shape) for name, tensor in values.items()}
    program = tn.compile(f"L[n c x y] {MEANS} + {ALONG} {MEANS} -> [n c]", inputs=shapes)
    ratio = times_faster(lambda: program(**values), lambda: orthogonal(values["L"], values["g"]).mean((2, 3)))
    return {"in torch : compiled": ratio}


PAPER = Paper(
    title="DOLG: Single-Stage Image Retrieval with Deep Orthogonal Fusion of Local and Global Features",
    arxiv="2108.02927",
    source="`DOLG.forward` in `core/model/dolg_model.py` of github.com/feymanpriv/DOLG",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The division by the norm, which enters as s; pooling by a power mean, attention, and the loss with "
    "angular margins; the search itself.",
)
