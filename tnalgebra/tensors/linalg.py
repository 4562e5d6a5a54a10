"""Matrices of tensors: matricisation, singular values, truncated SVD.

Everything is computed on the tensor's own device, without gradients, and in float64 unless another type is requested.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from math import isfinite, prod
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import RankError, ValuesError
from ..networks import Bipartition, check_covers

TALL = 2
"""Smallest ratio of its sides from which an SVD of a matrix is cheaper after a QR decomposition."""

LARGE = 1024
"""Smallest shorter side from which a random subspace may replace the whole SVD."""

FEW = 6
"""It does so where at most one in this many values is kept."""

OVERSAMPLING, POWER_ROUNDS = 16, 4
"""How many vectors more than the kept values the subspace has (a quarter of these if that is more); its iterations."""

_BLOCK = 2**22
"""Elements of a matrix whose residual is computed at once, which take 32 MiB in float64."""

LinAlgError = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # documented there, but not in __all__

Result = TypeVar("Result")


class SVD(NamedTuple):
    """U diag(S) V is the matrix, or the matrix of rank r that is nearest to it."""

    U: Tensor
    """Shape (m, r); column [:, a] is the a-th left singular vector, whose largest element is positive."""
    S: Tensor
    """Shape (r,), the singular values in descending order."""
    V: Tensor
    """Shape (r, n); row [a] is the a-th right singular vector."""


class Scaled(NamedTuple):
    """A tensor divided by its largest absolute value, so that no square of an element overflows."""

    tensor: Tensor
    scale: float
    """The largest absolute value; 1 for a tensor of zeros."""


def scaled(tensor: Tensor, *, what: str = "the tensor", dtype: torch.dtype = torch.float64) -> Scaled:
    """Check that a tensor can be decomposed, and convert it to `dtype` with a largest absolute value of 1.

    Args:
        what: what the tensor is called in messages.

    Raises:
        ValuesError: the tensor is empty or complex, or has NaN or infinity in it.
    """
    shape = tuple(tensor.shape)
    if tensor.numel() == 0:
        raise ValuesError(f"{what} is empty", shape=shape, fix="sizes of at least 1")
    if tensor.is_complex():
        raise ValuesError(f"{what} is complex", shape=shape, fix="real numbers")
    tensor = tensor.detach()
    low, high = torch.aminmax(tensor)
    scale = max(-float(low), float(high))
    if not isfinite(scale):
        count = tensor.numel() - int(tensor.isfinite().sum())
        raise ValuesError(f"{what} holds NaN or infinity", where=f"{count} of {tensor.numel()} elements", shape=shape)
    if not scale:
        return Scaled(tensor.to(dtype), 1.0)
    # a type with a wider range is scaled before it is narrowed
    wide = torch.promote_types(tensor.dtype, dtype)
    return Scaled((tensor.to(wide) / scale).to(dtype), scale)


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
    gram = matrix @ matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix.mT @ matrix
    squares: Tensor = _converged(lambda: torch.linalg.eigvalsh(gram), "eigenvalues of the Gram matrix", matrix)
    return squares.flip(0).clamp(min=0).sqrt()


def truncated_svd(matrix: Tensor, rank: int | None = None, *, dtype: torch.dtype = torch.float64) -> SVD:
    """The singular value decomposition with the `rank` largest values: the nearest matrix of that rank.

    Args:
        matrix: shape (.., m, n), of any real type. Axes before the last two number matrices, which are decomposed
            side by side.
        rank: how many values are kept, from 1 to min(m, n); None keeps all.
        dtype: in which to compute.

    Returns:
        U (.., m, r) with orthonormal columns, S (.., r), V (.., r, n) with orthonormal rows, all of that type. In
        float64 the error of each value is about 1e-14 of the largest. The largest element of each left vector is
        positive, which makes the result unique if the values are all different.

        If `randomised(matrix, rank)`, the vectors come from a random subspace (with a fixed seed) after `POWER_ROUNDS`
        subspace iterations. The error ||matrix - U diag(S) V|| is then at most 1 % above the least one, or rounding,
        which in float32 is about 1e-5 of ||matrix||. (Measured: 0.6 % for Gaussian matrices, whose values hardly
        fall, 0.4 % where the k-th value is k^-0.25, less than 0.2 % where values fall faster.) U and V are as
        orthonormal as otherwise, but a value of S may be a few per cent too small where values hardly fall.

    Raises:
        ValuesError: `matrix` has fewer than 2 axes, is empty or complex, or has NaN or infinity in it; or the SVD does
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
    numbers, scale = scaled(matrix, what="the matrix", dtype=dtype)
    wide = numbers.shape[-2] < numbers.shape[-1]
    decompose = _random_svd if randomised(matrix, rank) else _tall_svd
    left, values, right = decompose(numbers.mT if wide else numbers, rank)
    if wide:
        left, right = right.mT, left.mT
    return _settled(left[..., :rank], values[..., :rank] * scale, right[..., :rank, :])


