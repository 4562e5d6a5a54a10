"""Where everything in a drawing stands: pure geometry, in points (1/72 inch), y upwards.

The nodes and the dots of hyperedges are the vertices. They are laid out first: a chain on a line, anything else by
networkx (Kamada & Kawai 1989), with room for the labels. Then every bond, leg and text has a list of places where it
could be; each in turn takes the cheapest, given the others, until nothing changes. If texts still collide, the
vertices move apart and the places are chosen again. Nothing is random.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Literal, TypeAlias

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from .errors import NetworkError, explain
from .nodes import Conv, Copy, Fill, Fuse, NamedTensor, Node

Array: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["bond", "loop", "open", "closed", "note"]

FONT = "DejaVu Sans"
NAME_SIZE, LABEL_SIZE, NOTE_SIZE = 11.0, 10.0, 8.0
LINE_HEIGHT = 1.25
LARGEST_DRAWING = 120
"""Nodes; a network of more is neither drawn in seconds nor read."""

LONGEST_TEXT = 40
"""Characters of a name or label that are shown; the middle of a longer one is left out."""

LEG_ROOM = 45.0
"""How far from a vertex the energy layout keeps the ends of its legs."""

LARGEST_UNTANGLED = 16
"""Vertices of a planar graph up to which crossings that the energy layout leaves are worked out by hand."""

LARGEST_CIRCLE = 21.0
"""A name that needs a circle of a larger radius stands in a flat shape with round ends."""

ROW_WIDTH = 640.0
"""A chain longer than this turns back on a new row, so that it stays legible on a page."""

ANGLES = np.deg2rad((180 + 15 * np.arange(24)) % 360)
SLANT = np.tile([0.0, 0.6, 0.6, 0.25, 0.6, 0.6], 4)
"""What each of the angles costs: level and upright legs look best, diagonal ones next."""

HARD, THROUGH_TEXT, CROSSING = 1000.0, 300.0, 40.0


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
    box: tuple[float, float, float, float]


def layout(nodes: Sequence[Node], output: Sequence[str], sizes: Mapping[str, int]) -> Layout:
    """Place the nodes of a network, its bonds, its legs and their labels.

    Returns:
        One symbol for each node, in the order of `nodes`, then one for each hyperedge. No two symbols overlap.
        Components stand side by side, in rows if there are many.

    Raises:
        NetworkError: more than LARGEST_DRAWING nodes.
    """
    if len(nodes) > LARGEST_DRAWING:
        raise NetworkError(
            explain(f"a network of {len(nodes)} nodes is too large to draw", fix=f"at most {LARGEST_DRAWING} nodes")
        )
    vertices, items = _vertices_and_items(nodes, output, sizes)
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(len(vertices)))
    for item in items:
        if item.kind == "bond":
            length = max(
                (graph.edges[item.ends]["length"] if graph.has_edge(*item.ends) else 0.0), item.length(vertices)
            )
            graph.add_edge(*item.ends, length=length)
    parts = []
    for component in nx.connected_components(graph):
        members = sorted(component)
        number = {vertex: position for position, vertex in enumerate(members)}
        inside = [replace(item, ends=tuple(number[v] for v in item.ends)) for item in items if item.ends[0] in number]
        small = nx.relabel_nodes(graph.subgraph(members), number)
        parts.append((members[0], _component([vertices[v] for v in members], inside, small)))
    return _side_by_side([part for _, part in sorted(parts, key=lambda pair: pair[0])])


def shown(text: str) -> str:
    """The text as it is drawn: the middle of a very long one is left out."""
    half = LONGEST_TEXT // 2
    return text if len(text) <= LONGEST_TEXT else f"{text[:half]}…{text[1 - half :]}"


# What there is to place --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Vertex:
    place: int | str
    half: tuple[float, float]

    def reach(self, angle: Array | float) -> Array:
        """From the centre to the edge of the symbol, in each direction."""
        width, height = self.half
        if width == height:
            return np.full(np.shape(angle), width)
        cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
        return np.minimum(width / np.maximum(cos, 1e-9), height / np.maximum(sin, 1e-9))


@dataclass(frozen=True, slots=True)
class _Item:
    """A bond, leg, loop or note.

    `offset` counts parallel bonds, and the legs of one vertex, from the middle one; `spread` is the widest half
    extent of parallel bonds.
    """

    kind: Kind
    ends: tuple[int, ...]
    label: str
    text: str
    offset: float = 0.0
    spread: tuple[float, float] = (0.0, 0.0)

    @property
    def half(self) -> tuple[float, float]:
        return half_extent(self.text, NOTE_SIZE if self.kind == "note" and not self.label else LABEL_SIZE)

    def length(self, vertices: Sequence[_Vertex]) -> float:
        gap = 26.0 if not self.text else max(34.0, 2 * min(self.half[0], 60.0) + 20.0)
        gap += 24.0 * (self.spread != (0.0, 0.0))
        return gap + sum(vertices[end].half[0] for end in self.ends)


@lru_cache(maxsize=4096)
def half_extent(text: str, size: float) -> tuple[float, float]:
    """Half the width and height of a text in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=FONT, size=size)
    lines = text.split("\n") if text else []
    widths = [text_to_path.get_text_width_height_descent(line, font, False)[0] for line in lines]
    return max(widths, default=0.0) / 2, len(lines) * size * LINE_HEIGHT / 2


