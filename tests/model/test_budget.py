"""One budget for many layers: against all choices there are, and against the hull drawn by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

from hypothesis import assume, given
from hypothesis import strategies as st

from tests.refusals import refused
from tnalgebra.decompositions.cuts import cut
from tnalgebra.errors import RankError, TnalgebraError
from tnalgebra.fitting import MultiplyAddsBudget
from tnalgebra.model.budget import PricedWay, Treatment, allocate, least_error, lower_hull
from tnalgebra.model.curves import Costs, CurvePoint, ErrorCurves
from tnalgebra.networks import parse

WAYS = st.tuples(st.integers(1, 30), st.integers(0, 50).map(float)).map(lambda numbers: PricedWay(*numbers))
CURVES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    st.lists(WAYS, min_size=1, max_size=6),
    min_size=1,
)


def totals(chosen: dict[str, PricedWay]) -> tuple[int, float]:
    return sum(way.cost for way in chosen.values()), sum(way.loss for way in chosen.values())


@given(CURVES, st.integers(1, 120))
def test_the_limit_holds_and_no_single_move_is_left(curves: dict[str, list[PricedWay]], limit: int) -> None:
    assume(sum(min(point.cost for point in points) for points in curves.values()) <= limit)
    chosen = allocate(curves, limit)
    assert chosen.keys() == curves.keys()
    cost, loss = totals(chosen)
    assert cost <= limit
    for name, points in curves.items():
        for way in points:
            moved_cost, moved_loss = totals({**chosen, name: way})
            assert moved_cost > limit or moved_loss >= loss


@given(CURVES, st.integers(1, 120))
def test_it_is_within_one_step_of_the_best(curves: dict[str, list[PricedWay]], limit: int) -> None:
    """What a multiplier cannot reach lies between two vertices of one hull: at most the largest saving of one step."""
    assume(sum(min(point.cost for point in points) for points in curves.values()) <= limit)
    _, loss = totals(allocate(curves, limit))
    every = (dict(zip(curves, ways, strict=True)) for ways in product(*curves.values()))
    best = min(loss for cost, loss in map(totals, every) if cost <= limit)
    steps = [0.0]
    for points in curves.values():
        hull = lower_hull(points)
        steps += [hull[i].loss - hull[i + 1].loss for i in range(len(hull) - 1)]
    assert best <= loss <= best + max(steps)


@given(st.lists(WAYS, min_size=1, max_size=8))
def test_the_hull_lies_below_all_points(points: list[PricedWay]) -> None:
    hull = lower_hull(points)
    assert hull[0].cost == min(point.cost for point in points)
    assert hull[-1].loss == min(point.loss for point in points)
    slopes = [(a.loss - b.loss) / (b.cost - a.cost) for a, b in pairwise(hull)]
    assert slopes == sorted(slopes, reverse=True)
    assert all(slope > 0 for slope in slopes)
    for point in points:
        for a, b in pairwise(hull):
            if a.cost <= point.cost <= b.cost:
                part = (point.cost - a.cost) / (b.cost - a.cost)
                assert point.loss >= a.loss + part * (b.loss - a.loss) - 1e-9


def test_the_steepest_curve_gets_the_parameters() -> None:
    steep = [PricedWay(10, 8.0), PricedWay(20, 1.0), PricedWay(40, 0.0)]
    flat = [PricedWay(10, 3.0), PricedWay(20, 2.5), PricedWay(40, 0.0)]
    assert allocate({"steep": steep, "flat": flat}, 40) == {"steep": steep[1], "flat": flat[1]}
    assert allocate({"steep": steep, "flat": flat}, 60) == {"steep": steep[1], "flat": flat[2]}


def error_curves(curves: dict[str, list[PricedWay]], rest: int, *, known: bool) -> ErrorCurves:
    """Curves of these ways, whose points are measured from the start or when a budget chooses them."""
    rule = cut("a | b")  # a size for each way, so that no layer may stay dense
    dense = {name: max(way.cost for way in ways) + 1 for name, ways in curves.items()}
    points = {
        name: [
            [
                CurvePoint(
                    Treatment(rule, {"r": number + 1}, parameters=way.cost),
                    parse("K[a b]"),
                    frozenset(),
                    guess=way.cost,
                    cost=way.cost if known or number == 0 else None,
                    loss=way.loss if known or number == 0 else None,
                )
                for number, way in enumerate(sorted(ways))
            ]
        ]
        for name, ways in curves.items()
    }

    def measure(asked: Sequence[tuple[str, CurvePoint]]) -> dict[str, TnalgebraError]:
        for name, point in asked:
            (curve,) = points[name]
            point.cost, point.loss, *_ = sorted(curves[name])[curve.index(point)]
        return {}

    costs = Costs("multiply-adds", rest + sum(dense.values()), dense, lambda *_: 0, lambda *_: 0, is_least=False)
    return ErrorCurves({name: [Treatment(rule, 1)] for name in curves}, costs, points, {}, measure)


@given(CURVES, st.integers(0, 200))
def test_the_least_part_that_is_named_can_be_met(curves: dict[str, list[PricedWay]], rest: int) -> None:
    measured = error_curves(curves, rest, known=True)
    whole, least = measured.costs.whole, rest + sum(min(way.cost for way in ways) for ways in curves.values())
    with refused(RankError, f"of {whole} multiply-adds", f"{rest} multiply-adds that no rewrite touches") as said:
        measured.share(MultiplyAddsBudget((least - 0.5) / whole))
    part = float(str(said.value).partition("at least 'multiply-adds ")[2].partition("'")[0])
    assert least / whole <= part < least / whole + 2e-4
    cost, _ = totals(measured.share(MultiplyAddsBudget(part)))
    assert rest + cost <= part * whole


@given(CURVES, st.integers(0, 200), st.floats(0.3, 1.0))
def test_points_that_are_measured_when_they_are_chosen(
    curves: dict[str, list[PricedWay]], rest: int, part: float
) -> None:
    known, lazy = (error_curves(curves, rest, known=known) for known in (True, False))
    budget = MultiplyAddsBudget(part)
    least = rest + sum(min(way.cost for way in ways) for ways in curves.values())
    if least > int(part * known.costs.whole):
        with refused(RankError, f"of {known.costs.whole} multiply-adds"):
            lazy.share(budget)
        return
    chosen = lazy.share(budget)
    assert all(way.measured for way in chosen.values())
    assert rest + totals(chosen)[0] <= part * known.costs.whole
    ways = {name: {(way.cost, way.loss) for way in each} for name, each in curves.items()}
    assert all((way.cost, way.loss) in ways[name] for name, way in chosen.items())
    # once everything is measured, the choice is that of curves which were known from the start
    lazy.least_losses()
    assert totals(lazy.share(budget)) == totals(known.share(budget))


def test_errors_that_differ_by_rounding_are_equal() -> None:
    def taken(*ways: tuple[float, int]) -> int:
        return least_error(ways, lambda way: way[0], lambda way: way[1])[1]

    assert taken((0.5, 9), (0.5 + 3e-16, 8), (0.5001, 1)) == 8
    assert taken((1e-15, 9), (4e-8, 8), (1e-5, 1)) == 8
    assert taken((0.5, 8), (0.5 - 3e-16, 8)) == 8
    assert taken((0.5, 9), (0.500001, 8)) == 9
