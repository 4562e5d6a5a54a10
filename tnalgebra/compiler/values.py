"""A program in the making: values with labelled axes, and how their axes are arranged, copied, summed and padded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

from ..networks import Conv
from . import operations as ops
from .computation import Computation, Leaf
from .operations import Axes, Axis, labels_in
from .steps import Steps

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


@dataclass
class Draft:
    """The operations so far, and what the next ones depend on.

    patterns: number of a window or reshape -> the dense tensor that it is here.
    sizes: of all labels, those that padding makes among them.
    moving: labels whose size may differ from call to call.
    stored: weight -> the order in which it should lie in memory.
    loaded: tensor -> its value.
    factor: of the whole value, still to be applied.
    """

    computation: Computation
    steps: Steps
    style: ops.Style
    channels_last_inputs: bool
    patterns: Mapping[int, Leaf]
    sizes: dict[str, int]
    moving: frozenset[str]
    factor: float
    operations: list[ops.Operation] = field(default_factory=list)
    stored: dict[str, tuple[str, ...]] = field(default_factory=dict)
    loaded: dict[str, Value] = field(default_factory=dict)

    def add(self, operation: ops.Operation, order: Iterable[str] | None = None) -> Value:
        """One more operation; its elements lie in the order of its axes if nothing else is said."""
        self.operations.append(operation)
        order = labels_in(operation.axes) if order is None else tuple(order)
        return Value(len(self.operations) - 1, operation.axes, order)

    def counts(self, label: str) -> bool:
        """Whether a label can move anything: one of size 1 never does."""
        return self.sizes[label] != 1 or label in self.moving

    def lies(self, value: Value, order: Iterable[str]) -> bool:
        """Whether the elements of a value lie in an order of its labels."""
        return [n for n in value.order if self.counts(n)] == [n for n in order if self.counts(n)]

    def prime(self, label: str, more: int) -> str:
        """The label of an axis with more positions (or fewer) than that of another."""
        self.sizes[label + "'"] = self.sizes[label] + more
        if label in self.moving:
            self.moving |= {label + "'"}
        return label + "'"

    def is_single_weight(self, operation: ops.Operation) -> bool:
        """Whether it loads a tensor that is not an input and occurs once: its memory may be laid out freely."""
        if not isinstance(operation, ops.Load) or operation.kind == "input":
            return False
        return sum(leaf.name == operation.name for leaf in self.computation.leaves) == 1


# Labels and axes -------------------------------------------------------------------------------------------------


def singles(labels: Iterable[str]) -> Axes:
    """Each label on an axis of its own."""
    return tuple((label,) for label in labels)


def without(axis: Axis, labels: Collection[str]) -> Axis:
    """What else an axis (or an order) holds."""
    return tuple(label for label in axis if label not in labels)


def relabel_axis(axis: Axis, names: Mapping[str, str]) -> Axis:
    """An axis (or an order) with other names for some labels."""
    return tuple(names.get(label, label) for label in axis)


def relabel_axes(axes: Axes, names: Mapping[str, str]) -> Axes:
    """The same of all axes."""
    return tuple(relabel_axis(axis, names) for axis in axes)


def plain_label(label: str) -> str:
    """A label without the primes that padding gave it."""
    return label.rstrip("'")


def run_of(labels: Sequence[str], part: Sequence[str]) -> int | None:
    """Where `part` begins in `labels` as a run; None if it does not occur."""
    count = len(part)
    return next((n for n in range(len(labels) - count + 1) if tuple(labels[n : n + count]) == tuple(part)), None)


def split_apart(axes: Axes, labels: Collection[str]) -> Axes:
    """The same labels, those of `labels` and the others on axes of their own."""
    return tuple(tuple(run) for axis in axes for _, run in groupby(axis, key=labels.__contains__))


def channels_last_order(axes: Axes) -> tuple[str, ...]:
    """The labels of axes (batch, channels, positions ...) in the order of that memory format."""
    batch, channels, *positions = axes
    return labels_in([batch, *positions, channels])


def axes_of_images(value: Value, channels: Collection[str], xs: Collection[str]) -> tuple[Axis, list[Axis]]:
    """The labels of the batch axis, and the axes of positions: those windows move along, and idle ones."""
    with_channels = [n for n, axis in enumerate(value.axes) if set(axis) & set(channels)]
    with_windows = [n for n, axis in enumerate(value.axes) if set(axis) & set(xs)]
    last = max(with_channels) if with_channels else min(with_windows, default=len(value.axes)) - 1
    # idle labels up to the channels belong to the batch, those behind them are positions
    batch: list[str] = []
    positions: list[Axis] = []
    late: list[Axis] = []
    for number, axis in enumerate(value.axes):
        idle = without(axis, {*channels, *xs})
        moved = singles(label for label in axis if label in xs)
        if number > last:
            positions += [*([idle] if idle else []), *moved]
        else:
            batch += idle
            late += moved
    return _at_most_three(batch, positions + late, xs)


def _at_most_three(batch: list[str], positions: list[Axis], xs: Collection[str]) -> tuple[Axis, list[Axis]]:
    """As many axes of positions as torch takes: idle ones side by side become one, then idle ones join the batch."""
    while len(positions) > 2:
        pair = next((n for n, (a, b) in enumerate(pairwise(positions)) if not {*a, *b} & set(xs)), None)
        if pair is None:
            break
        positions[pair : pair + 2] = [positions[pair] + positions[pair + 1]]
    while len(positions) > 3:
        idle = next(axis for axis in positions if not set(axis) & set(xs))
        positions.remove(idle)
        batch += idle
    return tuple(batch), positions


def roles(left: Value, right: Value, live: Collection[str]) -> tuple[Axis, Axis, Axis]:
    """Labels on both sides that stay, labels on both that are summed, labels of the right side alone."""
    shared = [label for label in left.labels if label in right.labels]
    groups = tuple(label for label in shared if label in live)
    return groups, without(tuple(shared), live), without(right.labels, shared)


# Changes of a value ----------------------------------------------------------------------------------------------


def arrange(
    draft: Draft, value: Value, axes: Axes, *, order: tuple[str, ...] | None = None, last: bool = False
) -> Value:
    """The value with its labels on these axes.

    Args:
        order: in which a weight's elements should lie in memory, if that is still free.
        last: whether it is a kernel that should lie in channels_last.
    """
    operation = draft.operations[value.number]
    if isinstance(operation, ops.Load) and draft.is_single_weight(operation):
        value = replace(value, order=draft.stored.setdefault(operation.name, order or labels_in(axes)))
    assert sorted(labels_in(axes)) == sorted(value.labels), (axes, value.axes)
    if axes == value.axes:
        return value
    whole = {axis for axis in value.axes if axis} == {axis for axis in axes if axis}
    if whole or all(_is_run(draft, value.order, axis) for axis in axes):
        return draft.add(ops.Arrange(value.number, axes, copies=False, last=last), value.order)
    return copy_value(draft, value, axes)


def _is_run(draft: Draft, order: Sequence[str], axis: Axis) -> bool:
    real = [label for label in axis if draft.counts(label)]
    return len(real) < 2 or run_of([label for label in order if draft.counts(label)], real) is not None


def copy_value(draft: Draft, value: Value, axes: Axes) -> Value:
    """The value in new memory, with its labels on these axes."""
    return draft.add(ops.Arrange(value.number, axes, copies=True))


def sum_dead(draft: Draft, value: Value, live: Collection[str]) -> Value:
    """Sum the labels nobody needs; their axes hold nothing else, or are split first."""
    dead = {*value.labels}.difference(live)
    if not dead:
        return value
    if any(len(axis) > 1 and set(axis) & dead for axis in value.axes):
        value = arrange(draft, value, singles(value.labels))
    order = without(value.order, dead)
    if not any(draft.counts(label) for label in dead):  # axes of one element stay, without a name
        return draft.add(ops.Rename(value.number, tuple(without(axis, dead) for axis in value.axes)), order)
    return draft.add(ops.Sum(value.number, tuple(axis for axis in value.axes if not set(axis) & dead)), order)


def as_image(draft: Draft, value: Value) -> tuple[Value, bool]:
    """A value of axes (batch, channels, positions ...) as a convolution wants it; whether it is channels_last."""
    is_last = draft.style.memory_format == "channels_last" or (
        draft.lies(value, channels_last_order(value.axes)) and not draft.lies(value, value.labels)
    )
    return in_format(draft, value, last=is_last), is_last


def in_format(draft: Draft, value: Value, *, last: bool) -> Value:
    """A value in channels_last, if it has 4 or 5 axes, or contiguous."""
    if last and len(value.axes) in (4, 5):
        order = channels_last_order(value.axes)
        return value if draft.lies(value, order) else draft.add(ops.ChannelsLast(value.number, value.axes), order)
    return value if draft.lies(value, value.labels) else copy_value(draft, value, value.axes)


def as_matrices(draft: Draft, value: Value) -> Value:
    """A value as torch's matrix products take it without a copy, rows or columns first; else copied here."""
    *lead, rows, columns = ((), *value.axes) if len(value.axes) == 1 else value.axes
    turned = len(value.axes) < 4 and draft.lies(value, labels_in([*lead, columns, rows]))
    return value if turned or draft.lies(value, value.labels) else copy_value(draft, value, value.axes)