def _symbol_half(node: Node) -> tuple[float, float]:
    match node:
        case NamedTensor():
            width = half_extent(shown(node.name), NAME_SIZE)[0] + 5.0
            return max(15.0, width), 15.0 if width > LARGEST_CIRCLE else max(15.0, width)
        case Fill():
            return max(10.0, half_extent(shown(str(node.value)), NOTE_SIZE)[0] + 5.0), 10.0
        case Conv():
            return 14.0, 14.0
        case Fuse():
            return 13.0, 13.0
        case Copy():
            return 4.0, 4.0


def _vertices_and_items(
    nodes: Sequence[Node], output: Sequence[str], sizes: Mapping[str, int]
) -> tuple[list[_Vertex], list[_Item]]:
    vertices = [_Vertex(position, _symbol_half(node)) for position, node in enumerate(nodes)]
    carriers: dict[str, list[int]] = {}
    for position, node in enumerate(nodes):
        for label in node.labels:
            carriers.setdefault(label, []).append(position)
    items: list[_Item] = []
    for label, at in carriers.items():
        text = shown(label) + (f":{sizes[label]}" if label in sizes else "")
        if len(at) == 1:
            items.append(_Item("open" if label in output else "closed", (at[0],), label, text))
        elif len(at) == 2 and label not in output:
            items.append(_Item("bond" if at[0] != at[1] else "loop", tuple(dict.fromkeys(at)), label, text))
        else:
            dot = len(vertices)
            vertices.append(_Vertex(label, (3.5, 3.5)))
            items += [_Item("bond", (position, dot), label, "") for position in at]
            items.append(_Item("open" if label in output else "note", (dot,), label, text))
    for position, node in enumerate(nodes):
        if isinstance(node, Conv) and node.attributes:
            note = "\n".join(f"{key} {text}" for key, text in node.attributes.items())
            items.append(_Item("note", (position,), "", note))
    order: dict[Kind, int] = {"bond": 0, "loop": 1, "open": 2, "closed": 2, "note": 3}
    return vertices, sorted(_counted(items), key=lambda item: order[item.kind])


def _counted(items: Sequence[_Item]) -> Iterator[_Item]:
    groups: dict[tuple[bool, tuple[int, ...]], list[_Item]] = {}
    for item in items:
        if item.kind in ("bond", "open", "closed"):
            groups.setdefault((item.kind == "bond", item.ends), []).append(item)
    for item in items:
        group = groups.get((item.kind == "bond", item.ends), [])
        if len(group) > 1 and item in group:
            halves = [other.half for other in group]
            spread = max(width for width, _ in halves), max(height for _, height in halves)
            # equal items (a label that stands twice on a node with a dot) are counted by identity
            number = next(k for k, other in enumerate(group) if other is item)
            yield replace(item, offset=number - (len(group) - 1) / 2, spread=spread)
        else:
            yield item


