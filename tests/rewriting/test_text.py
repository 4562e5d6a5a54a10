"""Rules in the notation: what they fit, ranks, budgets, refusals; trees by their SVDs against what theory promises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernel_cases import KERNEL, TREES, Case, check_claim, gaussian, tail, tensors, unfolding
from tests.refusals import refused
from tnalgebra.decompositions import cut
from tnalgebra.errors import RankError, RuleError, SizeError
from tnalgebra.fitting import Growth, KeepFraction, ParameterBudget, Rank, RelativeError
from tnalgebra.networks import NamedTensor, parse
from tnalgebra.rewriting import rule

FEW: dict[str, Any] = {"starts": 2, "sweeps": 3}
"""What is claimed holds wherever a search stops."""


@st.composite
def tree_cases(draw: st.DrawFn) -> Case:
    """A rule, its kernel, and the kernel's matrix across each bond."""
    text, bonds = TREES[draw(st.sampled_from(list(TREES)))]
    labels = text[2 : text.index("]")]
    kernel = draw(tensors(len(labels.split())))
    return rule(text), {bond: unfolding(kernel, labels, rows) for bond, rows in bonds.items()}, kernel


@given(tree_cases(), st.data())
def test_a_tree_is_nearly_the_best_of_its_ranks(case: Case, data: st.DataObject) -> None:
    """No tree is better than the worst of its bonds alone; this one is at most sqrt(number of bonds) worse."""
    entry, matrices, kernel = case
    assert set(entry.ranks) == set(matrices)
    ranks = {bond: data.draw(st.integers(1, min(matrix.shape)), label=bond) for bond, matrix in matrices.items()}
    fit = entry.apply({"K": kernel}, ranks, **FEW)
    check_claim(fit)
    chosen = fit.trace.steps[0].change.ranks
    assert all(1 <= chosen[bond] <= rank for bond, rank in ranks.items())
    tails = [tail(matrix, ranks[bond]) for bond, matrix in matrices.items()]
    assert fit.relative_error <= math.hypot(*tails) * (1 + 1e-9) + 1e-10
    assert fit.relative_error >= max(tails) * (1 - 1e-9) - 1e-10
    if all(ranks[bond] == min(matrix.shape) for bond, matrix in matrices.items()):
        assert fit.relative_error <= 1e-10


@given(tree_cases(), st.sampled_from((0.5, 0.1, 1e-2, 1e-4, 0.0)))
def test_a_relative_error_holds_at_each_bond(case: Case, error: float) -> None:
    entry, matrices, kernel = case
    fit = entry.apply({"K": kernel}, dict.fromkeys(matrices, RelativeError(error)), **FEW)
    check_claim(fit)
    assert fit.relative_error <= (error * math.sqrt(len(matrices)) * (1 + 1e-9) or 1e-10)
    if len(matrices) == 1:
        ((bond, matrix),) = matrices.items()
        rank = fit.trace.steps[0].change.ranks[bond]
        fewer = tail(matrix, rank - 1)
        assert rank == 1 or fewer > error * (1 - 1e-9) or tail(matrix, rank) < 1e-13


@given(tree_cases(), st.floats(0.05, 1))
def test_a_fraction_is_rounded_at_each_bond(case: Case, fraction: float) -> None:
    entry, matrices, kernel = case
    wanted = {bond: max(1, round(fraction * min(matrix.shape))) for bond, matrix in matrices.items()}
    one = entry.apply({"K": kernel}, dict.fromkeys(matrices, KeepFraction(fraction)), sweeps=1)
    two = entry.apply({"K": kernel}, wanted, sweeps=1)
    assert one.network == two.network
    assert all(torch.equal(one.values[name], value) for name, value in two.values.items())


