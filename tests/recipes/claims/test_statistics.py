"""Claims as numbers: rank correlations and intervals, against slow computations and rows whose correlation is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from recipes.claims.statistics import (
    FEWEST,
    Correlation,
    LargestCut,
    depth_correlation,
    harmless,
    norm_correlation,
    norm_gain,
    rank_correlation,
    spearman,
)
from tests.study_cases import NO_FIT
from tnalgebra.errors import StudyError
from tnalgebra.studies.store import Row

QUICK: dict[str, Any] = {"resamples": 50}


def row(
    layers: str | Sequence[str],
    error: float | Sequence[float],
    loss: float,
    *,
    rewrite: str = "out | in kh kw",
    keep: float | None = None,
    output: float | Sequence[float] | None = None,
    **fields: Any,
) -> Row:
    """A row of one layer, or of scope all; errors are of each layer. Rows of other errors are of another keep."""
    names = [layers] if isinstance(layers, str) else list(layers)
    errors = [error] if isinstance(error, int | float) else error
    outputs = [output] * len(names) if output is None or isinstance(output, int | float) else output
    return {
        "rewrite": rewrite,
        "scope": layers if isinstance(layers, str) else "all",
        "keep": 1 - sum(errors) / 10 if keep is None and fields.get("ranks") is None else keep,
        "accuracy_change": -loss,
        "layers": {
            name: {"relative_error": one} | ({} if other is None else {"output_error": other})
            for name, one, other in zip(names, errors, outputs, strict=True)
        },
        **NO_FIT,
        **fields,
    }


BASELINE = row([], [], 0.0, rewrite="none")


def fields(found: Correlation) -> tuple[float, float, float]:
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
    for first, second in (([], []), ([1], [2]), ([1, 1, 1], [1, 2, 3]), ([1, math.nan, 2], [1, 2, 3])):
        assert math.isnan(spearman(first, second))
    with pytest.raises(StudyError, match=r"no pairs to rank\n  shapes: \(2,\) and \(3,\)"):
        spearman([1, 2], [1, 2, 3])


# depth


def test_the_largest_cut_lies_where_the_loss_is_first_too_large() -> None:
    rows = [
        BASELINE,
        # 0.01 lies half way from 0.2, 0.005 to 0.6, 0.015; what comes later is not looked at
        *(row("a", error, loss) for error, loss in ((0.6, 0.015), (0.1, -0.002), (0.2, 0.005), (0.8, 0.0))),
        *(row("b", error, loss) for error, loss in ((0.4, 0.04), (0.8, 0.5))),
        *(row("c", error, loss) for error, loss in ((0.3, 0.0), (0.7, 0.01))),
        *(row("d", error, loss) for error, loss in ((0.3, -0.01), (0.5, 0.03))),
    ]
    found = depth_correlation(rows, **QUICK)
    (cuts,) = found.cuts.values()
    expected = [("a", 0.4, None), ("b", 0.1, "smallest"), ("c", 0.7, "largest"), ("d", 0.4, None)]
    for cut, (layer, size, bound) in zip(cuts, expected, strict=True):
        assert cut == LargestCut(layer, pytest.approx(size, abs=1e-12), bound)
    assert found.correlations["out | in kh kw"].rho == pytest.approx(
        spearman_by_hand([0, 1, 2, 3], [0.4, 0.1, 0.7, 0.4])
    )
    assert found.mean.rho == found.correlations["out | in kh kw"].rho
    more = depth_correlation(rows, at_most=0.03, **QUICK)
    assert [cut.size for cut in more.cuts["out | in kh kw"]] == pytest.approx([0.8, 0.3, 0.7, 0.5], abs=1e-12)
    assert [cut.bound for cut in more.cuts["out | in kh kw"]] == ["largest", "smallest", "largest", "largest"]
    none = depth_correlation(rows, at_most=0, **QUICK)
    assert [cut.size for cut in none.cuts["out | in kh kw"]] == pytest.approx([0.1 + 0.1 * 2 / 7, 0, 0.3, 0.35])


def bearing(sizes: Sequence[float], *, rewrite: str = "out | in kh kw", names: str = "abcdefgh") -> list[Row]:
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
    correlation = found.correlations["out | in kh kw"]
    assert [cut.size for cut in found.cuts["out | in kh kw"]] == pytest.approx(sizes)
    assert correlation.rho == pytest.approx(rho)
    assert (correlation.points, correlation.units, correlation.why) == (5, 5, None)
    assert correlation.low <= correlation.rho <= correlation.high
    if abs(rho) == 1:
        # draws of perfect pairs are perfect, and none where all five are one layer
        assert fields(correlation) == pytest.approx((rho, rho, rho))


def test_the_interval_is_that_of_layers_drawn_anew() -> None:
    sizes = [0.1, 0.5, 0.2, 0.3, 0.3, 0.6, 0.4]
    found = depth_correlation(bearing(sizes), seed=7, resamples=400, confidence=0.8).mean
    generator = np.random.default_rng(7)
    draws = []
    for _ in range(400):
        chosen = generator.integers(7, size=7)
        draws.append(spearman_by_hand(list(chosen), [sizes[number] for number in chosen]))
    low, high = np.nanquantile(draws, [0.1, 0.9])
    assert fields(found) == pytest.approx((spearman_by_hand(range(7), sizes), low, high))
    assert found.undefined == np.isnan(draws).sum()
    assert found.low < found.rho < found.high
    again = depth_correlation(bearing(sizes), seed=7, resamples=400, confidence=0.8).mean
    other = depth_correlation(bearing(sizes), seed=8, resamples=400, confidence=0.8).mean
    assert again == found
    assert fields(other) != fields(found)


def test_draws_without_a_correlation_are_counted() -> None:
    found = depth_correlation(bearing([0.1, 0.3, 0.3, 0.3]), resamples=300).mean
    generator = np.random.default_rng(0)
    draws = [generator.integers(4, size=4) for _ in range(300)]
    assert found.undefined == sum(0 not in chosen or not chosen.any() for chosen in draws) > 50
    assert -1 <= found.low <= found.rho <= found.high <= 1


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Pairs of a normal distribution of correlation 0.6, whose rank correlation is 6 / pi asin(0.3)."""
    generator = np.random.default_rng(1)
    truth, held = 6 / math.pi * math.asin(0.3), 0
    for seed in range(60):
        x, y = generator.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=40).T
        rows = [row(f"layer{n}", 5 + float(x[n]), float(y[n])) for n in range(40)]
        found = norm_correlation(rows, seed=seed, resamples=200, confidence=0.9).across
        held += found.low <= truth <= found.high
    # 54 are expected; percentile intervals of 40 pairs hold a little less, and 60 trials vary by 2.3
    assert 46 <= held <= 59


