"""Truncating a bond of a tree is the singular value decomposition across it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernel_cases import check_claim, gaussian, tail, unfolding, values_of
from tests.refusals import refused
from tests.strategies import random_values
from tnalgebra.decompositions import truncate
from tnalgebra.errors import NetworkError, RankError, RuleError, TnalgebraError
from tnalgebra.fitting import KeepFraction, ParameterBudget, Rank, RelativeError
from tnalgebra.networks import NamedTensor, Network, Node, carriers, parse
from tnalgebra.rewriting import Fit, Options, Trace
from tnalgebra.tensors import evaluate, magnitude


@st.composite
def trees(draw: st.DrawFn) -> tuple[Network, dict[str, Tensor]]:
    """A random tree of named tensors, each with 0 to 2 open labels, whose bonds may be larger than they need be."""
    count = draw(st.integers(2, 5))
    labels: list[list[str]] = [[] for _ in range(count)]
    sizes: dict[str, int] = {}
    for number in range(1, count):
        bond = f"b{number}"
        sizes[bond] = draw(st.integers(1, 4))
        labels[number].append(bond)
        labels[draw(st.integers(0, number - 1))].append(bond)
    for number in range(count):
        for place in range(draw(st.integers(0, 2))):
            label = f"x{number}{place}"
            sizes[label] = draw(st.sampled_from((2, 3, 1)))
            labels[number].append(label)
    nodes: list[Node] = [
        NamedTensor(f"T{number}", tuple(draw(st.permutations(own)))) for number, own in enumerate(labels)
    ]
    output = draw(st.permutations([label for label in sizes if label.startswith("x")]))
    network = Network(draw(st.permutations(nodes)), output, sizes)
    return network, random_values(network, draw(st.integers(0, 2**32 - 1)))


def sides_of(network: Network, bond: str) -> Iterator[tuple[Network, str]]:
    """The two parts a bond joins, each as a network whose first open label is the bond, and its open labels."""
    for start, _ in carriers(network)[bond]:
        inside, pending = {start}, [start]
        while pending:
            for label in network.nodes[pending.pop()].labels:
                for position, _ in carriers(network)[label]:
                    if label != bond and position not in inside:
                        inside.add(position)
                        pending.append(position)
        nodes = [network.nodes[position] for position in sorted(inside)]
        there = {label for node in nodes for label in node.labels}
        rows = [label for label in network.output if label in there]
        yield Network(nodes, [bond, *rows], {label: network.sizes[label] for label in there}), " ".join(rows)


@given(trees(), st.data())
def test_a_truncated_bond_is_the_svd_across_it(example: tuple[Network, dict[str, Tensor]], data: st.DataObject) -> None:
    network, values = example
    bond = data.draw(st.sampled_from([label for label in carriers(network) if label.startswith("b")]))
    rank = data.draw(st.one_of(st.just(1), st.just(KeepFraction(0.5)), st.just(RelativeError(0.3))))
    fit = truncate(bond).apply(network, {bond: rank}, values=values)
    dense = evaluate(network, values)
    _, rows = next(sides_of(network, bond))
    matrix = unfolding(dense, " ".join(network.output), rows)
    chosen = fit.trace.steps[0].change.ranks[bond]
    assert fit.network.sizes[bond] == chosen
    check_claim(fit)
    assert fit.relative_error == pytest.approx(tail(matrix, chosen), rel=1e-6, abs=1e-9)
    assert [(node.name, node.labels) for node in fit.network.nodes] == [(n.name, n.labels) for n in network.nodes]
    assert all(size <= network.sizes[label] for label, size in fit.network.sizes.items())
    grams = []
    for part, _ in sides_of(fit.network, bond):
        flat = evaluate(part, {name: fit.values[name] for name in (node.name for node in part.nodes)}).reshape(
            chosen, -1
        )
        grams.append(flat @ flat.mT)
    scale = float(torch.linalg.vector_norm(dense)) + 1
    singular = torch.from_numpy(np.linalg.svd(matrix, compute_uv=False)[:chosen].copy())
    for gram in grams:  # both sides meet in the square roots of the singular values
        torch.testing.assert_close(gram, torch.diag(singular), rtol=0, atol=1e-9 * scale)


@given(trees())
def test_a_bond_of_full_rank_loses_nothing(example: tuple[Network, dict[str, Tensor]]) -> None:
    network, values = example
    fit = Fit(network, values, Trace(network, ()))
    for bond in [label for label in carriers(network) if label.startswith("b")]:
        fit = fit.then(truncate(bond), KeepFraction(1))
    dense = evaluate(network, values)
    assert ((fit.dense() - dense).abs() <= 1e-11 * magnitude(network, values).max()).all()


def test_truncating_leaves_what_does_not_hang_together_with_the_bond() -> None:
    """Hyperedges, ties, loops and reserved nodes are no hindrance elsewhere."""
    text = "A[i:4 b:3] B[b j:5] C[r:2 x:3] D[r y:2] E[r] F[z:2 z] F[u:2 v:2] Conv[p:5 q k:2] -> [i j x y u v q]"
    values = values_of(text)
    fit = truncate("b").apply(parse(text), 2, values=values)
    assert {name for name in values if not torch.equal(values[name], fit.values[name])} == {"A", "B"}
    check_claim(fit)
    assert fit.trace.steps[0].relative_error == pytest.approx(tail((values["A"] @ values["B"]).numpy(), 2))
    fit.trace.check(values)


def test_a_long_train_is_cut_down_bond_by_bond() -> None:
    text = "A[i:4 b:4] B[b j:5 c:9] C[c k:3 d:6] D[d l:6] -> [i j k l]"
    values = values_of(text)
    fit = truncate("c").apply(parse(text), 9, values=values)
    fit = fit.then(truncate("b"), 2).then(truncate("d"), 3)
    assert str(fit.network) == "A[i:4 b:2] B[b j:5 c:9] C[c k:3 d:3] D[d l:6]"
    first, *rest = [step.relative_error for step in fit.trace.steps]
    assert first < 1e-12
    assert max(rest) * 0.5 < fit.relative_error < math.hypot(*rest) * 1.0001


@given(trees(), st.data())
def test_several_bonds_of_a_tree(example: tuple[Network, dict[str, Tensor]], data: st.DataObject) -> None:
    """Within the tails of the bonds together, each of which is a lower bound."""
    network, values = example
    bonds = data.draw(st.permutations([label for label in carriers(network) if label.startswith("b")]))
    bonds = bonds[: data.draw(st.integers(1, len(bonds)))]
    dense = evaluate(network, values)
    matrices = {bond: unfolding(dense, " ".join(network.output), next(sides_of(network, bond))[1]) for bond in bonds}
    rank = data.draw(st.sampled_from((1, KeepFraction(0.5), RelativeError(0.3))))
    fit = truncate(" ".join(bonds)).apply(network, dict.fromkeys(bonds, rank), values=values)
    check_claim(fit)
    assert [(node.name, node.labels) for node in fit.network.nodes] == [(n.name, n.labels) for n in network.nodes]
    if not dense.any():
        return
    ranks = fit.trace.steps[0].change.ranks
    assert ranks == {bond: fit.network.sizes[bond] for bond in bonds}
    tails = [tail(matrix, ranks[bond]) for bond, matrix in matrices.items()]
    step = fit.trace.steps[0]
    assert max(tails) - 1e-9 <= step.relative_error <= math.hypot(*tails) * (1 + 1e-6) + 1e-9
    fit.trace.check(values)


def test_the_order_of_ranks_is_that_of_the_spectra_before() -> None:
    """A fraction counts the values a bond has before the others are cut down."""
    text = "A[i:4 b:4] B[b j:5 c:6] C[c k:6] -> [i j k]"
    fit = truncate("b c").apply(parse(text), {"b": 1, "c": KeepFraction(0.5)}, values=values_of(text))
    assert fit.network.sizes["c"] == 3
    fit = truncate("b c").apply(parse(text), {"b": 1, "c": 6}, values=values_of(text))
    assert fit.network.sizes["c"] == 5  # one value of b and five of j


@given(trees(), st.floats(0.3, 1))
def test_a_budget_of_a_trees_bonds(example: tuple[Network, dict[str, Tensor]], fraction: float) -> None:
    network, values = example
    bonds = [label for label in carriers(network) if label.startswith("b")]
    least = Network(network.nodes, network.output, {**network.sizes, **dict.fromkeys(bonds, 1)}).parameters
    entry = truncate(" ".join(bonds))
    if least > fraction * network.parameters:
        with pytest.raises(RankError, match=str(least)):
            entry.apply(network, ParameterBudget(fraction), values=values)
        return
    fit = entry.apply(network, ParameterBudget(fraction), values=values)
    check_claim(fit)
    assert fit.parameters <= fraction * network.parameters


def test_bonds_of_trees_that_nothing_joins() -> None:
    text = "A[i:4 b:3] B[b j:5] C[k:6 c:4] D[c l:5] -> [i k l j]"
    fit = truncate("c b").apply(parse(text), {"b": 2, "c": 3}, values=values_of(text))
    check_claim(fit)
    assert fit.trace.steps[0].place.nodes == (0, 1, 2, 3)


def test_the_error_of_a_long_train_needs_no_dense_tensor() -> None:
    count = 40
    nodes = [NamedTensor(f"T{n}", (f"b{n}", f"x{n}", f"b{n + 1}")) for n in range(count)]
    ends = [NamedTensor("L", ("b0",)), NamedTensor("R", (f"b{count}",))]
    sizes = {**{f"b{n}": 4 for n in range(count + 1)}, **{f"x{n}": 3 for n in range(count)}}
    network = Network([*nodes, *ends], [f"x{n}" for n in range(count)], sizes)
    values = {node.name: gaussian(*(sizes[label] for label in node.labels), seed=7) for node in (*nodes, *ends)}
    bonds = [f"b{n}" for n in range(2, count - 1)]
    changes = []
    for rank in (4, 3, 2):
        entry = truncate(" ".join(bonds))
        place, options = next(iter(entry.places(network))), Options(size=dict.fromkeys(bonds, rank))
        changes.append(entry.build(network, place, values, options))
    full, less, least = [change.relative_error for change in changes]
    assert full < 1e-13
    assert 1e-3 < less < least < 1


@pytest.mark.parametrize(
    ("text", "bond", "facts"),
    [
        ("A[i:3 b:2] B[b x:2 x] -> [i]", "b", "'B';'x'"),
        ("A[i:2 b:2] A[b j:2]", "b", "'A';'i';'b'"),
        ("A[i:3 b:2] Copy[b c] B[c j:4]", "b", "'b';Copy[b c]"),
        ("A[i:3 b:2] B[b j:4]", "i", "'i';open"),
        ("A[i:3 b:2] B[b j:4] -> [i b j]", "b", "'b';open"),
        ("A[i:3 b:2] B[b j:4]", "x", "'x';i b j"),
    ],
)
def test_bonds_that_cannot_be_truncated(text: str, bond: str, facts: str) -> None:
    with refused(RuleError, *facts.split(";")):
        truncate(bond).apply(parse(text), 1, values=values_of(text))


@pytest.mark.parametrize(
    ("bonds", "ranks", "error", "facts"),
    [
        ("b", {"b": 4}, RankError, "rank 4;'b';1 to 3"),
        ("b", None, RankError, "'b'"),
        ("b", {"c": 2}, RuleError, "'truncate b';'c';b"),
        ("b", ParameterBudget(0.1), RankError, "'parameters 0.1';5;23"),
        ("b", 0.5, RankError, "keep 0.5"),
        ("b c", {"b": 2}, RankError, "'c'"),
    ],
)
def test_ranks_of_a_truncation(
    bonds: str, ranks: Rank | dict[str, Rank] | None, error: type[TnalgebraError], facts: str
) -> None:
    """A bond of 5 values between 3 rows and 4 columns has 3 singular values."""
    text = "A[i:3 b:5] B[b c:4] C[c j:4]"
    with refused(error, *facts.split(";")):
        truncate(bonds).apply(parse(text), ranks, values=values_of(text))


def test_bonds_are_words_each_once() -> None:
    with refused(NetworkError, "'a-b'"):
        truncate("a-b")
    for text in ("", "a b a"):
        with refused(RuleError, "bonds"):
            truncate(text)
    with refused(RuleError, "'A'"):
        truncate("b").apply(parse("A[i:3 b:3] B[b j:3]"), 2)
