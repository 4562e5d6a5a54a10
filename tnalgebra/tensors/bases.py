"""Orthonormal bases by name: matrices whose value a network has by a name in place of elements.

They are made in the obvious way, element by element, as the reference for their fast transforms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import SizeError, ValuesError
from ..networks import Network, node_text, tensors_of, with_sizes
from .contraction import MAX_ELEMENTS


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
    check_basis("hadamard", size)
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


def check_basis(name: str, size: int) -> None:
    """Raise ValuesError if no basis has this name, and SizeError if the basis does not exist in this size."""
    if name not in BASES:
        raise ValuesError(f"no basis has the name {name!r}", known=", ".join(BASES))
    if name == "hadamard" and size & (size - 1):
        raise SizeError(f"the Hadamard matrix of size {size} is not known here", fix="a power of 2, or another basis")


def basis_matrix(name: str, size: int) -> Tensor:
    """The matrix of a basis: shape (size, size), float64, with orthonormal rows.

    Raises:
        ValuesError: no basis has this name.
        SizeError: the basis does not exist in this size, or its matrix would not fit the memory.
    """
    check_basis(name, size)
    if size * size > MAX_ELEMENTS:
        fact = f"the matrix of the basis {name!r} would have {size} x {size} elements"
        raise SizeError(fact, fix="a smaller size, or tn.compile, which applies large bases by fast transforms")
    return BASES[name](size)


def is_basis(tensor: Tensor, name: str) -> bool:
    """Whether a tensor is the matrix of a basis, up to the digits of its type."""
    if tensor.ndim != 2 or len({*tensor.shape}) > 1 or not tensor.is_floating_point():
        return False
    size = len(tensor)
    if name not in BASES or (name == "hadamard" and size & (size - 1)):
        return False
    matrix = basis_matrix(name, size).to(tensor.device, tensor.dtype)
    with torch.no_grad():
        return bool((tensor - matrix).abs().max() <= 2 * torch.finfo(tensor.dtype).eps)


def with_bases(network: Network, bases: Mapping[str, str]) -> Network:
    """The network with equal sizes of both labels of each tensor that is a basis.

    Args:
        bases: name of a tensor -> name of its basis.

    Raises:
        ValuesError: no basis has a name; a tensor does not have two labels, or they have different sizes.
        SizeError: the sizes are not known, contradict the network, or are none of the basis.
    """
    nodes = tensors_of(network)
    for tensor, basis in bases.items():
        if tensor not in nodes:
            fact = f"there is a value for {tensor!r}, which the network does not have"
            raise ValuesError(fact, tensors=" ".join(nodes) or "none")
        if basis not in BASES:
            raise ValuesError(f"no basis has the name {basis!r}", tensor=tensor, known=", ".join(BASES))
        if len(nodes[tensor].labels) != 2:
            fact = f"the basis {basis!r} is a matrix, and {tensor!r} has {len(nodes[tensor].labels)} axes"
            raise ValuesError(fact, node=node_text(nodes[tensor]), fix="two labels: of its rows, then of its columns")
    for _ in bases:  # the sizes of one basis may follow from those of another
        for tensor in bases:
            labels = nodes[tensor].labels
            known = {network.sizes[label] for label in labels if label in network.sizes}
            if len(known) == 1:
                network = with_sizes(network, dict.fromkeys(labels, known.pop()))
    for tensor, basis in bases.items():
        rows, columns = (network.sizes.get(label) for label in nodes[tensor].labels)
        where = node_text(nodes[tensor], network.sizes, set())
        if rows is None:
            raise SizeError(f"the size of the basis {tensor!r} is not known", where=where, fix="a size of its labels")
        if rows != columns:
            fact = f"the basis {basis!r} is a square matrix, and {tensor!r} has the shape {(rows, columns)}"
            raise ValuesError(fact, node=where, fix="equal sizes, or the elements of the rows that are needed")
        check_basis(basis, rows)
    return network