# Vertices ----------------------------------------------------------------------------------------------------


def _component(vertices: Sequence[_Vertex], items: Sequence[_Item], graph: nx.Graph[int]) -> Layout:
    half = np.array([vertex.half for vertex in vertices])
    simple = all(degree <= 2 for _, degree in graph.degree)
    chain = simple and graph.number_of_edges() == len(vertices) - 1
    if chain:
        tries = [(0.0, _chain(graph))]
    elif simple:
        tries = [_upright(_ring(graph), graph)]
    else:
        tries = [
            _upright(xy[: len(vertices)], graph)
            for whole in (graph, _with_leg_ends(graph, items))
            for xy in _energy_layouts(whole, untangle=whole is not graph)[: 3 if len(vertices) <= 12 else 1]
        ]
    large = len(items) > 80
    for factor in (1.0, 1.45) if large else (1.0, 1.2, 1.45, 1.75, 2.1):
        found = []
        for slant, xy in tries[: 1 if large else None]:
            points = _push_apart(xy * factor, half)
            worst, total, placed = _place(vertices, items, points, _outward(points, graph, chain))
            found.append((worst >= THROUGH_TEXT, total + 10 * slant * len(vertices), placed))
        failed, _, best = min(found, key=lambda one: one[:2])
        if not failed:
            break
    return best


def _chain(graph: nx.Graph[int]) -> Array:
    """Vertices of a path on a line from left to right; a long one turns back on a new row below."""
    ends = sorted(vertex for vertex, degree in graph.degree if degree <= 1)
    order = list(nx.dfs_preorder_nodes(graph, ends[0]))
    steps = [graph.edges[pair]["length"] for pair in pairwise(order)]
    rows = max(1, math.ceil(sum(steps) / ROW_WIDTH))
    a_row = math.ceil(len(order) / rows)
    width = max((sum(steps[start : start + a_row - 1]) for start in range(0, len(order), a_row)), default=0.0)
    xy = np.zeros((len(order), 2))
    for row, start in enumerate(range(0, len(order), a_row)):
        members = order[start : start + a_row]
        at = np.concatenate([[0.0], np.cumsum(steps[start : start + len(members) - 1])])
        if len(members) == a_row and len(members) > 1:
            at *= width / at[-1]
        xy[members] = np.stack([at if row % 2 == 0 else width - at, np.full(len(members), -105.0 * row)], axis=1)
    return xy


def _ring(graph: nx.Graph[int]) -> Array:
    """Vertices of a cycle on a circle."""
    order = list(nx.dfs_preorder_nodes(graph, 0))
    steps = np.array([graph.edges[pair]["length"] for pair in pairwise([*order, order[0]])])
    angle = 2 * np.pi * np.arange(len(order)) / len(order)
    xy = np.zeros((len(order), 2))
    xy[order] = steps.mean() / (2 * math.sin(math.pi / len(order))) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return xy


def _with_leg_ends(graph: nx.Graph[int], items: Sequence[_Item]) -> nx.Graph[int]:
    """The graph with one more vertex for each leg, loop and note, so that there is room for it."""
    whole = graph.copy()
    for item in items:
        if item.kind != "bond":
            whole.add_edge(item.ends[0], len(whole), length=LEG_ROOM)
    return whole


