"""One budget for many layers: against all choices there are, and against the hull drawn by hand."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tnalgebra.errors import RankError
from tnalgebra.model.budget import Point, allocate, allocate_part, lower_hull

CURVES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    st.lists(st.builds(Point, st.integers(1, 30), st.integers(0, 50).map(float)), min_size=1, max_size=6),
    min_size=1,
)


def totals(curves: dict[str, list[Point]], chosen: dict[str, int]) -> tuple[int, float]:
    points = [curves[name][number] for name, number in chosen.items()]
    return sum(point.parameters for point in points), sum(point.loss for point in points)


@given(CURVES, st.integers(1, 120))
def test_the_limit_holds_and_no_single_move_is_left(curves: dict[str, list[Point]], limit: int) -> None:
    assume(sum(min(point.parameters for point in points) for points in curves.values()) <= limit)
    chosen = allocate(curves, limit)
    assert chosen.keys() == curves.keys()
    parameters, loss = totals(curves, chosen)
    assert parameters <= limit
    for name, points in curves.items():
        for number in range(len(points)):
            moved_parameters, moved_loss = totals(curves, {**chosen, name: number})
            assert moved_parameters > limit or moved_loss >= loss


@given(CURVES, st.integers(1, 120))
def test_it_is_within_one_step_of_the_best(curves: dict[str, list[Point]], limit: int) -> None:
    """What a multiplier cannot reach lies between two vertices of one hull: at most the largest saving of one step."""
    assume(sum(min(point.parameters for point in points) for points in curves.values()) <= limit)
    _, loss = totals(curves, allocate(curves, limit))
    names = list(curves)
    every = (dict(zip(names, numbers, strict=True)) for numbers in product(*(range(len(curves[n])) for n in names)))
    best = min(loss for parameters, loss in (totals(curves, chosen) for chosen in every) if parameters <= limit)
    steps = [0.0]
    for points in curves.values():
        hull = [points[number] for number in lower_hull(points)]
        steps += [hull[i].loss - hull[i + 1].loss for i in range(len(hull) - 1)]
    assert best <= loss <= best + max(steps)


@given(st.lists(st.builds(Point, st.integers(1, 30), st.integers(0, 50).map(float)), min_size=1, max_size=8))
def test_the_hull_lies_below_all_points(points: list[Point]) -> None:
    hull = [points[number] for number in lower_hull(points)]
    assert hull[0].parameters == min(point.parameters for point in points)
    assert hull[-1].loss == min(point.loss for point in points)
    slopes = [(a.loss - b.loss) / (b.parameters - a.parameters) for a, b in pairwise(hull)]
    assert slopes == sorted(slopes, reverse=True)
    assert all(slope > 0 for slope in slopes)
    for point in points:
        for a, b in pairwise(hull):
            if a.parameters <= point.parameters <= b.parameters:
                part = (point.parameters - a.parameters) / (b.parameters - a.parameters)
                assert point.loss >= a.loss + part * (b.loss - a.loss) - 1e-9


def test_the_steepest_curve_gets_the_parameters() -> None:
    steep = [Point(10, 8.0), Point(20, 1.0), Point(40, 0.0)]
    flat = [Point(10, 3.0), Point(20, 2.5), Point(40, 0.0)]
    assert allocate({"steep": steep, "flat": flat}, 40) == {"steep": 1, "flat": 1}
    assert allocate({"steep": steep, "flat": flat}, 60) == {"steep": 1, "flat": 2}


def test_a_budget_that_cannot_be_met_says_the_least() -> None:
    with pytest.raises(RankError, match=r"a budget of 19 parameters for 2 layers cannot be met\n  least: 20"):
        allocate({"a": [Point(10, 1.0)], "b": [Point(10, 1.0), Point(12, 0.0)]}, 19)
    with pytest.raises(RankError, match="layer 'a' has no way to be treated"):
        allocate({"a": []}, 19)


@given(CURVES, st.integers(0, 200), st.integers(1, 40))
def test_the_least_part_that_is_named_can_be_met(curves: dict[str, list[Point]], rest: int, saved: int) -> None:
    smallest = {name: min(point.parameters for point in points) for name, points in curves.items()}
    least = rest + sum(smallest.values())
    whole = least + saved
    with pytest.raises(
        RankError, match=rf"of {whole} multiply-adds cannot .*\n  least: .*: {rest} are not touched"
    ) as said:
        allocate_part(curves, (least - 1) / whole, whole=whole, rest=rest, counted="multiply-adds")
    part = float(str(said.value).partition("least: ")[2].partition(":")[0])
    assert least / whole <= part < least / whole + 2e-4
    chosen = allocate_part(curves, part, whole=whole, rest=rest)
    parameters, _ = totals(curves, chosen)
    assert rest + parameters <= part * whole
