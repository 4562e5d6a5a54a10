"""Lowering: values with labelled axes, the order of their elements in memory, and the steps that change both."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from ..networks import Conv
from . import operations as ops
from .computation import Computation, Leaf
from .operations import Axes, Axis, labels_in
from .program import Style
from .steps import Steps

UNKNOWN: tuple[str, ...] = ()
"""An order of elements in memory that is not known, so that every reshape needs a copy."""


@dataclass(frozen=True)
class Value:
    """The result of an operation.

    number: the position of the operation.
    order: the labels in the order of the elements in memory; the last label varies fastest.
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

    patterns: the dense tensors that replace windows or reshapes, by the bit of their node.
    sizes: of all labels, including those that padding makes.
    moving: labels whose size may differ from call to call.
    loaded: the values of tensors that are already loaded, by name.
    factor: the number by which the whole value is still to be multiplied.
    """

    computation: Computation
    steps: Steps
    style: Style
    channels_last_inputs: bool
    patterns: Mapping[int, Leaf]
    sizes: dict[str, int]
    moving: frozenset[str]
    factor: float
    operations: list[ops.Operation] = field(default_factory=list)
    loaded: dict[str, Value] = field(default_factory=dict)

    def add(self, operation: ops.Operation, order: Iterable[str] | None = None) -> Value:
        """Append an operation; `order` is that of its elements in memory, by default the order of its axes."""
        self.operations.append(operation)
        order = labels_in(operation.axes) if order is None else tuple(order)
        return Value(len(self.operations) - 1, operation.axes, order)

    def counts(self, label: str) -> bool:
        """Whether a label matters to the order in memory: one of size 1 does not."""
        return self.sizes[label] != 1 or label in self.moving

    def lies(self, value: Value, order: Iterable[str]) -> bool:
        """Whether the elements of a value are in this order of its labels."""
        return [n for n in value.order if self.counts(n)] == [n for n in order if self.counts(n)]

    def is_of_inputs(self, value: Value) -> bool:
        """Whether a value depends on an input."""
        numbers = [value.number]
        for number in numbers:
            numbers += self.operations[number].sources
        loads = [one for one in map(self.operations.__getitem__, numbers) if isinstance(one, ops.Load)]
        return any(one.kind == "input" for one in loads)

    def prime(self, label: str, more: int) -> str:
        """A new label for an axis with more positions than that of `label`, or fewer if `more` is negative."""
        self.sizes[label + "'"] = self.sizes[label] + more
        if label in self.moving:
            self.moving |= {label + "'"}
        return label + "'"

    def is_single_weight(self, operation: ops.Operation) -> bool:
        """Whether an operation loads a weight that occurs once, whose order in memory can be chosen."""
        if not isinstance(operation, ops.Load) or operation.kind == "input":
            return False
        return sum(leaf.name == operation.name for leaf in self.computation.leaves) == 1


# Labels and axes -------------------------------------------------------------------------------------------------


def singles(labels: Iterable[str]) -> Axes:
    """Each label on an axis of its own."""
    return tuple((label,) for label in labels)


def without(axis: Axis, labels: Collection[str]) -> Axis:
    """An axis, or an order, without some labels."""
    return tuple(label for label in axis if label not in labels)


def relabel_axis(axis: Axis, names: Mapping[str, str]) -> Axis:
    """An axis, or an order, with other names for some labels."""
    return tuple(names.get(label, label) for label in axis)


def relabel_axes(axes: Axes, names: Mapping[str, str]) -> Axes:
    """All axes with other names for some labels."""
    return tuple(relabel_axis(axis, names) for axis in axes)


def plain_label(label: str) -> str:
    """A label without the primes that padding gave it."""
    return label.rstrip("'")


def run_of(labels: Sequence[str], part: Sequence[str]) -> int | None:
    """The place where the labels of `part` follow one another in `labels`; None if they do not."""
    count = len(part)
    return next((n for n in range(len(labels) - count + 1) if tuple(labels[n : n + count]) == tuple(part)), None)


def split_apart(axes: Axes, labels: Collection[str]) -> Axes:
    """The axes, split so that no axis has both labels of `labels` and others."""
    return tuple(tuple(run) for axis in axes for _, run in groupby(axis, key=labels.__contains__))


def channels_last_order(axes: Axes) -> tuple[str, ...]:
    """The labels of axes (batch, channels, positions ...) in the order of channels_last."""
    batch, channels, *positions = axes
    return labels_in([batch, *positions, channels])


def axes_of_images(value: Value, channels: Collection[str], xs: Collection[str]) -> tuple[Axis, list[Axis]]:
    """The labels of the batch axis, and the axes of positions: those of windows (`xs`) and idle ones."""
    with_channels = [n for n, axis in enumerate(value.axes) if set(axis) & set(channels)]
    with_windows = [n for n, axis in enumerate(value.axes) if set(axis) & set(xs)]
    last = max(with_channels) if with_channels else min(with_windows, default=len(value.axes)) - 1
    # idle labels before the channels belong to the batch, those behind them are positions
    batch: list[str] = []
    positions: list[Axis] = []
    late: list[Axis] = []
    for number, axis in enumerate(value.axes):
        idle = without(axis, {*channels, *xs})
        moved = singles(label for label in axis if label in xs)
        if number > last:
            for run in split_apart((without(axis, channels),), xs):
                positions += singles(run) if {*run} & {*xs} else [run] if run else []
        else:
            batch += idle
            late += moved
    return _at_most_three(batch, positions + late, xs)


def _at_most_three(batch: list[str], positions: list[Axis], xs: Collection[str]) -> tuple[Axis, list[Axis]]:
    """At most three axes of positions: adjacent idle axes become one, then idle axes move into the batch."""
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
    """Labels of both sides that are live, labels of both sides that are summed, and labels of the right side alone."""
    shared = [label for label in left.labels if label in right.labels]
    groups = tuple(label for label in shared if label in live)
    return groups, without(tuple(shared), live), without(right.labels, shared)


# Changes of a value ----------------------------------------------------------------------------------------------


def arrange(draft: Draft, value: Value, axes: Axes, *, last: bool = False) -> Value:
    """The value with its labels on these axes; `last`: whether it is a kernel that should be in channels_last."""
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
    """Sum over the labels that are not live."""
    dead = {*value.labels}.difference(live)
    if not dead:
        return value
    if any(len(axis) > 1 and set(axis) & dead for axis in value.axes):
        value = arrange(draft, value, singles(value.labels))
    order = without(value.order, dead)
    if not any(draft.counts(label) for label in dead):  # axes of one element remain, without a label
        return draft.add(ops.Rename(value.number, tuple(without(axis, dead) for axis in value.axes)), order)
    return draft.add(ops.SumAxes(value.number, tuple(axis for axis in value.axes if not set(axis) & dead)), order)


def as_image(draft: Draft, value: Value) -> tuple[Value, bool]:
    """A value of axes (batch, channels, positions ...) for a convolution, and whether it is channels_last."""
    is_last = draft.style.memory_format == "channels_last" or (
        draft.lies(value, channels_last_order(value.axes)) and not draft.lies(value, value.labels)
    )
    return in_format(draft, value, last=is_last), is_last


def in_format(draft: Draft, value: Value, *, last: bool) -> Value:
    """A value in channels_last if `last` and it has 4 or 5 axes, else contiguous."""
    if last and len(value.axes) in (4, 5):
        order = channels_last_order(value.axes)
        return value if draft.lies(value, order) else draft.add(ops.ChannelsLast(value.number, value.axes), order)
    return value if draft.lies(value, value.labels) else copy_value(draft, value, value.axes)


def as_matrices(draft: Draft, value: Value) -> Value:
    """A value that torch's matrix products take without a copy, with rows or columns adjacent in memory."""
    *lead, rows, columns = ((), *value.axes) if len(value.axes) == 1 else value.axes
    turned = len(value.axes) < 4 and draft.lies(value, labels_in([*lead, columns, rows]))
    return value if turned or draft.lies(value, value.labels) else copy_value(draft, value, value.axes)


