"""Bonds of any network cut down: components against loops over them, fits against their starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernel_cases import check_claim, gaussian, values_of
from tests.refusals import refused
from tests.strategies import random_values, valued_networks
from tnalgebra.decompositions import check_bonds, drop_components, load_trace, truncate
from tnalgebra.errors import NetworkError, RankError, RuleError, TnalgebraError
from tnalgebra.fitting import KeepFraction, ParameterBudget, Rank, RelativeError
from tnalgebra.networks import NamedTensor, Network, carriers, parse
from tnalgebra.rewriting import rule
from tnalgebra.tensors import evaluate, magnitude, relative

LOOPS = {
    "ring": ("A[z:4 o:5 p:4] B[p i:4 q:4] C[q h:3 z]", {"p": 2, "q": 2, "z": 2}),
    "one bond of a ring": ("A[z:4 o:5 p:4] B[p i:4 q:4] C[q h:3 z]", {"q": 3}),
    "CP": ("A[o:6 r:7] B[i:5 r] C[h:3 r] -> [o i h]", {"r": 3}),
    "block term": ("U[o:6 a:3 t:3] G[a b:3 h:4 t] V[b i:5 t] -> [o i h]", {"a": 2, "b": 2, "t": 2}),
    "batch label": ("A[g:3 o:4 b:4] B[g b i:5] -> [g o i]", {"b": 2}),
    "parallel bonds": ("A[o:6 b:3 c:2] B[b c i:7]", {"b": 2, "c": 1}),
    "tied": ("A[o:5 b:4] A[i b] -> [o i]", {"b": 2}),
    "split label": ("Fuse[o:6 o1:3 o2] A[o1 b:3] B[b o2 i:5 c:4] C[c h:4] -> [o i h]", {"b": 2, "c": 2}),
    "pattern": ("A[x:6 b:4] B[b i:5] Conv[x y k:3] -> [y k i]", {"b": 2}),
    "closed label on one tensor": ("A[o:4 b:3] B[b i:5 x:3] -> [o i]", {"x": 1, "b": 2}),
}


def closed(network: Network) -> list[str]:
    """Bonds whose values can be chosen."""
    found = []
    for label in carriers(network):
        try:
            check_bonds(network, [label])
        except RuleError:
            continue
        found.append(label)
    return found


def held(network: Network, values: dict[str, Tensor], bond: str, indices: list[int]) -> dict[str, Tensor]:
    """Some values of a bond, in every tensor that has it."""
    chosen = dict(values)
    for name, labels in {node.name: node.labels for node in network.nodes if isinstance(node, NamedTensor)}.items():
        for axis in (axis for axis, label in enumerate(labels) if label == bond):
            chosen[name] = chosen[name].index_select(axis, torch.tensor(indices))
    return chosen


def components(network: Network, values: dict[str, Tensor], bond: str) -> Tensor:
    """One after another, dense."""
    small = Network(network.nodes, network.output, {**network.sizes, bond: 1})
    return torch.stack([evaluate(small, held(network, values, bond, [n])) for n in range(network.sizes[bond])])


@given(valued_networks(max_nodes=4), st.data())
def test_the_largest_components_stay_as_they_are(
    example: tuple[Network, dict[str, Tensor]], data: st.DataObject
) -> None:
    network, values = example
    assume(closed(network))
    bond = data.draw(st.sampled_from(closed(network)))
    size = network.sizes[bond]
    rank = data.draw(st.integers(1, size))
    dense = components(network, values, bond)
    norms = dense.reshape(size, -1).norm(dim=1)
    kept = set(norms.sort(descending=True, stable=True).indices[:rank].tolist())
    gap = float(norms.sort(descending=True).values[rank - 1 : rank + 1].diff().abs().sum()) if rank < size else 1.0
    assume(gap > 1e-6 * float(norms.max()))  # of two equal ones, either may stay
    fit = drop_components(bond).apply(network, rank, values=values)
    assert fit.network.sizes[bond] == rank
    expected = held(network, values, bond, sorted(kept))
    there = {network.nodes[position].name for position in fit.trace.steps[0].place.nodes}
    for name, value in fit.values.items():
        assert torch.equal(value, expected[name] if name in there else values[name])
    whole = evaluate(network, values)
    rounding = 1e-12 * float(magnitude(network, values).norm())
    missing = float((whole - fit.dense()).norm())
    if len(fit.trace.steps[0].place.nodes) == len(network.nodes):
        assert fit.trace.steps[0].relative_error * float(whole.norm()) == pytest.approx(missing, rel=1e-6, abs=rounding)


def test_dropped_components_of_a_saved_trace(tmp_path: Path) -> None:
    text = "A[o:6 r:7] B[i:5 r] C[h:3 r] -> [o i h]"
    network, values = parse(text), values_of(text)
    fit = drop_components("r").apply(network, RelativeError(0.6), values=values)
    fit.trace.check(values)
    fit.trace.save(tmp_path / "trace.json")
    again = load_trace(tmp_path / "trace.json").replay(values)
    assert all(torch.equal(again.values[name], value) for name, value in fit.values.items())


def test_ranks_of_dropped_components() -> None:
    text = "A[o:6 r:7] B[i:5 r] C[h:3 r] -> [o i h]"
    network, values = parse(text), values_of(text)
    dense = components(network, values, "r")
    order = dense.flatten(1).norm(dim=1).argsort(descending=True)
    errors = [relative(dense[order[rank:]].sum(0), dense.sum(0)) for rank in range(1, 8)]
    entry = drop_components("r")
    for rank in range(1, 8):
        fit = entry.apply(network, rank, values=values)
        check_claim(fit)
        assert fit.relative_error == pytest.approx(errors[rank - 1], abs=1e-12)
    assert entry.apply(network, KeepFraction(0.5), values=values).network.sizes["r"] == 4
    for bound in (0.9, 0.6, 0.3, 0.0):
        wanted = next(rank for rank, error in enumerate(errors, 1) if error <= bound + 1e-12)
        assert entry.apply(network, RelativeError(bound), values=values).network.sizes["r"] == wanted
    for fraction in (0.2, 0.5, 0.99, 1):
        fit = entry.apply(network, ParameterBudget(fraction), values=values)
        assert fit.network.sizes["r"] == int(fraction * network.parameters) // 14
    with refused(RankError, "9", "14"):
        entry.apply(network, ParameterBudget(0.1), values=values)


def test_components_of_networks_too_large_to_be_dense() -> None:
    """CP of order 16: 3^16 elements in units of 43 million; its components are products of vectors."""
    count, size, rank = 16, 3, 5
    nodes = [NamedTensor(f"A{n}", (f"x{n}", "r")) for n in range(count)]
    network = Network(nodes, [f"x{n}" for n in range(count)], {"r": rank, **{f"x{n}": size for n in range(count)}})
    values = {f"A{n}": gaussian(size, rank, seed=n) for n in range(count)}
    entry = drop_components("r")
    fit = entry.apply(network, 3, values=values)
    gram = torch.ones(rank, rank, dtype=torch.float64)
    for value in values.values():
        gram = gram * (value.mT @ value)
    dropped = gram.diagonal().argsort(descending=True)[3:]
    expected = (gram[dropped][:, dropped].sum() / gram.sum()).sqrt()
    assert fit.trace.steps[0].relative_error == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("case", LOOPS)
def test_bonds_of_loops_and_hyperedges(case: str, tmp_path: Path) -> None:
    text, ranks = LOOPS[case]
    network, values = parse(text), values_of(text)
    entry = truncate(" ".join(ranks))
    begun = entry.apply(network, ranks, values=values, sweeps=0)
    fit = entry.apply(network, ranks, values=values, sweeps=15)
    for each in (begun, fit):
        check_claim(each)
        assert each.report is not None
        assert {bond: each.network.sizes[bond] for bond in ranks} == ranks == each.trace.steps[0].change.ranks
        assert [(n.name, n.labels) for n in each.network.nodes] == [(n.name, n.labels) for n in network.nodes]
    assert fit.relative_error <= begun.relative_error * (1 + 1e-9) + 1e-12
    fit.trace.check(values)
    fit.trace.save(tmp_path / "trace.json")
    again = load_trace(tmp_path / "trace.json").replay(values)
    assert all(torch.equal(again.values[name], value) for name, value in fit.values.items())


@st.composite
def tangles(draw: st.DrawFn) -> tuple[Network, dict[str, Tensor]]:
    """Named tensors with bonds on one to all of them, one open label each and one that some share; some tied."""
    count = draw(st.integers(2, 3))
    labels = [[f"x{number}"] for number in range(count)]
    sizes = {f"x{number}": draw(st.sampled_from((2, 3))) for number in range(count)}
    for number in range(draw(st.integers(1, 3))):
        sizes[f"b{number}"] = draw(st.sampled_from((2, 3)))
        for carrier in draw(st.sets(st.integers(0, count - 1), min_size=1)):
            labels[carrier].append(f"b{number}")
    output = [f"x{number}" for number in range(count)]
    if draw(st.booleans()):
        sizes["y"] = 2
        output.append("y")
        for carrier in draw(st.sets(st.integers(0, count - 1), min_size=1)):
            labels[carrier].append("y")
    nodes = [NamedTensor(f"T{number}", tuple(draw(st.permutations(own)))) for number, own in enumerate(labels)]
    if draw(st.integers(0, 3)) == 3:  # one of them once more
        twin = nodes[draw(st.integers(0, count - 1))]
        own = tuple("z" if label.startswith("x") else label for label in twin.labels)
        nodes.append(NamedTensor(twin.name, own))
        sizes["z"] = next(sizes[label] for label in twin.labels if label.startswith("x"))
        output.append("z")
    network = Network(nodes, [label for label in output if any(label in node.labels for node in nodes)], sizes)
    return network, random_values(network, draw(st.integers(0, 2**32 - 1)))


@settings(max_examples=100)
@given(tangles(), st.data())
def test_no_rounding_is_worse_than_its_start(example: tuple[Network, dict[str, Tensor]], data: st.DataObject) -> None:
    network, values = example
    bonds = data.draw(st.permutations(closed(network)))[: data.draw(st.integers(1, 2))]
    ranks = {bond: data.draw(st.integers(1, network.sizes[bond])) for bond in bonds}
    entry = truncate(" ".join(bonds))
    try:
        fit = entry.apply(network, ranks, values=values, sweeps=4)
    except RankError:  # more than the bond can use
        entry.apply(network, dict.fromkeys(bonds, 1), values=values, sweeps=0)
        return
    begun = entry.apply(network, ranks, values=values, sweeps=0)
    before, after = (each.trace.steps[0].relative_error for each in (begun, fit))
    assert after <= before * (1 + 1e-6) + 1e-10
    if len(fit.trace.steps[0].place.nodes) == len(network.nodes) and evaluate(network, values).abs().max() > 1e-9:
        check_claim(fit)


def test_bonds_as_large_as_they_are_lose_nothing() -> None:
    for text, ranks in LOOPS.values():
        network, values = parse(text), values_of(text)
        fit = truncate(" ".join(ranks)).apply(network, {bond: network.sizes[bond] for bond in ranks}, values=values)
        assert fit.relative_error < 1e-12


def test_a_ring_of_low_rank_in_a_bad_gauge_is_found_again() -> None:
    """A ring of rank 2 whose bonds were blown up to 4 by random matrices: nothing need be lost."""
    small = values_of("A[z:2 o:6 p:2] B[p i:5 q:2] C[q h:4 z]")
    mix = {bond: gaussian(2, 4, seed=n) for n, bond in enumerate("zpq")}
    back = {bond: torch.linalg.pinv(matrix) for bond, matrix in mix.items()}
    values = {
        "A": torch.einsum("zop,zx,py->xoy", small["A"], back["z"].mT, mix["p"]),
        "B": torch.einsum("piq,py,qx->yix", small["B"], back["p"].mT, mix["q"]),
        "C": torch.einsum("qhz,qx,zy->xhy", small["C"], back["q"].mT, mix["z"]),
    }
    fit = truncate("z p q").apply(parse("A[z o p] B[p i q] C[q h z]"), dict.fromkeys("zpq", 2), values=values)
    assert fit.relative_error < 1e-8


def test_batched_bonds_reach_the_batched_svd() -> None:
    """One bond, one SVD for each value of the batch label: the descent ends there."""
    text = "A[g:3 o:4 b:4] B[g b i:5] -> [g o i]"
    values = values_of(text)
    fit = truncate("b").apply(parse(text), 2, values=values)
    dense = evaluate(parse(text), values)
    tails = torch.linalg.svdvals(dense)[:, 2:]
    assert fit.relative_error == pytest.approx(float(tails.norm() / dense.norm()), rel=1e-3)


@pytest.mark.parametrize("case", ["ring", "CP", "block term", "parallel bonds"])
@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_a_budget_for_all_bonds_named(case: str, fraction: float) -> None:
    text, ranks = LOOPS[case]
    network, values = parse(text), values_of(text)
    fit = truncate(" ".join(ranks)).apply(network, ParameterBudget(fraction), values=values, sweeps=5)
    check_claim(fit)
    assert fit.parameters <= fraction * network.parameters
    for bond in ranks:
        assert fit.network.sizes[bond] <= network.sizes[bond]
    if case == "CP":
        one_more = Network(network.nodes, network.output, {**fit.network.sizes, "r": fit.network.sizes["r"] + 1})
        assert one_more.parameters > fraction * network.parameters


def test_cp_is_cut_down_from_one_fit_to_the_next() -> None:
    """What the paper does to CP besides fitting it anew: the truncated one is never worse than dropping alone."""
    kernel = gaussian(6, 5, 3, 3)
    cp = rule("K[o i h w] => A[o r] B[i r] C[h r] D[w r]").apply({"K": kernel}, 12, sweeps=30)
    dropped, truncated = (
        cp.then(entry, 6).trace.steps[1].relative_error for entry in (drop_components("r"), truncate("r"))
    )
    assert truncated < dropped


@pytest.mark.parametrize(
    ("text", "bond", "rank", "error", "facts"),
    [
        ("A[i:3 r:2] B[r j:4] C[r k:2] -> [i j k]", "r", {"r": 3}, RankError, "rank 3;'r';1 to 2"),
        ("A[i:3 r:2] B[r j:4]", "r", {}, RankError, "'r'"),
        ("A[i:3 r:2] B[r j:4]", "i", 1, RuleError, "'i';open"),
        ("A[i:3 r:2] B[r j:4]", "x", 1, RuleError, "'x'"),
        ("A[i:3 r:2] B[r j:4]", "a b", 1, NetworkError, "'a b'"),
        ("A[i:3 r:2] Fill[r | value=1] B[r j:4] -> [i j]", "r", 1, RuleError, "Fill[r | value=1]"),
    ],
)
def test_what_dropping_components_refuses(
    text: str, bond: str, rank: Rank | dict[str, Rank], error: type[TnalgebraError], facts: str
) -> None:
    with refused(error, *facts.split(";")):
        drop_components(bond).apply(parse(text), rank, values=values_of(text))


def test_what_has_no_values_no_bonds_or_no_singular_values() -> None:
    with refused(RuleError, "'A'"):
        drop_components("r").apply(parse("A[i:3 r:2] B[r j:4]"), 1)
    with refused(RuleError, "'a'", "one number"):
        truncate("a").apply(parse("A[a:3 b:2] B[a b] -> []"), 1, values=values_of("A[a:3 b:2] B[a b] -> []"))
    text, _ = LOOPS["CP"]
    for rank in (KeepFraction(0.5), RelativeError(0.1)):
        with refused(RankError, "'r'", "singular values"):
            truncate("r").apply(parse(text), rank, values=values_of(text))
