"""Equality of networks up to the order of the nodes and the words chosen for labels and tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import TypeAlias

import networkx

from .network import Network, carriers, tensor_nodes
from .nodes import Copy, Fill, NamedTensor, Node, relabel, rename

Vertex: TypeAlias = tuple[str, object]
"""("node", position), ("label", word), ("tensor", name) or ("output", None)."""

Graph: TypeAlias = "networkx.Graph[Vertex]"

Colours: TypeAlias = dict[Vertex, Hashable]


def isomorphic(a: Network, b: Network) -> bool:
    """Whether `a` is `b` after reordering nodes and renaming labels and tensors one to one.

    Ties are respected (tied occurrences correspond to tied occurrences), known sizes and attributes agree, and
    the outputs correspond in order. The labels of `Copy` and `Fill` have no order; those of every other node do.

    Isomorphic networks have equal values under the corresponding tensors. The reverse is not claimed: networks of
    equal value that differ by a rewrite are not isomorphic.
    """
    if _counts(a) != _counts(b):
        return False
    first, second = _graph(a), _graph(b)
    kinds: list[Colours] = [{at: data["kind"] for at, data in graph.nodes(data=True)} for graph in (first, second)]
    return _match(first, kinds[0], second, kinds[1])


def _counts(network: Network) -> tuple[object, ...]:
    """Counts that isomorphic networks share, cheap to compare."""
    return (
        Counter(_kind(node) for node in network.nodes),
        Counter(len(places) for places in tensor_nodes(network).values()),
        Counter((len(places), network.sizes.get(label)) for label, places in carriers(network).items()),
        tuple(network.sizes.get(label) for label in network.output),
    )


def _kind(node: Node) -> Node:
    """The node with one word for every label and for its name: its type, number of axes and attributes are left."""
    bare = relabel(node, dict.fromkeys(node.labels, "_"))
    return rename(bare, {node.name: "_"}) if isinstance(node, NamedTensor) else bare


def _graph(network: Network) -> Graph:
    """The bipartite graph of nodes and labels, with the axes on each edge.

    A label that stands several times on one node has one edge with several axes. The name of a tensor is a vertex
    joined to its occurrences; the output is a vertex joined to its labels.
    """
    graph: Graph = networkx.Graph()
    for position, node in enumerate(network.nodes):
        graph.add_node(("node", position), kind=_kind(node))
    for name, positions in tensor_nodes(network).items():
        graph.add_node(("tensor", name), kind="tensor")
        graph.add_edges_from(((("tensor", name), ("node", position)) for position in positions), axes=())
    for label, places in carriers(network).items():
        graph.add_node(("label", label), kind=("label", network.sizes.get(label)))
        axes: dict[int, list[int]] = {}
        for position, axis in places:
            unordered = isinstance(network.nodes[position], Copy | Fill)
            axes.setdefault(position, []).append(0 if unordered else axis)
        for position, found in axes.items():
            graph.add_edge(("node", position), ("label", label), axes=tuple(found))
    graph.add_node(("output", None), kind="output")
    for axis, label in enumerate(network.output):
        graph.add_edge(("output", None), ("label", label), axes=(axis,))
    return graph


def _match(a: Graph, a_colours: Colours, b: Graph, b_colours: Colours) -> bool:
    """Whether an isomorphism of the two graphs keeps the colours.

    networkx's own search (VF2) takes factorial time on networks of many equal parts, and so this one cuts the
    graphs apart: a vertex that is alone in its colour can only go to the one of that colour, and its neighbours'
    colours know it, so it is taken out; what is left falls into connected parts that are compared one by one. Only
    a connected part without a single distinguished vertex needs a guess.
    """
    a_colours, b_colours = _refined(a, a_colours, b, b_colours)
    count = Counter(a_colours.values())
    if count != Counter(b_colours.values()):
        return False
    a_parts, b_parts = _parts(a, a_colours, count), _parts(b, b_colours, count)
    if len(a_parts) != len(b_parts):
        return False
    if len(a_parts) == 1:
        return _match_by_guess(a_parts[0], a_colours, b_parts[0], b_colours)
    for part in a_parts:
        # isomorphism is an equivalence: whichever partner is found first is as good as any other
        partner = next((other for other in b_parts if _match(part, a_colours, other, b_colours)), None)
        if partner is None:
            return False
        b_parts.remove(partner)
    return True


def _parts(graph: Graph, colours: Colours, count: Counter[Hashable]) -> list[Graph]:
    """The connected parts that are left without the vertices that are alone in their colour."""
    rest = graph.subgraph([vertex for vertex in graph if count[colours[vertex]] > 1])
    return [graph.subgraph(part).copy() for part in networkx.connected_components(rest)]


def _match_by_guess(a: Graph, a_colours: Colours, b: Graph, b_colours: Colours) -> bool:
    """Let one vertex of the rarest colour correspond to each of that colour in turn."""
    count = Counter(a_colours[vertex] for vertex in a)
    rarest = min(count, key=lambda colour: count[colour])
    vertex = next(vertex for vertex in a if a_colours[vertex] == rarest)
    others = [other for other in b if b_colours[other] == rarest]
    return any(_match(a, {**a_colours, vertex: "guess"}, b, {**b_colours, other: "guess"}) for other in others)


def _refined(a: Graph, a_colours: Colours, b: Graph, b_colours: Colours) -> tuple[Colours, Colours]:
    """Refine the colours by those of the neighbours, to a fixed point (Weisfeiler and Leman 1968).

    Both graphs share the palette: corresponding vertices of isomorphic graphs have the same colour.
    """
    palette: dict[Hashable, int] = {}

    def numbered(views: Colours) -> Colours:
        return {vertex: palette.setdefault(view, len(palette)) for vertex, view in views.items()}

    a_colours = numbered({vertex: a_colours[vertex] for vertex in a})
    b_colours = numbered({vertex: b_colours[vertex] for vertex in b})
    before = 0
    while len(palette) > before:
        before, palette = len(palette), {}
        a_colours, b_colours = numbered(_views(a, a_colours)), numbered(_views(b, b_colours))
    return a_colours, b_colours


def _views(graph: Graph, colours: Colours) -> Colours:
    """What each vertex sees: its own colour and, for every neighbour, the axes between them and its colour."""
    return {
        vertex: (
            colours[vertex],
            frozenset(Counter((edge["axes"], colours[other]) for other, edge in near.items()).items()),
        )
        for vertex, near in graph.adjacency()
    }
