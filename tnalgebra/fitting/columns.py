"""Columns of a matrix in whose span all others nearly are: by pivoted QR and exchanges, or sampled by volume."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..tensors import squares

GAIN = 1 + 1e-6
"""Two columns are exchanged where this enlarges the squared volume by more than this factor."""

_ROUNDING = 1e-13
"""Columns whose rest is below this part of the largest column are in the span of the others."""


def choose_columns(matrix: Tensor, count: int) -> Tensor:
    """Choose columns whose volume no exchange of one of them enlarges.

    The distance of the matrix from their span is at most sqrt(1 + k (n - k)) times the least distance from a matrix of
    rank k, for n columns (Gu and Eisenstat 1996, theorem 3.2, for f = 1). They are first chosen by a QR decomposition
    with pivots (Businger and Golub 1965), after which few exchanges are left.

    Args:
        matrix: shape (m, n), real or complex.
        count: k, from 1 to n.

    Returns:
        The numbers of the columns, shape (k,), ascending.
    """
    from scipy.linalg import qr

    pivots = qr(matrix.cpu().numpy(), mode="r", pivoting=True)[-1]
    chosen = torch.from_numpy(np.array(pivots[:count], dtype=np.int64)).to(matrix.device)
    while True:
        exchange = _best_exchange(matrix, chosen)
        if exchange is None:
            return chosen.sort().values
        place, column = exchange
        chosen[place] = column


def _best_exchange(matrix: Tensor, chosen: Tensor) -> tuple[int, int] | None:
    """Which of the chosen columns is to be replaced by which other; None where the volume does not grow."""
    basis, triangle = torch.linalg.qr(matrix[:, chosen])
    pivots = triangle.diagonal().abs()
    if len(chosen) >= matrix.shape[0] or not bool(pivots.min() > _ROUNDING * pivots.max()):
        return None
    inner = basis.mH @ matrix
    weights = squares(torch.linalg.solve_triangular(triangle, inner, upper=True))
    rest = squares(matrix - basis @ inner).sum(0)
    unit = torch.eye(len(chosen), dtype=matrix.dtype, device=matrix.device)
    rows = squares(torch.linalg.solve_triangular(triangle, unit, upper=True)).sum(1)
    gains = weights + rows[:, None] * rest
    gains[:, chosen] = 0
    best = int(gains.argmax())
    place, column = divmod(best, matrix.shape[1])
    return (place, column) if float(gains[place, column]) > GAIN else None


def sample_columns(matrix: Tensor, count: int, seed: int) -> Tensor:
    """Sample columns with probabilities in proportion to their squared volumes.

    The expected squared distance of the matrix from their span is at most k + 1 times the least one of rank k
    (Deshpande, Rademacher, Vempala and Wang 2006, theorem 1.3). They are a sample of a determinantal point process:
    first of the singular vectors that span it, then of its points (Kulesza and Taskar 2012, algorithm 8).

    Arguments and result are those of `choose_columns`.
    """
    generator = np.random.default_rng(seed)
    _, values, right = torch.linalg.svd(matrix, full_matrices=False)
    useful = int((values > _ROUNDING * values[0]).sum())
    number = min(count, useful)
    rest = list(range(matrix.shape[1]))
    if number:
        vectors = right[: max(useful, 1)].mH.resolve_conj().cpu().numpy()
        with np.errstate(divide="ignore"):
            logarithms = 2 * np.log(values[:useful].double().cpu().numpy() / float(values[0]))
        points = _sample_points(vectors[:, _sample_vectors(logarithms, number, generator)], generator)
    else:
        points = []
    # columns of a matrix of smaller rank add nothing, whichever they are
    rest = [column for column in rest if column not in points]
    chosen = [*points, *rest[: count - len(points)]]
    return torch.tensor(sorted(chosen), device=matrix.device)


def _sample_vectors(logarithms: NDArray[np.floating], count: int, generator: np.random.Generator) -> list[int]:
    """Sample numbers of eigenvalues with probabilities in proportion to their product; by elementary polynomials."""
    total = len(logarithms)
    table = np.full((count + 1, total + 1), -np.inf)
    table[0] = 0
    for number, logarithm in enumerate(logarithms, 1):
        table[1:, number] = np.logaddexp(table[1:, number - 1], logarithm + table[:-1, number - 1])
    chosen, left = [], count
    for number in range(total, 0, -1):
        share = logarithms[number - 1] + table[max(left - 1, 0), number - 1] - table[left, number]
        if left and np.log(generator.random()) < share:
            chosen.append(number - 1)
            left -= 1
    return chosen


def _sample_points(vectors: NDArray[np.inexact], generator: np.random.Generator) -> list[int]:
    """Sample as many rows as columns from orthonormal columns, with probabilities of squared volumes."""
    shares = (np.abs(vectors) ** 2).sum(1)
    taken = np.zeros((len(vectors), 0), dtype=vectors.dtype)
    points: list[int] = []
    for _ in range(vectors.shape[1]):
        shares = np.clip(shares, 0, None)
        shares[points] = 0
        point = int(generator.choice(len(shares), p=shares / shares.sum()))
        column = vectors @ vectors[point].conj() - taken @ taken[point].conj()
        column /= np.sqrt(column[point].real)
        taken = np.concatenate([taken, column[:, None]], 1)
        shares = shares - np.abs(column) ** 2
        points.append(point)
    return points
