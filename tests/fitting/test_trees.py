"""Trees whose open labels stand on several cores: an SVD for each value of the batch, against loops of numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernel_cases import Matrix, check_claim, gaussian, tensors
from tnalgebra.fitting import KeepFraction, NoTreeError, ParameterBudget, RelativeError, tree_of
from tnalgebra.networks import parse
from tnalgebra.rewriting import rule

BATCHED = {
    "depthwise": ("K[o i h w] => D[i h w] P[o i] -> [o i h w]", "i", "o", 1),
    "spatial": ("K[o i h w] => A[o i h] B[o i w] -> [o i h w]", "o i", "h", 1),
    "of rank r": ("K[o i h w] => A[o i r] B[o h w r] -> [o i h w]", "o", "i", 3),
    "two bonds": ("K[o i h w] => A[o i r s] B[o h w r s] -> [o i h w]", "o", "i", 4),
    "on the last": ("K[o i h w] => A[w o r] B[r w h i] -> [o i h w]", "w", "o", 2),
}
"""Rule, batch labels, labels of the rows of each matrix, and their rank."""


def matrices(kernel: Tensor, batch: str, rows: str) -> list[Matrix]:
    """One matrix for each value of the batch labels, written out."""
    labels = ["o", "i", "h", "w"]
    first, second = ([labels.index(label) for label in group.split()] for group in (batch, rows))
    rest = [axis for axis in range(4) if axis not in (*first, *second)]
    array = np.transpose(kernel.numpy(), [*first, *second, *rest])
    height = math.prod(kernel.shape[axis] for axis in second)
    return list(array.reshape(math.prod(kernel.shape[axis] for axis in first), height, -1))


def left_over(found: list[Matrix], rank: int) -> float:
    """Relative error of the best matrices of a rank, in the place of all of them."""
    largest = max(float(np.abs(matrix).max()) for matrix in found) or 1.0
    spectra = [np.linalg.svd(matrix / largest, compute_uv=False) for matrix in found]
    total = math.hypot(*(float(np.linalg.norm(values)) for values in spectra)) or 1.0
    return math.hypot(*(float(np.linalg.norm(values[rank:])) for values in spectra)) / total


@settings(max_examples=60)
@given(st.sampled_from(sorted(BATCHED)), tensors(4))
def test_each_value_of_a_batch_has_its_own_svd(name: str, kernel: Tensor) -> None:
    text, batch, rows, rank = BATCHED[name]
    entry = rule(text)
    found = matrices(kernel, batch, rows)
    rank = min(rank, *found[0].shape)
    ranks = {"r": 2, "s": 2} if name == "two bonds" else dict.fromkeys(entry.ranks, rank)
    fit = entry.apply({"K": kernel}, ranks)
    check_claim(fit)
    assert fit.relative_error == pytest.approx(left_over(found, rank), rel=1e-8, abs=1e-10)


def three_cores(kernel: Tensor, rank: int) -> tuple[float, float]:
    """For `A[o i p] B[o p h q] C[q w]`, by loops: the errors of the best A and of the best C alone."""
    first = left_over(matrices(kernel, "o", "i"), rank)
    values = np.linalg.svd(kernel.numpy().reshape(-1, kernel.shape[3]), compute_uv=False)
    return first, float(np.linalg.norm(values[rank:]) / np.linalg.norm(values))


@pytest.mark.parametrize("seed", range(5))
def test_three_cores_with_a_batch_label_on_two(seed: int) -> None:
    entry = rule("K[o i h w] => A[o i p] B[o p h q] C[q w]")
    kernel = gaussian(6, 5, 3, 4, seed=seed)
    bounds = three_cores(kernel, 2)
    plain = entry.apply({"K": kernel}, {"p": 2, "q": 2}, sweeps=0)
    check_claim(plain)
    assert max(bounds) <= plain.relative_error <= math.hypot(*bounds) * (1 + 1e-12)
    swept = entry.apply({"K": kernel}, {"p": 2, "q": 2})
    check_claim(swept)
    assert max(bounds) <= swept.relative_error < plain.relative_error
    assert entry.apply({"K": kernel}, {"p": 5, "q": 4}).relative_error < 1e-10
    one = entry.apply({"K": kernel}, {"p": 2, "q": 4}, sweeps=0).relative_error
    assert one == pytest.approx(bounds[0], rel=1e-10)
    other = entry.apply({"K": kernel}, {"p": 5, "q": 2}, sweeps=0).relative_error
    assert other == pytest.approx(bounds[1], rel=1e-10)


def test_ranks_of_a_batched_bond_count_the_singular_values_of_all_its_matrices() -> None:
    entry = rule("K[o i h w] => A[o i r] B[o h w r] -> [o i h w]")
    kernel = gaussian(6, 5, 3, 2, seed=1)
    found = matrices(kernel, "o", "i")
    together = np.linalg.norm([np.linalg.svd(matrix, compute_uv=False) for matrix in found], axis=0)
    half = entry.apply({"K": kernel}, KeepFraction(0.5))
    assert half.network.sizes["r"] == round(0.5 * len(together))
    error = entry.apply({"K": kernel}, RelativeError(0.4))
    fewest = next(rank for rank in range(1, 6) if np.linalg.norm(together[rank:]) <= 0.4 * np.linalg.norm(together))
    assert error.network.sizes["r"] == fewest
    assert error.relative_error <= 0.4
    budget = entry.apply({"K": kernel}, ParameterBudget(0.8))
    assert budget.network.sizes["r"] == math.floor(0.8 * 180) // (6 * 5 + 6 * 6)


def test_cores_that_nothing_joins_are_an_outer_product() -> None:
    kernel = gaussian(5, 4, 3, seed=2)
    two, three = (rule(f"K[o i h] => {side}").apply(kernel) for side in ("L[o h] R[i]", "L[o] M[i] R[h]"))
    check_claim(two)
    check_claim(three)
    alone = [left_over([kernel.movedim(axis, 0).flatten(1).numpy()], 1) for axis in range(3)]
    assert two.relative_error == pytest.approx(alone[1], rel=1e-10)
    assert max(alone) * (1 - 1e-12) <= three.relative_error < 1


def test_the_cores_of_a_batch_must_be_neighbours() -> None:
    tree = tree_of(parse("A[a x p] B[a p b q] C[q a c] -> [a b c x]"))
    assert sorted(edge.batch for edge in tree.edges) == [("a",), ("a",)]


@pytest.mark.parametrize(
    "text",
    [
        "A[a x p] B[p b q] C[q a c] -> [a b c x]",  # the open label closes a loop
        "A[a p] B[b p q] C[c q p] -> [a b c]",  # a bond of three cores
        "A[a p] B[p q] -> [a]",  # a bond of one
        "A[a p q] B[p b r] C[r q c]",
        "A[a p] A[b p]",
        "A[a p] Copy[p q] B[q b]",
    ],
)
def test_right_sides_that_are_not_trees(text: str) -> None:
    with pytest.raises(NoTreeError):
        tree_of(parse(text))
