"""Programs added up: values that fill different parts of the output are written side by side, the others are added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import NamedTuple, TypeAlias

from ..networks import Network, fresh
from . import operations as ops
from .equal_steps import without_equal_steps
from .joined import JoinedPrograms
from .operations import Axes, Axis
from .program import Program

Ends: TypeAlias = tuple[str, int, int]
"""A label, and the numbers of zeros before and behind its elements."""

_Box: TypeAlias = tuple[tuple[int, int], ...]
"""A part of the output: for each axis its first place and the place behind its last one."""


class _Part(NamedTuple):
    """A value that fills a part of the output, and is zero elsewhere; `number` is the position of its step."""

    number: int
    box: _Box


def add_programs(programs: Sequence[Program]) -> Program:
    """One program whose value is the sum of the values of several, in which equal steps are done once.

    A value that a program puts among zeros fills a part of the output. Parts that do not overlap are written side by
    side, and zeros only where no part is. A word means the same label in all programs, unless the label has another
    size there.
    """
    if len(programs) == 1:
        return programs[0]
    columns = zip(*(program.operations[-1].axes for program in programs), strict=True)
    total = _Sum(
        tuple(next(filter(None, column), ()) for column in columns),
        {label: size for program in programs for label, size in program.sizes.items()},
    )
    parts = [total.part(program) for program in programs]
    total.add_up(parts, total.whole)
    return without_equal_steps(total.steps.program(programs[0]))


def padded_program(program: Program, network: Network, ends: Mapping[str, Ends]) -> Program:
    """A program whose value is put among zeros.

    Args:
        network: the product with the zeros.
        ends: for labels of its output the label of the program that has the elements, and the numbers of zeros.
    """
    if not ends:
        return program
    new = {inner: label for label, (inner, _, _) in ends.items()}
    before = program.operations[-1].axes
    axes = tuple(tuple(new.get(label, label) for label in axis) for axis in before)
    first = next(n for n, axis in enumerate(before) if new.keys() & {*axis})
    pads = tuple(ends[label][1:] if label in ends else (0, 0) for label in map("".join, axes[first:]))
    sizes = {**program.sizes, **{label: network.sizes[label] for label in ends}}
    moving = program.moving | {label for inner, label in new.items() if inner in program.moving}
    operations = (*program.operations, ops.Pad(len(program.operations) - 1, axes, pads))
    return replace(program, operations=operations, sizes=sizes, moving=moving)


def program_with_bias(program: Program, label: str) -> Program:
    """A program whose value has a bias along a label of the output."""
    count, axes = len(program.operations), program.operations[-1].axes
    bias = ops.Load("bias", ((label,),), "weight")
    add = ops.Add(count - 1, count, axes, axes.index((label,)))
    return replace(program, operations=(*program.operations, bias, add))


class _Sum:
    """The steps of programs, and those that add up their values.

    axes: of the output.
    whole: the part that is all of it.
    """

    def __init__(self, axes: Axes, sizes: Mapping[str, int]) -> None:
        self.axes = axes
        self.whole: _Box = tuple((0, prod(sizes[label] for label in axis)) for axis in axes)
        self.steps = JoinedPrograms()

    def part(self, program: Program) -> _Part:
        """Add the steps of a program, without those zeros around its value in whose place other values may be."""
        *before, last = program.operations
        if not isinstance(last, ops.Pad) or not self._is_part(program, last):
            return _Part(self.steps.add(program), self.whole)
        pads = ((0, 0),) * (len(last.axes) - len(last.pads)) + last.pads
        box = tuple((low, size - high) for (low, high), (_, size) in zip(pads, self.whole, strict=True))
        return _Part(self.steps.add(replace(program, operations=tuple(before))), box)

    def _is_part(self, program: Program, pad: ops.Pad) -> bool:
        """Whether zeros end a program, and inputs of other sizes do not change where they are."""
        before = program.operations[pad.source].axes[-len(pad.pads) :]
        padded = {label for axis, pair in zip(before, pad.pads, strict=True) if any(pair) for label in axis}
        fixed = pad.mode == "zeros" and min(map(min, pad.pads)) >= 0 and not padded & program.moving
        has_all = all(map(bool, pad.axes)) or pad.axes == self.axes  # torch does not broadcast what it writes in parts
        return fixed and has_all and pad.source == len(program.operations) - 2

    def add_up(self, parts: Sequence[_Part], region: _Box) -> int:
        """The position of the sum of parts, in a region of the output that has them all; it is the last step.

        Where a place separates the parts along some axis, both sides are written next to each other. Else as many as
        possible that do not overlap are, and are added to the sum of the others.
        """
        for axis in range(len(region)):
            runs = _runs(parts, axis)
            if len(runs) > 1:
                return self._side_by_side(runs, axis, region)
        hull = tuple((min(one for one, _ in column), max(end for _, end in column)) for column in _columns(parts))
        if hull != region:
            return self._padded(_Part(self.add_up(parts, hull), hull), region)
        if len(parts) == 1:
            return parts[0].number
        apart = max((_apart(parts, axis) for axis in range(len(region))), key=len, default=[])
        added = apart if len(apart) > 1 else parts[-1:]
        left = self.add_up([part for part in parts if part not in added], region)
        right = self.add_up(added, region)
        pairs = zip(self._axes_of(left), self._axes_of(right), strict=True)
        return self.steps.append(ops.Plus(left, right, tuple(one or two for one, two in pairs)))

    def _side_by_side(self, runs: Sequence[Sequence[_Part]], axis: int, region: _Box) -> int:
        """Groups of parts next to each other; the zeros between two groups are added to the shorter one."""
        spans = [(run[0].box[axis][0], max(part.box[axis][1] for part in run)) for run in runs]
        edges = [region[axis][0]]
        for (start, end), (other_start, other_end) in pairwise(spans):
            edges.append(other_start if end - start < other_end - other_start else end)
        edges.append(region[axis][1])
        numbers = tuple(
            self.add_up(run, (*region[:axis], span, *region[axis + 1 :]))
            for run, span in zip(runs, pairwise(edges), strict=True)
        )
        axes = self._axes_of(numbers[0])
        axes = (*axes[:axis], self._axis(axis, region), *axes[axis + 1 :])
        return self.steps.append(ops.Concatenate(numbers, axes, axis))

    def _padded(self, part: _Part, region: _Box) -> int:
        pads = tuple((one[0] - two[0], two[1] - one[1]) for one, two in zip(part.box, region, strict=True))
        changed = [any(pair) for pair in pads]
        old = self._axes_of(part.number)
        axes = tuple(self._axis(n, region) if changed[n] else axis for n, axis in enumerate(old))
        return self.steps.append(ops.Pad(part.number, axes, pads[changed.index(True) :]))

    def _axis(self, axis: int, region: _Box) -> Axis:
        """An axis of a value that fills a region: that of the output, or a new label of as many elements."""
        if region[axis] == self.whole[axis]:
            return self.axes[axis]
        start, end = region[axis]
        label = fresh(self.axes[axis][0], self.steps.sizes)
        self.steps.sizes[label] = end - start
        return (label,)

    def _axes_of(self, number: int) -> Axes:
        return self.steps.operations[number].axes


def _columns(parts: Sequence[_Part]) -> list[tuple[tuple[int, int], ...]]:
    """For each axis where the parts begin and end."""
    return list(zip(*(part.box for part in parts), strict=True))


def _runs(parts: Sequence[_Part], axis: int) -> list[list[_Part]]:
    """The parts in groups between which there is a place along an axis that separates them."""
    runs: list[list[_Part]] = []
    reach = 0
    for part in sorted(parts, key=lambda part: part.box[axis][0]):
        start, end = part.box[axis]
        if runs and start < reach:
            runs[-1].append(part)
        else:
            runs.append([part])
        reach = max(reach, end)
    return runs


def _apart(parts: Sequence[_Part], axis: int) -> list[_Part]:
    """As many parts as possible that do not overlap along an axis."""
    chosen: list[_Part] = []
    for part in sorted(parts, key=lambda part: part.box[axis][1]):
        if not chosen or part.box[axis][0] >= chosen[-1].box[axis][1]:
            chosen.append(part)
    return chosen