def pad(draft: Draft, value: Value, ends: Sequence[tuple[Conv, int, int]]) -> Value:
    """Pad or crop before windows: (window, low, high). A padded label gets a prime, because it has another size."""
    for step in ("reflect", "replicate", "circular", "crop", "zeros"):  # cropping comes after folding the whole axis
        pads: dict[str, tuple[int, int]] = {}
        for node, low, high in ends:
            low, high = (min(low, 0), min(high, 0)) if step == "crop" else (max(low, 0), max(high, 0))
            if (low or high) and step in ("crop", node.mode):
                pads[node.x] = (low, high)
        if pads:
            value = _pad(draft, value, pads, "zeros" if step == "crop" else step)
    return value


def _pad(draft: Draft, value: Value, pads: Mapping[str, tuple[int, int]], mode: str) -> Value:
    """Pad by (low, high) for each label, named without its primes."""
    new = {n: draft.prime(n, sum(pads[plain_label(n)])) for n in value.labels if plain_label(n) in pads}
    first = min(n for n, axis in enumerate(value.axes) if set(axis) & new.keys())
    ends = tuple(pads.get(plain_label(axis[0]), (0, 0)) if len(axis) == 1 else (0, 0) for axis in value.axes[first:])
    axes, order = relabel_axes(value.axes, new), relabel_axis(value.order, new)
    is_fixed = not new.keys() & draft.moving
    if max(map(max, ends)) <= 0 and is_fixed and draft.lies(value, value.labels) and draft.is_of_inputs(value):
        return draft.add(ops.Crop(value.number, axes, tuple((-low, -high) for low, high in ends)), UNKNOWN)
    if not draft.lies(value, value.labels):
        # torch keeps channels_last unless it pads circularly; other orders become contiguous where nothing is cropped
        last = len(axes) in (4, 5) and draft.lies(value, channels_last_order(value.axes))
        if mode == "circular" or (not last and min(min(pair) for pair in ends) >= 0):
            order = labels_in(axes)
        elif not last:
            order = UNKNOWN
    return draft.add(ops.Pad(value.number, axes, ends, mode), order)
