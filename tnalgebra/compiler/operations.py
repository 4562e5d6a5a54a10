"""The operations of a program: those of torch, on values with labelled axes.

A value is a tensor whose axes each hold a group of labels in row-major order: ("g", "in") is one axis of g*in elements,
() is an axis of one element. So labels are fused or split without a copy as long as they are adjacent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, ClassVar, Literal, TypeAlias

from .transforms import Points

Axis: TypeAlias = tuple[str, ...]
Axes: TypeAlias = tuple[Axis, ...]
_Sizes: TypeAlias = Mapping[str, int]
Pads: TypeAlias = tuple[tuple[int, int], ...]
"""(low, high) for each axis of positions; negative numbers crop."""


def labels_in(axes: Sequence[Axis]) -> tuple[str, ...]:
    """The labels of all axes, in their order."""
    return tuple(label for axis in axes for label in axis)


def shape_in(axes: Sequence[Axis], sizes: _Sizes) -> tuple[int, ...]:
    """The shape of a value with these axes."""
    return tuple(prod(sizes[label] for label in axis) for axis in axes)


class Operation:
    """One step of a program.

    axes: the axes of its value.
    takes: the names of the fields that hold the position of an operand, those of several, or None.
    """

    axes: Axes
    takes: ClassVar[tuple[str, ...]] = ()

    @cached_property
    def sources(self) -> tuple[int, ...]:
        """The positions of its operands."""
        numbers = (getattr(self, name) for name in self.takes)
        several = (number if isinstance(number, tuple) else (number,) for number in numbers if number is not None)
        return tuple(number for some in several for number in some)


@dataclass(frozen=True)
class Load(Operation):
    """A tensor from outside: an input, a weight, or a dense pattern."""

    name: str
    axes: Axes
    kind: str


@dataclass(frozen=True)
class Unary(Operation):
    """A step with one operand."""

    source: int
    axes: Axes
    takes: ClassVar[tuple[str, ...]] = ("source",)


@dataclass(frozen=True)
class Arrange(Unary):
    """The same elements with the labels on other axes: a permutation and a reshape.

    copies: whether the elements are copied into new memory.
    last: whether the value is a kernel in channels_last, whose axes of one element need the strides of that format;
        with other strides grouped convolutions of torch 2.15 on CPUs are wrong, and their gradients fail.
    """

    copies: bool
    last: bool = False


class Rename(Unary):
    """The same tensor under other labels, such as a `Fuse` of adjacent labels."""


class ChannelsLast(Unary):
    """The value in torch's memory format channels_last; it has 4 or 5 axes."""


class Repeat(Unary):
    """The first axis, of one element, is repeated for all values of its new labels."""


class SumAxes(Unary):
    """The sum over the axes that the value does not have."""


@dataclass(frozen=True)
class Diagonal(Unary):
    """The diagonal of two axes with the same label, as the last axis."""

    first: int
    second: int


@dataclass(frozen=True)
class Multiply(Operation):
    """The elementwise product; axes of one element are broadcast."""

    left: int
    right: int
    axes: Axes
    takes: ClassVar[tuple[str, ...]] = ("left", "right")


@dataclass(frozen=True)
class Matmul(Operation):
    """Matrix products of shapes (batch, left, summed) and (batch, summed, right), or without the batch axis.

    form: "batched" is the one above. In "linear" the left side has any axes before the summed one, the right side has
        shape (right, summed). In "above" the left side is one matrix (left, summed) that multiplies every matrix of the
        right side. To both a bias may be added, of an element for each row of the weight.
    """

    left: int
    right: int
    axes: Axes
    summed: Axis
    form: Literal["linear", "batched", "above"]
    bias: int | None = None
    takes: ClassVar[tuple[str, ...]] = ("left", "right", "bias")


@dataclass(frozen=True)
class Convolve(Operation):
    """A convolution of torch: an input (batch, groups*in, positions ...) with a kernel (groups*out, in, window ...).

    A transposed one has a kernel (groups*in, out, window ...), and adds `extra` positions at the high ends
    (output_padding). The bias has one element for each channel.
    """

    source: int
    kernel: int
    axes: Axes
    groups: Axis
    summed: Axis
    new: Axis
    window: Axes
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool = False
    extra: tuple[int, ...] = ()
    bias: int | None = None
    takes: ClassVar[tuple[str, ...]] = ("source", "kernel", "bias")

    @property
    def is_depthwise(self) -> bool:
        """Whether each group has one channel in and one channel out."""
        return bool(self.groups) and not self.summed and not self.new


@dataclass(frozen=True)
class Pad(Unary):
    """More positions, or fewer, at the ends of the last axes: one pair of `pads` for each of them."""

    pads: Pads
    mode: str = "zeros"


@dataclass(frozen=True)
class Crop(Unary):
    """Fewer positions at the ends of the last axes, in the same memory: (low, high) to leave out, for each of them."""

    ends: Pads


