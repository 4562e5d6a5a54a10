"""Where the bonds, legs and texts of a drawing stand, given its vertices: each takes the cheapest of its options."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

from .vertices import CROSSING, Array, crossings, crown

Kind: TypeAlias = Literal["bond", "loop", "open", "closed", "note"]

FONT = ("DejaVu Sans", "sans-serif")
"""matplotlib brings the first; where an SVG is shown without it, any sans-serif will do."""

LABEL_SIZE, NOTE_SIZE = 10.0, 8.0
LINE_HEIGHT = 1.25
LONGEST_TEXT = 40
"""Characters of a name or label that are shown; the middle of a longer one is left out."""

ANGLES = np.deg2rad((180 + 15 * np.arange(24)) % 360)
SLANT = np.tile([0.0, 0.6, 0.6, 0.25, 0.6, 0.6], 4)
"""What each of the angles costs: level and upright legs look best, diagonal ones next."""

FAN = np.deg2rad(75.0)
"""Between legs of one vertex that would all like to leave it in one direction."""

HARD, THROUGH_TEXT = 1000.0, 300.0
"""What texts and symbols that overlap, and lines through texts, cost."""

LOOP_WIDTH = 3.0
"""Legs whose room at a crowded vertex a loop takes."""

POINTS = 25
"""Points of each line at which it is compared with symbols and texts."""

SEGMENTS = slice(None, None, 6)
"""Of these, the ends of the segments of which crossings are counted."""


def shown(text: str) -> str:
    """The text as it is drawn: the middle of a very long one is left out."""
    half = LONGEST_TEXT // 2
    return text if len(text) <= LONGEST_TEXT else f"{text[:half]}…{text[1 - half :]}"


@lru_cache(maxsize=4096)
def half_extent(text: str, size: float) -> tuple[float, float]:
    """Half the width and height of a text in points."""
    font = FontProperties(family=FONT, size=size)
    lines = text.split("\n") if text else []
    widths = [text_to_path.get_text_width_height_descent(line, font, False)[0] for line in lines]
    return max(widths, default=0.0) / 2, len(lines) * size * LINE_HEIGHT / 2


@dataclass(frozen=True, slots=True)
class Vertex:
    """A symbol to draw: the position of a node or the label of a hyperedge, and half its width and height."""

    place: int | str
    half: tuple[float, float]

    def reach(self, angle: Array | float) -> Array:
        """From the centre to the edge of the symbol, in each direction."""
        width, height = self.half
        if width == height:
            return np.full(np.shape(angle), width)
        cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
        return np.asarray(np.minimum(width / np.maximum(cos, 1e-9), height / np.maximum(sin, 1e-9)))


@dataclass(frozen=True, slots=True)
class Item:
    """A bond, leg or loop with its label, or a text that stands beside a vertex.

    Args:
        ends: the vertices it touches: two of a bond, else one.
        label: the label of the network that it draws; empty for the attributes of a node.
        text: what is written; empty for a bond of a hyperedge, whose label stands once.
        offset: its number among parallel bonds, or among the legs of one vertex, counted from the middle one.
        spread: of parallel bonds, half the width and height of the largest text.
    """

    kind: Kind
    ends: tuple[int, ...]
    label: str
    text: str
    offset: float = 0.0
    spread: tuple[float, float] | None = None

    @property
    def half(self) -> tuple[float, float]:
        """Half the width and height of the text."""
        return half_extent(self.text, LABEL_SIZE if self.label else NOTE_SIZE)


class Way(NamedTuple):
    """Where a leg of a crowded vertex goes: its angle, the angle free at either side, and how far its text may be."""

    angle: float
    free: float
    radius: float


@dataclass(frozen=True)
class Places:
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


def bezier(curves: Array, t: Array) -> Array:
    """Points of cubic curves (c, 4, 2) at parameters (c, p): shape (c, p, 2)."""
    t = t[..., None]
    p0, p1, p2, p3 = (curves[:, None, k] for k in range(4))
    return np.asarray((1 - t) ** 3 * p0 + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * p3)


def _places(item: Item, vertices: Sequence[Vertex], xy: Array, outward: Array, way: Way | None = None) -> Places:
    vertex, at = vertices[item.ends[0]], xy[item.ends[0]]
    match item.kind:
        case "bond":
            return _bond_places(item, vertices, xy)
        case "loop":
            return _loop_places(item, vertex, at, outward[0, item.ends[0]], way)
        case "note":
            return _leg_places(item, vertex, at, outward[1, item.ends[0]], way)
        case _:
            return _leg_places(item, vertex, at, outward[0, item.ends[0]], way)


def _bond_places(item: Item, vertices: Sequence[Vertex], xy: Array) -> Places:
    a, b = xy[item.ends[0]], xy[item.ends[1]]
    along = b - a
    length = float(np.linalg.norm(along))
    normal = np.array([-along[1], along[0]]) / length
    angle = math.atan2(along[1], along[0])
    if item.spread is not None:
        width, height = item.spread
        step = max(16.0, 2 * (width * abs(normal[0]) + height * abs(normal[1])) + 5.0)
        bends = np.array([item.offset * step])
    else:
        bends = np.array([0.0, 16.0, -16.0, 32.0, -32.0, 56.0, -56.0])
    first = float(vertices[item.ends[0]].reach(angle)) / length
    last = 1 - float(vertices[item.ends[1]].reach(angle)) / length
    shifts = np.array([0.0, -0.12, 0.12, -0.24, 0.24] if item.text else [0.0])
    bend, shift = (grid.ravel() for grid in np.meshgrid(bends, shifts, indexing="ij"))
    middle = (first + last) / 2 + (last - first) * shift
    lift = 4 / 3 * bend[:, None] * normal
    ends = np.broadcast_to(a, lift.shape), np.broadcast_to(b, lift.shape)
    curves = np.stack([ends[0], a + along / 3 + lift, b - along / 3 + lift, ends[1]], axis=1)
    boxes = np.full((len(bend), 4), np.nan)
    if item.text:
        boxes[:, :2] = bezier(curves, middle[:, None])[:, 0]
        boxes[:, 2:] = item.half
    t = np.broadcast_to(np.linspace(first, last, POINTS), (len(bend), POINTS))
    leave, arrive = curves[:, 1] - a, curves[:, 2] - b
    angles = np.stack([np.arctan2(leave[:, 1], leave[:, 0]), np.arctan2(arrive[:, 1], arrive[:, 0])], axis=1)
    cost = 6.0 * (bend != bends[0]) + np.abs(bend) / 8 + 12 * np.abs(shift)
    return Places(curves, boxes, bezier(curves, t), angles, cost)


def _leg_places(item: Item, vertex: Vertex, at: Array, outward: Array, way: Way | None) -> Places:
    note = item.kind == "note"
    extra = np.array([2.0, 8.0] if note else [20.0, 36.0])
    angles, slants = ANGLES, SLANT
    if way is not None:
        extra = np.arange(extra[0], max(60.0, 2.5 * way.radius), 6.0)
        angles, slants = way.angle + way.free * np.array([0.0, -0.5, 0.5]), np.array([0.0, 3.0, 3.0])
        outward = np.zeros(2)
    angle, out = (grid.ravel() for grid in np.meshgrid(angles, extra, indexing="ij"))
    slant = np.repeat(slants, len(extra))
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    start, end = (at + unit * (vertex.reach(angle) + more)[:, None] for more in (np.zeros_like(out), out))
    half = np.array(item.half)
    boxes = np.concatenate([end + unit * (half + 3.0), np.broadcast_to(half, unit.shape)], axis=1)
    curves = at + (end - at)[:, None] * (np.arange(4) / 3)[:, None]
    points = start[:, None] + (end - start)[:, None] * np.linspace(0, 1, POINTS)[:, None]
    cost = (out - extra[0]) / 8 + slant - 0.05 * item.offset * unit[:, 0]
    along = unit @ outward
    along = np.where(along > 0, unit @ _fanned(outward, item.offset), along)
    cost = cost + (2 if note else 4) * (np.linalg.norm(outward) - along)
    if note:
        points = np.full_like(points, np.nan)
    return Places(curves, boxes, points, angle[:, None], cost)


def _fanned(outward: Array, offset: float) -> Array:
    """The direction of one of several legs that share a preferred one: the first is left, or on top."""
    x, y = outward
    turn = FAN * offset * (-1.0 if y > 0.1 or (abs(y) <= 0.1 and x > 0) else 1.0)
    cos, sin = math.cos(turn), math.sin(turn)
    return np.array([x * cos - y * sin, x * sin + y * cos])


def _loop_places(item: Item, vertex: Vertex, at: Array, outward: Array, way: Way | None) -> Places:
    angle, slant, extra, aside = ANGLES, SLANT, np.array(38.0), 0.6
    if way is not None:
        extra = np.arange(38.0, max(80.0, 2.5 * way.radius), 6.0)
        angle, slant, aside = np.full(len(extra), way.angle), extra / 8, min(0.6, way.free)
        outward = np.zeros(2)
    far = (vertex.reach(angle) + extra)[:, None]
    sides = [at + far * np.stack([np.cos(angle + s), np.sin(angle + s)], axis=1) for s in (-aside, aside)]
    centre = np.broadcast_to(at, sides[0].shape)
    curves = np.stack([centre, sides[0], sides[1], centre], axis=1)
    tip = bezier(curves, np.full((len(angle), 1), 0.5))[:, 0]
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    half = np.array(item.half)
    boxes = np.concatenate([tip + unit * (half + 3.0), np.broadcast_to(half, unit.shape)], axis=1)
    points = bezier(curves, np.broadcast_to(np.linspace(0.2, 0.8, POINTS), (len(angle), POINTS)))
    cost = slant + 4 * (np.linalg.norm(outward) - unit @ outward)
    return Places(curves, boxes, points, angle[:, None], cost)


class Choice(NamedTuple):
    """For each item its curve (4, 2) and the box of its text (4,); the cost of the worst item, and of all."""

    curves: list[Array]
    boxes: list[Array]
    worst: float
    total: float


def _ways(crowded: Mapping[int, float], items: Sequence[Item], bonds: Sequence[Places | None]) -> dict[int, Way]:
    """For each leg, loop and note of a crowded vertex, by number, where it goes."""
    ways: dict[int, Way] = {}
    for vertex, radius in crowded.items():
        taken, legs = [], []
        for number, (item, bond) in enumerate(zip(items, bonds, strict=True)):
            if vertex not in item.ends:
                continue
            if bond is None:
                legs.append(number)
            else:
                taken.append(float(bond.angles[0, item.ends.index(vertex)]))
        if legs:
            widths = [LOOP_WIDTH if items[number].kind == "loop" else 1.0 for number in legs]
            found = crown(taken, widths, largest_half(items[number] for number in legs))
            ways |= {
                number: Way(angle, free, radius) for number, (angle, free) in zip(legs, found.tolist(), strict=True)
            }
    return ways


def largest_half(items: Iterable[Item]) -> tuple[float, float]:
    """Half the width and height of a box that holds the text of any of the items."""
    widths, heights = zip(*(item.half for item in items), strict=True)
    return max(widths), max(heights)


def choose(
    vertices: Sequence[Vertex], items: Sequence[Item], xy: Array, outward: Array, crowded: Mapping[int, float]
) -> Choice:
    """Choose a place for each item, one after the other, until no one would rather stand elsewhere.

    Args:
        xy: the vertices' positions, shape (vertices, 2).
        outward: where legs [0] and texts beside a vertex [1] would like to be, shape (2, vertices, 2).
        crowded: the vertices whose legs share the directions between them, each with the radius of its texts.
    """
    symbols = np.concatenate([xy, np.array([vertex.half for vertex in vertices])], axis=1)
    bonds = [_places(item, vertices, xy, outward) if item.kind == "bond" else None for item in items]
    ways = _ways(crowded, items, bonds)
    options = [
        bond or _places(item, vertices, xy, outward, ways.get(number))
        for number, (item, bond) in enumerate(zip(items, bonds, strict=True))
    ]
    chosen = np.full(len(items), -1)
    for number, way in ways.items():  # a ring in which nothing collides; from there each leg gets as short as it can
        far = np.linalg.norm(options[number].curves - xy[items[number].ends[0]], axis=-1).max(axis=1)
        chosen[number] = int(np.argmin(np.abs(far - way.radius)))
    costs = np.zeros(len(items))
    for _ in range(6):
        before = chosen.copy()
        for number, item in enumerate(items):
            cost = _cost(number, item, items, options, chosen, symbols, crowded)
            chosen[number] = int(np.argmin(np.round(cost, 6)))
            costs[number] = cost.min()
        if (chosen == before).all():
            break
    return Choice(
        [option.curves[choice] for option, choice in zip(options, chosen, strict=True)],
        [option.boxes[choice] for option, choice in zip(options, chosen, strict=True)],
        float(costs.max(initial=0.0)),
        float(costs.sum()),
    )


def _cost(
    number: int,
    item: Item,
    items: Sequence[Item],
    options: Sequence[Places],
    chosen: NDArray[np.int_],
    symbols: Array,
    crowded: Container[int],
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
        through, under = _inside(line, boxes, 1.5), _inside(points, own.boxes, 1.5)
        if crowded:  # long legs, whose points are far apart
            through |= _across(own.points[:, SEGMENTS], boxes, 1.5)
            under |= _across(points[:, SEGMENTS], own.boxes, 1.5)
        cost += THROUGH_TEXT * (through.sum(axis=1) + under.sum(axis=0))
        if item.kind != "note":
            bars = np.stack([points[:, SEGMENTS][:, :-1], points[:, SEGMENTS][:, 1:]], axis=2).reshape(-1, 2, 2)
            cost += CROSSING * crossings(own.points[:, SEGMENTS], bars).sum(axis=1)
    if item.kind != "note":
        weight = 0.3 if item.kind == "bond" else 1.0
        for end, vertex in enumerate(item.ends):
            if vertex in crowded:
                continue
            there = [
                options[k].angles[chosen[k], items[k].ends.index(vertex)]
                for k in others
                if items[k].kind != "note" and vertex in items[k].ends
            ]
            between = np.abs((own.angles[:, end, None] - np.array(there) + np.pi) % (2 * np.pi) - np.pi)
            narrow = 3 * (1 - between / np.pi) ** 2 + 40 * np.maximum(0, 1 - between / np.deg2rad(65)) ** 2
            cost += weight * narrow.sum(axis=1)
    return cost


def _overlap(first: Array, second: Array, gap: float) -> NDArray[np.bool_]:
    """Which boxes (c, 4) overlap which boxes (b, 4), or come closer than `gap`: shape (c, b)."""
    apart = np.abs(first[:, None, :2] - second[:, :2]) - first[:, None, 2:] - second[:, 2:]
    return np.asarray((apart < gap).all(axis=-1))


def _inside(points: Array, boxes: Array, gap: float) -> NDArray[np.bool_]:
    """Which lines (c, p, 2) have a point inside which boxes (b, 4), or closer than `gap`: shape (c, b)."""
    apart = np.abs(points[:, :, None] - boxes[:, :2]) - boxes[:, 2:]
    return np.asarray(np.any((apart < gap).all(axis=-1), axis=1))


def _across(lines: Array, boxes: Array, gap: float) -> NDArray[np.bool_]:
    """Which polygonal lines (c, p, 2) cross a diagonal of which boxes (b, 4), or of boxes wider by `gap`: (c, b)."""
    half = boxes[:, 2:] + gap
    found = np.zeros((len(lines), len(boxes)), dtype=bool)
    for sign in (1.0, -1.0):
        corner = half * np.array([1.0, sign])
        found |= crossings(lines, np.stack([boxes[:, :2] - corner, boxes[:, :2] + corner], axis=1))
    return found
