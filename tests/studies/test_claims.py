"""Claims as numbers: rank correlations and intervals, against slow computations and rows whose correlation is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from tests.claim_rows import BASELINE, row
from tests.refusals import refused
from tnalgebra.errors import StudyError
from tnalgebra.studies import Correlation, Draws, claims, rank_correlation
from tnalgebra.studies.claims import LargestCut, harmless, norm_correlation
from tnalgebra.studies.correlation import FEWEST_UNITS, spearman
from tnalgebra.studies.rows import Row

QUICK = Draws(resamples=50)
FEW = f"fewer than {FEWEST_UNITS} layers or rows: "
EQUAL = "all values of one side are equal, or one is not a number"
depth_correlation = partial(claims.depth_correlation, at_most=0.01, size="relative_error", draws=QUICK)
norms = partial(norm_correlation, error="relative_error", scope="each", draws=QUICK)
norm_gain = partial(claims.norm_gain, scope="each", draws=QUICK)
bands = partial(harmless, at_most=0.01, error="relative_error", draws=QUICK)
CUT, OTHER = "out | in kh kw", "in | out kh kw"


def numbers(found: Correlation) -> tuple[float, float, float]:
    return found.rho, found.low, found.high


# ranks


def spearman_by_hand(first: Sequence[float], second: Sequence[float]) -> float:
    def ranks(values: Sequence[float]) -> list[float]:
        return [sum(other < value for other in values) + (1 + values.count(value)) / 2 for value in values]

    a, b = ranks(list(first)), ranks(list(second))
    mean = (len(a) + 1) / 2
    product = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    squares = sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)
    return product / math.sqrt(squares) if squares else math.nan


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3)), min_size=2, max_size=12))
def test_spearman_is_scipys_and_the_definition(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    found = spearman(first, second)
    assert found == pytest.approx(spearman_by_hand(first, second), abs=1e-12, nan_ok=True)
    if not math.isnan(found):
        assert found == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
        assert -1 <= found <= 1


def test_spearman_where_there_is_none() -> None:
    assert spearman([1, 2, 3], [10, 20, 15]) == 0.5
    for first, second in (([1], [2]), ([1, 1, 1], [1, 2, 3]), ([1, math.nan, 2], [1, 2, 3])):
        assert math.isnan(spearman(first, second))


# depth


def test_the_largest_cut_lies_where_the_loss_is_first_too_large() -> None:
    rows = [
        BASELINE,
        # 0.01 lies half way from 0.2, 0.005 to 0.6, 0.015; what comes later is not looked at
        *(row("a", error, loss) for error, loss in ((0.6, 0.015), (0.1, -0.002), (0.2, 0.005), (0.8, 0.0))),
        *(row("b", error, loss) for error, loss in ((0.4, 0.04), (0.8, 0.5))),
        *(row("c", error, loss) for error, loss in ((0.3, 0.0), (0.7, 0.9173 - 0.9073))),  # 1 point, rounded
        *(row("d", error, loss) for error, loss in ((0.3, -0.01), (0.5, 0.03))),
    ]
    found = depth_correlation(rows)
    (cuts,) = found.cuts.values()
    expected = [("a", 0.4, 0.2, None), ("b", 0.1, 0, "smallest"), ("c", 0.7, 0.7, "largest"), ("d", 0.4, 0.3, None)]
    for depth, (cut, (layer, size, tested, bound)) in enumerate(zip(cuts, expected, strict=True)):
        assert cut == LargestCut(layer, depth, pytest.approx(size, abs=1e-12), tested, bound)
    rho = spearman_by_hand([0, 1, 2, 3], [0.4, 0.1, 0.7, 0.4])
    assert found.correlations[CUT].rho == found.mean.rho == pytest.approx(rho)
    for at_most, sizes, bounds in (
        (0.03, [0.8, 0.3, 0.7, 0.5], ["largest", "smallest", "largest", "largest"]),
        (0, [0.1 + 0.1 * 2 / 7, 0, 0.3, 0.35], [None, "smallest", None, None]),
    ):
        cuts = depth_correlation(rows, at_most=at_most).cuts[CUT]
        assert [cut.size for cut in cuts] == pytest.approx(sizes, abs=1e-12)
        assert [cut.bound for cut in cuts] == bounds


def bearing(sizes: Sequence[float], *, rewrite: str = CUT, names: str = "abcdefgh") -> list[Row]:
    """Rows from which the largest cut of the i-th layer is of the i-th size: at that error the loss is one point."""
    return [
        row(name, factor * size, factor * 0.01, rewrite=rewrite, keep=1 / (1 + factor))
        for factor in (0.5, 2)
        for name, size in zip(names, sizes, strict=False)
    ]


@pytest.mark.parametrize(
    ("sizes", "rho"),
    [([0.1, 0.2, 0.3, 0.4, 0.5], 1), ([0.5, 0.4, 0.3, 0.2, 0.1], -1), ([0.1, 0.3, 0.2, 0.4, 0.5], 0.9)],
)
def test_known_correlations_with_depth(sizes: list[float], rho: float) -> None:
    found = depth_correlation([BASELINE, *bearing(sizes)])
    correlation = found.correlations[CUT]
    assert [cut.size for cut in found.cuts[CUT]] == pytest.approx(sizes)
    assert correlation.rho == pytest.approx(rho)
    assert (correlation.points, correlation.units, correlation.why) == (5, 5, None)
    assert correlation.low <= correlation.rho <= correlation.high
    if abs(rho) == 1:
        # draws of perfect pairs are perfect, and none where all five are one layer
        assert numbers(correlation) == pytest.approx((rho, rho, rho))


def test_the_interval_is_that_of_layers_drawn_anew() -> None:
    sizes = [0.1, 0.5, 0.2, 0.3, 0.3, 0.6, 0.4]
    found = depth_correlation(bearing(sizes), draws=Draws(7, 400)).mean
    generator = np.random.default_rng(7)
    drawn = [generator.integers(7, size=7) for _ in range(400)]
    rhos = [spearman_by_hand(list(chosen), [sizes[number] for number in chosen]) for chosen in drawn]
    low, high = np.nanquantile(rhos, [0.025, 0.975])
    assert numbers(found) == pytest.approx((spearman_by_hand(range(7), sizes), low, high))
    assert found.undefined == np.isnan(rhos).sum()
    assert depth_correlation(bearing(sizes), draws=Draws(7, 400)).mean == found
    assert numbers(depth_correlation(bearing(sizes), draws=Draws(8, 400)).mean) != numbers(found)


def test_the_mean_is_over_the_rewrites_that_enough_layers_have() -> None:
    rows = bearing([0.1, 0.2, 0.4, 0.3, 0.5]) + bearing([0.8, 0.6, 0.1, 0.2], rewrite=OTHER)
    found = depth_correlation(rows + bearing([0.9, 0.7], rewrite="cp", names="ac"))
    assert list(found.correlations) == [CUT, OTHER, "cp"]
    of_cuts = spearman_by_hand(range(5), [0.1, 0.2, 0.4, 0.3, 0.5]), spearman_by_hand(range(4), [0.8, 0.6, 0.1, 0.2])
    assert found.mean.rho == pytest.approx(sum(of_cuts) / 2)
    assert (found.mean.points, found.mean.units) == (9, 5)
    assert [cut.layer for cut in found.cuts["cp"]] == ["a", "c"]
    assert found.correlations["cp"].why == f"{FEW}2"
    assert all(math.isnan(number) for number in numbers(found.correlations["cp"]))


def test_the_order_of_layers() -> None:
    names, sizes = "dbca", [0.4, 0.2, 0.3, 0.1]
    rows = bearing(sizes, names=names)
    assert [cut.layer for cut in depth_correlation(rows).cuts[CUT]] == list(names)
    assert depth_correlation([*rows, row(list("abcde"), [0.1] * 5, 0.3)]).mean.rho == 1
    part = depth_correlation([*rows, row(list("abc"), [0.1] * 3, 0.3)])
    assert part.mean.rho == spearman(range(4), sizes), "d is not in it"


def test_other_measures_of_a_cut() -> None:
    rows = [
        row(name, 0.3, loss, keep=keep, output=output)
        for number, name in enumerate("abcd")
        for keep, output, loss in ((0.75, 0.1, 0.0), (0.5, 0.2 + number / 10, 0.02))
    ]
    rows.append(row("a", 0.9, 0.9, rewrite="cp", ranks="r=3"))  # of ranks: it drops no part of the values
    values = depth_correlation(rows, size="values")
    assert list(values.cuts) == [CUT]
    assert [cut.size for cut in values.cuts[CUT]] == pytest.approx([0.375] * 4)
    assert values.mean.why == EQUAL
    outputs = depth_correlation(rows, size="output_error")
    assert [cut.size for cut in outputs.cuts[CUT]] == pytest.approx([0.15, 0.2, 0.25, 0.3])
    assert outputs.mean.rho == 1


# norms


def test_within_and_across_cuts() -> None:
    """In each cut the loss rises with the error; but the cut of larger errors costs less: across, it falls."""
    rows = [BASELINE]
    for number in range(8):
        keep = 0.5 + 0.1 * (number // 4)
        rows.append(row(f"layer{number % 4}", 0.1 + number / 100, 0.5 + number / 100, keep=keep))
        rows.append(row(f"layer{number % 4}", 0.8 + number / 100, 0.1 + number / 100, rewrite=OTHER, keep=keep))
    found = norms(rows, draws=Draws(0, 300))
    assert {name: claim.rho for name, claim in found.within.items()} == {CUT: 1, OTHER: 1}
    assert numbers(found.mean_within) == (1, 1, 1)
    # of 16 ranks, 1 to 8 go with 9 to 16 and 9 to 16 with 1 to 8: 1 - 6 * 16 * 64 / (16 * 255)
    assert found.across.rho == pytest.approx(1 - 6 * 16 * 64 / (16 * 255))
    assert found.across.low <= found.across.rho <= found.across.high < 0
    assert (found.across.points, found.across.units) == (16, 4)
    assert found.points[OTHER][0] == (0.8, 0.1)


def random_rows(layers: int = 6, seed: int = 0) -> list[Row]:
    generator = np.random.default_rng(seed)
    rows = []
    for rewrite in (CUT, OTHER):
        for number in range(layers):
            for keep in (0.75, 0.5, 0.25):
                error, output, noise = generator.random(3)
                loss = round(0.3 * error + 0.5 * output + 0.4 * noise, 1)
                rows.append(row(f"layer{number}", error, loss, rewrite=rewrite, keep=keep, output=output))
    return rows


def test_layers_are_drawn_with_all_their_rows() -> None:
    rows = random_rows()
    errors: tuple[Any, ...] = ("relative_error", "output_error")
    found = {error: norms(rows, error=error, draws=Draws(3, 200)) for error in errors}
    gain = norm_gain(rows, draws=Draws(3, 200))
    generator = np.random.default_rng(3)
    draws: dict[str, list[tuple[float, float]]] = {error: [] for error in found}
    for chosen in [range(6), *(generator.integers(6, size=6) for _ in range(200))]:
        drawn = [each for number in chosen for each in rows if each["scope"] == f"layer{number}"]
        for error in found:

            def rho(some: list[Row], error: str = error) -> float:
                sizes = [each["layers"][each["scope"]][error] for each in some]
                return spearman_by_hand(sizes, [-each["accuracy_change"] for each in some])

            cuts = [[each for each in drawn if each["rewrite"] == cut] for cut in (CUT, OTHER)]
            draws[error].append((sum(map(rho, cuts)) / 2, rho(drawn)))
    claims = [(found[error], np.array(draws[error])) for error in errors]
    for claim, values in [*claims, (gain, claims[1][1] - claims[0][1])]:
        for column, correlation in enumerate((claim.mean_within, claim.across)):
            low, high = np.quantile(values[1:, column], [0.025, 0.975])
            assert numbers(correlation) == pytest.approx((values[0, column], low, high))


def test_every_plain_pair_is_drawn_by_itself() -> None:
    first, second = [3.0, 1.0, 4.0, 1.0, 5.0], [2, 7, 1, 8, 2]
    found = rank_correlation(first, second, units=range(5), draws=Draws(4, 300))
    generator = np.random.default_rng(4)
    drawn = [generator.integers(5, size=5) for _ in range(300)]
    rhos = [spearman_by_hand([first[n] for n in chosen], [second[n] for n in chosen]) for chosen in drawn]
    low, high = np.nanquantile(rhos, [0.025, 0.975])
    assert numbers(found) == pytest.approx((spearman_by_hand(first, second), low, high))
    assert (found.points, found.units, found.undefined) == (5, 5, np.isnan(rhos).sum())
    for count in (3, 0):
        few = rank_correlation(first[:count], second[:count], units=range(count), draws=QUICK)
        assert few.why == f"{FEW}{count}"
        grouped = rank_correlation(first[:count], second[:count], units=range(count), groups="a" * count, draws=QUICK)
        assert grouped.why == few.why


def test_a_row_counts_once_with_what_it_reports() -> None:
    rows = random_rows()
    plain = [{**each, "layers": {each["scope"]: {"relative_error": 0.5, "rank": 1, "values": 2}}} for each in rows]
    reported = [{**each, "reported": "input", "calibration": "9 images x"} for each in rows]
    for mixed in ([*plain, *reported], [*reported, *plain]):
        assert norms(mixed) == norms(reported)
    fitted = [
        {**each, "metric": "input", "calibration": f"{n} images", "equations": ["K => A B"]}
        for n in (5, 6)
        for each in rows
    ]
    counts = {name: len(points) for name, points in norms([*rows, *fitted]).points.items()}
    assert counts == {CUT: 18, OTHER: 18, f"{CUT}, metric input": 36, f"{OTHER}, metric input": 36}


def test_rows_that_keep_the_same_values_count_once() -> None:
    rows = random_rows()
    again = [{**each, "keep": each["keep"] - 1e-3} for each in rows]
    for claim in (norms, bands, depth_correlation):
        assert claim([*rows, *again]) == claim(rows)
    others = [{**each, "rewrite": "kh | out in kw"} for each in rows]
    assert sum(len(points) for points in norms([*rows, *others]).points.values()) == 3 * 18
    layer = rows[0]["layers"]
    fitted = [{**rows[0], "keep": None, "ranks": ranks, "layers": layer} for ranks in ("r=2", "r=3")]
    assert sum(len(points) for points in norms([*rows[1:], *fitted]).points.values()) == 2 * 18 + 1


def test_all_layers_at_once() -> None:
    rows = [row("a", 0.9, 0.0, keep=0.1), BASELINE]
    for number, loss in enumerate((0.1, 0.3, 0.2, 0.4)):
        rows.append(row(["a", "b"], [0.3 + number / 10, 0.4], loss, keep=0.9 - number / 10, output=[0.1, 0.2]))
    rows.append(row(["a"], [0.1], 0.9, scope="layer*"))
    found = norms(rows, scope="all")
    (points,) = found.points.values()
    assert points[0] == pytest.approx((math.sqrt((0.3**2 + 0.4**2) / 2), 0.1))
    assert len(points) == 4
    assert found.across.rho == pytest.approx(0.8)
    assert found.across.units == 4


def test_how_often_a_cut_is_harmless() -> None:
    losses = {"a": (0.0, 0.01, 0.3), "b": (0.005, 0.02, 0.5), "c": (0.0, 0.9173 - 0.9073, 0.4), "d": (-0.01, 0.0, 0.2)}
    rows = [BASELINE, row(["a", "b"], [0.15, 0.15], 0.9)]
    for layer, of_layer in losses.items():
        rows += [row(layer, error, loss) for error, loss in zip((0.05, 0.1, 1.7), of_layer, strict=True)]
    small, middle, large = bands(rows)
    assert (small.least, small.most, small.rows, small.part) == (0.0, 0.1, 4, 1.0)
    assert small.low == small.high == 1.0
    # 0.9173 - 0.9073 is 1 point and a rounding error; an error on a bound is in the band above
    assert (middle.least, middle.rows, middle.part, middle.largest) == (0.1, 4, 0.75, 0.02)
    assert middle.median == pytest.approx(0.01)
    assert 0.25 <= middle.low < 0.75 < middle.high == 1.0
    assert (large.least, large.most, large.part) == (1.0, math.inf, 0.0)
    assert bands(rows, at_most=0.3)[-1].part == 0.5
    assert math.isnan(bands([each for each in rows if each["scope"] in "abc"])[0].low)


def test_rows_that_cut_nothing_do_not_count() -> None:
    """A kernel of one singular value keeps it at any fraction."""
    names = "abcdefgh"
    cutting = [row(name, 0.1 * n / k, 0.02 * n, keep=k) for n, name in enumerate(names[:4], 1) for k in (0.5, 0.25)]
    whole = [row(name, 1e-16, 0.0, keep=k) for name in names[4:] for k in (0.5, 0.25)]
    for claim in (norms, bands, depth_correlation):
        assert claim([*cutting, *whole]) == claim(cutting)
    with refused(StudyError, "rows of single layers"):
        norms(whole)


def test_too_few_layers_give_no_number() -> None:
    rows = [row(name, 0.1 * n, 0.1 * n, keep=0.1 * n, output=0.2) for n in (1, 2, 3) for name in "abc"]
    claim = norms(rows)
    for found in (claim.across, claim.mean_within, claim.within[CUT], norm_gain(rows).across):
        assert all(math.isnan(number) for number in numbers(found))
        assert (found.points, found.units, found.why) == (9, 3, f"{FEW}3")
    equal = norms([row(name, 0.1, n / 10) for n, name in enumerate("abcd")]).across
    assert (equal.units, equal.why) == (4, EQUAL)


def test_rewrites_with_too_few_layers_are_not_in_the_mean() -> None:
    rows = random_rows()
    few = [row("layer0", n / 10, -n, rewrite="cp", output=0.1) for n in range(1, 4)]
    found, alone = norms([*rows, *few], error="output_error"), norms(rows, error="output_error")
    assert found.within["cp"].why == f"{FEW}1"
    assert found.mean_within == alone.mean_within
    assert found.across != alone.across
    assert norm_gain([*rows, *few]).mean_within == norm_gain(rows).mean_within


def test_rows_without_an_output_error() -> None:
    rows = random_rows()
    half = [row(each["scope"], 0.5, 0.1, keep=0.1 + n / 100) if n % 2 == 0 else each for n, each in enumerate(rows)]
    assert norms(half, error="output_error") == norms(rows[1::2], error="output_error")
    assert norm_gain(half) == norm_gain(rows[1::2])
    with refused(StudyError, "'output_error'", "--report-metric"):
        norms(half[::2], error="output_error")


def test_what_is_no_claim() -> None:
    for claim in (depth_correlation, norms, bands, norm_gain):
        with refused(StudyError, "rows of single layers"):
            claim([BASELINE, row(["a", "b"], [0.1, 0.1], 0.1)])
    with refused(StudyError, "rows of scope all"):
        norms(random_rows(), scope="all")