@given(tree_cases(), st.floats(0.05, 1))
def test_a_budget_is_never_exceeded(case: Case, fraction: float) -> None:
    entry, matrices, kernel = case
    least = entry.apply({"K": kernel}, dict.fromkeys(matrices, 1), sweeps=0).parameters
    if least > fraction * kernel.numel():
        with pytest.raises(RankError, match=str(least)):
            entry.apply({"K": kernel}, ParameterBudget(fraction))
        return
    fit = entry.apply({"K": kernel}, ParameterBudget(fraction), **FEW)
    check_claim(fit)
    assert fit.parameters <= fraction * kernel.numel()


SPECTRA = {"b": 5, "a": 7, "c": 2}
"""Bonds of a core that joins three matrices -> the numbers of their singular values."""


def parameters_at(ranks: Mapping[str, int]) -> int:
    return 5 * ranks["b"] + 7 * ranks["a"] + 2 * ranks["c"] + math.prod(ranks.values())


def squares_of(seed: int) -> dict[str, list[float]]:
    values = {bond: gaussian(size, seed=seed + size).square() for bond, size in SPECTRA.items()}
    return {bond: each.sort(descending=True)[0].tolist() for bond, each in values.items()}


def kept_by(ranks: Mapping[str, int], squares: Mapping[str, Sequence[float]]) -> float:
    """The part of the squared norm that is kept, if each bond keeps its part independently of the others."""
    return math.prod(sum(squares[bond][:rank]) / sum(squares[bond]) for bond, rank in ranks.items())


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1))
def test_a_budget_is_used_up_and_keeps_no_less_than_growing_does(seed: int, fraction: float) -> None:
    """Growing, each time where most is won a parameter, said again as slowly as one can, is never better."""
    squares = squares_of(seed)
    before, ranks = parameters_at(SPECTRA), dict.fromkeys(SPECTRA, 1)
    assume(fraction * before >= parameters_at(ranks))
    while True:
        larger = [(bond, {**ranks, bond: ranks[bond] + 1}) for bond in ranks if ranks[bond] < SPECTRA[bond]]
        fitting = [(bond, more) for bond, more in larger if parameters_at(more) <= fraction * before]
        if not fitting:
            break
        won = {
            bond: math.log(kept_by(more, squares) / kept_by(ranks, squares))
            / (parameters_at(more) - parameters_at(ranks))
            for bond, more in fitting
        }
        best = max(won.values())
        ranks = dict(fitting)[min(bond for bond, value in won.items() if value == best)]
    found = Growth(squares, parameters_at).ranks(ParameterBudget(fraction), before)
    assert parameters_at(found) <= fraction * before
    assert kept_by(found, squares) >= kept_by(ranks, squares) - 1e-12
    for bond, rank in found.items():
        assert rank == SPECTRA[bond] or parameters_at({**found, bond: rank + 1}) > fraction * before


def test_the_ranks_of_a_budget_are_near_the_best_of_all() -> None:
    before, parts = parameters_at(SPECTRA), []
    every = [dict(zip(SPECTRA, ranks, strict=True)) for ranks in product(*(range(1, n + 1) for n in SPECTRA.values()))]
    for seed in range(0, 2000, 20):
        squares, fraction = squares_of(seed), (seed % 500 + 150) / 700
        found = Growth(squares, parameters_at).ranks(ParameterBudget(fraction), before)
        allowed = [ranks for ranks in every if parameters_at(ranks) <= fraction * before]
        parts.append(kept_by(found, squares) / max(kept_by(ranks, squares) for ranks in allowed))
    assert min(parts) > 0.7
    assert sum(parts) / len(parts) > 0.99


def test_the_ranks_of_a_fit_are_a_size() -> None:
    train = rule("K[o i h w] => A[o p] B[p i q] C[q h w]")
    kernel = gaussian(6, 5, 3, 3)
    fit = train.apply(kernel, ParameterBudget(0.5))
    assert fit.ranks == {bond: fit.network.sizes[bond] for bond in ("p", "q")}
    assert train.apply(kernel, fit.ranks).network == fit.network
    assert rule("K[o i h w] => L[o i h w]").apply(kernel).ranks == {}


