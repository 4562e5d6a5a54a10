"""Where everything in a drawing stands: pure geometry, in points (1/72 inch), y upwards.

The symbols are laid out first: a chain on a line, a ring on a circle, anything else by networkx (Kamada & Kawai 1989),
with room for the labels. Then every bond, leg and text has a list of places where it could be; each in turn takes the
cheapest, given the others, until nothing changes. Connected parts stand side by side. Nothing is random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import networkx as nx
import numpy as np

from ...errors import NetworkError, explain
from ..nodes import Node
from .items import Item, Symbol, symbols_and_items
from .labels import THROUGH_TEXT, Chosen, bezier, choose
from .vertices import ROW_WIDTH, Array, chain, energy_layouts, outward, push_apart, ring, upright

LARGEST_DRAWING = 120
"""Nodes; a larger network takes long to draw, and its drawing is not legible."""

UNIT = 80.0
"""Points between neighbours at places of whole numbers, where the caller chooses the places."""

LEG_ROOM = 45.0
"""How far from a symbol the energy layout keeps the ends of its legs."""

PART_GAP = 36.0
"""Points between connected parts."""

Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class Layout:
    """Everything that is drawn, and the box (left, bottom, right, top) around it.

    The symbols are those of the nodes in their order, then those of the hyperedges. Shapes: the centres of the
    symbols (symbols, 2); for each item a cubic Bezier curve (items, 4, 2) and the box of its text (items, 4) as x, y,
    half width, half height, NaN without a text.
    """

    symbols: Sequence[Symbol]
    xy: Array
    items: Sequence[Item]
    curves: Array
    boxes: Array

    @property
    def box(self) -> Box:
        half = np.array([symbol.half for symbol in self.symbols])
        texts = self.boxes[~np.isnan(self.boxes[:, 0])]
        lines = self.curves[[item.kind != "note" for item in self.items]]
        along = bezier(lines, np.broadcast_to(np.linspace(0, 1, 9), (len(lines), 9))).reshape(-1, 2)
        low = np.concatenate([self.xy - half, texts[:, :2] - texts[:, 2:], along]).min(axis=0)
        high = np.concatenate([self.xy + half, texts[:, :2] + texts[:, 2:], along]).max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def layout(
    nodes: Sequence[Node],
    output: Sequence[str],
    sizes: Mapping[str, int],
    places: Mapping[int | str, tuple[float, float]] | None = None,
) -> Layout:
    """Place the nodes of a network, its bonds, its legs and their labels.

    Args:
        places: where each node stands, by its number, or by its name where only one node has that name, in units of
            UNIT points; and where the dot of a hyperedge does, by its label, or else amid its carriers. By default
            the layout finds them.

    Returns:
        No two symbols overlap.

    Raises:
        NetworkError: more than LARGEST_DRAWING nodes, or a node without a place.
    """
    if len(nodes) > LARGEST_DRAWING:
        raise NetworkError(
            explain(f"a network of {len(nodes)} nodes is too large to draw", fix=f"at most {LARGEST_DRAWING} nodes")
        )
    symbols, items = symbols_and_items(nodes, output, sizes)
    if places is not None:
        graph = _graph(symbols, items)
        return _fitted(symbols, items, graph, [(0.0, _chosen_positions(nodes, symbols, graph, places))], hang=False)
    xy, curves, boxes = np.zeros((len(symbols), 2)), np.zeros((len(items), 4, 2)), np.zeros((len(items), 4))
    parts = []
    for members in sorted(map(sorted, nx.connected_components(_graph(symbols, items)))):
        number = {symbol: position for position, symbol in enumerate(members)}
        held = [position for position, item in enumerate(items) if item.ends[0] in number]
        inner = [replace(items[position], ends=tuple(number[end] for end in items[position].ends)) for position in held]
        parts.append((members, held, _connected([symbols[member] for member in members], inner)))
    for (members, held, part), shift in zip(parts, _shifts([part.box for _, _, part in parts]), strict=True):
        xy[members], curves[held] = part.xy + shift, part.curves + shift
        boxes[held] = part.boxes + np.concatenate([shift, [0.0, 0.0]])
    return Layout(symbols, xy, items, curves, boxes)


def _chosen_positions(
    nodes: Sequence[Node],
    symbols: Sequence[Symbol],
    graph: nx.Graph[int],
    places: Mapping[int | str, tuple[float, float]],
) -> Array:
    """The places that the caller chose, in points."""
    names = Counter(node.name for node in nodes)
    keys = [
        node.name if number not in places and names[node.name] == 1 else number for number, node in enumerate(nodes)
    ]
    missing = [f"{key}: {nodes[number].name}" for number, key in enumerate(keys) if key not in places]
    dots = {symbol.place for symbol in symbols[len(nodes) :]}
    unknown = [repr(key) for key in places if key not in keys and key not in dots]
    if missing or unknown:
        raise NetworkError(
            explain(
                "the places are not those of the nodes",
                missing=", ".join(missing) or None,
                unknown=", ".join(unknown) or None,
                fix="one for each node, by number or name: {0: (0, 0), 'G': (1, 0)}",
            )
        )
    xy = np.zeros((len(symbols), 2))
    xy[: len(nodes)] = UNIT * np.array([places[key] for key in keys], dtype=float)
    for dot in range(len(nodes), len(symbols)):
        label = symbols[dot].place
        amid = xy[sorted(graph[dot])].mean(axis=0)
        xy[dot] = UNIT * np.array(places[label], dtype=float) if label in places else amid
    return xy


def _graph(symbols: Sequence[Symbol], items: Sequence[Item]) -> nx.Graph[int]:
    """The symbols, joined where there are bonds; each edge has the "length" that its labels need."""
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(len(symbols)))
    legs = Counter(item.ends[0] for item in items if item.kind in ("open", "closed"))
    for item in items:
        if item.kind == "bond":
            a, b = item.ends
            gap = max(34.0, 2 * min(item.half[0], 60.0) + 20.0) if item.text else 26.0
            length = gap + 24.0 * (item.spread is not None)
            length += sum(symbols[end].half[0] + 8.0 * max(0, legs[end] - 4) for end in item.ends)
            graph.add_edge(a, b, length=max(length, graph.get_edge_data(a, b, {"length": 0.0})["length"]))
    return graph


def _connected(symbols: Sequence[Symbol], items: Sequence[Item]) -> Layout:
    """The layout of a connected part."""
    graph = _graph(symbols, items)
    if all(degree <= 2 for _, degree in graph.degree):
        is_chain = graph.number_of_edges() < len(symbols)
        xy = chain(graph) if is_chain else ring(graph)
        return _fitted(symbols, items, graph, [(0.0, xy) if is_chain else upright(xy, graph)], hang=is_chain)
    with_leg_ends = graph.copy()
    for item in items:
        if item.kind != "bond":
            with_leg_ends.add_edge(item.ends[0], len(with_leg_ends), length=LEG_ROOM)
    tries = [energy_layouts(graph, untangle=False), energy_layouts(with_leg_ends, untangle=True)]
    best = 3 if len(symbols) <= 12 else 1
    arranged = [upright(xy[: len(symbols)], graph) for layouts in tries for xy in layouts[:best]]
    return _fitted(symbols, items, graph, arranged, hang=False)


def _fitted(
    symbols: Sequence[Symbol],
    items: Sequence[Item],
    graph: nx.Graph[int],
    tries: Sequence[tuple[float, Array]],
    *,
    hang: bool,
) -> Layout:
    """The best of several arrangements, each with how slanted it is, wider if texts collide; with its labels."""
    half = np.array([symbol.half for symbol in symbols])
    found: list[tuple[float, Array, Chosen]] = []
    for factor in (1.0, 1.5):
        found = []
        for slant, xy in tries:
            points = push_apart(xy * factor, half)
            chosen = choose(symbols, items, points, outward(points, graph, hang=hang))
            found.append((chosen.total + 10 * slant * len(symbols), points, chosen))
        _, points, chosen = min(found, key=lambda one: one[0])
        if chosen.worst < THROUGH_TEXT:
            break
    return Layout(symbols, np.round(points, 3), items, np.round(chosen.curves, 3), np.round(chosen.boxes, 3))


def _shifts(boxes: Sequence[Box]) -> Array:
    """How far each connected part moves, so that they stand in rows from left to right: shape (parts, 2)."""
    shifts = np.zeros((len(boxes), 2))
    rows: list[list[int]] = [[]]
    x = y = 0.0
    for part, (left, _, right, _) in enumerate(boxes):
        if rows[-1] and x + right - left > ROW_WIDTH:
            rows.append([])
            x = 0.0
        shifts[part, 0] = x - left
        rows[-1].append(part)
        x += right - left + PART_GAP
    for row in rows:
        height = max(boxes[part][3] - boxes[part][1] for part in row)
        for part in row:
            shifts[part, 1] = y - height / 2 - (boxes[part][1] + boxes[part][3]) / 2
        y -= height + PART_GAP
    return shifts
