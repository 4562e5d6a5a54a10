"""Fits of sums: planted terms are recovered, an alternation written plainly agrees, and terms do not cancel."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernel_cases import check_claim, gaussian
from tests.refusals import refused
from tests.strategies import random_values
from tnalgebra.errors import RankError, RuleError, TnalgebraError
from tnalgebra.fitting import KeepFraction, Metric, ParameterBudget
from tnalgebra.fitting.objective import Objective
from tnalgebra.networks import Sum, parse, parse_rule, shapes, with_sizes
from tnalgebra.rewriting import Fit, rule
from tnalgebra.tensors import evaluate

DEPTHWISE = "K[o i h w] => U[o a] V[a i h w] + D[o h w] Copy[o i]"
DIAGONAL = "K[o i] => U[o a] V[a i] + D[o] Copy[o i]"
COLUMNS = "K[o i] => U[o a] V[a i] + C[o c] S[c i]"
TRAIN_AND_CP = "K[o i h w] => A[o p] B[p i q] C[q h s] D[s w] + E[o r] F[i r] G[h r] H[w r]"
TWO_CUTS = "K[o i h w] => U[o h a] V[a i w] + P[o w b] Q[b i h]"

PLANTED: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    DEPTHWISE: ({"o": 7, "i": 7, "h": 3, "w": 2}, {"a": 2}),
    DIAGONAL: ({"o": 11, "i": 11}, {"a": 3}),
    TRAIN_AND_CP: ({"o": 7, "i": 6, "h": 4, "w": 3}, {"p": 3, "q": 3, "s": 2, "r": 2}),
    TWO_CUTS: ({"o": 6, "i": 5, "h": 3, "w": 2}, {"a": 2, "b": 2}),
    "K[o i h w] => U[o a] V[a i h w] + U[o b] W[b i h w]": ({"o": 6, "i": 5, "h": 3, "w": 2}, {"a": 2, "b": 2}),
    "K[i j] => T[i a] T[j a] + D[i] Copy[i j]": ({"i": 8, "j": 8}, {"a": 2}),
    "K[o i] => U[o a] V[a i] + W[o] Fill[i | value=1] + Z[i] Fill[o | value=1]": ({"o": 7, "i": 8}, {"a": 2}),
}


def planted(text: str, seed: int = 0) -> Tensor:
    """The value of the right side with random cores of some sizes."""
    sizes, ranks = PLANTED[text]
    right = with_sizes(parse_rule(text)[1], {**sizes, **ranks})
    return evaluate(right, random_values(right, seed))


def check_planted(text: str) -> None:
    kernel = planted(text)
    fit = rule(text).apply(kernel, PLANTED[text][1])
    check_claim(fit)
    assert fit.relative_error < 1e-7
    assert isinstance(fit.network, Sum)
    assert fit.parameters == fit.network.parameters < kernel.numel()
    assert torch.allclose(fit.dense(), kernel, rtol=0, atol=1e-6 * float(kernel.abs().max()))
    fit.trace.check({"K": kernel})


@pytest.mark.parametrize("text", PLANTED)
def test_planted_sums_are_recovered(text: str) -> None:
    check_planted(text)


def _whole_target(objective: Objective, position: int, values: dict[str, Tensor]) -> Tensor:
    batch = next(iter(values.values())).shape[:2]
    return objective.pulled[:, None].expand(*batch, *objective.pulled.shape[1:])


def check_by_sweeps_alone() -> None:
    """Under constraints no Gauss-Newton step makes up for what a sweep does wrong."""
    kernel = gaussian(9, 2, seed=7) @ gaussian(2, 9, seed=8) + gaussian(9, seed=9).abs().diag()
    fit = rule(DIAGONAL).apply(kernel, {"a": 2}, constraints={"D": "nonnegative"})
    check_claim(fit)
    assert fit.relative_error < 1e-6


def test_planted_sums_are_recovered_by_sweeps_alone() -> None:
    check_by_sweeps_alone()


BROKEN: dict[str, Any] = {
    "pulled_for": _whole_target,  # as if there were no other terms
    "model": lambda objective, values: objective.model_of(objective.terms[0], values),  # the first term alone
    "others": lambda objective, *positions: [n for n in range(len(objective.occurrences)) if n not in positions],
}
"""Methods of an objective that take its terms for something else than a sum."""


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_objective_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Objective, name, BROKEN[name])
    with pytest.raises((AssertionError, TnalgebraError)):
        _check_both()


def _check_both() -> None:
    check_planted(DIAGONAL)
    check_by_sweeps_alone()


def test_low_rank_and_columns_that_are_held_fixed() -> None:
    """The second term has some columns of the kernel, chosen before; the low rank is what they leave."""
    right = with_sizes(parse_rule(COLUMNS)[1], {"o": 9, "i": 8, "a": 2, "c": 3})
    values = random_values(right, 1)
    kernel = evaluate(right, values)
    fit = rule(COLUMNS).apply(kernel, {"a": 2, "c": 3}, fixed={"C": values["C"]})
    check_claim(fit)
    assert fit.relative_error < 1e-7
    assert torch.equal(fit.values["C"], values["C"])


def test_a_term_that_is_not_fitted_is_subtracted() -> None:
    base, kernel = gaussian(6, 5, seed=1), gaussian(6, 5, seed=2) * 1e-3
    update = rule("K[o i] => W[o i] + U[o a] V[a i]")
    fit = update.apply(base + kernel, {"a": 2}, fixed={"W": base})
    check_claim(fit)
    dropped = torch.linalg.svdvals(kernel)[2:]
    best = torch.linalg.vector_norm(dropped) / torch.linalg.vector_norm(base + kernel)
    assert fit.relative_error == pytest.approx(float(best), rel=1e-6)
    identity = rule("K[o i] => Copy[o i] + U[o a] V[a i]")
    planted_one = torch.eye(6, dtype=torch.float64) + gaussian(6, 2) @ gaussian(2, 6, seed=3)
    for scale in (1.0, 1e-6):
        fit = identity.apply(
            scale * (planted_one - torch.eye(6, dtype=torch.float64)) + torch.eye(6).double(), {"a": 2}
        )
        check_claim(fit)
        assert fit.relative_error < 1e-7


def alternation(kernel: Tensor, rank: int, *, sweeps: int = 2000) -> float:
    """Low rank plus depthwise by two closed forms in turn: the best low rank of K - D, the best diagonal of K - UV."""
    out, inputs = kernel.shape[:2]
    diagonal = torch.zeros_like(kernel)
    eye = torch.eye(out, inputs, dtype=kernel.dtype)[:, :, None, None]
    for _ in range(sweeps):
        U, S, V = torch.linalg.svd((kernel - diagonal).reshape(out, -1), full_matrices=False)
        low = ((U[:, :rank] * S[:rank]) @ V[:rank]).reshape(kernel.shape)
        diagonal = (kernel - low) * eye
    return float(torch.linalg.vector_norm(kernel - low - diagonal) / torch.linalg.vector_norm(kernel))


@pytest.mark.parametrize("rank", [1, 3])
def test_a_fit_is_as_good_as_an_alternation_written_plainly(rank: int) -> None:
    kernel = gaussian(8, 8, 3, 2, seed=5)
    fit = rule(DEPTHWISE).apply(kernel, {"a": rank}, stability=0.0)
    check_claim(fit)
    assert fit.relative_error <= alternation(kernel, rank) * (1 + 1e-4)
    alone = rule("K[o i h w] => U[o a] V[a i h w]").apply(kernel, {"a": rank}).relative_error
    assert fit.relative_error < alone


def test_a_metric_and_a_start() -> None:
    kernel = gaussian(6, 6, seed=3)
    x = gaussian(40, 6, seed=4)
    metric = Metric(("in",), x.mT @ x)
    diagonal = rule("K[out in] => U[out a] V[a in] + D[out] Copy[out in]")
    fit = diagonal.apply(kernel, {"a": 2}, metric=metric)
    check_claim(fit)
    assert fit.output_error is not None
    plain = diagonal.apply(kernel, {"a": 2})
    difference = (plain.dense() - kernel) @ x.mT
    assert fit.output_error <= float(difference.norm() / (kernel @ x.mT).norm()) * (1 + 1e-9)
    grown = diagonal.apply(kernel, {"a": 3}, start=plain.values)
    check_claim(grown)
    assert grown.relative_error <= plain.relative_error


def test_many_kernels_side_by_side_and_the_same_bits_again() -> None:
    kernels = [gaussian(7, 7, seed=1), 100 * gaussian(7, 7, seed=2)]
    fits = rule(DIAGONAL).apply_many(kernels, {"a": 2}, starts=4)
    for kernel, fit in zip(kernels, fits, strict=True):
        check_claim(fit)
        alone = rule(DIAGONAL).apply(kernel, {"a": 2}, starts=4)
        assert fit.relative_error == pytest.approx(alone.relative_error, rel=1e-3)
        again = alone.trace.replay({"K": kernel})
        assert all(torch.equal(again.values[name], value) for name, value in alone.values.items())


def test_terms_that_cancel_are_bounded() -> None:
    """The derivative of a tensor of rank 1 is a limit of differences of two of them, which grow without a bound."""
    u, v, x, y = (gaussian(6, seed=seed) for seed in range(4))
    kernel = (
        torch.einsum("a,b,c->abc", x, v, v) + torch.einsum("a,b,c->abc", u, y, v) + torch.einsum("a,b,c->abc", u, v, y)
    )
    two = rule("K[a b c] => A[a r] B[b r] C[c r] + D[a s] E[b s] F[c s]")
    one = rule("K[a b c] => A[a r] B[b r] C[c r]")
    free: Fit = two.apply(kernel, {"r": 1, "s": 1}, stability=0.0, sweeps=400)
    bounded = two.apply(kernel, {"r": 1, "s": 1}, stability=0.3)
    product = one.apply(kernel, {"r": 2}, stability=0.3)
    assert free.degeneracy is not None
    assert bounded.degeneracy is not None
    assert product.degeneracy is not None
    assert bounded.degeneracy < free.degeneracy
    # two terms of rank 1 are a product of rank 2, and are bounded in the same way
    assert bounded.degeneracy == pytest.approx(product.degeneracy, rel=0.3)
    check_claim(bounded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_types(dtype: torch.dtype) -> None:
    fit = rule(DIAGONAL).apply(planted(DIAGONAL).to(dtype), {"a": 3})
    check_claim(fit)
    assert all(value.dtype == dtype for value in fit.values.values())
    assert fit.relative_error < 20 * torch.finfo(dtype).eps


def test_sizes_of_bonds() -> None:
    two = rule("K[o i] => U[o a] V[a i] + P[o a] D[a] Q[a i]")
    assert two.ranks == ("a", "a_2")
    kernel = gaussian(8, 9, seed=2)
    assert two.apply(kernel, 2, **QUICK).trace.steps[0].change.ranks == {"a": 2, "a_2": 2}
    fit = two.apply(kernel, ParameterBudget(0.8), **QUICK)
    assert fit.parameters <= 0.8 * 72
    with refused(RankError, "'a'", "one term of a sum", "singular values"):
        two.apply(kernel, {"a": KeepFraction(0.5), "a_2": 1})
    with refused(RankError, "'a_2'"):
        two.apply(kernel, {"a": 2})


QUICK: dict[str, Any] = {"starts": 2, "sweeps": 5}


def test_zeros_are_fitted_by_zeros() -> None:
    fit = rule(DEPTHWISE).apply(torch.zeros(4, 4, 3, 3), {"a": 2}, **QUICK)
    assert fit.relative_error == 0
    assert not fit.dense().any()


def test_rules_that_are_refused() -> None:
    with refused(RuleError, "left side", "a sum"):
        rule("A[o i] + B[o i] => C[o i]")
    with refused(RuleError, "'a' twice"):
        rule("K[o i] => U[o a a] V[a i] + D[o] Copy[o i]")


def test_an_exact_rule_may_have_a_sum() -> None:
    double = rule("A[i j] => A[i j] Fill[ | value=1/2] + A[i j] Fill[ | value=0.5]", name="halves")
    assert double.kind == "exact"
    kernel = gaussian(3, 4)
    assert torch.equal(double.apply(kernel).dense(), kernel)
    with refused(RuleError, "not equal"):
        rule("A[i j] => A[i j] + A[i j]")


def test_a_rule_in_a_larger_network_multiplies_out() -> None:
    network = parse("X[n i] K[o i] -> [n o]")
    values = {"X": gaussian(5, 6, seed=1), "K": gaussian(6, 6, seed=2)}
    fit = rule(DIAGONAL).apply(network, {"a": 2}, values=values, bind={"K": "K"})
    assert str(fit.network) == "X[n:5 i:6] U[o:6 a:2] V[a i] + X[n i_2:6] D[o] Copy[o i_2] -> [n o]"
    assert set(fit.values) == {"X", "U", "V", "D"}
    fit.trace.check(values)
    assert math.isfinite(fit.relative_error)
    tied = parse("K[o i] K[i p] -> [o p]")
    fit = rule(DIAGONAL).apply(tied, {"a": 2}, values={"K": values["K"]})
    assert len(fit.network.terms) == 4
    assert shapes(fit.network) == {"U": (6, 2), "V": (2, 6), "D": (6,)}
    fit.trace.check({"K": values["K"]})
