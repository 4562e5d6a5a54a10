"""Programs joined: one program with the steps of several, each step once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ..networks import fresh, fresh_words, relabel
from . import operations as ops
from .computation import Leaf
from .program import Program
from .values import plain_label


def with_kernel(outer: Program, name: str, inner: Program) -> Program:
    """A program in which a weight is computed by another program instead of being loaded."""
    words = fresh_words(sorted({plain_label(label) for label in inner.sizes}), {*outer.sizes, *inner.sizes})
    joined = JoinedPrograms()
    value = joined.add(in_other_words(inner, words))
    joined.add(outer, supplied={name: value})
    return joined.program(outer)


def in_other_words(program: Program, words: Mapping[str, str]) -> Program:
    """The program with other words for labels; those that padding made of them follow."""
    if not words:
        return program
    new = {}
    for label in program.sizes:
        plain = plain_label(label)
        new[label] = words.get(label, words.get(plain, plain) + label[len(plain) :])
    return replace(
        program,
        operations=tuple(relabel_operation(operation, new) for operation in program.operations),
        sizes={new[label]: size for label, size in program.sizes.items()},
        moving=frozenset(new.get(label, label) for label in program.moving),
        patterns=tuple(
            replace(leaf, labels=words_in(leaf.labels, new), node=relabel(leaf.node, new)) for leaf in program.patterns
        ),
    )


class JoinedPrograms:
    """The steps of several programs, each step once."""

    def __init__(self) -> None:
        self.operations: list[ops.Operation] = []
        self.sizes: dict[str, int] = {}
        self.patterns: list[Leaf] = []
        self._moving: set[str] = set()
        self._fixed: set[str] = set()
        self._positions: dict[ops.Operation, int] = {}

    def program(self, like: Program) -> Program:
        """The steps as a program with the inputs and the style of another one."""
        moving = frozenset(self._moving - self._fixed)
        return Program(tuple(self.operations), like.inputs, self.sizes, moving, tuple(self.patterns), like.style)

    def add(self, program: Program, supplied: Mapping[str, int] = {}) -> int:
        """Add the steps of a program, and return the position of its value, which is the last step.

        Args:
            supplied: positions of values that take the place of loaded tensors, by name.
        """
        program = in_other_words(program, self._clashing(program))
        names = self._pattern_names(program)
        positions: list[int] = []
        for number, operation in enumerate(program.operations):
            if isinstance(operation, ops.Load):
                if operation.name in supplied:
                    operation = ops.Rename(supplied[operation.name], operation.axes)
                    positions.append(self._put(operation))
                    continue
                operation = replace(operation, name=names.get(operation.name, operation.name))
            operation = ops.renumber(operation, positions.__getitem__)
            positions.append(self._put(operation, is_value=number == len(program.operations) - 1))
        self.sizes |= program.sizes
        self._moving |= program.moving
        self._fixed |= program.sizes.keys() - program.moving
        return positions[-1]

    def append(self, operation: ops.Operation) -> int:
        """Add a step, and return its position."""
        self.operations.append(operation)
        return len(self.operations) - 1

    def _put(self, operation: ops.Operation, *, is_value: bool = False) -> int:
        if is_value or operation not in self._positions:
            self._positions[operation] = self.append(operation)
        return self._positions[operation]

    def _clashing(self, program: Program) -> dict[str, str]:
        """New words for labels that have another size in the programs before."""
        clashing = [label for label, size in program.sizes.items() if self.sizes.get(label, size) != size]
        return fresh_words(clashing, {*self.sizes, *program.sizes})

    def _pattern_names(self, program: Program) -> dict[str, str]:
        """The name of each dense pattern of a program here, where another one may have its name."""
        names: dict[str, str] = {}
        taken = {leaf.name for leaf in self.patterns}
        taken |= {one.name for one in (*self.operations, *program.operations) if isinstance(one, ops.Load)}
        for leaf in program.patterns:
            same = next((other.name for other in self.patterns if _is_same(other, leaf)), None)
            if same is None:
                clash = any(other.name == leaf.name for other in self.patterns)
                same = fresh(leaf.name, taken) if clash else leaf.name
                taken.add(same)
                self.patterns.append(replace(leaf, name=same))
            names[leaf.name] = same
        return names


def _is_same(one: Leaf, other: Leaf) -> bool:
    """Whether two dense patterns have the same elements; a basis is the same tensor under all labels."""
    return one.node == other.node or (one.basis != "" and (one.name, one.basis) == (other.name, other.basis))


LABELLED = ("axes", "summed", "groups", "new", "window", "sized", "circles")
"""Fields of operations that hold labels."""


def relabel_operation(operation: ops.Operation, words: Mapping[str, str]) -> Any:
    """The operation with other words for labels."""
    held: Any = operation
    changed = {one.name: words_in(getattr(held, one.name), words) for one in fields(held) if one.name in LABELLED}
    return replace(held, **changed)


def words_in(labels: Any, words: Mapping[str, str]) -> Any:
    """Labels in nested tuples with other words."""
    if isinstance(labels, str):
        return words.get(labels, labels)
    return tuple(words_in(one, words) for one in labels) if isinstance(labels, tuple) else labels
