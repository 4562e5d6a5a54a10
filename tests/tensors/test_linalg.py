"""Matricisation, Gram singular values and the truncated SVD: against loops, torch's SVD, and planted spectra."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.refusals import refused
from tnalgebra.errors import RankError, RuleError, ValuesError
from tnalgebra.networks import bipartitions, parse_bipartition
from tnalgebra.tensors import linalg
from tnalgebra.tensors.linalg import SVD, gram_singular_values, matricise, scaled, truncated_svd

SIZES = {"out": 5, "in": 4, "kh": 3, "kw": 2}
FLOOR, BOUND, BELOW = 1e-6, 1e-8, 1e-7  # what `gram_singular_values` promises, over the largest value


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def singular_values(matrix: Tensor) -> Tensor:
    numbers, scale = scaled(matrix)
    return gram_singular_values(numbers) * scale


def planted(rows: int, columns: int, values: Tensor, *, seed: int) -> Tensor:
    """A matrix with these singular values and random singular vectors."""
    count = len(values)
    left = torch.linalg.qr(gaussian(rows, count, seed=seed)).Q
    right = torch.linalg.qr(gaussian(columns, count, seed=seed + 1)).Q
    return (left * values) @ right.mT


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Wide, tall and square; of any rank; of any scale that float64 holds."""
    rows, columns = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    rank = draw(st.integers(1, min(rows, columns)))
    seed = draw(st.integers(0, 2**30))
    scale = 10.0 ** draw(st.sampled_from([0, 0, 0, -200, -9, 7, 200]))
    return gaussian(rows, rank, seed=seed) @ gaussian(rank, columns, seed=seed + 1) * scale


@given(st.permutations(list(SIZES)), st.integers(0, 6), st.integers(0, 2**30))
def test_an_element_of_a_matricisation_is_the_one_its_numbers_name(order: list[str], which: int, seed: int) -> None:
    tensor = gaussian(*(SIZES[label] for label in order), seed=seed)
    cut = bipartitions(list(SIZES))[which]
    matrix = matricise(tensor, order, cut)
    row_places = product(*(range(SIZES[label]) for label in cut.left))
    for (i, left), (j, right) in product(
        enumerate(row_places), list(enumerate(product(*(range(SIZES[label]) for label in cut.right))))
    ):
        place = dict(zip(cut.labels, (*left, *right), strict=True))
        assert matrix[i, j] == tensor[tuple(place[label] for label in order)]


def test_matricise_names_what_does_not_fit() -> None:
    with refused(RuleError, "'in'"):
        matricise(torch.ones(2, 3), ["out", "k"], parse_bipartition("out | in"))
    with refused(ValuesError, "2 axes", "3 labels"):
        matricise(torch.ones(2, 3), ["out", "in", "k"], parse_bipartition("out | in k"))


@given(matrices())
def test_singular_values_are_those_of_an_svd(matrix: Tensor) -> None:
    expected = torch.linalg.svdvals(matrix)
    result = singular_values(matrix)
    assert result.dtype == torch.float64
    assert result.shape == expected.shape
    assert (result.diff() <= 0).all()
    assert (result >= 0).all()
    difference = (result - expected).abs() / expected[0]
    assert difference[expected > FLOOR * expected[0]].max() <= BOUND
    assert difference.max() <= BELOW


@given(
    st.sampled_from([(24, 24), (17, 50), (50, 17), (6, 300), (120, 120)]),
    st.sampled_from(["even", "flat with one small", "half small", "steep"]),
    st.integers(0, 2**30),
)
def test_planted_values_above_a_millionth_are_right_to_1e_8(shape: tuple[int, int], kind: str, seed: int) -> None:
    count = min(shape)
    values = torch.ones(count, dtype=torch.float64)
    match kind:
        case "even":
            values = torch.logspace(0, -12, count, dtype=torch.float64)
        case "flat with one small":
            values[-1] = 1.1 * FLOOR
        case "half small":
            values[count // 2 :] = 1.1 * FLOOR
        case "steep":
            values[1:] = torch.logspace(-3, -12, count - 1, dtype=torch.float64)
    result = singular_values(planted(*shape, values, seed=seed))
    difference = (result - values).abs()
    assert difference[values > FLOOR].max() <= BOUND
    assert difference.max() <= BELOW


@given(matrices(), st.data())
def test_the_truncated_svd_is_the_nearest_of_its_rank(matrix: Tensor, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(matrix.shape)))
    left, values, right = truncated_svd(matrix, rank)
    every = torch.linalg.svdvals(matrix)
    unit = every[0]
    eye = torch.eye(rank, dtype=torch.float64)
    assert (left.shape, values.shape, right.shape) == ((matrix.shape[0], rank), (rank,), (rank, matrix.shape[1]))
    torch.testing.assert_close(left.mT @ left, eye, rtol=0, atol=1e-13)
    torch.testing.assert_close(right @ right.mT, eye, rtol=0, atol=1e-13)
    torch.testing.assert_close(values / unit, every[:rank] / unit, rtol=0, atol=1e-13)

    # Eckart-Young: the error is what was left out; and no neighbour of the same rank, near or far, is better
    exact = matrix / unit
    kept = (left * (values / unit)) @ right
    error = torch.linalg.matrix_norm(exact - kept)
    torch.testing.assert_close(error.square(), (every[rank:] / unit).square().sum(), rtol=1e-12, atol=1e-26)
    for step in (1e-3, 1.0):
        seed = data.draw(st.integers(0, 2**30))
        moved_left = left * (values / unit) + step * gaussian(*left.shape, seed=seed)
        moved_right = right + step * gaussian(*right.shape, seed=seed + 1)
        assert torch.linalg.matrix_norm(exact - moved_left @ moved_right) >= error - 1e-13


