"""An optimiser that scales each update by one number, compared with one that makes updates orthogonal.

Muon replaces the momentum of a matrix by a nearly orthogonal one, by a few Newton-Schulz steps. The paper proposes to
do without: it divides the update by a number made of hyperbolic cosines of its elements.

A Newton-Schulz step is a sum of three chains of products of one tied matrix. The public code divides the whole update
by a single scalar, so the singular values keep their ratios: the condition number is the same before and after.
"""

from __future__ import annotations

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, sized, times_faster, value

STEP = "a[] X[i j] + b[] X[i k] X[m k] X[m j] + c[] X[i k] X[m k] X[m p] X[q p] X[q j] -> [i j]"
CORES: Cores = {
    "Newton-Schulz step": sized(STEP, i=5, j=7, k=7, m=5, p=7, q=5),
    "scaled update": tn.parse("G[i:5 j:7] r[] -> [i j]"),
}
COEFFICIENTS = dict(zip("abc", torch.tensor([3.4445, -4.7750, 2.0315], dtype=torch.float64), strict=True))


def step(x: Tensor) -> Tensor:
    """One step in the order of the public code."""
    a, b, c = COEFFICIENTS.values()
    gram = x @ x.T
    result: Tensor = a * x + (b * gram + c * gram @ gram) @ x
    return result


def scale(update: Tensor, gamma: float = 1.5) -> Tensor:
    """The number by which the paper's code multiplies: one over the root mean square of the cosines."""
    return torch.cosh(gamma * update / update.norm()).square().mean().rsqrt()


def condition(matrix: Tensor) -> float:
    """The largest singular value over the smallest."""
    values = torch.linalg.svdvals(matrix)
    return float(values[0] / values[-1])


def check(cores: Cores) -> dict[str, float]:
    """Products of matrices in the public code's order; the polynomial of the singular values; and `svdvals`."""
    chain, scaled = cores.values()
    x = random_values(scaled)["G"]
    x = x / x.norm()
    computed = value(chain, {"X": x, **COEFFICIENTS})
    a, b, c = COEFFICIENTS.values()
    s = torch.linalg.svdvals(x)
    update = value(scaled, {"G": x, "r": scale(x)})
    return {
        "Newton-Schulz step": difference(computed, step(x)),
        "its singular values": difference(
            torch.linalg.svdvals(computed), (a * s + b * s**3 + c * s**5).sort(descending=True)[0]
        ),
        "singular values of the scaled update": difference(torch.linalg.svdvals(update), scale(x) * s),
    }


def gain() -> dict[str, float]:
    """Condition numbers of a 64x256 update: as it is, after the paper's scaling, and after five Newton-Schulz steps.

    The time is that of one step of 256x1024. The plan shares the Gram matrix and the last product of the terms.
    """
    torch.manual_seed(0)
    update = torch.randn(64, 256).double()
    orthogonal = update / update.norm()
    for _ in range(5):
        orthogonal = step(orthogonal)
    x = torch.randn(256, 1024)
    values = {name: number.float() for name, number in COEFFICIENTS.items()}
    program = tn.compile(STEP, inputs={"X": (256, 1024)}, values=values)
    x = x / x.norm()
    return {
        "condition number": condition(update),
        "after AuON": condition(update * scale(update)),
        "after Newton-Schulz": condition(orthogonal),
        "time, step in torch : compiled": times_faster(lambda: program(X=x), lambda: step(x).float()),
    }


PAPER = Paper(
    title="AuON: A Linear-time Alternative to Semi-Orthogonal Momentum Updates",
    arxiv="2509.24320",
    source="`AuON.step` and `HybridAuON.step` in `auon/optimizer.py` of github.com/ryyzn9/AuON",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The hyperbolic cosine and the norm, which make the number r.",
)