def _energy_layouts(graph: nx.Graph[int], *, untangle: bool) -> list[Array]:
    """Kamada and Kawai's layout from several starts; fewest crossings first, then least energy."""
    count = graph.number_of_nodes()
    rows = dict(nx.all_pairs_dijkstra_path_length(graph, weight="length"))
    distance = np.array([[rows[a][b] for b in range(count)] for a in range(count)])
    edges = np.array(list(graph.edges))
    planar = nx.check_planarity(graph)[0]
    starts = [nx.circular_layout(graph), nx.circular_layout(list(nx.dfs_preorder_nodes(graph, 0)))]
    if planar:
        starts.append(nx.planar_layout(graph))
    found: list[tuple[float, Array]] = []
    for start in starts:
        target = {a: dict(enumerate(row)) for a, row in enumerate(distance)}
        raw = nx.kamada_kawai_layout(graph, dist=target, pos=start)
        xy = _sized(np.array([raw[vertex] for vertex in range(count)]), distance)
        found.append((round(_tangle(xy, edges, distance), 6), xy))
    found.sort(key=lambda pair: pair[0])
    found = [found[0], *(pair[1] for pair in pairwise(found) if pair[1][0] > 1.01 * pair[0][0])]
    if untangle and planar and found[0][0] > CROSSING and count <= LARGEST_UNTANGLED:
        start = nx.planar_layout(graph)
        xy = _untangled(_sized(np.array([start[vertex] for vertex in range(count)]), distance), edges, distance)
        found.insert(0, (_tangle(xy, edges, distance), xy))
    near = distance[edges[:, 0], edges[:, 1]]
    return [
        xy * float(np.clip((0.85 * near / _lengths(xy)[edges[:, 0], edges[:, 1]]).max(), 1, 1.5)) for _, xy in found
    ]


def _lengths(xy: Array) -> Array:
    return np.asarray(np.linalg.norm(xy[:, None] - xy[None], axis=-1))


def _sized(xy: Array, distance: Array) -> Array:
    """Scaled so that the distances are, on the whole, as wanted."""
    weight = 1 / np.maximum(distance, 1.0) ** 2 * (1 - np.eye(len(xy)))
    here = _lengths(xy)
    return np.asarray(xy * (weight * here * distance).sum() / (weight * here**2).sum())


def _tangle(xy: Array, edges: Array, distance: Array) -> float:
    """Energy of a layout: distances that are not as wanted, crossings, vertices close to edges of others."""
    weight = 1 / np.maximum(distance, 1.0) ** 2
    stress = (weight * (_lengths(xy) - distance) ** 2).sum() / len(xy)
    ends = _shrunk(xy[edges])
    along = xy[edges[:, 1]] - xy[edges[:, 0]]
    t = ((xy[:, None] - xy[edges[:, 0]]) * along).sum(axis=-1) / (along**2).sum(axis=-1)
    foot = xy[edges[:, 0]] + np.clip(t, 0, 1)[..., None] * along
    apart = np.linalg.norm(xy[:, None] - foot, axis=-1)
    apart[edges[:, 0], np.arange(len(edges))] = np.inf
    apart[edges[:, 1], np.arange(len(edges))] = np.inf
    close = (np.maximum(0, 1 - apart / 40) ** 2).sum()
    return float(stress + close + CROSSING * _crossings(ends, ends).sum())


def _untangled(xy: Array, edges: Array, distance: Array) -> Array:
    """Move one vertex at a time to where the energy is lower; from a start without crossings none appears."""
    best = _tangle(xy, edges, distance)
    step = float(distance.max()) / 4
    while step > 2.0:
        moved = False
        for vertex in range(len(xy)):
            for angle in ANGLES[::3]:
                trial = xy.copy()
                trial[vertex] += step * np.array([math.cos(angle), math.sin(angle)])
                energy = _tangle(trial, edges, distance)
                if energy < 0.998 * best:
                    best, xy, moved = energy, trial, True
        if not moved:
            step /= 2
    return xy


def _shrunk(ends: Array) -> Array:
    """Segments a little shorter, so that two that share an end do not cross there."""
    middle = ends.mean(axis=1, keepdims=True)
    return middle + 0.98 * (ends - middle)


