"""The steps of a compiled network, as data: what torch is asked to do, and how much work that is.

A value is a tensor whose axes each hold a group of labels, row-major (the last runs fastest): ("g", "in") is one axis
of g*in elements, () is an axis of one element. So fusing and splitting labels costs nothing where they stay together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

from .problem import Leaf
from .search import Tree

# operations: The steps of a compiled network, as data: what torch is asked to do, and how much work that is.


Axis: TypeAlias = tuple[str, ...]
Axes: TypeAlias = tuple[Axis, ...]
Sizes: TypeAlias = Mapping[str, int]
Pads: TypeAlias = tuple[tuple[int, int], ...]
"""(low, high) for each axis of positions; negative ones crop."""

WorkKind: TypeAlias = Literal["convolution", "product", "pointwise", "view"]


def labels_in(axes: Sequence[Axis]) -> tuple[str, ...]:
    """The labels of all axes, in their order."""
    return tuple(label for axis in axes for label in axis)


def shape_in(axes: Sequence[Axis], sizes: Sizes) -> tuple[int, ...]:
    """The shape of a value with these axes."""
    return tuple(prod(sizes[label] for label in axis) for axis in axes)


@dataclass(frozen=True)
class Work:
    """How much one step does.

    multiply_adds: of a convolution or a matrix product, as `torch.utils.flop_counter` counts them (half its flops).
    read, written: elements.
    groups, summed, new: of a convolution channels of each group, of a product columns and rows: its shape.
    filled: elements of a product's result that its bias is written into first; convolutions add theirs as they go.
    """

    kind: WorkKind
    multiply_adds: int = 0
    read: int = 0
    written: int = 0
    groups: int = 1
    summed: int = 1
    new: int = 1
    left: int = 1
    filled: int = 0


@dataclass(frozen=True)
class Load:
    """A tensor as it comes: an input, a weight, or a dense pattern. `order` says how a weight lies in memory."""

    name: str
    axes: Axes
    kind: str


@dataclass(frozen=True)
class Arrange:
    """The same elements with the labels on other axes: a permutation and a reshape. `copies` if memory moves.

    last: of a kernel that lies in channels_last: axes of one element get the strides of that format. Others mislead
        torch 2.15 on CPUs: grouped convolutions come out wrong, and gradients fail.
    """

    source: int
    axes: Axes
    copies: bool
    last: bool = False


@dataclass(frozen=True)
class Rename:
    """The same tensor under other labels: what a `Fuse` is where its parts lie side by side."""

    source: int
    axes: Axes


@dataclass(frozen=True)
class ChannelsLast:
    """A copy in torch's memory format channels_last (of 4 or 5 axes), unless it lies so already."""

    source: int
    axes: Axes


@dataclass(frozen=True)
class Repeat:
    """The same elements for every value of the labels of a new first axis, in place of one of one element."""

    source: int
    axes: Axes


@dataclass(frozen=True)
class Sum:
    """The sum over the axes that are gone."""

    source: int
    axes: Axes


@dataclass(frozen=True)
class Diagonal:
    """The diagonal of two axes with the same label, as the last axis."""

    source: int
    axes: Axes
    first: int
    second: int


@dataclass(frozen=True)
class Multiply:
    """The product element by element; an axis of one element of either is repeated."""

    left: int
    right: int
    axes: Axes


@dataclass(frozen=True)
class Product:
    """Matrix products (batch, left, summed) times (batch, summed, right); without a batch axis 2-d.

    As `linear`, the left one has any axes before the summed one, the right one is (right, summed), and a bias may be
    added. As `above`, the left is a matrix (left, summed) for every batch of the right.
    """

    left: int
    right: int
    axes: Axes
    summed: Axis
    form: Literal["linear", "batched", "above"]
    bias: int | None = None


