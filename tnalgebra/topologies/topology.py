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
    def terms(self) -> tuple[tuple[str, ...], ...]:
        """The names of the cores of each term."""
        return tuple(tuple(tensors_of(term)) for term in self.right.terms)

    @cached_property
    def is_plain(self) -> bool:
        """Whether cuts bound its error: free cores, each in one term, where each open label is on one core of it."""
        distinct = len(self.cores) == sum(map(len, self.terms))
        occurs = [Counter(label for name in term for label in self.cores[name]) for term in self.terms]
        return distinct and not self.rule.fixed and all(each[label] == 1 for each in occurs for label in self.open)

    @property
    def has_spectral_ranks(self) -> bool:
        """Whether ranks follow from its cuts: those of a sum may be shared out between its terms in many ways."""
        return self.is_plain and len(self.terms) == 1

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
