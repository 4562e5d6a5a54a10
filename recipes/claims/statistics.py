"""What the rows of a study say of its claims: rank correlations, each with a bootstrap interval.

Layers are what a claim about networks could have seen more of, so layers are what is drawn anew: with replacement, each
with all its rows. An interval is that of the percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

import tnalgebra as tn

if TYPE_CHECKING:
    from numpy.typing import NDArray

Error: TypeAlias = Literal["relative_error", "output_error"]
"""Of a layer in a row: ||K - K~||_F / ||K||_F; or sqrt(E||(K - K~) x||^2 / E||K x||^2) over its real inputs x."""

Size: TypeAlias = Literal["relative_error", "output_error", "values"]
"""How large a cut is: one of the errors it makes; or the part of the singular values it drops."""

Scope: TypeAlias = Literal["each", "all"]
"""One layer rewritten at a time; or all of them at once."""

FEWEST = 4
"""Layers, or rows of several layers, below which no correlation is stated: of 3 points one order in 6 is perfect."""

RESAMPLES = 2000
CONFIDENCE = 0.95
EXACT = 1e-12
"""Relative error up to which a cut has taken nothing away: rounding of float64."""
ROUNDING = 1e-9
"""Of differences of accuracies, which are quotients of integers: what is on a bound is within it."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation, with a bootstrap interval.

    Attributes:
        rho: -1 to 1, equal values having the mean of their ranks; NaN where there is none.
        low, high: ends of the interval; NaN where there is none.
        points: pairs that were ranked; of a mean, those of all its parts.
        units: layers (or rows of several layers) that were drawn anew.
        undefined: draws without a correlation, all values of one side being equal; the interval is that of the others.
        why: what `rho` is NaN for; None where it is a number.
    """

    rho: float
    low: float
    high: float
    points: int
    units: int
    undefined: int = 0
    why: str | None = None


@dataclass(frozen=True)
class LargestCut:
    """The largest cut of a layer that costs at most so much.

    Attributes:
        layer: its name.
        size: see `Size`.
        bound: "smallest": the smallest cut tested costs more already; "largest": the largest tested does not cost more,
            so that `size` is a lower bound; None: the cut lies between two that were tested.
    """

    layer: str
    size: float
    bound: Literal["smallest", "largest"] | None


@dataclass(frozen=True)
class DepthClaim:
    """How the largest harmless cut depends on depth.

    Attributes:
        cuts: rewrite -> the layers' largest cuts, in the order of depth.
        correlations: rewrite -> correlation of depth with them.
        mean: of depth with the mean over the rewrites that all layers have.
    """

    cuts: Mapping[str, Sequence[LargestCut]]
    correlations: Mapping[str, Correlation]
    mean: Correlation


@dataclass(frozen=True)
class NormClaim:
    """How the loss of accuracy follows an error.

    Attributes:
        points: rewrite -> (error, loss of accuracy, 0 to 1, positive where accuracy falls) of each row.
        within: rewrite -> correlation among its rows.
        mean_within: mean of these over the rewrites that have one; in a draw, over those that have one in it.
        across: correlation among the rows of all rewrites together.
    """

    points: Mapping[str, Sequence[tuple[float, float]]]
    within: Mapping[str, Correlation]
    mean_within: Correlation
    across: Correlation


@dataclass(frozen=True)
class Gain:
    """rho of the output error less rho of the relative error, on the same rows and the same draws."""

    mean_within: Correlation
    across: Correlation


# Ranks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Band:
    """Rows whose error lies between two bounds, and how many of them are harmless.

    Attributes:
        least, most: bounds of the error; the first is within, the second not.
        rows: how many there are.
        part: of them that cost at most what is allowed, 0 to 1.
        low, high: ends of its interval; NaN where the rows are of too few layers.
        median, largest: losses of accuracy, 0 to 1; negative where accuracy rises.
    """

    least: float
    most: float
    rows: int
    part: float
    low: float
    high: float
    median: float
    largest: float


def spearman(first: Sequence[float] | NDArray[np.float64], second: Sequence[float] | NDArray[np.float64]) -> float:
    """Spearman's rank correlation: Pearson's, of ranks, equal values having the mean of theirs.

    Returns:
        -1 to 1; NaN with fewer than two values, a NaN among them, or all values of one side equal.

    Raises:
        StudyError: as many values on each side are needed.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise tn.errors.StudyError(
            tn.errors.explain(
                "there are no pairs to rank", shapes=f"{x.shape} and {y.shape}", needed="two lists of one length"
            )
        )
    if len(x) < 2 or np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    a, b = _ranks(x), _ranks(y)
    a -= a.mean()
    b -= b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return max(-1.0, min(1.0, float(a @ b) / scale)) if scale else math.nan


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1; the mean rank of equal values is half the sum of how many are below, and below or equal, and 1."""
    ordered = np.sort(values)
    ranks: NDArray[np.float64] = (
        ordered.searchsorted(values, side="left") + ordered.searchsorted(values, side="right") + 1
    ) / 2
    return ranks


def rank_correlation(
    first: Sequence[float] | NDArray[np.float64],
    second: Sequence[float] | NDArray[np.float64],
    *,
    units: Sequence[Hashable] | None = None,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Correlation:
    """Spearman's correlation of plain pairs, with its bootstrap interval.

    Args:
        first, second: pair n is first[n] and second[n].
        units: what each pair belongs to: units are drawn anew, each with all its pairs. By default every pair is one.
        groups: of each pair. The correlation is then the mean of those within the groups of at least `FEWEST` units; in
            a draw, over the groups that have one in it. By default all pairs are ranked together.
        seed: of the draws.
        resamples: number of draws.
        confidence: part of the draws inside the interval, in (0, 1).

    Raises:
        StudyError: the lists are not of one length, or a setting is not what it should be.
    """
    draws = _Draws(seed, resamples, confidence)
    units = range(len(first)) if units is None else units
    lengths = [len(each) for each in (first, second, units, groups) if each is not None]
    if len(set(lengths)) > 1:
        raise tn.errors.StudyError(
            tn.errors.explain(
                "there are no pairs to rank", lengths=", ".join(map(str, lengths)), needed="lists of one length"
            )
        )
    pairs = _pairs(zip(map(float, first), map(float, second), strict=True))
    if groups is None:
        return draws.correlation(units, pairs)
    return draws.within(units, groups, lambda chosen: spearman(*pairs[chosen].T))


# Depth ------------------------------------------------------------------------------------------------------------


def depth_correlation(
    rows: Sequence[tn.studies.Row],
    *,
    at_most: float = 0.01,
    size: Size = "relative_error",
    layers: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> DepthClaim:
    """Correlation of a layer's depth with the largest cut it bears.

    For each layer and rewrite the rows of that layer alone are followed from the smallest cut to the largest, beginning
    with no cut, which costs nothing. The largest cut that costs at most `at_most` lies on the line between the first
    row that costs more and the one before it: later rows that happen to cost less again do not count. Where the first
    row costs more, it lies between no cut and this one; where no row does, it is the largest that was tested. Both
    are marked, see `LargestCut`.

    Args:
        rows: of a study; those of several layers and of the untouched network are passed over.
        at_most: loss of accuracy, 0 to 1: 0.01 is one point.
        size: what a cut is measured by. Not by parameters saved: those are of the whole network, and grow with a
            layer's own size, which grows with depth.
        layers: names in the order of depth; by default as in the row that touches the most layers, if it touches all
            of those here, else in the order in which rows have them first.
        seed: of the draws.
        resamples: number of draws.
        confidence: part of the draws inside the interval, in (0, 1).

    Raises:
        StudyError: there are no rows of single layers, a row lacks the size, a layer is not in `layers`, or a setting
            is not what it should be.
    """
    _check_at_most(at_most)
    if size not in get_args(Size):
        raise tn.errors.StudyError(tn.errors.explain(f"size is {size!r}", fix=" or ".join(map(repr, get_args(Size)))))
    single = _single(rows, size)
    names = _order(rows, single, layers)
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in single:
        there = curves.setdefault(curve_of(row), {}).setdefault(row["scope"], [])
        there.append((_size(row, size), -row["accuracy_change"]))
    cuts = {
        curve: [_largest(name, by_layer[name], at_most) for name in names if name in by_layer]
        for curve, by_layer in curves.items()
    }
    draws = _Draws(seed, resamples, confidence)
    depth = {name: number for number, name in enumerate(names)}
    found = {
        curve: draws.correlation([cut.layer for cut in there], _pairs((depth[cut.layer], cut.size) for cut in there))
        for curve, there in cuts.items()
    }
    complete = [{cut.layer: cut.size for cut in there} for there in cuts.values() if len(there) == len(names)]
    means = [(depth[name], math.fsum(sizes[name] for sizes in complete) / len(complete)) for name in names if complete]
    mean = draws.correlation(names if complete else [], _pairs(means))
    return DepthClaim(cuts, found, mean)


def _order(rows: Sequence[tn.studies.Row], single: Sequence[tn.studies.Row], layers: Sequence[str] | None) -> list[str]:
    """The layers that have rows of their own, by depth."""
    there = list(dict.fromkeys(row["scope"] for row in single))
    if layers is None:
        widest: list[str] = max((list(row["layers"]) for row in rows), key=len, default=[])
        layers = widest if set(there) <= set(widest) else there
    missing = [name for name in there if name not in layers]
    if missing:
        raise tn.errors.StudyError(
            tn.errors.explain(f"layers lacks {', '.join(map(repr, missing))}", fix="all layers, by depth")
        )
    return [name for name in dict.fromkeys(layers) if name in there]


def _largest(layer: str, curve: Sequence[tuple[float, float]], at_most: float) -> LargestCut:
    """Follow sizes and losses from no cut to where the loss first exceeds what is allowed."""
    before, loss_before = 0.0, 0.0
    for number, (size, loss) in enumerate(sorted(curve)):
        if loss > at_most + ROUNDING:
            part = (at_most - loss_before) / (loss - loss_before)
            return LargestCut(layer, before + part * (size - before), None if number else "smallest")
        before, loss_before = size, loss
    return LargestCut(layer, before, "largest")


# Norms ------------------------------------------------------------------------------------------------------------


def norm_correlation(
    rows: Sequence[tn.studies.Row],
    *,
    error: Error = "relative_error",
    scope: Scope = "each",
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> NormClaim:
    """Correlation of the loss of accuracy with an error of the kernels, within each rewrite and across them.

    Rewrites of one name but another metric, or another way with components, count as several.

    Args:
        rows: of a study.
        error: "relative_error" in the Frobenius norm; "output_error" in the input metric, of a study with
            `report_metric`: rows that do not have it are passed over.
        scope: "each": the rows of single layers, layers drawn anew. "all": the rows of scope all; the root mean square
            of their layers' errors, rows drawn anew.
        seed, resamples, confidence: as in `depth_correlation`.

    Raises:
        StudyError: there are no such rows, or a setting is not what it should be.
    """
    draws = _Draws(seed, resamples, confidence)
    units, curves, pairs = _losses(rows, error, scope)
    named = list(dict.fromkeys(curves))
    places = {name: np.array([number for number, curve in enumerate(curves) if curve == name]) for name in named}
    within = {name: draws.correlation([units[n] for n in places[name]], pairs[places[name]]) for name in named}
    return NormClaim(
        points={name: [(float(x), float(y)) for x, y in pairs[places[name]]] for name in named},
        within=within,
        mean_within=draws.within(units, curves, lambda numbers: spearman(*pairs[numbers].T)),
        across=draws.correlation(units, pairs),
    )


def norm_gain(
    rows: Sequence[tn.studies.Row],
    *,
    scope: Scope = "each",
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Gain:
    """How much better the loss of accuracy follows the output error than the relative error.

    Args:
        rows: of a study with `report_metric`; rows without an output error are passed over.
        scope, seed, resamples, confidence: as in `norm_correlation`.

    Raises:
        StudyError: see `norm_correlation`.
    """
    draws = _Draws(seed, resamples, confidence)
    units, curves, outputs = _losses(rows, "output_error", scope)
    kernels = _losses(rows, "relative_error", scope, needed="output_error")[2]

    def gain(chosen: NDArray[np.int64]) -> float:
        return spearman(*outputs[chosen].T) - spearman(*kernels[chosen].T)

    return Gain(draws.within(units, curves, gain), draws.statistic(units, len(outputs), gain))


def harmless(
    rows: Sequence[tn.studies.Row],
    *,
    at_most: float = 0.01,
    error: Error = "relative_error",
    bounds: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> list[Band]:
    """How often a cut of a single layer costs little, by the error that it makes.

    Args:
        rows: of a study.
        at_most: loss of accuracy that counts as harmless, 0 to 1: 0.01 is one point.
        error: as in `norm_correlation`.
        bounds: of the bands of errors, increasing; errors from the last bound on are a band of their own.
        seed, resamples, confidence: as in `depth_correlation`.

    Returns:
        The bands that have rows.

    Raises:
        StudyError: there are no rows of single layers, or a setting is not what it should be.
    """
    _check_at_most(at_most)
    if not bounds or any(high <= low for low, high in pairwise(bounds)):
        raise tn.errors.StudyError(
            tn.errors.explain(f"the bounds are {list(bounds)}", fix="increasing errors, such as 0, 0.1, 0.3, 1")
        )
    draws = _Draws(seed, resamples, confidence)
    units, _, pairs = _losses(rows, error, "each")
    found = []
    for least, most in pairwise((*bounds, math.inf)):
        within = np.flatnonzero((pairs[:, 0] >= least) & (pairs[:, 0] < most))
        if not len(within):
            continue
        losses = pairs[within, 1]
        part = draws.statistic([units[n] for n in within], len(within), _part_within(losses, at_most))
        stated = float(np.mean(losses <= at_most + ROUNDING))
        middle, largest = float(np.median(losses)), float(losses.max())
        found.append(Band(least, most, len(within), stated, part.low, part.high, middle, largest))
    return found


def _part_within(losses: NDArray[np.float64], at_most: float) -> Callable[[NDArray[np.int64]], float]:
    return lambda chosen: float(np.mean(losses[chosen] <= at_most + ROUNDING))


def _check_at_most(at_most: float) -> None:
    if not (isinstance(at_most, int | float) and 0 <= at_most < 1):
        raise tn.errors.StudyError(
            tn.errors.explain(f"a loss of at most {at_most!r}", needed="a part of 1, such as 0.01 for one point")
        )


def _losses(
    rows: Sequence[tn.studies.Row], error: Error, scope: Scope, *, needed: Error | None = None
) -> tuple[list[Hashable], list[str], NDArray[np.float64]]:
    """For each row its unit and its curve; shape (rows, 2): its error, and its loss of accuracy."""
    if error not in get_args(Error):
        raise tn.errors.StudyError(
            tn.errors.explain(f"error is {error!r}", fix=" or ".join(map(repr, get_args(Error))))
        )
    if scope not in get_args(Scope):
        raise tn.errors.StudyError(
            tn.errors.explain(f"scope is {scope!r}", fix=" or ".join(map(repr, get_args(Scope))))
        )
    if scope == "each":
        chosen = _single(rows, needed or error)
        units: list[Hashable] = [row["scope"] for row in chosen]
    else:
        whole = [row for row in rows if tn.studies.touched(row) and row["scope"] == "all" and row["layers"]]
        chosen = _having(_distinct(whole), needed or error, "rows of scope all")
        units = list(range(len(chosen)))
    return (
        units,
        [curve_of(row) for row in chosen],
        _pairs((_size(row, error), -row["accuracy_change"]) for row in chosen),
    )


# Rows -------------------------------------------------------------------------------------------------------------


def curve_of(row: tn.studies.Row) -> str:
    """What rows of one rewrite at several sizes have in common: the rewrite, and how it is fitted if not as usual."""
    return ", ".join(filter(None, [row["rewrite"], tn.studies.variant(row)]))


def _single(rows: Sequence[tn.studies.Row], size: Size) -> list[tn.studies.Row]:
    """The rows of single layers that have this size, each once.

    Without those that cut nothing: across `out in | kh kw` a 1x1 kernel has one singular value, which is always kept.
    """
    some = [row for row in rows if tn.studies.touched(row) and tn.studies.of_one_layer(row)]
    return _having(
        _distinct([row for row in some if _size(row, "relative_error") > EXACT]), size, "rows of single layers"
    )


def _having(rows: Sequence[tn.studies.Row], size: Size, what: str) -> list[tn.studies.Row]:
    if not rows:
        raise tn.errors.StudyError(tn.errors.explain(f"there are no {what}", fix="a study with --scope all each"))
    if size == "values":
        lacking = next((row for row in rows if row["keep"] is None), None)
        if lacking is not None:
            raise tn.errors.StudyError(
                tn.errors.explain(
                    f"rows of {lacking['rewrite']!r} are of ranks, not of parts of the singular values",
                    fix="size='relative_error', or rows with keep only",
                )
            )
        return list(rows)
    there = [row for row in rows if all(layer.get(size) is not None for layer in row["layers"].values())]
    if not there:
        raise tn.errors.StudyError(
            tn.errors.explain(f"none of the {what} has {size!r}", fix="a study with --report-metric")
        )
    return there


def _distinct(rows: Sequence[tn.studies.Row]) -> list[tn.studies.Row]:
    """Rows that differ in more than what they report; of equal ones that which reports the most."""
    found: dict[tn.studies.Key, tn.studies.Row] = {}
    for row in rows:
        key = tn.studies.Key.of(row)
        if key.metric == tn.studies.BASELINE.metric:
            key = key._replace(calibration=None, reported=None)
        if key not in found or row["reported"] is not None:
            found[key] = row
    return list(found.values())


def _size(row: tn.studies.Row, size: Size) -> float:
    """Of the cut of a row; over several layers the root mean square of their errors."""
    if size == "values":
        # of folders from before rows had the number of values, the fraction that was asked for
        parts = [layer["rank"] / layer["values"] for layer in row["layers"].values() if "values" in layer]
        return 1.0 - (parts[0] if len(parts) == 1 else float(row["keep"]))
    squares = [float(layer[size]) ** 2 for layer in row["layers"].values()]
    return math.sqrt(math.fsum(squares) / len(squares))


def _pairs(given: Iterable[tuple[float, float]]) -> NDArray[np.float64]:
    return np.array(list(given), dtype=np.float64).reshape(-1, 2)


# Draws ------------------------------------------------------------------------------------------------------------


class _Draws:
    """Bootstrap draws of units, each with all its points; each statistic begins at the same seed."""

    def __init__(self, seed: int, resamples: int, confidence: float) -> None:
        if resamples < 1:
            raise tn.errors.StudyError(tn.errors.explain(f"{resamples} draws give no interval", fix="resamples=2000"))
        if not 0 < confidence < 1:
            raise tn.errors.StudyError(
                tn.errors.explain(f"a confidence of {confidence!r}", needed="between 0 and 1, such as 0.95")
            )
        self.seed = seed
        self.resamples = resamples
        self.confidence = confidence

    def correlation(self, units: Sequence[Hashable], pairs: NDArray[np.float64]) -> Correlation:
        """Spearman's of pairs, shape (points, 2)."""
        return self.statistic(units, len(pairs), lambda chosen: spearman(*pairs[chosen].T))

    def within(
        self, units: Sequence[Hashable], curves: Sequence[str], measured: Callable[[NDArray[np.int64]], float]
    ) -> Correlation:
        """The mean over the curves of what is measured on each, of curves with enough units for one of their own."""
        members: dict[str, set[Hashable]] = {}
        for unit, curve in zip(units, curves, strict=True):
            members.setdefault(curve, set()).add(unit)
        stated = [number for number, curve in enumerate(curves) if len(members[curve]) >= FEWEST]
        if not stated:
            most = max(map(len, members.values()), default=0)
            why = f"fewer than {FEWEST} layers or rows: {most}"
            return Correlation(math.nan, math.nan, math.nan, len(units), most, why=why)

        def mean(chosen: NDArray[np.int64]) -> float:
            of_curve: dict[str, list[int]] = {}
            for place in chosen:
                of_curve.setdefault(curves[stated[place]], []).append(stated[place])
            found = [measured(np.array(numbers)) for numbers in of_curve.values()]
            defined = [value for value in found if not math.isnan(value)]
            return math.fsum(defined) / len(defined) if defined else math.nan

        return self.statistic([units[number] for number in stated], len(stated), mean)

    def statistic(
        self, units: Sequence[Hashable], points: int, measured: Callable[[NDArray[np.int64]], float]
    ) -> Correlation:
        """What is measured on all points, and its interval over draws.

        Args:
            units: of each point.
            measured: numbers of points, some of them several times -> the statistic, or NaN.
        """
        members: dict[Hashable, list[int]] = {}
        for number, unit in enumerate(units):
            members.setdefault(unit, []).append(number)
        groups = [np.array(numbers, dtype=np.int64) for numbers in members.values()]
        if len(groups) < FEWEST:
            why = f"fewer than {FEWEST} layers or rows: {len(groups)}"
            return Correlation(math.nan, math.nan, math.nan, points, len(groups), why=why)
        value = measured(np.arange(points))
        if math.isnan(value):
            why = "all values of one side are equal, or one is not a number"
            return Correlation(math.nan, math.nan, math.nan, points, len(groups), why=why)
        generator = np.random.default_rng(self.seed)
        drawn = np.array(
            [
                measured(np.concatenate([groups[unit] for unit in generator.integers(len(groups), size=len(groups))]))
                for _ in range(self.resamples)
            ]
        )
        defined = drawn[~np.isnan(drawn)]
        outside = (1 - self.confidence) / 2
        low, high = np.quantile(defined, [outside, 1 - outside]) if len(defined) else (math.nan, math.nan)
        return Correlation(value, float(low), float(high), points, len(groups), undefined=self.resamples - len(defined))