@given(matrices())
def test_signs_are_settled(matrix: Tensor) -> None:
    left, values, right = truncated_svd(matrix)
    again, minus = truncated_svd(matrix), truncated_svd(-matrix)
    assert all(torch.equal(a, b) for a, b in zip(again, (left, values, right), strict=True))
    largest = left.abs().argmax(0)
    assert (left[largest, torch.arange(len(values))] > 0).all()
    alone = values > 1e-3 * values[0]
    alone[:-1] &= -values.diff() > 1e-3 * values[0]
    alone[1:] &= -values.diff() > 1e-3 * values[0]
    top = left.abs().topk(min(2, len(left)), dim=0).values
    alone &= (top[0] - top[-1] > 1e-6) | (len(left) == 1)  # a tie for the largest may go either way
    torch.testing.assert_close(minus.U[:, alone], left[:, alone], rtol=0, atol=1e-10)
    torch.testing.assert_close(minus.V[alone], -right[alone], rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(30, 30), (90, 31), (31, 90), (500, 4)])
def test_the_truncated_svd_sees_small_values(shape: tuple[int, int]) -> None:
    values = torch.logspace(0, -12, min(shape), dtype=torch.float64)
    result = truncated_svd(planted(*shape, values, seed=3)).S
    torch.testing.assert_close(result, values, rtol=0, atol=3e-15)  # a few roundings of the largest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_other_types_are_computed_in_float64(dtype: torch.dtype) -> None:
    matrix = (4 * gaussian(7, 5, seed=1)).to(dtype)
    expected = torch.linalg.svdvals(matrix.double())
    torch.testing.assert_close(singular_values(matrix), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(truncated_svd(matrix).S, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (1, 1)])
def test_a_matrix_of_zeros(shape: tuple[int, int]) -> None:
    left, values, right = truncated_svd(torch.zeros(shape))
    eye = torch.eye(min(shape), dtype=torch.float64)
    torch.testing.assert_close(left.mT @ left, eye)
    torch.testing.assert_close(right @ right.mT, eye)
    assert torch.equal(values, torch.zeros(min(shape), dtype=torch.float64))
    assert torch.equal(singular_values(torch.zeros(shape)), values)


def test_gradients_are_left_behind() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    assert not singular_values(weight).requires_grad
    assert not any(part.requires_grad for part in truncated_svd(weight))


@pytest.mark.parametrize("compute", [scaled, truncated_svd])
@pytest.mark.parametrize(
    ("matrix", "facts"),
    [
        (torch.tensor([[1.0, float("nan")], [2.0, 3.0]]), ["NaN", "1 of 4"]),
        (torch.tensor([[1.0, -float("inf"), float("inf")]]), ["2 of 3"]),
        (torch.ones(0, 3), ["empty", "(0, 3)"]),
        (torch.full((1, 2), complex(0, float("nan"))), ["NaN", "2 of 2"]),
    ],
)
def test_what_has_no_singular_values(compute: Any, matrix: Tensor, facts: list[str]) -> None:
    with refused(ValuesError, *facts):
        compute(matrix)


def test_a_vector_is_not_a_matrix() -> None:
    with refused(ValuesError, "tensor has 1"):
        truncated_svd(torch.ones(3))


