"""Equality of networks up to the order of the nodes and the words chosen for labels and tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from .network import Network, carriers, tensor_nodes
from .nodes import Copy, Fill, NamedTensor, Node, relabel, rename

if TYPE_CHECKING:
    import networkx

Vertex: TypeAlias = tuple[str, object]
"""("node", position), ("label", word), ("tensor", name) or ("output", None)."""

Colours: TypeAlias = dict[Vertex, int]


def isomorphic(a: Network, b: Network) -> bool:
    """Whether `a` is `b` after reordering nodes and renaming labels and tensors one to one.

    Ties are respected (tied occurrences correspond to tied occurrences), known sizes and attributes agree, and
    the outputs correspond in order. The labels of `Copy` and `Fill` have no order; those of every other node do.

    Isomorphic networks have equal values under the corresponding tensors. The reverse is not claimed: networks of
    equal value that differ by a rewrite are not isomorphic.
    """
    if _summary(a) != _summary(b):
        return False
    from networkx.algorithms.isomorphism import GraphMatcher

    graphs = (_graph(a), _graph(b))
    colours = _refined(graphs)
    if Counter(colours[0].values()) != Counter(colours[1].values()):
        return False
    for graph, own in zip(graphs, colours, strict=True):
        for vertex, colour in own.items():
            graph.nodes[vertex]["colour"] = colour

    def same_colour(one: Mapping[str, object], two: Mapping[str, object]) -> bool:
        return one["colour"] == two["colour"]

    def same_axes(one: Mapping[str, object], two: Mapping[str, object]) -> bool:
        return one["axes"] == two["axes"]

    matcher = GraphMatcher(*graphs, node_match=same_colour, edge_match=same_axes)
    return bool(matcher.is_isomorphic())


def _summary(network: Network) -> tuple[object, ...]:
    """Counts that isomorphic networks share."""
    return (
        Counter(_kind(node) for node in network.nodes),
        Counter(len(places) for places in tensor_nodes(network).values()),
        Counter((len(places), network.sizes.get(label)) for label, places in carriers(network).items()),
        tuple(network.sizes.get(label) for label in network.output),
    )


def _kind(node: Node) -> Node:
    """The node with one word for every label and for its name: its type, its axes and its attributes."""
    bare = relabel(node, dict.fromkeys(node.labels, "_"))
    return rename(bare, {node.name: "_"}) if isinstance(node, NamedTensor) else bare


def _graph(network: Network) -> networkx.Graph[Vertex]:
    """The bipartite graph of nodes and labels, with the axes on each edge.

    A label that stands several times on one node has one edge with several axes. Tensors' names are vertices
    joined to their occurrences; the output is a vertex joined to its labels.
    """
    import networkx

    graph: networkx.Graph[Vertex] = networkx.Graph()
    graph.add_node(("output", None), kind="output")
    for label, places in carriers(network).items():
        graph.add_node(("label", label), kind=("label", network.sizes.get(label)))
        axes: dict[int, list[int]] = {}
        for position, axis in places:
            unordered = isinstance(network.nodes[position], Copy | Fill)
            axes.setdefault(position, []).append(0 if unordered else axis)
        for position, found in axes.items():
            graph.add_edge(("node", position), ("label", label), axes=tuple(found))
    for axis, label in enumerate(network.output):
        graph.add_edge(("output", None), ("label", label), axes=(axis,))
    for position, node in enumerate(network.nodes):
        graph.add_node(("node", position), kind=_kind(node))
    for name, positions in tensor_nodes(network).items():
        graph.add_node(("tensor", name), kind="tensor")
        graph.add_edges_from(((("tensor", name), ("node", position)) for position in positions), axes=())
    return graph


def _refined(graphs: Sequence[networkx.Graph[Vertex]]) -> list[Colours]:
    """Colours that corresponding vertices of isomorphic graphs share: Weisfeiler-Leman refinement to a fixed point.

    Both graphs take their colours from one palette, so that the colours can be compared.
    """
    palette: dict[Hashable, int] = {}
    colours = [
        {vertex: palette.setdefault(data["kind"], len(palette)) for vertex, data in graph.nodes(data=True)}
        for graph in graphs
    ]
    before = 0
    while len(palette) > before:
        before = len(palette)
        palette = {}
        colours = [
            {
                vertex: palette.setdefault(
                    (own[vertex], tuple(sorted((edge["axes"], own[other]) for other, edge in graph[vertex].items()))),
                    len(palette),
                )
                for vertex in graph
            }
            for graph, own in zip(graphs, colours, strict=True)
        ]
    return colours
