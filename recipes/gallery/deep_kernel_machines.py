"""Layers of Gram matrices instead of layers of features.

The paper takes a deep Gaussian process to a limit of infinite width in which representations are still learned. What
a layer holds is the Gram matrix G = F F^T / f of its features F, one row for each data point. The next layer's prior
is a kernel that depends on G alone, and training optimises the Gram matrices themselves.

The Gram matrix is a tied tensor whose feature label is averaged. A linear layer of the features acts on both sides of
the Gram matrix of its input, so the features need not be known.
"""

from __future__ import annotations

import torch

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, times_faster, value

CORES: Cores = {
    "Gram matrix of a layer": tn.parse("X[n:7 f:12] X[m:7 f] Fill[f | value=mean] -> [n m]"),
    "Gram matrix behind a linear layer": tn.parse(
        "X[n:7 f:12] W[g:5 f] W[g h:12] X[m:7 h] Fill[g | value=mean] -> [n m]"
    ),
}


def check(cores: Cores) -> dict[str, float]:
    """The mean over features of outer products, one feature at a time."""
    gram, behind = cores.values()
    values = random_values(behind)
    x, w = values["X"], values["W"]
    expected = torch.stack([torch.outer(column, column) for column in x.T]).mean(0)
    hidden = torch.stack([torch.outer(row, row) for row in w @ x.T]).mean(0)
    return {
        "Gram matrix": difference(value(gram, {"X": x}), expected),
        "behind a linear layer": difference(value(behind, values), hidden),
    }


def gain() -> dict[str, float]:
    """For few features of many points the compiler contracts the weights of the layer with each other first."""
    network = "X[n f] W[g f] W[g h] X[m h] Fill[g | value=mean] -> [n m]"
    x, w = torch.randn(256, 32), torch.randn(2048, 32)
    program = tn.compile(network, inputs={"X": tuple(x.shape), "W": tuple(w.shape)})

    def theirs() -> torch.Tensor:
        features = x @ w.T
        return features @ features.T / len(w)

    return {"features first, in torch : compiled": times_faster(lambda: program(X=x, W=w), theirs)}


PAPER = Paper(
    title="A theory of representation learning gives a deep generalisation of kernel methods",
    arxiv="2108.13097",
    source="the definition of the Gram matrices in the abstract and introduction; further text could not be read here",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The objective has log-determinants and traces of inverses of Gram matrices, and kernels such as the "
    "squared exponential are functions of their elements. None of these is multilinear.",
)
