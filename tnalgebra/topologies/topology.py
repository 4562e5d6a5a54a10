"""A topology: the right side of a rule, its cores and its bonds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ..fitting import bonds_of, open_labels
from ..networks import Network, isomorphic, parse_rule, tensors_of
from ..rewriting import Rule


@dataclass(frozen=True, eq=False)
class Topology:
    """What a kernel is decomposed into, without sizes of bonds.

    Attributes:
        rule: a rule whose left side is the kernel alone.
    """

    rule: Rule

    @property
    def name(self) -> str:
        """The name in the catalogue, or the notation; `tn.decompositions.read_rewrite` reads both."""
        return self.rule.name

    @property
    def notation(self) -> str:
        """The rule in the notation."""
        return self.rule.spec["notation"]

    @cached_property
    def right(self) -> Network:
        """The right side of the rule."""
        return parse_rule(self.notation)[1]

    @cached_property
    def cores(self) -> Mapping[str, tuple[str, ...]]:
        """The labels of each core."""
        return {name: node.labels for name, node in tensors_of(self.right).items()}

    @cached_property
    def bonds(self) -> tuple[str, ...]:
        return bonds_of(self.right)

    @cached_property
    def open(self) -> tuple[str, ...]:
        """The open labels; of a label that is split, its parts."""
        return open_labels(self.right)

    @cached_property
    def is_plain(self) -> bool:
        """Whether cuts bound its error: one term of free cores, each open label on one core and each core once."""
        occurs = Counter(label for labels in self.cores.values() for label in labels)
        once = all(occurs[label] == 1 for label in self.open)
        return once and len(self.right.terms) == 1 and not self.rule.fixed

    @cached_property
    def signature(self) -> object:
        """Equal for isomorphic topologies: the open labels and the number of bonds of each core, in each term."""
        known = {*self.open, *self.right.output}
        terms = [
            frozenset(Counter((frozenset({*node.labels} & known), len(node.labels)) for node in term.nodes).items())
            for term in self.right.terms
        ]
        return frozenset(Counter(terms).items()), frozenset(self.rule.fixed.items())

    def is_like(self, other: Topology) -> bool:
        """Whether the two are the same up to the words for cores and bonds, and the order of the labels of cores."""
        return isomorphic(self.right, other.right, ordered=False)

    def __str__(self) -> str:
        return self.name
