"""Matrices of tensors: matricisation, singular values, truncated SVD.

Everything is computed on the tensor's own device, without gradients, and in float64 unless another type is requested.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite, prod
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import RankError, ValuesError
from ..networks import Bipartition, check_covers
from .evaluation import check_computable
from .numbers import in_precision, largest, phases
from .unique import make_unique

TALL = 2
"""Smallest ratio of its sides from which an SVD of a matrix is cheaper after a QR decomposition."""

LARGE = 1024
"""Smallest shorter side from which a Gram matrix or a random subspace replaces the SVD of a single matrix."""

FEW = 6
"""It does so where at most one in this many values is kept."""

OVERSAMPLING, POWER_ROUNDS = 16, 4
"""How many vectors more than the kept values the subspace has (a quarter of these if that is more); its iterations."""

LEVEL = 1e-4
"""Smallest part of the largest singular value that a Gram matrix is used for; what is below has one of its own."""

_EQUAL_SQUARES = 1000
"""Squares in a Gram matrix may be those of equal values if they differ by this many roundings of the largest one."""

_MIRRORED = 64
"""Smallest half of a Gram matrix whose two blocks beside the diagonal are computed as one."""

_BLOCK = 2**22
"""Elements of a matrix whose residual is computed at once, which take 32 MiB in float64."""

LinAlgError = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # documented there, but not in __all__

Result = TypeVar("Result")


class SVD(NamedTuple):
    """U diag(S) V is the matrix, or the matrix of rank r that is nearest to it."""

    U: Tensor
    """Shape (m, r); column [:, a] is the a-th left singular vector, whose largest element is positive."""
    S: Tensor
    """Shape (r,), the singular values in descending order; those that are only rounding are 0."""
    V: Tensor
    """Shape (r, n); row [a] is the a-th right singular vector."""


class Scaled(NamedTuple):
    """A tensor divided by its largest absolute value, so that no square of an element overflows."""

    tensor: Tensor
    scale: float
    """The largest absolute value, of complex numbers that of a real or imaginary part; 1 for a tensor of zeros."""


def scaled(tensor: Tensor, *, what: str = "the tensor", dtype: torch.dtype = torch.float64) -> Scaled:
    """Check that a tensor can be decomposed, and convert it to the precision of `dtype` with a largest element of 1.

    Args:
        what: what the tensor is called in messages.

    Raises:
        ValuesError: the tensor is empty, or has NaN or infinity in it.
    """
    shape = tuple(tensor.shape)
    if tensor.numel() == 0:
        raise ValuesError(f"{what} is empty", shape=shape, fix="sizes of at least 1")
    check_computable(what, tensor)
    tensor = tensor.detach() if tensor.is_floating_point() or tensor.is_complex() else tensor.double()
    scale = largest(tensor)
    if not isfinite(scale):
        count = tensor.numel() - int(tensor.isfinite().sum())
        raise ValuesError(f"{what} holds NaN or infinity", where=f"{count} of {tensor.numel()} elements", shape=shape)
    if not scale:
        return Scaled(in_precision(tensor, dtype), 1.0)
    # a type with a wider range is scaled before it is narrowed
    wide = torch.promote_types(tensor.dtype, dtype)
    return Scaled(in_precision(tensor.to(wide, copy=True).div_(scale), dtype), scale)


def matricise(tensor: Tensor, labels: Sequence[str], cut: Bipartition) -> Tensor:
    """Write a tensor as the matrix of a cut.

    Args:
        tensor: one axis for each label.
        labels: of the axes, in their order.
        cut: its left labels number the rows, and its right labels the columns.

    Returns:
        Element [i, j] is the tensor's element whose left labels have the row-major number i (the last of them runs
        fastest) and whose right labels have the number j. It may share the tensor's memory.

    Raises:
        RuleError: the labels of the cut are not exactly these labels.
        ValuesError: the tensor has another number of axes, or a label occurs twice.
    """
    labels = tuple(labels)
    check_axes(tensor, labels)
    check_covers(cut, labels, what="the tensor")
    axes = [labels.index(label) for label in cut.labels]
    rows = prod(tensor.shape[axis] for axis in axes[: len(cut.left)])
    columns = prod(tensor.shape[axis] for axis in axes[len(cut.left) :])
    return tensor.permute(axes).reshape(rows, columns)


def check_axes(tensor: Tensor, labels: Sequence[str]) -> None:
    """Check that there is one label for each axis, and no label twice. Raises ValuesError."""
    if tensor.ndim != len(labels):
        raise ValuesError(
            f"a tensor of {tensor.ndim} axes has {len(labels)} labels",
            shape=tuple(tensor.shape),
            labels=" ".join(labels),
        )
    for label in labels:
        if list(labels).count(label) > 1:
            raise ValuesError(f"two axes of a tensor are labelled {label!r}", labels=" ".join(labels))


def gram_matrix(rows: Tensor) -> Tensor:
    """`rows @ rows.mH`, without computing both of two blocks that mirror each other.

    Args:
        rows: shape (..., m, n).

    Returns:
        Shape (..., m, m); element [i, j] is the product of row i with the conjugate of row j.
    """
    half = rows.shape[-2] // 2
    if half < _MIRRORED:
        return rows @ rows.mH
    upper, lower = rows[..., :half, :], rows[..., half:, :]
    corner = lower @ upper.mH
    above, below = (gram_matrix(upper), corner.mH), (corner, gram_matrix(lower))
    return torch.cat([torch.cat(above, dim=-1), torch.cat(below, dim=-1)], dim=-2)


def gram_singular_values(matrix: Tensor) -> Tensor:
    """All singular values of a matrix, as square roots of the eigenvalues of its smaller Gram matrix.

    This is several times faster than an SVD, but it squares the condition number. Rounding changes an eigenvalue by
    about sqrt(p) 2^-53 s_1^2, where p is the smaller side, and so a value s by sqrt(p) 2^-53 s_1^2 / (2 s).

    Args:
        matrix: shape (m, n), float64, as `scaled` returns it.

    Returns:
        Shape (min(m, n),), in descending order. For p up to 8000, the error of values above 1e-6 of the largest is at
        most 1e-8 of the largest, and that of smaller values 1e-7. Where small values matter, use `truncated_svd`,
        whose error is about 1e-14 of the largest value for all of them.

    Raises:
        ValuesError: the eigenvalues do not converge.
    """
    gram = gram_matrix(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mH)
    squares: Tensor = _converged(lambda: torch.linalg.eigvalsh(gram), "eigenvalues of the Gram matrix", matrix)
    return squares.flip(0).clamp(min=0).sqrt()


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values, in descending order, in float64.

    Args:
        matrix: as for `truncated_svd`.

    Returns:
        Shape (.., min(m, n)). The error of each value is about 1e-14 of the largest; for a large matrix, 1e-10 of it.
    """
    numbers, scale = scaled(matrix, what="the matrix")
    if _large(numbers):
        values = gram_singular_values(numbers)
        if values[-1] > LEVEL / 10 * values[0]:
            return values * scale
    return truncated_svd(matrix).S


