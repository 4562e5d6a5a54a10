"""Bipartitions of labels, which are the two sides of a cut: one from its text "out kh | in kw", or all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from ..errors import RuleError
from .labels import WORD

_MAX_LABELS = 16
"""Most labels whose cuts are listed, which are 32,767 cuts. One more label would double them."""


@dataclass(frozen=True, slots=True)
class Bipartition:
    """Two groups of labels: those of the rows and those of the columns of the matrix that a cut decomposes.

    Raises:
        RuleError: a side is empty, or a label occurs twice.
    """

    left: tuple[str, ...]
    right: tuple[str, ...]

    def __post_init__(self) -> None:
        for side, name in ((self.left, "left"), (self.right, "right")):
            if not side:
                raise RuleError(
                    f"the {name} side of a cut is empty", where=str(self), fix="a label on both sides of '|'"
                )
        for label, times in Counter(self.labels).items():
            if times > 1:
                raise RuleError(f"the label {label!r} occurs twice in a cut", where=str(self), fix="each label once")

    def __str__(self) -> str:
        return f"{' '.join(self.left)} | {' '.join(self.right)}"

    @property
    def labels(self) -> tuple[str, ...]:
        return self.left + self.right


def parse_bipartition(text: str) -> Bipartition:
    """Read the two sides of a cut from a text such as "out kh | in kw".

    Raises:
        RuleError: the text does not have exactly one '|', a side is empty, or a label is not a word or occurs twice.
    """
    if not isinstance(text, str):
        raise RuleError(f"a cut is a {type(text).__name__}", fix="a text, for example 'out | in kh kw'")
    sides = text.split("|")
    if len(sides) != 2:
        raise RuleError(
            f"a cut has exactly one '|', and this text has {len(sides) - 1}",
            where=text[:200],
            fix="for example 'out | in kh kw'",
        )
    left, right = (tuple(side.replace(",", " ").split()) for side in sides)
    for word in left + right:
        if not WORD.fullmatch(word):
            raise RuleError(f"{word[:40]!r} in a cut is not a label", where=text[:200])
    return Bipartition(left, right)


def check_covers(cut: Bipartition, labels: Iterable[str], *, what: str) -> None:
    """Check that each of `labels`, and no other label, is on one side of the cut.

    Args:
        what: what has these labels, for the message: "the tensor".

    Raises:
        RuleError: a label is missing in the cut, or the cut has a label that is not one of `labels`.
    """
    labels = tuple(labels)
    facts = [f"the cut names an unknown label {label!r}" for label in cut.labels if label not in labels]
    facts += [f"the label {label!r} is missing in the cut" for label in labels if label not in cut.labels]
    if facts:
        words = " ".join(labels)
        raise RuleError(facts[0], cut=cut, labels=f"{words}, of {what}", fix=f"each of {words} on one side")


def bipartitions(labels: Sequence[str]) -> list[Bipartition]:
    """All 2^(n-1) - 1 bipartitions of n labels, sorted by the size of the left side.

    The smaller side is on the left. Where both sides have the same size, the first label is on the left.

    >>> [str(cut) for cut in bipartitions(["out", "in", "k"])]
    ['out | in k', 'in | out k', 'k | out in']

    Raises:
        RuleError: a label occurs twice, or there are more than 16 labels.
    """
    for label in labels:
        if labels.count(label) > 1:
            raise RuleError(f"the label {label!r} occurs twice", labels=" ".join(labels), fix="each label once")
    if len(labels) > _MAX_LABELS:
        raise RuleError(f"{len(labels)} labels have 2^{len(labels) - 1} - 1 cuts", fix=f"at most {_MAX_LABELS} labels")
    cuts = []
    for size in range(1, len(labels) // 2 + 1):
        for left in combinations(labels, size):
            if 2 * size == len(labels) and labels[0] not in left:
                continue
            cuts.append(Bipartition(left, tuple(label for label in labels if label not in left)))
    return cuts
