"""Products with an orthonormal basis along one axis of a tensor, by fast transforms: what the code of a program calls.

They are functions of torch with derivatives. Half precision is computed in float32. The matrices are in `tensors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .cost import RADIX, TRANSFORM_WORK, Workload
from .transforms import real_precision

FACTOR = 32
"""Largest Hadamard matrix that is one factor of a larger one: matrix products of this size are fast everywhere."""

_ODD = 0x96696996
"""The bit of each number below 32 says whether it has an odd number of binary digits that are 1."""

BY_FOURIER = ("dct", "fourier")
"""Bases that are applied by Fourier transforms, which formats of exported code lack."""


def has_fast_transform(basis: str, size: int) -> bool:
    """Whether there is a fast transform for a basis of this size."""
    return size > 1 and (basis != "haar" or not size & (size - 1))


def basis_work(basis: str, size: int, elements: int) -> Workload:
    """The work of a fast transform into a basis or back, along an axis of this size of so many elements in all."""
    doublings = math.log2(size)
    if basis == "hadamard":
        factors = radices(size)
        moved, wide = len(factors) * elements, factors[0]
        multiply_adds, calls = sum(factors) * elements, 9 + 4 * len(factors)
        return Workload("product", multiply_adds, moved, moved, 1, wide, wide, wide, calls=calls)
    if basis == "haar":
        return Workload("pointwise", read=5 * elements, written=3 * elements, calls=round(4 * doublings) + 1)
    passes, calls = (3, 9) if basis == "fourier" else (5, 16)
    multiply_adds, moved = round(TRANSFORM_WORK * elements * doublings), passes * elements
    return Workload("product", multiply_adds, moved, moved, 1, RADIX, RADIX, RADIX, calls=calls)


def apply_basis(tensor: Tensor, basis: str, axis: int, size: int, *, transposed: bool) -> Tensor:
    """The product with the matrix of a basis, or with its transpose, along one axis.

    Args:
        tensor: shape (..., size, ...), real or complex.
        basis: one of the names in `tensors.BASES`.
        axis: the number of that axis, from 0.

    Returns:
        The same shape and type; element [..., c, ...] is the sum over x of element [c, x] of the matrix times element
        [..., x, ...] of the tensor, or of element [x, c] if `transposed`.
    """
    if tensor.is_complex() and basis in BY_FOURIER:
        parts = torch.view_as_real(tensor.resolve_conj())
        return torch.view_as_complex(apply_basis(parts, basis, axis, size, transposed=transposed))
    wide = tensor if tensor.is_complex() else real_precision(tensor)
    if basis in BY_FOURIER:
        turned = wide.movedim(axis, -1)
        result = _BY_FOURIER[basis, transposed](turned, size).movedim(-1, axis).contiguous()
    elif basis == "hadamard":  # its matrix is symmetric
        result = _hadamard(wide, axis, size)
    else:
        result = (_from_haar if transposed else _to_haar)(wide, axis, size)
    return result if result.dtype == tensor.dtype else result.to(tensor.dtype)


def radices(size: int) -> list[int]:
    """The sizes of the factors of a Hadamard matrix of this size, each at most `FACTOR`."""
    factors = []
    while size > 1:
        factors.append(min(size, FACTOR))
        size //= factors[-1]
    return factors


def _hadamard(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Walsh's transform in Sylvester's order: one factor for each group of binary digits of the position."""
    shape = tensor.shape
    factors = radices(size)
    largest = _signs(factors[0], tensor)
    below = 1
    for factor in factors:
        signs = largest[:factor, :factor]
        parts = torch.unflatten(tensor, axis, (size // (factor * below), factor, below))
        if below == 1 and axis == len(shape) - 1:
            tensor = (parts.squeeze(-1) @ signs).reshape(shape)
        else:
            tensor = torch.matmul(signs, parts.flatten(axis + 2)).reshape(shape)
        below *= factor
    return tensor * (1 / math.sqrt(size))


def _signs(size: int, like: Tensor) -> Tensor:
    """The elements 1 and -1 of a Hadamard matrix, of at most 32 rows."""
    numbers = torch.arange(size, device=like.device)
    odd = (_ODD >> (numbers[:, None] & numbers)) & 1
    return (1 - 2 * odd).to(like.dtype)


def _to_haar(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Coefficients of Haar's wavelets: sums and differences of neighbours, then the same of the sums."""
    parts: list[Tensor] = []
    while size > 1:
        size //= 2
        pairs = torch.unflatten(tensor, axis, (size, 2))
        first, second = pairs.select(axis + 1, 0), pairs.select(axis + 1, 1)
        parts.append((first - second) * 0.5**0.5)
        tensor = (first + second) * 0.5**0.5
    return torch.cat([tensor, *reversed(parts)], axis)


def _from_haar(tensor: Tensor, axis: int, size: int) -> Tensor:
    """The tensor with these coefficients."""
    total, count = tensor.narrow(axis, 0, 1), 1
    while count < size:
        part = tensor.narrow(axis, count, count)
        total = torch.stack((total + part, total - part), axis + 1).flatten(axis, axis + 1) * 0.5**0.5
        count *= 2
    return total


def _to_fourier(tensor: Tensor, size: int) -> Tensor:
    # the conjugate transform has the sines with their sign; without the imaginary parts that are always 0
    parts = torch.view_as_real(torch.fft.ihfft(tensor, norm="ortho").resolve_conj()).flatten(-2)
    single = [parts[..., size : size + 1]] if size % 2 == 0 else []
    return torch.cat([parts[..., :1], parts[..., 2 : size + size % 2] * math.sqrt(2), *single], -1)


def _from_fourier(tensor: Tensor, size: int) -> Tensor:
    first = tensor[..., :1]
    zero = torch.zeros_like(first)
    single = [tensor[..., -1:], zero] if size % 2 == 0 else []
    double = tensor[..., 1 : size - 1 + size % 2] * math.sqrt(0.5)
    pairs = torch.unflatten(torch.cat([first, zero, double, *single], -1), -1, (size // 2 + 1, 2))
    result: Tensor = torch.fft.hfft(torch.view_as_complex(pairs), n=size, norm="ortho")
    return result


def _to_dct(tensor: Tensor, size: int) -> Tensor:
    """By one transform of as many points (Makhoul 1980): even positions in order, then odd ones in reverse order."""
    ordered = torch.cat([tensor[..., ::2], tensor[..., 1::2].flip(-1)], -1)
    spectrum = torch.fft.rfft(ordered, norm="ortho") * _dct_phases(size, tensor)
    real, imaginary = spectrum.real, spectrum.imag
    first = real[..., :1] * math.sqrt(0.5)
    return torch.cat([first, real[..., 1:], -imaginary[..., 1 : (size + 1) // 2].flip(-1)], -1)


def _from_dct(tensor: Tensor, size: int) -> Tensor:
    half, first = size // 2 + 1, tensor[..., :1]
    real = torch.cat([first * math.sqrt(2), tensor[..., 1:half]], -1)
    imaginary = torch.cat([torch.zeros_like(first), -tensor[..., size - half + 1 :].flip(-1)], -1)
    spectrum = torch.complex(real, imaginary) / _dct_phases(size, tensor)
    ordered = torch.fft.irfft(spectrum, n=size, norm="ortho")
    middle = (size + 1) // 2
    even, odd = ordered[..., :middle], ordered[..., middle:].flip(-1)
    if size % 2:
        odd = torch.cat([odd, torch.zeros_like(first)], -1)
    return torch.stack((even, odd), -1).flatten(-2)[..., :size]


def _dct_phases(size: int, like: Tensor) -> Tensor:
    """By what the spectrum of the positions in Makhoul's order is multiplied: sqrt(2) e^(-i pi k / (2 size))."""
    angles = torch.arange(size // 2 + 1, dtype=like.dtype, device=like.device) * (-math.pi / (2 * size))
    return torch.polar(torch.full_like(angles, math.sqrt(2)), angles)


_BY_FOURIER: dict[tuple[str, bool], Callable[[Tensor, int], Tensor]] = {
    ("dct", False): _to_dct,
    ("dct", True): _from_dct,
    ("fourier", False): _to_fourier,
    ("fourier", True): _from_fourier,
}
