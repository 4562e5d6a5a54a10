"""Bases by name: orthonormal, and as their docstrings say."""

from __future__ import annotations

import pytest
import torch

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import SizeError
from tnalgebra.tensors import BASES
from tnalgebra.tensors.bases import fourier, haar, hadamard


@pytest.mark.parametrize("name", BASES)
def test_rows_are_orthonormal_and_the_first_is_constant(name: str) -> None:
    for size in (1, 2, 4, 8, 32) if name == "hadamard" else (1, 2, 3, 5, 8, 17):
        basis = BASES[name](size)
        assert basis.dtype == torch.float64
        assert (basis @ basis.mT - torch.eye(size)).abs().max() < 1e-14
        assert (basis[0] - size**-0.5).abs().max() < 1e-15


@pytest.mark.parametrize("size", [5, 6])
def test_fourier_rows_are_parts_of_the_complex_transform(size: int) -> None:
    x = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    transform = torch.fft.rfft(x, norm="ortho")
    rows = fourier(size) @ x
    assert rows[1] == pytest.approx(2**0.5 * float(transform[1].real))
    assert rows[2] == pytest.approx(-(2**0.5) * float(transform[1].imag))
    assert rows[-1] == pytest.approx(float(transform[-1].real) if size == 6 else -(2**0.5) * float(transform[2].imag))


def test_hadamard_is_a_product_of_equal_factors() -> None:
    text = "Fuse[a a1:2 a2:2 a3:2] Fuse[x x1:2 x2:2 x3:2] H[a1 x1] H[a2 x2] H[a3 x3] -> [a x]"
    assert (tn.evaluate(tn.parse(text), {"H": hadamard(2)}) - hadamard(8)).abs().max() < 1e-15


def test_haar_wavelets_of_four_elements() -> None:
    half = 0.5**0.5
    rows = [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, -0.5, -0.5], [half, -half, 0, 0], [0, 0, half, -half]]
    assert (haar(4) - torch.tensor(rows)).abs().max() < 1e-7


@pytest.mark.parametrize("name", ["fourier", "haar", "hadamard"])
def test_a_kernel_is_projected_onto_a_basis(name: str) -> None:
    kernel = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rule = tn.rule("K[o i h w] => G[o i c w] P[c h]", fixed={"P": name})
    assert rule.apply({"K": kernel}, 4).relative_error < 1e-14
    fit = rule.apply({"K": kernel}, 2)
    kept = (kernel.movedim(2, -1) @ BASES[name](4).mT).square().sum((0, 1, 2)).sort(descending=True).values
    assert fit.relative_error == pytest.approx(float((kept[2:].sum() / kept.sum()).sqrt()), rel=1e-10)


def test_a_hadamard_matrix_of_another_size_is_refused() -> None:
    with refused(SizeError, "size 3", "a power of 2"):
        tn.rule("K[o i h w] => G[o i c w] P[c h]", fixed={"P": "hadamard"}).apply({"K": torch.ones(3, 2, 3, 5)}, 2)
