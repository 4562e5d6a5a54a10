"""Graphs of torch code whose values have labelled axes: sizes at the call, and axes in other orders and groups."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import fx

from . import operations as ops
from .operations import Axes, Axis, labels_in
from .program import Program

SizeNode: TypeAlias = "int | fx.Node"


class LabelledGraph:
    """The graph of a program's code.

    nodes: of the values, by their position in the program.
    size_nodes: what reads the size of a label from a tensor at the call.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.size_nodes: dict[str, fx.Node] = {}

    # Sizes ---------------------------------------------------------------------------------------------------------

    def remember_sizes(self, number: int, axes: Axes) -> None:
        for place, axis in enumerate(axes):
            if len(axis) == 1 and axis[0] in self.program.moving and axis[0] not in self.size_nodes:
                with self.graph.inserting_after(self.nodes[number]):
                    node = self.graph.call_method("size", (self.nodes[number], place))
                self.size_nodes[axis[0]] = node

    def remember_fused(self, before: Axis, after: Axis) -> None:
        """Compute the size of a label that shares its axis with others after a reshape."""
        moving = self.program.moving - self.size_nodes.keys()
        gone, new = [a for a in before if a not in after], [a for a in after if a not in before]
        unknown = [label for label in new if label in moving]
        if len(unknown) == 1 and not moving & {*gone}:
            total, others = self.total(gone), self.total([label for label in new if label not in unknown])
            node = total if others == 1 else self.graph.call_function(operator.floordiv, (total, others))
            assert isinstance(node, fx.Node)
            self.size_nodes[unknown[0]] = node

    def size(self, label: str) -> SizeNode:
        """The size of a label: a number, or a node that reads it from a tensor at the call."""
        return self.size_nodes[label] if label in self.program.moving else self.program.sizes[label]

    def shape(self, axes: Axes) -> list[SizeNode]:
        """The shape of some axes, with -1 for the size that may differ from call to call, if there is only one."""
        moving = [n for n, axis in enumerate(axes) if any(label in self.program.moving for label in axis)]
        return [-1 if moving == [n] else self.total(axis) for n, axis in enumerate(axes)]

    def total(self, labels: Sequence[str]) -> SizeNode:
        """The product of the sizes of labels."""
        total: SizeNode = 1
        for label in labels:
            one = self.size(label)
            if isinstance(total, int) and isinstance(one, int):
                total *= one
            elif total == 1:
                total = one
            else:
                total = self.graph.call_function(operator.mul, (total, one))
        return total

    def axes_of(self, number: int) -> Axes:
        return self.program.operations[number].axes

    def combined(self, one: SizeNode, other: SizeNode, function: Callable[[Any, Any], Any]) -> SizeNode:
        """A function of two sizes, computed at once where both are numbers."""
        if isinstance(one, int) and isinstance(other, int):
            return int(function(one, other))
        if other == {operator.add: 0, operator.mul: 1}.get(function):
            return one
        return self.graph.call_function(function, (one, other))

    # Axes ----------------------------------------------------------------------------------------------------------

    def arrange(self, operation: ops.Arrange, node: fx.Node) -> fx.Node:
        before, after = self.axes_of(operation.source), operation.axes
        if before == after:
            return self.graph.call_method("contiguous", (node,)) if operation.copies else node
        real_before, real_after = [a for a in before if a], [a for a in after if a]
        if sorted(real_before) == sorted(real_after):
            return self._moved(node, before, after, last=operation.last)
        target = labels_in(after)
        singles = tuple((label,) for label in labels_in(before))
        if before != singles and labels_in(before) != target:
            node = self.reshaped(node, singles)
            before = singles
        if labels_in(before) != target:
            order = [before.index((label,)) for label in target if (label,) in before]
            order += [n for n in range(len(before)) if n not in order]  # axes of one element, which are removed
            if order != sorted(order):
                node = self.graph.call_method("permute", (node, *order))
            before = tuple(before[number] for number in order)
        return node if before == after else self._regrouped(node, before, after)

    def _regrouped(self, node: fx.Node, before: Axes, after: Axes) -> fx.Node:
        """The same labels in the same order on other axes."""
        start, end = _common(before, after), _common(before[::-1], after[::-1])
        old, new = before[start : len(before) - end], after[start : len(after) - end]
        if len(new) == 1 and len(old) > 1:
            return self.graph.call_method("flatten", (node, start, start + len(old) - 1))
        return self.reshaped(node, after)  # and not unflatten, after which torch's older ONNX exporter fixes all sizes

    def _moved(self, node: fx.Node, before: Axes, after: Axes, *, last: bool) -> fx.Node:
        """Whole axes in another order; axes of one element are added or removed."""
        real = [axis for axis in before if axis]
        if len(real) < len(before) and before != after:
            if [axis for axis in after if axis] == real:
                return self.reshaped(node, after)
            node = self.reshaped(node, tuple(real))
        wanted = [axis for axis in after if axis]
        if last and len(wanted) < len(after) and after[1]:
            return self._kernel_in_channels_last(node, real, after)
        if wanted != real:
            node = self.graph.call_method("permute", (node, *(real.index(axis) for axis in wanted)))
        if len(wanted) < len(after):
            node = self.with_units(node, after)
        return node

    def _kernel_in_channels_last(self, node: fx.Node, before: Sequence[Axis], after: Axes) -> fx.Node:
        """A kernel in channels_last whose window axes of one element have the strides of that memory format.

        Indexing with None gives a new axis the stride of the axis behind it times its size. So each is inserted before
        the axis that is next in memory, and is moved to its place afterwards.
        """
        units = [n for n, axis in enumerate(after) if not axis]
        faster = {n: next((axis for axis in after[n + 1 :] if axis), after[1]) for n in units}
        index: list[Any] = []
        places: list[Axis | int] = []
        for axis in before:
            here = [n for n in units if faster[n] == axis]
            index += [None for _ in here] + [slice(None)]
            places += [*here, axis]
        node = self.graph.call_function(operator.getitem, (node, tuple(index)))
        order = [places.index(axis or n) for n, axis in enumerate(after)]
        return node if order == sorted(order) else self.graph.call_method("permute", (node, *order))

    def reshaped(self, node: fx.Node, axes: Axes) -> fx.Node:
        return self.graph.call_method("reshape", (node, *(self.shape(axes) if axes else ((),))))

    def with_units(self, node: fx.Node, axes: Axes) -> fx.Node:
        """Insert axes of one element by indexing, which does not need the other sizes."""
        return self.indexed(node, [slice(None) if axis else None for axis in axes])

    def indexed(self, node: fx.Node, index: list[Any]) -> fx.Node:
        while index and index[-1] == slice(None):
            index = index[:-1]
        return self.graph.call_function(operator.getitem, (node, tuple(index)))


def _common(one: Axes, other: Axes) -> int:
    """The number of leading axes that two different values have in common."""
    return next(n for n, (a, b) in enumerate(zip((*one, None), (*other, None), strict=False)) if a != b)
