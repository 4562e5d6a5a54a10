"""Where the nodes and hyperedge dots of a drawing stand: layouts of a graph whose edges have lengths, in points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import networkx as nx
import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

ROW_WIDTH = 640.0
"""A chain longer than this turns back on a new row, so that it stays legible on a page."""

LARGEST_UNTANGLED = 16
"""Vertices of a planar graph up to which crossings that the energy layouts leave are removed one by one."""

COMPASS = np.stack([np.cos(np.pi / 4 * np.arange(8)), np.sin(np.pi / 4 * np.arange(8))], axis=1)
"""Eight directions in which a vertex may step."""

CROSSING = 40.0
"""What a crossing of two lines costs, in this module and in `drawing_places`."""


def chain(graph: nx.Graph[int]) -> Array:
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


def ring(graph: nx.Graph[int]) -> Array:
    """Vertices of a cycle on a circle."""
    order = list(nx.dfs_preorder_nodes(graph, 0))
    steps = np.array([graph.edges[pair]["length"] for pair in pairwise([*order, order[0]])])
    angle = 2 * np.pi * np.arange(len(order)) / len(order)
    xy = np.zeros((len(order), 2))
    xy[order] = steps.mean() / (2 * math.sin(math.pi / len(order))) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return xy


def energy_layouts(graph: nx.Graph[int], *, untangle: bool) -> list[Array]:
    """Kamada and Kawai's layout from several starts, and another way if all of them tangle a planar graph.

    Returns:
        Different layouts, the best first, each of shape (vertices, 2), with edges of about their "length".
    """
    count = graph.number_of_nodes()
    rows = dict(nx.all_pairs_dijkstra_path_length(graph, weight="length"))
    distance = np.array([[rows[a][b] for b in range(count)] for a in range(count)])
    edges = np.array(list(graph.edges))
    planar = nx.check_planarity(graph)[0]
    starts = [nx.circular_layout(graph), nx.circular_layout(nx.path_graph(list(nx.dfs_preorder_nodes(graph, 0))))]
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
        flat = _sized(np.array([start[vertex] for vertex in range(count)]), distance)
        ways = [_untangled(flat, edges, distance, compass) for compass in (COMPASS, COMPASS[::-1])]
        found.insert(0, min(((_tangle(xy, edges, distance), xy) for xy in ways), key=lambda pair: pair[0]))
    return [xy * _stretch(_lengths(xy)[tuple(edges.T)], distance[tuple(edges.T)]) for _, xy in found]


def _stretch(here: Array, wanted: Array) -> float:
    """By how much a layout must grow for its shortest edge to have room for its label, within reason."""
    return float(np.clip((0.85 * wanted / np.maximum(here, 1e-9)).max(), 1.0, 1.5))


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
    t = ((xy[:, None] - xy[edges[:, 0]]) * along).sum(axis=-1) / np.maximum((along**2).sum(axis=-1), 1e-9)
    foot = xy[edges[:, 0]] + np.clip(t, 0, 1)[..., None] * along
    apart = np.linalg.norm(xy[:, None] - foot, axis=-1)
    apart[edges[:, 0], np.arange(len(edges))] = np.inf
    apart[edges[:, 1], np.arange(len(edges))] = np.inf
    close = (np.maximum(0, 1 - apart / 40) ** 2).sum()
    return float(stress + close + CROSSING * crossings(ends, ends).sum())


def _untangled(xy: Array, edges: Array, distance: Array, compass: Array) -> Array:
    """Move one vertex at a time to where the energy is lower; from a start without crossings none appears."""
    best = _tangle(xy, edges, distance)
    step = float(distance.max()) / 4
    while step > 2.0:
        moved = False
        for vertex in range(len(xy)):
            for unit in compass:
                trial = xy.copy()
                trial[vertex] += step * unit
                energy = _tangle(trial, edges, distance)
                if energy < 0.998 * best:
                    best, xy, moved = energy, trial, True
        if not moved:
            step /= 2
    return xy


def _shrunk(ends: Array) -> Array:
    """Segments a little shorter, so that two that share an end do not cross there."""
    middle = ends.mean(axis=1, keepdims=True)
    return np.asarray(middle + 0.98 * (ends - middle))


def upright(xy: Array, graph: nx.Graph[int]) -> tuple[float, Array]:
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


def push_apart(xy: Array, half: Array, gap: float = 16.0) -> Array:
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


def outward(xy: Array, graph: nx.Graph[int], *, hang: bool) -> Array:
    """The direction in which the legs [0] and the notes [1] of each vertex would like to be: shape (2, vertices, 2).

    Away from the neighbours; if there is no such direction, or they are to hang (along a chain), legs are below and
    notes above. Zero for a vertex alone: there all directions are as good.
    """
    wanted = np.zeros((2, len(xy), 2))
    for vertex in graph:
        around = [xy[other] - xy[vertex] for other in graph[vertex]]
        away = -sum((step / np.linalg.norm(step) for step in around), np.zeros(2))
        if hang or np.linalg.norm(away) < 0.05:
            wanted[:, vertex, 1] = (-1.0, 1.0) if around else 0.0
        else:
            wanted[:, vertex] = away / np.linalg.norm(away)
    return wanted


def _share(angle: Array, half: tuple[float, float]) -> Array:
    """How many legs whose texts are of this size fit beside each other in an angle, at distance 1 from a vertex."""
    tall = max(half[1], half[0] / 3)  # lest legs to the sides, of wide texts, stand too close to tell apart
    return np.asarray(1 / (2 * (half[0] * np.abs(np.sin(angle)) + tall * np.abs(np.cos(angle))) + 5))


def crown_radius(count: float, half: tuple[float, float]) -> float:
    """How far from a vertex texts of this half width and height stand in a ring without touching."""
    return count / (2 * np.pi * float(_share(2 * np.pi * np.arange(360) / 360, half).mean()))


def crown(taken: Sequence[float], widths: Sequence[float], half: tuple[float, float]) -> Array:
    """Directions for the legs of a vertex that has many: clockwise, with even room for their texts.

    Args:
        taken: the directions of bonds, between which the legs stand.
        widths: the room that each leg needs, 1 that of a bond.
        half: half the width and height of the largest text; wide ones stand closer to the sides than above and below.

    Returns:
        The angle of each leg, and the angle that is free at either side of it: shape (legs, 2).
    """
    turn = np.linspace(0, 4 * np.pi, 1441)  # clockwise; twice, so that a gap may hold the angle 0
    shares = _share(turn, half)
    room = np.concatenate([[0.0], np.cumsum((shares[1:] + shares[:-1]) / 2)])
    starts = np.interp(np.sort(-np.array(taken or [np.pi]) % (2 * np.pi)), turn, room)
    gaps = np.diff(starts, append=starts[0] + room[-1] / 2)
    used = np.full(len(gaps), 1.0 if taken else 0.0)
    where = np.zeros(len(widths), dtype=int)
    for leg, width in enumerate(widths):
        where[leg] = int(np.argmax(np.round(gaps / (used + width), 6)))
        used[where[leg]] += width
    for width in set(widths):
        alike = np.array(widths) == width
        where[alike] = np.sort(where[alike])
    found = np.zeros((len(widths), 2))
    for gap in set(where.tolist()):
        legs = np.flatnonzero(where == gap)
        unit = gaps[gap] / used[gap]
        own = np.array(widths)[legs]
        middle = np.cumsum(own) - own / 2 + (0.5 if taken else -own[0] / 2)
        low, at, high = (
            np.interp((starts[gap] + unit * (middle + side * own)) % (room[-1] / 2) + room[-1] / 4, room, turn)
            for side in (-0.5, 0.0, 0.5)
        )
        free = np.minimum((at - low) % (2 * np.pi), (high - at) % (2 * np.pi))
        found[legs] = np.stack([(np.pi - at) % (2 * np.pi), free], axis=1)
    return found


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
