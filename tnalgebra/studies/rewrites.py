"""Rewrites of kernels as a user names them, cuts that follow one another among them, and their form for each shape."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from ..decompositions import cut_sequence, read_rewrite
from ..errors import NetworkError, NotationError, RankError, RuleError, SizeError, ValuesError
from ..fitting import NoTreeError, Rank, bonds_of, tree_of
from ..model import Planned
from ..networks import WORD, Network, count_parameters, parse_bipartition, resized
from ..rewriting import Fit, Rule, rule
from .kernels import Layer
from .rows import BASELINE

NO_FORM = (RuleError, SizeError, ValuesError, NetworkError, NotationError)
"""The errors that say that a rewrite does not exist for kernels of some labels or sizes."""


@dataclass(frozen=True, eq=False)
class Form:
    """A rewrite for kernels of one shape.

    rule: the rule for their labels.
    network: its right side, where every bond that the caller chooses has size 1.
    equation: both sides without sizes.
    full: bond -> a rank beyond which nothing is gained.
    spectral: whether every bond that the caller chooses has singular values, so that a part of them can be kept.
    """

    rule: Rule
    network: Network
    equation: str
    full: Mapping[str, int]
    spectral: bool

    def plan(self, ranks: Mapping[str, Rank]) -> Planned:
        """What is done at these ranks, where an integer above the full rank becomes the full rank.

        The parameters are counted at the full rank of a bond whose rank is not an integer.
        """
        chosen = {bond: ranks[bond] for bond in self.rule.ranks}
        capped = {bond: min(rank, self.full[bond]) if isinstance(rank, int) else rank for bond, rank in chosen.items()}
        counted = {bond: rank if isinstance(rank, int) else self.full[bond] for bond, rank in capped.items()}
        right = resized(self.network, {**self.network.sizes, **counted})
        return Planned(self.rule, capped, count_parameters(right, self.rule.fixed))


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A rewrite as the user names it, and its form for each kernel.

    text: the name that rows have.
    source: what `read_rewrite` reads.
    cuts: the rules of a cut, or of several cuts that follow one another on a kernel; empty for other rewrites.
    """

    text: str
    source: str | Rule
    cuts: tuple[Rule, ...] = ()
    _rules: dict[tuple[str, ...], Rule] = field(default_factory=dict)
    _forms: dict[tuple[object, ...], Form] = field(default_factory=dict)

    @classmethod
    def read(cls, rewrite: object) -> Rewrite:
        """Read a rewrite: whatever `tn.decompositions.read_rewrite` reads, or "A then B", which cuts a kernel twice.

        Raises:
            RuleError, NotationError, NetworkError, SizeError: it cannot be read.
        """
        if isinstance(rewrite, Fit):
            rewrite = read_rewrite(rewrite, ())
        if isinstance(rewrite, Rule):
            if "cut" not in rewrite.spec:
                return cls(rewrite.name, rewrite)
            rewrite = rewrite.spec["cut"]  # as text, so that a layer whose labels have another order gets its own rule
        if not isinstance(rewrite, str) or not rewrite.strip() or rewrite.strip() == BASELINE.rewrite:
            fix = "a name of the catalogue, a cut, a rule in the notation, a Rule, or a Fit"
            raise RuleError(f"rewrites holds {rewrite!r}", fix=fix)
        text = " ".join(rewrite.split())
        if "=>" in text:
            return cls(text, rule(text))
        if "|" in text:
            cuts = cut_sequence(text)
            text = " then ".join(cut.name for cut in cuts)
            return cls(text, text, cuts)
        return cls(text, text)

    @property
    def identity(self) -> Hashable:
        """What is done, however it is written: the order of a cut's sides and of their labels makes no difference."""
        sides = [parse_bipartition(cut.name) for cut in self.cuts]
        return tuple(frozenset((frozenset(cut.left), frozenset(cut.right))) for cut in sides) or self.text

    def form(self, layer: Layer) -> Form:
        """The rewrite for a kernel's labels and sizes. Raises one of `NO_FORM` where it does not exist."""
        shape = (layer.labels, *layer.weight.shape)
        if shape not in self._forms:
            if layer.labels not in self._rules:
                self._rules[layer.labels] = self._rule(layer.labels)
            decomposition = self._rules[layer.labels]
            # applied once, cheaply: the sure way to see whether the rule can be applied, and which network it makes
            ones = dict.fromkeys(decomposition.ranks, 1)
            once = decomposition.apply(layer.weight, ones or None, starts=1, sweeps=0)
            left, right = (resized(side, {}) for side in (once.trace.start, once.network))
            full, spectral = full_ranks(once.network), ones.keys() <= tree_bonds(once.network).keys()
            self._forms[shape] = Form(decomposition, once.network, f"{left} => {right}", full, spectral)
        return self._forms[shape]

    def _rule(self, labels: tuple[str, ...]) -> Rule:
        decomposition = read_rewrite(self.source, labels)
        if decomposition.kind != "approximate" or decomposition.start is None:
            fact = f"the rule {decomposition.name!r} is exact: it does not decompose a kernel"
            raise RuleError(fact, rule=decomposition.equation, fix="a decomposition")
        return decomposition

    def bonds(self, layers: Iterable[Layer]) -> tuple[str, ...]:
        """The bonds whose ranks have to be chosen, for any of these layers; empty for several cuts."""
        if self.cuts:
            return self.cuts[0].ranks if len(self.cuts) == 1 else ()
        return tuple(dict.fromkeys(bond for layer in layers for bond in self.form(layer).rule.ranks))

    def suited(self, layers: Sequence[Layer]) -> list[Layer]:
        """The layers that it exists for. A cut is for those that have exactly its labels.

        Raises:
            RuleError: it exists for none of them; the reasons are listed.
        """
        chosen: list[Layer] = []
        reasons: dict[tuple[str, ...], str] = {}
        for layer in layers:
            try:
                if self.cuts:
                    _check_labels(self.cuts[0], layer.labels)
                else:
                    self.form(layer)
                chosen.append(layer)
            except NO_FORM as error:
                reasons.setdefault(layer.labels, f"K[{' '.join(layer.labels)}] of {layer.name!r}: {error}")
        if not chosen:
            raise RuleError(f"the rewrite {self.text!r} fits no layer", because="\n".join(reasons.values()))
        return chosen


