"""Steps done once under several labels, and sums of alike steps: the oracle's value, and as few products as by hand."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiler_cases import calls, check, check_at, compiled
from tests.strategies import random_values
from tnalgebra.compiler import added, equal_steps, lowering, tune
from tnalgebra.compiler import sums as program_sums
from tnalgebra.errors import TnalgebraError
from tnalgebra.networks import parse

NEWTON_SCHULZ = "a[] X[i:5 j:7] + b[] X[i k:7] X[m:5 k] X[m j] + c[] X[i k] X[m k] X[m p:7] X[q:5 p] X[q j] -> [i j]"
ONE_KERNEL = "Conv[x u k:3 | padding=1] Conv[y v l:3 | padding=1] A[o:4 c k l]"

CASES = {
    "Newton-Schulz": (NEWTON_SCHULZ, "X", {"i": 4, "j": 9}),
    "a size that only an equal sum had": ("T[d:4] T[a:4] T[c:4] T[b:4] T[b] Fill[a | value=mean] -> []", "T", {"a": 7}),
    "two images": (
        f"X[n:2 c:3 x:6 y:7] {ONE_KERNEL} + Z[n c x y] {ONE_KERNEL} -> [n o u v]",
        "X Z",
        {"n": 3, "x": 9, "y": 5},
    ),
    "equal terms": ("X[n:3 i:4] A[i o:5] + X[n i] A[i o] + X[n i] B[i o] + X[n i] B[i o] -> [n o]", "X", {"n": 6}),
    "a matrix and its transpose": ("X[n:4 i:4] A[i o:4] + X[n i] A[o i] + X[i n] A[i o] -> [n o]", "X", {}),
    "sums and means": (
        "X[n:3 i:4 x:6] Fill[x | value=1] A[i o:5] + X[n i x] Fill[x | value=mean] A[i o] -> [n o]",
        "X",
        {"n": 2, "x": 9},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_candidate_is_right_also_at_other_sizes(name: str) -> None:
    text, inputs, others = CASES[name]
    module = check(text, inputs)
    if others:
        check_at(module, others)
    check(text, inputs, candidates="factored")
    check(text, inputs, backward=True)


STEPS = {"r": {"X": "s", "P": "r"}, "s": {"Y": "r", "Q": "s"}}
"""From each of two sizes the matrices that may follow, and where they lead; Y is the transpose of X."""


@st.composite
def polynomials(draw: st.DrawFn) -> str:
    """A sum of chains of tied matrices, all from r to s: X P of sizes r x s and r x r, Q of size s x s."""
    terms = []
    for _ in range(draw(st.integers(2, 4))):
        place, word, nodes = "r", "i:3", list[str]()
        while True:
            last = place == "r" and len(nodes) >= 2
            name = "X" if last else draw(st.sampled_from(sorted(STEPS[place])))
            place = STEPS[place][name]
            ends = place == "s" and (last or draw(st.booleans()))
            following = "j:4" if ends else f"{place}{len(nodes)}:{3 if place == 'r' else 4}"
            nodes.append(f"X[{following} {word}]" if name == "Y" else f"{name}[{word} {following}]")
            word = following
            if ends:
                break
        terms.append(" ".join((*draw(st.sampled_from(([], ["a[]"], ["b[]"]))), *nodes)))
    return f"{' + '.join(terms)} -> [i j]"


@settings(max_examples=25)
@given(polynomials(), st.booleans())
def test_polynomials_of_matrices(text: str, is_input: bool) -> None:
    names = [name for name in "XPQ" if f"{name}[" in text]
    check(text, " ".join(names if is_input else names[:1]), tune=False)


def test_products_are_as_few_as_by_hand() -> None:
    """a X + (b G + c G G) X with G = X X^T: three products, the last of which adds a X."""
    network = parse(NEWTON_SCHULZ.replace(":5", ":32").replace(":7", ":48"))
    module = compiled(network, random_values(network, 0), "X", tune=False)
    made = calls(module)
    assert sum(made[name] for name in ("matmul", "linear", "bmm", "addmm", "baddbmm")) == 3
    assert made["addmm"] > 0


def _without_words(self: Any, operation: Any) -> object:
    return type(operation), operation.sources, [*map(len, operation.axes)].__repr__()


def _whatever_else(self: Any, operation: Any, name: str, axes: Any) -> object:
    return [*map(len, operation.axes)] == [*map(len, axes)] or None


BROKEN: list[tuple[Any, str, Any, str]] = [
    (equal_steps._Steps, "_key", _without_words, "a matrix and its transpose"),
    (equal_steps._Steps, "_form", _whatever_else, "a matrix and its transpose"),
    (equal_steps._Steps, "_with_sizes", lambda self: [], "a size that only an equal sum had"),
    (equal_steps, "_addends", lambda program, number: [*program.operations[number].sources[:1]], "equal terms"),
]
"""Parts of the passes, broken on purpose, and a case in which the battery sees it."""


@pytest.mark.parametrize(("owner", "name", "function", "case"), BROKEN, ids=[name for _, name, _, _ in BROKEN])
def test_the_battery_catches_a_broken_pass(
    owner: Any, name: str, function: Any, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, inputs, others = CASES[case]
    monkeypatch.setattr(owner, name, function)
    monkeypatch.setattr(tune, "_remembered", OrderedDict())  # not the candidates of other tests
    assert program_sums.with_collected_sums is equal_steps.with_collected_sums
    assert added.without_equal_steps is lowering.without_equal_steps is equal_steps.without_equal_steps
    with pytest.raises((AssertionError, KeyError, RuntimeError, TnalgebraError)):
        check_at(check(text, inputs), others or {"n": 5})
