"""From a tree of joins and views to a program."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby

from ..nodes import Conv
from ..sizes import window
from .arranging import UNKNOWN, Value
from .finishing import biased, scaled
from .operations import (
    Arrange,
    Axes,
    Axis,
    ChannelsLast,
    Convolve,
    Multiply,
    Pad,
    Product,
    Rename,
    Repeat,
    labels_in,
)
from .problem import Problem
from .programs import Program, Style
from .search import Search, Tree
from .viewing import Viewing


def lower(
    problem: Problem,
    search: Search,
    tree: Tree,
    style: Style,
    *,
    channels_last_inputs: bool = False,
    bias: str | None = None,
    format_kept: bool = False,
) -> Program:
    """The program of one tree.

    Args:
        search: the one that found the tree.
        channels_last_inputs: whether inputs of 4 or 5 axes come in that memory format.
        bias: the open label along which the vector `bias` is added.
        format_kept: whether the value lies in the memory format of the inputs.
    """
    return _Lowering(problem, search, tree, style, channels_last_inputs, bias).program(format_kept=format_kept)


class _Lowering(Viewing):
    """Joins, and the whole."""

    def program(self, *, format_kept: bool) -> Program:
        fixed = [(label, power) for label, power in self.problem.sized if label not in self.moving]
        for label, power in fixed:
            self.factor *= float(self.sizes[label]) ** power
        sized = tuple(pair for pair in self.problem.sized if pair[0] in self.moving)
        value = self.lower(self.tree)
        units = self.problem.units
        value = self.arranged(value, tuple(() if label in units else (label,) for label in self.problem.output))
        if format_kept:
            value = self.in_format(value, last=self.channels_last_inputs)
        if units:
            self.add(Rename(value.number, tuple((label,) for label in self.problem.output)))
        operations = scaled(self.operations, self.factor, sized, self.once, self.sizes)
        if self.bias is not None:
            operations = biased(operations, "bias", self.bias)
        return Program(
            tuple(operations),
            self.problem.inputs,
            self.sizes,
            self.moving,
            self.stored,
            self.patterns,
            self.style,
            self.tree,
        )

    def lower(self, tree: Tree) -> Value:
        match tree.step:
            case "leaf":
                return self.leaf(self.problem.leaves[tree.mask.bit_length() - 1], tree)
            case "pattern":
                return self.leaf(self.pattern_leaf(tree), tree)
            case "view":
                value = self.view(tree, self.lower(tree.parts[0]))
            case _:
                value = self._join(tree)
        return self.summed_over(value, self.names(self.search.live(tree.mask)))

    def _join(self, tree: Tree) -> Value:
        left, right = (self.lower(part) for part in tree.parts)
        live = self.names(self.search.live(tree.mask))
        nodes = [self.problem.views[number - len(self.problem.leaves)] for number in tree.views]
        windows = [node for node in nodes if isinstance(node, Conv)]
        if windows:
            return self._convolved(left, right, windows, live, transposed=tree.transposed)
        with_inputs = [bool(part.mask & self.search.inputs) for part in tree.parts]
        if with_inputs[1] and not with_inputs[0]:
            left, right = right, left
        shared = [label for label in left.labels if label in right.labels]
        summed = tuple(label for label in shared if label not in live)
        groups = tuple(label for label in shared if label in live)
        new = tuple(label for label in right.labels if label not in shared)
        if not summed:
            return self._multiplied(left, right, groups, new)
        if any(with_inputs) and not all(with_inputs):
            _, spatial = self.positions(left, shared, ())
            if spatial and (groups or self.style.pointwise == "convolution"):
                return self._convolved(left, right, [], live, transposed=False)
            if not groups:
                return self._linear(left, right, summed, new)
        return self._batched(left, right, groups, summed, new)

    def _multiplied(self, left: Value, right: Value, groups: Axis, new: Axis) -> Value:
        """Element by element; labels of the right one alone stand after the shared ones."""
        place = max((n for n, axis in enumerate(left.axes) if set(axis) & set(groups)), default=len(left.axes) - 1)
        if new and place >= 0 and len(left.axes[place]) > 1:
            left = self.arranged(left, tuple((label,) for label in left.labels))
            place = max((n for n, axis in enumerate(left.axes) if set(axis) & set(groups)), default=len(left.axes) - 1)
        if any(set(axis) & set(groups) and not set(axis) <= set(groups) for axis in left.axes):
            left = self.arranged(left, tuple((label,) for label in left.labels))
            place = max((n for n, axis in enumerate(left.axes) if set(axis) & set(groups)), default=len(left.axes) - 1)
        news = tuple((label,) for label in new)
        one = (*left.axes[: place + 1], *(() for _ in new), *left.axes[place + 1 :])
        axes = (*left.axes[: place + 1], *news, *left.axes[place + 1 :])
        other = tuple(axis if set(axis) <= {*groups, *new} else () for axis in axes)
        while other and not other[0]:  # torch repeats along missing leading axes by itself
            other = other[1:]
        left, right = self.arranged(left, one), self.arranged(right, other)
        if not self.lies(left, left.labels) and not new:
            return self.add(Multiply(left.number, right.number, axes), left.order)
        return self.add(Multiply(left.number, right.number, axes))

    def _linear(self, left: Value, right: Value, summed: Axis, new: Axis) -> Value:
        """Channels contracted by a matrix product, wherever they stand."""
        axes = split_apart(left.axes, summed)
        channels = next((n for n, axis in enumerate(axes) if set(axis) & set(summed)))
        batch = tuple(axis for axis in axes[:channels] if not set(axis) & set(summed))
        rest = tuple(axis for axis in axes[channels:] if not set(axis) & set(summed))
        plain = self.lies(left, left.labels)
        if (
            rest
            and plain
            and self.style.memory_format == "contiguous"
            and len(batch) < 2
            and sum(map(bool, batch)) == len(batch)
        ):
            left = self.arranged(left, (*batch, summed, labels_in(rest)))
            right = self.arranged(right, (new, summed), order=(*new, *summed))
            return self.add(Product(right.number, left.number, (*batch, new, labels_in(rest)), summed, "above"))
        if rest and plain:
            rest = (labels_in(rest),)
        left = self._matrices(self.arranged(left, (*batch, *rest, summed)))
        right = self.arranged(right, (new, summed), order=(*new, *summed))
        return self.add(Product(left.number, right.number, (*batch, *rest, new), summed, "linear"))

    def _matrices(self, value: Value) -> Value:
        """A value as torch's matrix products take it without a copy, rows or columns first; else copied here."""
        *lead, rows, columns = ((), *value.axes) if len(value.axes) == 1 else value.axes
        turned = len(value.axes) < 4 and self.lies(value, labels_in([*lead, columns, rows]))
        if turned or self.lies(value, value.labels):
            return value
        return self.add(Arrange(value.number, value.axes, copies=True))

    def _batched(self, left: Value, right: Value, groups: Axis, summed: Axis, new: Axis) -> Value:
        own = tuple(label for label in left.labels if label not in groups and label not in summed)
        lead: Axes = (groups,) if groups else ()
        left = self._matrices(self.arranged(left, (*lead, own, summed)))
        right = self._matrices(self.arranged(right, (*lead, summed, new)))
        return self.add(Product(left.number, right.number, (*lead, own, new), summed, "batched"))

    def _convolved(
        self, left: Value, right: Value, windows: Sequence[Conv], live: Collection[str], *, transposed: bool
    ) -> Value:
        ends = {(node.y if transposed else node.x): node for node in windows}
        ks = {node.k for node in windows}
        shared = [label for label in left.labels if label in right.labels]
        groups = tuple(label for label in shared if label in live)
        summed = tuple(label for label in shared if label not in live)
        new = tuple(label for label in right.labels if label not in shared and label not in ks)
        batch, spatial = self.positions(left, shared, ends)
        if alike := self._alike(left, batch, shared):
            batch = tuple(label for label in batch if label not in alike)
            right = self._repeated(right, alike, new, summed, [node.k for node in windows])
            groups += alike
        while len(spatial) < (2 if self.style.memory_format == "channels_last" else 1):
            spatial.insert(0, ())
        nodes = [ends.get(axis[0]) if len(axis) == 1 else None for axis in spatial]
        left = self.arranged(left, (batch, groups + summed, *spatial))
        window_axes = tuple((node.k,) if node else () for node in nodes)
        kernel_axes = (groups + summed, new) if transposed else (groups + new, summed)
        lead, inner = kernel_axes
        plain = (*lead, *inner, *labels_in(window_axes))
        last = (*lead, *labels_in(window_axes), *inner)
        lies_last = self.style.memory_format == "channels_last"
        right = self.arranged(right, (*kernel_axes, *window_axes), order=last if lies_last else plain, last=lies_last)
        padding = [0] * len(spatial)
        before: list[tuple[str, int, int, str]] = []
        after: list[tuple[str, int, int, str]] = []
        extra = [0] * len(spatial)
        for number, node in enumerate(nodes):
            if node is None:
                continue
            numbers = window(node)
            low, high = numbers["low"], numbers["high"]
            if transposed:
                padding[number], extra[number], crop = self._overlap(node)
                if crop != (0, 0):
                    after.append((node.x, *crop, "zeros"))
            elif low == high >= 0 and node.mode == "zeros":
                padding[number] = low
            else:
                before.append((node.x, low, high, str(node.mode)))
        left = self.padded(left, before)
        left, is_last = self.in_memory(left)
        if lies_last and not self.lies(right, last):
            right = self.add(ChannelsLast(right.number, right.axes), last)
        primes = {x: self.primed(x, -low - high) for x, low, high, _ in after}
        done = tuple(
            ((primes.get(node.x, node.x) if transposed else node.y),) if node else axis
            for axis, node in zip(spatial, nodes, strict=True)
        )
        axes = (batch, groups + new, *done)
        unit = [{"stride": 1, "dilation": 1} if node is None else window(node) for node in nodes]
        value = self.add(
            Convolve(
                left.number,
                right.number,
                axes,
                groups,
                summed,
                new,
                window_axes,
                tuple(one["stride"] for one in unit),
                tuple(padding),
                tuple(one["dilation"] for one in unit),
                transposed,
                tuple(extra),
            ),
            labels_in([batch, *done, groups + new]) if is_last else None,
        )
        return self._cropped(value, after)

    def _alike(self, value: Value, batch: Axis, shared: Sequence[str]) -> Axis:
        """Of a kernel without channels: labels on whose every value it acts alike, taken for groups.

        A depthwise convolution with the kernel repeated is far faster than one of single channels in a long batch.
        """
        if any(self.counts(label) for label in shared):
            return ()
        first = next((axis for axis in value.axes if set(axis) & set(batch)), ())
        return tuple(label for label in batch if label not in first and label not in self.moving)

    def _repeated(self, kernel: Value, groups: Axis, new: Axis, summed: Axis, window: Sequence[str]) -> Value:
        inner: Axes = (*((new,) if new else ()), *((summed,) if summed else ()), *((k,) for k in window))
        kernel = self.arranged(kernel, ((), *inner))
        return self.add(Repeat(kernel.number, (groups, *inner)), UNKNOWN)

    def _overlap(self, node: Conv) -> tuple[int, int, tuple[int, int]]:
        """Of a transposed window torch's padding and output_padding, and what is still to add (or cut) at both ends."""
        numbers = window(node)
        reach = numbers["stride"] * (self.sizes[node.y] - 1) + numbers["dilation"] * (self.sizes[node.k] - 1) + 1
        padding = max(numbers["low"], 0)
        if reach - 2 * padding < 1:
            padding = 0
        front = padding - numbers["low"]
        rest = self.sizes[node.x] - front - (reach - 2 * padding)
        if 0 <= rest < max(numbers["stride"], numbers["dilation"]):
            return padding, rest, (front, 0)
        return padding, 0, (front, rest)

    def _cropped(self, value: Value, ends: Sequence[tuple[str, int, int, str]]) -> Value:
        """Positions added to or cut from a transposed convolution: its labels lose their prime."""
        pads = {x + "'": (low, high) for x, low, high, _ in ends}
        if not pads:
            return value
        amounts = tuple(pads.get(axis[0], (0, 0)) if len(axis) == 1 else (0, 0) for axis in value.axes[2:])
        axes = tuple(tuple(label[:-1] if label in pads else label for label in axis) for axis in value.axes)
        order = tuple(label[:-1] if label in pads else label for label in value.order)
        return self.add(Pad(value.number, axes, amounts), order)


def split_apart(axes: Axes, labels: Collection[str]) -> Axes:
    """The same labels, those of `labels` and the others on axes of their own."""
    runs = (tuple(run) for axis in axes for _, run in groupby(axis, key=labels.__contains__))
    return tuple(runs)