def truncated_svd(matrix: Tensor, rank: int | None = None, *, dtype: torch.dtype = torch.float64) -> SVD:
    """The singular value decomposition with the `rank` largest values: the nearest matrix of that rank.

    Args:
        matrix: shape (.., m, n), of any real or complex type. Axes before the last two number matrices, which are
            decomposed side by side.
        rank: how many values are kept, from 1 to min(m, n); None keeps all.
        dtype: in which to compute.

    Returns:
        U (.., m, r) with orthonormal columns, S (.., r), V (.., r, n) with orthonormal rows, all of that type; of a
        complex matrix U and V are complex and S is real. In float64 the error of each value is about 1e-14 of the
        largest, and values that are only rounding are 0.

        The result is unique up to rounding, whatever the number of threads: the largest element of each left vector is
        real and positive (of equally large ones the first), and the left vectors of equal values are those that are 0,
        but for one of them, at the rows where they are largest.

        The vectors of one large matrix (`LARGE`) come from its Gram matrix in float64, which takes less time and
        memory; values below `LEVEL` of the largest have a Gram matrix of their own, so that the error of each value,
        and of the nearest matrix, is about 1e-12 of the largest value.

        If `randomised(matrix, rank)`, the vectors come from a random subspace (with a fixed seed) after `POWER_ROUNDS`
        subspace iterations. The error ||matrix - U diag(S) V|| is then at most 1 % above the least one, or rounding,
        which in float32 is about 1e-5 of ||matrix||. (Measured: 0.6 % for Gaussian matrices, whose values hardly
        fall, 0.4 % where the k-th value is k^-0.25, less than 0.2 % where values fall faster.) U and V are as
        orthonormal as otherwise, but a value of S may be a few per cent too small where values hardly fall.

    Raises:
        ValuesError: `matrix` has fewer than 2 axes, is empty, or has NaN or infinity in it; or the SVD does
            not converge.
        RankError: `rank` is out of range.

    Sources: Eckart and Young (1936): ||matrix - U diag(S) V||_F^2 is the sum of the squares of the values that are
    dropped, and no matrix of that rank is nearer. Halko, Martinsson and Tropp (2011), algorithm 4.4: the subspace.
    """
    if matrix.ndim < 2:
        raise ValuesError(
            f"a matrix has 2 axes, but this tensor has {matrix.ndim}", shape=tuple(matrix.shape), fix="matricise it"
        )
    rank = _checked_rank(rank, matrix)
    if matrix.ndim > 2 and matrix.numel() > _BLOCK and matrix.shape[:-2].numel() > 1:  # a few at a time, to save memory
        alone = matrix.flatten(0, -3)
        parts = [
            truncated_svd(part, rank, dtype=dtype) for part in torch.split(alone, max(1, _BLOCK // alone[0].numel()))
        ]
        return SVD(
            *(torch.cat(each).reshape(*matrix.shape[:-2], *each[0].shape[1:]) for each in zip(*parts, strict=True))
        )
    numbers, scale = scaled(matrix, what="the matrix", dtype=dtype)
    wide = numbers.shape[-2] < numbers.shape[-1]
    decompose = _gram_svd if _large(matrix) and dtype == torch.float64 else _tall_svd
    if randomised(matrix, rank):
        decompose = _random_svd
    left, values, right = decompose(numbers.mH if wide else numbers, rank)
    del numbers  # a large one, which the rest does without
    if wide:
        left, right = right.mH.resolve_conj(), left.mH.resolve_conj()
    left, values, right = make_unique(left, values, right)
    return SVD(left[..., :rank], values[..., :rank] * scale, right[..., :rank, :])


def svd_of_product(left: Tensor, right: Tensor) -> SVD:
    """The singular value decomposition of `left @ right`, without computing the product.

    Args:
        left: shape (m, r).
        right: shape (r, n).

    Returns:
        U (m, k), S (k,), V (k, n) with k = min(r, m, n), and with the signs of `truncated_svd`.
    """
    basis, triangle = torch.linalg.qr(left)
    other, below = torch.linalg.qr(right.mH)
    inner = truncated_svd(triangle @ below.mH, dtype=left.real.dtype)
    return SVD(*make_unique(basis @ inner.U, inner.S, inner.V @ other.mH))


def relative_residual(matrix: Tensor, left: Tensor, right: Tensor) -> float:
    """||matrix - left @ right||_F / ||matrix||_F in float64, and 0 for a matrix of zeros with a product of zeros.

    It is computed block by block, so that it needs little memory besides the matrix.

    Args:
        matrix: shape (m, n).
        left, right: shapes (m, r) and (r, n).
    """
    scale = largest(matrix) or 1.0
    left, right = in_precision(left, torch.float64) / scale, in_precision(right, torch.float64)
    above, below = [0.0], [0.0]
    size = max(1, _BLOCK // matrix.shape[1])
    for rows in range(0, matrix.shape[0], size):
        block = in_precision(matrix[rows : rows + size], torch.float64) / scale
        below.append(float(torch.linalg.vector_norm(block)))
        above.append(float(torch.linalg.vector_norm(block.sub_(left[rows : rows + size] @ right))))
    return math.hypot(*above) / (math.hypot(*below) or 1.0)


# How it is computed ------------------------------------------------------------------------------------------------


def _large(matrix: Tensor) -> bool:
    return matrix.ndim == 2 and min(matrix.shape) >= LARGE


def randomised(matrix: Tensor, rank: int) -> bool:
    """Whether the matrix is so large, and `rank` so small, that a random subspace is much faster than the whole SVD."""
    return _large(matrix) and FEW * rank <= min(matrix.shape)


def _gram_svd(matrix: Tensor, rank: int) -> SVD:
    """The `rank` largest values, and those equal to the last of them, of a tall matrix in float64.

    A Gram matrix has the squares of the singular values, so that it shows only values of about their size: smaller
    ones are those of the matrix in the space that is left over.
    """
    part, space, kept = matrix, matrix.new_empty(0), 0
    chosen: list[Tensor] = []
    rounding, largest = torch.finfo(matrix.dtype).eps, 0.0
    while kept < rank:
        eigh = partial(torch.linalg.eigh, gram_matrix(part.mH))
        squares, vectors = _converged(eigh, "eigenvalues of the Gram matrix", matrix)
        squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
        largest = largest or float(squares[0])
        count = len(squares)
        if float(squares[0]) > rounding**2 * largest:
            last = squares[min(rank - kept, count) - 1] - _EQUAL_SQUARES * rounding * squares[0]
            count = int((squares >= torch.maximum(last, LEVEL**2 * squares[0])).sum())
        vectors = vectors if part is matrix else space @ vectors
        chosen.append(vectors[:, :count])
        space, kept = vectors[:, count:], kept + count
        if kept < rank:
            part = matrix @ space
    right = torch.cat(chosen, 1)
    product = matrix @ right
    values, order = torch.linalg.vector_norm(product, dim=0).sort(descending=True, stable=True)
    product = product[:, order]
    basis, triangle = torch.linalg.qr(product)
    basis *= phases(triangle.diagonal())
    return SVD(basis, values, right[:, order].mH.resolve_conj())


def _random_svd(matrix: Tensor, rank: int) -> SVD:
    width = min(rank + max(OVERSAMPLING, rank // 4), matrix.shape[1])
    generator = torch.Generator(device=matrix.device).manual_seed(0)
    sample = torch.randn(matrix.shape[1], width, dtype=matrix.dtype, device=matrix.device, generator=generator)
    basis = torch.linalg.qr(matrix @ sample)[0]
    for _ in range(POWER_ROUNDS):
        basis = torch.linalg.qr(matrix.mH @ basis)[0]
        basis = torch.linalg.qr(matrix @ basis)[0]
    left, values, right = _svd((basis.mH @ matrix).mH)
    return SVD(basis @ right.mH, values, left.mH.resolve_conj())


def _tall_svd(matrix: Tensor, rank: int) -> SVD:
    rows, columns = matrix.shape[-2:]
    if rows < TALL * columns:
        return _svd(matrix)
    basis, triangle = torch.linalg.qr(matrix)
    left, values, right = _svd(triangle)
    return SVD(basis @ left, values, right)


def _svd(matrix: Tensor) -> SVD:
    try:
        return SVD(*torch.linalg.svd(matrix, full_matrices=False))
    except LinAlgError:
        # divide and conquer takes other steps for the transpose, and usually converges there
        left, values, right = _converged(
            lambda: torch.linalg.svd(matrix.mH.contiguous(), full_matrices=False), "SVD", matrix
        )
        return SVD(right.mH.resolve_conj(), values, left.mH.resolve_conj())


def _converged(compute: Callable[[], Result], what: str, matrix: Tensor) -> Result:
    try:
        return compute()
    except LinAlgError as error:
        raise ValuesError(
            f"the {what} did not converge", shape=tuple(matrix.shape), because=str(error).partition("\n")[0]
        ) from error


def _checked_rank(rank: int | None, matrix: Tensor) -> int:
    most = min(matrix.shape[-2:])
    if rank is None:
        return most
    rank = operator.index(rank)
    if not 1 <= rank <= max(most, 1):
        raise RankError(
            f"rank {rank} of a matrix with {most} singular values",
            shape=tuple(matrix.shape),
            fix=f"1 to {most}, or None for all",
        )
    return rank
