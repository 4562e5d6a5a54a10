"""What cannot be fitted is refused, and what is only unusual is fitted; nothing ends in NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fit_cases import BLOCKS, CP
from tests.kernel_cases import check_claim, gaussian
from tests.refusals import refused
from tnalgebra.errors import NetworkError, RankError, RuleError, SizeError, TnalgebraError, ValuesError
from tnalgebra.fitting import KeepFraction, Metric, ParameterBudget, RelativeError
from tnalgebra.rewriting import Fit, rule

CANONICAL = rule(CP, name="cp")
RING = rule("K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]", name="ring")
TUCKER = rule("K[o i h w] => U[o a] G[a b h w] V[b i]", name="tucker2")
COSINES = rule("K[o i h w] => G[o i c w] P[c h]", fixed={"P": "dct"}, name="cosines")
KRONECKER = rule(BLOCKS + "A[o1 i1 p] B[p o2 i2]", name="kronecker")
SYMMETRIC = rule("K[o i] => L[o r] L[i r]", name="symmetric")
KERNEL = gaussian(7, 5, 3, 2)
MATRIX = KERNEL[:, :, 0, 0]
SQUARE = gaussian(5, 5)
CONSTANT = (gaussian(7, 2), gaussian(2, 2, 3, 2), gaussian(2, 5))
RANKS = {"z": 2, "p": 2, "q": 2, "s": 2}
QUICK: dict[str, Any] = {"starts": 2, "sweeps": 5}
WHITE = Metric(("in",), torch.eye(5, dtype=torch.float64))


def cp(kernel: Any = KERNEL, ranks: Any = 2, **choices: Any) -> Fit:
    return CANONICAL.apply({"K": kernel}, ranks, **{**QUICK, **choices})


def ring(kernel: Tensor = KERNEL, ranks: Any = RANKS, **choices: Any) -> Fit:
    return RING.apply({"K": kernel}, ranks, **{**QUICK, **choices})


def kronecker(sizes: Any) -> Fit:
    return KRONECKER.apply({"K": gaussian(6, 8)}, 2, sizes=sizes)


def start(**cores: Tensor) -> dict[str, Tensor]:
    return {"A": gaussian(7, 2), "B": gaussian(5, 2), "C": gaussian(3, 2), "D": gaussian(2, 2), **cores}


def with_nan(tensor: Tensor) -> Tensor:
    return tensor.clone().index_fill_(0, torch.tensor([1]), math.nan)


Refusal = tuple[Callable[[], object], type[TnalgebraError], str]
"""A call, the class of its error, and facts, separated by ';'."""

RIGHT_SIDES: list[Refusal] = [
    (lambda: rule("K[o i] => L[o r] R[r i] M[x y]").apply({"K": MATRIX}, {"r": 2}), RankError, "'x', 'y'"),
    (lambda: rule("K[o i] => Fuse[x a b] L[o a] R[b i]").apply({"K": MATRIX}), RankError, "for 'a', 'b'"),
    (lambda: rule("K[o i] => L[o r] R[r i] -> [o]"), RuleError, "open labels;o i"),
    (lambda: rule("K[o i] => L[o r] R[r j]"), NetworkError, "'i'"),
    (lambda: rule("K[o i] => L[o r] R[r i] -> [i o]"), RuleError, "order"),
    (lambda: SYMMETRIC.apply({"K": MATRIX}, 2), RuleError, "'symmetric';K[o:7 i:5]"),
    (
        lambda: TUCKER.apply({"K": KERNEL}, {"a": 2, "b": 2}, fixed=dict(zip("UGV", CONSTANT, strict=True))),
        RuleError,
        "U G V",
    ),
    (lambda: kronecker({"o1": 2, "o2": 2}), SizeError, "'out';6;4;Fuse[out o1 o2]"),
    (lambda: kronecker({"o1": 4}), SizeError, "'out';6;4"),
    (lambda: kronecker({"o1": -2}), SizeError, "'o1';-2"),
    (lambda: kronecker({"o1": 2.5}), SizeError, "'o1';2.5;integer"),
    (lambda: kronecker(3), RuleError, "sizes=;int;mapping"),
]

BONDS: list[Refusal] = [
    (lambda: cp(ranks={"x": 2}), RuleError, "'cp';'x';r"),
    (lambda: cp(ranks={"r": 2, "o": 2}), RuleError, "'cp';'o'"),
    (lambda: TUCKER.apply({"K": KERNEL}, {"a": 8, "b": 1}), RankError, "rank 8;'a';1 to 7"),
    (lambda: ring(ranks={"z": 2}), RankError, "'p', 'q', 's'"),
    (lambda: ring(ranks=None), RankError, "'z', 'p', 'q', 's'"),
    (lambda: ring(ranks=0.5), RankError, "0.5;'keep 0.5'"),
    (lambda: cp(ranks=0), RankError, "rank 0"),
    (lambda: ring(ranks={**RANKS, "z": -1}), RankError, "rank -1;'z'"),
    (lambda: cp(ranks={"r": 10**12}), RankError, "1000000000000;'r';1 to 210"),
    (lambda: SYMMETRIC.apply({"K": SQUARE}, {"r": 10**7}), RankError, "10000000;'r';1 to 25"),
    (lambda: cp(ranks={"r": [2]}), RankError, "'r';[2]"),
    (lambda: cp(ranks=KeepFraction(0.5)), RankError, "'r';4 tensors;keep 0.5"),
    (lambda: ring(ranks={**RANKS, "z": RelativeError(0.1)}), RankError, "'z';loop;error 0.1"),
    (lambda: SYMMETRIC.apply({"K": SQUARE}, KeepFraction(0.5)), RankError, "'r';twice"),
    (lambda: COSINES.apply({"K": KERNEL}, {"c": 4}), RankError, "rank 4;'c';1 to 3"),
    (lambda: cp(ranks=ParameterBudget(0.01)), RankError, "'parameters 0.01';2;17;0.081"),
]

NUMBERS: list[Refusal] = [
    (lambda: cp(with_nan(KERNEL)), ValuesError, "'K';NaN"),
    (lambda: ring(KERNEL / 0), ValuesError, "'K';infinity"),
    (lambda: cp(KERNEL[:, :0]), ValuesError, "'K';empty;(7, 0, 3, 2)"),
    (lambda: cp(KERNEL.to(torch.complex128), metric=Metric(("in",), torch.eye(5))), ValuesError, "complex;metric"),
    (lambda: cp(start={name: 1j * core for name, core in cp().values.items()}), ValuesError, "'A';complex;real"),
    (lambda: cp(KERNEL[0]), ValuesError, "'K';3 axes;4"),
    (lambda: cp(metric=torch.eye(5)), RuleError, "metric=;Tensor"),
    (lambda: cp(metric=Metric(("x",), torch.eye(5))), RuleError, "metric;out x;o i h w"),
    (lambda: cp(metric=Metric(("in",), torch.eye(4))), ValuesError, "metric;'i'"),
]

CONSTANTS: list[Refusal] = [
    (lambda: cp(fixed={"C": gaussian(4, 2)}), ValuesError, "'C';(4, 2);h=3 r=any"),
    (lambda: cp(fixed={"C": gaussian(3)}), ValuesError, "'C';(3,)"),
    (lambda: cp(fixed={"C": gaussian(3, 3)}), ValuesError, "'C';orthonormal"),
    (lambda: cp(fixed={"X": gaussian(3, 2)}), ValuesError, "'X';A B C D"),
    (lambda: cp(fixed={"C": "dft"}), RuleError, "'dft';dct"),
    (lambda: cp(fixed={"C": with_nan(gaussian(3, 2))}), ValuesError, "'C';NaN"),
    (lambda: cp(fixed={"C": ["a"]}), ValuesError, "'C'"),
    (lambda: cp(fixed=3), RuleError, "fixed=;int;mapping"),
]

STARTS: list[Refusal] = [
    (lambda: cp(start=start(A=gaussian(7, 3))), ValuesError, "'A';(7, 3);(7, 2)"),
    (lambda: cp(start={"A": gaussian(7, 2)}), ValuesError, "'B';A"),
    (lambda: cp(start={}), ValuesError, "'A'"),
    (lambda: cp(start={"X": gaussian(7, 2)}), ValuesError, "'X'"),
    (lambda: cp(start=start(B=with_nan(gaussian(5, 2)))), ValuesError, "'B';NaN"),
    (lambda: cp(start=start(A=gaussian(7))), ValuesError, "'A';(7,)"),
    (lambda: cp(start=start(A=gaussian(7, 2) * 1e200, B=gaussian(5, 2) * 1e200)), ValuesError, "start;not finite"),
    (lambda: cp(start=3), RuleError, "start=;int;mapping"),
]


@pytest.mark.parametrize(("call", "error", "facts"), [*RIGHT_SIDES, *BONDS, *NUMBERS, *CONSTANTS, *STARTS])
def test_what_is_refused(call: Callable[[], object], error: type[TnalgebraError], facts: str) -> None:
    with refused(error, *facts.split(";")):
        call()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("seed", value) for value in (-1, 1.5, "a", True, None, 2**64)),
        *(("starts", value) for value in (0, -1, 1.5, True, "a", 10**9)),
        *(("sweeps", value) for value in (-1, 1.5, True, "a")),
        *(("dtype", value) for value in (torch.float16, torch.int32, "float64", None)),
    ],
)
def test_settings_of_the_search_that_are_refused(key: str, value: Any) -> None:
    with refused(ValuesError, "" if key == "dtype" else f"{key}={value!r}", str(value)):
        cp(**{key: value})


# What is unusual, and fitted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [None, WHITE])
def test_a_kernel_of_zeros(metric: Metric | None) -> None:
    zeros = torch.zeros_like(KERNEL)
    for fit in (
        cp(zeros, metric=metric),
        ring(zeros, metric=metric),
        TUCKER.apply({"K": zeros}, {"a": 2, "b": 2}, metric=metric),
        cp(zeros, metric=metric, fixed={"C": gaussian(3, 2)}),
    ):
        check_claim(fit)
        assert fit.relative_error == 0
        assert torch.equal(fit.dense(), zeros)
        assert fit.output_error in (None, 0)
    symmetric = SYMMETRIC.apply({"K": zeros[:5, :, 0, 0]}, 2)
    assert symmetric.relative_error == 0


@pytest.mark.parametrize("metric", [None, WHITE])
@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e-320])
def test_huge_and_tiny_kernels(scale: float, metric: Metric | None) -> None:
    """The fit is that of the kernel itself; at 1e-320 few digits of it are left."""
    for apply in (cp, ring):
        plain, fit = apply(metric=metric), apply(KERNEL * scale, metric=metric)
        assert fit.relative_error == pytest.approx(plain.relative_error, rel=1e-3 if scale < 1e-307 else 1e-9)
        assert all(bool(core.isfinite().all()) for core in fit.values.values())
    tree = TUCKER.apply({"K": KERNEL * scale}, ParameterBudget(0.5), metric=metric)
    assert tree.relative_error < 1
    low = gaussian(5, 2, seed=3)
    assert SYMMETRIC.apply({"K": low @ low.T * min(scale, 1e299)}, 2).relative_error < 1e-2


def test_a_huge_kernel_is_fitted_in_single_precision() -> None:
    fit = cp(KERNEL * 1e300, dtype=torch.float32)
    assert fit.relative_error == pytest.approx(cp(dtype=torch.float32).relative_error, rel=1e-3)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float32, 1e-6)])
def test_half_precision_kernels_have_half_precision_cores(dtype: torch.dtype, rounding: float) -> None:
    """The search is in float64 whatever the kernel is; only what it finds is rounded."""
    for apply in (cp, ring):
        exact, fit = apply(KERNEL.to(dtype).double()), apply(KERNEL.to(dtype))
        assert all(core.dtype == dtype for core in fit.values.values())
        assert fit.dense().dtype == dtype
        assert fit.trace.steps[0].relative_error == pytest.approx(fit.relative_error, rel=1e-6)
        assert fit.relative_error == pytest.approx(exact.relative_error, abs=rounding)


def test_integers_and_numbers_of_numpy() -> None:
    whole = torch.arange(60).reshape(5, 3, 2, 2)
    assert cp(whole).relative_error == pytest.approx(cp(whole.double()).relative_error, rel=1e-9)
    one = cp(KERNEL.numpy(), ranks=np.int64(2), seed=np.int64(3), starts=np.int32(2))
    assert one.relative_error == cp(seed=3).relative_error
    one.trace.check({"K": KERNEL})


def test_starts_that_are_smaller_or_nothing() -> None:
    for begun in (
        start(A=gaussian(7, 1), C=gaussian(3, 1)),
        {name: core * 0 for name, core in start().items()},
        start(A=gaussian(7, 2) * 1e90, B=gaussian(5, 2) * 1e-90),
    ):
        fit = cp(start=begun)
        check_claim(fit)
        assert fit.relative_error <= 1
    still = SYMMETRIC.apply({"K": gaussian(5, 5)}, 2, start={"L": torch.zeros(5, 2)})
    assert still.relative_error <= 1


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e-9])
def test_a_start_without_sweeps_is_the_fit(scale: float) -> None:
    """Also of a kernel far from 1: what is scaled for the search is scaled for the start too."""
    for apply in (cp, ring):
        fit = apply(KERNEL * scale)
        again = apply(KERNEL * scale, start=fit.values, sweeps=0)
        torch.testing.assert_close(again.dense(), fit.dense(), rtol=1e-12, atol=1e-14 * scale)


def test_a_rank_of_1_and_a_kernel_of_one_element() -> None:
    one = gaussian(1, 1, 1, 1)
    for fit in (cp(one, ranks=1), ring(one, ranks=dict.fromkeys(RANKS, 1))):
        assert fit.relative_error < 1e-10
        check_claim(fit)
