"""A singular value decomposition that is one and the same, however the sums in it were rounded.

Vectors of equal singular values are any basis of a space, and every pair of vectors has a free sign. Otherwise
rounding, such as by another number of threads, would choose among them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .numbers import phases

EQUAL = 32
"""Singular values are equal if they differ by at most this many roundings of the largest one."""

_TIE = 1e-6
"""Elements of a vector are equally large if they differ by at most this part of the largest one."""


def make_unique(left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make values that are only rounding 0, choose a basis for equal values, and then the signs.

    Args:
        left, values, right: shapes (.., m, r), (.., r) and (.., r, n), as of `truncated_svd`. The vectors are changed
            in place.
    """
    rounding = torch.finfo(values.dtype).eps
    least = 2 * rounding * math.sqrt(max(left.shape[-2], right.shape[-1])) * values[..., :1]
    values = torch.where(values > least, values, 0.0)
    width = EQUAL * rounding * values[..., :1]
    equal = (-values.diff() <= width).any(-1)
    if bool(equal.any()):
        for place in equal.nonzero().tolist():
            _choose_bases(left[*place], values[*place], right[*place], width=float(width[*place]))
    sign = signs_of(left)
    return left.mul_(sign), values, right.mul_(sign.mH)


def signs_of(vectors: Tensor) -> Tensor:
    """The signs that make the largest element of each column positive, of equally large ones the first.

    Of complex vectors they are factors of absolute value 1, which make this element real.

    Args:
        vectors: shape (.., m, r).

    Returns:
        Shape (.., 1, r).
    """
    first = _first_of_the_largest(vectors.abs(), -2)
    return phases(vectors.gather(-2, first)).conj().resolve_conj()


def _choose_bases(left: Tensor, values: Tensor, right: Tensor, *, width: float) -> None:
    """Rotate the vectors of equal values of one matrix, in place; `width` is how far equal values may lie apart."""
    start, listed = 0, values.tolist()
    for stop in range(1, len(listed) + 1):
        if stop < len(listed) and listed[start] - listed[stop] <= width:
            continue
        if stop - start > 1:
            group = slice(start, stop)
            rotation = _rotation(left[:, group])
            left[:, group] = left[:, group] @ rotation
            if listed[start] == 0:  # vectors of values 0 are chosen on either side by themselves
                rotation = _rotation(right[group].mH)
            right[group] = rotation.mH @ right[group]
        start = stop


def _rotation(vectors: Tensor) -> Tensor:
    """The rotation for a unique basis of the space of orthonormal vectors, whichever basis they are.

    Args:
        vectors: shape (m, g).

    Returns:
        Shape (g, g). The first vector of the new basis is nearest to the axis that the space is nearest to; the others
        are 0 on this axis, and are chosen in the same way.
    """
    rest, columns = vectors.clone(), []
    for _ in range(vectors.shape[1]):
        norms = torch.linalg.vector_norm(rest, dim=1)
        row = int(_first_of_the_largest(norms, 0))
        column = rest[row].conj() / norms[row]
        columns.append(column)
        rest -= torch.outer(rest @ column, column.conj())
    basis, triangle = torch.linalg.qr(torch.stack(columns, 1))  # which removes their rounding
    rotation: Tensor = basis * phases(triangle.diagonal())
    return rotation


def _first_of_the_largest(magnitudes: Tensor, axis: int) -> Tensor:
    """The first position along an axis of an element that is as large as the largest one, but for rounding."""
    largest = magnitudes >= (1 - _TIE) * magnitudes.amax(axis, keepdim=True)
    return torch.argmax(largest.to(torch.int8), axis, keepdim=True)
