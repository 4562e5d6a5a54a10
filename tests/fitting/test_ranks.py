"""How many values a rank keeps, what a budget allows, and which ranks are refused."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_cases import gaussian
from tests.refusals import refused
from tnalgebra.errors import RankError
from tnalgebra.fitting import KeepFraction, ParameterBudget, RelativeError, allowance, kept, plain_rank, rank_of
from tnalgebra.rewriting import rule

VALUES = [4.0, 3.0, 3.0, 1.0, 0.0]


def count(rank: Any, values: Sequence[float] = VALUES) -> int:
    return kept(rank, len(values), bond="r", singular_values=lambda: values)


def never() -> Sequence[float]:
    raise AssertionError("nobody asked for the singular values")


@st.composite
def spectra(draw: st.DrawFn) -> list[float]:
    """Descending, some equal, some zero, of any scale that float64 holds."""
    numbers = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]))
    scale = draw(st.sampled_from([1.0, 1.0, 1e-3, 1e9, 1e-180, 1e180]))
    return sorted((scale * value for value in draw(st.lists(numbers, min_size=1, max_size=12))), reverse=True)


def dropped(values: Sequence[float], rank: int) -> Fraction:
    """Square of the norm of what is dropped, without rounding."""
    return sum((Fraction(value) ** 2 for value in values[rank:]), Fraction(0))


# What is kept -----------------------------------------------------------------------------------------------


@given(spectra(), st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.5, 1e-8])))
def test_a_relative_error_keeps_the_fewest_values_that_hold_it(values: list[float], error: float) -> None:
    rank = count(RelativeError(error), values)
    allowed = Fraction(error) ** 2 * dropped(values, 0)
    assert 1 <= rank <= len(values)
    assert dropped(values, rank) <= allowed * (1 + Fraction(1e-12))
    # one fewer would be too few, and so would be one value fewer than those equal to the last
    fewer = values.index(values[rank - 1])
    if fewer and values[rank - 1]:
        assert dropped(values, fewer) > allowed * (1 - Fraction(1e-12))
    assert rank == len(values) or values[rank] < values[rank - 1] or values[rank] == 0


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 5000))
def test_a_fraction_keeps_what_pythons_round_says(fraction: float, full: int) -> None:
    rank = kept(KeepFraction(fraction), full, bond="r", singular_values=never)
    assert rank == max(1, round(fraction * full))
    assert 1 <= rank <= full


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (3, 3),
        (KeepFraction(0.5), 2),  # round(2.5) is 2
        (RelativeError(0), 4),  # only what is zero is dropped
        (RelativeError(0.2), 3),  # 1 / sqrt(35) = 0.169
        (RelativeError(0.54), 3),  # sqrt(10 / 35) = 0.535 would do for 2, but the third is as large as the second
    ],
)
def test_how_many_of_five(rank: Any, expected: int) -> None:
    assert count(rank) == expected


@pytest.mark.parametrize("scale", [1e-200, 1e200, 5e-324 * 2**60])
def test_squares_of_singular_values_neither_vanish_nor_overflow(scale: float) -> None:
    values = [scale, scale / 2, scale / 1024]
    assert [count(RelativeError(error), values) for error in (0, 0.01, 0.5, 0.1, 0.0005)] == [3, 2, 1, 2, 3]


@pytest.mark.parametrize(("rank", "full", "expected"), [(3, 5, 3), (9, 5, 5)])
def test_one_int_for_all_bonds_is_at_most_the_full_rank(rank: int, full: int, expected: int) -> None:
    assert kept(rank_of(rank, "r"), full, bond="r", singular_values=never) == expected
    assert plain_rank(rank_of(rank, "r"), "r", full=full, because="") == expected


@pytest.mark.parametrize("number", [0, 6])
def test_a_rank_of_one_bond_is_within_its_full_rank(number: int) -> None:
    with refused(RankError, f"rank {number}", "'r'", "1 to 5"):
        kept(rank_of({"r": number}, "r"), 5, bond="r", singular_values=never)


def test_the_rank_of_a_bond_in_a_size() -> None:
    half = KeepFraction(0.5)
    assert rank_of({"r": 3, "s": 4}, "r") == 3
    assert rank_of(half, "r") is half
    for size, facts in (({"s": 3}, ("'r'", "{'r': 8}")), (ParameterBudget(0.5), ("'parameters 0.5'", "'r'"))):
        with refused(RankError, *facts):
            rank_of(size, "r")


# Budgets ----------------------------------------------------------------------------------------------------


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 10**7), st.integers(1, 10**7))
def test_a_budget_allows_at_most_its_fraction_or_says_which_would_do(
    fraction: float, parameters: int, least: int
) -> None:
    budget = ParameterBudget(fraction)
    if fraction * parameters >= least:
        assert least <= allowance(budget, parameters, least=least) <= fraction * parameters
        assert allowance(budget, parameters, least=least) + 1 > fraction * parameters
        return
    with pytest.raises(RankError) as caught:  # messages of numbers that differ from run to run
        allowance(budget, parameters, least=least)
    assert str(least) in str(caught.value)
    if least <= parameters:
        enough = float(str(caught.value).rpartition("a fraction of at least ")[2])
        assert allowance(ParameterBudget(enough), parameters, least=least) >= least
        assert enough <= 1.011 * least / parameters


@pytest.mark.parametrize(
    ("fraction", "parameters", "least", "facts"),
    [
        (0.1, 77, 18, ("'parameters 0.1'", "7 parameters", "18", "0.234")),
        (1.0, 11, 12, ("11 parameters", "12")),
        (0.1, 100, 29, ("0.291",)),  # 0.29 * 100 is 28.999999999999996
    ],
)
def test_a_budget_that_is_too_small_names_one_that_is_not(
    fraction: float, parameters: int, least: int, facts: tuple[str, ...]
) -> None:
    with refused(RankError, *facts):
        allowance(ParameterBudget(fraction), parameters, least=least)


def test_bonds_on_one_axis_of_a_tied_tensor_have_one_size() -> None:
    tied = rule("K[out in kh kw] => A[out r] B[in s] M[r s] M[s r] C[kh r] D[kw r] -> [out in kh kw]")
    kernel = gaussian(12, 8, 3, 3)
    for fraction in (0.1, 0.2, 0.3):
        fit = tied.apply(kernel, ParameterBudget(fraction), starts=1, sweeps=2)
        assert fit.network.sizes["r"] == fit.network.sizes["s"] > 1
        assert fit.parameters <= fraction * kernel.numel()
    with refused(RankError, "'r'", "'s'", 3, 4):
        tied.apply(kernel, {"r": 3, "s": 4})
    with_channels = rule("K[out in kh kw] => A[out r] A[s in] B[r kh] C[s kw]")
    sizes = with_channels.apply(gaussian(5, 5, 3, 3), ParameterBudget(0.5), starts=1, sweeps=2).network.sizes
    assert (sizes["r"], sizes["s"]) == (5, 5)
