"""A program: a lowered network as a list of operations, the work of each, and how joins become calls of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Literal

from .bases import basis_work
from .computation import Leaf
from .cost import FORMATS, Format, Workload, filter_work, pooling_work, transform_work
from .operations import (
    ApplyBasis,
    Arrange,
    Axes,
    Convolve,
    Crop,
    Diagonal,
    Filter,
    Inverse,
    Load,
    Matmul,
    Operation,
    Pool,
    Rename,
    Repeat,
    Toeplitz,
    Transform,
    TransformKernel,
    Unfold,
    is_complex,
    labels_in,
    shape_in,
    transform_sizes,
)


def work_of(operation: Operation, values: Sequence[Axes], sizes: Mapping[str, int]) -> Workload:
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
            longest = max((sizes[label] for label in labels_in(operation.window)), default=1)
            return Workload("convolution", multiply_adds, read, written, groups, summed, new, window=longest)
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

    @cached_property
    def nominal_works(self) -> list[tuple[Workload, bool]]:
        """The work of every operation at the nominal sizes, and whether it depends on weights alone."""
        return self.works(self.sizes)

    def works(self, sizes: Mapping[str, int]) -> list[tuple[Workload, bool]]:
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
