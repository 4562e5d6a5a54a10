"""Matrices of tensors: matricisation, singular values by the shortest way that is accurate enough, truncated SVD.

Everything is computed in float64 unless asked otherwise, on the tensor's own device, without gradients.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from math import isfinite, prod
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import RankError, ValuesError, explain
from ..networks import Bipartition, check_covers

TALL = 2
"""From this ratio of its sides on, a QR of the long side makes the SVD cheaper."""

LARGE = 1024
"""Shorter side from which a random subspace may stand in for the whole SVD."""

FEW = 6
"""It does where at most one in this many values is kept."""

OVERSAMPLING, POWER_ROUNDS = 16, 4
"""Vectors of the subspace beyond the values that are kept (a quarter of these if that is more); its iterations."""

_BLOCK = 2**22
"""Elements of a matrix whose residual is looked at at once: 32 MiB in float64."""

LinAlgError = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # documented there, but not in __all__

Result = TypeVar("Result")


class SVD(NamedTuple):
    """matrix = U diag(S) V, or the nearest matrix of that rank."""

    U: Tensor
    """Shape (m, r); column [:, a] is the a-th left singular vector, its largest element positive."""
    S: Tensor
    """Shape (r,), descending, not negative."""
    V: Tensor
    """Shape (r, n); row [a] is the a-th right singular vector."""


class Scaled(NamedTuple):
    """A tensor divided by its largest absolute value, so that no square of an element overflows."""

    tensor: Tensor
    scale: float
    """The largest absolute value; 1 for a tensor of zeros."""


def scaled(tensor: Tensor, *, what: str = "the tensor", dtype: torch.dtype = torch.float64) -> Scaled:
    """Check that numbers can be decomposed, and bring them to `dtype` with a largest absolute value of 1.

    Args:
        what: the tensor's name in messages.

    Raises:
        ValuesError: it is empty or complex, or holds NaN or infinity.
    """
    shape = tuple(tensor.shape)
    if tensor.numel() == 0:
        raise ValuesError(explain(f"{what} is empty", shape=shape, fix="sizes of at least 1"))
    if tensor.is_complex():
        raise ValuesError(explain(f"{what} is complex", shape=shape, fix="real numbers"))
    tensor = tensor.detach()
    low, high = torch.aminmax(tensor)
    scale = max(-float(low), float(high))
    if not isfinite(scale):
        count = tensor.numel() - int(tensor.isfinite().sum())
        raise ValuesError(
            explain(f"{what} holds NaN or infinity", where=f"{count} of {tensor.numel()} elements", shape=shape)
        )
    if not scale:
        return Scaled(tensor.to(dtype), 1.0)
    # numbers of a type with a wider range are brought near 1 before they are narrowed
    wide = torch.promote_types(tensor.dtype, dtype)
    return Scaled((tensor.to(wide) / scale).to(dtype), scale)


def matricise(tensor: Tensor, labels: Sequence[str], cut: Bipartition) -> Tensor:
    """Write a tensor as the matrix of a cut.

    Args:
        tensor: one axis a label.
        labels: of the axes, in order.
        cut: its left labels number the rows, its right labels the columns.

    Returns:
        Element [i, j] is the tensor's element whose left labels have the row-major number i (the last of them runs
        fastest) and whose right labels have the number j. It may share the tensor's memory.

    Raises:
        RuleError: the cut does not hold exactly these labels.
        ValuesError: the tensor has another number of axes, or a label stands twice.
    """
    labels = tuple(labels)
    check_axes(tensor, labels)
    check_covers(cut, labels, what="the tensor")
    axes = [labels.index(label) for label in cut.labels]
    rows = prod(tensor.shape[axis] for axis in axes[: len(cut.left)])
    columns = prod(tensor.shape[axis] for axis in axes[len(cut.left) :])
    return tensor.permute(axes).reshape(rows, columns)


def check_axes(tensor: Tensor, labels: Sequence[str]) -> None:
    """Require one axis a label, and no label twice. Raises ValuesError."""
    if tensor.ndim != len(labels):
        raise ValuesError(
            explain(
                f"a tensor of {tensor.ndim} axes has {len(labels)} labels",
                shape=tuple(tensor.shape),
                labels=" ".join(labels),
            )
        )
    for label in labels:
        if list(labels).count(label) > 1:
            raise ValuesError(explain(f"two axes of a tensor are labelled {label!r}", labels=" ".join(labels)))


def gram_singular_values(matrix: Tensor) -> Tensor:
    """All singular values of a matrix, as square roots of the eigenvalues of its smaller Gram matrix.

    That is several times faster than an SVD, and squares the condition: rounding moves an eigenvalue by about
    sqrt(p) 2^-53 s_1^2 (p the smaller side), so a value s by sqrt(p) 2^-53 s_1^2 / (2 s).

    Args:
        matrix: shape (m, n), float64, as `scaled` returns it.

    Returns:
        Shape (min(m, n),), descending, not negative. For p up to 8000, values above 1e-6 of the largest are right
        to 1e-8 of the largest, values below that to 1e-7. Where small values matter, `truncated_svd` gives all of
        them right to about 1e-14 of the largest.

    Raises:
        ValuesError: the eigenvalues do not converge.
    """
    gram = matrix @ matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix.mT @ matrix
    squares: Tensor = _converged(lambda: torch.linalg.eigvalsh(gram), "eigenvalues of the Gram matrix", matrix)
    return squares.flip(0).clamp(min=0).sqrt()


def truncated_svd(matrix: Tensor, rank: int | None = None, *, dtype: torch.dtype = torch.float64) -> SVD:
    """The singular value decomposition, cut off after `rank` values: the nearest matrix of that rank.

    Args:
        matrix: shape (.., m, n), of any real type; axes in front number matrices that are decomposed side by side.
        rank: values kept, 1 to min(m, n); None keeps all.
        dtype: of the computation.

    Returns:
        U (.., m, r), S (.., r), V (.., r, n), of that type, U with orthonormal columns, V with orthonormal rows. In
        float64 every value is right to about 1e-14 of the largest. The largest element of each left vector is
        positive, which makes the result unique where the values differ.

        Where `randomised(matrix, rank)`, the vectors come from a random subspace (of a fixed seed) after
        `POWER_ROUNDS` subspace iterations. Its error ||matrix - U diag(S) V|| is within 1 % of the least one (measured:
        at most 0.6 % above it, on Gaussian matrices, whose values hardly fall; 0.4 % where the k-th value is k^-0.25,
        below 0.2 % where values fall faster), or within rounding, which in float32 is some 1e-5 of ||matrix||. U and V
        are as orthonormal as otherwise, but a value of S may be a few per cent too small where values hardly fall.

    Raises:
        ValuesError: no matrix, empty, complex, or NaN or infinity inside; the SVD does not converge.
        RankError: `rank` is out of range.

    Eckart and Young (1936): ||matrix - U diag(S) V||_F^2 is the sum of the squares of the values left out, and no
    matrix of that rank comes nearer. Halko, Martinsson, Tropp (2011), algorithm 4.4, for the random subspace.
    """
    if matrix.ndim < 2:
        raise ValuesError(
            explain(f"a matrix has 2 axes, this has {matrix.ndim}", shape=tuple(matrix.shape), fix="matricise it")
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
    """The singular value decomposition of left @ right, without the product.

    Args:
        left: shape (m, r).
        right: shape (r, n).

    Returns:
        U (m, k), S (k,), V (k, n), k = min(r, m, n), signs as those of `truncated_svd`.
    """
    basis, triangle = torch.linalg.qr(left)
    other, below = torch.linalg.qr(right.mT)
    inner = truncated_svd(triangle @ below.mT, dtype=left.dtype)
    return _settled(basis @ inner.U, inner.S, inner.V @ other.mT)


def relative_residual(matrix: Tensor, svd: SVD) -> float:
    """||matrix - U diag(S) V||_F / ||matrix||_F, measured block by block: no second matrix is made.

    Returns:
        0 for a matrix of zeros.
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
    """The largest element of each left vector is positive."""
    largest = left.gather(-2, left.abs().argmax(-2, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(left)
    return SVD(left * sign, values, right * sign.mT)


def randomised(matrix: Tensor, rank: int) -> bool:
    """Whether so few values of so large a matrix are wanted that a random subspace finds them much sooner."""
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
        # divide and conquer walks another way through the transpose, and as a rule converges there
        left, values, right = _converged(
            lambda: torch.linalg.svd(matrix.mT.contiguous(), full_matrices=False), "SVD", matrix
        )
        return SVD(right.mT, values, left.mT)


def _converged(compute: Callable[[], Result], what: str, matrix: Tensor) -> Result:
    try:
        return compute()
    except LinAlgError as error:
        raise ValuesError(
            explain(f"no convergence: {what}", shape=tuple(matrix.shape), because=str(error).partition("\n")[0])
        ) from error


def _checked_rank(rank: int | None, matrix: Tensor) -> int:
    most = min(matrix.shape[-2:])
    if rank is None:
        return most
    rank = operator.index(rank)
    if not 1 <= rank <= max(most, 1):
        raise RankError(
            explain(
                f"rank {rank} of a matrix with {most} singular values",
                shape=tuple(matrix.shape),
                fix=f"1 to {most}, or None for all",
            )
        )
    return rank
