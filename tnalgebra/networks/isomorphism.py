"""Equality of networks up to the order of their nodes and the words for their labels and tensors."""

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


def isomorphic(a: Network, b: Network, *, ordered: bool = True) -> bool:
    """Whether two networks differ only in the order of their nodes and the words for their labels and tensors.

    Sizes, attributes and the order of the output labels must agree, and tied tensors must correspond to tied tensors.
    The order of the labels of a `Copy` or a `Fill` does not matter; that of every other node does. Isomorphic
    networks have the same value if corresponding tensors have the same elements. Networks with the same value need
    not be isomorphic: a rewrite usually leads to one that is not.

    Args:
        ordered: whether the order of the labels of a named tensor matters. Without it, networks are isomorphic if they
            have the same structure, and corresponding tensors may be transposed.

    Returns:
        True if there is a one-to-one correspondence of nodes, of labels and of tensor names.

    Example:
        >>> isomorphic(tn.parse("A[i j] B[j k]"), tn.parse("V[b c] U[a b] -> [a c]"))
        True
    """
    if _counts(a) != _counts(b):
        return False
    first, second = _graph(a, ordered=ordered), _graph(b, ordered=ordered)
    kinds: list[Colours] = [{at: data["kind"] for at, data in graph.nodes(data=True)} for graph in (first, second)]
    return _match(first, kinds[0], second, kinds[1])


def _counts(network: Network) -> tuple[object, ...]:
    """Counts that are the same for isomorphic networks. They are cheap, so they are compared first."""
    return (
        Counter(_kind(node) for node in network.nodes),
        Counter(len(places) for places in tensor_nodes(network).values()),
        Counter((len(places), network.sizes.get(label)) for label, places in carriers(network).items()),
        tuple(network.sizes.get(label) for label in network.output),
    )


def _kind(node: Node) -> Node:
    """The node with one word for all labels and for its name; its type, number of axes and attributes remain."""
    bare = relabel(node, dict.fromkeys(node.labels, "_"))
    return rename(bare, {node.name: "_"}) if isinstance(node, NamedTensor) else bare


def _graph(network: Network, *, ordered: bool = True) -> Graph:
    """The bipartite graph of nodes and labels, with the axes on each edge.

    A label that occurs several times on one node has one edge with several axes. The name of a tensor is a vertex
    joined to the nodes with that name, and the output is a vertex joined to its labels.
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
            unordered = isinstance(network.nodes[position], Copy | Fill if ordered else Copy | Fill | NamedTensor)
            axes.setdefault(position, []).append(0 if unordered else axis)
        for position, axes_of_label in axes.items():
            graph.add_edge(("node", position), ("label", label), axes=tuple(axes_of_label))
    graph.add_node(("output", None), kind="output")
    for axis, label in enumerate(network.output):
        graph.add_edge(("output", None), ("label", label), axes=(axis,))
    return graph


def _match(a: Graph, a_colours: Colours, b: Graph, b_colours: Colours) -> bool:
    """Whether an isomorphism of the two graphs keeps the colours.

    networkx's own search (VF2) takes factorial time on networks of many equal parts, so this one cuts the graphs
    apart. A vertex that is the only one of its colour can only correspond to the other graph's only vertex of that
    colour, and the refined colours of its neighbours already depend on it. So such vertices are taken out, and the
    connected parts that remain are compared one by one. A guess is needed only where nothing can be taken out.
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
        # isomorphism is an equivalence relation, so the first partner is as good as any other
        partner = next((other for other in b_parts if _match(part, a_colours, other, b_colours)), None)
        if partner is None:
            return False
        b_parts.remove(partner)
    return True


def _parts(graph: Graph, colours: Colours, count: Counter[Hashable]) -> list[Graph]:
    """The connected parts that remain when each vertex that is the only one of its colour is taken out."""
    rest = graph.subgraph([vertex for vertex in graph if count[colours[vertex]] > 1])
    return [graph.subgraph(part).copy() for part in networkx.connected_components(rest)]


def _match_by_guess(a: Graph, a_colours: Colours, b: Graph, b_colours: Colours) -> bool:
    """Let one vertex of the rarest colour correspond to each of the other graph's vertices of that colour in turn."""
    count = Counter(a_colours[vertex] for vertex in a)
    rarest = min(count, key=lambda colour: count[colour])
    vertex = next(vertex for vertex in a if a_colours[vertex] == rarest)
    others = [other for other in b if b_colours[other] == rarest]
    return any(_match(a, {**a_colours, vertex: "guess"}, b, {**b_colours, other: "guess"}) for other in others)


def _refined(a: Graph, a_colours: Colours, b: Graph, b_colours: Colours) -> tuple[Colours, Colours]:
    """Refine the colours by those of the neighbours until nothing changes (Weisfeiler and Leman 1968).

    The two graphs share one palette, so that corresponding vertices of isomorphic graphs have the same colour.
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
    """vertex -> its colour, and for every neighbour the axes on the edge to it and its colour."""
    return {
        vertex: (
            colours[vertex],
            frozenset(Counter((edge["axes"], colours[other]) for other, edge in near.items()).items()),
        )
        for vertex, near in graph.adjacency()
    }
