"""The norm that matters to a layer: how far its output moves over its real inputs when its kernel changes.

A covariance of d coupled values is a d x d matrix: for 512 input channels and a 3 x 3 window d = 4608, which is 162 MiB
in float64 and 81 MiB in float32. Its Cholesky factor is as large in float64, and is never kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from ..errors import ValuesError, explain
from ..tensors import check_axes, scaled

_BLOCK = 2**22
"""Elements of a covariance that are looked at, or brought to another type, at once: 32 MiB in float64."""


@dataclass(frozen=True, eq=False)
class Metric:
    """The layer's expected output error as a quadratic form of D = K - K~, the error of its kernel.

    E||(K - K~) x||^2 = sum_out D[out, i] C[i, j] D[out, j], i and j over all values of `labels` together.

    Attributes:
        labels: the coupled labels of the kernel, such as ("in", "kh", "kw"), or ("in",) of a linear layer.
        covariance: C = E[x x^T], shape (*batch sizes, *sizes, *sizes), float64 or float32; element [i, j] is the
            mean product of the inputs that K[out, i] and K[out, j] are multiplied with. Symmetric, positive definite.
        batch: ("out",) where each output channel has a covariance of its own (grouped convolutions), otherwise ().
        cross: B = E[y x^T], shape (*outputs sizes, *sizes): y is the wanted output. With it a fit comes near
            B C^-1, the kernel of the least E||y - K~ x||^2, and no longer near the kernel itself.
        power: E||y||^2, summed over the outputs; given with `cross`.
        outputs: labels of the leading axes of `cross`. Several where the output label was `split`.

    Raises:
        ValuesError: shapes or types are not as above, a value is not finite, or the covariance is not symmetric or
            not positive definite (then `with_ridge` makes it so).
    """

    labels: tuple[str, ...]
    covariance: Tensor
    batch: tuple[str, ...] = ()
    cross: Tensor | None = None
    power: float | None = None
    outputs: tuple[str, ...] = ("out",)

    def __post_init__(self) -> None:
        _checked_size(
            self.labels,
            self.covariance,
            batch=self.batch,
            outputs=self.outputs,
            cross=self.cross,
            power=self.power,
        )
        self._check_numbers()
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
        """The metric of a covariance that may be singular, made definite by a ridge on its diagonal.

        The ridge is that of white noise of variance v = ridge * trace(C) / d on every input (trace / d is the mean
        of the diagonal; over all output channels where each has its own covariance). The noise goes through both
        networks: C + v 1, B + v K and E||y||^2 + v ||K||^2. So where the inputs say nothing a fit to `cross` stays
        at K, and where both networks have the same inputs, B = K C, its target is K whatever the ridge.

        Args:
            labels, covariance, batch, cross, power, outputs: as of `Metric`; none of them is changed.
            ridge: relative to the mean of the diagonal, at least 0; 1e-4 is usual.
            kernel: K, axes as those of `cross`; needed with it.

        Raises:
            ValuesError: see `Metric`; the ridge is negative or not finite; `cross` without `kernel`.
        """
        if not (math.isfinite(ridge) and ridge >= 0):
            raise ValuesError(explain(f"a ridge of {ridge!r}", needed="a finite number, at least 0, such as 1e-4"))
        size = _checked_size(labels, covariance, batch=batch, outputs=outputs, cross=cross, power=power)
        with torch.no_grad():
            matrices = covariance.detach().reshape(-1, size, size).clone()
            diagonal = matrices.diagonal(dim1=1, dim2=2)
            noise = ridge * float(diagonal.double().mean())
            diagonal += noise
            if cross is not None:
                if kernel is None or kernel.shape != cross.shape:
                    given = "nothing" if kernel is None else f"shape {tuple(kernel.shape)}"
                    raise ValuesError(
                        explain("a ridge with cross needs the kernel", kernel=given, needed=f"{tuple(cross.shape)}")
                    )
                assert power is not None
                own = kernel.detach().to(cross)
                cross = cross + noise * own
                power += noise * float(own.double().square().sum())
        return cls(labels, matrices.reshape(covariance.shape), batch, cross, power, outputs)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of `labels`."""
        return tuple(self.covariance.shape[len(self.batch) : len(self.batch) + len(self.labels)])

    @property
    def _size(self) -> int:
        return prod(self.sizes)

    def _matrices(self) -> Tensor:
        """The covariance as a batch of matrices, shape (b, d, d); b is 1 without batch labels."""
        return self.covariance.reshape(-1, self._size, self._size)

    def factor(self) -> Tensor:
        """Cholesky's factor M of the covariance, C = M M^T, computed again at each call.

        Returns:
            Shape (*batch sizes, d, d), float64, lower triangular; d is the product of the sizes of `labels`.
        """
        factors = list(self._factors())
        whole = factors[0] if len(factors) == 1 else torch.cat(factors)
        return whole.reshape(*self.covariance.shape[: len(self.batch)], self._size, self._size)

    def target(self, kernel: Tensor, labels: Sequence[str]) -> Tensor:
        """What a fit is to come near: the kernel itself, or B C^-1 where there is a `cross`.

        Args:
            kernel: axes `labels`, the metric's own and those of the outputs among them.
            labels: of the axes of the kernel and of the result.

        Returns:
            The kernel as it is, or a float64 tensor of its shape.

        Raises:
            ValuesError: the kernel does not fit the metric.
        """
        self._check_tensor(kernel, labels)
        if self.cross is None:
            return kernel
        own = (*self.outputs, *self.labels)
        if set(own) != set(labels):
            raise ValuesError(explain("the kernel has other labels than the metric", kernel=labels, metric=own))
        wanted = self._rows(self.cross.double(), own)
        solved = torch.cat(
            [
                torch.cholesky_solve(rows.mT, factor).mT
                for factor, rows in zip(self._factors(), wanted.tensor_split(self._parts), strict=True)
            ]
        )
        target = self._unrows(solved, own, self.cross.shape).permute([own.index(label) for label in labels])
        if target.shape != kernel.shape:
            raise ValuesError(
                explain(
                    f"the kernel has shape {tuple(kernel.shape)}", labels=" ".join(labels), needed=tuple(target.shape)
                )
            )
        return target

    def weighted(self, tensor: Tensor, labels: Sequence[str]) -> Tensor:
        """A tensor contracted with the covariance over the metric's labels: T C.

        Args:
            tensor: axes `labels`: those of the metric, its batch labels, and any others.
            labels: of the axes of the tensor and of the result.

        Returns:
            Shape of the tensor, in the larger of the two types; element [out, j] is sum_i T[out, i] C[i, j].

        Raises:
            ValuesError: the tensor does not fit the metric.
        """
        self._check_tensor(tensor, labels)
        rows, matrices = self._rows(tensor, labels), self._matrices()
        dtype = torch.promote_types(tensor.dtype, matrices.dtype)
        rows = rows.to(dtype)
        # no second covariance in the other type: that would be the largest tensor of all
        parts = min(self._size, -(-matrices.numel() // _BLOCK))
        product = torch.cat([rows @ part.to(dtype) for part in matrices.tensor_split(parts, dim=2)], dim=2)
        return self._unrows(product, labels, tensor.shape)

    def squared(self, difference: Tensor, labels: Sequence[str]) -> float:
        """E||D x||^2 = sum_out D[out, i] C[i, j] D[out, j], summed in float64; not negative.

        Args:
            difference: D = K - K~, axes `labels`.
            labels: of the metric, its batch labels, and any others, which are summed over.

        Raises:
            ValuesError: the difference does not fit the metric, is empty, or is not finite.
        """
        number, scale = scaled(difference, what="the difference")
        return self._squared(number, labels) * scale * scale

    def relative(self, difference: Tensor, kernel: Tensor, labels: Sequence[str]) -> float:
        """sqrt(E||D x||^2 / E||K x||^2): the error of the layer's output, relative to its root mean square.

        Returns:
            0 if both are 0, infinity if only the kernel's is.

        Raises:
            ValuesError: see `squared`.
        """
        (number, scale), (whole, whole_scale) = scaled(difference, what="the difference"), scaled(kernel)
        above, below = self._squared(number, labels), self._squared(whole, labels)
        return above and (math.sqrt(above / below) * (scale / whole_scale) if below else math.inf)

    def output_error(self, approximation: Tensor, labels: Sequence[str]) -> float:
        """sqrt(E||y - K~ x||^2 / E||y||^2): how far the layer is from the wanted output.

        Args:
            approximation: K~, axes `labels`.
            labels: the metric's own and those of the outputs, in any order.

        Raises:
            ValuesError: the metric has no `cross`; the approximation does not fit it.
        """
        if self.cross is None or self.power is None:
            raise ValuesError(explain("the metric has no output", needed="cross and power", have="the covariance"))
        # B C^-1 leaves power - <B C^-1, B>, and any other kernel its distance from B C^-1 more
        best = self.target(approximation, labels).double()
        own = self.cross.permute([(*self.outputs, *self.labels).index(label) for label in labels]).double()
        left = max(0.0, self.power - float((best * own).sum())) + self.squared(approximation.double() - best, labels)
        return left and (math.sqrt(left / self.power) if self.power else math.inf)

    def renamed(self, names: Mapping[str, str]) -> Metric:
        """The same metric of a kernel with other labels."""
        return replace(
            self,
            labels=tuple(names[label] for label in self.labels),
            batch=tuple(names[label] for label in self.batch),
            outputs=tuple(names[label] for label in self.outputs),
        )

    def split(self, label: str, parts: Sequence[str], sizes: Mapping[str, int]) -> Metric:
        """The same metric of a kernel one of whose labels was split, as `Fuse[label *parts]` splits it.

        Args:
            label: coupled, or of the output.
            parts: at least one new label; the last of them runs fastest: index = part1 * size(part2) + part2.
            sizes: of the parts, and of any other labels.

        Raises:
            ValuesError: the metric has no such label, it has one of the parts already, a size is missing or the
                sizes do not give that of the label.
        """
        new, known = tuple(parts), {*self.labels, *self.batch, *self.outputs}
        if label not in known:
            raise ValuesError(explain(f"the metric has no label {label!r}", labels=" ".join(sorted(known))))
        twice = sorted(part for part in new if part in known - {label} or new.count(part) > 1)
        missing = [part for part in new if part not in sizes]
        if not new or twice or missing:
            raise ValuesError(
                explain(
                    f"label {label!r} cannot be split into {' '.join(new) or 'nothing'}",
                    there_already=" ".join(twice) or None,
                    no_size=" ".join(missing) or None,
                )
            )
        lengths = tuple(sizes[part] for part in new)

        def split_axes(tensor: Tensor, labels: Sequence[str]) -> Tensor:
            for axis in sorted((axis for axis, other in enumerate(labels) if other == label), reverse=True):
                if tensor.shape[axis] != prod(lengths):
                    whole = " ".join(f"{part}={sizes[part]}" for part in new)
                    raise ValuesError(explain(f"{label!r} has size {tensor.shape[axis]}", parts=whole))
                tensor = tensor.reshape(*tensor.shape[:axis], *lengths, *tensor.shape[axis + 1 :])
            return tensor

        def renamed(labels: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name for other in labels for name in (new if other == label else (other,)))

        return replace(
            self,
            labels=renamed(self.labels),
            covariance=split_axes(self.covariance, (*self.batch, *self.labels, *self.labels)),
            batch=renamed(self.batch),
            cross=None if self.cross is None else split_axes(self.cross, (*self.outputs, *self.labels)),
            outputs=renamed(self.outputs),
        )

    def _squared(self, number: Tensor, labels: Sequence[str]) -> float:
        # rounding may leave a hair below zero
        return max(0.0, float((self.weighted(number, labels) * number).sum()))

    def _rows(self, tensor: Tensor, labels: Sequence[str]) -> Tensor:
        """The tensor as a batch of matrices, shape (b, others, d)."""
        others = [label for label in labels if label not in (*self.batch, *self.labels)]
        order = [list(labels).index(label) for label in (*self.batch, *others, *self.labels)]
        batch = prod(self.covariance.shape[: len(self.batch)])
        return tensor.permute(order).reshape(batch, -1, self._size)

    def _unrows(self, rows: Tensor, labels: Sequence[str], shape: Sequence[int]) -> Tensor:
        """The inverse of `_rows` for a tensor of that shape."""
        others = [label for label in labels if label not in (*self.batch, *self.labels)]
        ordered = [*self.batch, *others, *self.labels]
        tensor = rows.reshape([shape[list(labels).index(label)] for label in ordered])
        return tensor.permute([ordered.index(label) for label in labels])

    @property
    def _parts(self) -> int:
        """Into how many the batch is cut, to be factored one after the other."""
        batch = self.covariance.numel() // self._size**2
        return min(batch, -(-self.covariance.numel() // _BLOCK))

    def _factors(self) -> Iterator[Tensor]:
        """Cholesky factors in float64, shapes (b, d, d), of parts of the batch. Raises ValuesError: not definite."""
        # a pivot, relative to its diagonal element, that rounding of the covariance and of the factor explains
        least = max(4 * torch.finfo(self.covariance.dtype).eps, self._size * torch.finfo(torch.float64).eps)
        for part in self._matrices().detach().tensor_split(self._parts):
            factor, failed = torch.linalg.cholesky_ex(part.double())
            pivots = factor.diagonal(dim1=1, dim2=2).square()
            if bool(failed.any()) or not bool((pivots > least * part.diagonal(dim1=1, dim2=2)).all()):
                raise ValuesError(
                    explain(
                        "the covariance is singular: some combination of the inputs is always 0, to rounding",
                        where=self._where(),
                        fix="Metric.with_ridge(..., ridge=1e-4), or more calibration inputs than it has rows",
                    )
                )
            yield factor

    def _check_numbers(self) -> None:
        for name, tensor in (("the covariance", self.covariance), ("cross", self.cross)):
            if tensor is not None and not bool(tensor.isfinite().all()):
                raise ValuesError(explain(f"{name} holds NaN or infinity", shape=tuple(tensor.shape)))
        if self.power is not None and not (math.isfinite(self.power) and self.power >= 0):
            raise ValuesError(explain(f"the power is {self.power}", needed="E||y||^2, at least 0"))

    def _check_symmetric(self) -> None:
        """Up to the square root of the type's precision, relative to the diagonal."""
        matrices = self._matrices().detach()
        largest = matrices.diagonal(dim1=1, dim2=2).abs().amax(1)[:, None, None]
        allowed = largest * math.sqrt(torch.finfo(matrices.dtype).eps)
        rows = max(1, _BLOCK // (len(matrices) * self._size))
        for start in range(0, self._size, rows):
            part = slice(start, start + rows)
            if not bool(((matrices[:, part] - matrices[:, :, part].mT).abs() <= allowed).all()):
                raise ValuesError(
                    explain("the covariance is not symmetric", where=self._where(), fix="(C + C^T) / 2, of E[x x^T]")
                )

    def _check_tensor(self, tensor: Tensor, labels: Sequence[str]) -> None:
        check_axes(tensor, labels)
        named = dict(zip(labels, tensor.shape, strict=True))
        own = dict(zip((*self.batch, *self.labels), self.covariance.shape, strict=False))
        wrong = [label for label, size in own.items() if named.get(label) != size]
        if wrong:
            raise ValuesError(
                explain(
                    f"a tensor does not fit the metric in {', '.join(map(repr, wrong))}",
                    tensor=" ".join(f"{label}={size}" for label, size in named.items()),
                    metric=self._where(),
                )
            )

    def _where(self) -> str:
        return _listed((*self.batch, *self.labels), self.covariance.shape)


def _checked_size(
    labels: tuple[str, ...],
    covariance: Tensor,
    *,
    batch: tuple[str, ...],
    outputs: tuple[str, ...],
    cross: Tensor | None,
    power: float | None,
) -> int:
    """The number of coupled values; arguments as of `Metric`. Raises ValuesError: labels and shapes do not agree."""
    own = (*batch, *labels)
    if not labels or len(set(own)) < len(own):
        raise ValuesError(explain("a metric needs labels, each once", labels=labels, batch=batch))
    if set(outputs) & set(labels) or not set(batch) <= set(outputs):
        raise ValuesError(explain("the outputs are not the kernel's other labels", outputs=outputs, metric=own))
    if covariance.dtype not in (torch.float64, torch.float32):
        raise ValuesError(explain(f"the covariance is {covariance.dtype}", needed="float64 or float32"))
    shape, first, last = tuple(covariance.shape), len(batch), len(own)
    sizes = shape[first:last]
    if len(shape) != last + len(labels) or shape[last:] != sizes or 0 in shape:
        raise ValuesError(
            explain(
                f"the covariance has shape {shape}",
                labels=" ".join(labels),
                batch=" ".join(batch) or None,
                needed="one axis each batch label, then the sizes of the labels twice, none of them 0",
            )
        )
    if (cross is None) != (power is None):
        raise ValuesError(explain("cross and power are given together", cross=cross is not None, power=power))
    if cross is not None:
        there = dict(zip((*outputs, *labels), cross.shape, strict=False))
        wrong = any(there.get(label) != size for label, size in zip(own, shape, strict=False))
        if cross.ndim != len(outputs) + len(labels) or wrong or 0 in cross.shape:
            raise ValuesError(
                explain(
                    f"cross has shape {tuple(cross.shape)}",
                    axes=" ".join((*outputs, *labels)),
                    sizes=_listed(own, shape),
                )
            )
        if cross.dtype not in (torch.float64, torch.float32):
            raise ValuesError(explain(f"cross is {cross.dtype}", needed="float64 or float32"))
    return prod(sizes)


def _listed(labels: Sequence[str], sizes: Sequence[int]) -> str:
    return " ".join(f"{label}={size}" for label, size in zip(labels, sizes, strict=False))
