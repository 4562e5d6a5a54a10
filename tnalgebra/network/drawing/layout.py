"""Where everything in a drawing stands: pure geometry, in points (1/72 inch), y upwards.

The nodes and the dots of hyperedges are the vertices. They are laid out first: a chain on a line, a ring on a circle,
anything else by networkx (Kamada & Kawai 1989), with room for the labels. Then every bond, leg and text has a list of
places where it could be; each in turn takes the cheapest, given the others, until nothing changes. If texts still
collide, the vertices move apart and the places are chosen again. Nothing is random.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import networkx as nx
import numpy as np

from ...errors import NetworkError, explain
from ..nodes import Conv, Copy, Fill, Fuse, NamedTensor, Node
from .labels import (
    LOOP_WIDTH,
    NOTE_SIZE,
    THROUGH_TEXT,
    Choice,
    Item,
    Kind,
    Vertex,
    bezier,
    choose,
    half_extent,
    largest_half,
    shown,
)
from .vertices import ROW_WIDTH, Array, chain, crown_radius, energy_layouts, outward, push_apart, ring, upright

NAME_SIZE = 11.0
LARGEST_CIRCLE = 21.0
"""A name that needs a circle of a larger radius stands in a flat shape with round ends."""

LARGEST_DRAWING = 120
"""Nodes; a larger network takes long to draw, and nobody could read it."""

LINE_GAP = 6.0
"""The lines of a node leave its circle at about this distance, even if it has to be larger for that."""

MANY_ENDS, SOME_ENDS = 10, 4
"""If a vertex has more lines than the first, those with more than the second share the directions evenly."""

UNIT = 80.0
"""Points between neighbours at places of whole numbers, where the caller chooses the places."""

LEG_ROOM = 45.0
"""How far from a vertex the energy layout keeps the ends of its legs."""


Box: TypeAlias = tuple[float, float, float, float]

Places: TypeAlias = Mapping[int | str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Symbol:
    """The symbol of a node (`place` is its position among the nodes) or of a hyperedge (`place` is its label)."""

    place: int | str
    x: float
    y: float
    half_width: float
    half_height: float


@dataclass(frozen=True, slots=True)
class Line:
    """A bond, leg or loop: a cubic Bezier curve of four points; `label` is the label that it carries."""

    kind: Kind
    label: str
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A label or the attributes of a node, centred at (x, y) in a box of twice the half width and height."""

    kind: Literal["label", "note"]
    text: str
    x: float
    y: float
    half_width: float
    half_height: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that is drawn, and the box (left, bottom, right, top) around it."""

    symbols: tuple[Symbol, ...]
    lines: tuple[Line, ...]
    texts: tuple[Text, ...]
    box: Box


def layout(
    nodes: Sequence[Node],
    output: Sequence[str],
    sizes: Mapping[str, int],
    places: Places | None = None,
) -> Layout:
    """Place the nodes of a network, its bonds, its legs and their labels.

    Args:
        places: where each node stands, by its number, or by its name where only one node has that name, in units of
            UNIT points; and where the dot of a hyperedge does, by its label, or else amid its carriers. By default
            the layout finds them.

    Returns:
        One symbol for each node, in the order of `nodes`, then one for each hyperedge. No two symbols overlap.
        Components stand side by side, in rows if there are many.

    Raises:
        NetworkError: more than LARGEST_DRAWING nodes, or a node without a place.
    """
    if len(nodes) > LARGEST_DRAWING:
        raise NetworkError(
            explain(f"a network of {len(nodes)} nodes is too large to draw", fix=f"at most {LARGEST_DRAWING} nodes")
        )
    vertices, items = _vertices_and_items(nodes, output, sizes)
    if places is not None:
        return _as_placed(vertices, items, nodes, places)
    graph = _graph(vertices, items)
    parts = []
    for members in sorted(map(sorted, nx.connected_components(graph))):
        number = {vertex: position for position, vertex in enumerate(members)}
        own = [replace(item, ends=tuple(number[v] for v in item.ends)) for item in items if item.ends[0] in number]
        parts.append(_component([vertices[v] for v in members], own))
    return _side_by_side(parts)


def _as_placed(vertices: Sequence[Vertex], items: Sequence[Item], nodes: Sequence[Node], places: Places) -> Layout:
    names = Counter(node.name for node in nodes)
    keys = [
        node.name if number not in places and names[node.name] == 1 else number for number, node in enumerate(nodes)
    ]
    missing = [f"{key}: {nodes[number].name}" for number, key in enumerate(keys) if key not in places]
    dots = {vertex.place for vertex in vertices[len(nodes) :]}
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
    graph = _graph(vertices, items)
    xy = np.zeros((len(vertices), 2))
    for number, key in enumerate(keys):
        xy[number] = UNIT * np.array(places[key], dtype=float)
    for dot in range(len(nodes), len(vertices)):
        label = vertices[dot].place
        amid = xy[sorted(graph[dot])].mean(axis=0)
        xy[dot] = UNIT * np.array(places[label], dtype=float) if label in places else amid
    _, _, points, choice = _attempt(vertices, items, {}, xy)
    return _put(vertices, items, points, choice)


# What there is to place --------------------------------------------------------------------------------------


def _symbol_half(node: Node) -> tuple[float, float]:
    around = len(node.labels) * LINE_GAP / (2 * math.pi)
    match node:
        case NamedTensor():
            width = half_extent(shown(node.name), NAME_SIZE)[0] + 5.0
            least = max(15.0, around)
            return max(least, width), least if width > max(LARGEST_CIRCLE, least) else max(least, width)
        case Fill():
            return max(10.0, half_extent(shown(str(node.value)), NOTE_SIZE)[0] + 5.0), 10.0
        case Conv():
            return 14.0, 14.0
        case Fuse():
            return max(13.0, around), max(13.0, around)
        case Copy():
            return max(4.0, around / 2), max(4.0, around / 2)


def _vertices_and_items(
    nodes: Sequence[Node], output: Sequence[str], sizes: Mapping[str, int]
) -> tuple[list[Vertex], list[Item]]:
    vertices = [Vertex(position, _symbol_half(node)) for position, node in enumerate(nodes)]
    carriers: dict[str, list[int]] = {}
    for position, node in enumerate(nodes):
        for label in node.labels:
            carriers.setdefault(label, []).append(position)
    items: list[Item] = []
    for label, at in carriers.items():
        text = shown(label) + (f":{sizes[label]}" if label in sizes else "")
        if len(at) == 1:
            items.append(Item("open" if label in output else "closed", (at[0],), label, text))
        elif len(at) == 2 and label not in output:
            items.append(Item("bond" if at[0] != at[1] else "loop", tuple(dict.fromkeys(at)), label, text))
        else:
            dot = len(vertices)
            vertices.append(Vertex(label, (3.5, 3.5)))
            items += [Item("bond", (position, dot), label, "") for position in at]
            items.append(Item("open" if label in output else "note", (dot,), label, text))
    for position, node in enumerate(nodes):
        if isinstance(node, Conv) and node.attributes:
            note = "\n".join(f"{key} {text}" for key, text in node.attributes.items())
            items.append(Item("note", (position,), "", note))
    order: dict[Kind, int] = {"bond": 0, "loop": 1, "open": 2, "closed": 2, "note": 3}
    return vertices, sorted(_counted(items), key=lambda item: order[item.kind])


def _counted(items: Sequence[Item]) -> Iterator[Item]:
    """The same items, parallel bonds and legs of one vertex numbered from the middle one."""
    groups: dict[tuple[bool, tuple[int, ...]], list[Item]] = {}
    for item in items:
        if item.kind in ("bond", "open", "closed"):
            groups.setdefault((item.kind == "bond", item.ends), []).append(item)
    met: Counter[tuple[bool, tuple[int, ...]]] = Counter()
    for item in items:
        key = item.kind == "bond", item.ends
        group = groups.get(key, [])
        if len(group) == 1 or item.kind not in ("bond", "open", "closed"):
            yield item
            continue
        offset = met[key] - (len(group) - 1) / 2
        met[key] += 1
        yield replace(item, offset=offset, spread=largest_half(group))


# Components --------------------------------------------------------------------------------------------------


def _graph(vertices: Sequence[Vertex], items: Sequence[Item], room: Sequence[float] | None = None) -> nx.Graph[int]:
    """The vertices, joined where there are bonds; each edge has the "length" that its labels need.

    Args:
        room: of each vertex, what its legs need around it; by default no more than a bond leaves anyway.
    """
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(len(vertices)))
    for item in items:
        if item.kind == "bond":
            a, b = item.ends
            gap = max(34.0, 2 * min(item.half[0], 60.0) + 20.0) if item.text else 26.0
            length = gap + 24.0 * (item.spread is not None) + vertices[a].half[0] + vertices[b].half[0]
            length += 0.0 if room is None else room[a] + room[b]
            graph.add_edge(a, b, length=max(length, graph.get_edge_data(a, b, {"length": 0.0})["length"]))
    return graph


def _component(vertices: Sequence[Vertex], items: Sequence[Item]) -> Layout:
    ends = Counter(vertex for item in items for vertex in item.ends)
    found = []
    if max(ends.values(), default=0) <= MANY_ENDS:
        found.append(_attempt(vertices, items, {}))
    if not found or found[0][0]:
        crowded = {}
        for vertex in sorted(vertex for vertex, count in ends.items() if count > SOME_ENDS):
            own = [item for item in items if vertex in item.ends]
            slots = sum(LOOP_WIDTH if item.kind == "loop" else 1.0 for item in own)
            crowded[vertex] = crown_radius(slots, largest_half(own))
        if crowded or not found:
            found.append(_attempt(vertices, items, crowded))
    _, _, points, choice = min(found, key=lambda one: one[:2])
    return _put(vertices, items, points, choice)


def _attempt(
    vertices: Sequence[Vertex], items: Sequence[Item], crowded: Mapping[int, float], given: Array | None = None
) -> tuple[bool, float, Array, Choice]:
    """Whether texts still collide, the cost, the positions of the vertices, and the places of the items.

    given: positions of the vertices, kept but for their scale.
    """
    half = np.array([vertex.half for vertex in vertices])
    room = np.zeros(len(vertices))
    for vertex, radius in crowded.items():
        legs = [item for item in items if item.ends == (vertex,)]
        wide = 2 * largest_half(legs)[0] if legs else 0.0
        room[vertex] = max(radius - half[vertex, 0], 20.0) + wide
    graph = _graph(vertices, items, room.tolist())
    simple = all(degree <= 2 for _, degree in graph.degree)
    is_chain = given is None and simple and graph.number_of_edges() == len(vertices) - 1
    large = len(items) > 80  # one try is to do
    if given is not None:
        tries = [(0.0, given)]
    elif is_chain:
        tries = [(0.0, chain(graph))]
    elif simple:
        tries = [upright(ring(graph), graph)]
    else:
        tries = [
            upright(xy[: len(vertices)], graph)
            for whole in ((graph,) if large or crowded else (graph, _with_leg_ends(graph, items)))
            for xy in energy_layouts(whole, untangle=whole is not graph)[: 3 if len(vertices) <= 12 else 1]
        ]
    for factor in (1.0, 1.45) if large else (1.0, 1.2, 1.45, 1.75, 2.1):
        found: list[tuple[bool, float, Array, Choice]] = []
        for slant, xy in tries:
            points = push_apart(xy * factor, half + room[:, None])
            choice = choose(vertices, items, points, outward(points, graph, hang=is_chain), crowded)
            found.append((choice.worst >= THROUGH_TEXT, choice.total + 10 * slant * len(vertices), points, choice))
        best = min(found, key=lambda one: one[:2])
        if not best[0]:
            break
    return best


def _with_leg_ends(graph: nx.Graph[int], items: Sequence[Item]) -> nx.Graph[int]:
    """The graph with one more vertex for each leg, loop and note, so that there is room for it."""
    whole = graph.copy()
    for item in items:
        if item.kind != "bond":
            whole.add_edge(item.ends[0], len(whole), length=LEG_ROOM)
    return whole


def _put(vertices: Sequence[Vertex], items: Sequence[Item], xy: Array, choice: Choice) -> Layout:
    symbols = tuple(
        Symbol(vertex.place, round(float(x), 3), round(float(y), 3), *vertex.half)
        for vertex, (x, y) in zip(vertices, xy, strict=True)
    )
    lines, texts = [], []
    for item, curve, box in zip(items, choice.curves, choice.boxes, strict=True):
        if item.kind != "note":
            points = tuple((round(float(x), 3), round(float(y), 3)) for x, y in curve)
            lines.append(Line(item.kind, item.label, points))
        if item.text:
            x, y = (round(float(number), 3) for number in box[:2])
            texts.append(Text("label" if item.label else "note", item.text, x, y, *item.half))
    boxes = [(s.x - s.half_width, s.y - s.half_height, s.x + s.half_width, s.y + s.half_height) for s in symbols]
    boxes += [(t.x - t.half_width, t.y - t.half_height, t.x + t.half_width, t.y + t.half_height) for t in texts]
    for line in lines:
        along = bezier(np.array([line.curve]), np.linspace(0, 1, 9)[None])[0]
        boxes.append((*along.min(axis=0), *along.max(axis=0)))
    return Layout(symbols, tuple(lines), tuple(texts), _hull(boxes))


def _hull(boxes: Sequence[Box]) -> Box:
    left, bottom, right, top = zip(*boxes, strict=True)
    return float(min(left)), float(min(bottom)), float(max(right)), float(max(top))


def _side_by_side(parts: Sequence[Layout], gap: float = 36.0) -> Layout:
    """Components from left to right, in rows if one row would be much wider than high."""
    extents = [(right - left, top - bottom) for left, bottom, right, top in (part.box for part in parts)]
    area = sum((width + gap) * (height + gap) for width, height in extents)
    room = max(ROW_WIDTH * 0.6, math.sqrt(2.5 * area), max(width for width, _ in extents))
    rows: list[list[int]] = [[]]
    used = 0.0
    for number, (width, _) in enumerate(extents):
        if rows[-1] and used + width > room:
            rows.append([])
            used = 0.0
        rows[-1].append(number)
        used += width + gap
    moved: dict[int, Layout] = {}
    top = 0.0
    for row in rows:
        height = max(extents[number][1] for number in row)
        x = 0.0
        for number in row:
            left, bottom, _, high = parts[number].box
            moved[number] = _moved(parts[number], x - left, top - height / 2 - (bottom + high) / 2)
            x += extents[number][0] + gap
        top -= height + gap
    placed = [moved[number] for number in range(len(parts))]
    symbols = [symbol for part in placed for symbol in part.symbols]
    nodes = sorted((s for s in symbols if isinstance(s.place, int)), key=lambda s: int(s.place))
    dots = [symbol for symbol in symbols if isinstance(symbol.place, str)]
    return Layout(
        (*nodes, *dots),
        tuple(line for part in placed for line in part.lines),
        tuple(text for part in placed for text in part.texts),
        _hull([part.box for part in placed]),
    )


def _moved(part: Layout, dx: float, dy: float) -> Layout:
    left, bottom, right, top = part.box
    return Layout(
        tuple(replace(symbol, x=symbol.x + dx, y=symbol.y + dy) for symbol in part.symbols),
        tuple(replace(line, curve=tuple((x + dx, y + dy) for x, y in line.curve)) for line in part.lines),
        tuple(replace(text, x=text.x + dx, y=text.y + dy) for text in part.texts),
        (left + dx, bottom + dy, right + dx, top + dy),
    )
