"""How many values a rank keeps, what a budget allows, and which ranks are refused."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_cases import gaussian
from tests.refusals import refused
from tests.strategies import random_values
from tnalgebra.errors import RankError, SizeError
from tnalgebra.fitting import KeepFraction, ParameterBudget, RelativeError, allowance, kept, plain_rank, rank_of
from tnalgebra.networks import parse_rule, with_sizes
from tnalgebra.rewriting import rule
from tnalgebra.tensors import evaluate

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


# Bonds of reserved nodes -------------------------------------------------------------------------------------

WINDOW = "K[o k] => A[o p] Conv[k p q] B[q]"
FUSED = "K[o i] => A[o p] Fuse[p q r] B[q i] C[r i]"
COPIED = "K[o i] => A[o p] Copy[p q r] B[q i] C[r]"
COPY_OF_TWO = "K[o i] => A[o p] Copy[p q] B[q i]"
QUICK: dict[str, Any] = {"starts": 3}


@pytest.mark.parametrize(
    ("text", "size", "ranks"),
    [
        (WINDOW, {"p": 5, "q": 3}, {"p": 5, "q": 3}),
        (WINDOW, {"p": 5}, {"p": 5, "q": 3}),
        (WINDOW, {"q": 3}, {"p": 5, "q": 3}),
        (WINDOW, 3, {"p": 5, "q": 3}),
        (WINDOW, "parameters 0.9", {"p": 5, "q": 3}),  # 23 of 25; 26 are too many
        (WINDOW, "parameters 0.4", {"p": 1, "q": 7}),  # 11 of 11: the fewest that are possible
        ("K[o k] => A[o p:5] Conv[k p q] B[q]", None, {"p": 5, "q": 3}),
        (FUSED, {"q": 2, "r": 2}, {"p": 4, "q": 2, "r": 2}),
        (FUSED, {"p": 4, "r": 2}, {"p": 4, "q": 2, "r": 2}),
        (FUSED, 2, {"p": 4, "q": 2, "r": 2}),
        (COPIED, 2, {"p": 2, "q": 2, "r": 2}),
        (COPIED, {"p": 2, "q": 2, "r": 2}, {"p": 2, "q": 2, "r": 2}),
        (COPIED, {"r": 2}, {"p": 2, "q": 2, "r": 2}),
        (COPY_OF_TWO, {"p": 2}, {"p": 2, "q": 2}),
        (COPY_OF_TWO, 9, {"p": 4, "q": 4}),
        (COPY_OF_TWO, KeepFraction(0.5), {"p": 2, "q": 2}),
        (COPY_OF_TWO, "parameters 0.8", {"p": 2, "q": 2}),  # 22 parameters of 22.4
        ("K[o i] => A[o p] Copy[p q] B[q i] + C[o r] Copy[r s] D[s i]", 2, {"p": 2, "q": 2, "r": 2, "s": 2}),
    ],
)
def test_sizes_of_bonds_follow_from_others(text: str, size: Any, ranks: dict[str, int]) -> None:
    """The kernel is the value of the right side with the ranks, so that the fit is exact where all are chosen."""
    right = with_sizes(parse_rule(text)[1], {"o": 4, text[4]: 7, **ranks})
    kernel = evaluate(right, random_values(right, seed=3))
    fit = rule(text).apply(kernel, size, **QUICK)
    assert {bond: fit.network.sizes[bond] for bond in ranks} == ranks
    assert fit.relative_error < 1e-6


def test_a_constant_behind_a_window_determines_the_other_bond() -> None:
    kernel, constant = gaussian(4, 7), gaussian(3, seed=1)
    # positions p of the constant in k: row p of a matrix has the constant from p on, and A is a least squares solution
    band = torch.stack([torch.nn.functional.pad(constant, (p, 4 - p)) for p in range(5)])
    best = kernel - kernel @ torch.linalg.pinv(band) @ band
    for size in ({"p": 5}, None, 5):
        fit = rule(WINDOW).apply(kernel, size, fixed={"B": constant}, **QUICK)
        assert fit.network.sizes["p"] == 5
        assert fit.relative_error == pytest.approx(float(best.norm() / kernel.norm()), rel=1e-6)


@pytest.mark.parametrize(
    ("text", "parameters"),
    [("A[o p] Copy[p q] B[q i]", 48), ("A[o p] Fuse[p q r] B[q r i]", 48), ("A[o p] B[p q i] Copy[q r] C[r]", 49)],
)
def test_a_budget_is_used_where_bonds_meet_a_reserved_node(text: str, parameters: int) -> None:
    fit = rule(f"K[o i] => {text}").apply(gaussian(8, 8), "parameters 0.8", **QUICK)
    assert fit.parameters == parameters


def test_a_budget_of_a_bond_without_parameters_ends() -> None:
    fit = rule("K[o i] => A[o p] B[p i] Copy[q r]").apply(gaussian(8, 8), "parameters 0.8", **QUICK)
    assert fit.parameters == 48


def test_sizes_that_do_not_follow_or_contradict_each_other_are_named() -> None:
    kernel = gaussian(4, 7)
    for text, size, error, facts in (
        (FUSED, {}, RankError, ("for 'q', 'r'",)),
        (FUSED, {"p": 4}, RankError, ("for 'q'\n",)),
        (FUSED, {"p": 3, "q": 2}, SizeError, ("'p'", 3, 2)),
        (WINDOW, {"p": 4, "q": 3}, SizeError, ("'p'", 4, 5)),
        (WINDOW, "keep 0.5", RankError, ("'q'", "Conv[k p q]")),
        (COPIED, {"p": 2, "q": 3}, RankError, ("'p'", "'q'", 2, 3, "Copy")),
        (COPIED, "keep 0.5", RankError, ("3 tensors",)),
    ):
        with refused(error, *facts):
            rule(text).apply(kernel, size)
