"""Values with labelled axes, and the order in which their elements lie in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from .operations import (
    Arrange,
    Axes,
    Axis,
    ChannelsLast,
    Load,
    Operation,
    Pad,
    Rename,
    Sum,
    labels_in,
)
from .problem import Leaf, Problem, moving_labels
from .programs import Style
from .search import Search, Tree

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
