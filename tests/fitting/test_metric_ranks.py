"""Trees in a metric: the scale of the metric changes nothing, and the ranks under a budget follow the metric."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tnalgebra as tn
from tnalgebra.fitting.chosen_ranks import objective_of
from tnalgebra.fitting.whitening import whiten, whitening_factors
from tnalgebra.networks import with_sizes

LABELS = "out in kh kw"
SHAPE = (7, 6, 3, 2)
SIZES = dict(zip(LABELS.split(), SHAPE, strict=True))
COUPLED = ("in", "kh", "kw")


def kernel(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(size: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    """A covariance whose eigenvalues fall over two orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    return scale * basis @ torch.diag(torch.logspace(0, -2, size, dtype=torch.float64)) @ basis.mT


def coupled_metric(seed: int, scale: float = 1.0) -> tn.Metric:
    """A metric that is far from a Kronecker product."""
    whole = covariance(36, seed, scale)
    return tn.Metric(COUPLED, whole.reshape(6, 3, 2, 6, 3, 2))


def kronecker_metric(seed: int) -> tuple[tn.Metric, list[torch.Tensor]]:
    """A metric that is a Kronecker product, and the Cholesky factors of its labels."""
    each = [covariance(SIZES[label], seed + number, 10.0**number) for number, label in enumerate(COUPLED)]
    whole = torch.einsum("ai,bj,ck->abcijk", *each)
    return tn.Metric(COUPLED, whole), [torch.linalg.cholesky(one) for one in each]


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_scale_of_the_metric_changes_no_fit(scale: float) -> None:
    """Kernels are float32, as in a model, so that descents are in single precision."""
    rule = tn.decompositions.read_rewrite("tucker2", tuple(LABELS.split()))
    for seed in range(3):
        errors = [
            rule.apply(kernel(seed).float(), {"a": 3, "b": 3}, metric=coupled_metric(seed, each)).output_error
            for each in (1.0, scale)
        ]
        assert errors[1] == pytest.approx(errors[0], rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_a_kronecker_product_is_whitened_to_the_identity(seed: int) -> None:
    metric, _ = kronecker_metric(seed)
    right = with_sizes(tn.parse("U[out a] G[a b kh kw] V[b in] -> [out in kh kw]"), SIZES)
    objective = objective_of(kernel(seed)[None], right, {"a": 2, "b": 2}, metrics=[metric])
    whitened = whiten(objective, whitening_factors(objective))
    assert whitened.metric is not None
    matrix = whitened.metric[0].reshape(36, 36)
    torch.testing.assert_close(matrix, torch.eye(36, dtype=torch.float64), atol=1e-9, rtol=0)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000), fraction=st.floats(0.3, 0.9), name=st.sampled_from(["tucker2", "tucker", "tensor_train"])
)
def test_ranks_in_a_kronecker_product_are_those_of_the_whitened_kernel(seed: int, fraction: float, name: str) -> None:
    """In such a metric the whitened kernel says everything, so that it is an exact oracle."""
    metric, factors = kronecker_metric(seed)
    rule = tn.decompositions.read_rewrite(name, tuple(LABELS.split()))
    whitened = torch.einsum("oabc,ai,bj,ck->oijk", kernel(seed), *factors)
    size = tn.ParameterBudget(fraction)
    fit = rule.apply(kernel(seed), size, metric=metric, sweeps=0)
    outline, expected = rule.outline(kernel(seed), metric=metric), rule.outline(whitened)
    assert outline is not None
    assert expected is not None
    assert dict(fit.trace.steps[-1].change.ranks) == outline.ranks(size) == expected.ranks(size)
