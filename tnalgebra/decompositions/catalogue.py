"""The list of decompositions by name, the rules that a user adds to it, and how a rewrite is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from .._tables import Table, Tabular, tabulate
from ..errors import RuleError, TnalgebraError
from ..networks import KERNEL_LABELS, check_covers, labels_of, parse_bipartition
from ..rewriting import EXACT_RULES, Fit, Rule, rule
from .cuts import cut
from .families import (
    LabelWords,
    block_term,
    cp,
    depthwise_separable,
    distinct,
    hierarchical_tucker,
    projection,
    spatially_separable,
    tensor_ring,
    tensor_train,
    tucker,
    tucker2,
)
from .reshaped import matrix_product_operator, monarch, reshaped_ring, reshaped_train


@dataclass(frozen=True)
class Entry:
    """A decomposition by name, which has a rule for each kind of kernel that it exists for.

    name: the name of its rules.
    source: what it is, in one sentence, and the paper that it comes from.
    make: makes the rule for some labels; raises RuleError where it does not exist.
    """

    name: str
    source: str
    make: Callable[[LabelWords], Rule]

    def rule(self, labels: LabelWords) -> Rule:
        """Make the rule for a tensor with these labels. Raises RuleError, with the reason, where it does not exist."""
        labels = labels_of(labels)
        try:
            return replace(self.make(labels), explanation=self.source)
        except RuleError as error:
            raise RuleError(f"{self.name} does not exist for K[{' '.join(labels)}]", because=error) from error


CATALOGUE = (
    Entry(
        "tucker",
        "A core and a factor for every label: Tucker 1966 (Psychometrika 31), by the higher-order SVD of De Lathauwer, "
        "De Moor and Vandewalle 2000 (SIAM J. Matrix Anal. Appl. 21).",
        tucker,
    ),
    Entry(
        "tucker2",
        "Tucker of the two channels, the window stays whole: Kim et al. 2016 (ICLR).",
        tucker2,
    ),
    Entry(
        "cp",
        "A sum of outer products of vectors: Hitchcock 1927 (J. Math. Phys. 6); of kernels, Lebedev et al. 2015 "
        "(ICLR).",
        cp,
    ),
    Entry(
        "tensor_train",
        "A row of cores, each joined to the next: Oseledets 2011 (SIAM J. Sci. Comput. 33).",
        tensor_train,
    ),
    Entry(
        "tensor_ring",
        "A train whose ends are joined: Zhao et al. 2016 (arXiv 1606.05535).",
        tensor_ring,
    ),
    Entry(
        "hierarchical_tucker",
        "A factor for every label, joined two by two by a binary tree of cores: Hackbusch and Kuehn 2009 (J. Fourier "
        "Anal. Appl. 15), Grasedyck 2010 (SIAM J. Matrix Anal. Appl. 31).",
        hierarchical_tucker,
    ),
    Entry(
        "block_term",
        "A sum of Tucker decompositions of the two channels: De Lathauwer 2008 (SIAM J. Matrix Anal. Appl. 30).",
        block_term,
    ),
    Entry(
        "reshaped_train",
        "A train over parts of the channels, the window on its last core: Garipov et al. 2016 (arXiv 1611.03214).",
        reshaped_train,
    ),
    Entry(
        "reshaped_ring",
        "A ring over parts of the channels: after Wang et al. 2018 (CVPR), where every part has a core of its own.",
        reshaped_ring,
    ),
    Entry(
        "mpo",
        "A linear layer as a matrix product operator, a train over pairs of parts: Novikov et al. 2015 (NIPS).",
        matrix_product_operator,
    ),
    Entry(
        "monarch",
        "A linear layer as two block-diagonal matrices with a transposition between them: Dao et al. 2022 (ICML).",
        monarch,
    ),
    Entry(
        "spatially_separable",
        "Every filter an outer product of vectors: Rigamonti et al. 2013 (CVPR); filters that channels share, as in "
        "Jaderberg et al. 2014 (BMVC), are the cut `out kw | in kh`.",
        spatially_separable,
    ),
    Entry(
        "depthwise_separable",
        "A filter for every input channel, then a matrix of the channels: Howard et al. 2017 (arXiv 1704.04861); of "
        "trained kernels, He et al. 2019 (arXiv 1910.09455).",
        depthwise_separable,
    ),
    Entry(
        "dct",
        "The window in the basis of the discrete cosine transform, of which some vectors are kept: Ahmed, Natarajan "
        "and Rao 1974 (IEEE Trans. Comput. C-23); of kernels, Chen et al. 2016 (KDD).",
        projection,
    ),
)
"""All decompositions by name. Cuts are not in the list: each bipartition of the labels is a cut, and its text is its
name."""

ADAPTERS: Mapping[str, str] = {
    "LoRA": "W[out *in] => B[out r] A[r *in]",
    "LoHa": "W[out *in] => B1[out r] A1[r *in] B2[out s] A2[s *in]",
    "LoKr": "W[out in *k] => Fuse[out o1 o2] Fuse[in i1 i2] C[o1 i1] B[o2 r] A[r i2 *k]",
}
"""Adapters that have a name, one line each; they are read like the names of decompositions. Sources: Hu et al. 2021
(arXiv 2106.09685); Hyeon-Woo et al. 2022 (arXiv 2108.06098); products of Kronecker, Yeh et al. 2024 (arXiv 2309.14859).
"""

_REGISTERED: dict[str, Rule] = {}


@dataclass(frozen=True, repr=False)
class Rules(Tabular):
    """The rules for tensors with some labels. `print(rules())` lists them, `rules()["cp"]` is one of them.

    labels: of the tensor.
    exact, decompositions, registered: the rules, in the order of the lists.
    missing: name of a decomposition -> why these labels have none.
    """

    labels: tuple[str, ...]
    exact: tuple[Rule, ...]
    decompositions: tuple[Rule, ...]
    registered: tuple[Rule, ...]
    missing: Mapping[str, str]

    def __iter__(self) -> Iterator[Rule]:
        yield from (*self.exact, *self.decompositions, *self.registered)

    def __len__(self) -> int:
        return len(self.exact) + len(self.decompositions) + len(self.registered)

    def __contains__(self, name: object) -> bool:
        return any(entry.name == name for entry in self)

    def __getitem__(self, name: str) -> Rule:
        """The rule of that name. Raises RuleError if no rule has it, with those of similar names."""
        for entry in self:
            if entry.name == name:
                return entry
        if name in self.missing:
            raise RuleError(f"{name} does not exist for K[{' '.join(self.labels)}]", because=self.missing[name])
        raise _unknown(name, [*(entry.name for entry in self), *ADAPTERS])

    def _lists(self) -> dict[str, tuple[Rule, ...]]:
        return {"exact": self.exact, "decomposition": self.decompositions, "registered": self.registered}

    def _summary(self) -> str:
        counts = f"{len(self.exact)} exact, {len(self.decompositions)} decompositions"
        return f"for K[{' '.join(self.labels)}]: {counts}, {len(self.registered)} registered"

    def _table(self) -> Table:
        cut = f"{self.labels[0]} | {' '.join(self.labels[1:])}"
        below = ["", f"Besides these, every cut of the labels is a rule, and its text is its name: '{cut}'."]
        if self.missing:
            below += ["", f"Decompositions that do not exist for K[{' '.join(self.labels)}]:"]
            below += [f"  {name}: {reason.splitlines()[0]}" for name, reason in self.missing.items()]
        columns: dict[str, Callable[[dict[str, Any]], str]] = {
            "rule": lambda row: row["name"],
            "list": lambda row: row["list"],
            "ranks": lambda row: " ".join(row["ranks"]),
            "sizes": lambda row: " ".join(row["sizes"]),
            "equation": lambda row: row["equation"],
        }
        return tabulate(self.records(), columns, left=("list", "ranks", "sizes", "equation"), below=below)

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each rule: the list that it is in ("exact", ...), and the keys of `Rule.records`."""
        return [
            {"list": name, **record}
            for name, entries in self._lists().items()
            for entry in entries
            for record in entry.records()
        ]