def _upright(xy: Array, graph: nx.Graph[int]) -> tuple[float, Array]:
    """Turned so that many edges are level or upright and the picture is wide, the first nodes left and on top.

    Returns:
        How far it is from that (0 at best, about 2 at worst), and the turned positions.
    """
    edges = np.array(list(graph.edges))
    xy = xy - xy.mean(axis=0)
    along = xy[edges[:, 1]] - xy[edges[:, 0]]
    angles = np.arctan2(along[:, 1], along[:, 0])
    length = np.hypot(along[:, 0], along[:, 1]).mean()
    main = np.linalg.eigh(xy.T @ xy)[1][:, 1]
    best: tuple[float, Array] | None = None
    for turn in np.concatenate([-angles, np.pi / 2 - angles, [-math.atan2(main[1], main[0])]]):
        turned = xy @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        width, height = np.ptp(turned, axis=0) + 1.0
        slanted = (np.sin(2 * (angles + turn)) ** 2).mean()
        mirrored = sum(_unmatched(turned * flip, turned) for flip in ([-1, 1], [1, -1])) / length
        cost = round(float(slanted + mirrored + 0.5 * height / (width + height)), 4)
        if best is None or cost < best[0]:
            best = cost, turned
    assert best is not None
    order = np.arange(len(xy)) - (len(xy) - 1) / 2
    order[0] -= 1e-3
    forward = order @ best[1]
    turned = best[1] * np.array([1.0 if forward[0] > -1e-6 else -1.0, 1.0 if forward[1] < 1e-6 else -1.0])
    return best[0], turned


def _unmatched(first: Array, second: Array) -> float:
    """How far, on average, the points of one drawing are from the nearest points of the other."""
    return float(np.linalg.norm(first[:, None] - second[None], axis=-1).min(axis=1).mean())


def _snapped(values: Array, near: float = 5.0) -> Array:
    """Coordinates that almost agree made equal."""
    order = np.argsort(values, kind="stable")
    snapped = values.copy()
    group: list[int] = []
    for vertex in [*order, None]:
        if group and (vertex is None or values[vertex] - values[group[0]] > near):
            snapped[group] = values[group].mean()
            group = []
        if vertex is not None:
            group.append(vertex)
    return snapped


def _push_apart(xy: Array, half: Array, gap: float = 16.0) -> Array:
    """Move symbols that overlap, or nearly so, apart along the axis on which the least is missing; then align."""
    xy = xy.copy()
    while True:
        for _ in range(50):
            missing = half[:, None] + half[None] + gap - np.abs(xy[:, None] - xy[None])
            pairs = np.argwhere(np.triu((missing > 1e-9).all(axis=-1), 1))
            if len(pairs) == 0:
                return np.stack([_snapped(xy[:, 0]), _snapped(xy[:, 1])], axis=1)
            for i, j in pairs:
                delta = xy[j] - xy[i]
                lack = half[i] + half[j] + gap - np.abs(delta)
                axis = int(np.argmin(lack))
                if lack[axis] > 0:
                    step = (lack[axis] / 2 + 1e-3) * (1.0 if delta[axis] >= 0 else -1.0)
                    xy[i, axis] -= step
                    xy[j, axis] += step
        xy *= 1.1


def _outward(xy: Array, graph: nx.Graph[int], chain: bool) -> Array:
    """The direction in which the legs [0] and the notes [1] of each vertex would like to be: shape (2, vertices, 2).

    Away from the neighbours; along a chain legs hang and notes stand above. Zero where nothing is better.
    """
    wanted = np.zeros((2, len(xy), 2))
    for vertex in graph:
        around = [xy[other] - xy[vertex] for other in graph[vertex]]
        away = -sum((step / np.linalg.norm(step) for step in around), np.zeros(2))
        if chain or np.linalg.norm(away) < 0.05:
            wanted[:, vertex, 1] = (-1.0, 1.0) if around else 0.0
        else:
            wanted[:, vertex] = away / np.linalg.norm(away)
    return wanted


# Bonds, legs and texts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Options:
    """The places where one item could be, and what each costs by itself.

    Shapes: curves (c, 4, 2); boxes of the text (c, 4) as x, y, half width, half height, NaN without a text;
    points along the visible part of the curve (c, POINTS, 2), NaN without a line; angles (c, ends) at which the
    line leaves its ends; cost (c,).
    """

    curves: Array
    boxes: Array
    points: Array
    angles: Array
    cost: Array

    @cached_property
    def extent(self) -> Array:
        """A box around all options, texts and lines, as x, y, half width, half height."""
        low, high = self.boxes[:, :2] - self.boxes[:, 2:], self.boxes[:, :2] + self.boxes[:, 2:]
        corners = np.concatenate([low, high, self.points.reshape(-1, 2)])
        low, high = np.nanmin(corners, axis=0), np.nanmax(corners, axis=0)
        return np.concatenate([(low + high) / 2, (high - low) / 2 + 4.0])


