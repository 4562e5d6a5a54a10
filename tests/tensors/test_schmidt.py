"""Singular values of networks across cuts and bonds, without their dense values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import quimb.tensor as qtn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tnalgebra as tn
from tests.refusals import refused
from tests.strategies import valued_networks, valued_sums
from tnalgebra.errors import LayerError, NetworkError, RuleError, ValuesError
from tnalgebra.networks import Bipartition, Network, parse
from tnalgebra.tensors import cut_of_bond, evaluate, from_quimb, magnitude, network_singular_values


def dense_values(network: Network, values: dict[str, Tensor], left: tuple[str, ...]) -> Any:
    """The singular values of the dense matrix, by numpy."""
    dense = evaluate(network, values).numpy()
    axes = [network.output.index(label) for label in left]
    rest = [axis for axis in range(dense.ndim) if axis not in axes]
    rows = math.prod(dense.shape[axis] for axis in axes)
    return np.linalg.svd(dense.transpose(axes + rest).reshape(rows, -1), compute_uv=False)


@settings(max_examples=settings().max_examples // 2)
@given(st.data(), st.booleans(), st.integers(0, 2**32 - 1))
def test_any_network_across_any_cut(data: st.DataObject, is_complex: bool, seed: int) -> None:
    """Hyperedges, diagonals, windows, ties, parts that nothing joins, and sums, too."""
    either = valued_networks() | valued_sums(max_nodes=3)
    network, values = data.draw(either.filter(lambda drawn: len(drawn[0].output) >= 2))
    if is_complex:
        generator = torch.Generator().manual_seed(seed)
        values = {n: v * torch.randn(v.shape, dtype=torch.complex128, generator=generator) for n, v in values.items()}
    left = tuple(
        sorted(data.draw(st.sets(st.sampled_from(network.output), min_size=1, max_size=len(network.output) - 1)))
    )
    cut = Bipartition(left, tuple(label for label in network.output if label not in left))
    found = network_singular_values(network, values, cut).numpy()
    expected = dense_values(network, values, left)
    scale = float(magnitude(network, values).norm())
    shorter = min(len(found), len(expected))
    assert np.allclose(found[:shorter], expected[:shorter], rtol=0, atol=1e-12 * scale)
    assert np.all(expected[shorter:] <= 1e-12 * scale)
    assert np.all(found[shorter:] <= 1e-12 * scale)


def chain(sites: int, bond: int, dtype: str = "complex128") -> tuple[Network, dict[str, Tensor], Any, list[str]]:
    state = qtn.MPS_rand_state(sites, bond, dtype=dtype, seed=5)
    network, values = from_quimb(state)
    bonds = [state.bond(site, site + 1) for site in range(sites - 1)]
    names = [
        next(label for label in network.nodes[site].labels if label in network.nodes[site + 1].labels)
        for site in range(sites - 1)
    ]
    assert len(bonds) == len(names)
    return network, values, state, names


@pytest.mark.parametrize("dtype", ["complex128", "float64"])
def test_one_bond_of_a_state_of_100_sites(dtype: str) -> None:
    network, values, state, bonds = chain(100, 8, dtype)
    spectra = tn.spectra(network, values=values, cuts=[bonds[0], bonds[49], bonds[98]])
    for site, spectrum in zip((1, 50, 99), spectra, strict=True):
        schmidt = np.sort(state.schmidt_values(site))[::-1]
        assert np.allclose(spectrum.singular_values.numpy() ** 2, schmidt, rtol=0, atol=1e-12)
        assert spectrum.entropy == pytest.approx(state.entropy(site) * math.log(2), abs=1e-10)
        assert len(spectrum.cut.left) == site
    assert bonds[49] in str(spectra)
    assert f"{spectra[1].entropy:.2f}" in str(spectra)
    assert spectra.to_pandas()["cut"].unique().tolist() == [bonds[0], bonds[49], bonds[98]]


def test_a_block_in_the_middle_of_a_long_state() -> None:
    network, values, state, _ = chain(60, 3)
    block = network.output[30:33]
    cut = Bipartition(block, tuple(label for label in network.output if label not in block))
    found = network_singular_values(network, values, cut)
    # the reduced density matrix of the block
    open_sites = {f"k{site}": f"b{site}" for site in range(30, 33)}
    reduced = (state.H.reindex(open_sites) & state).contract(output_inds=[*open_sites, *open_sites.values()]).data
    expected = np.sqrt(np.clip(np.linalg.eigvalsh(reduced.reshape(8, 8))[::-1], 0, None))
    assert np.allclose(found.numpy()[: len(expected)], expected[: len(found)], rtol=0, atol=1e-7)


def test_norms_far_from_one_are_followed() -> None:
    network, values, _, bonds = chain(40, 4)
    plain = tn.spectra(network, values=values, cuts=[bonds[20]])[0]
    large = tn.spectra(network, values={name: value * 1e7 for name, value in values.items()}, cuts=[bonds[20]])[0]
    torch.testing.assert_close(large.singular_values, plain.singular_values * 1e280, rtol=1e-10, atol=0)
    assert large.entropy == pytest.approx(plain.entropy, abs=1e-10)
    with refused(ValuesError, "beyond float64"):
        tn.spectra(network, values={name: value * 1e9 for name, value in values.items()}, cuts=[bonds[20]])
    zeros = tn.spectra(network, values={name: value * 0 for name, value in values.items()}, cuts=[bonds[20]])[0]
    assert zeros.entropy == 0


def test_cuts_of_a_fit_a_tree_and_a_model() -> None:
    kernel = torch.randn(6, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fit = tn.rules()["tucker2"].apply(kernel, {"a": 3, "b": 2})
    by_bond, by_text = tn.spectra(fit, cuts=["a", "out | in kh kw"])
    torch.testing.assert_close(by_bond.singular_values, by_text.singular_values)
    assert (by_bond.bond, by_text.bond) == ("a", None)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 5))
    whole = tn.spectra(model)
    some = tn.spectra(model, cuts=["out kh | in kw", "out | in"])
    assert [(item.layer, str(item.cut)) for item in some] == [("0", "out kh | in kw"), ("1", "out | in")]
    for item in some:
        same = next(other for other in whole if (other.layer, str(other.cut)) == (item.layer, str(item.cut)))
        assert torch.equal(item.singular_values, same.singular_values)


RING = parse("A[z:2 a:3 p:2] B[p b:4 q:2] C[q c:5 z]")


@pytest.mark.parametrize(
    ("network", "cut", "error", "facts"),
    [
        (RING, "p", NetworkError, ["'p'", "loop"]),
        (RING, "x", NetworkError, ["'x'", "z p q"]),
        (RING, "a", NetworkError, ["'a'"]),
        (RING, "a | b", RuleError, ["'c'", "missing"]),
        (RING, "a | b c d", RuleError, ["'d'"]),
        (parse("A[a:2 r:2] B[b:2 r] C[c:2 r]"), "r", NetworkError, ["'r'", "3 nodes"]),
        (parse("A[a:2 b:2 r:2] B[r]"), "r", NetworkError, ["'r'", "no open label"]),
    ],
)
def test_what_does_not_cut_a_network_in_two(network: Network, cut: str, error: Any, facts: list[str]) -> None:
    values = {
        node.name: torch.ones([network.sizes[label] for label in node.labels], dtype=torch.float64)
        for node in network.nodes
    }
    with refused(error, *facts):
        tn.spectra(network, values=values, cuts=[cut])


def test_cuts_are_a_list_of_cuts_of_some_kernel() -> None:
    weight = torch.ones(3, 4)
    with refused(RuleError, "'out | in'", "a list"):
        tn.spectra(weight, cuts="out | in")
    with refused(RuleError, "'out | kh'"):
        tn.spectra(weight, cuts=["out | in", "out | kh"])
    network, values, _, bonds = chain(30, 2)
    with refused(LayerError, "no layer"):
        tn.spectra(network, values=values, cuts=[bonds[0]]).hosvd()
    with refused(NetworkError, "30 output labels", "cuts="):
        tn.spectra(network, values=values)


def test_the_cut_of_a_bond_has_the_labels_of_both_sides() -> None:
    assert str(cut_of_bond(parse("A[a p] B[p b q] C[q c d]"), "q")) == "a b | c d"
    assert str(cut_of_bond(parse("A[a p] B[p b q] C[q c d] -> [d a c b]"), "q")) == "a b | d c"
