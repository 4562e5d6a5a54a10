"""Trees of cores fitted by the subspaces of their bonds, against SVDs and against each other."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.fitting.test_correction import cores, objective_for
from tests.kernel_cases import TREES, gaussian
from tnalgebra.decompositions import rules
from tnalgebra.fitting import tree_of
from tnalgebra.fitting.condensed import condense, expand, leading_subspaces
from tnalgebra.networks import NamedTensor, Network
from tnalgebra.rewriting import Fit, rule

SHAPE = (9, 8, 4, 3)

RULES = {name: text for name, (text, _) in TREES.items() if text.startswith("K[o i h w]")}


def relative_error(fit: Fit, kernel: Tensor) -> float:
    return float(torch.linalg.vector_norm(fit.dense() - kernel) / torch.linalg.vector_norm(kernel))


def tails(network: Network, kernel: Tensor) -> dict[str, float]:
    """For each bond, the relative error of the best kernel with that rank across the bond's cut."""
    tree = tree_of(network)
    lost = {}
    for edge in tree.edges:
        rows = tree.rows[edge.child]
        moved = kernel.movedim([tree.open.index(label) for label in rows], list(range(len(rows))))
        values = torch.linalg.svdvals(moved.flatten(0, len(rows) - 1).flatten(1))
        (bond,) = edge.bonds
        lost[bond] = float(values[network.sizes[bond] :].square().sum().sqrt() / values.square().sum().sqrt())
    return lost


@settings(max_examples=60)
@given(st.sampled_from(sorted(RULES)), st.integers(1, 9), st.integers(0, 2**20), st.sampled_from((1.0, 1e-30, 1e30)))
def test_the_error_lies_between_the_bounds_of_the_svds(name: str, rank: int, seed: int, scale: float) -> None:
    """No tree is nearer than the best matrix across any bond, and the sum of squares is reached or undercut (Oseledets
    2011, theorem 2.2). Where one bond alone loses something, both bounds are one, and the fit is the best one."""
    kernel = scale * gaussian(*SHAPE, seed=seed)
    fit = rule(RULES[name]).apply(kernel, rank)
    lost = tails(fit.network, kernel)
    assert fit.relative_error == pytest.approx(relative_error(fit, kernel), rel=1e-9, abs=1e-13)
    assert max(lost.values()) * (1 - 1e-9) - 1e-13 <= fit.relative_error
    assert fit.relative_error <= sum(error**2 for error in lost.values()) ** 0.5 * (1 + 1e-9) + 1e-13


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("name", RULES)
def test_kernels_in_single_precision_have_the_errors_of_double_precision(name: str, rank: int) -> None:
    kernel = gaussian(*SHAPE, seed=7).float()
    single, double = (rule(RULES[name]).apply(one, rank) for one in (kernel, kernel.double()))
    assert single.relative_error == pytest.approx(double.relative_error, rel=1e-4)
    assert relative_error(single, kernel) == pytest.approx(double.relative_error, rel=1e-4)


@pytest.mark.parametrize("name", RULES)
def test_a_sweep_never_makes_the_error_larger(name: str) -> None:
    kernel = gaussian(*SHAPE, seed=3)
    fit = rule(RULES[name]).apply(kernel, 2)
    assert fit.report is not None
    errors = fit.report.errors
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(errors))
    assert errors[-1] == pytest.approx(fit.relative_error, rel=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_no_other_core_is_better_while_the_rest_stays(name: str) -> None:
    """Each core in turn is replaced by the solution of its least-squares problem, written out as a dense matrix."""
    kernel = gaussian(*SHAPE, seed=5)
    fit = rule(RULES[name]).apply(kernel, 3, sweeps=200)
    for node in fit.network.nodes:
        assert isinstance(node, NamedTensor)
        core = fit.values[node.name]
        columns = []
        for place in range(core.numel()):
            unit = torch.zeros(core.numel(), dtype=torch.float64)
            unit[place] = 1
            values = {**fit.values, node.name: unit.reshape(core.shape)}
            columns.append(Fit(fit.network, values, fit.trace).dense().flatten())
        design = torch.stack(columns, 1)
        best = torch.linalg.lstsq(design, kernel.flatten()[:, None], driver="gelsd").solution
        error = torch.linalg.vector_norm(design @ best - kernel.flatten()[:, None]) / torch.linalg.vector_norm(kernel)
        assert float(error) >= fit.relative_error * (1 - 1e-4)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-9, 1e-6, 1e-3])
def test_small_errors_are_exact(name: str, noise: float) -> None:
    """A Gram matrix, which has squares, would lose an error of 1e-9 in its rounding."""
    planted = rule(RULES[name]).apply(gaussian(*SHAPE, seed=7), 2).dense()
    kernel = planted + noise * gaussian(*SHAPE, seed=8)
    fit = rule(RULES[name]).apply(kernel, 2)
    bound = float(torch.linalg.vector_norm(kernel - planted) / torch.linalg.vector_norm(kernel))
    assert relative_error(fit, kernel) <= bound + 1e-14


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(
    ("text", "condensed"),
    [
        ("A[o:9 r:2] B[i:7 r] C[h:3 r] -> [o i h]", {"o": 2, "i": 2, "h": 2}),
        ("A[z:2 o:9 p:2] B[p i:7 q:2] C[q h:3 z] -> [o i h]", {"o": 4, "i": 4}),
        ("A[o:9 r:2] B[o i:7 r] C[h:3 r] -> [o i h]", {"h": 2}),
    ],
)
def test_a_fit_in_subspaces_differs_by_what_they_leave_out(text: str, condensed: dict[str, int], layers: int) -> None:
    objective = objective_for(text, layers=layers, seed=1)
    bases = leading_subspaces(objective)
    assert {label: basis.shape[2] for label, basis in bases.items()} == condensed
    small = condense(objective, bases)
    values = cores(small, 2, seed=4)
    expected = small.loss_of(values) + objective.power - small.power
    torch.testing.assert_close(objective.loss_of(expand(objective, values, bases)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["cp", "tensor_ring"])
def test_a_large_search_ends_near_the_best_of_many_seeds(name: str) -> None:
    """Kernels of this size are first fitted in subspaces."""
    kernel = gaussian(48, 40, 3, 3, seed=2)
    read = rules()[name]
    errors = [read.apply(kernel, 6, seed=seed, sweeps=60, stability=0).relative_error for seed in range(3)]
    assert max(errors) <= 1.01 * min(errors)
    fit = read.apply(kernel, 6, sweeps=60)
    assert fit.report is not None
    assert fit.relative_error == pytest.approx(relative_error(fit, kernel), rel=1e-9)
    assert fit.report.errors[-1] == pytest.approx(fit.relative_error, rel=1e-9)