POINTS = 25
SEGMENTS = slice(None, None, 6)


def _bezier(curves: Array, t: Array) -> Array:
    """Points of cubic curves (c, 4, 2) at parameters (c, p): shape (c, p, 2)."""
    t = t[..., None]
    p0, p1, p2, p3 = (curves[:, None, k] for k in range(4))
    return (1 - t) ** 3 * p0 + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * p3


def _options(item: _Item, vertices: Sequence[_Vertex], xy: Array, outward: Array) -> _Options:
    vertex, at = vertices[item.ends[0]], xy[item.ends[0]]
    match item.kind:
        case "bond":
            return _bond_options(item, vertices, xy)
        case "loop":
            return _loop_options(item, vertex, at, outward[0, item.ends[0]])
        case "note":
            return _leg_options(item, vertex, at, outward[1, item.ends[0]])
        case _:
            return _leg_options(item, vertex, at, outward[0, item.ends[0]])


def _bond_options(item: _Item, vertices: Sequence[_Vertex], xy: Array) -> _Options:
    a, b = xy[item.ends[0]], xy[item.ends[1]]
    along = b - a
    length = float(np.linalg.norm(along))
    normal = np.array([-along[1], along[0]]) / length
    angle = math.atan2(along[1], along[0])
    if item.offset or item.spread != (0.0, 0.0):
        width, height = item.spread
        step = max(16.0, 2 * (width * abs(normal[0]) + height * abs(normal[1])) + 5.0)
        bends = np.array([item.offset * step])
    else:
        bends = np.array([0.0, 16.0, -16.0, 32.0, -32.0, 56.0, -56.0])
    first = float(vertices[item.ends[0]].reach(angle)) / length
    last = 1 - float(vertices[item.ends[1]].reach(angle)) / length
    places = (first + last) / 2 + (last - first) * np.array([0.0, -0.12, 0.12, -0.24, 0.24])
    if not item.text:
        places = places[:1]
    bend, place = (grid.ravel() for grid in np.meshgrid(bends, places, indexing="ij"))
    lift = 4 / 3 * bend[:, None] * normal
    ends = np.broadcast_to(a, lift.shape), np.broadcast_to(b, lift.shape)
    curves = np.stack([ends[0], a + along / 3 + lift, b - along / 3 + lift, ends[1]], axis=1)
    boxes = np.full((len(bend), 4), np.nan)
    if item.text:
        boxes[:, :2] = _bezier(curves, place[:, None])[:, 0]
        boxes[:, 2:] = item.half
    t = np.broadcast_to(np.linspace(first, last, POINTS), (len(bend), POINTS))
    leave, arrive = curves[:, 1] - a, curves[:, 2] - b
    angles = np.stack([np.arctan2(leave[:, 1], leave[:, 0]), np.arctan2(arrive[:, 1], arrive[:, 0])], axis=1)
    cost = 6.0 * (bend != bends[0]) + np.abs(bend) / 8 + 15 * np.abs(place - (first + last) / 2)
    return _Options(curves, boxes, _bezier(curves, t), angles, cost)


def _leg_options(item: _Item, vertex: _Vertex, at: Array, outward: Array) -> _Options:
    note = item.kind == "note"
    extra = np.array([2.0, 8.0] if note else [20.0, 36.0])
    angle, out = (grid.ravel() for grid in np.meshgrid(ANGLES, extra, indexing="ij"))
    slant = np.repeat(SLANT, len(extra))
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    start, end = (at + unit * (vertex.reach(angle) + more)[:, None] for more in (np.zeros_like(out), out))
    half = np.array(item.half)
    boxes = np.concatenate([end + unit * (half + 3.0), np.broadcast_to(half, unit.shape)], axis=1)
    curves = at + (end - at)[:, None] * (np.arange(4) / 3)[:, None]
    points = start[:, None] + (end - start)[:, None] * np.linspace(0, 1, POINTS)[:, None]
    cost = (out - extra[0]) / 8 + slant - 0.05 * item.offset * unit[:, 0]
    cost = cost + (2 if note else 4) * (np.linalg.norm(outward) - unit @ outward)
    if note:
        points = np.full_like(points, np.nan)
    return _Options(curves, boxes, points, angle[:, None], cost)