@dataclass(frozen=True)
class Unfold(Unary):
    """Windows along one axis: x becomes y, and the elements k of the window become the last axis."""

    axis: int
    size: int
    stride: int
    dilation: int


@dataclass(frozen=True)
class Toeplitz(Unary):
    """A kernel as matrices, on the last two axes: element [x, y] is k = (x + low - stride*y) / dilation of the kernel.

    It is 0 where the kernel has no such element.

    x, y: the places of these two axes, -2 and -1 or the other way round.
    """

    x: int
    y: int
    stride: int
    dilation: int
    low: int


@dataclass(frozen=True)
class Transform(Unary):
    """Fourier transforms of blocks of an input along its last axes; the labels of frequencies end in ~.

    circles: for each of these axes the label whose size is the number of points, or "".
    """

    points: tuple[Points, ...]
    circles: tuple[str, ...]


@dataclass(frozen=True)
class TransformKernel(Unary):
    """The Fourier transforms of a kernel along its last axes, with the arguments of `transform_kernel`.

    circles: as of a `Transform`.
    """

    lengths: tuple[int, ...]
    circles: tuple[str, ...]
    dilation: tuple[int, ...]
    shifts: tuple[int, ...]
    turned: bool


@dataclass(frozen=True)
class Inverse(Operation):
    """The inverse transforms of blocks of an input, which is `like`, along the last axes."""

    source: int
    like: int
    axes: Axes
    points: tuple[Points, ...]
    circles: tuple[str, ...]
    takes: ClassVar[tuple[str, ...]] = ("source", "like")


@dataclass(frozen=True)
class Filter(Operation):
    """A kernel for each channel, by transforms of the input, an elementwise product, and transforms back.

    spectrum: of the kernel.
    tile: the number of elements of the input that are transformed at a time.
    """

    source: int
    spectrum: int
    axes: Axes
    points: tuple[Points, ...]
    circles: tuple[str, ...]
    tile: int
    takes: ClassVar[tuple[str, ...]] = ("source", "spectrum")


def is_complex(axes: Sequence[Axis]) -> bool:
    """Whether a value has complex numbers, because one of its labels is that of frequencies."""
    return any(label.endswith("~") for label in labels_in(axes))


@dataclass(frozen=True)
class ApplyBasis(Unary):
    """The product with an orthonormal basis along one axis by a fast transform, as of `apply_basis`.

    place: the number of the axis.
    transposed: whether the label before is that of the rows of the basis.
    """

    basis: str
    place: int
    transposed: bool


@dataclass(frozen=True)
class Pool(Unary):
    """The mean over windows along the last axes."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]


@dataclass(frozen=True)
class Add(Operation):
    """A vector added along one axis."""

    source: int
    vector: int
    axes: Axes
    axis: int
    takes: ClassVar[tuple[str, ...]] = ("source", "vector")


@dataclass(frozen=True)
class Plus(Operation):
    """The sum of two values with the same labels, such as two terms of a sum; axes of one element are broadcast."""

    left: int
    right: int
    axes: Axes
    takes: ClassVar[tuple[str, ...]] = ("left", "right")


@dataclass(frozen=True)
class Concatenate(Operation):
    """Values next to each other along one axis."""

    parts: tuple[int, ...]
    axes: Axes
    axis: int
    takes: ClassVar[tuple[str, ...]] = ("parts",)


@dataclass(frozen=True)
class Scale(Unary):
    """The value times a factor, and times (+1) or divided by (-1) sizes that are known only at the call."""

    factor: float
    sized: tuple[tuple[str, int], ...]


def renumber(operation: Any, number: Callable[[int], int]) -> Any:
    """The operation with the positions of its operands replaced."""
    taken = {name: getattr(operation, name) for name in operation.takes}
    new = {n: number(n) for n in operation.sources}
    if all(one == other for one, other in new.items()):
        return operation
    changed = {
        name: tuple(new[one] for one in n) if isinstance(n, tuple) else new[n]
        for name, n in taken.items()
        if n is not None
    }
    return replace(operation, **changed)


def used_operations(operations: Sequence[Operation], others: Collection[int] = ()) -> tuple[Operation, ...]:
    """The operations that the last one depends on, and the tensors that are loaded, with their new positions.

    Args:
        others: positions of further operations that are kept.
    """
    used = {n for n, one in enumerate(operations) if isinstance(one, Load)} | {len(operations) - 1, *others}
    for number in reversed(range(len(operations))):
        if number in used:
            used |= {*operations[number].sources}
    places = {number: place for place, number in enumerate(sorted(used))}
    return tuple(renumber(operations[number], places.__getitem__) for number in places)


def transform_sizes(points: Sequence[Points], sizes: Sequence[int]) -> tuple[int, int]:
    """The number of points of one transform along axes of these sizes, and the number of blocks."""
    lengths = [size if one.is_circle else one.length for one, size in zip(points, sizes, strict=True)]
    return prod(lengths), prod(one.blocks(size) for one, size in zip(points, sizes, strict=True))
