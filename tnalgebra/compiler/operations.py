"""A program: a lowered network as a list of torch operations on values with labelled axes, and the work of each.

A value is a tensor whose axes each hold a group of labels in row-major order: ("g", "in") is one axis of g*in elements,
() is an axis of one element. So labels are fused or split without a copy as long as they are adjacent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, ClassVar, Literal, TypeAlias

from .bases import basis_work
from .computation import Leaf
from .cost import FORMATS, Format, Workload, filter_work, pooling_work, transform_work
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

    @property
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


def work_of(operation: Operation, values: Sequence[Axes], sizes: _Sizes) -> Workload:
    """The work of one operation; `values` are the axes of every value of the program."""

    def count(labels: Sequence[str] | set[str]) -> int:
        return prod(sizes[label] for label in labels)

    def moved(axes: Axes) -> int:
        return count(labels_in(axes)) * (2 if is_complex(axes) else 1)

    def transformed(axes: Axes) -> tuple[int, int]:
        """The number of points of a transform, about, and the number of transforms."""
        inside = [is_complex((axis,)) for axis in axes]
        half = [axis for axis, frequencies in zip(axes, inside, strict=True) if frequencies]
        rest = [axis for axis, frequencies in zip(axes, inside, strict=True) if not frequencies]
        return 2 * count(labels_in(half)), count(labels_in(rest))

    written = moved(operation.axes)
    read = sum(moved(values[source]) for source in operation.sources)
    match operation:
        case Load() | Rename() | Repeat() | Diagonal() | Unfold() | Crop() | Arrange(copies=False):
            return Workload("view")
        case Matmul():
            one, other = ({*labels_in(values[number])} for number in (operation.left, operation.right))
            summed = count(operation.summed)
            groups, left, right = map(count, (one & other - {*operation.summed}, one - other, other - one))
            filled = 0 if operation.bias is None else written
            read = sum(moved(values[number]) for number in (operation.left, operation.right))
            multiply_adds = groups * left * right * summed * (4 if is_complex(operation.axes) else 1)
            return Workload("product", multiply_adds, read, written, groups, summed, right, left, filled)
        case Convolve():
            parts = (operation.groups, operation.summed, operation.new, labels_in(operation.window))
            groups, summed, new, window = map(count, parts)
            batch, _, *positions = values[operation.source] if operation.transposed else operation.axes
            multiply_adds = count((*batch, *labels_in(positions))) * groups * summed * new * window
            return Workload("convolution", multiply_adds, read, written, groups, summed, new)
        case Transform() | TransformKernel():
            points, blocks = transformed(operation.axes)
            return transform_work(read, written, points, points * blocks)
        case Inverse():
            points, blocks = transformed(values[operation.source])
            return transform_work(moved(values[operation.source]), written, points, points * blocks)
        case Filter():
            source, spectrum = values[operation.source], values[operation.spectrum]
            rows = len(operation.points)
            points, counts = transform_sizes(operation.points, shape_in(source[-rows:], sizes))
            forth, back = (counts * count(labels_in(axes[:-rows])) for axes in (source, operation.axes))
            return filter_work((moved(source), moved(spectrum), written), points, (forth, back))
        case ApplyBasis():
            return basis_work(operation.basis, count(operation.axes[operation.place]), written)
        case Pool():
            return pooling_work(read, written, prod(operation.kernel))
        case _:
            return Workload("pointwise", read=read, written=written)


@dataclass(frozen=True)
class Style:
    """How joins become calls.

    memory_format: the format of the operands of convolutions; "contiguous" leaves every tensor as it is.
    pointwise: whether channels are contracted by a 1x1 convolution or by a matrix product, where there is no window.
    """

    memory_format: Format = "contiguous"
    pointwise: Literal["convolution", "product"] = "convolution"

    def __str__(self) -> str:
        return f"{self.memory_format}, 1x1 by {'matrix products' if self.pointwise == 'product' else 'convolutions'}"


STYLES = tuple(Style(layout, pointwise) for layout in FORMATS for pointwise in ("convolution", "product"))


@dataclass(frozen=True)
class Program:
    """A network as a list of operations.

    operations: the steps in order; each refers to its operands by their position.
    inputs: names, in the order of the call.
    sizes: the nominal size of every label of any value.
    moving: labels whose size may differ from call to call.
    patterns: reserved nodes that the program takes as dense tensors.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    sizes: Mapping[str, int]
    moving: frozenset[str]
    patterns: tuple[Leaf, ...]
    style: Style

    def works(self, sizes: _Sizes) -> list[tuple[Workload, bool]]:
        """The work of every operation at some sizes, and whether it depends on weights alone at these sizes."""
        axes = [operation.axes for operation in self.operations]
        works = [work_of(operation, axes, sizes) for operation in self.operations]
        return list(zip(works, replace(self, moving=frozenset()).weights_only, strict=True))

    @cached_property
    def weights_only(self) -> list[bool]:
        """For every value whether it does not depend on an input."""
        flags: list[bool] = []
        for operation in self.operations:
            is_input = isinstance(operation, Load) and operation.kind == "input"
            if isinstance(operation, Repeat | Toeplitz | TransformKernel):  # its shape may follow from the inputs
                sized = operation.axes[-2:] if isinstance(operation, Toeplitz) else operation.axes
                is_input = not self.moving.isdisjoint(labels_in(sized))
            flags.append(not is_input and all(flags[source] for source in operation.sources))
        return flags

    @property
    def has_sized_weights(self) -> bool:
        """Whether the value of a step follows from weights and the sizes of the inputs: a Toeplitz
        matrix, or the transform of a kernel on a circle."""
        return self.weights_only != replace(self, moving=frozenset()).weights_only

    @property
    def text(self) -> str:
        """A text that is equal for programs that call the same functions of torch."""
        return repr(self.operations)
