"""Steps that compute one tensor under several labels are done once, and a sum of alike steps becomes one of them.

A step is known by what it does to its operands, whatever words its labels have. So `X[i k] X[m k]` and `X[i p] X[q p]`
are one product. A step is linear in each of its operands: of `A X + B X` the sum `(A + B) X` is the same, with one
product instead of two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import combinations
from typing import Any

from . import operations as ops
from .joined import LABELLED, relabel_operation, words_in
from .operations import Axes, labels_in
from .program import Program

_NOT_LINEAR = (ops.Load, ops.Rename, ops.Add, ops.Plus, ops.Concatenate)


def without_equal_steps(program: Program) -> Program:
    """The program with each step once, where several compute the same tensor under other labels."""
    steps = _Steps(program)
    places: list[int] = []
    for operation in program.operations:
        places.append(steps.put(ops.renumber(operation, places.__getitem__)))
    return steps.program(places[-1])


def with_collected_sums(program: Program) -> Program:
    """The program with each sum of steps that differ in one operand as one step, of the sum of these operands."""
    steps = _Steps(program)
    places: list[int] = []
    for number, operation in enumerate(program.operations):
        if isinstance(operation, ops.Plus):
            places.append(steps.sum([places[one] for one in _addends(program, number)], operation.axes))
        else:
            places.append(steps.put(ops.renumber(operation, places.__getitem__)))
    return steps.program(places[-1])


def _addends(program: Program, number: int) -> list[int]:
    """The positions of the values that a sum adds up, which all have its labels."""
    operation = program.operations[number]
    if not isinstance(operation, ops.Plus):
        return [number]
    if any(program.operations[source].axes != operation.axes for source in operation.sources):
        return [*operation.sources]
    return [one for source in operation.sources for one in _addends(program, source)]


class _Steps:
    """The steps of a program, each once."""

    def __init__(self, program: Program) -> None:
        self.like = program
        self.operations: list[ops.Operation] = []
        self._alike: dict[object, list[int]] = {}
        self._keys: dict[int, object] = {}

    def program(self, value: int) -> Program:
        """The program of the value at a position."""
        if value != len(self.operations) - 1:
            self.operations.append(ops.Rename(value, self._axes(value)))
        return replace(self.like, operations=ops.used_operations(self.operations, self._with_sizes()))

    def _with_sizes(self) -> list[int]:
        """Values under labels whose size at a call only they show, though no step takes them any more."""
        used = ops.used_operations(self.operations)
        named = {label for one in used for label in _labels_of(one)} & self.like.moving
        named -= {axis[0] for one in used for axis in one.axes if len(axis) == 1}
        return [n for n, one in enumerate(self.operations) if any(axis[0] in named for axis in one.axes if axis)]

    def put(self, operation: ops.Operation) -> int:
        """The position of the value of a step, which is added unless an earlier one computes the same tensor."""
        alike = self._alike.setdefault(self._operands(operation), [])
        place = self._equal(operation, alike) if alike else None
        if place is None or not self._may_rename(place, operation.axes):
            self.operations.append(operation)
            place = len(self.operations) - 1
            alike.append(place)
        return self._renamed(place, operation.axes)

    def _operands(self, operation: ops.Operation) -> object:
        """What equal steps have in common and is known at once."""
        if isinstance(operation, ops.Load):
            return operation.name
        if isinstance(operation, ops.Rename):
            return operation
        return type(operation), tuple(map(self._root, operation.sources))

    def _equal(self, operation: ops.Operation, alike: Sequence[int]) -> int | None:
        """The first of some steps with the same operands that computes the same tensor."""
        key = self._key(operation)
        for place in alike:
            if place not in self._keys:
                self._keys[place] = self._key(self.operations[place])
            if self._keys[place] == key:
                return place
        return None

    def sum(self, values: Sequence[int], axes: Axes) -> int:
        """The position of the sum of values, as few steps as possible of which differ in one operand alone."""
        for one, other in combinations(range(len(values)), 2):
            place = self._as_one(values[one], values[other], axes)
            if place is not None:
                rest = [value for n, value in enumerate(values) if n not in (one, other)]
                return self.sum([*rest[:one], place, *rest[one:]], axes)
        total = values[0]
        for value in values[1:]:
            columns = zip(self._axes(total), self._axes(value), strict=True)
            total = self.put(ops.Plus(total, value, tuple(left or right for left, right in columns)))
        return total

    def _as_one(self, left: int, right: int, axes: Axes) -> int | None:
        """The sum of two values as the value of one step, if they are made by steps that differ in one operand."""
        if left == right or any(self._axes(value) != axes for value in (left, right)):
            return None
        one, other = (self.operations[self._root(value)] for value in (left, right))
        if type(one) is not type(other) or isinstance(one, _NOT_LINEAR) or getattr(one, "bias", None) is not None:
            return None
        for name in one.takes:
            if name in ("like", "bias", "kernel"):  # a shape; and kernels are added where they are merged
                continue
            forms = [self._form(operation, name, axes) for operation in (one, other)]
            if None not in forms and forms[0] == forms[1]:
                first, second = getattr(one, name), getattr(other, name)
                if self._may_rename(second, self._axes(first)):
                    total = self.sum([first, self._renamed(second, self._axes(first))], self._axes(first))
                    step: Any = one  # a dataclass, which its class does not say
                    return self._renamed(self.put(replace(step, **{name: total})), axes)
        return None

    def _form(self, operation: ops.Operation, name: str, axes: Axes) -> object:
        """What a step does beside its operand of this name, in words that follow from its operands and its value.

        Args:
            axes: the value's, under the labels that it has as an addend.
        """
        if [*map(len, operation.axes)] != [*map(len, axes)]:
            return None
        words = dict(zip(labels_in(operation.axes), labels_in(axes), strict=True))
        differing = getattr(operation, name)
        shared = [source for source in operation.sources if source != differing]
        if differing in shared or len(shared) != len(operation.sources) - 1:
            return None
        taken = [self._axes(source) for source in shared]
        words = self._words(operation, labels_in([axis for one in taken for axis in one]), words)
        if len({*words.values()}) < len(words):
            return None
        return (
            relabel_operation(ops.renumber(operation, lambda n: -1 if n == differing else self._root(n)), words),
            words_in((*taken, self._axes(differing)), words),
            tuple(sorted((word, self.like.sizes[label]) for label, word in words.items())),
        )

    def _key(self, operation: ops.Operation) -> object:
        """What is equal for steps that compute the same tensor."""
        if isinstance(operation, ops.Load | ops.Rename):
            return self._operands(operation)
        taken = tuple(self._axes(source) for source in operation.sources)
        words = self._words(operation, labels_in([axis for axes in taken for axis in axes]), {})
        return (
            relabel_operation(ops.renumber(operation, self._root), words),
            words_in(taken, words),
            tuple(self.like.sizes[label] for label in words),
        )

    def _words(self, operation: ops.Operation, first: Sequence[str], words: dict[str, str]) -> dict[str, str]:
        """Words for the labels of a step: numbers for those in `first`, then for others whose size is fixed.

        Others whose size may differ from call to call keep theirs, as two of them may differ at a call.
        """
        for label in first:
            words.setdefault(label, f"#{len(words)}")
        own = _labels_of(operation)
        others = [label for source in operation.sources for label in labels_in(self._axes(source))]
        for label in (*own, *others):
            words.setdefault(label, label if label in self.like.moving else f"#{len(words)}")
        return words

    def _axes(self, number: int) -> Axes:
        return self.operations[number].axes

    def _root(self, number: int) -> int:
        """The step that makes the tensor of a value."""
        operation = self.operations[number]
        return self._root(operation.source) if isinstance(operation, ops.Rename) else number

    def _may_rename(self, number: int, axes: Axes) -> bool:
        """Whether labels stand for labels, and sizes that may differ from call to call can be read from the tensor."""
        before = self._axes(number)
        if [*map(len, before)] != [*map(len, axes)]:
            return False
        return all(
            one == other or len(one) == 1 or self.like.moving.isdisjoint(other)
            for one, other in zip(before, axes, strict=True)
        )

    def _renamed(self, number: int, axes: Axes) -> int:
        """The position of a value under other labels."""
        if self._axes(number) == axes:
            return number
        operation = ops.Rename(number, axes)
        alike = self._alike.setdefault(operation, [])
        if not alike:
            self.operations.append(operation)
            alike.append(len(self.operations) - 1)
        return alike[0]


def _labels_of(operation: ops.Operation) -> list[str]:
    """The labels in all fields of a step."""
    held: Any = operation
    return [label for one in fields(held) if one.name in LABELLED for label in _labels(getattr(held, one.name))]


def _labels(held: Any) -> Iterator[str]:
    """The labels in nested tuples."""
    if isinstance(held, str):
        if held:
            yield held
    elif isinstance(held, tuple):
        for one in held:
            yield from _labels(one)