def _check_labels(cut: Rule, labels: Sequence[str]) -> None:
    of_cut, of_layer = set(parse_bipartition(cut.name).labels), set(labels)
    if of_cut != of_layer:
        missing, unknown = " ".join(sorted(of_layer - of_cut)), " ".join(sorted(of_cut - of_layer))
        raise RuleError("the cut has other labels", missing=missing or None, unknown=unknown or None)


def full_ranks(right: Network) -> dict[str, int]:
    """Bond -> a rank beyond which nothing is gained.

    For a bond of a tree that is its number of singular values, at which nothing is lost. For parallel bonds, and for
    bonds of loops and hyperedges, it is the number of elements of the kernel, which is more than any of them needs.
    """
    most = prod(right.sizes[label] for label in right.output)
    return {**dict.fromkeys(bonds_of(right), most), **tree_bonds(right)}


def tree_bonds(right: Network) -> dict[str, int]:
    """The bonds that have singular values, each with their number: those of trees that are not parallel to another."""
    try:
        tree = tree_of(right)
    except NoTreeError:
        return {}
    counts = {}
    for edge in tree.edges:
        rows = tree.rows[edge.child]
        columns = [label for label in tree.open if label not in rows and label not in edge.batch]
        if len(edge.bonds) == 1:
            counts[edge.bonds[0]] = min(prod(right.sizes[label] for label in side) for side in (rows, columns))
    return counts


def read_ranks(texts: Iterable[str]) -> list[dict[str, int]]:
    """Read ranks of several bonds that change together: "a=4,8 b=2" is [{"a": 4, "b": 2}, {"a": 8, "b": 2}].

    The i-th mapping has the i-th rank of each bond that has at least i ranks, and the rank of each bond that has one.

    Raises:
        RankError: a part is not a bond with its ranks, or a bond occurs twice.
    """
    sweep: dict[str, list[int]] = {}
    for part in " ".join(texts).split():
        match = re.fullmatch(rf"({WORD.pattern})=([0-9]+(?:,[0-9]+)*)", part)
        ranks = [int(number) for number in match[2].split(",")] if match else []
        if match is None or match[1] in sweep or 0 in ranks:
            fix = "each bond once, with its ranks, integers of at least 1: r=16,32"
            raise RankError(f"ranks holds {part!r}", fix=fix)
        sweep[match[1]] = ranks
    return [
        {bond: ranks[min(i, len(ranks) - 1)] for bond, ranks in sweep.items() if i < len(ranks) or len(ranks) == 1}
        for i in range(max(map(len, sweep.values()), default=0))
    ]
