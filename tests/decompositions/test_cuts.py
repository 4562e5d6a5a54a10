"""Cuts: what they claim is what is measured, and the best there is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernel_cases import (
    KERNEL,
    SEVEN,
    SIZES,
    TREES,
    check_claim,
    gaussian,
    measured,
    metric_of,
    tail,
    tensors,
    unfolding,
    values_of,
)
from tests.refusals import refused
from tests.strategies import valued_networks
from tnalgebra.decompositions import all_cuts, cut, cut_sequence, truncate
from tnalgebra.errors import RankError, RuleError, TnalgebraError, ValuesError
from tnalgebra.fitting import KeepFraction, Metric, ParameterBudget, Rank, RelativeError
from tnalgebra.networks import Bipartition, Network, parse
from tnalgebra.rewriting import rule
from tnalgebra.tensors import evaluate, magnitude, relative

sides = st.permutations(["a", "b", "c", "d"]).flatmap(
    lambda labels: st.integers(1, 3).map(lambda at: (labels[:at], labels[at:]))
)


@given(tensors(4), sides, st.data(), st.sampled_from(("factors", "svd")))
def test_a_cut_is_the_best_of_its_rank(
    kernel: Tensor, halves: tuple[list[str], list[str]], data: st.DataObject, form: Any
) -> None:
    left, right = (" ".join(side) for side in halves)
    matrix = unfolding(kernel, "a b c d", left)
    rank = data.draw(st.integers(1, min(matrix.shape)))
    fit = cut(f"{left} | {right}", of="K[a b c d]", form=form).apply({"K": kernel}, {"r": rank})
    check_claim(fit)
    assert fit.relative_error == pytest.approx(tail(matrix, rank), rel=1e-6, abs=1e-10)
    rows, columns = matrix.shape
    assert fit.parameters == rank * (rows + columns + (form == "svd"))
    if rank == min(matrix.shape):
        assert fit.relative_error <= 1e-10


@given(tensors(3), st.sampled_from(("out | in k", "out k | in", "k | in out", "k in | out")))
def test_the_error_of_a_cut_falls_with_its_rank(kernel: Tensor, text: str) -> None:
    full = min(unfolding(kernel, "out in k", text.partition("|")[0]).shape)
    errors = [cut(text).apply({"K": kernel}, rank).relative_error for rank in range(1, full + 1)]
    assert all(later <= earlier + 1e-10 for earlier, later in pairwise(errors))
    assert errors[-1] <= 1e-10


def test_all_cuts_of_a_kernel_are_seven() -> None:
    assert [entry.name for entry in all_cuts("out in kh kw")] == SEVEN
    assert [entry.name for entry in all_cuts(parse("G[out a] V[a in kh kw]"))] == SEVEN
    assert all_cuts("out") == []
    for entry in all_cuts("o i h"):  # the left side is known, in this order
        assert entry.apply({"K": gaussian(4, 3, 2)}, 1).trace.start == parse("K[o:4 i:3 h:2]")


@given(tensors(4), st.sampled_from(SEVEN), st.sampled_from(("factors", "svd")), st.floats(0.05, 1))
def test_a_budget_of_a_cut_is_used_up_and_not_exceeded(kernel: Tensor, text: str, form: Any, fraction: float) -> None:
    matrix = unfolding(kernel, " ".join(SIZES), text.partition("|")[0])
    each = sum(matrix.shape) + (form == "svd")
    if fraction * matrix.size < each:
        with pytest.raises(RankError, match=str(each)):
            cut(text, form=form).apply({"K": kernel}, ParameterBudget(fraction))
        return
    fit = cut(text, form=form).apply({"K": kernel}, ParameterBudget(fraction))
    assert fit.parameters <= fraction * matrix.size
    assert fit.parameters + each > fraction * matrix.size or fit.network.sizes["r"] == min(matrix.shape)


@pytest.mark.parametrize(("labels", "count"), [("out in", 1), ("out in k", 3), ("out in kd kh kw", 15)])
def test_kernels_of_any_dimension(labels: str, count: int) -> None:
    kernel = gaussian(*(2, 3, 4, 5, 6)[: len(labels.split())])
    cuts = all_cuts(labels)
    assert len(cuts) == count
    for entry in cuts:
        left = entry.name.partition("|")[0]
        fit = entry.apply({"K": kernel}, 2)
        assert fit.relative_error == pytest.approx(tail(unfolding(kernel, labels, left), 2), rel=1e-9, abs=1e-12)
        assert fit.network.output == tuple(labels.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("out kh | in kw", "L[out:7 kh:3 r:2] R[r in:5 kw:2] -> [out in kh kw]"),
        ("in kw | out kh", "L[in:5 kw:2 r:2] R[r out:7 kh:3] -> [out in kh kw]"),
        ("kw, in | kh, out", "L[kw:2 in:5 r:2] R[r kh:3 out:7] -> [out in kh kw]"),
        ("out|in kh kw", "L[out:7 r:2] R[r in:5 kh:3 kw:2]"),
    ],
)
def test_a_cut_is_written_with_its_sides_as_given(text: str, expected: str) -> None:
    fit = cut(text).apply({"K": KERNEL}, 2)
    assert str(fit.network) == expected
    assert fit.dense().shape == KERNEL.shape
    check_claim(fit)
    left, right = (side.replace(",", " ").split() for side in text.split("|"))
    assert cut(Bipartition(tuple(left), tuple(right))).name == cut(text).name


def test_the_factors_of_a_cut_share_the_singular_values() -> None:
    values = np.linalg.svd(unfolding(KERNEL, "out in kh kw", "out kh"), compute_uv=False)[:3]
    fit = cut("out kh | in kw").apply({"K": KERNEL}, 3)
    left, right = fit.values["L"].reshape(21, 3), fit.values["R"].reshape(3, 10)
    expected = torch.diag(torch.from_numpy(values))
    torch.testing.assert_close(left.mT @ left, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(right @ right.mT, expected, rtol=1e-12, atol=1e-12)


def test_the_svd_form_has_isometries_and_the_singular_values() -> None:
    values = np.linalg.svd(unfolding(KERNEL, "out in kh kw", "out kh"), compute_uv=False)[:3]
    fit = cut("out kh | in kw", form="svd").apply({"K": KERNEL}, 3)
    assert str(fit.network) == "U[out:7 kh:3 r:3] S[r] V[r in:5 kw:2] -> [out in kh kw]"
    U, V = fit.values["U"].reshape(21, 3), fit.values["V"].reshape(3, 10)
    torch.testing.assert_close(U.mT @ U, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(V @ V.mT, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(fit.values["S"], torch.from_numpy(values), rtol=1e-12, atol=0)


@given(valued_networks(min_nodes=2), st.data())
def test_a_cut_of_any_network_is_the_best_of_its_rank(
    example: tuple[Network, dict[str, Tensor]], data: st.DataObject
) -> None:
    """Reserved nodes, hyperedges, ties: it is contracted first."""
    network, values = example
    assume(len(network.output) > 1)
    labels = data.draw(st.permutations(network.output))
    at = data.draw(st.integers(1, len(labels) - 1))
    fit = cut(Bipartition(tuple(labels[:at]), tuple(labels[at:]))).apply(network, KeepFraction(0.5), values=values)
    dense = evaluate(network, values)
    matrix = unfolding(dense, " ".join(network.output), " ".join(labels[:at]))
    rank = fit.trace.steps[0].change.ranks["r"]
    assert rank == max(1, round(0.5 * min(matrix.shape)))
    assert fit.network.output == network.output
    rounding = 1e-12 * float(magnitude(network, values).norm())
    best = np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:])
    assert float((fit.dense() - dense).norm()) == pytest.approx(best, rel=1e-6, abs=rounding + 1e-10)
    assert fit.trace.steps[0].relative_error == pytest.approx(fit.relative_error, rel=1e-6, abs=1e-9)


def test_a_cut_of_a_network_takes_names_that_are_free() -> None:
    fit = cut("out r | in").apply(
        parse("L[out b] R[b in r] U[r] -> [out in r]"), 2, values=values_of("L[out:4 b:3] R[b in:5 r:2] U[r]")
    )
    assert str(fit.network) == "L_2[out:4 r:2 r_2:2] R_2[r_2 in:5] -> [out in r]"


def test_cuts_follow_one_another() -> None:
    first, second = cut_sequence("out kh | in kw then out | in kh kw")
    assert (first.name, second.name) == ("out kh | in kw", "out | in kh kw")
    one = first.apply({"K": KERNEL}, 4)
    two = one.then(second, 3)
    assert str(two.network) == "L_2[out:7 r_2:3] R_2[r_2 in:5 kh:3 kw:2]"
    assert two.trace.steps[1].relative_error == pytest.approx(tail(unfolding(one.dense(), "out in kh kw", "out"), 3))
    assert two.relative_error == pytest.approx(relative(two.dense() - KERNEL, KERNEL), rel=1e-12)
    torch.testing.assert_close(two.dense(), second.apply({"K": one.dense()}, 3).dense(), rtol=1e-12, atol=1e-12)


WHOLE = cut("out | in kh kw")


@pytest.mark.parametrize(
    ("call", "error", "facts"),
    [
        (lambda: cut("out in"), RuleError, "'|';0"),
        (lambda: cut("out | in | kh"), RuleError, "'|';2"),
        (lambda: cut("| in"), RuleError, "left side"),
        (lambda: cut("out | out"), RuleError, "'out'"),
        (lambda: cut("out | in", form="qr"), RuleError, "'qr';'factors';'svd'"),  # type: ignore[arg-type]
        (lambda: cut("a | b", of="K[a b c]"), RuleError, "'c'"),
        (lambda: cut("a | b", of="K[a c]"), RuleError, "'b'"),
        (lambda: cut("out | in").apply({"K": KERNEL}, 2), RuleError, "'kh'"),
        (lambda: cut("out | in kd kh kw").apply({"K": KERNEL}, 2), RuleError, "'kd'"),
        (lambda: cut("out | in").apply(parse("K[out in k]")), RuleError, "'k'"),
        (lambda: cut(None), RuleError, "NoneType"),  # type: ignore[arg-type]
        (lambda: WHOLE.apply([1.0], 2), RuleError, "list;{'K': weight}"),
        (lambda: cut("a | b").apply({"K": KERNEL[0, 0, 0]}, 2), RuleError, "cut"),
        (lambda: cut("a | b").apply({"K": 3.0}, 2), RuleError, "cut"),
        (lambda: cut("a | b").apply({"K": KERNEL, "L": KERNEL}, 2), RuleError, "cut"),
        (lambda: WHOLE.apply({"K": KERNEL}), RankError, "'r'"),
        (lambda: WHOLE.apply({"K": KERNEL}, {"r": 8}), RankError, "rank 8;'r';1 to 7"),
        (lambda: WHOLE.apply({"K": KERNEL}, 0.5), RankError, "keep 0.5"),
        (lambda: WHOLE.apply({"K": KERNEL}, {"s": 2}), RuleError, "'s';r"),
        (lambda: WHOLE.apply({"K": KERNEL / 0}, 2), ValuesError, "'K'"),
    ],
)
def test_what_a_cut_refuses(call: Callable[[], object], error: type[TnalgebraError], facts: str) -> None:
    with refused(error, *facts.split(";")):
        call()


@pytest.mark.parametrize(
    ("dtype", "epsilon"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)]
)
def test_factors_have_the_type_of_the_kernel(dtype: torch.dtype, epsilon: float) -> None:
    kernel = KERNEL.to(dtype)
    tucker = rule(TREES["tucker2"][0])
    matrix = parse("A[i b] B[b j]"), {"A": kernel[:, :, 0, 0], "B": kernel[0, :, :, 0]}
    for fit in (
        cut("out kh | in kw").apply({"K": kernel}, 10),
        tucker.apply({"K": kernel}, {"a": 7, "b": 5}),
        truncate("b").apply(matrix[0], 3, values=matrix[1]),
    ):
        assert all(value.dtype == dtype for value in fit.values.values())
        (step,) = fit.trace.steps
        assert step.relative_error == pytest.approx(fit.relative_error, rel=1e-6, abs=1e-14)  # of the numbers held
        assert fit.relative_error < epsilon
        assert fit.dense().dtype == dtype


def test_a_kernel_of_zeros_has_an_error_of_zero() -> None:
    kernel = torch.zeros(7, 5, 3, 2)
    ranks: list[Rank] = [1, KeepFraction(0.5), RelativeError(0.1), ParameterBudget(0.5)]
    for rank in ranks:
        fit = cut("out kh | in kw").apply({"K": kernel}, rank)
        assert fit.relative_error == fit.trace.steps[0].relative_error == 0
        assert torch.equal(fit.dense(), kernel)
    matrices = {"A": kernel[0, 0], "B": kernel[0, 0].mT}
    assert truncate("b").apply(parse("A[i b] B[b j]"), RelativeError(0.1), values=matrices).relative_error == 0


@pytest.mark.parametrize("shape", list(product((1, 4), (1, 3), (2,), (1,))))
def test_axes_of_one_element(shape: tuple[int, ...]) -> None:
    kernel = gaussian(*shape)
    for text in SEVEN:
        fit = cut(text).apply({"K": kernel}, KeepFraction(1))
        assert fit.relative_error < 1e-10
        check_claim(fit)
    entry = rule(TREES["hierarchical"][0])
    assert entry.apply({"K": kernel}, dict.fromkeys(entry.ranks, KeepFraction(1))).relative_error < 1e-10


# In a metric --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize(
    ("text", "labels", "weighted"),
    [
        ("out | in kh kw", "in kh kw", "oihw,ihwx->ox"),
        ("out kh | in kw", "in kw", "oihw,iwx->ohx"),
        ("in kh kw | out", "kh", "oihw,hx->oixw"),
    ],
)
def test_a_metric_on_one_side_has_a_closed_form(
    text: str, labels: str, weighted: str, rank: int, crossed: bool
) -> None:
    """The SVD of K M, where C = M M^T; with a cross, of the kernel that answers best."""
    metric = metric_of(0, labels, crossed=crossed)
    fit = cut(text).apply({"K": KERNEL}, rank, metric=metric)
    check_claim(fit)
    d = prod(metric.sizes)
    factor = torch.linalg.cholesky(metric.covariance.reshape(d, d)).reshape(*metric.sizes, d)
    matrix = torch.einsum(weighted, metric.target(KERNEL, tuple(SIZES)), factor)
    values = torch.linalg.svdvals(matrix.flatten(0, matrix.ndim - 2) if labels == "in kw" else matrix.flatten(1))
    least, whole = (float(part.square().sum()) for part in (values[rank:], values))
    power = whole if metric.power is None else metric.power
    assert fit.output_error == pytest.approx(((power - whole + least) / power) ** 0.5, rel=1e-9)
    L, R = (fit.values[name] for name in ("L", "R"))  # the gauge of any cut
    left = text.partition(" | ")[0]
    singular = torch.linalg.svdvals(torch.from_numpy(unfolding(fit.dense(), " ".join(SIZES), left)))[:rank]
    for flat in (L.reshape(-1, rank), R.reshape(rank, -1).mT):
        torch.testing.assert_close(flat.mT @ flat, torch.diag(singular), rtol=0, atol=1e-10 * float(singular[0]))


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("out kh | in kw", metric_of(0)),
        ("out kh | in kw", metric_of(0, crossed=True)),
        ("in | out kh kw", metric_of(0, "in kw")),
        ("out in | kh kw", metric_of(0, "in kh", grouped=True)),
        ("out | in kh kw", metric_of(0, grouped=True)),
    ],
)
@pytest.mark.parametrize("form", ["factors", "svd"])
def test_a_metric_across_the_cut_is_descended_in(text: str, metric: Metric, form: Any) -> None:
    entry = cut(text, form=form)
    plain = entry.apply({"K": KERNEL}, 2)
    fit = entry.apply({"K": KERNEL}, 2, metric=metric)
    check_claim(fit)
    assert fit.output_error is not None
    assert fit.output_error == pytest.approx(measured(fit.dense(), metric), rel=1e-9)
    assert fit.output_error < measured(plain.dense(), metric)
    for seed in range(10):  # nothing near is better by more than the descent's tolerance allows
        moved = {name: value + 1e-3 * gaussian(*value.shape, seed=seed) for name, value in fit.values.items()}
        assert measured(evaluate(fit.network, moved), metric) > fit.output_error * (1 - 1e-4)


def test_ranks_and_labels_with_a_metric() -> None:
    metric = metric_of(0)
    entry = cut("out | in kh kw")
    assert entry.apply({"K": KERNEL}, KeepFraction(0.5), metric=metric).network.sizes["r"] == 4
    matrix = unfolding(KERNEL, " ".join(SIZES), "out")
    bound = tail(matrix, 3) * 1.0001
    assert entry.apply({"K": KERNEL}, RelativeError(bound), metric=metric).network.sizes["r"] == 3
    budget = entry.apply({"K": KERNEL}, ParameterBudget(0.5), metric=metric)
    assert budget.parameters <= 0.5 * KERNEL.numel() < budget.parameters + 37
    same = cut("o | i h w", of="K[o i h w]").apply({"K": KERNEL}, 3, metric=metric)
    named = entry.apply({"K": KERNEL}, 3, metric=metric)
    assert all(torch.equal(same.values[name], value) for name, value in named.values.items())
    with refused(RuleError, "metric"):
        cut("a b | c d", of="K[a b c d]").apply({"K": KERNEL}, 2, metric=Metric(("x",), torch.eye(3)))
    with refused(RankError, "rank 8", "'r'", "1 to 7"):
        entry.apply({"K": KERNEL}, {"r": 8}, metric=metric)
    metric = Metric(("in",), torch.eye(3), outputs=("out", "r"))
    fit = cut("out r | in").apply(parse("K[out r in]"), 2, values={"K": KERNEL[..., 0]}, metric=metric)
    assert str(fit.network) == "L[out:7 r:5 r_2:2] R[r_2 in:3]"


# Large matrices, other types ----------------------------------------------------------------------------------


def test_few_values_of_a_large_matrix_and_their_measured_error() -> None:
    matrix = gaussian(1030, 1100, seed=3).float()
    for dtype in (torch.float32, torch.float64):
        fit = cut("out | in").apply({"K": matrix}, 40, dtype=dtype)
        check_claim(fit)
        values = torch.linalg.svdvals(matrix.double())
        least = float(values[40:].norm() / values.norm())
        assert least * (1 - 1e-6) <= fit.relative_error <= least * 1.01
        assert all(value.dtype == torch.float32 for value in fit.values.values())


@pytest.mark.parametrize("rank", [3, KeepFraction(0.5), RelativeError(0.5), ParameterBudget(0.5)])
def test_a_cut_in_float32(rank: Rank) -> None:
    half, full = (
        cut("out kh | in kw").apply({"K": KERNEL}, rank, dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    check_claim(half)
    assert half.network == full.network
    assert half.trace.steps[0].relative_error == pytest.approx(full.relative_error, rel=1e-5)
    assert all(value.dtype == torch.float64 for value in half.values.values())  # as the kernel
