"""Complex values: numpy computes the same, adjoints conjugate, and physics comes from quimb and goes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import quimb as qu
import quimb.tensor as qtn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tnalgebra as tn
from tests.kernel_cases import SEVEN, unfolding
from tests.refusals import refused
from tests.strategies import valued_networks
from tnalgebra.decompositions import truncate
from tnalgebra.errors import CompileError, LayerError, ValuesError
from tnalgebra.networks import Network
from tnalgebra.tensors import evaluate, from_quimb, magnitude, norm, operands, singular_values, to_quimb, truncated_svd

FEWER = settings(max_examples=settings().max_examples // 2)


def complex_gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


KERNEL = complex_gaussian(7, 5, 3, 2)


def with_phases(drawn: tuple[Network, dict[str, Tensor]], seed: int) -> tuple[Network, dict[str, Tensor]]:
    network, values = drawn
    generator = torch.Generator().manual_seed(seed)
    phases = {
        name: torch.randn(value.shape, dtype=torch.complex128, generator=generator) for name, value in values.items()
    }
    return network, {name: value * phases[name] for name, value in values.items()}


@FEWER
@given(valued_networks(), st.integers(0, 2**32 - 1))
def test_the_value_is_that_of_numpy(drawn: tuple[Network, dict[str, Tensor]], seed: int) -> None:
    network, values = with_phases(drawn, seed)
    result = evaluate(network, values)
    numbers = {label: number for number, label in enumerate(network.sizes)}
    arguments: list[Any] = []
    for tensor, labels in operands(network, values, torch.complex128):
        arguments += [tensor.numpy(), [numbers[label] for label in labels]]
    expected = np.einsum(*arguments, [numbers[label] for label in network.output])
    assert result.dtype == (torch.complex128 if values else torch.float64)
    assert np.all(np.abs(result.numpy() - expected) <= 1e-12 * magnitude(network, values).numpy())


@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 9), (9, 4), (6, 6), (30, 3)]), st.booleans())
def test_singular_values_are_real_and_factors_give_the_matrix(seed: int, shape: tuple[int, int], ties: bool) -> None:
    matrix = complex_gaussian(*shape, seed=seed)
    if ties:
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        matrix = left @ right
    expected = np.linalg.svd(matrix.numpy(), compute_uv=False)
    U, S, V = truncated_svd(matrix)
    identity = torch.eye(len(S), dtype=torch.complex128)
    assert S.dtype == torch.float64
    assert np.allclose(S.numpy(), expected, atol=1e-12)
    assert np.allclose(singular_values(matrix).numpy(), expected, atol=1e-12)
    torch.testing.assert_close((U * S) @ V, matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(U.mH @ U, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(V @ V.mH, identity, rtol=0, atol=1e-12)
    rows = U.abs().argmax(0)
    assert all(abs(float(U[row, column].imag)) < 1e-12 for column, row in enumerate(rows.tolist()))
    assert norm(matrix) == pytest.approx(float(np.linalg.norm(matrix.numpy())), rel=1e-14)


@pytest.mark.parametrize("cut", SEVEN)
def test_a_cut_is_the_best_of_its_rank(cut: str) -> None:
    left = cut.partition(" | ")[0]
    values = np.linalg.svd(unfolding(KERNEL, "out in kh kw", left), compute_uv=False)
    spectrum = next(item for item in tn.spectra(KERNEL) if str(item.cut) == cut)
    assert np.allclose(spectrum.singular_values.numpy(), values, atol=1e-7)
    for rank in range(1, len(values) + 1):
        fit = tn.cut(cut).apply(KERNEL, rank)
        best = float(np.sqrt((values[rank:] ** 2).sum() / (values**2).sum()))
        assert fit.relative_error == pytest.approx(best, abs=1e-12)
        assert fit.trace.steps[0].relative_error == pytest.approx(best, abs=1e-12)


def test_single_precision_stays_single() -> None:
    fit = tn.rules()["tucker2"].apply(KERNEL.to(torch.complex64), {"a": 3, "b": 3})
    assert {value.dtype for value in fit.values.values()} == {torch.complex64}
    double = tn.rules()["tucker2"].apply(KERNEL, {"a": 3, "b": 3})
    assert fit.relative_error == pytest.approx(double.relative_error, abs=1e-6)


def test_a_real_kernel_beside_a_complex_basis_has_complex_cores() -> None:
    """In the basis of the discrete Fourier transform a circulant matrix has as many values as rows."""
    basis = torch.fft.fft(torch.eye(6, dtype=torch.complex128), norm="ortho")
    circulant = torch.stack([torch.arange(6.0, dtype=torch.float64).roll(shift) for shift in range(6)])
    fit = tn.rule("K[o i] => F[p o] D[p] G[p i]").apply(circulant, fixed={"F": basis.conj(), "G": basis})
    assert fit.relative_error < 1e-13
    expected = np.fft.fft(circulant[:, 0].numpy())
    assert np.allclose(fit.values["D"].numpy(), expected) or np.allclose(fit.values["D"].numpy(), expected.conj())
    again = tn.decompositions.read_trace(fit.trace.to_json()).replay(fit.trace.replay({"K": circulant}).start_values)
    assert torch.equal(again.values["D"], fit.values["D"])


@pytest.mark.parametrize("step", ["truncate", "drop", "correct", "ring"])
def test_steps_on_complex_cores_claim_what_is_measured(step: str) -> None:
    name, size = ("tensor_ring", 3) if step == "ring" else ("cp", 4)
    fit = tn.rules()[name].apply(KERNEL, size, starts=2, sweeps=20)
    rules = {
        "truncate": (truncate("r"), 2),
        "drop": (tn.decompositions.drop_components("r"), 2),
        "correct": (tn.decompositions.correct_degeneracy(0.05), None),
        "ring": (truncate("p"), 2),
    }
    rule, rank = rules[step]
    after = rule.apply(fit.network, rank, values=fit.values)
    before = evaluate(fit.network, fit.values)
    true = float((evaluate(after.network, after.values) - before).norm() / before.norm())
    assert after.trace.steps[-1].relative_error == pytest.approx(true, abs=1e-10)
    assert 0 < true < 1


def test_mode_vectors_and_the_core_give_the_kernel() -> None:
    whole = tn.spectra(KERNEL).hosvd()
    axes = ["out", "in", "kh", "kw"]
    operands = [whole.core.numpy(), [0, 1, 2, 3]]
    for axis, label in enumerate(axes):
        operands += [whole.factors[label].resolve_conj().numpy(), [axis + 4, axis]]
    assert np.allclose(np.einsum(*operands, [4, 5, 6, 7]), KERNEL.numpy(), atol=1e-12)


# Physics -----------------------------------------------------------------------------------------------------------


def test_a_state_comes_from_quimb_is_truncated_and_goes_back() -> None:
    state = qtn.MPS_rand_state(8, 6, dtype="complex128", seed=3)
    network, values = from_quimb(state)
    assert np.allclose(evaluate(network, values).numpy().ravel(), state.to_dense().ravel(), atol=1e-14)
    back = to_quimb(network, values)
    assert abs(back.H @ back - 1) < 1e-12
    again, same = from_quimb(back, like=network)
    assert again == network
    assert all(torch.equal(same[name], value) for name, value in values.items())
    bond = next(label for label in network.nodes[3].labels if label in network.nodes[4].labels)
    fit = truncate(bond).apply(network, 3, values=values)
    schmidt = state.schmidt_values(4) ** 0.5
    assert fit.relative_error == pytest.approx(float(np.sqrt((schmidt[3:] ** 2).sum())), abs=1e-10)


def test_a_ground_state_of_a_complex_hamiltonian_as_a_train() -> None:
    """Spins in a ring with a flux through it; the energy of a train of full rank is the energy."""
    hamiltonian = np.asarray(qu.ham_heis(6, cyclic=True, sparse=False)) + 0.3 * np.asarray(
        sum(
            qu.ikron([qu.pauli("X"), qu.pauli("Y")], [2] * 6, [i, (i + 1) % 6])
            - qu.ikron([qu.pauli("Y"), qu.pauli("X")], [2] * 6, [i, (i + 1) % 6])
            for i in range(6)
        )
    )
    energies, vectors = np.linalg.eigh(hamiltonian)
    phase = np.exp(0.7j)
    state = torch.from_numpy(phase * vectors[:, 0]).reshape([2] * 6)
    assert state.imag.abs().max() > 0.1
    train = tn.rule("K[a b c d e f] => A[a p] B[p b q] C[q c r] D[r d s] E[s e t] F[t f]")
    fit = train.apply(state, "error 1e-12")
    held = to_quimb(fit.network, fit.values)
    dense = held.to_dense(["a", "b", "c", "d", "e", "f"]).numpy().ravel()
    assert fit.relative_error < 1e-10
    assert float((dense.conj() @ hamiltonian @ dense).real) == pytest.approx(energies[0], abs=1e-9)
    rough = train.apply(state, 2)
    assert 0 < rough.relative_error < 1
    overlap = abs(np.vdot(state.numpy(), rough.dense().numpy()))
    assert overlap == pytest.approx(1 - rough.relative_error**2, rel=1e-6)  # it is a projection of the state


# Refused -----------------------------------------------------------------------------------------------------------


def test_a_layer_is_real() -> None:
    linear = torch.nn.Linear(6, 8).double()
    fit = tn.cut("out | in").apply(complex_gaussian(8, 6), 3)
    with refused(LayerError, "'L'", "complex", "float64"):
        tn.nn.Linear.from_linear(linear, fit)
    with refused(LayerError, "complex", "'A'"):
        tn.nn.Linear.from_linear(linear, "K[o i] => A[o r] B[r i]", 6, fixed={"A": complex_gaussian(8, 6)})


def test_a_mean_over_windows_of_complex_numbers_is_a_convolution_as_torch_has_no_pooling_of_them() -> None:
    notation = "X[c x] Conv[x y k | stride=2] Fill[k:2 | value=mean] W[c d] -> [d y]"
    x, weight = complex_gaussian(3, 8), complex_gaussian(3, 2)
    module = tn.compile(notation, inputs={"X": (3, 8)}, values={"W": weight}, tune=False)
    torch.testing.assert_close(module(x), tn.evaluate(tn.parse(notation), {"X": x, "W": weight}))


def test_a_real_input_beside_complex_weights_is_refused() -> None:
    module = tn.compile("X[n i] W[i o] -> [n o]", inputs={"X": (4, 3)}, values={"W": complex_gaussian(3, 2)})
    with refused(CompileError, "'X' is torch.float64", "torch.complex128"):
        module(torch.ones(4, 3, dtype=torch.float64))


def test_operators_are_real_maps() -> None:
    network = tn.parse("X[c x] Conv[x y k | mode=circular padding=1] K[d c k] -> [d y]")
    values = {"K": complex_gaussian(3, 3, 3)}
    for compute in (
        lambda: tn.operator_spectra(network, 8, values=values),
        lambda: tn.orthogonality(network, values=values),
        lambda: tn.lipschitz_bound(network, values=values),
        lambda: tn.solve(network, torch.ones(3, 8), values=values),
    ):
        with refused(ValuesError, "'K' is complex"):
            compute()


def test_infinite_imaginary_parts_are_refused() -> None:
    with refused(ValuesError, "'K'", "NaN or infinity", "1 of 2"):
        evaluate(tn.parse("K[a]"), {"K": torch.tensor([1.0, complex(0, float("inf"))])})