def test_the_mean_is_over_rewrites_that_all_layers_have() -> None:
    one, other = [0.1, 0.2, 0.3, 0.4], [0.8, 0.6, 0.1, 0.2]
    rows = [*bearing(one), *bearing(other, rewrite="in | out kh kw"), *bearing([0.9, 0.1], rewrite="cp", names="ca")]
    found = depth_correlation(rows, **QUICK)
    assert found.mean.rho == pytest.approx(spearman_by_hand(range(4), [0.45, 0.4, 0.2, 0.3]))
    assert [cut.layer for cut in found.cuts["cp"]] == ["a", "c"]
    assert found.correlations["cp"].why == f"fewer than {FEWEST} layers or rows: 2"
    assert all(math.isnan(number) for number in fields(found.correlations["cp"]))


def test_the_order_of_layers() -> None:
    names, sizes = "dbca", [0.4, 0.2, 0.3, 0.1]
    rows = bearing(sizes, names=names)
    assert [cut.layer for cut in depth_correlation(rows, **QUICK).cuts["out | in kh kw"]] == list(names)
    whole = row(list("abcde"), [0.1] * 5, 0.3)
    assert depth_correlation([*rows, whole], **QUICK).mean.rho == 1
    part = row(list("abc"), [0.1] * 3, 0.3)
    assert depth_correlation([*rows, part], **QUICK).mean.rho == spearman(range(4), sizes), "d is not in it"
    assert depth_correlation([*rows, whole], layers=list("dcba"), **QUICK).mean.rho == -1
    with pytest.raises(StudyError, match=r"layers lacks 'b', 'a'\n  fix: all layers, by depth"):
        depth_correlation(rows, layers=list("dc"), **QUICK)


