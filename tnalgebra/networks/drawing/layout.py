"""The places of everything in a drawing, in points (1/72 inch) with y upwards.

First the symbols are placed, with room for the labels between them: a chain on a line, a ring on a circle, anything
else by networkx (Kamada and Kawai 1989). Then every bond, leg and text takes the cheapest of its possible places, see
`labels`. Connected parts are side by side. Nothing is random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeAlias

import networkx as nx
import numpy as np

from ...errors import NetworkError
from ..nodes import Node
from .items import Item, Symbol, symbols_and_items
from .labels import THROUGH_TEXT, Chosen, bezier, choose
from .vertices import ROW_WIDTH, Array, chain, energy_layouts, outward, push_apart, ring, upright

LARGEST_DRAWING = 120
"""Most nodes. The drawing of a larger network takes long and is not legible."""

UNIT = 80.0
"""Points for a distance of 1 where the caller chooses the places."""

LEG_ROOM = 45.0
"""Points between a symbol and the ends of its legs in the energy layout."""

PART_GAP = 36.0
"""Points between connected parts."""

TERM_GAP = 44.0
"""Points between two terms of a sum, with the plus in the middle."""

PLUS = Item("note", (), "+", "+")

Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class Layout:
    """Everything that is drawn, with its place.

    symbols: those of the nodes in their order, and then those of the hyperedges.
    xy: shape (symbols, 2), the centres of the symbols.
    items: the bonds, legs and texts.
    curves: shape (items, 4, 2), a cubic Bezier curve for each item.
    boxes: shape (items, 4), the box of its text as x, y, half width, half height; NaN if it has no text.
    """

    symbols: Sequence[Symbol]
    xy: Array
    items: Sequence[Item]
    curves: Array
    boxes: Array

    @property
    def box(self) -> Box:
        """The box around everything: left, bottom, right, top."""
        half = np.array([symbol.half for symbol in self.symbols])
        texts = self.boxes[~np.isnan(self.boxes[:, 0])]
        lines = self.curves[[item.kind != "note" for item in self.items]]
        along = bezier(lines, np.broadcast_to(np.linspace(0, 1, 9), (len(lines), 9))).reshape(-1, 2)
        low = np.concatenate([self.xy - half, texts[:, :2] - texts[:, 2:], along]).min(axis=0)
        high = np.concatenate([self.xy + half, texts[:, :2] + texts[:, 2:], along]).max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def layout_terms(
    terms: Sequence[Sequence[Node]],
    output: Sequence[str],
    sizes: Mapping[str, int],
    places: Mapping[int | str, tuple[float, float]] | None = None,
) -> Layout:
    """Place the terms of a network from left to right, each as `layout` places it, with a plus between them.

    Args:
        places: of all nodes, which are numbered from the first term to the last; see `layout`.

    Raises:
        NetworkError: the terms have more than LARGEST_DRAWING nodes together, or `places` lacks one of them.
    """
    nodes = [node for term in terms for node in term]
    if len(nodes) > LARGEST_DRAWING:
        raise NetworkError(
            f"a network of {len(nodes)} nodes is too large to draw", fix=f"at most {LARGEST_DRAWING} nodes"
        )
    if len(terms) == 1:
        return layout(nodes, output, sizes, places)
    of_terms = _places_of_terms(terms, nodes, places)
    plans = [layout(term, output, sizes, one) for term, one in zip(terms, of_terms, strict=True)]
    return _side_by_side(plans, [len(term) for term in terms], move=places is None)


def _places_of_terms(
    terms: Sequence[Sequence[Node]], nodes: Sequence[Node], places: Mapping[int | str, tuple[float, float]] | None
) -> list[dict[int | str, tuple[float, float]] | None]:
    """The places that the caller chose, by the numbers of the nodes in each term."""
    if places is None:
        return [None] * len(terms)
    keys = _place_keys(nodes, places)
    labels = {label for node in nodes for label in node.labels}
    _check_places(nodes, keys, places, labels)
    numbers = iter(range(len(nodes)))
    of_terms: list[dict[int | str, tuple[float, float]] | None] = []
    for term in terms:
        own: dict[int | str, tuple[float, float]] = {place: places[keys[next(numbers)]] for place in range(len(term))}
        carried = [label for node in term for label in node.labels]
        dots = [label for label in dict.fromkeys(carried) if label in places and label not in keys]
        of_terms.append(own | {label: places[label] for label in dots if carried.count(label) > 1})
    return of_terms


def _side_by_side(plans: Sequence[Layout], counts: Sequence[int], *, move: bool) -> Layout:
    """The layouts of terms as one, with a plus between two of them.

    Args:
        counts: the number of nodes of each term.
        move: whether the terms are moved to stand in one row; otherwise each stays where it is.
    """
    symbols: list[Symbol] = []
    items: list[Item] = []
    xy, curves, boxes = [], [], []
    end = 0.0
    for number, (plan, before) in enumerate(zip(plans, accumulate(counts, initial=0), strict=False)):
        left, bottom, right, top = plan.box
        shift = np.array([end - left, -(bottom + top) / 2]) if move else np.zeros(2)
        if number:
            at = [end - TERM_GAP / 2, 0.0] if move else [(end + left) / 2, (bottom + top) / 2]
            items.append(PLUS)
            curves.append(np.zeros((1, 4, 2)))
            boxes.append(np.array([[*at, *PLUS.half]]))
        offset = len(symbols)
        symbols += [
            replace(one, place=one.place + before) if isinstance(one.place, int) else one for one in plan.symbols
        ]
        items += [replace(item, ends=tuple(offset + place for place in item.ends)) for item in plan.items]
        xy.append(plan.xy + shift)
        curves.append(plan.curves + shift)
        boxes.append(plan.boxes + np.concatenate([shift, [0.0, 0.0]]))
        end = right + shift[0] + TERM_GAP if move else right
    joined = [np.round(np.concatenate(one), 3) for one in (xy, curves, boxes)]
    return Layout(symbols, joined[0], items, joined[1], joined[2])


def layout(
    nodes: Sequence[Node],
    output: Sequence[str],
    sizes: Mapping[str, int],
    places: Mapping[int | str, tuple[float, float]] | None = None,
) -> Layout:
    """Place the nodes of a network, its bonds, its legs and their labels. No two symbols overlap.

    Args:
        places: as `Network.draw` describes, in units of UNIT points. By default the layout chooses all places.

    Raises:
        NetworkError: `places` lacks a node.
    """
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
    """The places that the caller chose, in points, and those of the other hyperedges."""
    keys = _place_keys(nodes, places)
    _check_places(nodes, keys, places, {symbol.place for symbol in symbols[len(nodes) :]})
    xy = np.zeros((len(symbols), 2))
    xy[: len(nodes)] = UNIT * np.array([places[key] for key in keys], dtype=float)
    for dot in range(len(nodes), len(symbols)):
        label = symbols[dot].place
        amid = xy[sorted(graph[dot])].mean(axis=0)
        xy[dot] = UNIT * np.array(places[label], dtype=float) if label in places else amid
    return xy


def _place_keys(nodes: Sequence[Node], places: Mapping[int | str, tuple[float, float]]) -> list[int | str]:
    """For each node what the caller calls it: its name if it is the only node of that name, or its number."""
    names = Counter(node.name for node in nodes)
    return [node.name if n not in places and names[node.name] == 1 else n for n, node in enumerate(nodes)]


def _check_places(
    nodes: Sequence[Node],
    keys: Sequence[int | str],
    places: Mapping[int | str, tuple[float, float]],
    dots: Collection[int | str],
) -> None:
    """Raise NetworkError unless the places are those of all nodes, and of some hyperedges."""
    missing = [f"{key}: {nodes[number].name}" for number, key in enumerate(keys) if key not in places]
    unknown = [repr(key) for key in places if key not in keys and key not in dots]
    if missing or unknown:
        raise NetworkError(
            "the places are not those of the nodes",
            missing=", ".join(missing) or None,
            unknown=", ".join(unknown) or None,
            fix="a place for each node, by its number or name: {0: (0, 0), 'G': (1, 0)}",
        )


def _graph(symbols: Sequence[Symbol], items: Sequence[Item]) -> nx.Graph[int]:
    """The symbols as vertices and the bonds as edges, each with the "length" that its label needs."""
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
    """Lay out a connected part."""
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
    """The best of several arrangements (slant, positions), with its labels. It is made wider if texts overlap."""
    half = np.array([symbol.half for symbol in symbols])
    for factor in (1.0, 1.5):
        arranged: list[tuple[float, Array, Chosen]] = []
        for slant, xy in tries:
            points = push_apart(xy * factor, half)
            chosen = choose(symbols, items, points, outward(points, graph, hang=hang))
            arranged.append((chosen.total + 10 * slant * len(symbols), points, chosen))
        _, points, chosen = min(arranged, key=lambda one: one[0])
        if chosen.worst < THROUGH_TEXT:
            break
    return Layout(symbols, np.round(points, 3), items, np.round(chosen.curves, 3), np.round(chosen.boxes, 3))


def _shifts(boxes: Sequence[Box]) -> Array:
    """How far to move each connected part so that the parts are in rows, from left to right: shape (parts, 2)."""
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
