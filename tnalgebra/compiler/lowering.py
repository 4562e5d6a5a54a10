"""What is done to the whole value: a factor and a bias, put where they cost least."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from math import prod
from typing import Any

from ..network import Conv, Fuse, window
from .operations import (
    Add,
    Arrange,
    Axes,
    Axis,
    ChannelsLast,
    Convolve,
    Diagonal,
    Load,
    Multiply,
    Operation,
    Pad,
    Pool,
    Product,
    Program,
    Rename,
    Repeat,
    Scale,
    Sizes,
    Style,
    Sum,
    Unfold,
    labels_in,
    shape_in,
)
from .problem import Leaf, Problem, moving_labels
from .search import Search, Tree

# finishing: What is done to the whole value: a factor and a bias, put where they cost least.


NUMBERS = ("source", "left", "right", "kernel", "vector", "bias")
"""Fields of operations that name a value by its position."""


def inserted(operations: Sequence[Operation], place: int, new: Operation, *, passed: bool = False) -> list[Operation]:
    """The operations with a new one at `place`; those from there on move by one.

    Args:
        passed: whether what took the value before the new one takes the new one instead.
    """
    edge = place - 1 if passed else place
    after = [renumbered(operation, lambda n: n + 1 if n >= edge else n) for operation in operations[place:]]
    return [*operations[:place], new, *after]


def renumbered(operation: Operation, number: Callable[[int], int]) -> Operation:
    """The operation with the positions of the values it takes replaced."""
    changes: dict[str, Any] = {}
    for name in NUMBERS:
        value = getattr(operation, name, None)
        if isinstance(value, int):
            changes[name] = number(value)
    return replace(operation, **changes)


def scaled(
    operations: Sequence[Operation],
    factor: float,
    sized: Sequence[tuple[str, int]],
    once: Collection[str],
    sizes: Sizes,
) -> list[Operation]:
    """Times a factor, and sizes known at the call: on the smallest weight that stands once, else on the value.

    Args:
        once: names of tensors that stand once in the network.
    """
    if factor == 1 and not sized:
        return list(operations)
    loads = [
        (prod(shape_in(operation.axes, sizes)), number)
        for number, operation in enumerate(operations)
        if isinstance(operation, Load) and operation.kind != "input" and operation.name in once
    ]
    last = len(operations) - 1
    if sized or not loads:
        return [*operations, Scale(last, operations[last].axes, factor, tuple(sized))]
    place = min(loads)[1]
    scale = Scale(place, operations[place].axes, factor, ())
    return inserted(operations, place + 1, scale, passed=True)


def biased(operations: Sequence[Operation], name: str, label: str) -> list[Operation]:
    """A vector added along one label of the value: by the call that makes the label, if that can, else at the end."""
    load = Load(name, ((label,),), "weight")
    place = _adds_bias(operations, label)
    found = inserted(operations, 0, load)
    if place is None:
        axes = found[-1].axes
        return [*found, Add(len(found) - 1, 0, axes, axes.index((label,)))]
    call = found[place + 1]
    assert isinstance(call, Convolve | Product)
    found[place + 1] = replace(call, bias=0)
    return found


def _adds_bias(operations: Sequence[Operation], label: str) -> int | None:
    """The convolution or linear product whose channels are the label.

    Between it and the value are the same elements in another order at most.
    """
    number = len(operations) - 1
    axis: Axis = (label,)
    while True:
        operation = operations[number]
        match operation:
            case Arrange() | ChannelsLast() if axis in operations[operation.source].axes:
                number = operation.source
            case Rename():
                before = operations[operation.source].axes
                axis = before[operation.axes.index(axis)]
                number = operation.source
            case Convolve():
                return number if operation.axes[1] == axis else None
            case Product():
                return number if operation.form == "linear" and operation.axes[-1] == axis else None
            case _:
                return None


# arranging: Values with labelled axes, and the order in which their elements lie in memory.


UNKNOWN: tuple[str, ...] = ()
"""The memory order of overlapping windows: a copy comes before any reshape."""


@dataclass(frozen=True)
class Value:
    """What an operation makes.

    number: the operation's position.
    order: the labels in the order in which elements lie in memory, the last running fastest.
    """

    number: int
    axes: Axes
    order: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return labels_in(self.axes)


class Arranging:
    """The operations so far, and what puts labels on other axes.

    sizes: of all labels, those that padding makes among them.
    stored: weight -> the order in which it should lie in memory.
    once: tensors that stand once.
    factor: of the whole value, still to be applied.
    loaded: tensor -> its value.
    """

    def __init__(
        self, problem: Problem, search: Search, tree: Tree, style: Style, channels_last: bool, bias: str | None
    ) -> None:
        self.problem, self.search, self.tree, self.style, self.bias = problem, search, tree, style, bias
        self.channels_last_inputs = channels_last
        self.sizes = dict(problem.sizes)
        self.operations: list[Operation] = []
        self.stored: dict[str, tuple[str, ...]] = {}
        self.once = {leaf.name for leaf in problem.leaves if sum(leaf.name == o.name for o in problem.leaves) == 1}
        self.patterns = tuple(self.pattern_leaf(part) for part in _leaves(tree) if part.step == "pattern")
        self.moving = moving_labels(problem, self.patterns)
        self.factor = problem.factor
        self.loaded: dict[str, Value] = {}

    def pattern_leaf(self, tree: Tree) -> Leaf:
        number = tree.mask.bit_length() - 1 - len(self.problem.leaves)
        node = self.problem.views[number]
        taken = {leaf.name for leaf in self.problem.leaves}
        name = next(name for i in range(number, 10**6) if (name := f"pattern_of_view_{i}") not in taken)
        return Leaf(name, node.labels, "pattern", node)

    def add(self, operation: Operation, order: Iterable[str] | None = None) -> Value:
        self.operations.append(operation)
        own = labels_in(operation.axes) if order is None else tuple(order)
        return Value(len(self.operations) - 1, operation.axes, own)

    def summed_over(self, value: Value, live: Collection[str]) -> Value:
        """Sum the labels nobody needs; their axes hold nothing else, or are split first."""
        dead = [label for label in value.labels if label not in live]
        if not dead:
            return value
        if any(len(axis) > 1 and set(axis) & set(dead) for axis in value.axes):
            value = self.arranged(value, tuple((label,) for label in value.labels))
        kept = tuple(axis for axis in value.axes if not set(axis) & set(dead))
        if not any(self.counts(label) for label in dead):  # axes of one element stay, without a name
            axes = tuple(tuple(label for label in axis if label not in dead) for axis in value.axes)
            return self.add(Rename(value.number, axes), [label for label in value.order if label not in dead])
        order = tuple(label for label in value.order if label not in dead)
        return self.add(Sum(value.number, kept), order)

    def names(self, mask: int) -> set[str]:
        """The labels of a mask of the search."""
        return {label for label, bit in self.search.bits.items() if mask & bit}

    def arranged(self, value: Value, axes: Axes, *, order: tuple[str, ...] | None = None, last: bool = False) -> Value:
        """The value with its labels on these axes.

        Args:
            order: in which a weight's elements should lie in memory, if that is still free.
            last: whether it is a kernel that should lie in channels_last.
        """
        operation = self.operations[value.number]
        if isinstance(operation, Load) and operation.kind != "input" and operation.name in self.once:
            wanted = self.stored.setdefault(operation.name, order or labels_in(axes))
            value = replace(value, order=wanted)
        assert sorted(labels_in(axes)) == sorted(value.labels), (axes, value.axes)
        if axes == value.axes:
            return value
        whole = {axis for axis in value.axes if axis} == {axis for axis in axes if axis}
        if whole or all(self.is_run(value.order, axis) for axis in axes):
            return self.add(Arrange(value.number, axes, copies=False, last=last), value.order)
        return self.add(Arrange(value.number, axes, copies=True))

    def is_run(self, order: Sequence[str], axis: Axis) -> bool:
        real = [label for label in axis if self.counts(label)]
        return len(real) < 2 or run_of([label for label in order if self.counts(label)], real) is not None

    def counts(self, label: str) -> bool:
        """Whether a label can move anything: one of size 1 never does."""
        return self.sizes[label] != 1 or label in self.moving

    def lies(self, value: Value, order: Iterable[str]) -> bool:
        wanted = [label for label in order if self.counts(label)]
        return [label for label in value.order if self.counts(label)] == wanted

    def in_memory(self, value: Value) -> tuple[Value, bool]:
        """A value of axes (batch, channels, positions ...) as a convolution wants it; whether it is channels_last."""
        is_last = self.style.memory_format == "channels_last" or (
            self.lies(value, channels_last(value.axes)) and not self.lies(value, value.labels)
        )
        return self.in_format(value, last=is_last), is_last

    def in_format(self, value: Value, *, last: bool) -> Value:
        """A value in channels_last, if it has 4 or 5 axes, or contiguous."""
        if last and len(value.axes) in (4, 5):
            order = channels_last(value.axes)
            return value if self.lies(value, order) else self.add(ChannelsLast(value.number, value.axes), order)
        if self.lies(value, value.labels):
            return value
        return self.add(Arrange(value.number, value.axes, copies=True))

    def positions(self, value: Value, channels: Collection[str], xs: Collection[str]) -> tuple[Axis, list[Axis]]:
        """The labels of the batch axis, and the axes of positions: those windows move along, and idle ones."""
        with_channels = [n for n, axis in enumerate(value.axes) if set(axis) & set(channels)]
        with_windows = [n for n, axis in enumerate(value.axes) if set(axis) & set(xs)]
        last = max(with_channels) if with_channels else min(with_windows, default=len(value.axes)) - 1
        batch: list[str] = []
        spatial: list[Axis] = []
        late: list[Axis] = []
        for number, axis in enumerate(value.axes):
            idle = tuple(label for label in axis if label not in channels and label not in xs)
            moved = [(label,) for label in axis if label in xs]
            if number > last:
                spatial += [*([idle] if idle else []), *moved]
            else:
                batch += idle
                late += moved
        spatial += late
        while len(spatial) > 2:
            pair = next((n for n, (a, b) in enumerate(pairwise(spatial)) if not {*a, *b} & set(xs)), None)
            if pair is None:
                break
            spatial[pair : pair + 2] = [spatial[pair] + spatial[pair + 1]]
        while len(spatial) > 3:
            idle_axis = next(axis for axis in spatial if not set(axis) & set(xs))
            spatial.remove(idle_axis)
            batch += idle_axis
        return tuple(batch), spatial

    def padded(self, value: Value, ends: Sequence[tuple[str, int, int, str]]) -> Value:
        """Positions added to or cut from axes; their labels get a prime, for they have another size."""
        for step in ("reflect", "replicate", "circular", "crop", "zeros"):  # the whole axis is folded, not the rest
            pads: dict[str, tuple[int, int]] = {}
            for x, low, high, mode in ends:
                low, high = (min(low, 0), min(high, 0)) if step == "crop" else (max(low, 0), max(high, 0))
                if (low or high) and step in ("crop", mode):
                    pads[x] = (low, high)
            if pads:
                value = self._with_pads(value, pads, "zeros" if step == "crop" else step)
        return value

    def _with_pads(self, value: Value, pads: Mapping[str, tuple[int, int]], mode: str) -> Value:
        new = {}
        for label in value.labels:
            if plain_label(label) in pads:
                low, high = pads[plain_label(label)]
                new[label] = self.primed(label, low + high)
        axes = tuple(tuple(new.get(label, label) for label in axis) for axis in value.axes)
        first = min(n for n, axis in enumerate(value.axes) if set(axis) & new.keys())
        ends = tuple(
            pads.get(plain_label(axis[0]), (0, 0)) if len(axis) == 1 else (0, 0) for axis in value.axes[first:]
        )
        order = tuple(new.get(label, label) for label in value.order)
        if not self.lies(value, value.labels):
            # torch keeps channels_last but where it pads circularly, and makes all else contiguous, or nobody knows
            last = len(axes) in (4, 5) and self.lies(value, channels_last(value.axes))
            if mode == "circular" or (not last and min(min(pair) for pair in ends) >= 0):
                order = labels_in(axes)
            elif not last:
                order = UNKNOWN
        return self.add(Pad(value.number, axes, ends, mode), order)

    def primed(self, label: str, more: int) -> str:
        """The label of an axis with more positions (or fewer) than that of another."""
        self.sizes[label + "'"] = self.sizes[label] + more
        if label in self.moving:
            self.moving |= {label + "'"}
        return label + "'"


def _leaves(tree: Tree) -> list[Tree]:
    return [tree] if not tree.parts else [leaf for part in tree.parts for leaf in _leaves(part)]


def channels_last(axes: Axes) -> tuple[str, ...]:
    """The labels of axes (batch, channels, positions ...) in the order of that memory format."""
    batch, channels, *positions = axes
    return labels_in([batch, *positions, channels])


def plain_label(label: str) -> str:
    """A label without the primes that padding gave it."""
    return label.rstrip("'")


def run_of(labels: Sequence[str], part: Sequence[str]) -> int | None:
    """Where `part` stands in `labels` as a run; None if it does not."""
    count = len(part)
    return next((n for n in range(len(labels) - count + 1) if tuple(labels[n : n + count]) == tuple(part)), None)


# viewing: Lowering of tensors, reshapes and windows alone.


class Viewing(Arranging):
    """Leaves and views of a tree."""

    def leaf(self, leaf: Leaf, tree: Tree) -> Value:
        value = self.loaded.get(leaf.name)
        if value is None:
            names = tuple((label,) for label in leaf.labels)
            order = leaf.labels
            if leaf.kind == "input" and self.channels_last_inputs and len(names) in (4, 5):
                order = (leaf.labels[0], *leaf.labels[2:], leaf.labels[1])
            value = self.add(Load(leaf.name, names, leaf.kind), order)
            self.loaded[leaf.name] = value
        elif value.labels != leaf.labels:  # tied: the same tensor under other labels
            renames = (
                dict(zip(value.labels, leaf.labels, strict=True)) if len(set(value.labels)) == len(value.labels) else {}
            )
            order = tuple(renames.get(label, label) for label in value.order) if renames else leaf.labels
            value = self.add(Rename(value.number, tuple((label,) for label in leaf.labels)), order)
        while len(set(value.labels)) < len(value.labels):
            first, second = next(
                (i, j) for i, a in enumerate(value.labels) for j, b in enumerate(value.labels) if i < j and a == b
            )
            rest = [axis for number, axis in enumerate(value.axes) if number not in (first, second)]
            value = self.add(Diagonal(value.number, (*rest, value.axes[first]), first, second), UNKNOWN)
        live = self.names(self.search.live(tree.mask))
        return self.summed_over(value, live)

    def view(self, tree: Tree, value: Value) -> Value:
        """The windows or the reshape of a tree, applied to the value of what is below them."""
        views = [self.problem.views[number - len(self.problem.leaves)] for number in tree.views]
        live = self.names(self.search.live(tree.mask))
        first = views[0]
        if isinstance(first, Fuse):
            return self._fused(value, first)
        windows = [view for view in views if isinstance(view, Conv)]
        if any(one.k in live or one.dilation != 1 for one in windows):
            for one in windows:
                value = self._unfolded(value, one)
            return value
        return self._pooled(value, windows)

    def _fused(self, value: Value, fuse: Fuse) -> Value:
        if fuse.whole in value.labels:
            new = {fuse.whole: fuse.parts}
            axes = tuple(tuple(p for label in axis for p in new.get(label, (label,))) for axis in value.axes)
            order = tuple(p for label in value.order for p in new.get(label, (label,)))
            return self.add(Rename(value.number, axes), order)
        together = next((n for n, axis in enumerate(value.axes) if run_of(axis, fuse.parts) is not None), None)
        if together is None:
            rest = [tuple(label for label in axis if label not in fuse.parts) for axis in value.axes]
            place = next(n for n, axis in enumerate(value.axes) if set(axis) & set(fuse.parts))
            before = [axis for axis in rest[:place] if axis]
            after = [axis for axis in rest[place:] if axis]
            value = self.arranged(value, (*before, fuse.parts, *after))
        axes = tuple(joined(axis, fuse) for axis in value.axes)
        place_in_order = run_of(value.order, fuse.parts)
        order = UNKNOWN if place_in_order is None else joined(value.order, fuse)
        return self.add(Rename(value.number, axes), order)

    def _unfolded(self, value: Value, node: Conv) -> Value:
        numbers = window(node)
        others = tuple(tuple(label for label in axis if label != node.x) for axis in value.axes)
        others = tuple(axis for axis in others if axis)
        low, high = numbers["low"], numbers["high"]
        if node.mode != "zeros" and (low > 0 or high > 0):
            others = (labels_in(others),)
        value = self.arranged(value, (*others, (node.x,)))
        value = self.padded(value, [(node.x, low, high, str(node.mode))])
        return self.add(
            Unfold(
                value.number,
                (*others, (node.y,), (node.k,)),
                len(others),
                self.sizes[node.k],
                numbers["stride"],
                numbers["dilation"],
            ),
            UNKNOWN,
        )

    def _pooled(self, value: Value, windows: Sequence[Conv]) -> Value:
        xs = {node.x: node for node in windows}
        first = min(n for n, axis in enumerate(value.axes) if set(axis) & xs.keys())
        channel = [label for label in (value.axes[first - 1] if first else ()) if label not in xs]
        batch, spatial = self.positions(value, channel, xs)
        value = self.arranged(value, (batch, tuple(channel), *spatial))
        inner, outer = [], []
        for axis in spatial:
            node = xs.get(axis[0]) if len(axis) == 1 else None
            low, high = (0, 0) if node is None else (window(node)["low"], window(node)["high"])
            size = 1 if node is None else self.sizes[node.k]
            same = low == high and 0 <= low <= size // 2 and (node is None or node.mode == "zeros")
            inner.append(low if same else 0)
            if node is not None and not same:
                outer.append((node.x, low, high, str(node.mode)))
        value = self.padded(value, outer)
        kernel, stride, after = [], [], []
        for axis in spatial:
            node = xs.get(axis[0]) if len(axis) == 1 else None
            kernel.append(1 if node is None else self.sizes[node.k])
            stride.append(1 if node is None else window(node)["stride"])
            after.append(axis if node is None else (node.y,))
        self.factor *= prod(kernel)
        ys = {node.x: node.y for node in windows}
        pool = Pool(value.number, (batch, tuple(channel), *after), tuple(kernel), tuple(stride), tuple(inner))
        return self.add(pool, tuple(ys.get(plain_label(label), label) for label in value.order))


def joined(labels: tuple[str, ...], fuse: Fuse) -> tuple[str, ...]:
    place = run_of(labels, fuse.parts)
    return labels if place is None else (*labels[:place], fuse.whole, *labels[place + len(fuse.parts) :])


# lowering: From a tree of joins and views to a program.


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
