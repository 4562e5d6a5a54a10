"""One budget for many layers: which point of its error curve each layer gets, by one Lagrange multiplier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from .errors import RankError, explain


class Point(NamedTuple):
    """A way to treat a layer: what it takes, and what it costs the network."""

    parameters: int
    loss: float


def allocate(curves: Mapping[str, Sequence[Point]], limit: int) -> dict[str, int]:
    """Choose a point for each layer so that the sum of the losses is small and the parameters keep within a limit.

    The sum of losses plus a multiplier times the parameters falls apart into layers: for any multiplier the best
    points are vertices of the layers' lower convex hulls (Everett 1963). The multiplier is the largest saving of loss
    a parameter that still fits; what is left over is then spent on the single moves that save most.

    Args:
        curves: layer -> its points, in any order; a layer that may stay dense has that as a point of loss 0.
        limit: parameters of all layers together.

    Returns:
        layer -> number of its point.

    Raises:
        RankError: the smallest points of all layers together are above the limit, or a layer has no point.
    """
    for name, points in curves.items():
        if not points:
            raise RankError(explain(f"layer {name!r} has no way to be treated"))
    least = {name: min(range(len(p)), key=lambda i: (p[i].parameters, p[i].loss)) for name, p in curves.items()}
    total = sum(curves[name][number].parameters for name, number in least.items())
    if total > limit:
        raise RankError(
            explain(
                f"a budget of {limit} parameters for {len(curves)} layers cannot be met",
                least=f"{total}, each layer at its smallest",
                fix="a larger budget, smaller ranks, or another decomposition",
            )
        )
    chosen = dict(least)
    # the steps along all hulls, the steepest first; on a hull they come in order by themselves
    steps = [
        (_gain(curves[name][before], curves[name][after]), name, after)
        for name, points in curves.items()
        for before, after in _steps(lower_hull(points))
    ]
    for _, name, after in sorted(steps, key=lambda step: -step[0]):
        total_after = total + curves[name][after].parameters - curves[name][chosen[name]].parameters
        if total_after > limit:
            break
        chosen[name], total = after, total_after
    return _filled(curves, chosen, limit - total)


def allocate_part(
    curves: Mapping[str, Sequence[Point]],
    part: float,
    *,
    whole: int,
    rest: int,
    counted: str = "parameters",
    fix: str | None = None,
) -> dict[str, int]:
    """Choose a point for each layer, so that a part of a whole model is kept; see `allocate`.

    Args:
        part: in (0, 1].
        whole: what the model takes as it is.
        rest: what of that the curves do not stand for: it stays.
        counted: what is shared out, in messages.
        fix: what to do where the budget cannot be met, likewise.

    Raises:
        RankError: the budget cannot be met, and the least part that can.
    """
    try:
        return allocate(curves, int(part * whole) - rest)
    except RankError as error:
        least = rest + sum(min(point.parameters for point in curve) for curve in curves.values())
        smallest = math.ceil(1e4 * least / whole) / 1e4  # rounded up, so that it can be met
        raise RankError(
            explain(
                f"a budget of {part:g} of {whole} {counted} cannot be met",
                least=f"{smallest:.4f}: {rest} are not touched, the layers take {least - rest}",
                fix=fix,
            )
        ) from error


def lower_hull(points: Sequence[Point]) -> list[int]:
    """Numbers of the points on the lower convex hull, from the fewest parameters to the least loss."""
    order = sorted(range(len(points)), key=lambda i: (points[i].parameters, points[i].loss))
    hull: list[int] = []
    for number in order:
        if hull and points[number].loss >= points[hull[-1]].loss:
            continue
        while len(hull) > 1 and _gain(points[hull[-2]], points[hull[-1]]) <= _gain(points[hull[-1]], points[number]):
            hull.pop()
        hull.append(number)
    return hull


def _steps(hull: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise(hull))


def _gain(before: Point, after: Point) -> float:
    """Loss saved for each parameter added."""
    return (before.loss - after.loss) / (after.parameters - before.parameters)


def _filled(curves: Mapping[str, Sequence[Point]], chosen: dict[str, int], room: int) -> dict[str, int]:
    """Spend what is left: again and again the move that saves most loss a parameter, among those that fit."""
    while True:
        moves = []
        for name, points in curves.items():
            now = points[chosen[name]]
            for number, point in enumerate(points):
                cost = point.parameters - now.parameters
                if point.loss < now.loss and cost <= room:
                    moves.append(((now.loss - point.loss) / max(cost, 1e-9), name, number, cost))
        if not moves:
            return chosen
        _, name, number, cost = max(moves, key=lambda move: move[0])
        chosen[name], room = number, room - cost
