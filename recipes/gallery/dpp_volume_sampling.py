"""Points for least squares are drawn so that they repel each other.

The paper approximates a function in a space of dimension m from its values at random points. With an orthonormal basis
Q of the space, independent points are best drawn with probabilities in proportion to the leverage scores, and weighted
by their inverse. A projection determinantal point process (DPP) draws m points together, with a probability that is
the squared determinant of their rows of Q, so that they are spread out; volume sampling generalises it.

The marginals of the process are tied tensors: the leverage scores keep the point's label open on both copies of Q, the
kernel Q Q^T has two points. The Gram matrix of the weighted points is a third.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, value

CORES: Cores = {
    "leverage scores": tn.parse("Q[x:7 a:3] Q[x a] -> [x]"),
    "kernel of the process": tn.parse("Q[x:7 a:3] Q[y:7 a] -> [x y]"),
    "Gram matrix of weighted points": tn.parse("w[i:5] P[i a:3] P[i b:3] Fill[i | value=mean] -> [a b]"),
}


def basis(points: int, size: int) -> Tensor:
    """Orthonormal polynomials on equidistant points: shape (points, size)."""
    grid = torch.linspace(-1, 1, points, dtype=torch.float64)
    result: Tensor = torch.linalg.qr(torch.stack([grid**power for power in range(size)], 1)).Q
    return result


def check(cores: Cores) -> dict[str, float]:
    """All 35 sets of 3 of 7 points, each with its squared determinant: how often a point, and a pair, is drawn."""
    scores, kernel, gram = cores.values()
    q = basis(7, 3)
    single, pairs = torch.zeros(7, dtype=torch.float64), torch.zeros(7, 7, dtype=torch.float64)
    for points in map(list, itertools.combinations(range(7), 3)):
        probability = torch.linalg.det(q[points]).square()
        single[points] += probability
        for one, other in itertools.permutations(points, 2):
            pairs[one, other] += probability
    computed, values = value(kernel, {"Q": q}), random_values(gram)
    together = computed.diagonal()[:, None] * computed.diagonal() - computed.square()
    weighted = torch.stack([w * torch.outer(row, row) for w, row in zip(values["w"], values["P"], strict=True)])
    return {
        "single points": difference(value(scores, {"Q": q}), single),
        "pairs of points": difference(together, pairs),
        "Gram matrix": difference(value(gram, values), weighted.mean(0)),
    }


def draw(q: Tensor, generator: torch.Generator, *, repel: bool) -> Tensor:
    """As many points as Q has columns: by the projection DPP, or independently by the leverage scores."""
    chosen: list[int] = []
    rest = q
    for _ in range(q.shape[1]):
        point = int(torch.multinomial(rest.square().sum(1), 1, generator=generator))
        chosen.append(point)
        if repel:
            row = rest[point] / rest[point].norm()
            rest = rest - torch.outer(rest @ row, row)
    return torch.tensor(chosen)


def gain() -> dict[str, float]:
    """Errors of 10 weighted points for |x|^3 and polynomials of degree 9, against the best: medians of 200 draws."""
    q, generator = basis(400, 10), torch.Generator().manual_seed(0)
    function = torch.linspace(-1, 1, 400, dtype=torch.float64).abs() ** 3
    best = (function - q @ (q.T @ function)).norm()
    errors = {}
    for what, repel in (("DPP", True), ("independent points", False)):
        ratios = []
        for _ in range(200):
            points = draw(q, generator, repel=repel)
            weights = q[points].square().sum(1).rsqrt()
            solution = torch.linalg.lstsq(
                weights[:, None] * q[points], weights * function[points], driver="gelsd"
            ).solution
            ratios.append((function - q @ solution).norm() / best)
        errors[f"error : best error, {what}"] = float(torch.stack(ratios).median())
    return errors


PAPER = Paper(
    title="Weighted least-squares approximation with determinantal point processes and generalized volume sampling",
    arxiv="2312.14057",
    source="the definitions in the abstract; the marginals are the known ones of projection processes",
    cores=CORES,
    check=check,
    gain=gain,
    outside="Determinants, and the drawing of points, which takes one point after another.",
)
