"""What cannot be fitted is refused with words, and what is only unusual is fitted; nothing ends in NaN."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fit_cases import BLOCKS, CP
from tests.kernel_cases import check_claim, gaussian
from tnalgebra.errors import NetworkError, RankError, RuleError, SizeError, TnalgebraError, ValuesError
from tnalgebra.fitting.metric import Metric
from tnalgebra.fitting.ranks import KeepFraction, ParameterBudget, RelativeError
from tnalgebra.rewriting.rule import Fit
from tnalgebra.rewriting.text import rule

CANONICAL = rule(CP, name="cp")
RING = rule("K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]", name="ring")
TUCKER = rule("K[o i h w] => U[o a] G[a b h w] V[b i]", name="tucker2")
COSINES = rule("K[o i h w] => G[o i c w] P[c h]", fixed={"P": "dct"}, name="cosines")
KRONECKER = rule(BLOCKS + "A[o1 i1 p] B[p o2 i2]", name="kronecker")
SYMMETRIC = rule("K[o i] => L[o r] L[i r]", name="symmetric")
KERNEL = gaussian(7, 5, 3, 2)
MATRIX = KERNEL[:, :, 0, 0]
RANKS = {"z": 2, "p": 2, "q": 2, "s": 2}
QUICK: dict[str, Any] = {"starts": 2, "sweeps": 5}
WHITE = Metric(("in",), torch.eye(5, dtype=torch.float64))


def cp(kernel: Any = KERNEL, ranks: Any = 2, **choices: Any) -> Fit:
    return CANONICAL.apply({"K": kernel}, ranks=ranks, **{**QUICK, **choices})


def ring(kernel: Tensor = KERNEL, **choices: Any) -> Fit:
    return RING.apply({"K": kernel}, **{"ranks": RANKS, **QUICK, **choices})


def start(**cores: Tensor) -> dict[str, Tensor]:
    return {"A": gaussian(7, 2), "B": gaussian(5, 2), "C": gaussian(3, 2), "D": gaussian(2, 2), **cores}


def with_nan(tensor: Tensor) -> Tensor:
    return tensor.clone().index_fill_(0, torch.tensor([1]), math.nan)


Refusal = tuple[Callable[[], object], type[TnalgebraError], str]

RIGHT_SIDES: dict[str, Refusal] = {
    "a label that nothing sizes": (
        lambda: rule("K[o i] => L[o r] R[r i] M[x y]").apply({"K": MATRIX}, ranks={"r": 2}),
        RankError,
        "no rank for 'x', 'y'\n  fix: ranks={'x': ..., 'y': ...} or a ParameterBudget",
    ),
    "the whole of a Fuse that nothing sizes": (
        lambda: rule("K[o i] => Fuse[x a b] L[o a] R[b i]").apply({"K": MATRIX}),
        RankError,
        "no rank for 'x', 'a', 'b'",
    ),
    "an open label that is lost": (
        lambda: rule("K[o i] => L[o r] R[r i] -> [o]"),
        RuleError,
        "the two sides have different open labels\n  left:  o i\n  right: o\n",
    ),
    "an open label that is new": (
        lambda: rule("K[o i] => L[o r] R[r j]"),
        NetworkError,
        "the output label 'i' stands on no node",
    ),
    "another order": (
        lambda: rule("K[o i] => L[o r] R[r i] -> [i o]"),
        RuleError,
        "the two sides have their open labels in different orders",
    ),
    "a tie of labels of two sizes": (
        lambda: SYMMETRIC.apply({"K": MATRIX}, ranks=2),
        RuleError,
        "the rule 'symmetric' applies nowhere\n  rule:    K[o i] => L[o r] L[i r]\n  network: K[o:7 i:5]",
    ),
    "nothing to fit": (
        lambda: TUCKER.apply(
            {"K": KERNEL},
            ranks={"a": 2, "b": 2},
            fixed={"U": gaussian(7, 2), "G": gaussian(2, 2, 3, 2), "V": gaussian(2, 5)},
        ),
        RuleError,
        "nothing is left to be fitted\n  fixed: U G V",
    ),
    "parts of another product": (
        lambda: KRONECKER.apply({"K": gaussian(6, 8)}, sizes={"o1": 2, "o2": 2}, ranks=2),
        SizeError,
        "label 'out' has two sizes\n  first:  6, from out=6, as given\n  second: 4, from Fuse[out o1 o2]",
    ),
    "parts that do not divide": (
        lambda: KRONECKER.apply({"K": gaussian(6, 8)}, sizes={"o1": 4}, ranks=2),
        SizeError,
        "label 'out' of size 6 does not divide into parts of 4",
    ),
    "a part of negative size": (
        lambda: KRONECKER.apply({"K": gaussian(6, 8)}, sizes={"o1": -2}, ranks=2),
        SizeError,
        "label 'o1' would have size -2",
    ),
    "sizes that are no mapping": (
        lambda: KRONECKER.apply({"K": gaussian(6, 8)}, sizes=3, ranks=2),  # type: ignore[arg-type]
        RuleError,
        "sizes= is a int\n  fix: a mapping",
    ),
}

BONDS: dict[str, Refusal] = {
    "no bond": (lambda: cp(ranks={"x": 2}), RuleError, "the rule 'cp' has no bond 'x'\n  known: r"),
    "an open label": (lambda: cp(ranks={"r": 2, "o": 2}), RuleError, "the rule 'cp' has no bond 'o'\n  known: r"),
    "a bond without a rank": (lambda: ring(ranks={"z": 2}), RankError, "no rank for 'p', 'q', 's'\n"),
    "no ranks": (lambda: ring(ranks=None), RankError, "no rank for 'z', 'p', 'q', 's'\n"),
    "one for four": (lambda: ring(ranks=3), RankError, "one rank, 3, for the bonds z p q s"),
    "zero": (lambda: cp(ranks=0), RankError, "rank 0 of bond 'r' is outside 1 to 210"),
    "negative": (lambda: ring(ranks={**RANKS, "z": -1}), RankError, "rank -1 of bond 'z' is outside 1 to 210"),
    "huge": (lambda: cp(ranks=10**12), RankError, "rank 1000000000000 of bond 'r' is outside 1 to 210"),
    "of a tie": (
        lambda: SYMMETRIC.apply({"K": gaussian(5, 5)}, ranks=10**7),
        RankError,
        "rank 10000000 of bond 'r' is outside 1 to 25",
    ),
    "a float": (lambda: cp(ranks=2.0), RankError, "the rank of bond 'r' is 2.0\n  fix: an integer"),
    "a bool": (lambda: cp(ranks=True), RankError, "the rank of bond 'r' is True"),
    "a word": (lambda: cp(ranks="2"), RankError, "the rank of bond 'r' is '2'"),
    "a list": (lambda: cp(ranks={"r": [2]}), RankError, "the rank of bond 'r' is [2]"),
    "a fraction of a hyperedge": (
        lambda: cp(ranks=KeepFraction(0.5)),
        RankError,
        "the bond 'r' has no singular values of its own: it stands on 4 tensors\n  given: keep 0.5\n",
    ),
    "an error of a loop": (
        lambda: ring(ranks={**RANKS, "z": RelativeError(0.1)}),
        RankError,
        "the bond 'z' has no singular values of its own: it is part of a loop\n  given: error 0.1",
    ),
    "a fraction of a tie": (
        lambda: SYMMETRIC.apply({"K": gaussian(5, 5)}, ranks=KeepFraction(0.5)),
        RankError,
        "the bond 'r' has no singular values of its own: a core stands twice",
    ),
    "more than a basis has": (
        lambda: COSINES.apply({"K": KERNEL}, ranks=4),
        RankError,
        "rank 4 of bond 'c' is outside 1 to 3",
    ),
    "a budget that is too small": (
        lambda: cp(ranks=ParameterBudget(0.01)),
        RankError,
        "ParameterBudget(fraction=0.01) allows 2 parameters, rank 1 takes 17\n  fix: a fraction of at least 0.081",
    ),
}

NUMBERS: dict[str, Refusal] = {
    "one NaN": (lambda: cp(with_nan(KERNEL)), ValuesError, "the value of 'K' holds NaN or infinity"),
    "infinity": (lambda: ring(KERNEL / 0), ValuesError, "the value of 'K' holds NaN or infinity"),
    "an axis of size 0": (lambda: cp(KERNEL[:, :0]), ValuesError, "the value of 'K' is empty\n  shape: (7, 0, 3, 2)"),
    "complex": (lambda: cp(KERNEL.to(torch.complex128)), ValuesError, "the value of 'K' is complex"),
    "an axis too few": (lambda: cp(KERNEL[0]), ValuesError, "the value of 'K' has 3 axes, its node has 4"),
    "a singular metric": (
        lambda: Metric(("in",), torch.ones(5, 5, dtype=torch.float64)),
        ValuesError,
        "the covariance is singular",
    ),
    "no metric": (lambda: cp(metric=torch.eye(5)), RuleError, "metric= is a Tensor\n  fix: a Metric"),
    "a metric of other labels": (
        lambda: cp(metric=Metric(("x",), torch.eye(5))),
        RuleError,
        "the metric is not one of the tensor that is fitted\n  metric: out x\n  tensor: o i h w",
    ),
    "a metric of another size": (
        lambda: cp(metric=Metric(("in",), torch.eye(4))),
        ValuesError,
        "does not fit the metric in 'i'",
    ),
}

CONSTANTS: dict[str, Refusal] = {
    "another shape": (
        lambda: cp(fixed={"C": gaussian(4, 2)}),
        ValuesError,
        "the constant 'C' has shape (4, 2)\n  labels: h=3 r=any",
    ),
    "an axis too few": (lambda: cp(fixed={"C": gaussian(3)}), ValuesError, "the constant 'C' has shape (3,)"),
    "not orthonormal": (
        lambda: cp(fixed={"C": gaussian(3, 3)}),
        ValuesError,
        "the rows of the constant 'C' are not orthonormal, so none are the best aligned\n  fix: an orthonormal basis",
    ),
    "no new tensor": (
        lambda: cp(fixed={"X": gaussian(3, 2)}),
        ValuesError,
        "fixed holds 'X', no new tensor of the right side\n  new: A B C D",
    ),
    "no basis": (lambda: cp(fixed={"C": "dft"}), RuleError, "there is no basis 'dft'\n  known: dct"),
    "NaN": (lambda: cp(fixed={"C": with_nan(gaussian(3, 2))}), ValuesError, "the constant 'C' holds NaN"),
    "words": (lambda: cp(fixed={"C": ["a"]}), ValuesError, "the constant 'C' is no array of numbers"),
    "no mapping": (lambda: cp(fixed=3), RuleError, "fixed= is a int\n  fix: a mapping"),
}

STARTS: dict[str, Refusal] = {
    "too large": (
        lambda: cp(start=start(A=gaussian(7, 3))),
        ValuesError,
        "the start's core 'A' has shape (7, 3)\n  needed: at most (7, 2)",
    ),
    "a core missing": (lambda: cp(start={"A": gaussian(7, 2)}), ValuesError, "the start has no core 'B'\n  cores: A"),
    "empty": (lambda: cp(start={}), ValuesError, "the start has no core 'A'\n  cores: none"),
    "unknown": (lambda: cp(start={"X": gaussian(7, 2)}), ValuesError, "the start has 'X', no new tensor"),
    "NaN": (lambda: cp(start=start(B=with_nan(gaussian(5, 2)))), ValuesError, "the start of 'B' holds NaN"),
    "an axis too few": (lambda: cp(start=start(A=gaussian(7))), ValuesError, "the start's core 'A' has shape (7,)"),
    "overflowing": (
        lambda: cp(start=start(A=gaussian(7, 2) * 1e200, B=gaussian(5, 2) * 1e200)),
        ValuesError,
        "the start's network is not finite",
    ),
    "no mapping": (lambda: cp(start=3), RuleError, "start= is a int\n  fix: a mapping"),
}

SEARCHES: dict[str, Refusal] = {
    f"{key}={value!r}": (
        lambda key=key, value=value: cp(**{key: value}),  # type: ignore[misc]
        ValuesError,
        f"{key}={value!r}\n  fix: an integer from " if key != "dtype" else f"a fit in {value}\n  fix: torch.float64 or",
    )
    for key, values in {
        "seed": (-1, 1.5, "a", True, None, 2**64),
        "starts": (0, -1, 1.5, True, "a", 10**9),
        "sweeps": (-1, 1.5, True, "a"),
        "dtype": (torch.float16, torch.int32, "float64", None),
    }.items()
    for value in values
}

REFUSALS = {
    f"{group}: {name}": refusal
    for group, refusals in (
        ("right side", RIGHT_SIDES),
        ("ranks", BONDS),
        ("numbers", NUMBERS),
        ("fixed", CONSTANTS),
        ("start", STARTS),
        ("search", SEARCHES),
    )
    for name, refusal in refusals.items()
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused(name: str) -> None:
    call, error, message = REFUSALS[name]
    with pytest.raises(error, match=re.escape(message)):
        call()


# What is unusual, and fitted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [None, WHITE])
def test_a_kernel_of_zeros(metric: Metric | None) -> None:
    zeros = torch.zeros_like(KERNEL)
    for fit in (
        cp(zeros, metric=metric),
        ring(zeros, metric=metric),
        TUCKER.apply({"K": zeros}, ranks={"a": 2, "b": 2}, metric=metric),
        cp(zeros, metric=metric, fixed={"C": gaussian(3, 2)}),
    ):
        check_claim(fit)
        assert fit.relative_error == 0
        assert torch.equal(fit.dense(), zeros)
        assert fit.output_error in (None, 0)
    symmetric = SYMMETRIC.apply({"K": zeros[:5, :, 0, 0]}, ranks=2)
    assert symmetric.relative_error == 0


@pytest.mark.parametrize("metric", [None, WHITE])
@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e-320])
def test_huge_and_tiny_kernels(scale: float, metric: Metric | None) -> None:
    """The fit is that of the kernel itself; at 1e-320 few digits of it are left."""
    for apply in (cp, ring):
        plain, fit = apply(metric=metric), apply(KERNEL * scale, metric=metric)
        assert fit.relative_error == pytest.approx(plain.relative_error, rel=1e-3 if scale < 1e-307 else 1e-9)
        assert all(bool(core.isfinite().all()) for core in fit.values.values())
    tree = TUCKER.apply({"K": KERNEL * scale}, ranks=ParameterBudget(0.5), metric=metric)
    assert tree.relative_error < 1
    low = gaussian(5, 2, seed=3)
    assert SYMMETRIC.apply({"K": low @ low.T * min(scale, 1e299)}, ranks=2).relative_error < 1e-2


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
        assert fit.trace.steps[0].relative_error == pytest.approx(exact.relative_error, rel=1e-9)
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
    still = SYMMETRIC.apply({"K": gaussian(5, 5)}, ranks=2, start={"L": torch.zeros(5, 2)})
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
