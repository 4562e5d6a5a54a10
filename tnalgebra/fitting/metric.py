"""The norm that matters to a layer: how far its output moves over its real inputs when its kernel changes.

A covariance of d coupled values is a d x d matrix. For 512 input channels and a 3 x 3 window d is 4608, and the matrix
has 162 MiB in float64 and 81 MiB in float32. Its Cholesky factor is as large in float64, and is never kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from ..errors import ValuesError
from ..tensors import check_axes, scaled
from .axes import group_axes, split_axes

_BLOCK = 2**22
"""How many elements of a covariance are compared, or converted to another type, at once: 32 MiB in float64."""


@dataclass(frozen=True, eq=False)
class Metric:
    """The expected error of a layer's output as a quadratic form of D = K - K~, the error of its kernel.

    E||(K - K~) x||^2 = sum_out D[out, i] C[i, j] D[out, j], where i and j run over all values of `labels` together.

    Attributes:
        labels: the coupled labels of the kernel, such as ("in", "kh", "kw"), or ("in",) of a linear layer.
        covariance: C = E[x x^T], shape (*batch sizes, *sizes, *sizes), float64 or float32; element [i, j] is the
            mean product of the inputs that are multiplied with K[out, i] and K[out, j]. It must be symmetric and
            positive definite.
        batch: ("out",) where each output channel has a covariance of its own (grouped convolutions), otherwise ().
        cross: B = E[y x^T], shape (*outputs sizes, *sizes), where y is the output that is wanted. With it a fit comes
            near B C^-1, the kernel with the least E||y - K~ x||^2, and not near the kernel itself.
        power: E||y||^2, summed over the outputs; given together with `cross`.
        outputs: labels of the leading axes of `cross`: the kernel's other labels.

    Raises:
        ValuesError: a shape or type is not as above, an element is not finite, or the covariance is not symmetric or
            not positive definite (`with_ridge` makes it positive definite).

    Example:
        >>> metric = tn.Metric.with_ridge(("in",), inputs.mT @ inputs / len(inputs), ridge=1e-4)
        >>> tn.cut("out | in").apply(linear.weight, 16, metric=metric).output_error
    """

    labels: tuple[str, ...]
    covariance: Tensor
    batch: tuple[str, ...] = ()
    cross: Tensor | None = None
    power: float | None = None
    outputs: tuple[str, ...] = ("out",)

    def __post_init__(self) -> None:
        _check_shapes(self.labels, self.covariance, self.batch, self.outputs, cross=self.cross, power=self.power)
        for name, tensor in (("the covariance", self.covariance), ("cross", self.cross)):
            if tensor is not None and not bool(tensor.isfinite().all()):
                raise ValuesError(f"{name} holds NaN or infinity", shape=tuple(tensor.shape))
        if self.power is not None and not (math.isfinite(self.power) and self.power >= 0):
            raise ValuesError(f"the power is {self.power}", needed="E||y||^2, at least 0 and finite")
        self._check_symmetric()
        for _ in self._factors():
            pass

    @classmethod
    def with_ridge(
        cls,
        labels: tuple[str, ...],
        covariance: Tensor,
        *,
        ridge: float,
        batch: tuple[str, ...] = (),
        cross: Tensor | None = None,
        power: float | None = None,
        outputs: tuple[str, ...] = ("out",),
        kernel: Tensor | None = None,
    ) -> Metric:
        """Make the metric of a covariance that may be singular, by a ridge on its diagonal.

        The ridge is white noise of variance v = ridge * trace(C) / d on every input, where trace / d is the mean of
        the diagonal, over all output channels if each has its own covariance. The noise goes through both networks:
        C + v 1, B + v K and E||y||^2 + v ||K||^2. So a fit to `cross` stays near K in directions that no input has.
        Where both networks have the same inputs, B = K C, its target is K for any ridge.

        Args:
            labels, covariance, batch, cross, power, outputs: as of `Metric`; none of them is changed.
            ridge: relative to the mean of the diagonal, at least 0; 1e-4 is usual.
            kernel: K with the axes of `cross`; needed together with it.

        Raises:
            ValuesError: see `Metric`; the ridge is negative or not finite; `cross` is given without `kernel`.
        """
        if not (math.isfinite(ridge) and ridge >= 0):
            raise ValuesError(f"the ridge is {ridge!r}", needed="a finite number, at least 0, such as 1e-4")
        size = _check_shapes(labels, covariance, batch, outputs, cross=cross, power=power)
        with torch.no_grad():
            matrices = covariance.detach().reshape(-1, size, size).clone()
            diagonal = matrices.diagonal(dim1=1, dim2=2)
            noise = ridge * float(diagonal.double().mean())
            diagonal += noise
            if cross is not None and power is not None:
                if kernel is None or kernel.shape != cross.shape:
                    shape = None if kernel is None else tuple(kernel.shape)
                    fact = "a ridge with cross needs the kernel, in the shape of cross"
                    raise ValuesError(fact, kernel=f"{shape}", cross=f"{tuple(cross.shape)}")
                kernel = kernel.detach().to(cross)
                cross = cross + noise * kernel
                power += noise * float(kernel.double().square().sum())
        return cls(labels, matrices.reshape(covariance.shape), batch, cross, power, outputs)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of `labels`."""
        return tuple(self.covariance.shape[len(self.batch) : len(self.batch) + len(self.labels)])

    def factor(self) -> Tensor:
        """Compute Cholesky's factor M of the covariance, C = M M^T.

        Returns:
            Shape (*batch sizes, d, d), float64, lower triangular; d is the product of the sizes of `labels`. It is
            computed at each call.
        """
        factors = list(self._factors())
        whole = factors[0] if len(factors) == 1 else torch.cat(factors)
        return whole.reshape(*self.covariance.shape[: len(self.batch)], *whole.shape[1:])

    @cached_property
    def unit(self) -> float:
        """A power of 4 near the mean of the covariance's diagonal; covariances are divided by it while a fit is made.

        So squares of squares neither overflow nor vanish, and no digit of the covariance changes.
        """
        mean = float(self._matrices.diagonal(dim1=1, dim2=2).double().mean())
        return float(4.0 ** (math.frexp(mean)[1] // 2))

    def target(self, kernel: Tensor, labels: Sequence[str]) -> Tensor:
        """The kernel that a fit is to come near: the kernel itself, or B C^-1 where there is a `cross`.

        Args:
            kernel: axes `labels`, those of the metric and of the outputs among them.
            labels: of the axes of the kernel and of the result.

        Returns:
            The kernel as it is, or a float64 tensor of its shape.

        Raises:
            ValuesError: the kernel does not fit the metric.
        """
        self._check_tensor(kernel, labels)
        if self.cross is None:
            return kernel
        axes = (*self.outputs, *self.labels)
        sizes = dict(zip(axes, self.cross.shape, strict=True))
        if dict(zip(labels, kernel.shape, strict=True)) != sizes:
            texts = {"kernel": _listed(labels, kernel.shape), "cross": _listed(axes, self.cross.shape)}
            raise ValuesError("the kernel does not have the labels and sizes of cross", **texts)
        rows = group_axes(self.cross.double(), axes, *self._groups(axes)).tensor_split(self._parts)
        solved = [torch.cholesky_solve(part.mT, factor).mT for factor, part in zip(self._factors(), rows, strict=True)]
        return split_axes(torch.cat(solved), sizes, labels, *self._groups(axes))

    def squared(self, difference: Tensor, labels: Sequence[str]) -> float:
        """E||D x||^2 = sum_out D[out, i] C[i, j] D[out, j], summed in float64; not negative.

        Args:
            difference: D = K - K~, axes `labels`.
            labels: those of the metric, its batch labels, and any others, which are summed over.

        Raises:
            ValuesError: the difference does not fit the metric, is empty, or is not finite.
        """
        number, scale = scaled(difference, what="the difference")
        return self._squared(number, labels) * scale * scale

    def relative(self, difference: Tensor, kernel: Tensor, labels: Sequence[str]) -> float:
        """sqrt(E||D x||^2 / E||K x||^2): the error of the layer's output, relative to its root mean square.

        Args:
            difference, kernel: D = K - K~ and K, axes `labels`.

        Returns:
            0 if both are 0, and infinity if only the kernel's is.

        Raises:
            ValuesError: see `squared`.
        """
        (number, scale), (whole, whole_scale) = scaled(difference, what="the difference"), scaled(kernel)
        above, below = self._squared(number, labels), self._squared(whole, labels)
        return above and (math.sqrt(above / below) * (scale / whole_scale) if below else math.inf)

    def output_error(self, approximation: Tensor, labels: Sequence[str], *, kernel: Tensor | None = None) -> float:
        """sqrt(E||y - K~ x||^2 / E||y||^2): how far the layer's output is from the one that is wanted.

        Args:
            approximation: K~, axes `labels`.
            labels: those of the metric and of the outputs, in any order.
            kernel: K, axes `labels`: without a `cross`, the wanted output y is K x.

        Raises:
            ValuesError: the metric has no `cross`, and no kernel is given; or the approximation does not fit it.
        """
        if self.cross is None and kernel is not None:
            return self.relative(kernel.double() - approximation.double(), kernel, labels)
        if self.cross is None or self.power is None:
            raise ValuesError("the metric has no output", needed="cross and power", have="the covariance")
        # B C^-1 leaves power - <B C^-1, B>, and any other kernel its squared distance from B C^-1 in addition
        best = self.target(approximation, labels).double()
        axes = (*self.outputs, *self.labels)
        cross = self.cross.permute([axes.index(label) for label in labels]).double()
        left = max(0.0, self.power - float((best * cross).sum())) + self.squared(approximation.double() - best, labels)
        return left and (math.sqrt(left / self.power) if self.power else math.inf)

    def renamed(self, names: Mapping[str, str]) -> Metric:
        """The same metric of a kernel with other labels: old -> new, for all labels of the metric."""
        labels, batch, outputs = (
            tuple(names[label] for label in each) for each in (self.labels, self.batch, self.outputs)
        )
        return replace(self, labels=labels, batch=batch, outputs=outputs)

    def _squared(self, number: Tensor, labels: Sequence[str]) -> float:
        self._check_tensor(number, labels)
        groups = self._groups(labels)
        rows, matrices = group_axes(number, labels, *groups), self._matrices
        # part by part, because a copy of the covariance in the other type would be the largest tensor of all
        product = torch.cat([rows @ part.to(rows) for part in matrices.tensor_split(self._strips, dim=2)], dim=2)
        weighted = split_axes(product, dict(zip(labels, number.shape, strict=True)), labels, *groups)
        return max(0.0, float((weighted * number).sum()))  # rounding may leave a number just below 0

    def _groups(self, labels: Sequence[str]) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
        """Groups of labels whose axes are (batch, others, coupled values)."""
        return self.batch, [label for label in labels if label not in (*self.batch, *self.labels)], self.labels

    @property
    def _matrices(self) -> Tensor:
        """The covariance as a batch of matrices, shape (b, d, d); b is 1 without batch labels."""
        size = prod(self.sizes)
        return self.covariance.detach().reshape(-1, size, size)

    @property
    def _parts(self) -> int:
        """Into how many parts the batch is divided, to be factored one after the other."""
        return min(len(self._matrices), -(-self.covariance.numel() // _BLOCK))

    @property
    def _strips(self) -> int:
        """Into how many strips of columns the matrices are divided where they are not converted at once."""
        return min(prod(self.sizes), -(-self.covariance.numel() // _BLOCK))

    def _factors(self) -> Iterator[Tensor]:
        """Cholesky factors in float64, shapes (b, d, d), of parts of the batch. Raises ValuesError: not definite."""
        fix = "Metric.with_ridge(..., ridge=1e-4), or more calibration inputs than the covariance has rows"
        # a smaller pivot, relative to its diagonal element, is only rounding of the covariance or of the factor
        least = max(4 * torch.finfo(self.covariance.dtype).eps, prod(self.sizes) * torch.finfo(torch.float64).eps)
        for part in self._matrices.tensor_split(self._parts):
            if not bool((part.diagonal(dim1=1, dim2=2).abs().amax(1) > torch.finfo(part.dtype).tiny).all()):
                fact = "the covariance is 0: the inputs are, or they are so small that their squares are"
                raise ValuesError(fact, where=self._where, fix="inputs of a usual size, all times one number")
            factor, failed = torch.linalg.cholesky_ex(part.double())
            pivots = factor.diagonal(dim1=1, dim2=2).square()
            if bool(failed.any()) or not bool((pivots > least * part.diagonal(dim1=1, dim2=2)).all()):
                fact = "the covariance is singular: some combination of the inputs is always 0, up to rounding"
                raise ValuesError(fact, where=self._where, fix=fix)
            yield factor

    def _check_symmetric(self) -> None:
        """Compare up to the square root of the type's precision, relative to the diagonal."""
        matrices = self._matrices
        largest = matrices.diagonal(dim1=1, dim2=2).abs().amax(1)[:, None, None]
        allowed = largest * math.sqrt(torch.finfo(matrices.dtype).eps)
        strips = (matrices.tensor_split(self._strips, dim=axis) for axis in (1, 2))
        if not all(bool(((rows - columns.mT).abs() <= allowed).all()) for rows, columns in zip(*strips, strict=True)):
            raise ValuesError("the covariance is not symmetric", where=self._where, fix="(C + C^T) / 2, of E[x x^T]")

    def _check_tensor(self, tensor: Tensor, labels: Sequence[str]) -> None:
        check_axes(tensor, labels)
        sizes = dict(zip(labels, tensor.shape, strict=True))
        axes = zip((*self.batch, *self.labels), self.covariance.shape, strict=False)
        wrong = [label for label, size in axes if sizes.get(label) != size]
        if wrong:
            fact = f"a tensor does not fit the metric in {', '.join(map(repr, wrong))}"
            raise ValuesError(fact, tensor=_listed(labels, tensor.shape), metric=self._where)

    @property
    def _where(self) -> str:
        return _listed((*self.batch, *self.labels), self.covariance.shape)


def _check_shapes(
    labels: tuple[str, ...],
    covariance: Tensor,
    batch: tuple[str, ...],
    outputs: tuple[str, ...],
    *,
    cross: Tensor | None,
    power: float | None,
) -> int:
    """Compare labels, shapes and types; arguments as of `Metric`. Returns d. Raises ValuesError: they do not agree."""
    axes, shape = (*batch, *labels), tuple(covariance.shape)
    sizes = shape[len(batch) : len(axes)]
    if not labels or len(set(axes)) < len(axes):
        raise ValuesError("a metric needs labels, each once", labels=labels, batch=batch)
    if set(outputs) & set(labels) or not set(batch) <= set(outputs):
        raise ValuesError("the outputs are not the kernel's other labels", outputs=outputs, metric=axes)
    for name, tensor in (("the covariance", covariance), ("cross", cross)):
        if tensor is not None and tensor.dtype not in (torch.float64, torch.float32):
            raise ValuesError(f"{name} is {tensor.dtype}", needed="float64 or float32")
    if shape != (*shape[: len(axes)], *sizes) or len(sizes) < len(labels) or 0 in shape:
        needed = "one axis for each batch label, then the sizes of the labels twice, none of them 0"
        words = {"labels": " ".join(labels), "batch": " ".join(batch) or None}
        raise ValuesError(f"the covariance has shape {shape}", **words, needed=needed)
    if (cross is None) != (power is None):
        raise ValuesError("cross and power are given together", cross=cross is not None, power=power)
    if cross is not None:
        sizes_of_cross = dict(zip((*outputs, *labels), cross.shape, strict=False))
        wrong = any(sizes_of_cross.get(label) != size for label, size in zip(axes, shape, strict=False))
        if wrong or cross.ndim != len(outputs) + len(labels) or 0 in cross.shape:
            fact = f"cross has shape {tuple(cross.shape)}"
            raise ValuesError(fact, axes=" ".join((*outputs, *labels)), sizes=_listed(axes, shape))
    return prod(sizes)


def _listed(labels: Sequence[str], sizes: Sequence[int]) -> str:
    return " ".join(f"{label}={size}" for label, size in zip(labels, sizes, strict=False))
