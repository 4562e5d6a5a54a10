"""The places of the symbols of a drawing: layouts of a graph whose edges have a "length" in points."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TypeAlias

import networkx as nx
import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

ROW_WIDTH = 640.0
"""Most points of a row. A longer one continues in a new row, so that it is legible on a page."""

LARGEST_UNTANGLED = 16
"""Most vertices of a planar graph from which the crossings that the energy layout leaves are removed one by one."""

COMPASS = np.stack([np.cos(np.pi / 4 * np.arange(8)), np.sin(np.pi / 4 * np.arange(8))], axis=1)
"""Eight directions in which a vertex may step."""

CROSSING = 40.0
"""The cost of a crossing of two lines, both where symbols and where items are placed."""


def chain(graph: nx.Graph[int]) -> Array:
    """The vertices of a path on a line from left to right. A long path turns back on a new row below."""
    ends = sorted(vertex for vertex, degree in graph.degree if degree <= 1)
    order = list(nx.dfs_preorder_nodes(graph, ends[0]))
    steps = [graph.edges[pair]["length"] for pair in pairwise(order)]
    x = np.concatenate([[0.0], np.cumsum(steps)])
    a_row = math.ceil(len(order) / max(1, math.ceil(x[-1] / ROW_WIDTH)))
    row, column = np.divmod(np.arange(len(order)), a_row)
    if row[-1] > 0:
        x = max(steps) * np.where(row % 2 == 0, column, a_row - 1 - column)
    xy = np.zeros((len(order), 2))
    xy[order] = np.stack([x, -105.0 * row], axis=1)
    return xy


def ring(graph: nx.Graph[int]) -> Array:
    """The vertices of a cycle on a circle."""
    order = list(nx.dfs_preorder_nodes(graph, 0))
    steps = np.array([graph.edges[pair]["length"] for pair in pairwise([*order, order[0]])])
    angle = 2 * np.pi * np.arange(len(order)) / len(order)
    xy = np.zeros((len(order), 2))
    xy[order] = steps.mean() / (2 * math.sin(math.pi / len(order))) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return xy


def energy_layouts(graph: nx.Graph[int], *, untangle: bool) -> list[Array]:
    """Lay out a graph as Kamada and Kawai (1989) do, from several starts.

    Args:
        untangle: if all starts end with crossings of edges, move the vertices of a small planar graph until no edges
            cross.

    Returns:
        The layouts, the best first, each of shape (vertices, 2). The edges are about as long as their "length".
    """
    count = graph.number_of_nodes()
    rows = dict(nx.all_pairs_dijkstra_path_length(graph, weight="length"))
    distance = np.array([[rows[a][b] for b in range(count)] for a in range(count)])
    edges = np.array(list(graph.edges))
    starts = [nx.circular_layout(graph), nx.circular_layout(nx.path_graph(list(nx.dfs_preorder_nodes(graph, 0))))]
    planar = nx.check_planarity(graph)[0]
    if planar:
        starts.append(nx.planar_layout(graph))
    target = {a: dict(enumerate(row)) for a, row in enumerate(distance)}
    layouts = [_scaled(nx.kamada_kawai_layout(graph, dist=target, pos=start), distance) for start in starts]
    layouts.sort(key=lambda xy: round(_tangle(xy, edges, distance), 6))
    if untangle and planar and count <= LARGEST_UNTANGLED and _tangle(layouts[0], edges, distance) > CROSSING:
        layouts[0] = _untangled(_scaled(starts[2], distance), edges, distance)
    pairs = tuple(edges.T)  # make room for the label of the shortest edge, within reason
    short = [0.85 * (distance[pairs] / np.maximum(_lengths(xy)[pairs], 1e-9)).max() for xy in layouts]
    return [xy * float(np.clip(factor, 1.0, 1.5)) for xy, factor in zip(layouts, short, strict=True)]


def _lengths(xy: Array) -> Array:
    return np.asarray(np.linalg.norm(xy[:, None] - xy[None], axis=-1))


def _scaled(positions: dict[int, Array], distance: Array) -> Array:
    """The positions as an array, scaled so that the distances fit as well as possible."""
    xy = np.array([positions[vertex] for vertex in range(len(positions))])
    weight = 1 / np.maximum(distance, 1.0) ** 2 * (1 - np.eye(len(xy)))
    lengths = _lengths(xy)
    return np.asarray(xy * (weight * lengths * distance).sum() / (weight * lengths**2).sum())


def _tangle(xy: Array, edges: Array, distance: Array) -> float:
    """The energy of a layout: wrong distances, crossings, and vertices close to edges of other vertices."""
    stress = ((_lengths(xy) - distance) ** 2 / np.maximum(distance, 1.0) ** 2).sum() / len(xy)
    start, along = xy[edges[:, 0]], xy[edges[:, 1]] - xy[edges[:, 0]]
    t = ((xy[:, None] - start) * along).sum(axis=-1) / np.maximum((along**2).sum(axis=-1), 1e-9)
    apart = np.linalg.norm(xy[:, None] - start - np.clip(t, 0, 1)[..., None] * along, axis=-1)
    for end in edges.T:
        apart[end, np.arange(len(edges))] = np.inf
    close = (np.maximum(0, 1 - apart / 40) ** 2).sum()
    # shortened, so that edges with a common end do not cross there
    lines = np.stack([start + 0.01 * along, start + 0.99 * along], axis=1)
    return float(stress + close + CROSSING * crossings(lines, lines).sum())


def _untangled(xy: Array, edges: Array, distance: Array) -> Array:
    """Move one vertex at a time to where the energy is lower. A start without crossings stays without."""
    best = _tangle(xy, edges, distance)
    step = float(distance.max()) / 4
    while step > 2.0:
        moved = False
        for vertex in range(len(xy)):
            for unit in COMPASS[::-1]:
                trial = xy.copy()
                trial[vertex] += step * unit
                energy = _tangle(trial, edges, distance)
                if energy < 0.998 * best:
                    best, xy, moved = energy, trial, True
        if not moved:
            step /= 2
    return xy


def upright(xy: Array, graph: nx.Graph[int]) -> tuple[float, Array]:
    """Turn a layout: many edges level or upright, the picture wide, and the first nodes left and on top.

    Returns:
        How far the layout still is from that (0 at best, about 2 at worst), and the turned positions.
    """
    edges = np.array(list(graph.edges))
    xy = xy - xy.mean(axis=0)
    along = xy[edges[:, 1]] - xy[edges[:, 0]]
    angles = np.arctan2(along[:, 1], along[:, 0])
    length = np.hypot(along[:, 0], along[:, 1]).mean()
    main = np.linalg.eigh(xy.T @ xy)[1][:, 1]
    turns: list[tuple[float, Array]] = []
    for turn in np.concatenate([-angles, np.pi / 2 - angles, [-math.atan2(main[1], main[0])]]):
        turned = xy @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        width, height = np.ptp(turned, axis=0) + 1.0
        slanted = (np.sin(2 * (angles + turn)) ** 2).mean()
        lopsided = sum(_unmatched(turned * flip, turned) for flip in ([-1, 1], [1, -1])) / length
        turns.append((round(float(slanted + lopsided + 0.5 * height / (width + height)), 4), turned))
    cost, turned = min(turns, key=lambda pair: pair[0])
    order = np.arange(len(xy)) - (len(xy) - 1) / 2
    order[0] -= 1e-3
    forward = order @ turned
    return cost, turned * np.array([1.0 if forward[0] > -1e-6 else -1.0, 1.0 if forward[1] < 1e-6 else -1.0])


def _unmatched(first: Array, second: Array) -> float:
    """The mean distance of the points of one layout from the nearest points of the other."""
    return float(np.linalg.norm(first[:, None] - second[None], axis=-1).min(axis=1).mean())


def push_apart(xy: Array, half: Array, gap: float = 16.0) -> Array:
    """Move symbols apart that (nearly) overlap, each pair along the axis on which less is missing; then align."""
    xy = xy.copy()
    while True:
        missing = half[:, None] + half[None] + gap - np.abs(xy[:, None] - xy[None])
        pairs = np.argwhere(np.triu((missing > 1e-9).all(axis=-1), 1))
        if len(pairs) == 0:
            return np.stack([_aligned(xy[:, 0]), _aligned(xy[:, 1])], axis=1)
        for i, j in pairs:
            delta = xy[j] - xy[i]
            lack = half[i] + half[j] + gap - np.abs(delta)
            axis = int(np.argmin(lack))
            if lack[axis] > 0:
                step = (lack[axis] / 2 + 1e-3) * (1.0 if delta[axis] >= 0 else -1.0)
                xy[i, axis] -= step
                xy[j, axis] += step
        xy *= 1.002  # otherwise symbols could push each other in a circle for ever


def _aligned(values: Array, near: float = 5.0) -> Array:
    """The coordinates, those that almost agree made equal."""
    order = np.argsort(values, kind="stable")
    aligned = values.copy()
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or values[order[end]] - values[order[start]] > near:
            aligned[order[start:end]] = values[order[start:end]].mean()
            start = end
    return aligned


def outward(xy: Array, graph: nx.Graph[int], *, hang: bool) -> Array:
    """The best direction for the legs [0] and for the notes [1] of each vertex: shape (2, vertices, 2).

    It is away from the neighbours. Where the neighbours are on all sides, or along a chain (`hang`), legs are below
    and notes above. It is zero for a single vertex, for which all directions are equally good.
    """
    directions = np.zeros((2, len(xy), 2))
    for vertex in graph:
        around = [xy[other] - xy[vertex] for other in graph[vertex]]
        away = -sum((step / np.linalg.norm(step) for step in around), np.zeros(2))
        if hang or np.linalg.norm(away) < 0.05:
            directions[:, vertex, 1] = (-1.0, 1.0) if around else 0.0
        else:
            directions[:, vertex] = away / np.linalg.norm(away)
    return directions


def crossings(lines: Array, segments: Array) -> NDArray[np.bool_]:
    """Which polygonal lines (c, p, 2) cross which segments (s, 2, 2): shape (c, s)."""
    start, step = lines[:, :-1, None], np.diff(lines, axis=1)[:, :, None]
    from_, along = segments[:, 0], segments[:, 1] - segments[:, 0]

    def side(origin: Array, direction: Array, point: Array) -> Array:
        gap = point - origin
        return direction[..., 0] * gap[..., 1] - direction[..., 1] * gap[..., 0]

    apart = side(start, step, from_) * side(start, step, from_ + along) < -1e-9
    split = side(from_, along, start) * side(from_, along, start + step) < -1e-9
    return np.asarray(np.any(apart & split, axis=1))