def test_other_measures_of_a_cut() -> None:
    rows = [
        row(name, 0.3, loss, keep=keep, output=output)
        for number, name in enumerate("abcd")
        for keep, output, loss in ((0.75, 0.1, 0.0), (0.5, 0.2 + number / 10, 0.02))
    ]
    values = depth_correlation(rows, size="values", **QUICK)
    assert [cut.size for cut in values.cuts["out | in kh kw"]] == pytest.approx([0.375] * 4)
    assert values.mean.why == "all values of one side are equal, or one is not a number"
    outputs = depth_correlation(rows, size="output_error", **QUICK)
    assert [cut.size for cut in outputs.cuts["out | in kh kw"]] == pytest.approx([0.15, 0.2, 0.25, 0.3])
    assert outputs.mean.rho == 1


# norms


def test_within_and_across_cuts() -> None:
    """In each cut the loss rises with the error; but the cut of larger errors costs less: across, it falls."""
    rows = [BASELINE]
    for number in range(8):
        rows.append(row(f"layer{number % 4}", 0.1 + number / 100, 0.5 + number / 100, keep=0.5 + 0.1 * (number // 4)))
        more = {"rewrite": "in | out kh kw", "keep": 0.5 + 0.1 * (number // 4)}
        rows.append(row(f"layer{number % 4}", 0.8 + number / 100, 0.1 + number / 100, **more))
    found = norm_correlation(rows, resamples=300)
    assert {name: claim.rho for name, claim in found.within.items()} == {"out | in kh kw": 1, "in | out kh kw": 1}
    assert fields(found.mean_within) == (1, 1, 1)
    # of 16 ranks, 1 to 8 go with 9 to 16 and 9 to 16 with 1 to 8: 1 - 6 * 16 * 64 / (16 * 255)
    assert found.across.rho == pytest.approx(1 - 6 * 16 * 64 / (16 * 255))
    assert found.across.low <= found.across.rho <= found.across.high < 0
    assert (found.across.points, found.across.units) == (16, 4)
    assert found.points["in | out kh kw"][0] == (0.8, 0.1)


def random_rows(layers: int = 6, seed: int = 0) -> list[Row]:
    generator = np.random.default_rng(seed)
    rows = []
    for rewrite in ("out | in kh kw", "in | out kh kw"):
        for number in range(layers):
            for keep in (0.75, 0.5, 0.25):
                error, output, noise = generator.random(3)
                loss = round(0.3 * error + 0.5 * output + 0.4 * noise, 1)
                rows.append(row(f"layer{number}", error, loss, rewrite=rewrite, keep=keep, output=output))
    return rows


def test_layers_are_drawn_with_all_their_rows() -> None:
    rows = random_rows()
    found = {
        error: norm_correlation(rows, error=error, seed=3, resamples=200)
        for error in ("relative_error", "output_error")
    }
    gain = norm_gain(rows, seed=3, resamples=200)
    generator = np.random.default_rng(3)
    draws: dict[str, list[tuple[float, float]]] = {error: [] for error in found}
    chosen_layers = [range(6), *(generator.integers(6, size=6) for _ in range(200))]
    for chosen in chosen_layers:
        there = [each for number in chosen for each in rows if each["scope"] == f"layer{number}"]
        for error in found:

            def rho(some: list[Row], error: str = error) -> float:
                errors = [each["layers"][each["scope"]][error] for each in some]
                return spearman_by_hand(errors, [-each["accuracy_change"] for each in some])

            cuts = [[each for each in there if each["rewrite"] == rows[n]["rewrite"]] for n in (0, -1)]
            draws[error].append((sum(map(rho, cuts)) / 2, rho(there)))
    for error, claim in found.items():
        values = np.array(draws[error])
        for column, correlation in enumerate((claim.mean_within, claim.across)):
            low, high = np.quantile(values[1:, column], [0.025, 0.975])
            assert fields(correlation) == pytest.approx((values[0, column], low, high))
    difference = np.array(draws["output_error"]) - np.array(draws["relative_error"])
    for column, correlation in enumerate((gain.mean_within, gain.across)):
        low, high = np.quantile(difference[1:, column], [0.025, 0.975])
        assert fields(correlation) == pytest.approx((difference[0, column], low, high))


def test_plain_pairs_are_those_of_rows() -> None:
    rows = random_rows()
    claim = norm_correlation(rows, seed=3, resamples=200)
    errors = [each["layers"][each["scope"]]["relative_error"] for each in rows]
    losses = [-each["accuracy_change"] for each in rows]
    settings: dict[str, Any] = {"units": [each["scope"] for each in rows], "seed": 3, "resamples": 200}
    assert rank_correlation(errors, losses, **settings) == claim.across
    groups = [each["rewrite"] for each in rows]
    assert rank_correlation(errors, losses, groups=groups, **settings) == claim.mean_within


def test_every_plain_pair_is_drawn_by_itself() -> None:
    first, second = [3.0, 1.0, 4.0, 1.0, 5.0], [2, 7, 1, 8, 2]
    found = rank_correlation(first, np.array(second), seed=4, resamples=300, confidence=0.8)
    generator = np.random.default_rng(4)
    chosen = [generator.integers(5, size=5) for _ in range(300)]
    draws = [spearman_by_hand([first[n] for n in numbers], [second[n] for n in numbers]) for numbers in chosen]
    low, high = np.nanquantile(draws, [0.1, 0.9])
    assert fields(found) == pytest.approx((spearman_by_hand(first, second), low, high))
    assert (found.points, found.units, found.undefined) == (5, 5, np.isnan(draws).sum())
    for few in (first[:3], []):
        assert rank_correlation(few, few).why == f"fewer than {FEWEST} layers or rows: {len(few)}"
        assert rank_correlation(few, few, groups="a" * len(few)).why == rank_correlation(few, few).why


def test_lists_that_are_no_pairs() -> None:
    numbers = [1.0, 2.0, 3.0, 4.0]
    for lists, settings, lengths in [
        ((numbers, numbers[:3]), {}, "4, 3, 4"),
        ((numbers, numbers), {"units": "abc"}, "4, 4, 3"),
        ((numbers, numbers), {"groups": "aabba"}, "4, 4, 4, 5"),
    ]:
        with pytest.raises(StudyError, match=f"no pairs to rank\n  lengths: {lengths}\n  needed:  lists of one length"):
            rank_correlation(*lists, **settings)
    with pytest.raises(StudyError, match="0 draws give no interval"):
        rank_correlation(numbers, numbers, resamples=0)


def test_a_row_counts_once_with_what_it_reports() -> None:
    rows = random_rows()
    plain = [{**each, "layers": {each["scope"]: {"relative_error": 0.5}}} for each in rows]
    reported = [{**each, "reported": "input", "calibration": "9 images x"} for each in rows]
    for mixed in ([*plain, *reported], [*reported, *plain]):
        assert norm_correlation(mixed, **QUICK) == norm_correlation(reported, **QUICK)
    fitted = [
        {**each, "metric": "input", "calibration": f"{n} images", "equations": ["K => A B"]}
        for n in (5, 6)
        for each in rows
    ]
    found = norm_correlation([*rows, *fitted], **QUICK)
    assert {name: len(points) for name, points in found.points.items()} == {
        "out | in kh kw": 18,
        "in | out kh kw": 18,
        "out | in kh kw, metric input": 36,
        "in | out kh kw, metric input": 36,
    }


def test_all_layers_at_once() -> None:
    rows = [row("a", 0.9, 0.0, keep=0.1), BASELINE]
    for number, loss in enumerate((0.1, 0.3, 0.2, 0.4)):
        rows.append(row(["a", "b"], [0.3 + number / 10, 0.4], loss, keep=0.9 - number / 10, output=[0.1, 0.2]))
    rows.append(row(["a"], [0.1], 0.9, scope="layer*"))
    found = norm_correlation(rows, scope="all", **QUICK)
    (points,) = found.points.values()
    assert points[0] == pytest.approx((math.sqrt((0.3**2 + 0.4**2) / 2), 0.1))
    assert len(points) == 4
    assert found.across.rho == pytest.approx(0.8)
    assert found.across.units == 4


def test_how_often_a_cut_is_harmless() -> None:
    losses = {"a": (0.0, 0.01, 0.3), "b": (0.005, 0.02, 0.5), "c": (0.0, 0.9173 - 0.9073, 0.4), "d": (-0.01, 0.0, 0.2)}
    rows = [BASELINE, row(["a", "b"], [0.15, 0.15], 0.9)]
    for layer, of_layer in losses.items():
        rows += [row(layer, error, loss) for error, loss in zip((0.05, 0.15, 0.7), of_layer, strict=True)]
    small, middle, large = harmless(rows, bounds=(0.0, 0.1, 0.5), **QUICK)
    assert (small.least, small.most, small.rows, small.part) == (0.0, 0.1, 4, 1.0)
    assert small.low == small.high == 1.0
    # 0.9173 - 0.9073 is 1 point and a rounding error
    assert (middle.rows, middle.part, middle.median, middle.largest) == (4, 0.75, pytest.approx(0.01), 0.02)
    assert 0.25 <= middle.low < 0.75 < middle.high == 1.0
    assert (large.least, large.most, large.part) == (0.5, math.inf, 0.0)
    assert harmless(rows, at_most=0.3, bounds=(0.5,), **QUICK)[0].part == 0.5
    few = [each for each in rows if each["scope"] in "abc"]
    assert math.isnan(harmless(few, bounds=(0.0,), **QUICK)[0].low)


def test_errors_on_a_bound_are_in_the_band_above() -> None:
    rows = [row(name, error, 0.0) for name in "abcd" for error in (0.25, 0.5)]
    assert [(band.least, band.rows) for band in harmless(rows, bounds=(0.25, 0.5), **QUICK)] == [(0.25, 4), (0.5, 4)]
    assert [band.rows for band in harmless(rows, bounds=(0.5, 0.75), **QUICK)] == [4]


def test_a_loss_of_just_what_is_allowed_is_harmless() -> None:
    rows = [row(name, error, loss) for name in "abcd" for error, loss in ((0.1, 0.9173 - 0.9073), (0.2, 0.5))]
    found = depth_correlation(rows, size="relative_error", **QUICK)
    assert all(cut.size >= 0.1 for cut in found.cuts["out | in kh kw"])


def test_rows_that_cut_nothing_do_not_count() -> None:
    """A kernel of one singular value keeps it at any fraction."""
    names = "abcdefgh"
    cutting = [row(name, 0.1 * n / k, 0.02 * n, keep=k) for n, name in enumerate(names[:4], 1) for k in (0.5, 0.25)]
    whole = [row(name, 1e-16, 0.0, keep=k) for name in names[4:] for k in (0.5, 0.25)]
    for measure in (norm_correlation, harmless, depth_correlation):
        assert measure([*cutting, *whole], **QUICK) == measure(cutting, **QUICK)
    with pytest.raises(StudyError, match="there are no rows of single layers"):
        norm_correlation(whole)


def test_values_dropped_are_those_that_were() -> None:
    rows = [row(name, 0.5, 0.5, keep=0.125) for name in "abcd"]
    for each in rows:
        each["layers"][each["scope"]] |= {"rank": 1, "values": 3}
    found = depth_correlation(rows, size="values", at_most=0.25, **QUICK)
    assert [cut.size for cut in found.cuts["out | in kh kw"]] == pytest.approx([(1 - 1 / 3) / 2] * 4)


def test_too_few_layers_give_no_number() -> None:
    rows = [row(name, 0.1 * n, 0.1 * n, keep=0.1 * n, output=0.2) for n in (1, 2, 3) for name in "abc"]
    claim = norm_correlation(rows, **QUICK)
    for found in (claim.across, claim.mean_within, claim.within["out | in kh kw"], norm_gain(rows, **QUICK).across):
        assert all(math.isnan(number) for number in fields(found))
        assert (found.points, found.units, found.why) == (9, 3, "fewer than 4 layers or rows: 3")
    equal = norm_correlation([row(name, 0.1, n / 10) for n, name in enumerate("abcd")], **QUICK).across
    assert (equal.units, equal.why) == (4, "all values of one side are equal, or one is not a number")


def test_rewrites_with_too_few_layers_are_not_in_the_mean() -> None:
    rows = random_rows()
    few = [row("layer0", n / 10, -n, rewrite="cp", output=0.1) for n in range(3)]
    for error in ("relative_error", "output_error"):
        found, alone = (norm_correlation(some, error=error, **QUICK) for some in ([*rows, *few], rows))
        assert found.within["cp"].why == "fewer than 4 layers or rows: 1"
        assert found.mean_within == alone.mean_within
        assert found.across != alone.across
    assert norm_gain([*rows, *few], **QUICK).mean_within == norm_gain(rows, **QUICK).mean_within


def test_rows_without_an_output_error() -> None:
    rows = random_rows()
    half = [
        each if number % 2 else {**each, "layers": {each["scope"]: {"relative_error": 0.5, "output_error": None}}}
        for number, each in enumerate(rows)
    ]
    assert norm_correlation(half, error="output_error", **QUICK) == norm_correlation(
        rows[1::2], error="output_error", **QUICK
    )
    assert norm_gain(half, **QUICK) == norm_gain(rows[1::2], **QUICK)
    with pytest.raises(StudyError, match=r"none of the rows of single layers has 'output_error'\n.*--report-metric"):
        norm_correlation(half[::2], error="output_error")


def test_what_is_no_claim() -> None:
    rows = random_rows()
    ranked = [*rows, row("layer0", 0.1, 0.1, rewrite="cp", ranks="r=3")]
    for call, fact in (
        (
            lambda: depth_correlation([BASELINE, row(["a", "b"], [0.1, 0.1], 0.1)]),
            "there are no rows of single layers\n",
        ),
        (lambda: norm_correlation([]), "there are no rows of single layers\n"),
        (lambda: norm_correlation(rows, scope="all"), "there are no rows of scope all\n"),
        (lambda: norm_correlation(rows, scope="layer"), "scope is 'layer'\n  fix: 'each' or 'all'"),  # type: ignore[arg-type]
        (lambda: norm_correlation(rows, error="norm"), "error is 'norm'\n"),  # type: ignore[arg-type]
        (lambda: depth_correlation(rows, size="rank"), "size is 'rank'\n"),  # type: ignore[arg-type]
        (lambda: depth_correlation(ranked, size="values"), "rows of 'cp' are of ranks"),
        (lambda: depth_correlation(rows, at_most=1.0), r"a loss of at most 1\.0\n"),
        (lambda: depth_correlation(rows, at_most=-0.1), r"a loss of at most -0\.1\n"),
        (lambda: harmless(rows, at_most=-1), r"a loss of at most -1\n"),
        (lambda: harmless(rows, bounds=(0.2, 0.1)), r"the bounds are \[0\.2, 0\.1\]\n"),
        (lambda: harmless([BASELINE]), "there are no rows of single layers\n"),
        (lambda: depth_correlation(rows, resamples=0), "0 draws give no interval"),
        (lambda: norm_correlation(rows, confidence=1.0), r"a confidence of 1\.0\n"),
        (lambda: norm_gain(rows, confidence=math.nan), "a confidence of nan\n"),
    ):
        with pytest.raises(StudyError, match=fact):
            call()
