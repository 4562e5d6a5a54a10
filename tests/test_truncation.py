"""Truncating a bond of a tree is the singular value decomposition across it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import check_claim, tail, unfolding, values_of
from strategies import random_values
from torch import Tensor

from tnalgebra.decompositions import truncate
from tnalgebra.errors import NetworkError, RankError, RuleError, TnalgebraError
from tnalgebra.evaluation import evaluate, magnitude
from tnalgebra.network import Network, carriers, parameters
from tnalgebra.nodes import NamedTensor, Node
from tnalgebra.notation import parse
from tnalgebra.ranks import KeepFraction, ParameterBudget, Rank, RelativeError
from tnalgebra.rewriting import Fit, Trace


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
    fit = truncate(bond).apply(network, values, ranks={bond: rank})
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
        fit = fit.then(truncate(bond), ranks=KeepFraction(1))
    dense = evaluate(network, values)
    assert ((fit.dense() - dense).abs() <= 1e-11 * magnitude(network, values).max()).all()


def test_truncating_leaves_what_does_not_hang_together_with_the_bond() -> None:
    """Hyperedges, ties, loops and reserved nodes are no hindrance elsewhere."""
    text = "A[i:4 b:3] B[b j:5] C[r:2 x:3] D[r y:2] E[r] F[z:2 z] F[u:2 v:2] Conv[p:5 q k:2] -> [i j x y u v q]"
    values = values_of(text)
    fit = truncate("b").apply(parse(text), values, ranks=2)
    assert {name for name in values if not torch.equal(values[name], fit.values[name])} == {"A", "B"}
    check_claim(fit)
    assert fit.trace.steps[0].relative_error == pytest.approx(tail((values["A"] @ values["B"]).numpy(), 2))
    fit.trace.check(values)


def test_a_long_train_is_cut_down_bond_by_bond() -> None:
    text = "A[i:4 b:4] B[b j:5 c:9] C[c k:3 d:6] D[d l:6] -> [i j k l]"
    values = values_of(text)
    fit = truncate("c").apply(parse(text), values, ranks=9)
    fit = fit.then(truncate("b"), ranks=2).then(truncate("d"), ranks=3)
    assert str(fit.network) == "A[i:4 b:2] B[b j:5 c:9] C[c k:3 d:3] D[d l:6]"
    first, *rest = [step.relative_error for step in fit.trace.steps]
    assert first < 1e-12
    assert max(rest) * 0.5 < fit.relative_error < math.hypot(*rest) * 1.0001


@pytest.mark.parametrize(
    ("text", "bond", "message"),
    [
        ("A[z:2 o:3 p:2] B[p i:4 z]", "p", "the bonds close a loop, so no bond is an orthogonality centre"),
        ("A[i:3 b:2 c:2] B[b c j:4]", "b", "the bonds close a loop"),
        ("A[i:3 b:2] B[b x:2 x] -> [i]", "b", "the bonds close a loop"),
        ("A[i:3 b:2] A[j b]", "b", "the node 'A' stands several times"),
        ("A[i:2 b:2] B[b j:2] C[j k:3] C[l:2 m:3] -> [i k l m]", "b", "the node 'C' stands several times"),
        ("A[i:3 b:2] Copy[b c] B[c j:4]", "b", "the node 'Copy' is no named tensor"),
        ("A[i:3 b:2] B[b j:4] Fill[j | value=1] -> [i]", "b", "the node 'Fill' is no named tensor"),
        ("A[i:3 r:2] B[r j:4] C[r k:2] -> [i j k]", "r", "the closed label 'r' stands 3 times"),
        ("A[i:3 b:2] B[b r:2 j:4] C[r k:2] D[r l:2] -> [i j k l]", "b", "the closed label 'r' stands 3 times"),
        ("A[i:3 b:2 x:2] B[b j:4] -> [i j]", "b", "the closed label 'x' stands 1 times"),
        ("A[i:3 b:2] B[b i j:4] -> [i j]", "b", "the open label 'i' stands 2 times"),
        ("A[i:3 b:2] B[b j:4]", "i", "'i' is open, not a bond"),
        ("A[i:3 b:2] B[b j:4]", "x", "there is no bond 'x'\n  labels:  i b j"),
        ("A[i:3 b:2] B[b j:4] -> [i b j]", "b", "the open label 'b' stands 2 times"),
    ],
)
def test_bonds_that_cannot_be_truncated(text: str, bond: str, message: str) -> None:
    with pytest.raises(RuleError, match=re.escape(message)):
        truncate(bond).apply(parse(text), values_of(text), ranks=1)


@pytest.mark.parametrize(
    ("ranks", "error", "message"),
    [
        (4, RankError, "rank 4 of bond 'b' is outside 1 to 3"),
        (0, RankError, "rank 0 of bond 'b' is outside 1 to 3"),
        (None, RankError, "no rank for 'b'"),
        ({"c": 2}, RuleError, "the rule 'truncate b' has no bond 'c'\n  known: b"),
        (ParameterBudget(0.5), RankError, "a ParameterBudget is for all bonds of a rule together"),
        (0.5, RankError, "an integer, or KeepFraction(0.5)"),
    ],
)
def test_ranks_of_a_truncation(ranks: Rank | dict[str, Rank] | None, error: type[TnalgebraError], message: str) -> None:
    """A bond of 5 values between 3 rows and 4 columns has 3 singular values."""
    text = "A[i:3 b:5] B[b j:4]"
    with pytest.raises(error, match=re.escape(message)):
        truncate("b").apply(parse(text), values_of(text), ranks=ranks)


def test_a_bond_is_a_word() -> None:
    with pytest.raises(NetworkError, match="bond 'a b' is not a word"):
        truncate("a b")


def test_parameters_of_a_truncated_tree() -> None:
    text = "A[i:3 b:5] B[b j:4]"
    fit = truncate("b").apply(parse(text), values_of(text), ranks=2)
    assert (parameters(fit.trace.start), fit.parameters) == (35, 14)