@given(
    st.sampled_from([(3, 5, 4), (2, 4, 9), (7, 9, 2), (2, 3, 4, 4), (1, 6, 1)]),
    st.sampled_from([torch.float64, torch.float32]),
    st.integers(0, 2**30),
    st.data(),
)
def test_matrices_side_by_side_are_decomposed_as_if_alone(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    stack = gaussian(*shape, seed=seed)
    rank = data.draw(st.integers(1, min(shape[-2:])))
    result = truncated_svd(stack, rank, dtype=dtype)
    assert result.S.dtype == dtype
    assert (result.U.shape, result.V.shape) == ((*shape[:-1], rank), (*shape[:-2], rank, shape[-1]))
    tolerance = 100 * torch.finfo(dtype).eps * float(stack.abs().max())  # a few roundings of the largest value
    for place in product(*map(range, shape[:-2])):
        alone = truncated_svd(stack[place], rank, dtype=dtype)
        torch.testing.assert_close(result.S[place], alone.S, rtol=0, atol=tolerance)
        for svd in (SVD(*(each[place] for each in result)), alone):
            kept_norm = torch.linalg.vector_norm(svd.U.mT @ stack[place].to(dtype) @ svd.V.mT - torch.diag(svd.S))
            assert kept_norm < 10 * tolerance
            assert (svd.U.gather(0, svd.U.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (40, 3), (3, 40)])
def test_float32_is_as_good_as_its_type(shape: tuple[int, int]) -> None:
    matrix = gaussian(*shape, seed=4)
    result = truncated_svd(matrix, dtype=torch.float32)
    assert {part.dtype for part in result} == {torch.float32}
    torch.testing.assert_close(result.S.double(), torch.linalg.svdvals(matrix), rtol=1e-5, atol=0)
    assert linalg.relative_residual(matrix, result.U * result.S, result.V) < 1e-6


@given(matrices(), st.data())
def test_the_svd_of_a_product_needs_no_product(matrix: Tensor, data: st.DataObject) -> None:
    inner = data.draw(st.integers(1, 8))
    right = gaussian(matrix.shape[1], inner, seed=data.draw(st.integers(0, 2**30)))
    last = gaussian(inner, 9, seed=data.draw(st.integers(0, 2**30)))
    left = matrix / matrix.abs().max() @ right
    result, expected = linalg.svd_of_product(left, last), torch.linalg.svdvals(left @ last)
    count = min(inner, len(left), 9)
    scale = float(left.norm() * last.norm())
    torch.testing.assert_close(result.S, expected[:count], rtol=0, atol=1e-13 * scale)
    torch.testing.assert_close((result.U * result.S) @ result.V, left @ last, rtol=0, atol=1e-13 * scale)
    assert (result.U.gather(0, result.U.abs().argmax(0, keepdim=True)) > 0).all()


@given(matrices(), st.data())
def test_the_residual_is_what_is_left(matrix: Tensor, data: st.DataObject) -> None:
    svd = truncated_svd(matrix, data.draw(st.integers(1, min(matrix.shape))))
    unit = matrix / matrix.abs().max()
    left = unit - (svd.U * (svd.S / matrix.abs().max())) @ svd.V
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linalg, "_BLOCK", data.draw(st.sampled_from([1, 20, 1000])))
        assert linalg.relative_residual(matrix, svd.U * svd.S, svd.V) == pytest.approx(
            float(left.norm() / unit.norm()), abs=1e-14
        )


def test_the_residual_of_zeros() -> None:
    zeros = torch.zeros(4, 3)
    assert linalg.relative_residual(zeros, zeros[:, :1], zeros[:1]) == 0


SPECTRA = {
    "k^-0.25": lambda k: k**-0.25,
    "exp(-k/10)": lambda k: torch.exp(-k / 10),
    "a step": lambda k: torch.where(k <= 100, 1.0, 1e-3).double(),
}