def _loop_options(item: _Item, vertex: _Vertex, at: Array, outward: Array) -> _Options:
    angle = ANGLES
    far = (vertex.reach(angle) + 38.0)[:, None]
    sides = [at + far * np.stack([np.cos(angle + s), np.sin(angle + s)], axis=1) for s in (-0.6, 0.6)]
    centre = np.broadcast_to(at, sides[0].shape)
    curves = np.stack([centre, sides[0], sides[1], centre], axis=1)
    tip = _bezier(curves, np.full((len(angle), 1), 0.5))[:, 0]
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    half = np.array(item.half)
    boxes = np.concatenate([tip + unit * (half + 3.0), np.broadcast_to(half, unit.shape)], axis=1)
    points = _bezier(curves, np.broadcast_to(np.linspace(0.2, 0.8, POINTS), (len(angle), POINTS)))
    cost = SLANT + 4 * (np.linalg.norm(outward) - unit @ outward)
    return _Options(curves, boxes, points, angle[:, None], cost)


def _place(
    vertices: Sequence[_Vertex], items: Sequence[_Item], xy: Array, outward: Array
) -> tuple[float, float, Layout]:
    """Choose a place for each item; returns what the worst of them costs, what all cost, and the layout."""
    symbols = np.concatenate([xy, np.array([vertex.half for vertex in vertices])], axis=1)
    options = [_options(item, vertices, xy, outward) for item in items]
    chosen = np.full(len(items), -1)
    costs = np.zeros(len(items))
    for _ in range(6):
        before = chosen.copy()
        for number, item in enumerate(items):
            cost = _cost(number, item, items, options, chosen, symbols)
            chosen[number] = int(np.argmin(np.round(cost, 6)))
            costs[number] = cost.min()
        if (chosen == before).all():
            break
    marks = tuple(
        Symbol(vertex.place, *(round(float(number), 3) for number in box))
        for vertex, box in zip(vertices, symbols, strict=True)
    )
    lines, texts = [], []
    for item, option, choice in zip(items, options, chosen, strict=True):
        if item.kind != "note":
            curve = tuple((round(float(x), 3), round(float(y), 3)) for x, y in option.curves[choice])
            lines.append(Line(item.kind, item.label, curve))
        if item.text:
            box = (round(float(number), 3) for number in option.boxes[choice])
            texts.append(Text("label" if item.label else "note", item.text, *box))
    return (
        float(costs.max(initial=0.0)),
        float(costs.sum()),
        Layout(marks, tuple(lines), tuple(texts), _around(marks, texts, lines)),
    )


def _cost(
    number: int,
    item: _Item,
    items: Sequence[_Item],
    options: Sequence[_Options],
    chosen: NDArray[np.int_],
    symbols: Array,
) -> Array:
    """What each option of one item costs, given the choices of the others so far."""
    own = options[number]
    line = own.points if item.kind == "bond" else own.points[:, ::3]
    cost = own.cost.copy()
    foreign = np.delete(symbols, item.ends, axis=0)
    cost += HARD * _overlap(own.boxes, symbols, 2.0).sum(axis=1)
    cost += HARD * _inside(line, foreign, 3.0).sum(axis=1)
    others = [k for k in range(len(items)) if k != number and chosen[k] >= 0]
    near = [
        k
        for k in others
        if (np.abs(own.extent[:2] - options[k].extent[:2]) <= own.extent[2:] + options[k].extent[2:]).all()
    ]
    if near:
        boxes = np.stack([options[k].boxes[chosen[k]] for k in near])
        points = np.stack([options[k].points[chosen[k]] for k in near])
        cost += HARD * _overlap(own.boxes, boxes, 2.0).sum(axis=1)
        cost += THROUGH_TEXT * _inside(line, boxes, 1.5).sum(axis=1)
        cost += THROUGH_TEXT * _inside(points, own.boxes, 1.5).sum(axis=0)
        if item.kind != "note":
            bars = np.stack([points[:, SEGMENTS][:, :-1], points[:, SEGMENTS][:, 1:]], axis=2).reshape(-1, 2, 2)
            cost += CROSSING * _crossings(own.points[:, SEGMENTS], bars).sum(axis=1)
    if item.kind != "note":
        weight = 0.3 if item.kind == "bond" else 1.0
        for end, vertex in enumerate(item.ends):
            there = [
                options[k].angles[chosen[k], items[k].ends.index(vertex)]
                for k in others
                if items[k].kind != "note" and vertex in items[k].ends
            ]
            between = np.abs((own.angles[:, end, None] - np.array(there) + np.pi) % (2 * np.pi) - np.pi)
            crowded = 3 * (1 - between / np.pi) ** 2 + 40 * np.maximum(0, 1 - between / np.deg2rad(65)) ** 2
            cost += weight * crowded.sum(axis=1)
    return cost


