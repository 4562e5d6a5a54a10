"""Cuts: their text, all cuts of some labels, and the errors for wrong ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_cases import SEVEN
from tests.refusals import refused
from tnalgebra.errors import RuleError
from tnalgebra.networks.bipartition import Bipartition, bipartitions, check_covers, parse_bipartition

WORDS = st.lists(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,3}", fullmatch=True), min_size=2, max_size=9, unique=True)


@given(WORDS, st.data())
def test_parsing_the_text_gives_the_bipartition(words: list[str], data: st.DataObject) -> None:
    split = data.draw(st.integers(1, len(words) - 1))
    cut = Bipartition(tuple(words[:split]), tuple(words[split:]))
    assert parse_bipartition(str(cut)) == cut
    assert cut.labels == tuple(words)


@given(WORDS)
def test_all_bipartitions_are_there_once(words: list[str]) -> None:
    cuts = bipartitions(words)
    assert len(cuts) == 2 ** (len(words) - 1) - 1
    assert len({frozenset([frozenset(cut.left), frozenset(cut.right)]) for cut in cuts}) == len(cuts)
    for cut in cuts:
        check_covers(cut, words, what="the words")
        assert len(cut.left) <= len(cut.right)
        assert list(cut.left) == [word for word in words if word in cut.left]
        assert list(cut.right) == [word for word in words if word in cut.right]


def test_the_seven_of_a_kernel() -> None:
    assert [str(cut) for cut in bipartitions(["out", "in", "kh", "kw"])] == SEVEN
    assert bipartitions(["a"]) == bipartitions([]) == []


def test_spaces_and_commas_have_no_meaning() -> None:
    assert parse_bipartition("  out,kh|\n in , kw ") == Bipartition(("out", "kh"), ("in", "kw"))


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("out in", "text has 0"),
        ("out | in | kh", "text has 2"),
        ("| in", "left side"),
        ("out | ", "right side"),
        ("out kh | in kh", "'kh'"),
        ("out out | in", "'out'"),
        ("out | 3d", "'3d'"),
        ("out:3 | in", "'out:3'"),
    ],
)
def test_texts_that_are_not_a_cut(text: str, fact: str) -> None:
    with refused(RuleError, fact, text.strip()):
        parse_bipartition(text)


def test_a_label_that_occurs_twice_has_no_cuts() -> None:
    with refused(RuleError, "'o'", "twice", "o o k"):
        bipartitions(["o", "o", "k"])


@pytest.mark.parametrize(("text", "fact"), [("out | kw", "'in' is missing"), ("out in | kw kh", "unknown label 'kh'")])
def test_cuts_of_other_labels(text: str, fact: str) -> None:
    with refused(RuleError, fact, text, "conv1.weight", "out in kw"):
        check_covers(parse_bipartition(text), ["out", "in", "kw"], what="conv1.weight")
