"""An optimiser keeps its state in a few cosines of each gradient, without a singular value decomposition.

The paper saves memory in training: gradients of linear layers are projected onto r directions, in which the optimiser
keeps its moments. Instead of singular vectors it takes columns of one fixed orthogonal matrix, the cosine transform:
the r columns whose products with the gradient have the largest norms.

The product with all cosines is a network with the basis "dct", which a plan can apply by a fast transform, and the way
back from the chosen ones is one with a constant. The rule `K[o i] => L[o a] P[a i]` with this basis fits the same L.
"""

from __future__ import annotations

import math

import torch
from scipy.fft import dct, idct
from torch import Tensor

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, digits, random_values, times_faster, value

CORES: Cores = {
    "onto all cosines": tn.parse("G[o:6 i:8] P[a:8 i] -> [o a]"),
    "back from the chosen ones": tn.parse("S[o:6 r:3] B[r i:8] -> [o i]"),
}


def cosines(size: int) -> Tensor:
    """The orthonormal cosine transform of the second kind: row a is the cosine with a half waves."""
    angles = torch.outer(torch.arange(size), 2 * torch.arange(size) + 1).double() * torch.pi / (2 * size)
    matrix: Tensor = torch.cos(angles) * math.sqrt(2 / size)
    matrix[0] /= 2**0.5
    return matrix


def chosen(coefficients: Tensor, rank: int) -> Tensor:
    """The columns with the largest norms, which a network cannot choose."""
    result: Tensor = coefficients.norm(dim=0).topk(rank).indices.sort().values
    return result


def check(cores: Cores) -> dict[str, float]:
    """scipy's `dct` and `idct`, with zeros for the columns that were not chosen; and the fit of the rule."""
    onto, back = cores.values()
    gradient = random_values(onto)["G"]
    expected = torch.from_numpy(dct(gradient.numpy(), norm="ortho"))
    keep = chosen(expected, 3)
    zeros = torch.zeros_like(expected)
    zeros[:, keep] = expected[:, keep]
    coefficients = value(onto, {"G": gradient, "P": "dct"})
    returned = value(back, {"S": coefficients[:, keep], "B": cosines(8)[keep]})
    fit = tn.rule("K[o i] => L[o a] P[a i]", fixed={"P": "dct"}).apply(gradient, {"a": 8})
    return {
        "onto all cosines": difference(coefficients, expected),
        "back": difference(returned, torch.from_numpy(idct(zeros.numpy(), norm="ortho"))),
        "the rule": difference(fit.values["L"], expected),
    }


def gradient_of_digits() -> Tensor:
    """The gradient of the first layer of a small network on 8x8 digits, after a few steps: shape (128, 64)."""
    torch.manual_seed(0)
    images, classes = digits()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), classes).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    result = model[1].weight.grad
    assert isinstance(result, Tensor)
    return result.double()


def gain() -> dict[str, float]:
    """Rank 16 of a 128x64 gradient of a network on digits; and times for one of 1024x1024."""
    gradient = gradient_of_digits()
    coefficients = gradient @ cosines(64).T
    kept = coefficients[:, chosen(coefficients, 16)].norm() / gradient.norm()
    values = torch.linalg.svdvals(gradient)
    large, basis = torch.randn(1024, 1024), cosines(1024).float()
    program = tn.compile("G[o i] P[a i] -> [o a]", inputs={"G": (1024, 1024)}, values={"P": "dct"})
    ratio = times_faster(lambda: chosen(program(G=large), 64), lambda: torch.linalg.svd(large), rounds=3)
    by_matrix = times_faster(lambda: program(G=large), lambda: large @ basis.mT)
    return {
        "norm kept by 16 cosines": float(kept),
        "norm kept by 16 singular values": float(values[:16].norm() / values.norm()),
        "time of an SVD : compiled": ratio,
        "product with the matrix of cosines : compiled": by_matrix,
    }


PAPER = Paper(
    title="SVD-Free Low-Rank Adaptive Gradient Optimization for Large Language Models",
    arxiv="2505.17967",
    source="`dct3_matrix` in `utils/dct.py` and `trion_update` in `fft_low_rank/trion.py` of "
    "github.com/IST-DASLab/ISTA-DASLab-Optimizers; that code ranks columns by their sums of absolute values",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The choice of columns, and the optimiser's moments, which are functions of the elements.",
)