def _overlap(first: Array, second: Array, gap: float) -> NDArray[np.bool_]:
    """Which boxes (c, 4) overlap which boxes (b, 4), or come closer than `gap`: shape (c, b)."""
    apart = np.abs(first[:, None, :2] - second[:, :2]) - first[:, None, 2:] - second[:, 2:]
    return np.asarray((apart < gap).all(axis=-1))


def _inside(points: Array, boxes: Array, gap: float) -> NDArray[np.bool_]:
    """Which lines (c, p, 2) have a point inside which boxes (b, 4), or closer than `gap`: shape (c, b)."""
    apart = np.abs(points[:, :, None] - boxes[:, :2]) - boxes[:, 2:]
    return np.asarray((apart < gap).all(axis=-1).any(axis=1))


def _crossings(lines: Array, segments: Array) -> NDArray[np.bool_]:
    """Which polygonal lines (c, p, 2) cross which segments (s, 2, 2): shape (c, s)."""
    start, step = lines[:, :-1, None], np.diff(lines, axis=1)[:, :, None]
    from_, along = segments[:, 0], segments[:, 1] - segments[:, 0]

    def side(origin: Array, direction: Array, point: Array) -> Array:
        gap = point - origin
        return direction[..., 0] * gap[..., 1] - direction[..., 1] * gap[..., 0]

    apart = side(start, step, from_) * side(start, step, from_ + along) < -1e-9
    split = side(from_, along, start) * side(from_, along, start + step) < -1e-9
    return np.asarray((apart & split).any(axis=1))


# Components --------------------------------------------------------------------------------------------------


def _around(
    symbols: Iterable[Symbol], texts: Iterable[Text], lines: Iterable[Line]
) -> tuple[float, float, float, float]:
    boxes = [[s.x - s.half_width, s.y - s.half_height, s.x + s.half_width, s.y + s.half_height] for s in symbols]
    boxes += [[t.x - t.half_width, t.y - t.half_height, t.x + t.half_width, t.y + t.half_height] for t in texts]
    for line in lines:
        points = _bezier(np.array([line.curve]), np.linspace(0, 1, 9)[None])[0]
        boxes.append([*points.min(axis=0), *points.max(axis=0)])
    low, high = np.array(boxes)[:, :2].min(axis=0), np.array(boxes)[:, 2:].max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


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
    low = np.array([part.box[:2] for part in placed]).min(axis=0)
    high = np.array([part.box[2:] for part in placed]).max(axis=0)
    return Layout(
        (*nodes, *dots),
        tuple(line for part in placed for line in part.lines),
        tuple(text for part in placed for text in part.texts),
        (float(low[0]), float(low[1]), float(high[0]), float(high[1])),
    )


def _moved(part: Layout, dx: float, dy: float) -> Layout:
    left, bottom, right, top = part.box
    return Layout(
        tuple(replace(symbol, x=symbol.x + dx, y=symbol.y + dy) for symbol in part.symbols),
        tuple(replace(line, curve=tuple((x + dx, y + dy) for x, y in line.curve)) for line in part.lines),
        tuple(replace(text, x=text.x + dx, y=text.y + dy) for text in part.texts),
        (left + dx, bottom + dy, right + dx, top + dy),
    )