@pytest.mark.slow
@pytest.mark.parametrize("spectrum", ["gaussian", *SPECTRA])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_random_subspace_is_within_one_per_cent_of_the_best(spectrum: str, dtype: torch.dtype) -> None:
    size = linalg.LARGE
    if spectrum == "gaussian":
        matrix = gaussian(size, size + 100, seed=1)
        values = torch.linalg.svdvals(matrix)
    else:
        values = SPECTRA[spectrum](torch.arange(1, size + 1, dtype=torch.float64))
        matrix = planted(size, size + 100, values, seed=1)
    for rank in (16, size // linalg.FEW):
        assert linalg.randomised(matrix, rank)
        result = truncated_svd(matrix, rank, dtype=dtype)
        least = float(values[rank:].norm() / values.norm())
        rounding = 1e-5 if dtype == torch.float32 else 1e-13
        assert linalg.relative_residual(matrix, result.U * result.S, result.V) <= 1.01 * least + rounding
        eye = torch.eye(rank, dtype=dtype)
        tolerance = 1e-4 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(result.U.mT @ result.U, eye, rtol=0, atol=tolerance)
        torch.testing.assert_close(result.V @ result.V.mT, eye, rtol=0, atol=tolerance)
        assert ((values[:rank] - result.S) < 0.1 * values[:rank] + rounding * values[0]).all()
        again = truncated_svd(matrix, rank, dtype=dtype)
        assert all(torch.equal(one, other) for one, other in zip(result, again, strict=True))


def test_only_few_values_of_a_large_matrix_come_from_a_random_subspace() -> None:
    large = torch.empty(linalg.LARGE, linalg.LARGE)
    assert not linalg.randomised(large, linalg.LARGE // linalg.FEW + 1)
    assert not linalg.randomised(large[:-1], 1)
    assert not linalg.randomised(large.expand(2, -1, -1), 1)


@pytest.mark.parametrize("rank", [0, -1, 4])
def test_a_rank_out_of_range(rank: int) -> None:
    with refused(RankError, f"rank {rank}", "1 to 3"):
        truncated_svd(torch.ones(3, 5), rank)


def test_an_svd_that_does_not_converge_is_tried_on_the_transpose(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = gaussian(5, 4, seed=2)
    expected = truncated_svd(matrix)
    work = torch.linalg.svd

    def stubborn(given: Tensor, **options: Any) -> Any:
        if given.shape == (5, 4):
            raise linalg.LinAlgError("did not converge")
        return work(given, **options)

    monkeypatch.setattr(torch.linalg, "svd", stubborn)
    for part, other in zip(truncated_svd(matrix), expected, strict=True):
        torch.testing.assert_close(part, other, rtol=0, atol=1e-13)


def test_an_svd_that_never_converges_names_the_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> SVD:
        raise linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fail)
    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    with refused(ValuesError, "SVD", "(5, 4)"):
        truncated_svd(torch.ones(5, 4))
    with refused(ValuesError, "Gram", "(5, 4)"):
        singular_values(torch.ones(5, 4))


FALLING = {
    "even": torch.logspace(0, -14, 40, dtype=torch.float64),
    "equal": torch.ones(40, dtype=torch.float64),
    "half of them 0": torch.cat([torch.ones(20), torch.zeros(20)]).double(),
    "one small": torch.cat([torch.linspace(2, 1, 39), torch.tensor([1e-9])]).double(),
    "zeros": torch.zeros(40, dtype=torch.float64),
}


@pytest.mark.parametrize("kind", FALLING)
@pytest.mark.parametrize("rank", [12, 20, 39, 40])
def test_a_large_matrix_is_decomposed_by_gram_matrices(kind: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "LARGE", 16)
    values = FALLING[kind]
    matrix = planted(100, 40, values, seed=5)
    eye = torch.eye(rank, dtype=torch.float64)
    for turned in (matrix, matrix.mT):
        svd = truncated_svd(turned, rank)
        torch.testing.assert_close(svd.S, values[:rank], rtol=0, atol=1e-12)
        torch.testing.assert_close(svd.U.mT @ svd.U, eye, rtol=0, atol=1e-12)
        torch.testing.assert_close(svd.V @ svd.V.mT, eye, rtol=0, atol=1e-12)
        left = float((turned - (svd.U * svd.S) @ svd.V).norm())
        assert left <= float(values[rank:].norm()) + 1e-12
        torch.testing.assert_close(linalg.singular_values(turned), values, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["equal", "half of them 0"])
@pytest.mark.parametrize("large", [16, 1024])
def test_vectors_of_equal_values_do_not_depend_on_rounding(
    kind: str, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linalg, "LARGE", large)
    matrix = planted(60, 40, FALLING[kind], seed=7)
    moved = matrix * (1 + 2e-16 * gaussian(60, 40, seed=8).sign())
    kept = int((FALLING[kind] > 0).sum())
    one, two = truncated_svd(matrix, kept), truncated_svd(moved, kept)
    for part, other in zip(one, two, strict=True):
        torch.testing.assert_close(other, part, rtol=0, atol=1e-12)


def test_many_matrices_are_decomposed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = gaussian(3, 4, 9, 7, seed=9)
    whole = truncated_svd(stack, 5)
    monkeypatch.setattr(linalg, "_BLOCK", 130)
    for part, other in zip(truncated_svd(stack, 5), whole, strict=True):
        torch.testing.assert_close(part, other, rtol=0, atol=1e-13)