def rules(labels: LabelWords | None = None) -> Rules:
    """List all rules: the exact ones, the decompositions of tensors with these labels, and the registered ones.

    Args:
        labels: such as "out in kd kh kw". By default the labels of a 2-d kernel; decompositions that exist for linear
            layers only are then listed for these.

    Returns:
        The rules: printed as a table; by name, `tn.rules()["cp"]`; or one after the other in a loop.

    Raises:
        RuleError: there are fewer than two labels, or one occurs twice.

    Example:
        >>> print(tn.rules())
    """
    given = distinct(KERNEL_LABELS[4] if labels is None else labels)
    found, missing = [], {}
    for entry in CATALOGUE:
        try:
            found.append(replace(entry.make(given), explanation=entry.source))
        except RuleError as error:
            if labels is None:
                found.append(entry.rule(KERNEL_LABELS[2]))
            else:
                missing[entry.name] = str(error)
    return Rules(given, EXACT_RULES, tuple(found), tuple(_REGISTERED.values()), missing)


def register(given: Rule) -> Rule:
    """Add a rule to the list, so that its name can be used wherever a rule is expected.

    A rule that is registered already may be registered again, as happens where a cell of a notebook runs twice: a
    rule of the same name, equation and constants takes its place.

    Args:
        given: a rule with a name of its own.

    Returns:
        The same rule, so that one line makes and registers it.

    Raises:
        RuleError: the rule has no name of its own, or another rule has that name.

    Example:
        >>> ring = tn.register(tn.rule("K[o i h w] => A[o p z] B[p i q] C[q h w z]", name="my_ring"))
    """
    if not isinstance(given, Rule):
        raise RuleError(f"a {type(given).__name__} is registered", fix="a rule: tn.rule(..., name=...)")
    if not given.name.strip() or "|" in given.name or "=>" in given.name:
        raise RuleError(f"the rule {given.name!r} has no name of its own", fix="tn.rule(..., name='my_rule')")
    for entry in CATALOGUE:
        if entry.name == given.name:
            fact = f"{given.name!r} is the name of a decomposition of the catalogue"
            raise RuleError(fact, decomposition=entry.source, fix="another name")
    known = {**ADAPTERS, **{entry.name: entry.equation for entry in EXACT_RULES}}
    if given.name in known:
        fact = f"{given.name!r} is the name of a rule of tnalgebra"
        raise RuleError(fact, rule=known[given.name], fix="another name")
    other = _REGISTERED.get(given.name)
    if other is not None and not _same(other, given):
        fix = f"another name, or unregister({given.name!r}) first"
        raise RuleError(f"a rule is registered as {given.name!r} already", rule=other.equation, fix=fix)
    _REGISTERED[given.name] = given
    return given


