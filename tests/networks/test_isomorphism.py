"""Equality up to words and order: what it forgives, what it does not, and that it ends."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networkx.algorithms.isomorphism import GraphMatcher

from tests.strategies import in_other_words, networks, sums
from tests.stuck import not_stuck
from tnalgebra.networks import (
    Conv,
    Copy,
    Fill,
    Fuse,
    NamedTensor,
    Network,
    Node,
    carriers,
    isomorphic,
    parse,
    relabel,
    rename,
    tensor_nodes,
)

# A search without any shortcut ------------------------------------------------------------------------------

Graph: TypeAlias = "networkx.Graph[Any]"


def graph_of(network: Network) -> Graph:
    """The graph of nodes, labels, names of tensors and the output, with axes on the edges between nodes and labels."""
    graph: Graph = networkx.Graph()
    for position, node in enumerate(network.nodes):
        kind = relabel(node, dict.fromkeys(node.labels, "_"))
        graph.add_node(("node", position), kind=rename(kind, {kind.name: "_"}))
    for name, positions in tensor_nodes(network).items():
        graph.add_node(("tensor", name), kind="tensor")
        graph.add_edges_from(((("tensor", name), ("node", position)) for position in positions), axes=())
    graph.add_node(("output", None), kind="output")
    for label, places in carriers(network).items():
        graph.add_node(("label", label), kind=("label", network.sizes.get(label)))
        for position in {position for position, _ in places}:
            axes = [axis for number, axis in places if number == position]
            without_order = isinstance(network.nodes[position], Copy | Fill)
            graph.add_edge(("node", position), ("label", label), axes=len(axes) if without_order else axes)
    for axis, label in enumerate(network.output):
        graph.add_edge(("output", None), ("label", label), axes=axis)
    return graph


def agrees_with_networkx(one: Network, two: Network) -> bool:
    matcher = GraphMatcher(
        graph_of(one),
        graph_of(two),
        node_match=lambda a, b: a["kind"] == b["kind"],
        edge_match=lambda a, b: a["axes"] == b["axes"],
    )
    return isomorphic(one, two) == matcher.is_isomorphic()


# Laws -------------------------------------------------------------------------------------------------------


@given(networks() | sums(), st.data())
def test_order_and_words_have_no_meaning(network: Network, data: st.DataObject) -> None:
    other, _ = data.draw(in_other_words(network))
    assert isomorphic(network, other)
    assert isomorphic(other, network)


@given(networks(), st.data())
def test_the_labels_of_copy_and_fill_have_no_order(network: Network, data: st.DataObject) -> None:
    nodes: list[Node] = []
    for node in network.nodes:
        match node:
            case Copy(labels):
                nodes.append(Copy(tuple(data.draw(st.permutations(labels)))))
            case Fill(labels, value):
                nodes.append(Fill(tuple(data.draw(st.permutations(labels))), value))
            case _:
                nodes.append(node)
    assert isomorphic(network, Network(nodes, network.output, network.sizes))


@given(networks(), st.data())
def test_the_axes_of_a_tensor_have_an_order_unless_told_otherwise(network: Network, data: st.DataObject) -> None:
    orders = {
        node.name: data.draw(st.permutations(range(len(node.labels))))
        for node in network.nodes
        if isinstance(node, NamedTensor)
    }
    nodes = [
        NamedTensor(node.name, tuple(node.labels[axis] for axis in orders[node.name]))
        if isinstance(node, NamedTensor)
        else node
        for node in network.nodes
    ]
    transposed = Network(nodes, network.output, network.sizes)
    assert isomorphic(network, transposed, ordered=False)
    assert not isomorphic(parse("A[i j] B[j k]"), parse("A[i j] B[k j]"))


@given(networks(max_nodes=4), st.data())
def test_agrees_with_networkx(network: Network, data: st.DataObject) -> None:
    """After one random change, for which either answer may be right: a search without any shortcut as the judge."""
    other, _ = data.draw(in_other_words(network))
    changed = data.draw(st.sampled_from([0, 1]))
    nodes = list(other.nodes)
    position = data.draw(st.integers(0, len(nodes) - 1))
    labels = nodes[position].labels
    if changed and labels:
        axis = data.draw(st.integers(0, len(labels) - 1))
        same = [label for label, size in other.sizes.items() if size == other.sizes[labels[axis]]]
        turned = [*labels]
        turned[axis] = data.draw(st.sampled_from(same))
        nodes[position] = _with_labels(nodes[position], turned)
    carried = {label for node in nodes for label in node.labels}
    sizes = {label: size for label, size in other.sizes.items() if label in carried}
    other = Network(nodes, [label for label in other.output if label in carried], sizes)

    assert agrees_with_networkx(network, other)


@pytest.mark.parametrize("kind", ["Copy", "T"])
@settings(max_examples=settings().max_examples // 4)
@given(seed=st.integers(0, 10_000))
def test_agrees_with_networkx_on_regular_graphs(kind: str, seed: int) -> None:
    """All nodes look alike, so the answer needs guesses; `T` is one tied tensor."""
    generator = random.Random(seed)
    vertices = generator.choice([4, 6, 8])
    graphs = [networkx.random_regular_graph(3, vertices, seed=generator.randrange(8)) for _ in range(4)]
    one, two = (networkx.disjoint_union(*pair) for pair in (graphs[:2], graphs[2:]))
    texts = [edges_as_labels(graph, kind) for graph in (one, two)]
    assert isomorphic(*map(parse, texts), ordered=False) == networkx.is_isomorphic(one, two)


def edges_as_labels(graph: Graph, kind: str = "Copy") -> str:
    """A node for each vertex, with a label for each of its edges."""
    labels: dict[object, list[str]] = {vertex: [] for vertex in graph}
    for number, ends in enumerate(graph.edges()):
        for end in ends:
            labels[end].append(f"e{number}")
    return " ".join(f"{kind}[{' '.join(words)}]" for words in labels.values()) + " -> []"


def _with_labels(node: Node, labels: Sequence[str]) -> Node:
    """The node with these labels, one for each axis."""
    match node:
        case Conv():
            x, y, k = labels
            return replace(node, x=x, y=y, k=k)
        case Fuse():
            return Fuse(labels[0], tuple(labels[1:]))
        case _:
            return replace(node, labels=tuple(labels))


@given(networks())
def test_untied_is_another_network(network: Network) -> None:
    labels = tuple(network.sizes)[:3]
    first, second = NamedTensor("K", labels), NamedTensor("V", labels)
    tied = Network([*network.nodes, first, first], network.output, network.sizes)
    untied = Network([*network.nodes, first, second], network.output, network.sizes)
    assert not isomorphic(tied, untied)
    assert not isomorphic(untied, tied)
    assert isomorphic(untied, Network([*network.nodes, second, first], network.output, network.sizes))


# Examples ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("K[a b] V[b c]", "V[p q] W[q r]"),
        ("K[a b] V[b c] -> [c a]", "V[b c] K[a b] -> [c a]"),
        ("K[a b] K[b c]", "T[x y] T[y z]"),
        ("Copy[a b c] -> [a b]", "Copy[c a b] -> [a b]"),
        ("Fill[a b | value=1/2] K[a]", "K[b] Fill[a b | value=0.5]"),
        ("K[a a b]", "K[x x y]"),
        ("A[a r] B[b r] C[c r] -> [a b c]", "X[p s] Z[q s] Y[t s] -> [p q t]"),
        ("A[a] A[b] B[c] B[d] -> []", "A[a] B[b] A[c] B[d] -> []"),
    ],
)
def test_isomorphic(one: str, two: str) -> None:
    assert isomorphic(parse(one), parse(two))
    assert isomorphic(parse(two), parse(one))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("K[a b]", "K[a b] V[c]"),
        ("K[a b]", "K[a b c]"),
        ("K[a b]", "Copy[a b]"),
        ("K[a b] -> [a b]", "K[a b] -> [b a]"),
        ("K[a b] -> [a]", "K[a b] -> [b]"),
        ("K[a b] -> [a]", "K[a b]"),
        ("K[a:2 b]", "K[a:3 b]"),
        ("K[a:2 b]", "K[a b]"),
        ("K[a b] V[b]", "K[b a] V[b]"),
        ("K[a a b]", "K[a b b]"),
        ("K[a a b]", "K[a b a]"),
        ("K[a b] V[b c] -> [a c]", "K[a b] V[c b] -> [a c]"),
        ("K[a b] K[b c]", "K[a b] V[b c]"),
        ("K[a b] K[c d] V[b c]", "K[a b] V[c d] K[b c]"),
        ("A[a] A[b] B[c] B[d] A[e] -> []", "A[a] A[b] B[c] B[d] C[e] -> []"),
        ("A[a b] A[c d] B[b e] B[d f] -> []", "A[a b] B[c d] A[b e] B[d f] -> []"),
        ("Fuse[w p q]", "Fuse[w q p] -> [w p q]"),
        ("Fuse[w p q] -> [w p q]", "Fuse[p w q] -> [w p q]"),
        ("Conv[x y k]", "Conv[y x k] -> [x y k]"),
        ("Conv[x y k]", "Conv[x y k | stride=2]"),
        ("Conv[x y k | padding=1:0]", "Conv[x y k | padding=0:1]"),
        ("Conv[x y k | padding=1]", "Conv[x y k | padding=1 mode=circular]"),
        ("Fill[a | value=1]", "Fill[a | value=2]"),
        ("Fill[a:2 | value=1/2]", "Fill[a:2 | value=mean]"),
        ("A[a r] B[b r] C[c r s] D[s] -> []", "A[a r] B[b r] C[c s r] D[s] -> []"),
    ],
)
def test_not_isomorphic(one: str, two: str) -> None:
    assert not isomorphic(parse(one), parse(two))
    assert not isomorphic(parse(two), parse(one))


# Symmetric networks -----------------------------------------------------------------------------------------


def rings(*lengths: int) -> str:
    return " ".join(
        f"Copy[r{ring}_{i} r{ring}_{(i + 1) % length}]" for ring, length in enumerate(lengths) for i in range(length)
    )


def torus(size: int) -> str:
    return edges_as_labels(networkx.grid_2d_graph(size, size, periodic=True))


def lattice(steps: set[tuple[int, int]]) -> str:
    """One Copy for each point of a 4 x 4 torus, joined to those that are one of `steps` away."""
    points = list(itertools.product(range(4), repeat=2))
    pairs = [(a, b) for a, b in itertools.combinations(points, 2) if ((b[0] - a[0]) % 4, (b[1] - a[1]) % 4) in steps]
    ends = {point: [f"e{number}" for number, pair in enumerate(pairs) if point in pair] for point in points}
    return " ".join(f"Copy[{' '.join(labels)}]" for labels in ends.values())


ROOK = lattice({(0, step) for step in (1, 2, 3)} | {(step, 0) for step in (1, 2, 3)})
SHRIKHANDE = lattice({(0, 1), (0, 3), (1, 0), (3, 0), (1, 1), (3, 3)})
EQUAL_PARTS = " ".join(f"A[x{i} y{i}]" for i in range(100)) + " -> []"
STAR = " ".join(f"T{i}[x]" for i in range(300))

THOUSANDS = {
    "chain": " ".join(f"A{n}[b{n}:2 b{n + 1}:2]" for n in range(2000)),
    "tied chain": " ".join(f"A[b{n}:2 b{n + 1}:2]" for n in range(2000)),
    "ring": rings(2000),
    "rings": rings(*[4, 5] * 200),
    "grid": edges_as_labels(networkx.grid_2d_graph(40, 50)),
    "tree": edges_as_labels(networkx.full_rary_tree(2, 2000)),
    "random": edges_as_labels(networkx.random_regular_graph(3, 1000, seed=0)),
    "random parts": edges_as_labels(
        networkx.disjoint_union_all([networkx.random_regular_graph(3, 10, seed=n) for n in range(100)])
    ),
}


@pytest.mark.parametrize("text", [rings(60), rings(3, 3, 3, 6, 6), torus(6), ROOK, SHRIKHANDE, EQUAL_PARTS, STAR])
def test_symmetric_networks_in_other_words(text: str) -> None:
    network = parse(text)
    with not_stuck():
        assert isomorphic(network, in_another_order(network))


@pytest.mark.parametrize("text", THOUSANDS.values(), ids=THOUSANDS)
def test_thousands_of_nodes(text: str) -> None:
    network = parse(text)
    crossed = with_two_ends_exchanged(network)
    with not_stuck():
        assert isomorphic(network, in_another_order(network))
        assert not isomorphic(network, crossed)


def with_two_ends_exchanged(network: Network) -> Network:
    """The network with the last labels of its first and its third node exchanged."""
    nodes = list(network.nodes)
    ends = [nodes[place].labels[-1] for place in (0, 2)]
    for place, end in zip((2, 0), ends, strict=True):
        nodes[place] = _with_labels(nodes[place], [*nodes[place].labels[:-1], end])
    return Network(nodes, network.output, network.sizes)


def in_another_order(network: Network) -> Network:
    """The network with its nodes in another order, and other words for labels."""
    generator = random.Random(0)
    words = dict(zip(carriers(network), generator.sample([*carriers(network)], len(carriers(network))), strict=True))
    nodes = [relabel(node, words) for node in generator.sample(network.nodes, len(network.nodes))]
    sizes = {words[label]: size for label, size in network.sizes.items()}
    return Network(nodes, [words[label] for label in network.output], sizes)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (rings(24), rings(12, 12)),
        (rings(10, 10, 10, 10), rings(8, 8, 8, 8, 8)),
        (rings(4, 4, 8, 8), rings(4, 6, 6, 8)),
        (ROOK, SHRIKHANDE),
    ],
    ids=["rings", "more rings", "rings in common", "strongly regular"],
)
def test_networks_that_look_alike_everywhere(one: str, two: str) -> None:
    """Refinement by neighbours alone cannot tell these apart."""
    hashes = [
        networkx.weisfeiler_lehman_graph_hash(graph_of(parse(text)), node_attr="kind", edge_attr="axes")
        for text in (one, two)
    ]
    assert hashes[0] == hashes[1]
    with not_stuck():
        assert not isomorphic(parse(one), parse(two))
