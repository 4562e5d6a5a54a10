"""A generator looks up neighbours of its image in a database, and attends to them.

The paper trains small diffusion and autoregressive models of images that receive, beside the noise, the CLIP embeddings
of the nearest neighbours in a large database. The embeddings enter by cross-attention, so the database can be
exchanged after training.

Scores and values are two networks with a softmax between them. Keys and values come from few neighbours, so the
compiler can contract the projections with them first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

SCORES = "X[n i d] Q[h m d] C[n j e] K[h m e] -> [n h i j]"
VALUES = "A[n h i j] C[n j e] V[h m e] O[f h m] -> [n i f]"
SIZES = {"n": 2, "i": 5, "d": 6, "h": 2, "m": 4, "j": 3, "e": 7, "f": 6}

CORES: Cores = {
    "scores": sized(SCORES, **SIZES),
    "values": sized(VALUES, **SIZES),
}


def attention(x: Tensor, c: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Projections, torch's attention of each head, and the output projection."""
    q, k, v = (torch.einsum("nid,hmd->nhim", tokens, weights[name]) for tokens, name in ((x, "Q"), (c, "K"), (c, "V")))
    return torch.einsum("nhim,fhm->nif", scaled_dot_product_attention(q, k, v), weights["O"])


def check(cores: Cores) -> dict[str, float]:
    """torch's `scaled_dot_product_attention` between projections, as in the public cross-attention."""
    scores, values = cores.values()
    one, two = random_values(scores), random_values(values, seed=1)
    weights = {"Q": one["Q"], "K": one["K"], "V": two["V"], "O": two["O"]}
    attended = torch.softmax(value(scores, one) / one["Q"].shape[1] ** 0.5, 3)
    computed = value(values, {"A": attended, "C": one["C"], "V": two["V"], "O": two["O"]})
    return {"cross-attention": difference(computed, attention(one["X"], one["C"], weights))}


def gain() -> dict[str, float]:
    """16x16 tokens of 256 channels, 8 heads of 32, 4 neighbours with embeddings of 512 numbers, 8 images."""
    sizes = {"X": (8, 256, 256), "Q": (8, 32, 256), "C": (8, 4, 512), "K": (8, 32, 512), "V": (8, 32, 512)}
    tensors = {name: torch.randn(shape) for name, shape in (sizes | {"O": (256, 8, 32)}).items()}
    inputs = {name: sizes[name] for name in ("X", "C")}
    scores = tn.compile(SCORES, inputs=inputs, values={name: tensors[name] for name in "QK"})
    weighted = {"A": (8, 8, 256, 4), "C": sizes["C"]}
    values = tn.compile(VALUES, inputs=weighted, values={name: tensors[name] for name in "VO"})

    def ours() -> Tensor:
        attended = torch.softmax(scores(X=tensors["X"], C=tensors["C"]) / 32**0.5, 3)
        result: Tensor = values(A=attended, C=tensors["C"])
        return result

    return {"attention in torch : compiled": times_faster(ours, lambda: attention(tensors["X"], tensors["C"], tensors))}


PAPER = Paper(
    title="Semi-Parametric Neural Image Synthesis",
    arxiv="2204.11824",
    source="`CrossAttention` in `rdm/modules/attention.py` of github.com/CompVis/retrieval-augmented-diffusion-models",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The search for nearest neighbours, the embeddings themselves, the softmax, and the diffusion.",
)
