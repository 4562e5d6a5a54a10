"""Which topologies a search goes through: a space as a value, and the topologies in it, isomorphic ones once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, islice, permutations, product
from typing import Any, Literal, TypeAlias, get_args

import networkx

from ..decompositions import rules
from ..errors import RuleError
from ..networks import fresh, labels_of
from ..rewriting import rule
from .topology import Topology

BondPattern: TypeAlias = Literal["tree", "ring", "complete", "hyperedge", "block", "graph"]
"""How the cores of a term are joined, see `Space`."""

Bonds: TypeAlias = tuple[tuple[int, ...], ...]
"""For each bond the numbers of the cores that have it."""

MOST_CORES = 8
"""Most cores of a term. With more, the trees alone are millions."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """The topologies that `tn.search` goes through, as a value.

    A term has some cores. Each open label is on one of them; a core without open labels has at least three bonds,
    because one with two bonds would be a part of its neighbour.

    Attributes:
        cores: the fewest and the most cores of a term.
        bonds: how the cores are joined, one pattern or several: "tree" (every tree), "ring" (every order around it),
            "complete" (a bond for every two cores), "hyperedge" (one bond on all cores, as in CP), "block" (a tree, and
            a bond on all cores, as in block terms), "graph" (every connected graph).
        groups: the groups of labels that a core may hold, such as ("out", "in", "kh kw"); by default any.
        parts: label -> into how many parts it is split, or the sizes of the parts. The parts may be on several cores.
        terms: the most terms of a sum. The terms of a sum are two different topologies.
        catalogue: whether the decompositions of the catalogue that exist for the kernel belong to the space.

    Raises:
        RuleError: a field has a value that it cannot have.

    Example:
        >>> tn.Space(cores=(3, 4), bonds=("ring", "hyperedge"), groups=("out", "in", "kh", "kw", "kh kw"))
    """

    cores: tuple[int, int] = (2, 4)
    bonds: BondPattern | Sequence[BondPattern] = ("tree", "ring", "complete", "hyperedge")
    groups: Sequence[str] | None = None
    parts: Mapping[str, int | Sequence[int]] = field(default_factory=dict)
    terms: int = 1
    catalogue: bool = True

    def __post_init__(self) -> None:
        bonds = (self.bonds,) if isinstance(self.bonds, str) else tuple(self.bonds)
        object.__setattr__(self, "bonds", bonds)
        object.__setattr__(self, "parts", {label: _part_sizes(label, each) for label, each in self.parts.items()})
        if self.groups is not None:
            groups = (self.groups,) if isinstance(self.groups, str) else self.groups
            object.__setattr__(self, "groups", tuple(" ".join(labels_of(group)) for group in groups))
        low, high = self.cores if len(self.cores) == 2 else (0, 0)
        if not 2 <= low <= high <= MOST_CORES:
            fact = f"cores={self.cores!r} are not the fewest and the most cores of a term"
            raise RuleError(fact, fix=f"two integers from 2 to {MOST_CORES}, such as (2, 4)")
        wrong = [pattern for pattern in bonds if pattern not in get_args(BondPattern)]
        if wrong or not (bonds or self.catalogue):
            fact = f"{wrong[0]!r} is not a pattern of bonds" if wrong else "a space without patterns is empty"
            raise RuleError(fact, known=", ".join(get_args(BondPattern)))
        if self.terms not in (1, 2):
            raise RuleError(f"terms={self.terms!r} is not a number of terms", fix="terms=1, or 2 for sums")
        if self.terms == 2 and self.parts:
            raise RuleError("the labels of sums are not split into parts", fix="terms=1, or no parts")

    def check(self, labels: Sequence[str]) -> None:
        """Raise RuleError if the space has labels that a kernel lacks."""
        for label in self.parts:
            if label not in labels:
                raise RuleError(f"the kernel has no label {label!r} to split", labels=" ".join(labels))
        known = {*labels, *chain.from_iterable(parts_of(self, labels).values())}
        for group in self.groups or ():
            for label in labels_of(group):
                if label not in known:
                    raise RuleError(f"the kernel has no label {label!r}", group=group, labels=" ".join(labels))

    def topologies(self, labels: str | Sequence[str], *, most: int | None = None) -> list[Topology]:
        """The topologies for a kernel with these labels, isomorphic ones once, those of the catalogue first.

        Args:
            labels: of the kernel.
            most: how many are listed at most; by default all.

        Raises:
            RuleError: a group or a part has a label that the kernel lacks, or the space has no topology.

        Example:
            >>> [topology.name for topology in tn.Space(cores=(2, 2)).topologies("out in kh kw")]
        """
        labels = labels_of(labels)
        self.check(labels)
        seen = Distinct()
        unique = filter(seen.add, chain(self.listed(labels), self._generated(labels)))
        listed = list(islice(unique, most))
        if not listed:
            fact = "the space has no topology for these labels"
            raise RuleError(fact, space=self, labels=" ".join(labels), fix="other groups, more cores or more patterns")
        return listed

    def listed(self, labels: Sequence[str]) -> Iterator[Topology]:
        """The decompositions of the catalogue, if they belong to the space."""
        for entry in rules(labels).decompositions if self.catalogue else ():
            if not entry.stated:
                yield Topology(entry)

    def _generated(self, labels: tuple[str, ...]) -> Iterator[Topology]:
        terms = self.structures(labels)
        if self.terms == 1:
            for groups, bonds in terms:
                yield self.topology(labels, [(groups, bonds)])
            return
        before: list[Structure] = []
        for term in terms:
            yield self.topology(labels, [term])
            yield from (self.topology(labels, [other, term]) for other in before)
            before.append(term)

    def structures(self, labels: Sequence[str]) -> Iterator[Structure]:
        """Every term: which labels its cores hold, and which cores each bond joins. Isomorphic ones may be repeated."""
        split = parts_of(self, labels)
        carried = [part for label in labels for part in split.get(label, (label,))]
        for count in range(self.cores[0], self.cores[1] + 1):
            for held in range(1, min(count, len(carried)) + 1):
                for groups in _partitions(carried, held):
                    if self.allows(groups):
                        cores = (*groups, *[()] * (count - held))
                        for pattern in self.bonds:
                            for bonds in PATTERNS[pattern](count):
                                if is_reduced(cores, bonds):
                                    yield cores, bonds

    def allows(self, groups: Iterable[Sequence[str]]) -> bool:
        """Whether cores may hold these groups of labels."""
        allowed = None if self.groups is None else {frozenset(labels_of(group)) for group in self.groups}
        return allowed is None or all(frozenset(group) in allowed for group in groups)

    def topology(self, labels: Sequence[str], terms: Sequence[Structure]) -> Topology:
        """The topology with these terms, as a rule in the notation."""
        split = parts_of(self, labels)
        texts, taken, cores, joined = [], {*labels, *chain.from_iterable(split.values())}, 0, 0
        for groups, bonds in terms:
            whole = {label for label, parts in split.items() if any({*parts} <= {*group} for group in groups)}
            words = [_take(f"r{joined + number}", taken) for number in range(1, len(bonds) + 1)]
            nodes = [
                _fuse_text(label, parts, self.parts[label]) for label, parts in split.items() if label not in whole
            ]
            for number, group in enumerate(groups):
                held = [
                    word
                    for label in labels
                    for word in ([label] if label in whole else split.get(label, (label,)))
                    if {*split.get(label, (label,))} <= {*group} or word in group
                ]
                ends = [word for word, joins in zip(words, bonds, strict=True) if number in joins]
                nodes.append(f"{_core_name(cores + number)}[{' '.join([*held, *ends])}]")
            cores, joined = cores + len(groups), joined + len(bonds)
            texts.append(" ".join(nodes))
        return Topology(rule(f"K[{' '.join(labels)}] => {' + '.join(texts)}"))


Structure: TypeAlias = tuple[tuple[tuple[str, ...], ...], Bonds]
"""A term: the open labels of each core, and for each bond the numbers of its cores."""


def is_reduced(cores: Sequence[Sequence[str]], bonds: Bonds) -> bool:
    """Whether every core without open labels has at least three bonds."""
    times = Counter(chain.from_iterable(bonds))
    return all(group or times[number] > 2 for number, group in enumerate(cores))


class Distinct:
    """Topologies that were seen, of which no two are isomorphic."""

    def __init__(self) -> None:
        self._seen: dict[object, list[Topology]] = {}

    def add(self, topology: Topology) -> bool:
        """Whether the topology is a new one, which is then remembered."""
        alike = self._seen.setdefault(topology.signature, [])
        if any(topology.is_like(other) for other in alike):
            return False
        alike.append(topology)
        return True


# Bonds --------------------------------------------------------------------------------------------------------


def tree_of_code(code: Sequence[int], count: int) -> Bonds:
    """The tree of a Pruefer code, of `count - 2` numbers below `count`."""
    if count == 2:
        return ((0, 1),)
    return tuple(sorted(tuple(sorted(edge)) for edge in networkx.from_prufer_sequence(list(code)).edges))


def ring_of_order(order: Sequence[int]) -> Bonds:
    """The ring through some cores in this order."""
    return tuple(sorted(tuple(sorted(pair)) for pair in zip(order, [*order[1:], order[0]], strict=True)))


def _trees(count: int) -> Iterator[Bonds]:
    for code in product(range(count), repeat=count - 2):
        yield tree_of_code(code, count)


def _rings(count: int) -> Iterator[Bonds]:
    for order in permutations(range(1, count)) if count > 2 else ():
        if order[0] < order[-1]:
            yield ring_of_order((0, *order))


def _complete(count: int) -> Iterator[Bonds]:
    yield tuple(combinations(range(count), 2))


def _hyperedge(count: int) -> Iterator[Bonds]:
    if count > 2:
        yield (tuple(range(count)),)


def _blocks(count: int) -> Iterator[Bonds]:
    for (everywhere,) in _hyperedge(count):
        for tree in _trees(count):
            yield (*tree, everywhere)


def _graphs(count: int) -> Iterator[Bonds]:
    pairs = list(combinations(range(count), 2))
    for size in range(count - 1, len(pairs) + 1):
        for edges in combinations(pairs, size):
            if is_connected(edges, count):
                yield edges


def is_connected(bonds: Bonds, count: int) -> bool:
    """Whether bonds join all of `count` cores."""
    graph: networkx.Graph[object] = networkx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from((end, bond) for bond in bonds for end in bond)
    return networkx.is_connected(graph)


PATTERNS: Mapping[str, Callable[[int], Iterator[Bonds]]] = {
    "tree": _trees,
    "ring": _rings,
    "complete": _complete,
    "hyperedge": _hyperedge,
    "block": _blocks,
    "graph": _graphs,
}
"""Name of a pattern -> all its bonds for a number of cores."""


def _partitions(labels: Sequence[str], count: int) -> Iterator[tuple[tuple[str, ...], ...]]:
    """The partitions of labels into a number of groups, each group in the order of the labels."""
    if not labels:
        if count == 0:
            yield ()
        return
    first, rest = labels[0], labels[1:]
    for groups in _partitions(rest, count - 1) if count else ():
        yield ((first,), *groups)
    for groups in _partitions(rest, count) if count else ():
        for number, group in enumerate(groups):
            yield (*groups[:number], (first, *group), *groups[number + 1 :])


# Labels -------------------------------------------------------------------------------------------------------


def parts_of(space: Space, labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Label -> the words for its parts."""
    taken = {*labels}
    return {
        label: tuple(_take(f"{label}{number}", taken) for number in range(1, len(sizes) + 1))  # type: ignore[arg-type]
        for label, sizes in space.parts.items()
    }


def _part_sizes(label: str, parts: object) -> tuple[int, ...]:
    """The sizes of the parts of a label; 0 for those that become as equal as can be."""
    sizes = (0,) * parts if isinstance(parts, int) and 2 <= parts <= MOST_CORES else parts
    if not isinstance(sizes, tuple | list) or len(sizes) < 2 or not all(isinstance(size, int) for size in sizes):
        fact = f"the parts of {label!r} are {parts!r}"
        raise RuleError(fact, fix=f"their number, from 2 to {MOST_CORES}, or their sizes, such as (4, 16)")
    return tuple(sizes)


def _fuse_text(label: str, parts: Sequence[str], sizes: Any) -> str:
    words = [f"{part}:{size}" if size else part for part, size in zip(parts, sizes, strict=True)]
    return f"Fuse[{label} {' '.join(words)}]"


def _take(word: str, taken: set[str]) -> str:
    free = fresh(word, taken)
    taken.add(free)
    return free


def _core_name(number: int) -> str:
    times, place = divmod(number, 26)
    return f"{chr(ord('A') + place)}{times or ''}"
