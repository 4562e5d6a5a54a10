"""The places of bonds, legs and texts in a drawing whose symbols are placed: each takes its cheapest place.

Every item has a list of alternatives, each with a cost by itself. Overlaps with symbols, texts and lines that are
already placed cost more. The items choose in turn, again and again, until no item has a cheaper alternative.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .items import Item, Symbol
from .vertices import CROSSING, Array, crossings

ANGLES = np.deg2rad((180 + 15 * np.arange(24)) % 360)
SLANT = np.tile([0.0, 0.6, 0.6, 0.25, 0.6, 0.6], 4)
"""The cost of each of the angles: level and upright legs look best, and then diagonal ones."""

MANY_LEGS = 10
"""If more lines than this meet at a symbol, its legs are in order at equal angles, and may be longer."""

FAN = np.deg2rad(75.0)
"""The angle between legs of one symbol that would all be best in one direction."""

HARD, THROUGH_TEXT = 1000.0, 300.0
"""The cost of an overlap of texts and symbols, and of a line through a text."""

POINTS = 25
"""How many points of each line are compared with symbols and texts."""

SEGMENTS = slice(None, None, 6)
"""Which of these points are the ends of the segments whose crossings are counted."""


class Alternatives(NamedTuple):
    """The c places where one item could be.

    curves: shape (c, 4, 2), the control points of a cubic Bezier curve.
    boxes: shape (c, 4), the box of the text as x, y, half width, half height; NaN if the item has no text.
    points: shape (c, POINTS, 2), points along the visible part of the curve; NaN if the item has no line.
    angles: shape (c, 2), at which the line leaves its ends; NaN where it has no such end.
    cost: shape (c,), of each place by itself.
    """

    curves: Array
    boxes: Array
    points: Array
    angles: Array
    cost: Array


def bezier(curves: Array, t: Array) -> Array:
    """Points of cubic Bezier curves (c, 4, 2) at parameters (c, p) from 0 to 1: shape (c, p, 2)."""
    t = t[..., None]
    p0, p1, p2, p3 = (curves[:, None, k] for k in range(4))
    return np.asarray((1 - t) ** 3 * p0 + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * p3)


def _units(angle: Array) -> Array:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _bond_alternatives(item: Item, symbols: Sequence[Symbol], xy: Array) -> Alternatives:
    a, b = xy[item.ends[0]], xy[item.ends[1]]
    along = b - a
    length = float(np.linalg.norm(along))
    normal = np.array([-along[1], along[0]]) / length
    angle = math.atan2(along[1], along[0])
    bends = np.array([0.0, 16.0, -16.0, 32.0, -32.0, 56.0, -56.0])
    if item.spread is not None:
        width, height = item.spread
        bends = np.array([item.offset * max(16.0, 2 * (width * abs(normal[0]) + height * abs(normal[1])) + 5.0)])
    first = float(symbols[item.ends[0]].reach(angle)) / length
    last = 1 - float(symbols[item.ends[1]].reach(angle)) / length
    shifts = np.array([0.0, -0.12, 0.12, -0.24, 0.24] if item.text else [0.0])
    bend, shift = (grid.ravel() for grid in np.meshgrid(bends, shifts, indexing="ij"))
    lift = 4 / 3 * bend[:, None] * normal
    curves = np.stack(
        [np.broadcast_to(a, lift.shape), a + along / 3 + lift, b - along / 3 + lift, b + 0 * lift], axis=1
    )
    boxes = np.full((len(bend), 4), np.nan)
    if item.text:
        boxes[:, :2] = bezier(curves, ((first + last) / 2 + (last - first) * shift)[:, None])[:, 0]
        boxes[:, 2:] = item.half
    points = bezier(curves, np.broadcast_to(np.linspace(first, last, POINTS), (len(bend), POINTS)))
    leave, arrive = curves[:, 1] - a, curves[:, 2] - b
    angles = np.stack([np.arctan2(leave[:, 1], leave[:, 0]), np.arctan2(arrive[:, 1], arrive[:, 0])], axis=1)
    cost = 6.0 * (bend != bends[0]) + np.abs(bend) / 8 + 12 * np.abs(shift)
    return Alternatives(curves, boxes, points, angles, cost)


def _leg_alternatives(item: Item, symbol: Symbol, at: Array, outward: Array, *, slot: Array | None) -> Alternatives:
    note = item.kind == "note"
    distances, angles, slants = np.array([2.0, 8.0] if note else [20.0, 36.0]), ANGLES, SLANT
    if slot is not None:
        distances, angles, slants = np.arange(distances[0], 200.0, 15.0), slot, np.array([0.0, 3.0, 3.0])
        outward = np.zeros(2)
    angle, distance = (grid.ravel() for grid in np.meshgrid(angles, distances, indexing="ij"))
    unit = _units(angle)
    start = at + unit * symbol.reach(angle)[:, None]
    end = start + unit * distance[:, None]
    half = np.array(item.half)
    boxes = np.concatenate([end + unit * (half + 3.0), np.broadcast_to(half, unit.shape)], axis=1)
    curves = at + (end - at)[:, None] * (np.arange(4) / 3)[:, None]
    points = start[:, None] + (end - start)[:, None] * np.linspace(0, 1, POINTS)[:, None]
    cost = (distance - distances[0]) / 8 + np.repeat(slants, len(distances)) - 0.05 * item.offset * unit[:, 0]
    along = unit @ outward
    along = np.where(along > 0, unit @ _fanned(outward, item.offset), along)
    cost = cost + (2 if note else 4) * (np.linalg.norm(outward) - along)
    if note:
        points, angle = np.full_like(points, np.nan), np.full_like(angle, np.nan)
    return Alternatives(curves, boxes, points, np.stack([angle, np.full_like(angle, np.nan)], axis=1), cost)


def _fanned(outward: Array, offset: float) -> Array:
    """The direction of one of several legs that would all be best in one direction; the first is left or on top."""
    x, y = outward
    turn = FAN * offset * (-1.0 if y > 0.1 or (abs(y) <= 0.1 and x > 0) else 1.0)
    cos, sin = math.cos(turn), math.sin(turn)
    return np.array([x * cos - y * sin, x * sin + y * cos])


def _loop_alternatives(item: Item, symbol: Symbol, at: Array, outward: Array) -> Alternatives:
    far = (symbol.reach(ANGLES) + 38.0)[:, None]
    unit, centre = _units(ANGLES), np.broadcast_to(at, (len(ANGLES), 2))
    curves = np.stack([centre, at + far * _units(ANGLES - 0.6), at + far * _units(ANGLES + 0.6), centre], axis=1)
    tip = bezier(curves, np.full((len(ANGLES), 1), 0.5))[:, 0]
    half = np.array(item.half)
    boxes = np.concatenate([tip + unit * (half + 3.0), np.broadcast_to(half, unit.shape)], axis=1)
    points = bezier(curves, np.broadcast_to(np.linspace(0.2, 0.8, POINTS), (len(ANGLES), POINTS)))
    cost = SLANT + 4 * (np.linalg.norm(outward) - unit @ outward)
    return Alternatives(curves, boxes, points, np.stack([ANGLES, np.full_like(ANGLES, np.nan)], axis=1), cost)


def _slots(items: Sequence[Item], xy: Array) -> dict[int, Array]:
    """Number of an item -> the three angles that it may have, for the legs of symbols with many lines."""
    slots: dict[int, Array] = {}
    for symbol, lines in Counter(end for item in items for end in item.ends).items():
        if lines <= MANY_LEGS:
            continue
        held = [(number, item) for number, item in enumerate(items) if symbol in item.ends]
        bonds = [xy[sum(item.ends) - symbol] - xy[symbol] for _, item in held if item.kind == "bond"]
        taken = [math.atan2(y, x) for x, y in bonds]
        free = (taken[0] if taken else np.pi) - 2 * np.pi * np.arange(lines) / lines
        for angle in taken:
            free = np.delete(free, np.argmax(np.cos(free - angle)))
        legs = [number for number, item in held if item.kind != "bond"]
        slots |= {
            number: angle + np.pi / lines * np.array([0.0, -0.5, 0.5]) for number, angle in zip(legs, free, strict=True)
        }
    return slots


class Chosen(NamedTuple):
    """The curves of the items (n, 4, 2), the boxes of their texts (n, 4), the cost of the worst item, and of all."""

    curves: Array
    boxes: Array
    worst: float
    total: float


def choose(symbols: Sequence[Symbol], items: Sequence[Item], xy: Array, outward: Array) -> Chosen:
    """Choose a place for each item in turn, until no item has a cheaper one.

    Args:
        xy: shape (symbols, 2), the positions of the symbols.
        outward: shape (2, symbols, 2), the best directions for legs [0] and for texts beside a symbol [1].
    """
    slots = _slots(items, xy)
    options = []
    for number, item in enumerate(items):
        first = item.ends[0]
        match item.kind:
            case "bond":
                options.append(_bond_alternatives(item, symbols, xy))
            case "loop":
                options.append(_loop_alternatives(item, symbols[first], xy[first], outward[0, first]))
            case kind:
                way = outward[int(kind == "note"), first]
                options.append(_leg_alternatives(item, symbols[first], xy[first], way, slot=slots.get(number)))
    boxes = np.concatenate([xy, np.array([symbol.half for symbol in symbols])], axis=1)
    state = _State(boxes, items, options)
    costs = np.zeros(len(items))
    picks = np.full(len(items), -1)
    for _ in range(6):
        before = picks.copy()
        for number in range(len(items)):
            cost = state.cost(number)
            picks[number] = int(np.argmin(np.round(cost, 6)))
            costs[number] = cost.min()
            state.put(number, picks[number])
        if (picks == before).all():
            break
    return Chosen(
        np.array([option.curves[pick] for option, pick in zip(options, picks, strict=True)]).reshape(-1, 4, 2),
        state.boxes,
        float(costs.max(initial=0.0)),
        float(costs.sum()),
    )


class _State:
    """The choices so far. The rows of an item without a place are NaN, which overlaps with nothing."""

    def __init__(self, symbols: Array, items: Sequence[Item], options: Sequence[Alternatives]) -> None:
        self.symbols, self.items, self.options = symbols, items, options  # the symbols as boxes (symbols, 4)
        self.ends = np.array([(*item.ends, -1)[:2] for item in items]).reshape(-1, 2)
        self.boxes = np.full((len(items), 4), np.nan)
        self.points = np.full((len(items), POINTS, 2), np.nan)
        self.angles = np.full((len(items), 2), np.nan)

    def put(self, number: int, pick: int) -> None:
        option = self.options[number]
        self.boxes[number] = option.boxes[pick]
        self.points[number] = option.points[pick]
        self.angles[number] = option.angles[pick]

    def cost(self, number: int) -> Array:
        """The cost of each alternative of an item, given the choices of the others. The item loses its place."""
        item, option = self.items[number], self.options[number]
        self.boxes[number] = self.points[number] = self.angles[number] = np.nan
        cost = option.cost + HARD * _overlap(option.boxes, np.concatenate([self.symbols, self.boxes])).sum(axis=1)
        cost += HARD * _inside(option.points, np.delete(self.symbols, item.ends, axis=0), 3.0).sum(axis=1)
        cost += THROUGH_TEXT * _inside(option.points, self.boxes, 1.5).sum(axis=1)
        cost += THROUGH_TEXT * _inside(self.points, option.boxes, 1.5).sum(axis=0)
        corners = self.points[:, SEGMENTS]
        bars = np.stack([corners[:, :-1], corners[:, 1:]], axis=2).reshape(-1, 2, 2)
        cost += CROSSING * crossings(option.points[:, SEGMENTS], bars).sum(axis=1)
        for end, symbol in enumerate(item.ends):
            if item.kind == "note" or (self.ends == symbol).sum() > MANY_LEGS:
                continue
            others = self.angles[self.ends == symbol]
            between = np.abs((option.angles[:, end, None] - others[~np.isnan(others)] + np.pi) % (2 * np.pi) - np.pi)
            narrow = 3 * (1 - between / np.pi) ** 2 + 40 * np.maximum(0, 1 - between / np.deg2rad(65)) ** 2
            cost += (0.3 if item.kind == "bond" else 1.0) * narrow.sum(axis=1)
        return np.asarray(cost)


def _overlap(first: Array, second: Array, gap: float = 2.0) -> NDArray[np.bool_]:
    """Which boxes (c, 4) overlap which boxes (b, 4), or come closer than `gap`: shape (c, b)."""
    apart = np.abs(first[:, None, :2] - second[:, :2]) - first[:, None, 2:] - second[:, 2:]
    return np.asarray((apart < gap).all(axis=-1))


def _inside(points: Array, boxes: Array, gap: float) -> NDArray[np.bool_]:
    """Which lines (c, p, 2) have a point inside which boxes (b, 4), or closer than `gap`: shape (c, b)."""
    apart = np.abs(points[:, :, None] - boxes[:, :2]) - boxes[:, 2:]
    return np.asarray(np.any((apart < gap).all(axis=-1), axis=1))
