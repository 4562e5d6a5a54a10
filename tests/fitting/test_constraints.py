"""Cores under constraints: they hold in the numbers held, errors are measured, and what cannot hold is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tnalgebra as tn
from tests.kernel_cases import gaussian
from tests.refusals import refused
from tests.rule_cases import same_bits
from tnalgebra.decompositions import load_trace
from tnalgebra.errors import RankError, RuleError, TnalgebraError
from tnalgebra.fitting import Metric
from tnalgebra.rewriting import Fit

CP = tn.rule("K[o i h w] => A[o r] B[i r] C[h r] D[w r]", name="cp")
TUCKER = tn.rule("K[o i h w] => U[o a] G[a b h w] V[b i]", name="tucker2")
RING = tn.rule("K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]", name="ring")
TRAIN = tn.rule("K[o i h w] => A[o p] B[p i q] C[q h w]", name="train")
DEPTHWISE = tn.rule("K[o i h w] => D[i h p] P[p o i w]", name="batched")
PARTS = tn.rule("K[o i h w] => Fuse[o x y] A[x r] B[y i h r] C[w r]", name="parts")
CUR = tn.rule("K[o i] => C[o a] U[a b] R[b i]", name="CUR")
HALVES = tn.rule("K[o i] => L[o r] R[r i]", name="halves")
LOW_RANK_AND_DEPTHWISE = tn.rule("K[o i h w] => U[o a] V[a i h w] + D[i h w] E[o i]", name="two terms")
LOW_RANK_AND_COLUMNS = tn.rule("K[o i h w] => U[o a] V[a i h w] + C[o c] S[c i h w]", name="and columns")
TIED_TERMS = tn.rule("K[o i h w] => U[o a] V[a i h w] + U[o b] W[b i] X[h w]", name="one factor in two terms")
TIED = tn.rule("K[o i] => A[o r] D[r] A[i r]", name="symmetric")

KERNEL = gaussian(8, 6, 3, 4)
QUICK: dict[str, Any] = {"starts": 3, "sweeps": 12}


def complex_of(kernel: Tensor) -> Tensor:
    return torch.complex(kernel, gaussian(*kernel.shape, seed=99))


def check(fit: Fit, kernel: Tensor) -> None:
    """Every constraint of the last step holds for the values, and the error is the measured one."""
    opened = fit.network.output
    nodes = [node for term in fit.network.terms for node in term.nodes]
    parts = {part for node in nodes if node.name == "Fuse" for part in node.labels[1:]}
    dense = tn.evaluate(fit.network, fit.values)
    error = float((dense - kernel).norm() / kernel.norm())
    assert fit.trace.steps[-1].relative_error == pytest.approx(error, abs=1e-12)
    for name, kind in fit.trace.steps[-1].options.constraints.items():
        value = fit.values[name]
        labels = next(node.labels for node in nodes if node.name == name)
        rows = [axis for axis, label in enumerate(labels) if label in opened or label in parts]
        bonds = [axis for axis in range(value.ndim) if axis not in rows]
        matrix = value.permute(*rows, *bonds).reshape(math.prod(value.shape[axis] for axis in rows), -1)
        if kind == "nonnegative":
            assert bool((value >= 0).all())
        elif kind == "orthonormal":
            identity = torch.eye(matrix.shape[1], dtype=matrix.dtype)
            assert float((matrix.mH @ matrix - identity).abs().max()) < 1e-12
        else:
            order = [opened.index(labels[axis]) for axis in rows]
            unfolded = kernel.permute(*order, *(axis for axis in range(kernel.ndim) if axis not in order))
            columns = unfolded.reshape(matrix.shape[0], -1)
            places = [(columns == matrix[:, [column]]).all(0).nonzero().flatten() for column in range(matrix.shape[1])]
            assert all(len(place) == 1 for place in places)
            assert len({int(place) for place in places}) == matrix.shape[1]


TOGETHER = [
    (CP, 3, {"A": "orthonormal"}),
    (CP, 3, {"A": "orthonormal", "B": "orthonormal", "D": "nonnegative"}),
    (CP, 3, {"A": "columns", "B": "nonnegative", "C": "orthonormal"}),
    (CP, 3, {"A": "nonnegative", "B": "nonnegative", "C": "nonnegative", "D": "nonnegative"}),
    (TUCKER, {"a": 4, "b": 3}, {"U": "orthonormal", "V": "orthonormal"}),
    (TUCKER, {"a": 4, "b": 3}, {"U": "columns", "V": "sampled columns"}),
    (TUCKER, {"a": 4, "b": 3}, {"U": "orthonormal", "G": "nonnegative"}),
    (TUCKER, {"a": 3, "b": 3}, {"U": "nonnegative", "G": "nonnegative", "V": "nonnegative"}),
    (RING, 2, {"A": "orthonormal", "C": "nonnegative"}),
    (TRAIN, {"p": 2, "q": 2}, {"A": "orthonormal", "B": "orthonormal"}),
    (TRAIN, {"p": 4, "q": 3}, {"A": "columns", "C": "orthonormal"}),
    (DEPTHWISE, 2, {"D": "orthonormal"}),
    (DEPTHWISE, 2, {"D": "orthonormal", "P": "nonnegative"}),
    (PARTS, 2, {"B": "orthonormal", "C": "nonnegative"}),
    (LOW_RANK_AND_DEPTHWISE, 2, {"U": "orthonormal", "V": "orthonormal", "D": "nonnegative"}),
    (LOW_RANK_AND_DEPTHWISE, 2, {"U": "orthonormal"}),
    (LOW_RANK_AND_COLUMNS, {"a": 2, "c": 3}, {"C": "columns", "V": "nonnegative"}),
    (LOW_RANK_AND_COLUMNS, {"a": 2, "c": 3}, {"C": "sampled columns", "U": "orthonormal", "S": "orthonormal"}),
    (TIED_TERMS, 2, {"U": "orthonormal", "X": "nonnegative"}),
]


@pytest.mark.parametrize("numbers", ["real", "complex"])
@pytest.mark.parametrize(("rule", "size", "constraints"), TOGETHER)
def test_constraints_hold_and_errors_are_measured(
    rule: tn.Rule, size: Any, constraints: dict[str, str], numbers: str, tmp_path: Path
) -> None:
    kernel = KERNEL if numbers == "real" else complex_of(KERNEL)
    if numbers == "complex" and "nonnegative" in constraints.values():
        name = next(name for name, kind in constraints.items() if kind == "nonnegative")
        with refused(RuleError, repr(name), "nonnegative", "complex"):
            rule.apply(kernel, size, constraints=constraints, **QUICK)
        return
    fit = rule.apply(kernel, size, constraints=constraints, **QUICK)
    check(fit, kernel)
    fit.trace.check({"K": kernel})
    assert fit.relative_error < 1
    assert all(f"{name} {kind}" in str(fit.trace) for name, kind in constraints.items())
    fit.trace.save(tmp_path / "trace.json")
    again = load_trace(tmp_path / "trace.json").replay({"K": kernel})
    assert same_bits(again.values, fit.values)
    check(again, kernel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_a_short_type_constraints_hold_to_its_rounding(dtype: torch.dtype) -> None:
    kernel = KERNEL.to(dtype)
    fit = CP.apply(kernel, 3, constraints={"A": "columns", "B": "orthonormal", "C": "nonnegative"}, **QUICK)
    columns = kernel.reshape(8, -1)
    assert all(bool((columns == fit.values["A"][:, [j]]).all(0).any()) for j in range(3))
    gram = fit.values["B"].double().mT @ fit.values["B"].double()
    assert float((gram - torch.eye(3, dtype=torch.float64)).abs().max()) < 4 * torch.finfo(dtype).eps
    assert bool((fit.values["C"] >= 0).all())
    true = float((tn.evaluate(fit.network, fit.values) - kernel.double()).norm() / kernel.double().norm())
    assert fit.relative_error == pytest.approx(true, abs=1e-12)


def test_an_orthonormal_leaf_costs_nothing() -> None:
    for rule, size, name in ((TUCKER, {"a": 4, "b": 3}, "U"), (HALVES, 3, "L"), (DEPTHWISE, 2, "D")):
        kernel = KERNEL if rule is not HALVES else KERNEL.reshape(8, -1)
        fit = rule.apply(kernel, size, constraints={name: "orthonormal"})
        check(fit, kernel)
        assert fit.relative_error == pytest.approx(rule.apply(kernel, size).relative_error, abs=1e-12)


@pytest.mark.parametrize("numbers", ["real", "complex"])
def test_two_orthonormal_factors_are_the_nearest_partial_isometry(numbers: str) -> None:
    """Of all U V^H of rank r, ||K - U V^H||^2 is the least for the singular vectors: sum s^2 - 2 sum_r s + r."""
    matrix = KERNEL.reshape(48, 12)
    matrix = matrix if numbers == "real" else complex_of(matrix)
    values = torch.linalg.svdvals(matrix)
    fit = HALVES.apply(matrix, 4, constraints={"L": "orthonormal", "R": "orthonormal"})
    check(fit, matrix)
    best = math.sqrt(float((values**2).sum() - 2 * values[:4].sum() + 4)) / float(matrix.norm())
    assert fit.relative_error == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-120, 1.0, 1e120])
def test_planted_cores_are_recovered_at_any_scale(scale: float) -> None:
    cores = [gaussian(size, 3, seed=size).abs() for size in (8, 6, 5, 4)]
    kernel = torch.einsum("or,ir,hr,wr->oihw", *cores) * scale
    fit = CP.apply(kernel, 3, constraints=dict.fromkeys("ABCD", "nonnegative"))
    check(fit, kernel / 1.0)
    assert fit.relative_error < 1e-7
    frame = torch.linalg.qr(cores[0])[0]
    kernel = torch.einsum("or,ir,hr,wr->oihw", frame, *cores[1:]) * scale
    fit = CP.apply(kernel, 3, constraints={"A": "orthonormal"})
    assert fit.relative_error < 1e-7


@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
def test_terms_of_a_sum_keep_constraints(scale: float) -> None:
    """A leaf costs nothing, and the rest is as good as an alternation of two closed forms written plainly."""
    rule = tn.rule("K[o i] => U[o a] V[a i] + D[o] Copy[o i]")
    kernel = gaussian(9, 9, seed=4) * scale
    fit = rule.apply(kernel, 3, constraints={"U": "orthonormal"})
    check(fit, kernel)
    assert fit.relative_error == pytest.approx(rule.apply(kernel, 3).relative_error, rel=1e-4)
    fit = rule.apply(kernel, 3, constraints={"U": "orthonormal", "D": "nonnegative"}, stability=0.0)
    check(fit, kernel)
    diagonal = torch.zeros_like(kernel)
    for _ in range(2000):
        U, S, V = torch.linalg.svd(kernel - diagonal)
        low = U[:, :3] * S[:3] @ V[:3]
        diagonal = (kernel - low).diagonal().clamp(min=0).diag()
    assert fit.relative_error <= float((kernel - low - diagonal).norm() / kernel.norm()) * (1 + 1e-3)
    frame = torch.linalg.qr(gaussian(9, 2, seed=7))[0]
    planted = frame @ gaussian(2, 9, seed=8) + gaussian(9, seed=9).abs().diag()
    fit = rule.apply(planted * scale, 2, constraints={"U": "orthonormal", "D": "nonnegative"})
    assert fit.relative_error < 1e-6


def test_an_orthonormal_core_with_a_label_of_another_core() -> None:
    """Its squared error is not linear in it; no sweep makes it larger."""
    rule = tn.rule("K[o i h w] => D[o h p q] E[o i p] F[q w]")
    fit = rule.apply(KERNEL, {"p": 3, "q": 2}, constraints={"D": "orthonormal"}, sweeps=60)
    check(fit, KERNEL)
    errors = fit.report.errors
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(errors))
    assert errors[-1] < errors[0]


def test_a_core_that_occurs_twice() -> None:
    frame = torch.linalg.qr(gaussian(7, 3))[0]
    matrix = frame @ torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)) @ frame.mT
    fit = TIED.apply(matrix, 3, constraints={"A": "orthonormal"})
    check(fit, matrix)
    assert fit.relative_error < 1e-6
    positive = gaussian(7, 2).abs()
    fit = tn.rule("K[o i] => A[o r] A[i r]").apply(positive @ positive.mT, 2, constraints={"A": "nonnegative"})
    check(fit, positive @ positive.mT)
    assert fit.relative_error < 1e-4


def test_nonnegative_factors_in_a_metric() -> None:
    inputs = gaussian(40, 12)
    metric = Metric.with_ridge(("in",), inputs.mT @ inputs / 40, ridge=1e-3)
    matrix = KERNEL.reshape(48, 12)
    rule = tn.rule("K[out in] => W[out r] H[r in]")
    constraints = {"W": "nonnegative", "H": "orthonormal"}
    plain = rule.apply(matrix, 3, constraints=constraints)
    fit = rule.apply(matrix, 3, constraints=constraints, metric=metric)
    check(fit, matrix)
    change = (matrix - fit.dense()) @ metric.factor()
    assert fit.output_error == pytest.approx(float(change.norm() / (matrix @ metric.factor()).norm()), abs=1e-9)
    change = (matrix - plain.dense()) @ metric.factor()
    assert fit.output_error <= float(change.norm() / (matrix @ metric.factor()).norm()) + 1e-6


def test_a_start_is_brought_to_the_constraints() -> None:
    constraints = {"A": "orthonormal", "B": "nonnegative"}
    fit = CP.apply(KERNEL, 3, constraints=constraints, **QUICK)
    grown = CP.apply(KERNEL, 4, constraints=constraints, start=fit.values)
    check(grown, KERNEL)
    assert grown.relative_error < fit.relative_error


def test_zeros_keep_the_constraints() -> None:
    fit = CP.apply(torch.zeros_like(KERNEL), 2, constraints={"A": "orthonormal", "B": "nonnegative"}, **QUICK)
    assert fit.relative_error == 0
    gram = fit.values["A"].mT @ fit.values["A"]
    assert float((gram - torch.eye(2, dtype=torch.float64)).abs().max()) < 1e-12


# Columns -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.booleans(), st.floats(0.0, 3.0))
def test_columns_are_within_the_bound_of_the_singular_values(
    seed: int, count: int, is_complex: bool, decay: float
) -> None:
    """sqrt(1 + k (n - k)) times the best of rank k, Gu and Eisenstat 1996; and CUR within the sum of both sides."""
    left, right = (torch.linalg.qr(gaussian(size, 7, seed=seed % 1000 + size))[0] for size in (7, 15))
    matrix = left * torch.exp(-decay * torch.arange(7, dtype=torch.float64)) @ right.mT
    matrix = complex_of(matrix) if is_complex else matrix
    values = torch.linalg.svdvals(matrix)
    best = float(values[count:].norm() / values.norm())
    fit = tn.rule("K[o i] => C[o r] X[r i]").apply(matrix, count, constraints={"C": "columns"})
    check(fit, matrix)
    assert best - 1e-12 <= fit.relative_error <= best * math.sqrt(1 + count * (15 - count)) + 1e-12
    both = CUR.apply(matrix, count, constraints={"C": "columns", "R": "columns"})
    check(both, matrix)
    rows = best * math.sqrt(1 + count * (7 - count))
    assert best - 1e-12 <= both.relative_error <= best * math.sqrt(1 + count * (15 - count)) + rows + 1e-10


def test_sampled_columns_are_within_the_bound_in_expectation() -> None:
    """E ||K - P K||^2 <= (k + 1) ||K - K_k||^2, Deshpande and others 2006; a seed gives the same columns again."""
    matrix = gaussian(6, 14) * torch.exp(-0.5 * torch.arange(14, dtype=torch.float64))
    values = torch.linalg.svdvals(matrix)
    rule, count = tn.rule("K[o i] => C[o r] X[r i]"), 3
    constraints = {"C": "sampled columns"}
    fits = [rule.apply(matrix, count, constraints=constraints, seed=seed) for seed in range(150)]
    mean = sum(fit.relative_error**2 for fit in fits) / len(fits)
    assert mean <= (count + 1) * float((values[count:] ** 2).sum() / (values**2).sum())
    assert len({tuple(fit.values["C"].flatten().tolist()) for fit in fits}) > 3
    assert same_bits(rule.apply(matrix, count, constraints=constraints, seed=7).values, fits[7].values)


def test_samples_have_probabilities_of_squared_volumes() -> None:
    matrix = gaussian(3, 4, seed=5)
    rule = tn.rule("K[o i] => C[o r] X[r i]")
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(600):
        fit = rule.apply(matrix, 2, constraints={"C": "sampled columns"}, seed=seed)
        pair = tuple(int((matrix == fit.values["C"][:, [j]]).all(0).nonzero()) for j in range(2))
        counts[pair] = counts.get(pair, 0) + 1
    volumes = {
        (a, b): float(torch.linalg.det(matrix[:, [a, b]].mT @ matrix[:, [a, b]]))
        for a in range(4)
        for b in range(a + 1, 4)
    }
    whole = sum(volumes.values())
    for pair, volume in volumes.items():
        share = volume / whole
        assert abs(counts.get(pair, 0) / 600 - share) < 4 * math.sqrt(share * (1 - share) / 600) + 1e-3


def test_columns_of_a_matrix_of_smaller_rank() -> None:
    matrix = gaussian(8, 2) @ gaussian(2, 9)
    for kind in ("columns", "sampled columns"):
        fit = HALVES.apply(matrix, 4, constraints={"L": kind})
        check(fit, matrix)
        assert fit.relative_error < 1e-12
        assert HALVES.apply(torch.zeros(8, 9), 2, constraints={"L": kind}).relative_error == 0


# Refused -----------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[tn.Rule, Any, dict[str, Any], dict[str, Any], type[TnalgebraError], list[str]]] = [
    (CP, 3, {"A": "orthogonal"}, {}, RuleError, ["'A'", "'orthogonal'", "'orthonormal'"]),
    (CP, 3, {"A": ["orthonormal", "nonnegative"]}, {}, RuleError, ["'A'", "nonnegative", "one constraint"]),
    (CP, 3, {"Q": "orthonormal"}, {}, RuleError, ["'Q'", "A B C D"]),
    (CP, 3, {"K": "nonnegative"}, {}, RuleError, ["'K'", "A B C D"]),
    (CP, 3, {"A": "nonnegative"}, {"fixed": {"A": torch.ones(8, 3)}}, RuleError, ["'A'", "held fixed"]),
    (CP, 5, {"D": "orthonormal"}, {}, RankError, ["'D'", "4 rows", "5 columns", "at most 4"]),
    (CP, 3, {"A": "nonnegative"}, {"of": complex_of(KERNEL)}, RuleError, ["'A'", "nonnegative", "complex"]),
    (TUCKER, {"a": 2, "b": 2}, {"G": "columns"}, {}, RuleError, ["'G'", "columns", "2 bonds", "a b"]),
    (RING, 2, {"A": "columns"}, {}, RuleError, ["'A'", "2 bonds", "z p"]),
    (DEPTHWISE, 2, {"D": "columns"}, {}, RuleError, ["'D'", "open label 'i'"]),
    (
        tn.rule("K[o i h w] => A[o r] B[i r] S[r] C[h w r]"),
        2,
        {"S": "orthonormal"},
        {},
        RuleError,
        ["'S'", "open label"],
    ),
    (tn.rule("K[o i h w] => A[o] B[i h w]"), None, {"A": "columns"}, {}, RuleError, ["'A'", "bond"]),
    (TIED, 2, {"A": "columns"}, {"of": gaussian(6, 6)}, RuleError, ["'A'", "2 times"]),
    (
        tn.rule("K[o i] => A[o r] G[r s] A[s i]"),
        2,
        {"A": "orthonormal"},
        {"of": gaussian(2, 2)},
        RuleError,
        ["'A'", "2 times", "other axes"],
    ),
    (HALVES, 3, {"L": "columns", "R": "columns"}, {"of": gaussian(6, 9)}, RuleError, ["nothing is left"]),
    (tn.rule("K[o i h w] => A[o i h w r] B[r]"), 1, {"A": "columns"}, {}, RuleError, ["'A'", "one column"]),
    (
        tn.rule("K[o i h w] => A[o i h r] B[w r] C[r]"),
        5,
        {"A": "columns"},
        {},
        RankError,
        ["'A'", "5 of the 4 columns"],
    ),
    (tn.cut("o | i", of="K[o i]"), 2, {"L": "orthonormal"}, {"of": gaussian(6, 9)}, RuleError, ["constraints="]),
    (LOW_RANK_AND_DEPTHWISE, 2, {"D": "columns"}, {}, RuleError, ["'D'", "no bond"]),
    (LOW_RANK_AND_DEPTHWISE, {"a": 9}, {"U": "orthonormal"}, {}, RankError, ["'U'", "8 rows", "9 columns"]),
    (CP, 3, ["A"], {}, RuleError, ["constraints=", "list"]),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("rule", "size", "constraints", "choices", "error", "facts"), REFUSED)
def test_what_cannot_hold_is_refused_before_the_fit(
    rule: tn.Rule, size: Any, constraints: Any, choices: dict[str, Any], error: type[TnalgebraError], facts: list[str]
) -> None:
    kernel = choices.get("of", KERNEL)
    others: Any = {key: value for key, value in choices.items() if key != "of"}
    with refused(error, *facts):
        rule.apply(kernel, size, constraints=constraints, **others)