def test_a_budget_does_not_keep_a_core_flat() -> None:
    """Growing alone keeps one side of a Tucker core small: its every step makes the other side's dearer."""
    kernel = gaussian(24, 24, 3, 3, seed=3)
    tucker2 = rule("K[o i h w] => U[o a] G[a b h w] V[b i]")
    flat = tucker2.apply({"K": kernel}, {"a": 3, "b": 24})
    fit = tucker2.apply({"K": kernel}, ParameterBudget(0.25))
    assert fit.parameters <= flat.parameters + 24
    assert fit.relative_error < 0.98 * flat.relative_error


def test_a_tucker_form_is_the_truncated_hosvd() -> None:
    fit = rule(TREES["tucker"][0]).apply({"K": KERNEL}, {"a": 7, "b": 5, "c": 3, "d": 1}, sweeps=0)
    values, vectors = np.linalg.svd(unfolding(KERNEL, "o i h w", "w"))[1::-1]
    assert fit.relative_error == pytest.approx(values[1] / np.linalg.norm(values))
    first = fit.values["Q"][:, 0]
    assert abs(float(first @ torch.from_numpy(vectors[:, 0]))) == pytest.approx(float(first.norm()))


def test_a_rule_takes_its_target_from_several_tensors() -> None:
    entry = rule("A[i b] B[b j] => L[i r] R[r j]")
    values = {"A": gaussian(40, 2), "B": gaussian(2, 30, seed=1)}
    fit = entry.apply(values, 1)
    check_claim(fit)
    assert fit.relative_error == pytest.approx(tail((values["A"] @ values["B"]).numpy(), 1))
    budget = entry.apply(values, ParameterBudget(0.5))
    assert budget.parameters == 70 <= 0.5 * (80 + 60)  # of the left side's, not of the dense matrix's
    assert cut("i | j").apply(parse("A[i b] B[b j]"), ParameterBudget(0.5), values=values).parameters == 70


# Fuse on the right ------------------------------------------------------------------------------------------

BLOCKS = "W[out in] => Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2]"


@given(st.permutations((2, 3, 4, 5)), st.integers(0, 2**32 - 1), st.data())
def test_blocks_of_a_matrix(shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    """Van Loan and Pitsianis 1993: the best sum of Kronecker products is an SVD of the rearranged matrix."""
    o1, o2, i1, i2 = shape
    matrix = gaussian(o1 * o2, i1 * i2, seed=seed)
    rearranged = matrix.reshape(o1, o2, i1, i2).permute(0, 2, 1, 3).reshape(o1 * i1, o2 * i2).numpy()
    rank = data.draw(st.integers(1, min(rearranged.shape)))
    fit = rule(BLOCKS).apply({"W": matrix}, {"p": rank}, sizes={"o1": o1, "i2": i2})
    check_claim(fit)
    assert fit.relative_error == pytest.approx(tail(rearranged, rank), rel=1e-6, abs=1e-10)
    products = sum(torch.kron(fit.values["A"][:, :, p], fit.values["B"][p]) for p in range(rank))
    assert isinstance(products, Tensor)
    torch.testing.assert_close(fit.dense(), products, rtol=1e-10, atol=1e-10)
    assert fit.network.sizes["o2"] == o2
    assert parse(str(fit.network)) == fit.network


def test_a_fuse_alone_is_a_reshape() -> None:
    fit = rule("W[out in] => Fuse[out o1 o2] T[o1 o2 in]").apply({"W": gaussian(6, 5)}, sizes={"o1": 2})
    torch.testing.assert_close(fit.values["T"], gaussian(6, 5).reshape(2, 3, 5), rtol=1e-15, atol=0)
    assert fit.relative_error < 1e-15  # the kernel is scaled and scaled back


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "Fuse[out:12 o1:4 o2:3] Fuse[in:8 i1:4 i2:2]"),
        ({"o1": 2}, "Fuse[out:12 o1:2 o2:6] Fuse[in:8 i1:4 i2:2]"),
        ({"o2": 4, "i1": 8}, "Fuse[out:12 o1:3 o2:4] Fuse[in:8 i1:8 i2:1]"),
    ],
)
def test_parts_without_sizes_are_as_equal_as_they_can_be(given: dict[str, int], found: str) -> None:
    fit = rule(BLOCKS).apply({"W": gaussian(12, 8)}, {"p": 2}, sizes=given)
    assert str(fit.network).startswith(found)
    check_claim(fit)


