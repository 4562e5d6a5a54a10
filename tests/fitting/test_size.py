"""Sizes: the objects, their texts, and what is neither."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.refusals import refused
from tnalgebra.errors import RankError
from tnalgebra.fitting import (
    KeepFraction,
    MultiplyAddsBudget,
    ParameterBudget,
    Rank,
    RelativeError,
    Size,
    read_size,
    size_text,
)

fractions = st.floats(0, 1, exclude_min=True)
ranks: st.SearchStrategy[Rank] = st.one_of(
    st.integers(1, 10**12),
    st.builds(KeepFraction, fractions),
    st.builds(RelativeError, st.floats(0, 1, exclude_max=True)),
)
bonds = st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True), ranks, min_size=1, max_size=4)
sizes: st.SearchStrategy[Size] = st.one_of(
    ranks, bonds, st.builds(ParameterBudget, fractions), st.builds(MultiplyAddsBudget, fractions)
)


@given(sizes)
def test_a_size_is_read_from_its_text(size: Size) -> None:
    assert read_size(size_text(size)) == size
    assert read_size(size) == size


@pytest.mark.parametrize(
    ("given_size", "read"),
    [
        ("8", 8),
        (np.int64(8), 8),
        (torch.tensor(8), 8),
        ("r=8 s=4", {"r": 8, "s": 4}),
        ("  r = 8,s=4 ", {"r": 8, "s": 4}),
        ({"r": np.int32(8)}, {"r": 8}),
        ({"r": "keep 0.5"}, {"r": KeepFraction(0.5)}),
        ("p=keep 0.5 q=8", {"p": KeepFraction(0.5), "q": 8}),
        ("keep 0.5", KeepFraction(0.5)),
        ("error 1e-2", RelativeError(0.01)),
        ("parameters 1", ParameterBudget(1)),
        ("multiply-adds .5", MultiplyAddsBudget(0.5)),
    ],
)
def test_forms_of_a_size(given_size: object, read: Size) -> None:
    assert read_size(given_size) == read


def test_sizes_of_different_meaning_are_not_equal() -> None:
    assert len({KeepFraction(0.5), ParameterBudget(0.5), MultiplyAddsBudget(0.5), RelativeError(0.5)}) == 4


@pytest.mark.parametrize(
    ("size", "facts"),
    [
        (0.5, ["0.5", "'keep 0.5'", "'error 0.5'", "'parameters 0.5'", "'multiply-adds 0.5'"]),
        (np.float64(0.5), ["0.5", "'keep 0.5'"]),
        *((value, [repr(value), "'r=8 s=4'"]) for value in (3.0, math.nan, True, None, [8])),
        *((number, [f"rank {number}"]) for number in (0, -1)),
        ({"r": 0}, ["'r'", "rank 0"]),
        ({"r": 0.5}, ["'r'", "0.5"]),
        ({"r": ParameterBudget(0.5)}, ["'r'", "ParameterBudget(fraction=0.5)"]),
        ("", ["''"]),
        ("small", ["'small'", "'parameters 0.3'"]),
        ("budget 0.5", ["'budget 0.5'"]),
        ("keep half", ["'half'", "'keep 0.5'"]),
        ("keep 2", ["KeepFraction(2.0)"]),
        ("r=8 r=9", ["'r'", "r=8 r=9"]),
        ("r=8 s", ["'r=8 s'"]),
        ("r=0.5", ["'r=0.5'"]),
        ("r=0", ["'r'", "rank 0"]),
    ],
)
def test_what_is_not_a_size(size: object, facts: list[str]) -> None:
    with refused(RankError, *facts):
        read_size(size)


@pytest.mark.parametrize("kind", [KeepFraction, ParameterBudget, MultiplyAddsBudget, RelativeError])
@pytest.mark.parametrize("number", [-0.5, 1.5, math.nan, math.inf, "0.5", None, True])
def test_numbers_that_no_size_has(kind: type[Any], number: object) -> None:
    with refused(RankError, kind.__name__, str(number)):
        kind(number)


def test_the_ends_of_the_range() -> None:
    for kind, number in ((KeepFraction, 0), (ParameterBudget, 0), (MultiplyAddsBudget, 0), (RelativeError, 1)):
        with refused(RankError, f"{kind.__name__}({number})"):
            kind(number)
