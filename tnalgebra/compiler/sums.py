"""Programs for sums: those of the terms joined, with equal steps done once, and kernels added before they are used.

A term is lowered like any product. Labels that mean the same have the same word in all terms, so that steps which
several terms have are equal and are done once. Terms that differ only in weights can become one product beforehand,
whose kernel is the sum of theirs; windows of different sizes become one window. Prices and measurements decide whether
that is faster. A term that puts its value among zeros is lowered without them, so that terms which fill different parts
of the output are written side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Protocol, TypeAlias

from ..networks import (
    Conv,
    NamedTensor,
    Network,
    Node,
    aligned,
    collected,
    fresh,
    fresh_words,
    in_one_window,
    tensors_of,
    window,
)
from .added import Ends, add_programs, padded_program, program_with_bias
from .computation import Computation, labels_with_elements, moving_labels, sort_nodes, variants
from .equal_steps import with_collected_sums
from .joined import in_other_words, with_kernel
from .program import Program, Style
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
        bases: name of a tensor -> name of its basis.
    """

    network: Network
    inputs: tuple[str, ...]
    lower: Lowering
    price: Pricing
    merges: bool = True
    bias: str | None = None
    bases: Mapping[str, str] = field(default_factory=dict)

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
        self._of_groupings: dict[Groups, list[Program]] = {}
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
        return sort_nodes(term, self.inputs, self._everywhere, bases=self.bases)

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
        key = tuple(sorted(groups))
        if key not in self._of_groupings:
            self._of_groupings[key] = self._sums_of(groups)
        return self._of_groupings[key]

    def _sums_of(self, groups: Groups) -> list[Program]:
        by_style: list[dict[Style, list[Program]]] = []
        # terms that have all labels come first, as sizes at the call may follow from theirs
        groups = tuple(sorted(groups, key=lambda group: any(self._lacking[number] for number in group)))
        adds = next((group for group in groups if self._can_add_bias(group)), None)
        for group in groups:
            styles: dict[Style, list[Program]] = {}
            for program in self._products(group, first=group is adds):
                styles.setdefault(program.style, []).append(program)
            by_style.append(styles)
        joined = []
        for style in by_style[0]:
            if all(style in styles for styles in by_style):
                joined += self._joined([styles[style] for styles in by_style])
        if self.bias is None or adds is not None:
            return joined
        return [program_with_bias(program, self.bias) for program in joined]

    def _can_add_bias(self, group: tuple[int, ...]) -> bool:
        """Whether the terms of a group have all elements along the label of the bias."""
        return not any(self.bias in self._lacking[n] or _without_zeros(self._terms[n])[1] for n in group)

    def _joined(self, choices: Sequence[Sequence[Program]]) -> list[Program]:
        """One program of each group, added up; later ones are chosen by what they cost beside the earlier ones."""
        chosen = [([program], self._sums([program])) for program in sorted(choices[0], key=self.price)[:_TRIED]]
        for programs in choices[1:]:
            cheapest = sorted(programs, key=self.price)[:_TRIED]
            longer = [[*before, program] for before, _ in chosen for program in cheapest]
            pairs = [(several, self._sums(several)) for several in longer]
            chosen = sorted(pairs, key=lambda pair: min(map(self.price, pair[1])))[:_TRIED]
        return [program for _, sums in chosen for program in sums]

    def _sums(self, programs: Sequence[Program]) -> list[Program]:
        """Programs added up: step by step, and with steps that differ in one operand as one, if there are some."""
        total = add_programs(programs)
        collected = with_collected_sums(total) if self.merges and len(programs) > 1 else total
        return [total] if collected.text == total.text else [total, collected]

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
        return [program for one in networks for program in self._lowered(one, bias)]

    def _lowered(self, network: Network, bias: str | None) -> list[Program]:
        """The programs of a product; those of a value that is put among zeros end with this step."""
        inner, ends = _without_zeros(network)
        programs = self.lower(self._sorted(inner), bias=bias, fixed=self._fixed, is_kernel=not self.inputs)
        return [padded_program(program, network, ends) for program in programs]

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
        return [] if inner is None else [with_kernel(program, name, inner) for program in self._lowered(outer, bias)]

    def _is_of_inputs(self, node: Node) -> bool:
        """Whether a node is an input, or has a label whose size inputs of other sizes change."""
        is_input = isinstance(node, NamedTensor) and node.name in self.inputs
        return is_input or any(label in self._moving for label in node.labels)

    def _of_kernel(self, kernel: Network) -> Program | None:
        """The cheapest program for a sum of weights."""
        if len(kernel.terms) == 1:
            computation = sort_nodes(variants(kernel)[0], (), bases=self.bases)
            programs = self.lower(computation, bias=None, fixed=frozenset(), is_kernel=True)
        else:
            inner = SumPrograms(kernel, (), self.lower, self.price, merges=False, bases=self.bases)
            programs = list(inner.programs())
        return min(programs, key=self.price, default=None)


def _without_zeros(term: Network) -> tuple[Network, dict[str, Ends]]:
    """A product without the windows that put its value among zeros, and the zeros at both ends of output labels.

        K[n b] Conv[b o one:1 | padding=2:1] -> [n o]  =  K[n b] -> [n b] with {o: (b, 2, 1)}

    Returns:
        The product, in which a label of the output is another one, and for each such label (the other one, the number
        of zeros before it, the number of zeros behind it).
    """
    ends: dict[str, Ends] = {}
    words = {label: label for label in term.output}
    while node := next((one for one in term.nodes if _puts_among_zeros(one, term)), None):
        assert isinstance(node, Conv)
        label = next(label for label, word in words.items() if word == node.y)
        numbers, (_, low, high) = window(node), ends.get(label, ("", 0, 0))
        ends[label] = node.x, low + numbers["low"], high + numbers["high"]
        words[label] = node.x
        nodes = [other for other in term.nodes if other is not node]
        known = {one: size for one, size in term.sizes.items() if one not in (node.y, node.k)}
        term = Network(nodes, tuple(words.values()), known)
    return term, ends


def _puts_among_zeros(node: Node, term: Network) -> bool:
    """Whether a node is a window of one element, of stride 1, that pads a value along a label of the output."""
    if not isinstance(node, Conv) or node.mode != "zeros" or node.stride != 1 or node.x in term.output:
        return False
    numbers = window(node)
    others = {label for other in term.nodes if other is not node for label in other.labels}
    is_alone = node.y in term.output and not {node.y, node.k} & {*others} and node.k not in term.output
    return is_alone and term.sizes[node.k] == 1 and min(numbers["low"], numbers["high"]) >= 0 and node.x in others