def pad(draft: Draft, value: Value, ends: Sequence[tuple[Conv, int, int]]) -> Value:
    """Positions added before windows, or cut off: (window, low, high). Padded labels get a prime: another size."""
    for step in ("reflect", "replicate", "circular", "crop", "zeros"):  # the whole axis is folded, not the rest
        pads: dict[str, tuple[int, int]] = {}
        for node, low, high in ends:
            low, high = (min(low, 0), min(high, 0)) if step == "crop" else (max(low, 0), max(high, 0))
            if (low or high) and step in ("crop", node.mode):
                pads[node.x] = (low, high)
        if pads:
            value = _pad(draft, value, pads, "zeros" if step == "crop" else step)
    return value


def _pad(draft: Draft, value: Value, pads: Mapping[str, tuple[int, int]], mode: str) -> Value:
    """All `pads` at once: label, without its primes, -> (low, high)."""
    new = {n: draft.prime(n, sum(pads[plain_label(n)])) for n in value.labels if plain_label(n) in pads}
    first = min(n for n, axis in enumerate(value.axes) if set(axis) & new.keys())
    ends = tuple(pads.get(plain_label(axis[0]), (0, 0)) if len(axis) == 1 else (0, 0) for axis in value.axes[first:])
    axes, order = relabel_axes(value.axes, new), relabel_axis(value.order, new)
    if not draft.lies(value, value.labels):
        # torch keeps channels_last except where it pads circularly, and makes all else contiguous, or nobody knows
        last = len(axes) in (4, 5) and draft.lies(value, channels_last_order(value.axes))
        if mode == "circular" or (not last and min(min(pair) for pair in ends) >= 0):
            order = labels_in(axes)
        elif not last:
            order = UNKNOWN
    return draft.add(ops.Pad(value.number, axes, ends, mode), order)