def svd_of_product(left: Tensor, right: Tensor) -> SVD:
    """The singular value decomposition of `left @ right`, without computing the product.

    Args:
        left: shape (m, r).
        right: shape (r, n).

    Returns:
        U (m, k), S (k,), V (k, n) with k = min(r, m, n), and with the signs of `truncated_svd`.
    """
    basis, triangle = torch.linalg.qr(left)
    other, below = torch.linalg.qr(right.mT)
    inner = truncated_svd(triangle @ below.mT, dtype=left.dtype)
    return _settled(basis @ inner.U, inner.S, inner.V @ other.mT)


def relative_residual(matrix: Tensor, svd: SVD) -> float:
    """||matrix - U diag(S) V||_F / ||matrix||_F, and 0 for a matrix of zeros.

    It is computed block by block, so that it needs little memory besides the matrix.
    """
    left, largest = svd.U * svd.S, float(matrix.abs().amax())
    above, below = [0.0], [0.0]
    for rows in range(0, matrix.shape[0], max(1, _BLOCK // matrix.shape[1])):
        part = slice(rows, rows + max(1, _BLOCK // matrix.shape[1]))
        wide = matrix[part].double()
        for norms, block in ((above, wide - (left[part] @ svd.V).double()), (below, wide)):
            norms.append(float(torch.linalg.vector_norm(block / (largest or 1.0))))
    return math.hypot(*above) / (math.hypot(*below) or 1.0)


def _settled(left: Tensor, values: Tensor, right: Tensor) -> SVD:
    """Change signs so that the largest element of each left vector is positive."""
    largest = left.gather(-2, left.abs().argmax(-2, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(left)
    return SVD(left * sign, values, right * sign.mT)


def randomised(matrix: Tensor, rank: int) -> bool:
    """Whether the matrix is so large, and `rank` so small, that a random subspace is much faster than the whole SVD."""
    least = min(matrix.shape[-2:])
    return matrix.ndim == 2 and least >= LARGE and FEW * rank <= least


def _random_svd(matrix: Tensor, rank: int) -> SVD:
    width = min(rank + max(OVERSAMPLING, rank // 4), matrix.shape[1])
    generator = torch.Generator(device=matrix.device).manual_seed(0)
    sample = torch.randn(matrix.shape[1], width, dtype=matrix.dtype, device=matrix.device, generator=generator)
    basis = torch.linalg.qr(matrix @ sample)[0]
    for _ in range(POWER_ROUNDS):
        basis = torch.linalg.qr(matrix.mT @ basis)[0]
        basis = torch.linalg.qr(matrix @ basis)[0]
    left, values, right = _svd((basis.mT @ matrix).mT)
    return SVD(basis @ right.mT, values, left.mT)


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
            lambda: torch.linalg.svd(matrix.mT.contiguous(), full_matrices=False), "SVD", matrix
        )
        return SVD(right.mT, values, left.mT)


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