def _same(one: Rule, other: Rule) -> bool:
    """Whether two rules of one name do the same."""
    return (one.kind, one.equation, one.fixed) == (other.kind, other.equation, other.fixed)


def unregister(name: str) -> None:
    """Take a registered rule off the list. Raises RuleError if no rule has that name."""
    if name not in _REGISTERED:
        raise RuleError(f"no rule {name!r} is registered", registered=", ".join(_REGISTERED) or "none")
    del _REGISTERED[name]


def read_rewrite(rewrite: str | Rule | Fit | Any, labels: LabelWords) -> Rule:
    """Read a rewrite: the rule that a user means for a tensor of these labels.

    Args:
        rewrite: a rule; the name of a decomposition or of a registered rule, "cp"; a cut, "out kh | in kw"; a rule in
            the notation, "K[out in *k] => ..."; or a fit, which stands for the rule that made it.
        labels: of the tensor that the rule will be applied to, in the order of its axes.

    Raises:
        RuleError: no rule has the name (similar names are listed); the decomposition does not exist for these labels;
            the cut does not hold them; the text is two cuts with `then`, or the name of an exact rule, which are not
            decompositions; the fit was made by several rules.
        NotationError, NetworkError, SizeError: a text with `=>` that is not a rule.

    Example:
        >>> read_rewrite("out kh | in kw", "out in kh kw").equation
        'K[out in kh kw] => L[out kh r] R[r in kw]'
    """
    if isinstance(rewrite, Rule):
        return rewrite
    if isinstance(rewrite, Fit):
        steps = rewrite.trace.steps
        if len(steps) == 1 and isinstance(rule_of_fit := steps[0].rule, Rule):
            return rule_of_fit
        fact = f"a fit of {len(steps)} steps does not stand for one rule"
        raise RuleError(fact, steps=", ".join(step.rule.name for step in steps) or None, fix="a rule")
    if not isinstance(rewrite, str):
        fact = f"a rewrite is given as a {type(rewrite).__name__}"
        raise RuleError(fact, fix="a rule, its name, a cut, notation such as K[...] => ..., or a fit")
    labels = labels_of(labels)
    if "=>" in rewrite:
        return rule(rewrite)
    left = f"K[{' '.join(labels)}]"
    if "[" in rewrite:
        raise RuleError("a network is given where a rule is expected", where=rewrite, fix=f"{left} => {rewrite}")
    if "|" in rewrite:
        return _cut(rewrite, labels, left)
    name = rewrite.strip()
    if name in _REGISTERED:
        return _REGISTERED[name]
    for entry in CATALOGUE:
        if entry.name == name:
            return entry.rule(labels)
    if name in ADAPTERS:
        return rule(ADAPTERS[name], name=name)
    if any(entry.name == name for entry in EXACT_RULES):
        raise RuleError(
            f"{name!r} is an exact rule, not a decomposition", fix="rewrite(network, [...]), or its own apply"
        )
    raise _unknown(name, [*(entry.name for entry in CATALOGUE), *ADAPTERS, *_REGISTERED])


def _cut(text: str, labels: tuple[str, ...], left: str) -> Rule:
    if re.search(r"\bthen\b", text):
        raise RuleError(
            "cuts that follow one another are several rules, not one",
            where=text,
            fix="tn.decompositions.cut_sequence(...), each applied to what the one before it made",
        )
    try:
        bipartition = parse_bipartition(text)
        check_covers(bipartition, labels, what=left)
    except TnalgebraError as error:
        raise RuleError(f"the cut {text!r} does not fit", because=error) from error
    return cut(bipartition, of=None if labels in KERNEL_LABELS.values() else left)


def _unknown(name: str, known: list[str]) -> RuleError:
    lower = {word.lower(): word for word in known}
    near = [lower[word] for word in get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    return RuleError(
        f"no rule is called {name!r}",
        similar=", ".join(near) or None,
        known=", ".join(known),
        fix="one of these, a cut ('out | in kh kw'), or a rule (K[out in kh kw] => ...)",
    )