@dataclass(frozen=True)
class Convolve:
    """torch's convolution: axes (batch, groups*in, positions ...) with a kernel (groups*out, in, window ...).

    Transposed: a kernel (groups*in, out, window ...), `extra` positions at the high ends (output_padding). The bias has
    one element for each channel.
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


@dataclass(frozen=True)
class Pad:
    """More positions, or fewer, at the ends of the last axes: one pair of `pads` for each of them."""

    source: int
    axes: Axes
    pads: Pads
    mode: str = "zeros"


@dataclass(frozen=True)
class Unfold:
    """Windows along one axis: x becomes y, and the elements k of the window become the last axis."""

    source: int
    axes: Axes
    axis: int
    size: int
    stride: int
    dilation: int


@dataclass(frozen=True)
class Pool:
    """The mean over windows along the last axes."""

    source: int
    axes: Axes
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]


@dataclass(frozen=True)
class Add:
    """A vector added along one axis."""

    source: int
    vector: int
    axes: Axes
    axis: int


@dataclass(frozen=True)
class Scale:
    """A factor, times or over sizes that are known only at the call."""

    source: int
    axes: Axes
    factor: float
    sized: tuple[tuple[str, int], ...]


Operation: TypeAlias = (
    Load
    | Arrange
    | Rename
    | ChannelsLast
    | Repeat
    | Sum
    | Diagonal
    | Multiply
    | Product
    | Convolve
    | Pad
    | Unfold
    | Pool
    | Add
    | Scale
)


def sources(operation: Operation) -> tuple[int, ...]:
    """The positions of the values an operation takes."""
    match operation:
        case Load():
            return ()
        case Multiply():
            return (operation.left, operation.right)
        case Product():
            return (operation.left, operation.right, *([] if operation.bias is None else [operation.bias]))
        case Convolve():
            return (operation.source, operation.kernel, *([] if operation.bias is None else [operation.bias]))
        case Add():
            return (operation.source, operation.vector)
        case _:
            return (operation.source,)


def work_of(operation: Operation, values: Sequence[Axes], sizes: Sizes) -> Work:
    """The work of one operation.

    Args:
        values: the axes of every value before it.
    """
    written = prod(shape_in(operation.axes, sizes))
    read = sum(prod(shape_in(values[source], sizes)) for source in sources(operation))
    match operation:
        case Load() | Rename() | Repeat() | Diagonal() | Unfold():
            return Work("view")
        case Arrange():
            return Work("pointwise", read=read, written=written) if operation.copies else Work("view")
        case Product():
            summed = prod(shape_in([operation.summed], sizes))
            one = set(labels_in(values[operation.left]))
            other = set(labels_in(values[operation.right]))
            groups, left, right = (
                prod(sizes[label] for label in labels)
                for labels in (one & other - {*operation.summed}, one - other, other - one)
            )
            count = groups * left * right * summed
            filled = 0 if operation.bias is None else written
            return Work("product", count, read, written, groups, summed, right, left, filled)
        case Convolve():
            groups, summed, new, window = (
                prod(sizes[label] for label in labels)
                for labels in (operation.groups, operation.summed, operation.new, labels_in(operation.window))
            )
            positions = shape_in(values[operation.source] if operation.transposed else operation.axes, sizes)
            count = positions[0] * prod(positions[2:]) * groups * summed * new * window
            return Work("convolution", count, read, written, groups, summed, new)
        case Pool():
            return Work("pointwise", read=written * prod(operation.kernel), written=written)
        case _:
            return Work("pointwise", read=read, written=written)


# programs: What a lowered network is: a list of torch's own operations on labelled axes, and in which style.


Format: TypeAlias = Literal["contiguous", "channels_last"]
Pointwise: TypeAlias = Literal["convolution", "product"]


@dataclass(frozen=True)
class Style:
    """How joins become calls.

    memory_format: that convolutions are brought into; "contiguous" leaves every tensor as it comes.
    pointwise: what contracts channels where no window is absorbed: a convolution with a window of one element, or
        a matrix product.
    """

    memory_format: Format = "contiguous"
    pointwise: Pointwise = "convolution"

    def __str__(self) -> str:
        return f"{self.memory_format}, 1x1 by {'matrix products' if self.pointwise == 'product' else 'convolutions'}"


STYLES = tuple(
    Style(layout, pointwise) for layout in ("contiguous", "channels_last") for pointwise in ("convolution", "product")
)


@dataclass(frozen=True)
class Program:
    """A network as a list of operations.

    operations: in order; each names the values it takes by their position.
    inputs: names, in the order of the call.
    sizes: of every label on any value, at the nominal sizes.
    moving: labels whose size may differ from call to call.
    stored: weight -> its labels in the order in which its elements lie best in memory.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    sizes: Mapping[str, int]
    moving: frozenset[str]
    stored: Mapping[str, tuple[str, ...]]
    patterns: tuple[Leaf, ...]
    style: Style
    tree: Tree

    @property
    def text(self) -> str:
        """Equal for programs that ask torch for the same."""
        return repr((self.operations, sorted(self.stored.items())))
