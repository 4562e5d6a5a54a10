"""The list of rules: what it holds, prints and takes in; what a text stands for where a rule is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.documents import ROOT
from tests.refusals import refused
from tnalgebra.decompositions import CATALOGUE, Entry, cut, read_rewrite, register, rules, unregister
from tnalgebra.errors import NotationError, RuleError
from tnalgebra.networks import KERNEL_LABELS, NamedTensor, carriers, parse_rule
from tnalgebra.rewriting import EXACT_RULES, rule

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


@pytest.mark.parametrize("axes", KERNEL_LABELS)
@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_every_entry_for_every_kernel(entry: Entry, axes: int) -> None:
    labels = KERNEL_LABELS[axes]
    if entry.name in ABSENT[axes]:
        with refused(RuleError, entry.name, f"K[{' '.join(labels)}]", "because"):
            entry.rule(labels)
        return
    made = entry.rule(" ".join(labels))
    assert made.name == entry.name
    assert made.kind == "approximate"
    left, right = parse_rule(made.equation)
    assert left.nodes == (NamedTensor("K", labels),)
    assert left.output == right.output == labels
    assert set(made.ranks) <= set(carriers(right))
    assert read_rewrite(entry.name, labels).equation == made.equation


def test_every_entry_has_a_source_with_its_year_and_a_drawing() -> None:
    assert all(any(word.isdigit() and len(word) == 4 for word in entry.source.split()) for entry in CATALOGUE)
    drawn = {file.stem for file in (ROOT / "docs" / "images").glob("rule-*.svg")}
    assert drawn == {f"rule-{entry.name}" for entry in CATALOGUE}


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
    lines = [line.split(maxsplit=2) for line in str(rules()).splitlines()]
    assert ["cp", "decomposition", "r            K[out in kh kw] => A[out r] B[in r] C[kh r] D[kw r]"] in lines
    assert [line[0] for line in lines if line[1:2] in (["exact"], ["decomposition"])] == [
        entry.name for entry in rules()
    ]
    assert "'out | in kh kw'" in str(rules())
    assert "Hitchcock" in str(rules()["cp"])


@pytest.mark.usefixtures("_ring")
def test_the_list_for_other_labels() -> None:
    found = rules("o i k")
    assert set(found.missing) == ABSENT[3]
    assert found["cp"].equation == "K[o i k] => A[o r] B[i r] C[k r]"
    assert "K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]" in str(found)
    assert "K[o i k]:\n  mpo: a matrix product operator" in str(found)
    assert list(found.to_pandas()["name"]) == [entry.name for entry in found]
    with refused(RuleError, "mpo", "K[o i k]", "because"):
        found["mpo"]
    with refused(RuleError, "'my_rings'", "similar: my_ring"):
        found["my_rings"]


def test_a_list_needs_labels() -> None:
    with refused(RuleError, "'out'"):
        rules("out out")
    with refused(RuleError, "1 labels"):
        rules("out")


# What a user adds --------------------------------------------------------------------------------------------


def test_register() -> None:
    halves = rule("K[o i] => L[o r] R[r i]", name="halves")
    assert register(halves) is halves
    assert rules().registered == (halves,)
    assert rules()["halves"] is read_rewrite("halves", "a b") is halves
    again = rule(halves.equation, name="halves")
    assert register(again) is again
    assert rules().registered == (again,)
    with refused(RuleError, "'halves'", "unregister('halves')"):
        register(rule("K[o i] => L[i r] R[r o]", name="halves"))
    with refused(RuleError, "'cp'"):
        register(rule("K[o i] => L[o r] R[r i]", name="cp"))
    unregister("halves")
    assert rules().registered == ()
    with refused(RuleError, "'halves'"):
        unregister("halves")


def test_what_cannot_be_registered() -> None:
    for name in ("cp", "dct", "trim_copy"):
        with refused(RuleError, repr(name)):
            register(rule("K[o i] => L[o r] R[r i]", name=name))
    for nameless in (rule("K[o i] => L[o r] R[r i]"), cut("out | in")):
        with refused(RuleError, "name"):
            register(nameless)
    wrong: Any = "cp"
    with refused(RuleError, "str"):
        register(wrong)


# What a text stands for --------------------------------------------------------------------------------------


@given(st.sampled_from(list(KERNEL_LABELS.values())), st.sampled_from(NAMES))
def test_a_name_is_the_rule_of_the_list(labels: tuple[str, ...], name: str) -> None:
    if name not in ABSENT[len(labels)]:
        assert read_rewrite(f" {name} ", labels).equation == rules(labels)[name].equation


@pytest.mark.usefixtures("_ring")
def test_what_a_text_stands_for() -> None:
    own = rule("K[o i] => L[o r] R[r i]")
    assert read_rewrite(own, "out in kh kw") is own
    assert read_rewrite("my_ring", "out in kh kw").name == "my_ring"
    assert read_rewrite("out kh | in kw", "out in kh kw").equation == "K[out in kh kw] => L[out kh r] R[r in kw]"
    assert read_rewrite("c | a b", ["a", "b", "c"]).equation == "K[a b c] => L[c r] R[r a b]"
    assert read_rewrite("kh kw | in out", "in out kh kw").equation == "K[in out kh kw] => L[kh kw r] R[r in out]"
    text = "K[out in k] Fill[x | value=1] -> [out in k x] => A[out r] B[r in k x]"
    assert read_rewrite(text, "out in k").spec["notation"] == text
    assert read_rewrite("K[out in *k] => L[out r] R[r in *k]", "out in kh kw").ranks == ("r",)


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ("tucker3", "'tucker3';similar: tucker, tucker2;known:   tucker, "),
        ("CP", "'CP';similar: cp"),
        ("nothing like it", "'nothing like it';known: tucker, "),
        ("", "''"),
        ("mpo", "mpo;K[out in kh kw];two labels"),
        ("out | in then in | out", "then"),
        ("out in | kh", "'out in | kh';'kw'"),
        ("out | in kh kw k", "'k'"),
        ("out | in | kh kw", "2"),
        ("trim_copy", "'trim_copy';exact"),
        ("U[out r] V[r in]", "K[out in kh kw] => U[out r]"),
        (3, "int"),
    ],
)
def test_a_text_that_stands_for_nothing(given: Any, facts: str) -> None:
    with refused(RuleError, *facts.split(";")):
        read_rewrite(given, "out in kh kw")
    with refused(NotationError, "K[out => A[out]"):
        read_rewrite("K[out => A[out]", "out in")