def test_a_part_that_occurs_twice_has_one_size() -> None:
    entry = rule("K[o i] => Fuse[o a a] A[a p] B[p i]")
    assert str(entry.apply({"K": gaussian(9, 5)}, 1).network).startswith("Fuse[o:9 a:3 a]")
    with refused(SizeError, "'o'", "6", "a a"):
        entry.apply({"K": gaussian(6, 5)}, 1)


# What is not a tree ---------------------------------------------------------------------------------------------

SIDES: list[tuple[str, dict[str, Rank]]] = [
    ("K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]", {"z": 2, "p": 3, "q": 2, "s": 1}),
    ("K[o i] => L[o r s] R[r s i]", {"r": 2, "s": 2}),
    (
        "K[o i] => L[o r] M[r s] N[s t] O[t r2] P[r2 s2] R[s2 i] Q[x] S[x]",
        {**dict.fromkeys("rst", 4), "r2": 3, "s2": 2, "x": 1},
    ),
    ("K[o i] => L[o r] L[r i]", {}),
    ("K[o i] => L[o r] Copy[r s] R[s i]", {"r": 2, "s": 2}),
    ("K[o i] => L[o r] R[r i] Fill[| value=2]", {"r": 2}),
    ("K[o i] => L[o r] Fuse[r s t] R[s t i]", {"r": 4, "s": 2, "t": 2}),
    ("K[o i] => K[o r] R[r i]", {}),
    ("K[o i] => s[] L[o r] R[r i]", {"r": 2}),
    ("K[o] => Fuse[o a b] A[o a] B[o b] -> [o]", {}),
    ("K[o h w] => Fuse[o h w] A[h] B[w] -> [o h w]", {}),
    ("K[o i] V[j] => Fuse[j a a] A[a p o] B[p i]", {"p": 2}),
    ("K[o i] => Fuse[o i b] A[i p] B[p b]", {"p": 1}),
    ("K[o i] => Fuse[o a b] Fuse[a c d] A[c d p] B[p b i]", {"p": 2}),
    ("K[o i] Fill[j:4 | value=1/2] -> [o i j] => L[o r] R[r i] M[j]", {"r": 2}),
]
"""Right sides with loops, hyperedges, ties, constants and reserved nodes."""


@pytest.mark.parametrize(("text", "ranks"), SIDES)
def test_any_right_side_is_fitted(text: str, ranks: dict[str, Rank]) -> None:
    """The claim is what is measured, and no worse than a right side of zeros."""
    sizes = {"o": 6, "i": 6, "h": 3, "w": 2, "j": 4}
    left = parse(text.partition("=>")[0])
    values = {
        node.name: gaussian(*(sizes[label] for label in node.labels), seed=3)
        for node in left.nodes
        if isinstance(node, NamedTensor)
    }
    fit = rule(text).apply(values, ranks, starts=2, sweeps=20)
    check_claim(fit)
    fit.trace.check(values)
    assert 0 < fit.relative_error < 1
    assert fit.trace.replay(values).relative_error == fit.relative_error


@pytest.mark.parametrize(("text", "facts"), [("K[o i] => T[o i i]", "'T';'i'"), ("K[o i] => L[o p p i]", "'L';'p'")])
def test_a_new_tensor_carries_a_label_once(text: str, facts: str) -> None:
    with refused(RuleError, *facts.split(";"), text):
        rule(text)
