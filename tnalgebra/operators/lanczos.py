"""The largest singular values of a linear map that is known only by what it does to tensors, with a bound for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

EXTRA = 2
"""Number of vectors in a block beyond the values that are requested, so that equal values are all found."""

MOST_BLOCKS = 20
"""Number of blocks of vectors that are kept; then the best vectors replace them."""


class LargestValues(NamedTuple):
    """Singular values, descending, and for each a bound: a singular value of the map is at most that far from it."""

    values: Tensor
    bounds: Tensor


def largest_singular_values(
    forward: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    count: int,
    tolerance: float,
    steps: int,
) -> LargestValues:
    """The largest singular values of A by a block Lanczos method with full reorthogonalisation and restarts.

    The vectors v = Q w and u = A v / s of the subspace Q satisfy A v = s u exactly, and r = A^T u - s v is computed. So
    the symmetric matrix with the blocks A and A^T has an eigenvalue within |r| / sqrt(2) of s, and a singular value of
    A is that close (Parlett, The Symmetric Eigenvalue Problem, 1980, theorem 4.5.1). The k-th value is also at most
    the k-th singular value of A, up to rounding. Source of the method: Golub, Luk, Overton (1981).

    Args:
        forward, backward: A and its transpose on the columns of matrices: (n, b) -> (m, b) and (m, b) -> (n, b).
        start: shape (n, b) with b at least `count`, the first block.
        tolerance: the bound, relative to the largest value, at which the iteration ends.
        steps: the largest number of blocks.
    """
    block = torch.linalg.qr(start).Q
    basis, images, backs = block[:, :0], block[:, :0], block[:, :0]
    result = LargestValues(start.new_zeros(count), start.new_full((count,), torch.inf))
    for _ in range(steps):
        image = forward(block)
        basis = torch.cat([basis, block], 1)
        images = torch.cat([images, image], 1) if images.numel() else image
        backs = torch.cat([backs, backward(image)], 1)
        # the small problem: A Q = U S W^T, so that v = Q w and u = A v / s
        _, singular, turn = torch.linalg.svd(torch.linalg.qr(images).R)
        turn = turn.mT
        kept = min(len(singular), start.shape[1])
        residual = backs @ turn[:, :kept] - basis @ (turn[:, :kept] * singular[:kept].square())
        floor = torch.finfo(start.dtype).eps * singular[0]
        sizes = torch.linalg.vector_norm(residual, dim=0) / singular[:kept].clamp(min=floor) / 2**0.5
        bounds = torch.where(singular[:kept] > floor, sizes, singular[:kept]).nan_to_num(0.0)
        result = LargestValues(singular[:count], bounds[:count])
        if bool((bounds[:count] <= tolerance * singular[0]).all()) or basis.shape[1] >= start.shape[0]:
            break
        if basis.shape[1] >= MOST_BLOCKS * start.shape[1]:
            turn = turn[:, : basis.shape[1] // 2]
            basis, images, backs = basis @ turn, images @ turn, backs @ turn
        block = _apart_from(basis, residual, start.shape[0] - basis.shape[1])
        if not block.shape[1]:
            break
    return result


def _apart_from(basis: Tensor, block: Tensor, most: int) -> Tensor:
    """An orthonormal basis of what the columns of a block add to a basis, of at most so many columns."""
    scale = torch.linalg.vector_norm(block, dim=0)
    block = block[:, scale > 0] / scale[scale > 0]
    for _ in range(2):
        block = block - basis @ (basis.mT @ block)
        block, triangle = torch.linalg.qr(block)
        block = block[:, triangle.diagonal().abs() > 1e-10]
    return block[:, :most]
