"""Sums whose terms fill parts of the output: what is written side by side, what is added, and where zeros are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tnalgebra as tn
from tests.compiler_cases import check, check_at
from tests.strategies import random_values
from tnalgebra.compiler import added, tune
from tnalgebra.compiler.operations import Concatenate, Operation, Plus
from tnalgebra.errors import TnalgebraError
from tnalgebra.networks import parse

Spans = tuple[int, int]
"""The first place of a part and the place behind its last one."""

ROWS, COLUMNS = 6, 5


def term(number: int, rows: Spans, columns: Spans) -> str:
    """A product that fills some rows and columns of the output."""
    k, m, u, v = (f"{letter}{number}" for letter in "kmuv")
    (top, bottom), (left, right) = rows, columns
    places = f"Conv[{k} r {u}:1 | padding={top}:{ROWS - bottom}] Conv[{m} c {v}:1 | padding={left}:{COLUMNS - right}]"
    return f"X[n:3 i:2] A{number}[i {k}:{bottom - top} {m}:{right - left}] {places}"


def total(*parts: tuple[Spans, Spans]) -> str:
    return " + ".join(term(number, *part) for number, part in enumerate(parts)) + " -> [n r c]"


def spans(size: int) -> st.SearchStrategy[Spans]:
    return st.tuples(st.integers(0, size - 1), st.integers(1, size)).map(
        lambda pair: (min(pair[0], pair[1] - 1), max(pair[1], pair[0] + 1))
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(spans(ROWS), spans(COLUMNS)), min_size=2, max_size=5))
def test_parts_anywhere_are_added_up(parts: list[tuple[Spans, Spans]]) -> None:
    check_at(check(total(*parts), "X"), {"n": 5})


TILES = [((0, 2), (0, 5)), ((2, 6), (0, 3)), ((2, 6), (3, 5))]
GAPS = [((1, 2), (0, 5)), ((4, 5), (0, 5))]
OVERLAP = [((0, 3), (0, 5)), ((2, 6), (0, 5)), ((3, 6), (0, 5))]
WHEEL = [((0, 2), (0, 3)), ((0, 4), (3, 5)), ((4, 6), (2, 5)), ((2, 6), (0, 2)), ((2, 4), (2, 3))]
"""Five parts that do not overlap, which no cut from side to side separates."""


@pytest.mark.parametrize(("parts", "joined", "additions"), [(TILES, 2, 0), (GAPS, 1, 0), (OVERLAP, 1, 1)])
def test_parts_that_do_not_overlap_are_written_side_by_side(parts: Any, joined: int, additions: int) -> None:
    module = check(total(*parts), "X")
    programs = [candidate.program.operations for candidate in module.plan.candidates]
    counts = {(number_of(Concatenate, one), number_of(Plus, one)) for one in programs}
    assert (joined, additions) in counts


def number_of(kind: type[Operation], operations: Sequence[Operation]) -> int:
    return sum(isinstance(one, kind) for one in operations)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("_runs", lambda parts, axis: [[part] for part in parts]),  # those that overlap, too
        ("_apart", lambda parts, axis: list(parts)),
        ("_columns", lambda parts: [[(0, 1)] for _ in parts[0].box]),
    ],
)
def test_the_property_catches_broken_parts(name: str, function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(added, name, function)
    monkeypatch.setattr(tune, "_remembered", OrderedDict())  # not the candidates of other tests
    with pytest.raises((AssertionError, RuntimeError, RecursionError, TnalgebraError)):
        check(total(*OVERLAP), "X")


def test_parts_of_the_input_pass_without_a_copy() -> None:
    """Channels are split, two parts are convolved, one passes, and all are written once."""
    text = (
        "X[n:2 c:8 x:9] Conv[c a p:1 | padding=0:-5] Conv[x u h:1] Fill[h | value=1] Conv[a o q:1 | padding=0:5]"
        " + X[n c x] Conv[c a p:1 | padding=-3:-3] Conv[x u h:3 | padding=1] S[a h] Conv[a o q:1 | padding=3:3]"
        " + X[n c x] Conv[c a p:1 | padding=-5:0] Conv[x u h:5 | padding=2] T[a h] Conv[a o q:1 | padding=5:0]"
        " -> [n o u]"
    )
    module = check(text, "X")
    check_at(module, {"n": 3, "x": 12})
    for candidate in module.plan.candidates:
        assert number_of(Concatenate, candidate.program.operations) == 1
        assert number_of(Plus, candidate.program.operations) == 0


@pytest.mark.parametrize("bias", [None, "r", "c"])
@pytest.mark.parametrize("parts", [TILES, GAPS, OVERLAP, WHEEL], ids=["tiles", "gaps", "overlap", "wheel"])
def test_parts_have_a_bias_and_derivatives(parts: Any, bias: str | None) -> None:
    network = parse(total(*parts))
    values = random_values(network, 0)
    weights = {name: value.requires_grad_() for name, value in values.items()}
    shift = torch.arange(1.0, 1 + network.sizes[bias], dtype=torch.float64) if bias else torch.zeros(())
    held = {name: value.detach() for name, value in weights.items() if name != "X"} | ({"bias": shift} if bias else {})
    module = tn.compile(network, inputs={"X": (3, 2)}, values=held, bias=bias)
    expected = tn.evaluate(network, weights) + (shift[:, None] if bias == "r" else shift)
    x = values["X"].detach().requires_grad_()
    value = module(x)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    sample = torch.randn_like(expected)
    (value * sample).sum().backward()
    (expected * sample).sum().backward()
    torch.testing.assert_close(x.grad, weights["X"].grad, rtol=1e-12, atol=1e-12)
    for name, parameter in module.named_parameters():
        if name != "bias":
            torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.func.vmap(lambda row: module(row[None])[0])(x), expected)
    exported = torch.export.export(module, (x,))
    torch.testing.assert_close(exported.module()(x), expected)
