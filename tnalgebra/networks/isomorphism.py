"""Equality of networks up to the order of their nodes and the words for their labels and tensors."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from .network import Network, all_nodes, only_network
from .nodes import Copy, Fill, NamedTensor, Node, relabel, rename

Colours: TypeAlias = dict[int, int]
"""vertex -> its colour."""


class _Graphs(NamedTuple):
    """Two graphs side by side; the vertices of the first one are the numbers below `half`.

    near: for each vertex, the marks of its edges and the vertices at their other ends. The edges of a node and a label
        are marked with the axes of the node at which the label occurs.
    """

    near: Sequence[Sequence[tuple[int, int]]]
    half: int

    def is_balanced(self, vertices: Iterable[int]) -> bool:
        """Whether as many of the vertices are in the first graph as in the second."""
        return not sum(1 if vertex < self.half else -1 for vertex in vertices)


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
    builder = _Builder(ordered=ordered)
    builder.add(only_network(a))
    half = len(builder.near)
    builder.add(only_network(b))
    graphs = _Graphs(builder.near, half)
    cells = _Cells(graphs, dict(enumerate(builder.colours)))
    if not all(map(graphs.is_balanced, cells.members.values())) or not cells.refine(list(cells.members)):
        return False
    return _match_parts(graphs, *cells.colours())


class _Builder:
    """Makes the bipartite graphs of nodes and labels of several networks, with the same numbers for colours and marks.

    A label that occurs several times on one node has one edge with several axes. The name of a tied tensor is a vertex
    joined to the nodes with that name, the output is a vertex joined to its labels, and each term of a sum is a vertex
    joined to its nodes.
    """

    def __init__(self, *, ordered: bool) -> None:
        self.unordered = Copy | Fill if ordered else Copy | Fill | NamedTensor
        self.near: list[list[tuple[int, int]]] = []
        self.colours: list[int] = []
        self._numbers: dict[Hashable, int] = {}

    def add(self, network: Network) -> None:
        """Add the graph of a network. Its vertices are the next numbers."""
        places: dict[str, list[tuple[int, int]]] = {}
        tensors: dict[str, list[int]] = {}
        for number, node in enumerate(all_nodes(network)):
            for axis, label in enumerate(node.labels):
                places.setdefault(label, []).append((number, axis))
            if isinstance(node, NamedTensor):
                tensors.setdefault(node.name, []).append(number)
        tied = {node for positions in tensors.values() if len(positions) > 1 for node in positions}
        kinds = list(all_nodes(network))
        nodes = [self._vertex((_kind(node), n in tied)) for n, node in enumerate(kinds)]
        for positions in tensors.values():
            if len(positions) > 1:
                name = self._vertex("tied tensor")
                for position in positions:
                    self._edge(nodes[position], name, ())
        if len(network.terms) > 1:
            vertices = iter(nodes)
            for term in network.terms:
                whole = self._vertex("term")
                for _ in term.nodes:
                    self._edge(next(vertices), whole, ())
        output = self._vertex("output")
        open_axes = {label: axis for axis, label in enumerate(network.output)}
        for label, ends in places.items():
            vertex = self._vertex(("label", network.sizes.get(label)))
            axes: dict[int, list[int]] = {}
            for position, axis in ends:
                axes.setdefault(position, []).append(0 if isinstance(kinds[position], self.unordered) else axis)
            for position, axes_of_label in axes.items():
                self._edge(nodes[position], vertex, tuple(axes_of_label))
            if label in open_axes:
                self._edge(output, vertex, (open_axes[label],))

    def _vertex(self, kind: Hashable) -> int:
        self.colours.append(self._numbers.setdefault(("vertex", kind), len(self._numbers)))
        self.near.append([])
        return len(self.near) - 1

    def _edge(self, one: int, other: int, axes: tuple[int, ...]) -> None:
        mark = self._numbers.setdefault(("edge", axes), len(self._numbers))
        self.near[one].append((mark, other))
        self.near[other].append((mark, one))


def _kind(node: Node) -> Node:
    """The node with one word for all labels and for its name; its type, number of axes and attributes remain."""
    bare = relabel(node, dict.fromkeys(node.labels, "_"))
    return rename(bare, {node.name: "_"}) if isinstance(node, NamedTensor) else bare


# Refinement --------------------------------------------------------------------------------------------------


class _Cells:
    """The vertices of a part of each graph, in cells of one colour, which splits make smaller and `undo` joins again.

    of: vertex -> the number of its cell.
    members: number -> the vertices of the cell.
    """

    def __init__(self, graphs: _Graphs, colours: Mapping[int, int]) -> None:
        self.graphs = graphs
        numbers: dict[int, int] = {}
        self.of = {vertex: numbers.setdefault(colour, len(numbers)) for vertex, colour in colours.items()}
        self.members: dict[int, set[int]] = {number: set() for number in numbers.values()}
        for vertex, cell in self.of.items():
            self.members[cell].add(vertex)
        self._splits: list[tuple[int, int]] = []

    def colours(self) -> tuple[Colours, Colours]:
        """The cells as colours of the vertices of the first graph, and of those of the second."""
        half = self.graphs.half
        first = {vertex: cell for vertex, cell in self.of.items() if vertex < half}
        return first, {vertex: cell for vertex, cell in self.of.items() if vertex >= half}

    def split(self, cell: int, part: Iterable[int]) -> int:
        """Put a part of a cell into a new cell, and return its number."""
        new, vertices = len(self.members), set(part)
        self.members[new] = vertices
        self.members[cell] -= vertices
        self.of.update(dict.fromkeys(vertices, new))
        self._splits.append((cell, new))
        return new

    def undo(self) -> None:
        """Undo all splits."""
        while self._splits:
            cell, new = self._splits.pop()
            vertices = self.members.pop(new)
            self.members[cell] |= vertices
            self.of.update(dict.fromkeys(vertices, cell))

    def refine(self, pending: Sequence[int]) -> bool:
        """Split cells until all vertices of a cell have the same edges into every cell (Weisfeiler and Leman 1968).

        A cell is split by the edges of its vertices into one other cell at a time. The pending cells are those that may
        still split others. Of the pieces of a cell that is not pending the largest can be left out, because the edges
        into the whole cell are equal already: so the time is O(m log n) for m edges (Hopcroft 1971).

        Returns:
            False, as soon as a cell has more vertices of one graph than of the other.
        """
        queue, queued = deque(pending), set(pending)
        while queue:
            cell = queue.popleft()
            queued.discard(cell)
            for other, groups in self._edges_into(cell).items():
                if not all(map(self.graphs.is_balanced, groups)):
                    return False
                if sum(map(len, groups)) == len(self.members[other]):
                    groups.remove(max(groups, key=len))
                pieces = [other, *(self.split(other, group) for group in groups)]
                if other not in queued:
                    pieces.remove(max(pieces, key=lambda piece: len(self.members[piece])))
                new = [piece for piece in pieces if piece not in queued]
                queue += new
                queued.update(new)
        return True

    def _edges_into(self, cell: int) -> dict[int, list[list[int]]]:
        """Cell -> its vertices with edges into one cell, in groups with the same marks on those edges."""
        marks: dict[int, list[int]] = {}
        for vertex in self.members[cell]:
            for mark, other in self.graphs.near[vertex]:
                if other in self.of:
                    marks.setdefault(other, []).append(mark)
        groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for vertex, on_edges in marks.items():
            groups.setdefault((self.of[vertex], tuple(sorted(on_edges))), []).append(vertex)
        grouped: dict[int, list[list[int]]] = {}
        for (of, _), vertices in groups.items():
            grouped.setdefault(of, []).append(vertices)
        return grouped


# Parts -------------------------------------------------------------------------------------------------------


def _match_parts(graphs: _Graphs, first: Colours, second: Colours) -> bool:
    """Whether an isomorphism keeps the colours, which are refined and occur in both graphs equally often.

    networkx's own search (VF2) takes factorial time on networks of many equal parts, so this one cuts the graphs
    apart. A vertex that is the only one of its colour can only correspond to the other graph's only vertex of that
    colour, and the refined colours of its neighbours already depend on it. So such vertices are taken out, and the
    connected parts that remain are compared one by one. A guess is needed only where nothing can be taken out.
    """
    partners: dict[Hashable, list[Colours]] = {}
    for part in _parts(graphs, second):
        partners.setdefault(_profile(part), []).append(part)
    for part in _parts(graphs, first):
        # isomorphism is an equivalence relation, so the first partner is as good as any other
        candidates = partners.get(_profile(part), [])
        place = next((n for n, other in enumerate(candidates) if _match_by_guess(graphs, part, other)), None)
        if place is None:
            return False
        del candidates[place]
    return True


def _profile(part: Colours) -> Hashable:
    return frozenset(Counter(part.values()).items())


def _parts(graphs: _Graphs, colours: Colours) -> list[Colours]:
    """The connected parts that remain when each vertex that is the only one of its colour is taken out."""
    count = Counter(colours.values())
    rest = {vertex: colour for vertex, colour in colours.items() if count[colour] > 1}
    parts = []
    while rest:
        reached = [rest.popitem()]
        for vertex, _ in reached:
            reached += [(other, rest.pop(other)) for _, other in graphs.near[vertex] if other in rest]
        parts.append(dict(reached))
    return parts


def _match_by_guess(graphs: _Graphs, first: Colours, second: Colours) -> bool:
    """Let one vertex of the rarest colour correspond to each of the other graph's vertices of that colour in turn."""
    count = Counter(first.values())
    rarest = min(count, key=lambda colour: count[colour])
    if max(count.values()) == 1:
        return True
    cells = _Cells(graphs, first | second)
    vertex = next(vertex for vertex, colour in first.items() if colour == rarest)
    for other in [other for other, colour in second.items() if colour == rarest]:
        pair = cells.split(cells.of[vertex], (vertex, other))
        if cells.refine([pair]) and _match_parts(graphs, *cells.colours()):
            return True
        cells.undo()
    return False
