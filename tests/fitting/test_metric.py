"""The metric of a layer's inputs against sums that are written out, over labels in any order."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernel_cases import gaussian
from tests.refusals import refused
from tnalgebra.errors import ValuesError
from tnalgebra.fitting import Metric

SIZES = {"out": 4, "in": 5, "kh": 3, "kw": 2, "s": 7}
EXACT = 1e-12  # of the sums of at most 30 positive terms each, in float64


def random_metric(labels: tuple[str, ...], *, grouped: bool, crossed: bool, seed: int, dtype: torch.dtype) -> Metric:
    """Of 60 random inputs; with `crossed`, of outputs that are near those of a random kernel."""
    sizes = [SIZES[label] for label in labels]
    count, d = 60, math.prod(sizes)
    x = gaussian(SIZES["out"], count, d, seed=seed) + 0.3
    if not grouped:
        x = x[:1].expand_as(x)
    y = (x @ gaussian(SIZES["out"], d, 1, seed=seed + 1))[..., 0] + gaussian(SIZES["out"], count, seed=seed + 2)
    covariance = (x.mT @ x / count)[: None if grouped else 1]
    lead = (SIZES["out"],) if grouped else ()
    return Metric(
        labels,
        covariance.reshape(*lead, *sizes, *sizes).to(dtype),
        ("out",) if grouped else (),
        (torch.einsum("on,ond->od", y, x) / count).reshape(-1, *sizes).to(dtype) if crossed else None,
        float(y.square().sum() / count) if crossed else None,
    )


@st.composite
def metrics(draw: st.DrawFn, crossed: bool = False, dtype: torch.dtype = torch.float64) -> Metric:
    labels = tuple(draw(st.permutations(("in", "kh", "kw")))[: draw(st.integers(1, 3))])
    return random_metric(
        labels, grouped=draw(st.booleans()), crossed=crossed, seed=draw(st.integers(0, 2**30)), dtype=dtype
    )


def matrices(metric: Metric) -> Tensor:
    """One float64 matrix an output channel."""
    d = math.prod(metric.sizes)
    return metric.covariance.double().reshape(-1, d, d).expand(SIZES["out"], d, d)


def kernel_of(metric: Metric, labels: list[str], *, seed: int) -> tuple[Tensor, Tensor]:
    """A random tensor with its axes in a given order, and the same as (out, others, coupled)."""
    tensor = gaussian(*(SIZES[label] for label in labels), seed=seed)
    others = [label for label in labels if label not in ("out", *metric.labels)]
    ordered = tensor.permute([labels.index(label) for label in ("out", *others, *metric.labels)])
    return tensor, ordered.reshape(SIZES["out"], -1, math.prod(metric.sizes))


def close(value: Tensor, expected: Tensor, tolerance: float = EXACT) -> bool:
    return bool(((value - expected).abs() <= tolerance * expected.abs().max()).all())


# Values -----------------------------------------------------------------------------------------------------


@given(st.data())
def test_the_form_is_the_sum_written_out(data: st.DataObject) -> None:
    metric = data.draw(metrics(dtype=data.draw(st.sampled_from((torch.float64, torch.float32)))))
    labels = list(data.draw(st.permutations(("out", *metric.labels, *data.draw(st.sampled_from(((), ("s",))))))))
    tensor, rows = kernel_of(metric, labels, seed=data.draw(st.integers(0, 2**30)))
    squared = float(torch.einsum("osi,oij,osj->", rows, matrices(metric), rows))
    assert metric.squared(tensor, labels) == pytest.approx(squared, rel=EXACT)
    other, other_rows = kernel_of(metric, labels, seed=data.draw(st.integers(0, 2**30)))
    below = float(torch.einsum("osi,oij,osj->", other_rows, matrices(metric), other_rows))
    assert metric.relative(tensor, other, labels) == pytest.approx(math.sqrt(squared / below), rel=EXACT)


@given(st.data())
def test_the_target_solves_the_normal_equations(data: st.DataObject) -> None:
    metric = data.draw(metrics(crossed=True))
    assert metric.cross is not None
    assert metric.power is not None
    labels = list(data.draw(st.permutations(("out", *metric.labels))))
    kernel, rows = kernel_of(metric, labels, seed=data.draw(st.integers(0, 2**30)))
    assert replace(metric, cross=None, power=None).target(kernel, labels) is kernel
    cross = metric.cross.reshape(SIZES["out"], -1)
    target = metric.target(kernel, labels)
    assert target.shape == kernel.shape
    order = [labels.index(label) for label in ("out", *metric.labels)]
    solved = target.permute(order).reshape(SIZES["out"], 1, -1) @ matrices(metric)
    assert close(solved[:, 0], cross, 1e-9)  # the condition of 60 random inputs in up to 30 dimensions is below 1e3
    left = metric.power - 2 * float((rows[:, 0] * cross).sum()) + metric.squared(kernel, labels)
    assert metric.output_error(kernel, labels) == pytest.approx(math.sqrt(left / metric.power), rel=1e-9)
    assert metric.output_error(target, labels) <= metric.output_error(target * 1.01, labels)


@given(metrics(dtype=torch.float32))
def test_the_factor_is_lower_triangular(metric: Metric) -> None:
    factor = metric.factor()
    d = math.prod(metric.sizes)
    assert factor.shape == (*metric.covariance.shape[: len(metric.batch)], d, d)
    assert torch.equal(factor, factor.tril())
    assert close((factor @ factor.mT).expand(SIZES["out"], d, d), matrices(metric))


@given(metrics(crossed=True), st.sampled_from((1e-3, 0.5)))
def test_a_ridge_is_noise_that_both_networks_see(metric: Metric, ridge: float) -> None:
    assert metric.power is not None
    labels = ["out", *metric.labels]
    kernel, rows = kernel_of(metric, labels, seed=3)
    before = metric.covariance.clone()
    noisy = Metric.with_ridge(
        metric.labels,
        metric.covariance,
        ridge=ridge,
        batch=metric.batch,
        cross=metric.cross,
        power=metric.power,
        kernel=kernel,
    )
    assert torch.equal(metric.covariance, before)
    noise = ridge * float(matrices(metric).diagonal(dim1=1, dim2=2).mean())
    eye = torch.eye(rows.shape[-1], dtype=torch.float64)
    assert close(matrices(noisy), matrices(metric) + noise * eye)
    approximation = kernel * 0.7
    squares = float((kernel - approximation).square().sum())
    expected = metric.power * metric.output_error(approximation, labels) ** 2 + noise * squares
    assert noisy.power is not None
    assert noisy.power * noisy.output_error(approximation, labels) ** 2 == pytest.approx(expected, rel=1e-9)


def test_a_ridge_leaves_a_kernel_that_is_right_alone() -> None:
    x = gaussian(3, 5, seed=0)  # fewer inputs than values: no unique solution
    kernel = gaussian(4, 5, seed=1)
    covariance, cross = x.mT @ x, kernel @ x.mT @ x
    metric = Metric.with_ridge(
        ("in",), covariance, ridge=1e-6, cross=cross, power=float((x @ kernel.T).square().sum()), kernel=kernel
    )
    assert close(metric.target(kernel, ("out", "in")), kernel, 1e-8)  # the condition is about 1e6
    assert metric.output_error(kernel, ("out", "in")) < 1e-6  # the root of a difference of equal numbers


def test_the_relative_error_of_zeros_and_of_huge_and_tiny_kernels() -> None:
    metric = random_metric(("in",), grouped=True, crossed=False, seed=0, dtype=torch.float64)
    kernel, zero, one = gaussian(4, 5, seed=1), torch.zeros(4, 5), torch.ones(4, 5)
    for scale in (1e-200, 1.0, 1e200):
        assert metric.relative(kernel * 0.5 * scale, kernel * scale, ("out", "in")) == pytest.approx(0.5)
    assert metric.relative(zero, zero, ("out", "in")) == 0
    assert metric.relative(one, zero, ("out", "in")) == math.inf
    assert metric.squared(zero, ("out", "in")) == 0


# What is refused --------------------------------------------------------------------------------------------

EYE = torch.eye(6, dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"labels": ()}, "labels"),
        ({"labels": ("in", "in")}, "labels"),
        ({"covariance": EYE.half()}, "torch.float16"),
        ({"covariance": EYE[:5]}, "(5, 6)"),
        ({"covariance": EYE[:0, :0]}, "(0, 0)"),
        ({"covariance": EYE, "batch": ("out",)}, "(6, 6) out"),
        ({"covariance": EYE * math.inf}, "covariance NaN"),
        ({"covariance": EYE + EYE.roll(1, 1)}, "not symmetric"),
        ({"covariance": EYE - 2 * torch.ones(6, 6)}, "singular"),
        ({"covariance": torch.ones(6, 6)}, "singular with_ridge"),
        ({"covariance": torch.zeros(6, 6)}, "is 0"),
        ({"covariance": 1e-320 * EYE.double()}, "is 0"),
        ({"covariance": (EYE * EYE[0]).float()}, "singular"),
        ({"cross": torch.ones(4, 6)}, "cross power"),
        ({"power": 1.0}, "cross power"),
        ({"cross": torch.ones(4, 5), "power": 1.0}, "cross (4, 5)"),
        ({"cross": torch.ones(6), "power": 1.0}, "cross (6,)"),
        ({"cross": torch.ones(4, 6) * math.nan, "power": 1.0}, "cross NaN"),
        ({"cross": torch.ones(4, 6), "power": -1.0}, "power -1"),
        ({"batch": ("other",), "covariance": EYE[None]}, "outputs"),
        ({"outputs": ("in",)}, "outputs"),
    ],
)
def test_what_is_not_a_metric(arguments: dict[str, Any], facts: str) -> None:
    with refused(ValuesError, *facts.split()):
        Metric(**{"labels": ("in",), "covariance": EYE, **arguments})


def test_a_covariance_of_fewer_inputs_than_values_is_singular() -> None:
    for seed, dtype in product(range(20), (torch.float64, torch.float32)):
        x = gaussian(40, 60, seed=seed).to(dtype)
        with pytest.raises(ValuesError):
            Metric(("in",), x.mT @ x)
        Metric.with_ridge(("in",), x.mT @ x, ridge=1e-4)


def test_one_singular_channel_of_many() -> None:
    covariance = EYE.expand(4, 6, 6).clone()
    covariance[2, 3, 3] = 0
    with refused(ValuesError, "singular", "out=4 in=6"):
        Metric(("in",), covariance, ("out",))


def test_what_a_ridge_refuses() -> None:
    for ridge in (-1.0, math.nan, math.inf):
        with refused(ValuesError, "ridge", ridge):
            Metric.with_ridge(("in",), EYE, ridge=ridge)
    for kernel in (None, torch.ones(4, 5)):
        with refused(ValuesError, "ridge", "cross", "kernel"):
            Metric.with_ridge(("in",), EYE, ridge=1e-4, cross=torch.ones(4, 6), power=1.0, kernel=kernel)


def test_tensors_that_do_not_fit() -> None:
    metric = Metric(("in",), EYE)
    crossed = replace(metric, cross=torch.ones(4, 6, dtype=torch.float64), power=9.0)
    with refused(ValuesError, "'in'", "out=4 in=5", "in=6"):
        metric.squared(torch.ones(4, 5), ("out", "in"))
    with refused(ValuesError, "'in'"):
        metric.squared(torch.ones(4, 6), ("out", "kw"))
    with refused(ValuesError, "2 axes", "1 labels"):
        metric.relative(torch.ones(4, 6), torch.ones(4, 6), ("in",))
    with refused(ValuesError, "NaN"):
        metric.squared(torch.full((4, 6), math.nan), ("out", "in"))
    with refused(ValuesError, "s=4 in=6", "out=4 in=6"):
        crossed.target(torch.ones(4, 6), ("s", "in"))
    with refused(ValuesError, "out=3 in=6"):
        crossed.target(torch.ones(3, 6), ("out", "in"))
    with refused(ValuesError, "output"):
        metric.output_error(torch.ones(4, 6), ("out", "in"))
