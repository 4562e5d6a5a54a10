"""Programs for sums: those of the terms joined, with equal steps done once, and kernels added before they are used.

A term is lowered like any product. Labels that mean the same have the same word in all terms, so that steps which
several terms have are equal and are done once. Terms that differ only in weights can become one product beforehand,
whose kernel is the sum of theirs; windows of different sizes become one window. Prices and measurements decide whether
that is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any, Protocol, TypeAlias

from ..networks import (
    NamedTensor,
    Network,
    Node,
    aligned,
    collected,
    fresh,
    fresh_words,
    in_one_window,
    relabel,
    tensors_of,
)
from . import operations as ops
from .computation import Computation, Leaf, labels_with_elements, moving_labels, sort_nodes, variants
from .operations import Program, Style
from .values import plain_label

Groups: TypeAlias = tuple[tuple[int, ...], ...]
"""How terms are computed: each group is one product, in which the kernels of its terms are added beforehand."""

MOST_PAIRED = 6
"""Most terms for which groups are formed pair by pair; of more, all that can be one product become one at once."""

_TRIED = 3
"""How many programs of a term, the cheapest first, are tried beside those of the other terms."""

Pricing: TypeAlias = Callable[[Program], float]
"""Gives the predicted seconds of a program."""


class Lowering(Protocol):
    """Gives the programs of a product.

    Args:
        bias: the output label along which the bias is added.
        fixed: labels whose size other terms fix.
        is_kernel: whether the value takes the place of a weight, whose elements are in the order of its axes.
    """

    def __call__(
        self, computation: Computation, *, bias: str | None, fixed: frozenset[str], is_kernel: bool
    ) -> list[Program]: ...


@dataclass
class SumPrograms:
    """The programs of a sum in one memory format.

    Args:
        network: the sum, with all sizes.
        inputs: names, in the order of the call; none for a sum of weights.
        lower: gives the programs of a product.
        price: gives the predicted seconds of a program.
        merges: whether kernels may be added before they meet an input.
        bias: the output label along which a bias is added.
    """

    network: Network
    inputs: tuple[str, ...]
    lower: Lowering
    price: Pricing
    merges: bool = True
    bias: str | None = None

    def __post_init__(self) -> None:
        # the first variant of each term has no merged windows
        self._variants = [variants(term) for term in self.network.terms]
        self._terms = aligned([several[0] for several in self._variants])
        self._lacking = [{*term.output} - labels_with_elements(term) for term in self._terms]
        self._everywhere = set().union(*map(labels_with_elements, self._terms))
        self._taken = {label for several in self._variants for one in several for label in one.sizes}
        self._taken |= {label for term in self._terms for label in term.sizes}
        self._words: dict[tuple[int, ...], dict[str, str]] = {}
        self._of_groups: dict[tuple[tuple[int, ...], bool], list[Program]] = {}
        self.computation = self._whole()
        self._moving = moving_labels(self.computation)
        self._fixed = frozenset(self._taken - self._moving)

    def _whole(self) -> Computation:
        """The nodes of all terms together, sorted by their role."""
        parts = [self._sorted(term) for term in self._terms]
        leaves = tuple(leaf for part in parts for leaf in part.leaves)
        views = tuple(dict.fromkeys(view for part in parts for view in part.views))
        return Computation(self.network, self.inputs, leaves, views, 1.0, ())

    def _sorted(self, term: Network) -> Computation:
        """The nodes of a term; it is not repeated along labels along which other terms differ, if it does not."""
        return sort_nodes(term, self.inputs, self._everywhere)

    def programs(self) -> Iterator[Program]:
        """Programs for several ways to group the terms, of every style."""
        for groups in self._groupings():
            yield from self._of(groups)

    def _groupings(self) -> Iterator[Groups]:
        """Each term apart; then, from the cheapest way on, two groups at a time as one product."""
        groups: Groups = tuple((number,) for number in range(len(self._terms)))
        yield groups
        if not self.merges:
            return
        if len(groups) > MOST_PAIRED:
            yield from self._at_once(groups)
            return
        while True:
            following = [
                (*(one for one in groups if one not in pair), tuple(sorted((*pair[0], *pair[1]))))
                for pair in combinations(groups, 2)
            ]
            possible = [one for one in following if self._products(one[-1], first=False)]
            if not possible:
                return
            yield from possible
            groups = min(possible, key=lambda one: min(map(self.price, self._of(one))))

    def _at_once(self, groups: Groups) -> Iterator[Groups]:
        merged: list[tuple[int, ...]] = []
        for group in groups:
            place = next((n for n, other in enumerate(merged) if self._products((*other, *group), first=False)), None)
            if place is None:
                merged.append(group)
            else:
                merged[place] += group
        if len(merged) < len(groups):
            yield tuple(merged)

    # Groups ----------------------------------------------------------------------------------------------------

    def _of(self, groups: Groups) -> list[Program]:
        """For each style the program of some groups that is predicted to be the fastest, and a few near it."""
        by_style: list[dict[Style, list[Program]]] = []
        # terms that have all labels come first, as sizes at the call may follow from theirs
        groups = tuple(sorted(groups, key=lambda group: any(self._lacking[number] for number in group)))
        adds = next((group for group in groups if not any(self.bias in self._lacking[n] for n in group)), groups[0])
        for group in groups:
            styles: dict[Style, list[Program]] = {}
            for program in self._products(group, first=group is adds):
                styles.setdefault(program.style, []).append(program)
            by_style.append(styles)
        joined = []
        for style in by_style[0]:
            if all(style in styles for styles in by_style):
                joined += self._joined([styles[style] for styles in by_style])
        return joined

    def _joined(self, choices: Sequence[Sequence[Program]]) -> list[Program]:
        """One program of each group, added up; later ones are chosen by what they cost beside the earlier ones."""
        chosen = [[program] for program in sorted(choices[0], key=self.price)[:_TRIED]]
        for programs in choices[1:]:
            cheapest = sorted(programs, key=self.price)[:_TRIED]
            longer = [[*before, program] for before in chosen for program in cheapest]
            chosen = sorted(longer, key=lambda several: self.price(add_programs(several)))[:_TRIED]
        return [add_programs(several) for several in chosen]

    def _products(self, group: tuple[int, ...], *, first: bool) -> list[Program]:
        """The programs of a group as one product; none where its terms cannot become one; the first adds a bias."""
        key = group, first
        if key not in self._of_groups:
            bias = self.bias if first else None
            known = {label for n in group for label in (*self._terms[n].sizes, *self.network.terms[n].sizes)}
            programs = self._of_term(group[0], bias) if len(group) == 1 else self._of_merged(group, bias)
            words = self._new_words(group, {plain_label(n) for one in programs for n in one.sizes} - known)
            self._of_groups[key] = [in_other_words(program, words) for program in programs]
        return self._of_groups[key]

    def _new_words(self, group: tuple[int, ...], labels: set[str]) -> dict[str, str]:
        """For labels that the terms of a group do not have, words that no other group has."""
        words = self._words.setdefault(group, {})
        words |= fresh_words(sorted(labels - words.keys()), self._taken)
        return words

    def _of_term(self, number: int, bias: str | None) -> list[Program]:
        networks = [self._terms[number], *self._variants[number][1:]]
        kernel = not self.inputs
        return [
            program
            for one in networks
            for program in self.lower(self._sorted(one), bias=bias, fixed=self._fixed, is_kernel=kernel)
        ]

    def _of_merged(self, group: tuple[int, ...], bias: str | None) -> list[Program]:
        """The programs of several terms whose kernels are added first; none where they differ in more than weights."""
        terms = [self._terms[number] for number in group]
        name = fresh("sum", tensors_of(self.network))
        pair = collected(terms, name, apart=self._is_of_inputs)
        if pair is None:
            placed = in_one_window(terms)
            pair = None if placed is None else collected(placed, name, apart=self._is_of_inputs)
        if pair is None:
            return []
        outer, kernel = pair
        inner = self._of_kernel(kernel)
        programs = self.lower(self._sorted(outer), bias=bias, fixed=self._fixed, is_kernel=False)
        return [] if inner is None else [with_kernel(program, name, inner) for program in programs]

    def _is_of_inputs(self, node: Node) -> bool:
        """Whether a node is an input, or has a label whose size inputs of other sizes change."""
        is_input = isinstance(node, NamedTensor) and node.name in self.inputs
        return is_input or any(label in self._moving for label in node.labels)

    def _of_kernel(self, kernel: Network) -> Program | None:
        """The cheapest program for a sum of weights."""
        if len(kernel.terms) == 1:
            computation = sort_nodes(variants(kernel)[0], ())
            programs = self.lower(computation, bias=None, fixed=frozenset(), is_kernel=True)
        else:
            programs = list(SumPrograms(kernel, (), self.lower, self.price, merges=False).programs())
        return min(programs, key=self.price, default=None)


# Programs joined -----------------------------------------------------------------------------------------------


def add_programs(programs: Sequence[Program]) -> Program:
    """One program whose value is the sum of the values of several, in which equal steps are done once.

    A word means the same label in all of them, unless the label has another size there.
    """
    if len(programs) == 1:
        return programs[0]
    joined = _Joined()
    total, *others = (joined.add(program) for program in programs)
    for other in others:
        pairs = zip(joined.operations[total].axes, joined.operations[other].axes, strict=True)
        axes = tuple(one or two for one, two in pairs)
        joined.operations.append(ops.Plus(total, other, axes))
        total = len(joined.operations) - 1
    return joined.program(programs[0])


def with_kernel(outer: Program, name: str, inner: Program) -> Program:
    """A program in which a weight is computed by another program instead of being loaded."""
    words = fresh_words(sorted({plain_label(label) for label in inner.sizes}), {*outer.sizes, *inner.sizes})
    joined = _Joined()
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
        operations=tuple(_relabelled(operation, new) for operation in program.operations),
        sizes={new[label]: size for label, size in program.sizes.items()},
        moving=frozenset(new.get(label, label) for label in program.moving),
        patterns=tuple(
            replace(leaf, labels=_words_in(leaf.labels, new), node=relabel(leaf.node, new)) for leaf in program.patterns
        ),
    )


class _Joined:
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

    def _put(self, operation: ops.Operation, *, is_value: bool = False) -> int:
        if is_value or operation not in self._positions:
            self._positions[operation] = len(self.operations)
            self.operations.append(operation)
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
            same = next((other.name for other in self.patterns if other.node == leaf.node), None)
            if same is None:
                clash = any(other.name == leaf.name for other in self.patterns)
                same = fresh(leaf.name, taken) if clash else leaf.name
                taken.add(same)
                self.patterns.append(replace(leaf, name=same))
            names[leaf.name] = same
        return names


_AXES = ("axes", "summed", "groups", "new", "window", "sized", "circles")
"""Fields of operations that hold labels."""


def _relabelled(operation: ops.Operation, words: Mapping[str, str]) -> Any:
    """The operation with other words for labels."""
    held: Any = operation
    changed = {one.name: _words_in(getattr(held, one.name), words) for one in fields(held) if one.name in _AXES}
    return replace(held, **changed)


def _words_in(labels: Any, words: Mapping[str, str]) -> Any:
    """Labels in nested tuples with other words."""
    if isinstance(labels, str):
        return words.get(labels, labels)
    return tuple(_words_in(one, words) for one in labels) if isinstance(labels, tuple) else labels
