"""What the families of rules are written with: names that are free, labels that are checked, rows of cores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from ..errors import RuleError, explain
from ..labels import fresh, labels_of
from ..rewriting import Rule
from .notational import rule

Labels: TypeAlias = str | Iterable[str]

FACTORS = "UVPQRSTWXYZ"
"""Names of the factors that belong to one label each: of the first label, of the second, ..."""

CORES = "ABCDEFGHIJLMNOPQRSTUVWXYZ"
"""Names of cores that stand in a row; K is the left side."""

FACTOR_BONDS = "abcdefghijklmnopqrsuvwxyz"
"""Bonds of the factors; t counts terms."""

ROW_BONDS = "pqstuvwxyabcdefghijklmno"
"""Bonds along a row of cores; r is the bond of CP and cuts, z closes a ring."""


def made(labels: Sequence[str], nodes: Iterable[str], name: str, fixed: Mapping[str, str] | None = None) -> Rule:
    return rule(f"{node('K', labels)} => {' '.join(nodes)}", name=name, fixed=fixed)


def node(name: str, labels: Iterable[str]) -> str:
    return f"{name}[{' '.join(labels)}]"


def nth(alphabet: str, number: int) -> str:
    """The word at that place of the alphabet, counted from 0; after its end it begins anew, as A_2, B_2, ..."""
    times, place = divmod(number, len(alphabet))
    return f"{alphabet[place]}_{times + 1}" if times else alphabet[place]


def take(word: str, taken: set[str]) -> str:
    """`word`, or the next like it that is free; it is taken from then on."""
    found = fresh(word, taken)
    taken.add(found)
    return found


def distinct(labels: Labels) -> tuple[str, ...]:
    found = labels_of(labels)
    if len(found) < 2:
        raise RuleError(
            explain(
                f"a tensor of {len(found)} labels has no decomposition",
                labels=" ".join(found) or "none",
                fix="at least two, for example 'out in kh kw'",
            )
        )
    for label in found:
        if found.count(label) > 1:
            raise RuleError(explain(f"the label {label!r} stands twice", labels=" ".join(found), fix="each label once"))
    return found


def among(labels: tuple[str, ...], chosen: Labels, *, what: str) -> tuple[str, ...]:
    """The chosen labels in the order of all."""
    found = labels_of(chosen)
    for label in found:
        if label not in labels:
            raise RuleError(explain(f"the {what} {label!r} is none of the labels", labels=" ".join(labels)))
        if found.count(label) > 1:
            raise RuleError(explain(f"the {what} {label!r} stands twice", given=" ".join(found), fix="each once"))
    if not found:
        raise RuleError(explain(f"no {what} is given", labels=" ".join(labels), fix="one of these, or more"))
    return tuple(label for label in labels if label in found)


def channels_of(labels: tuple[str, ...]) -> tuple[str, str]:
    """The labels of the output's and the input's channels."""
    return ("out", "in") if {"out", "in"} <= set(labels) else (labels[0], labels[1])


def joined(groups: Sequence[tuple[str, ...]], taken: Iterable[str], *, closed: bool) -> list[str]:
    """A row of cores that carry these labels, each joined to the next, the last to the first if it is closed."""
    taken = set(taken)
    if closed and len(groups) < 3:
        raise RuleError(
            explain(
                f"a ring of {len(groups)} cores is a cut whose bond is two bonds",
                cores=" and ".join(" ".join(group) for group in groups),
                fix="at least three cores, or a cut",
            )
        )
    ends = (take("z", taken),) if closed else ()
    bonds = [take(nth(ROW_BONDS, number), taken) for number in range(len(groups) - 1)]
    before = [ends, *((bond,) for bond in bonds)]
    after = [*((bond,) for bond in bonds), ends]
    return [node(nth(CORES, n), (*before[n], *group, *after[n])) for n, group in enumerate(groups)]
