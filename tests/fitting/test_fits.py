"""Fits of what users write, against a plain optimiser; in the metric of a layer's inputs, against whitened SVDs."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from tests.fit_cases import PLANTED, Case
from tests.kernel_cases import KERNEL, check_claim, gaussian, measured, metric_of, tail, unfolding
from tests.refusals import refused
from tnalgebra.errors import RuleError
from tnalgebra.fitting import Metric
from tnalgebra.rewriting import rule
from tnalgebra.tensors import evaluate

# Against a plain optimiser ------------------------------------------------------------------------------------


SMALL = {
    "tied factors": ("o i h w", "o=5 i=4 h=3 w=3 r=3"),
    "tied ring": ("a b c", "a=4 b=4 c=4 p=2 q=2 r=2"),
    "cp of parts": ("o1 o2 i1 i2", "out=6 o1=3 o2=2 in=8 i1=4 i2=2 r=3"),
    "two tensors": ("o j h", "o=5 i=6 j=4 h=3 r=3"),
    "hyperedge": ("o i h w", "o=5 i=4 h=3 w=2 r=3 s=2"),
    "disconnected": ("a b c d e", "a=5 b=4 c=3 d=2 e=2 r=2 s=1"),
    "loop with a tail": ("o i h w", "o=6 i=4 h=3 w=2 u=3 p=2 q=2 r=2"),
}
"""Of a case: the labels of the dense tensor, of the parts where one is split, and small sizes."""


def best_of_a_plain_optimiser(case: Case, output: str, dense: Tensor, starts: int) -> float:
    """The least relative error that L-BFGS-B finds from random cores, written without the package."""
    nodes = re.findall(r"(\w+)\[([^]]*)\]", case.text.partition("=>")[2])
    cores = [(core, labels.split()) for core, labels in nodes if core != "Fuse"]
    shapes = {core: [case.sizes[label] for label in labels] for core, labels in cores}
    letters = {label: chr(97 + number) for number, label in enumerate(case.sizes)}
    words = ["".join(letters[label] for label in labels) for labels in (*(own for _, own in cores), output.split())]
    counts = [math.prod(shape) for shape in shapes.values()]
    wanted = dense.reshape([case.sizes[label] for label in output.split()])

    def value(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        variables = torch.from_numpy(flat).requires_grad_()
        parts = zip(variables.split(counts), shapes.items(), strict=True)
        values = {core: part.reshape(shape) for part, (core, shape) in parts}
        model = torch.einsum(f"{','.join(words[:-1])}->{words[-1]}", *(values[core] for core, _ in cores))
        loss = (model - wanted).square().sum()
        (gradient,) = torch.autograd.grad(loss, variables)
        return float(loss.detach()), gradient.numpy()

    options = {"maxiter": 400, "maxfun": 800, "ftol": 1e-13, "gtol": 1e-9}
    begun = [gaussian(sum(counts), seed=start).numpy() for start in range(starts)]
    losses = [minimize(value, cores, jac=True, method="L-BFGS-B", options=options).fun for cores in begun]
    return math.sqrt(min(losses)) / float(dense.norm())


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_no_plain_optimiser_finds_better_cores(name: str) -> None:
    output, sizing = SMALL[name]
    case = replace(PLANTED[name], sizing=sizing)
    values = case.random(seed=1)
    fit = case.rule.apply(values, **case.choices, stability=0)
    check_claim(fit)
    torch.testing.assert_close(fit.trace.replay(values).dense(), fit.dense(), rtol=0, atol=0)
    kernel = values["K"] if len(values) == 1 else torch.tensordot(values["K"], values["V"], dims=1)
    assert fit.relative_error <= best_of_a_plain_optimiser(case, output, kernel, starts=3) * (1 + 1e-6)


# In a metric -------------------------------------------------------------------------------------------------

KERNEL8 = torch.cat([KERNEL, KERNEL[:1].flip(1)])


@pytest.mark.parametrize("text", ["K[o i h w] => L[o r] R[r i h w]", "K[out in kh kw] => R[kw kh r in] L[r out]"])
def test_a_cut_with_all_coupled_labels_on_one_core_is_the_whitened_svd(text: str) -> None:
    """Of K M as a matrix, out against the rest, where C = M M^T: the closed form, by numpy alone."""
    metric = metric_of(0)
    matrix = KERNEL.reshape(7, -1).numpy() @ np.linalg.cholesky(metric.covariance.reshape(30, 30).numpy())
    for rank in (1, 3, 6):
        fit = rule(text).apply({"K": KERNEL}, {"r": rank}, metric=metric)
        check_claim(fit)
        assert fit.output_error == pytest.approx(tail(matrix, rank), rel=1e-9)
        assert fit.output_error == pytest.approx(measured(fit.dense(), metric), rel=1e-9)
        plain = rule(text).apply({"K": KERNEL}, {"r": rank})
        assert fit.output_error < measured(plain.dense(), metric)
        assert fit.relative_error > plain.relative_error


@pytest.mark.parametrize("factor", [4.0**200, 4.0**-200])
@pytest.mark.parametrize("right", ["A[out p] B[p in q] C[q kh kw]", "A[out r] B[in r] C[kh r] D[kw r]"])
def test_the_unit_of_the_inputs_changes_no_fit(right: str, factor: float) -> None:
    """A covariance times a power of 4 has the same digits, and so has its fit."""
    for metric in (metric_of(3, "in"), metric_of(0)):
        times = replace(metric, covariance=metric.covariance * factor)
        one, two = (
            rule(f"K[out in kh kw] => {right}").apply({"K": KERNEL}, 2, metric=each, starts=2)
            for each in (metric, times)
        )
        assert all(torch.equal(one.values[name], two.values[name]) for name in one.values)
        assert two.output_error == pytest.approx(one.output_error)


def test_a_train_with_a_core_of_the_coupled_label_at_its_end() -> None:
    """Coupled is `in` alone: it stands on one core of a tree, which takes the metric up."""
    metric = metric_of(3, "in")
    entry = rule("K[out in kh kw] => A[out p] B[p kh kw q] C[q in]")
    fit = entry.apply({"K": KERNEL}, {"p": 7, "q": 2}, metric=metric)
    check_claim(fit)
    factor = np.linalg.cholesky(metric.covariance.numpy())
    rows = unfolding(KERNEL, "out in kh kw", "out kh kw") @ factor
    assert fit.output_error == pytest.approx(tail(rows, 2), rel=1e-9)


OTHERS = {
    "cut across": ("K[out in kh kw] => L[out kh r] R[r in kw]", {"r": 4}),
    "tucker": ("K[out in kh kw] => G[a b c d] U[out a] V[in b] P[kh c] Q[kw d]", {"a": 4, "b": 3, "c": 2, "d": 2}),
    "train": ("K[out in kh kw] => A[out p] B[p in q] C[q kh s] D[s kw]", {"p": 4, "q": 4, "s": 2}),
    "cp": ("K[out in kh kw] => A[out r] B[in r] C[kh r] D[kw r]", {"r": 5}),
    "ring": ("K[out in kh kw] => A[z out p] B[p in q] C[q kh s] D[s kw z]", {"z": 2, "p": 2, "q": 2, "s": 2}),
    "depthwise": ("K[out in kh kw] => D[in kh kw] P[out in] -> [out in kh kw]", {}),
    "tied": ("K[out in kh kw] => A[out p] M[p q] M[q r] B[r in kh kw]", {"p": 2, "q": 2, "r": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "grouped", "crossed", "of in"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_fit_in_a_metric_is_better_there_than_one_without(name: str, kind: str) -> None:
    text, ranks = OTHERS[name]
    metric = (
        metric_of(3, "in") if kind == "of in" else metric_of(1, grouped=kind == "grouped", crossed=kind == "crossed")
    )
    plain = rule(text).apply({"K": KERNEL}, ranks, seed=4, starts=2)
    fit = rule(text).apply({"K": KERNEL}, ranks, metric=metric, seed=4, starts=2)
    check_claim(fit)
    assert fit.output_error is not None
    assert fit.output_error == pytest.approx(measured(fit.dense(), metric), rel=1e-6)
    assert fit.output_error < measured(plain.dense(), metric)
    assert plain.output_error is None


@pytest.mark.parametrize("rank", [2, 5])
def test_a_cross_makes_up_for_what_is_wrong_before(rank: int) -> None:
    """All coupled labels on one core: the best is the whitened SVD of B C^-1, and what no kernel reaches stays."""
    metric = metric_of(5, crossed=True)
    assert metric.cross is not None
    assert metric.power is not None
    fit = rule("K[out in kh kw] => L[out r] R[r in kh kw]").apply({"K": KERNEL}, {"r": rank}, metric=metric)
    check_claim(fit)
    factor = np.linalg.cholesky(metric.covariance.reshape(30, 30).numpy())
    whitened = np.linalg.solve(factor, metric.cross.reshape(7, 30).numpy().T).T
    values = np.linalg.svd(whitened, compute_uv=False)
    left = metric.power - float(np.sum(values**2)) + float(np.sum(values[rank:] ** 2))
    assert fit.output_error == pytest.approx(math.sqrt(left / metric.power), rel=1e-8)
    assert fit.output_error == pytest.approx(measured(fit.dense(), metric), rel=1e-8)


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "K[out in kh kw] => Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2 q] C[q kh kw]",
        "K[o i h w] => Fuse[o o1 o2] Fuse[i i1 i2] A[z o1 i1 p] B[p o2 i2 q] C[q h w z]",
    ],
)
def test_a_metric_is_split_where_its_labels_are(text: str, grouped: bool, crossed: bool) -> None:
    metric = metric_of(6, grouped=grouped, crossed=crossed)
    covariance, cross = metric.covariance, metric.cross
    metric = replace(
        metric,
        covariance=torch.cat([covariance, covariance[:1]]) if grouped else covariance,
        cross=None if cross is None else torch.cat([cross, cross[:1]]),
    )
    entry = rule(text)
    ranks = dict.fromkeys(entry.ranks, 2)
    plain = entry.apply({"K": KERNEL8}, ranks, starts=2)
    fit = entry.apply({"K": KERNEL8}, ranks, metric=metric, starts=2)
    check_claim(fit)
    assert fit.output_error == pytest.approx(measured(fit.dense(), metric, KERNEL8), rel=1e-6)
    assert fit.output_error < measured(plain.dense(), metric, KERNEL8)


@pytest.mark.parametrize("crossed", [False, True])
def test_a_split_label_of_a_metric_has_the_order_of_the_fuse(crossed: bool) -> None:
    """All coupled labels are on one core, so that the fit is unique, split or not."""
    kernel, wanted, inputs = gaussian(8, 6, 3, seed=1), gaussian(8, 18, seed=3), gaussian(60, 18, seed=2)
    cross = wanted @ inputs.mT @ inputs
    metric = Metric(("in", "k"), (inputs.mT @ inputs).reshape(6, 3, 6, 3))
    if crossed:
        metric = replace(metric, cross=cross.reshape(8, 6, 3), power=float((cross * wanted).sum()))
    sides = ("A[out r] B[r in k]", "Fuse[out o1 o2] Fuse[in i1 i2] A[o1 o2 r] B[r i1 i2 k]")
    one, other = (rule(f"K[out in k] => {side}").apply(kernel, 3, metric=metric) for side in sides)
    torch.testing.assert_close(one.dense(), other.dense(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["cp", "tucker", "ring"])
def test_a_descent_in_a_metric_never_rises_and_ends_where_no_core_can_gain(name: str) -> None:
    text, ranks = OTHERS[name]
    inputs = gaussian(40, 30, seed=5) @ torch.diag(torch.linspace(0.2, 3, 30, dtype=torch.float64))
    metric = Metric(("in", "kh", "kw"), (inputs.mT @ inputs).reshape(5, 3, 2, 5, 3, 2))
    fit = rule(text).apply({"K": KERNEL}, ranks, metric=metric, starts=2, stability=0)
    errors = fit.report.errors
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(errors))
    # the slope by each core in turn, which vanishes where none of them can gain
    values = {name: core.clone().requires_grad_() for name, core in fit.values.items()}
    rest = (KERNEL - evaluate(fit.network, values)).reshape(7, 30) @ inputs.mT
    gradients = torch.autograd.grad(rest.square().sum(), list(values.values()))
    scale = (KERNEL.reshape(7, 30) @ inputs.mT).square().sum()
    for core, gradient in zip(values.values(), gradients, strict=True):
        assert float((gradient.norm() * core.norm()).detach()) <= 0.02 * float(scale)


@pytest.mark.slow
def test_a_metric_of_ones_changes_nothing() -> None:
    metric = Metric(("in", "kh", "kw"), torch.eye(30, dtype=torch.float64).reshape(5, 3, 2, 5, 3, 2))
    for name in ("cut across", "tucker", "cp", "ring", "depthwise"):
        text, ranks = OTHERS[name]
        plain = rule(text).apply({"K": KERNEL}, ranks, starts=2, stability=0)
        fit = rule(text).apply({"K": KERNEL}, ranks, metric=metric, starts=2, stability=0)
        assert fit.output_error == pytest.approx(fit.relative_error, rel=1e-9)
        # both descents end where a sweep takes less than 1e-5 of the squared error
        assert fit.relative_error <= plain.relative_error * (1 + 1e-5)


def test_metrics_of_many_kernels() -> None:
    entry = rule("K[out in kh kw] => L[out r] R[r in kh kw]")
    metrics = [metric_of(seed) for seed in range(3)]
    kernels = [{"K": KERNEL}, {"K": KERNEL.flip(0)}, {"K": KERNEL * 3}]
    for kernel, metric, fit in zip(kernels, metrics, entry.apply_many(kernels, 2, metrics=metrics), strict=True):
        alone = entry.apply(kernel, 2, metric=metric)
        torch.testing.assert_close(fit.dense(), alone.dense(), rtol=1e-9, atol=1e-9)
        assert fit.output_error == pytest.approx(alone.output_error, rel=1e-9)
    with refused(RuleError, "2", "3", "metrics"):
        entry.apply_many(kernels, 2, metrics=metrics[:2])


def test_a_ridge_for_a_metric_in_the_rules_own_labels() -> None:
    kernel, inputs = gaussian(6, 4, 3, seed=1), gaussian(9, 12, seed=2)
    covariance = (inputs.mT @ inputs).reshape(4, 3, 4, 3)
    triangle = rule("K[o i k] => A[o p z] B[p i q] C[q k z]")
    own = Metric.with_ridge(("i", "k"), covariance, ridge=1e-3, outputs=("o",))
    usual = Metric.with_ridge(("in", "k"), covariance, ridge=1e-3)
    one, other = (triangle.apply(kernel, 2, metric=metric, starts=2) for metric in (own, usual))
    assert torch.equal(one.dense(), other.dense())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dense_tensor_has_the_reported_error(dtype: torch.dtype) -> None:
    """To the rounding of the result: cores that cancel are contracted in float64."""
    kernel = gaussian(6, 5, 3, 3, seed=5).to(dtype)
    fit = rule("K[o i h w] => A[o r] B[i r] C[h r] D[w r]").apply({"K": kernel}, {"r": 7})
    difference = torch.linalg.vector_norm(fit.dense().double() - kernel.double())
    measured = float(difference / torch.linalg.vector_norm(kernel.double()))
    assert measured == pytest.approx(fit.relative_error, rel=4 * torch.finfo(dtype).eps)
    assert repr(fit.report) == str(fit.report)
