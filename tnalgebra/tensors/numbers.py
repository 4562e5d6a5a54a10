"""Real and complex numbers in one way: precisions, squares and real parts.

For real tensors these functions do what `tensor.to`, `tensor.square` and the tensor itself do, at no more cost.
"""

from __future__ import annotations

import torch
from torch import Tensor


def in_precision(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in the precision of `dtype`; complex numbers stay complex.

    >>> in_precision(torch.ones(2, dtype=torch.complex64), torch.float64).dtype
    torch.complex128
    """
    return tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)


def squares(tensor: Tensor) -> Tensor:
    """|x|^2 of each element x, as real numbers."""
    if not tensor.is_complex():
        return tensor.square()
    return tensor.real.square() + tensor.imag.square()


def products(one: Tensor, other: Tensor) -> Tensor:
    """Re(conj(x) y) of each pair of elements, whose sum is the real inner product."""
    if not one.is_complex() and not other.is_complex():
        return one * other
    return (one.conj() * other).real


def real_parts(tensor: Tensor) -> Tensor:
    """The elements as real numbers: of complex ones the real and the imaginary parts, along one more axis."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def largest(tensor: Tensor) -> float:
    """The largest |x|, of complex numbers the largest of their parts, which is at least |x| / sqrt(2)."""
    low, high = torch.aminmax(real_parts(tensor.detach()))
    return max(-float(low), float(high))


def phases(tensor: Tensor) -> Tensor:
    """x / |x| of each element, and 1 for 0: of real numbers their signs."""
    if not tensor.is_complex():
        return torch.where(tensor < 0, -1.0, 1.0).to(tensor)
    size = tensor.abs()
    return torch.where(size > 0, tensor / torch.where(size > 0, size, 1.0), 1.0)
