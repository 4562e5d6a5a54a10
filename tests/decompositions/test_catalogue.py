"""The list of rules: what it holds, prints and takes in; what a text stands for where a rule is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.documents import ROOT
from tnalgebra.decompositions.catalogue import CATALOGUE, Entry, register, resolve, rules, unregister
from tnalgebra.decompositions.cuts import cut
from tnalgebra.errors import NotationError, RuleError
from tnalgebra.network.labels import KERNEL_LABELS
from tnalgebra.network.network import carriers
from tnalgebra.network.nodes import NamedTensor
from tnalgebra.network.notation import parse_rule
from tnalgebra.rewriting.exact import EXACT_RULES
from tnalgebra.rewriting.text import rule

NAMES = (
    *("tucker", "tucker2", "cp", "tensor_train", "tensor_ring", "hierarchical_tucker", "block_term"),
    *("reshaped_train", "reshaped_ring", "mpo", "monarch", "spatially_separable", "depthwise_separable", "dct"),
)

ABSENT = {
    2: {"tensor_ring", "spatially_separable", "depthwise_separable", "dct"},
    3: {"mpo", "monarch", "spatially_separable"},
    4: {"mpo", "monarch"},
    5: {"mpo", "monarch"},
}
"""Axes of a kernel -> the decompositions that do not exist for it."""


@pytest.fixture
def _ring() -> Iterator[None]:
    register(rule("K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]", name="my_ring"))
    yield
    unregister("my_ring")


def test_the_names() -> None:
    assert tuple(entry.name for entry in CATALOGUE) == NAMES


@pytest.mark.parametrize("axes", KERNEL_LABELS)
@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_every_entry_for_every_kernel(entry: Entry, axes: int) -> None:
    labels = KERNEL_LABELS[axes]
    if entry.name in ABSENT[axes]:
        with pytest.raises(RuleError, match=rf"there is no {entry.name} of K\[out in.*\]\n  because: "):
            entry.rule(labels)
        return
    made = entry.rule(" ".join(labels))
    assert made.name == entry.name
    assert made.kind == "approximate"
    left, right = parse_rule(made.equation)
    assert left.nodes == (NamedTensor("K", labels),)
    assert left.output == right.output == labels
    assert set(made.ranks) <= set(carriers(right))
    assert resolve(entry.name, labels).equation == made.equation


def test_every_source_names_a_year() -> None:
    assert all(any(word.isdigit() and len(word) == 4 for word in entry.source.split()) for entry in CATALOGUE)


# The list ----------------------------------------------------------------------------------------------------


def test_the_list_for_two_dimensions_holds_what_is_for_linear_layers_too() -> None:
    found = rules()
    assert [entry.name for entry in found.decompositions] == list(NAMES)
    assert found.exact == EXACT_RULES
    assert not found.missing
    assert len(found) == len(list(found)) == len(EXACT_RULES) + len(NAMES)
    assert found["tucker2"].equation == "K[out in kh kw] => U[out a] G[a b kh kw] V[b in] -> [out in kh kw]"
    assert found["monarch"].equation.startswith("K[out in] => ")
    assert found["trim_copy"] is EXACT_RULES[0]
    assert "cp" in found
    assert "svd" not in found


def test_the_list_prints() -> None:
    lines = str(rules()).splitlines()
    assert lines[0] == "exact rules"
    assert "  cp                   K[out in kh kw] => A[out r] B[in r] C[kh r] D[kw r]" in lines
    assert "  and a cut for each bipartition of the labels, by its text, such as 'out | in kh kw'" in lines
    assert "registered" not in lines
    assert repr(rules()) == str(rules())


@pytest.mark.usefixtures("_ring")
def test_the_list_for_other_labels() -> None:
    found = rules("o i k")
    assert set(found.missing) == ABSENT[3]
    assert found["cp"].equation == "K[o i k] => A[o r] B[i r] C[k r]"
    assert "  my_ring              K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]" in str(found)
    assert "not of K[o i k]\n  mpo                  a matrix product operator has two labels, no window" in str(found)
    with pytest.raises(RuleError, match=r"there is no mpo of K\[o i k\]\n  because: a matrix product operator"):
        found["mpo"]
    with pytest.raises(RuleError, match="there is no rule 'my_rings'\n  similar: my_ring"):
        found["my_rings"]


def test_a_list_needs_labels() -> None:
    with pytest.raises(RuleError, match="the label 'out' stands twice"):
        rules("out out")
    with pytest.raises(RuleError, match="a tensor of 1 labels has no decomposition"):
        rules("out")


# What a user adds --------------------------------------------------------------------------------------------


def test_register() -> None:
    halves = rule("K[o i] => L[o r] R[r i]", name="halves")
    assert register(halves) is halves
    try:
        assert rules().registered == (halves,)
        assert rules()["halves"] is halves
        assert resolve("halves", "a b") is halves
        with pytest.raises(RuleError, match=r"there is a rule 'halves' already\n.*\n  fix:  .* unregister\('halves'\)"):
            register(halves)
    finally:
        unregister("halves")
    assert rules().registered == ()
    with pytest.raises(RuleError, match="no rule 'halves' is registered\n  registered: none"):
        unregister("halves")


@pytest.mark.parametrize("name", ["cp", "dct", "trim_copy"])
def test_a_name_that_is_taken(name: str) -> None:
    with pytest.raises(RuleError, match=f"there is a rule {name!r} already"):
        register(rule("K[o i] => L[o r] R[r i]", name=name))


def test_a_rule_needs_a_name_of_its_own() -> None:
    with pytest.raises(RuleError, match="has no name of its own"):
        register(rule("K[o i] => L[o r] R[r i]"))
    with pytest.raises(RuleError, match="has no name of its own"):
        register(cut("out | in"))
    wrong: Any = "cp"
    with pytest.raises(RuleError, match="a str is registered\n  fix: a rule"):
        register(wrong)


# What a text stands for --------------------------------------------------------------------------------------


@given(st.sampled_from(list(KERNEL_LABELS.values())), st.sampled_from(NAMES))
def test_a_name_is_the_rule_of_the_list(labels: tuple[str, ...], name: str) -> None:
    if name not in ABSENT[len(labels)]:
        assert resolve(f" {name} ", labels).equation == rules(labels)[name].equation


@pytest.mark.usefixtures("_ring")
def test_what_a_text_stands_for() -> None:
    own = rule("K[o i] => L[o r] R[r i]")
    assert resolve(own, "out in kh kw") is own
    assert resolve("my_ring", "out in kh kw").name == "my_ring"
    assert resolve("out kh | in kw", "out in kh kw").equation == "K[out in kh kw] => L[out kh r] R[r in kw]"
    assert resolve("c | a b", ["a", "b", "c"]).equation == "K[a b c] => L[c r] R[r a b]"
    assert resolve("kh kw | in out", "in out kh kw").equation == "K[in out kh kw] => L[kh kw r] R[r in out]"
    text = "K[out in k] Fill[x | value=1] -> [out in k x] => A[out r] B[r in k x]"
    assert resolve(text, "out in k").spec["notation"] == text
    assert resolve("K[out in *k] => L[out r] R[r in *k]", "out in kh kw").ranks == ("r",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tucker3", "there is no rule 'tucker3'\n  similar: tucker, tucker2\n  known:   tucker, "),
        ("CP", "there is no rule 'CP'\n  similar: cp\n"),
        ("nothing like it", "there is no rule 'nothing like it'\n  known: tucker, "),
        ("", "there is no rule ''\n"),
        ("mpo", r"there is no mpo of K\[out in kh kw\]\n  because: a matrix product operator has two labels"),
        ("out | in then in | out", "cuts that follow one another are several rules, not one\n"),
        ("out in | kh", "the cut 'out in | kh' does not fit\n  because: the label 'kw' is missing"),
        ("out | in kh kw k", "because: the cut names an unknown label 'k'"),
        ("out | in | kh kw", "because: a cut has one '|', here are 2"),
        ("trim_copy", "'trim_copy' is an exact rule, no decomposition"),
        ("U[out r] V[r in]", r"a network stands where a rule should\n.*\n  fix:   K\[out in kh kw\] => U\[out r\]"),
        (3, "a rule is given as a int"),
    ],
)
def test_a_text_that_stands_for_nothing(given: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message.replace("|", r"\|")):
        resolve(given, "out in kh kw")


def test_a_rule_that_is_none() -> None:
    with pytest.raises(NotationError, match="unclosed bracket"):
        resolve("K[out => A[out]", "out in")


def test_every_entry_is_drawn() -> None:
    folder: Path = ROOT / "docs" / "images"
    assert {file.stem for file in folder.glob("rule-*.svg")} == {f"rule-{name}" for name in NAMES}
