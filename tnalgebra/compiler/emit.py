"""From a program to torch code: a plain `torch.fx` graph of ordinary torch calls on inputs and weights.

The code reads sizes that may differ from call to call from its tensors, so that it does not depend on the nominal sizes
or on a device.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from . import operations as ops
from .bases import apply_basis
from .labelled_graph import LabelledGraph
from .operations import Axes, labels_in
from .packing import packed_call
from .program import Program
from .transforms import Points, convolve_each, inverse_transform, transform, transform_kernel

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_POOLINGS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def emit(
    program: Program,
    *,
    wanted: Sequence[int] | None = None,
    supplied: Mapping[int, str] | None = None,
    packed: Collection[int] = (),
) -> fx.GraphModule:
    """The code of a program.

    Args:
        wanted: positions of the values to return as a tuple; by default the last value alone is returned.
        supplied: names of values that are arguments of the code instead of being computed, by their position.
        packed: positions of kernels that the code takes in oneDNN's order of elements.

    Returns:
        A module whose arguments are the inputs in their order, weights and dense patterns, then the `supplied` values.
    """
    return _Emitter(program, supplied or {}, packed).module(wanted)


def argument_names(
    program: Program, supplied: Mapping[int, str] | None = None, *, wanted: Sequence[int] | None = None
) -> tuple[str, ...]:
    """The arguments of the code after the inputs: the loaded tensors that it needs, then the `supplied` values."""
    needed = needed_values(program, [len(program.operations) - 1] if wanted is None else wanted, supplied or {})
    loads = [program.operations[n] for n in sorted(needed)]
    names = [load.name for load in loads if isinstance(load, ops.Load) and load.kind != "input"]
    return (*dict.fromkeys(names), *(supplied or {}).values())


def needed_values(program: Program, wanted: Collection[int], supplied: Mapping[int, str]) -> set[int]:
    """Positions of the values that have to be computed or loaded for the wanted ones."""
    needed: set[int] = set()
    open_ = [number for number in wanted if number not in supplied]
    while open_:
        number = open_.pop()
        if number not in needed:
            needed.add(number)
            open_ += [source for source in program.operations[number].sources if source not in supplied]
    return needed


class _Emitter(LabelledGraph):
    def __init__(self, program: Program, supplied: Mapping[int, str], packed: Collection[int]) -> None:
        super().__init__(program)
        self.supplied, self.packed = supplied, packed
        self.shared: set[fx.Node] = set()  # values that several steps take, or that are returned

    def module(self, wanted: Sequence[int] | None) -> fx.GraphModule:
        last = len(self.program.operations) - 1
        needed = needed_values(self.program, [last] if wanted is None else wanted, self.supplied)
        placed = {name: self._argument(name) for name in (self.program.inputs if wanted is None else ())}
        names = argument_names(self.program, self.supplied, wanted=wanted)
        placed |= {name: self._argument(name) for name in names}
        for number, name in self.supplied.items():
            self.nodes[number] = placed[name]
            self.remember_sizes(number, self.program.operations[number].axes)
        uses = Counter(source for number in needed for source in self.program.operations[number].sources)
        uses.update(wanted or ())
        # sizes are read from the inputs first, because these are always arguments
        for number, operation in enumerate(self.program.operations):
            if isinstance(operation, ops.Load) and operation.name in placed and number not in self.nodes:
                self.nodes[number] = placed[operation.name]
                self.remember_sizes(number, operation.axes)
            elif isinstance(operation, ops.Rename) and self._is_tied(operation):
                self.nodes[number] = self.nodes[operation.source]
                self.remember_sizes(number, operation.axes)
        for number, operation in enumerate(self.program.operations):
            shows_sizes = isinstance(operation, ops.Rename) and operation.source in self.nodes
            if (number in needed or shows_sizes) and number not in self.nodes:
                taken = (self.nodes[source] for source in operation.sources)
                self.nodes[number] = _CALLS[type(operation)](self, operation, *taken)
                if uses[number] > 1:
                    self.shared.add(self.nodes[number])
                self.remember_sizes(number, operation.axes)
                if isinstance(operation, ops.Rename):
                    self.remember_fused(labels_in(self.axes_of(operation.source)), labels_in(operation.axes))
        self.graph.output(self.nodes[last] if wanted is None else tuple(self.nodes[number] for number in wanted))
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return fx.GraphModule(nn.Module(), self.graph)

    def _is_tied(self, operation: ops.Rename) -> bool:
        """Whether this is a tensor from outside again, under the labels of another occurrence."""
        source = self.program.operations[operation.source]
        is_whole = all(len(axis) == 1 for axis in (*source.axes, *operation.axes))
        return isinstance(source, ops.Load) and operation.source in self.nodes and is_whole

    def _argument(self, name: str) -> fx.Node:
        """An argument named after its tensor, unless Python or the code itself uses that name."""
        node = self.graph.create_node("placeholder", name, name=f"{name}_" if name in ("self", "None") else name)
        node.target = node.name  # else fx confuses X and x, as it writes names of its own in lower case
        return node

    def _channels_last(self, operation: ops.ChannelsLast, source: fx.Node) -> fx.Node:
        # not by memory_format=, which torch.func.vmap cannot follow
        axes = len(operation.axes)
        moved = self.graph.call_method("permute", (source, 0, *range(2, axes), 1))
        copied = self.graph.call_method("contiguous", (moved,))
        return self.graph.call_method("permute", (copied, 0, axes - 1, *range(1, axes - 1)))

    def _repeat(self, operation: ops.Repeat, source: fx.Node) -> fx.Node:
        count = self.total(operation.axes[0])
        return self.graph.call_method("expand", (source, count, *(-1 for _ in operation.axes[1:])))

    def _sum(self, operation: ops.SumAxes, source: fx.Node) -> fx.Node:
        gone = [n for n, axis in enumerate(self.axes_of(operation.source)) if axis not in operation.axes]
        return self.graph.call_method("sum", (source, gone))

    def _diagonal(self, operation: ops.Diagonal, source: fx.Node) -> fx.Node:
        return self.graph.call_function(torch.diagonal, (source, 0, operation.first, operation.second))

    def _product(self, operation: ops.Matmul, left: fx.Node, right: fx.Node, *bias: fx.Node) -> fx.Node:
        if operation.form == "linear":
            return self.graph.call_function(functional.linear, (left, right, *bias))
        column = [self.graph.call_method("unsqueeze", (one, 1)) for one in bias]
        if operation.form == "above" and len(self.axes_of(operation.right)) == 3:
            # torch.matmul would copy its right side if the left side requires gradients
            repeated = self.graph.call_method("expand", (left, self.total(operation.axes[0]), -1, -1))
            return self.graph.call_function(torch.baddbmm if bias else torch.bmm, (*column, repeated, right))
        function = torch.addmm if bias else torch.bmm if len(operation.axes) == 3 else torch.matmul
        return self.graph.call_function(function, (*column, left, right))

    def _convolution(self, operation: ops.Convolve, left: fx.Node, right: fx.Node, *bias: fx.Node) -> fx.Node:
        if operation.kernel in self.packed:
            return self.graph.call_function(*packed_call(operation, left, right, *bias))
        groups = self.total(operation.groups)
        right = self._plain_strides(operation.kernel, right, grouped=groups != 1)
        numbers = {
            "stride": (operation.stride, 1),
            "padding": (operation.padding, 0),
            "output_padding": (operation.extra if operation.transposed else (), 0),
            "dilation": (operation.dilation, 1),
        }
        keywords: dict[str, Any] = {
            name: _short(values) for name, (values, default) in numbers.items() if any(n != default for n in values)
        }
        if groups != 1:
            keywords["groups"] = groups
        functions = _TRANSPOSED if operation.transposed else _CONVOLUTIONS
        return self.graph.call_function(functions[len(operation.stride)], (left, right, *bias), keywords)

    def _plain_strides(self, number: int, kernel: fx.Node, *, grouped: bool) -> fx.Node:
        """A kernel whose axes of one element have the strides that they have in contiguous memory.

        Other strides can be those of channels_last as well, and torch would give the output that memory format. In
        channels_last, torch computes wrong numbers from a grouped kernel with other strides, without an error.
        """
        axes, style = self.axes_of(number), self.program.style
        units = any(axis and all(self.program.sizes[label] == 1 for label in axis) for axis in axes)
        if not units or self._is_plain(number) or (style.memory_format == "channels_last" and not grouped):
            return kernel
        flat = self.graph.call_method("flatten", (kernel,))
        return self.graph.call_function(torch.unflatten, (flat, 0, self.shape(axes)))

    def _is_plain(self, number: int) -> bool:
        """Whether the axes of a value are certain to have the strides of contiguous memory."""
        operation = self.program.operations[number]
        if isinstance(operation, ops.Rename | ops.Arrange):
            unmoved = labels_in(self.axes_of(operation.source)) == labels_in(operation.axes)
            return (unmoved or isinstance(operation, ops.Rename)) and self._is_plain(operation.source)
        return isinstance(operation, ops.Load | ops.Matmul)

    def _pad(self, operation: ops.Pad, source: fx.Node) -> fx.Node:
        pads = operation.pads
        keywords: dict[str, Any] = {}
        if operation.mode != "zeros":  # torch expects a pair for every axis of positions
            pads = ((0, 0),) * (len(operation.axes) - 2 - len(pads)) + pads
            keywords = {"mode": operation.mode}
        flat = [end for low_high in reversed(pads) for end in low_high]
        if operation.mode != "zeros" and len(operation.axes) == len(pads) + 1:  # torch takes an empty batch of two axes
            node = self.graph.call_method("unsqueeze", (source, 1))
            return self.graph.call_method(
                "squeeze", (self.graph.call_function(functional.pad, (node, flat), keywords), 1)
            )
        if operation.mode == "zeros" and any(low * high < 0 for low, high in pads):
            # torch cuts before it pads, and a short axis may have less to cut than the padding adds
            source = self.graph.call_function(functional.pad, (source, [max(end, 0) for end in flat]))
            flat = [min(end, 0) for end in flat]
        return self.graph.call_function(functional.pad, (source, flat), keywords)

    def _crop(self, operation: ops.Crop, source: fx.Node) -> fx.Node:
        ends = ((0, 0),) * (len(operation.axes) - len(operation.ends)) + operation.ends
        return self.indexed(source, [slice(low or None, -high or None) for low, high in ends])

    def _unfold(self, operation: ops.Unfold, source: fx.Node) -> fx.Node:
        reach = operation.dilation * (operation.size - 1) + 1
        node = self.graph.call_method("unfold", (source, operation.axis, reach, operation.stride))
        if operation.dilation > 1:
            index: Any = (Ellipsis, slice(None, None, operation.dilation))
            node = self.graph.call_function(operator.getitem, (node, index))
        return node

    def _toeplitz(self, operation: ops.Toeplitz, source: fx.Node) -> fx.Node:
        """Windows over the padded kernel, and y turned around: it begins at the high end of the kernel."""
        stride, dilation, low = operation.stride, operation.dilation, operation.low
        x, y = (self.total(operation.axes[place]) for place in (operation.x, operation.y))
        if dilation > 1:
            apart = self.graph.call_function(
                functional.pad, (self.graph.call_method("unsqueeze", (source, -1)), (0, dilation - 1))
            )
            source = self.graph.call_method("flatten", (apart, -2))
        reach = self.combined(self.combined(y, -1, operator.add), stride, operator.mul)  # of y, in steps of x
        ends = [self.combined(reach, max(-low, 0), operator.add), self.combined(x, max(low, 0), operator.add)]
        padded = self.graph.call_function(functional.pad, (source, ends))
        length = self.combined(reach, x, operator.add)
        node = self.graph.call_method("narrow", (padded, -1, max(low, 0), length))
        if operation.y == -2:
            node = self.graph.call_method("unfold", (node, -1, x, stride))
        else:
            node = self.graph.call_method("unfold", (node, -1, self.combined(reach, 1, operator.add), 1))
            if stride > 1:
                index: Any = (Ellipsis, slice(None, None, stride))
                node = self.graph.call_function(operator.getitem, (node, index))
        turned = self.graph.call_method("flip", (node, (operation.y,)))
        return self.graph.call_method("contiguous", (turned,))

    def _points(self, operation: ops.Transform | ops.Inverse | ops.Filter) -> list[Any]:
        """How axes are transformed, with the sizes of circles as they are at the call."""
        sizes: list[Any] = [self.size(circle) if circle else None for circle in operation.circles]
        pairs = zip(operation.points, sizes, strict=True)
        return [one if size is None else Points(size, *one[1:]) for one, size in pairs]

    def _transform(self, operation: ops.Transform, source: fx.Node) -> fx.Node:
        return self.graph.call_function(transform, (source, self._points(operation)))

    def _transform_kernel(self, operation: ops.TransformKernel, source: fx.Node) -> fx.Node:
        pairs = zip(operation.circles, operation.lengths, strict=True)
        lengths = [self.size(circle) if circle else length for circle, length in pairs]
        names = ("dilation", "shifts", "turned")
        keywords = {name: getattr(operation, name) for name in names}
        return self.graph.call_function(transform_kernel, (source, lengths), keywords)

    def _inverse(self, operation: ops.Inverse, source: fx.Node, like: fx.Node) -> fx.Node:
        kept = self.graph.call_function(inverse_transform, (source, like, self._points(operation)))
        return self.graph.call_method("contiguous", (kept,))

    def _filter(self, operation: ops.Filter, source: fx.Node, spectrum: fx.Node) -> fx.Node:
        arguments = (source, spectrum, self._points(operation))
        return self.graph.call_function(convolve_each, arguments, {"tile": operation.tile})

    def _apply_basis(self, operation: ops.ApplyBasis, source: fx.Node) -> fx.Node:
        place, sizes = operation.place, self.program.sizes
        arguments = (source, operation.basis, place, prod(sizes[label] for label in operation.axes[place]))
        return self.graph.call_function(apply_basis, arguments, {"transposed": operation.transposed})

    def _pool(self, operation: ops.Pool, source: fx.Node) -> fx.Node:
        keywords: dict[str, Any] = {"stride": _short(operation.stride)}
        if any(operation.padding):
            keywords["padding"] = _short(operation.padding)
        function = _POOLINGS[len(operation.kernel)]
        return self.graph.call_function(function, (source, _short(operation.kernel)), keywords)

    def _add(self, operation: ops.Add, source: fx.Node, vector: fx.Node) -> fx.Node:
        units: Axes = (operation.axes[operation.axis], *(() for _ in operation.axes[operation.axis + 1 :]))
        taken = self.with_units(vector, units) if len(units) > 1 else vector
        return self.graph.call_function(operator.add, (source, taken))

    def _plus(self, operation: ops.Plus, left: fx.Node, right: fx.Node) -> fx.Node:
        if self.axes_of(operation.left) == self.axes_of(operation.right):
            for product, other in ((right, left), (left, right)):
                added = self._product_plus(operation, product, other)
                if added is not None:
                    return added
        return self.graph.call_function(torch.add, (left, right))

    def _product_plus(self, operation: ops.Plus, product: fx.Node, other: fx.Node) -> fx.Node | None:
        """A matrix product that nothing else takes, added to another value by the call that computes it."""
        axes = len(operation.axes)
        if (
            product.target not in (torch.matmul, torch.bmm, functional.linear)
            or product in self.shared
            or product.users
        ):
            return None
        left, right, *bias = product.args
        if bias or axes not in (2, 3) or (axes == 3) != (product.target == torch.bmm):
            return None
        if product.target == functional.linear:
            right = self.graph.call_method("t", (right,))
        return self.graph.call_function(torch.baddbmm if axes == 3 else torch.addmm, (other, left, right))

    def _scale(self, operation: ops.Scale, node: fx.Node) -> fx.Node:
        if operation.factor != 1:
            node = self.graph.call_function(operator.mul, (node, operation.factor))
        for label, power in operation.sized:
            function = operator.mul if power > 0 else operator.truediv
            node = self.graph.call_function(function, (node, self.size(label)))
        return node


_CALLS: dict[type[ops.Operation], Callable[..., fx.Node]] = {
    ops.Rename: lambda _emitter, _operation, source: source,
    ops.Arrange: _Emitter.arrange,
    ops.ChannelsLast: _Emitter._channels_last,
    ops.Repeat: _Emitter._repeat,
    ops.SumAxes: _Emitter._sum,
    ops.Diagonal: _Emitter._diagonal,
    ops.Multiply: lambda emitter, _operation, *sides: emitter.graph.call_function(operator.mul, sides),
    ops.Matmul: _Emitter._product,
    ops.Convolve: _Emitter._convolution,
    ops.Pad: _Emitter._pad,
    ops.Crop: _Emitter._crop,
    ops.Unfold: _Emitter._unfold,
    ops.Toeplitz: _Emitter._toeplitz,
    ops.Transform: _Emitter._transform,
    ops.TransformKernel: _Emitter._transform_kernel,
    ops.Inverse: _Emitter._inverse,
    ops.Filter: _Emitter._filter,
    ops.ApplyBasis: _Emitter._apply_basis,
    ops.Pool: _Emitter._pool,
    ops.Add: _Emitter._add,
    ops.Plus: _Emitter._plus,
    ops.Concatenate: lambda emitter, one, *parts: emitter.graph.call_function(torch.cat, (parts, one.axis)),
    ops.Scale: _Emitter._scale,
}
"""How each operation is emitted, from the operation and the nodes of its operands."""


def _short(numbers: Sequence[int]) -> int | tuple[int, ...]:
    """One number instead of equal numbers for all axes."""
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)
