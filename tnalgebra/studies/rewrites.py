"""Rewrites of kernels as a user names them, cuts among them, and what they are for kernels of one shape."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from ..decompositions import cut_sequence, read_rewrite
from ..errors import NetworkError, NotationError, RankError, RuleError, SizeError, ValuesError, explain
from ..fitting import NoTreeError, bonds_of, tree_of
from ..model import Planned
from ..networks import WORD, Network, parameters, parse_bipartition
from ..rewriting import Rule, rule
from .kernels import Layer
from .store import BASELINE

NO_FORM = (RuleError, SizeError, ValuesError, NetworkError, NotationError)
"""Errors by which a rewrite does not exist for kernels of some labels or sizes."""


@dataclass(frozen=True, eq=False)
class Form:
    """A rewrite of kernels of one shape.

    rule: for their labels.
    network: the right side, every bond that the caller chooses of size 1.
    equation: both sides without sizes.
    full: bond -> a rank beyond which nothing is gained.
    """

    rule: Rule
    network: Network
    equation: str
    full: Mapping[str, int]

    def plan(self, ranks: Mapping[str, int]) -> Planned:
        """What is done at these ranks, each at most a full one."""
        capped = {bond: min(ranks[bond], self.full[bond]) for bond in free_bonds(self.rule)}
        right = Network(self.network.nodes, self.network.output, {**self.network.sizes, **capped})
        return Planned(self.rule, capped, parameters(right))


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A decomposition as the user names it, and its form for each kernel.

    text: as it occurs in rows.
    given: a rule; or what `read_rewrite` reads.
    cuts: of a cut, or of several that follow one another on a kernel; of other rewrites none.
    """

    text: str
    given: str | Rule
    cuts: tuple[Rule, ...] = ()
    _rules: dict[tuple[str, ...], Rule] = field(default_factory=dict)
    _forms: dict[tuple[object, ...], Form] = field(default_factory=dict)

    @property
    def identity(self) -> Hashable:
        """What is done, however it is written: the order of a cut's sides, and of their labels, makes no difference."""
        sides = [parse_bipartition(cut.name) for cut in self.cuts]
        return tuple(frozenset((frozenset(cut.left), frozenset(cut.right))) for cut in sides) or self.text

    def form(self, layer: Layer) -> Form:
        """The rewrite for a kernel's labels and sizes. Raises one of `NO_FORM`, with the reason, if it has none."""
        shape = (layer.labels, *layer.weight.shape)
        if shape not in self._forms:
            if layer.labels not in self._rules:
                self._rules[layer.labels] = self._rule(layer.labels)
            own = self._rules[layer.labels]
            # cheap, and sure to find out whether the rule can be applied, and to what network it leads
            once = own.apply(layer.weight, dict.fromkeys(free_bonds(own), 1), starts=1, sweeps=0)
            left, right = (Network(side.nodes, side.output) for side in (once.trace.start, once.network))
            self._forms[shape] = Form(own, once.network, f"{left} => {right}", full_ranks(once.network))
        return self._forms[shape]

    def _rule(self, labels: tuple[str, ...]) -> Rule:
        resolved = read_rewrite(self.given, labels)
        if resolved.kind != "approximate" or resolved.start is None:
            raise RuleError(explain(f"the rule {resolved.name!r} decomposes nothing", rule=resolved.equation))
        return resolved

    def bonds(self, layers: Iterable[Layer]) -> tuple[str, ...]:
        """The bonds whose ranks have to be chosen, for any of these layers; of several cuts none can be."""
        if self.cuts:
            return free_bonds(self.cuts[0]) if len(self.cuts) == 1 else ()
        return tuple(dict.fromkeys(bond for layer in layers for bond in free_bonds(self.form(layer).rule)))

    def suited(self, layers: Sequence[Layer]) -> list[Layer]:
        """The layers it exists for: a cut for those that have just its labels.

        Raises:
            RuleError: it exists for none of them, with the reasons.
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
            raise RuleError(explain(f"the rewrite {self.text!r} fits no layer", because="\n".join(reasons.values())))
        return chosen


def _check_labels(cut: Rule, labels: Sequence[str]) -> None:
    own = parse_bipartition(cut.name).labels
    if set(own) != set(labels):
        missing, unknown = (" ".join(sorted(set(a) - set(b))) for a, b in ((labels, own), (own, labels)))
        raise RuleError(explain("the cut has other labels", missing=missing or None, unknown=unknown or None))


def free_bonds(given: Rule) -> tuple[str, ...]:
    """The bonds whose rank the text does not state."""
    return tuple(bond for bond in given.ranks if not re.search(rf"(?<!\w){bond}:\d", given.equation))


def full_ranks(right: Network) -> dict[str, int]:
    """Bond -> a rank beyond which nothing is gained.

    That of a tree's bond is the smaller number of values of its two sides, where nothing is lost any more; that of
    parallel bonds, and of those of loops and hyperedges, the number of all elements, which is too many for any kernel.
    """
    ranks = dict.fromkeys(bonds_of(right), prod(right.sizes[label] for label in right.output))
    try:
        tree = tree_of(right)
    except NoTreeError:
        return ranks
    for edge in tree.edges:
        rows = tree.rows[edge.child]
        columns = [label for label in tree.open if label not in rows and label not in edge.batch]
        if len(edge.bonds) == 1:
            ranks[edge.bonds[0]] = min(prod(right.sizes[label] for label in side) for side in (rows, columns))
    return ranks


def read_rewrite(given: object) -> Rewrite:
    """A rewrite as the user gives it: a name, a cut, "A then B", a rule in the notation, or a rule.

    Raises:
        RuleError, NotationError, NetworkError, SizeError: it cannot be read.
    """
    if isinstance(given, Rule):
        if "cut" not in given.spec:
            return Rewrite(given.name, given)
        given = given.spec["cut"]  # a cut has labels, not axes: its rule is made for the order that a layer has them in
    if not isinstance(given, str) or not given.strip() or given.strip() == BASELINE.rewrite:
        fix = "a name of the catalogue, a cut, a rule in the notation, or a Rule"
        raise RuleError(explain(f"rewrites holds {given!r}", fix=fix))
    text = " ".join(given.split())
    if "=>" in text:
        return Rewrite(text, rule(text))
    if "|" in text:
        cuts = cut_sequence(text)
        text = " then ".join(cut.name for cut in cuts)
        return Rewrite(text, text, cuts)
    return Rewrite(text, text)


def read_ranks(texts: Iterable[str]) -> list[dict[str, int]]:
    """Read ranks that are swept together: "a=4,8 b=2" is [{"a": 4, "b": 2}, {"a": 8, "b": 2}].

    The i-th mapping has the i-th rank of each bond that has so many, and each bond that has a single rank.

    Raises:
        RankError: a part is not a bond and its ranks, or a bond occurs twice.
    """
    sweep: dict[str, list[int]] = {}
    for part in " ".join(texts).split():
        match = re.fullmatch(rf"({WORD.pattern})=([0-9]+(?:,[0-9]+)*)", part)
        ranks = [int(number) for number in match[2].split(",")] if match else []
        if match is None or match[1] in sweep or 0 in ranks:
            fix = "each bond once, with its ranks, integers of at least 1: r=16,32"
            raise RankError(explain(f"ranks holds {part!r}", fix=fix))
        sweep[match[1]] = ranks
    return [
        {bond: ranks[min(i, len(ranks) - 1)] for bond, ranks in sweep.items() if i < len(ranks) or len(ranks) == 1}
        for i in range(max(map(len, sweep.values()), default=0))
    ]
