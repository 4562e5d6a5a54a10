"""Bounds of topologies: no fit is better than they say, and for trees they are nearly reached."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tnalgebra as tn
from tnalgebra.topologies import Topology
from tnalgebra.topologies.bounds import CutErrors, RankSearch, prepare_bounds

SIZES = {"a": 3, "b": 4, "c": 2, "d": 3}


def kernel(seed: int, decay: float = 0.5) -> torch.Tensor:
    """Random numbers whose spectra fall."""
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(tuple(SIZES.values()), generator=generator, dtype=torch.float64)
    for axis, size in enumerate(tensor.shape):
        weights = decay ** torch.arange(size, dtype=torch.float64)
        tensor = tensor * weights.reshape([-1 if other == axis else 1 for other in range(tensor.ndim)])
    return tensor


SPACE = tn.Space(cores=(2, 4), bonds=("tree", "ring", "complete", "hyperedge"), catalogue=False)
TOPOLOGIES = SPACE.topologies("a b c d")
SUMS = [
    topology
    for topology in tn.Space(cores=(3, 3), bonds=("tree", "hyperedge"), terms=2, catalogue=False).topologies("a b c d")
    if len(topology.terms) == 2
]


@settings(max_examples=25)
@given(topology=st.sampled_from(TOPOLOGIES), seed=st.integers(0, 3), limit=st.integers(12, 60))
def test_no_fit_is_better_than_its_bound(topology: Topology, seed: int, limit: int) -> None:
    check_bound(topology, seed, limit)


@settings(max_examples=15)
@given(topology=st.sampled_from(SUMS), seed=st.integers(0, 3), limit=st.integers(25, 50))
def test_no_sum_is_better_than_its_bound(topology: Topology, seed: int, limit: int) -> None:
    check_bound(topology, seed, limit)


def test_bounds_of_sums_are_the_spectra_at_the_sum_of_the_ranks() -> None:
    """Two cores each, cut alike: the sum has the rank r + s, and no more parameters than one term of that rank."""
    rule = tn.rule("K[a b c d] => A[a b r] B[c d r] + C[a b s] D[c d s]")
    tensor = kernel(0)
    bounds = prepare_bounds(CutErrors(tensor, tuple(SIZES)), Topology(rule))
    values = torch.linalg.svdvals(tensor.reshape(12, 6))
    for rank in (2, 3):
        least = torch.linalg.vector_norm(values[rank:]) / torch.linalg.vector_norm(values)
        assert bounds.within(18 * rank).error == pytest.approx(float(least), abs=1 / 32)
        assert bounds.within(18 * rank).error <= float(least)


def check_bound(topology: Topology, seed: int, limit: int) -> None:
    tensor = kernel(seed)
    bounds = prepare_bounds(CutErrors(tensor, tuple(SIZES)), topology)
    budget = tn.ParameterBudget((limit + 0.5) / tensor.numel())
    least = bounds.within(limit).error
    try:
        fit = topology.rule.apply(tensor, budget, starts=4, sweeps=30)
    except tn.errors.RankError:
        return
    assert fit.parameters <= limit
    assert fit.relative_error >= least - 1e-6
    assert bounds.least_parameters(fit.relative_error + 1e-6) <= fit.parameters


def test_the_bound_of_a_cut_is_reached() -> None:
    tensor = kernel(0)
    (topology,) = tn.Space(cores=(2, 2), groups=("a c", "b d"), catalogue=False).topologies("a b c d")
    bounds = prepare_bounds(CutErrors(tensor, tuple(SIZES)), topology)
    fit = topology.rule.apply(tensor, 2)
    assert bounds.within(fit.parameters).error == pytest.approx(fit.relative_error, abs=1e-5)


def test_the_bound_in_a_metric() -> None:
    tensor = torch.randn(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    metric = tn.Metric.with_ridge(("in", "k"), (root @ root.T).reshape(3, 2, 3, 2), ridge=1e-3)
    (topology,) = tn.Space(cores=(2, 2), bonds="tree", groups=("out", "in k"), catalogue=False).topologies("out in k")
    bounds = prepare_bounds(CutErrors(tensor, ("out", "in", "k"), metric), topology)
    fit = topology.rule.apply(tensor, 2, metric=metric)
    assert fit.output_error is not None
    assert bounds.within(fit.parameters).error == pytest.approx(fit.output_error, abs=1e-5)


def test_ranks_come_in_the_order_of_their_parameters() -> None:
    """The oracle goes through all ranks of a ring."""
    tensor = kernel(1)
    (topology,) = tn.Space(cores=(4, 4), bonds="ring", catalogue=False).topologies("a b c d")[:1]
    bounds = prepare_bounds(CutErrors(tensor, tuple(SIZES)), topology)
    error = 0.2
    allowed = [
        ranks
        for ranks in torch.cartesian_prod(*[torch.arange(1, 5)] * 4).tolist()
        if all(
            torch.tensor([ranks[bond] for bond in cut.crossing[0]]).prod() >= bounds.rank(cut.side, error)
            for cut in bounds.cuts
        )
    ]
    ranks = RankSearch(bounds, error).next(10**6)
    assert ranks is not None
    assert list(ranks) in allowed
    assert bounds.parameters(ranks) == min(map(bounds.parameters, allowed))
