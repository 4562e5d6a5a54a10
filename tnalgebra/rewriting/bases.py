"""Orthonormal bases by name, for the constants of rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import RuleError, SizeError


def dct(size: int) -> Tensor:
    """The orthonormal discrete cosine transform of type 2.

    Returns:
        Shape (size, size), float64; element [c, x] is sqrt(2 / size) cos(pi (x + 1/2) c / size), where the row c = 0 is
        divided by sqrt(2) (Ahmed, Natarajan, Rao 1974). Its rows are orthonormal.
    """
    rows, columns = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    basis = math.sqrt(2 / size) * torch.cos(math.pi * (columns + 0.5) * rows / size)
    basis[0] /= math.sqrt(2)
    return basis


def fourier(size: int) -> Tensor:
    """The real discrete Fourier transform with orthonormal rows.

    Returns:
        Shape (size, size), float64. Row 0 is constant, rows 2f-1 and 2f are sqrt(2 / size) times the cosine and the
        sine of 2 pi f x / size, and of an even size the last row is (-1)^x / sqrt(size).
    """
    turns = torch.arange(size) * torch.arange(size)[:, None] % size  # exact, so that large sizes lose no digits
    angles = 2 * math.pi / size * turns.to(torch.float64)
    basis = torch.empty(size, size, dtype=torch.float64)
    count = (size + 1) // 2
    basis[0] = math.sqrt(1 / size)
    basis[1 : 2 * count - 1 : 2] = math.sqrt(2 / size) * torch.cos(angles[1:count])
    basis[2 : 2 * count - 1 : 2] = math.sqrt(2 / size) * torch.sin(angles[1:count])
    if size % 2 == 0:
        basis[-1] = math.sqrt(1 / size) * torch.cos(angles[size // 2])
    return basis


def hadamard(size: int) -> Tensor:
    """The Hadamard matrix of a power of 2 in the order of Sylvester, with orthonormal rows.

    Returns:
        Shape (size, size), float64; element [a, x] is (-1)^(number of binary digits in which both are 1) / sqrt(size).
        It is the product of as many equal 2x2 factors as the size has binary digits: `H[a1 x1] H[a2 x2] Fuse[a a1 a2]
        Fuse[x x1 x2]`.

    Raises:
        SizeError: the size is not a power of 2.
    """
    if size & (size - 1):
        raise SizeError(f"the Hadamard matrix of size {size} is not known here", fix="a power of 2, or another basis")
    basis = torch.ones(1, 1, dtype=torch.float64)
    factor = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
    while len(basis) < size:
        basis = torch.kron(basis, factor)
    return basis / math.sqrt(size)


def haar(size: int) -> Tensor:
    """The Haar wavelets with orthonormal rows, for any size: the coarse ones come first.

    Each row but the first, which is constant, belongs to an interval that is split in two halves, of which the first is
    one longer where the length is odd; the row is positive on the first half, negative on the second, and its sum is 0
    (Girardi, Sweldens 1997). For powers of 2 these are the wavelets of Haar (1910).

    Returns:
        Shape (size, size), float64; element [c, x] is the c-th wavelet at x.
    """
    rows = [torch.full((size,), math.sqrt(1 / size), dtype=torch.float64)]
    intervals = [(0, size)]
    for start, end in intervals:  # grows as intervals are split
        middle = (start + end + 1) // 2
        first, second = middle - start, end - middle
        if not second:
            continue
        row = torch.zeros(size, dtype=torch.float64)
        row[start:middle] = math.sqrt(second / (first * (first + second)))
        row[middle:end] = -math.sqrt(first / (second * (first + second)))
        rows.append(row)
        intervals += [(start, middle), (middle, end)]
    return torch.stack(rows)


BASES: Mapping[str, Callable[[int], Tensor]] = {"dct": dct, "fourier": fourier, "haar": haar, "hadamard": hadamard}
"""For each name, the function that gives the square matrix of a size, with orthonormal rows."""


def check_basis(name: object) -> None:
    """Raises RuleError if no basis has this name."""
    if name not in BASES:
        raise RuleError(f"no basis has the name {name!r}", known=", ".join(BASES))
