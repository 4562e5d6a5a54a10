"""The claims of a paper, from the rows of a study: rank correlations, each with a bootstrap interval.

A claim about networks could have been tested on other layers, so layers are drawn again for an interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from .._tables import data_frame
from ..errors import StudyError
from .correlation import Correlation, Draws, bootstrap, bootstrap_within, mean_of, rank_correlation, spearman_of
from .rows import Key, Row, of_one_layer, touched, variant

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

ErrorName: TypeAlias = Literal["relative_error", "output_error"]
"""An error of a layer: ||K - K~||_F / ||K||_F; or sqrt(E||(K - K~) x||^2 / E||K x||^2) over its inputs x."""

CutSize: TypeAlias = Literal["relative_error", "output_error", "values"]
"""The measure of a cut's size: one of the errors that it makes, or the part of the singular values that it drops.

The parameters that it saves are not a measure: they grow with the size of the layer, which grows with depth.
"""

RowScope: TypeAlias = Literal["each", "all"]
"""Rows in which one layer is rewritten, or all of them at once."""

UNCHANGED = 1e-12
"""The relative error up to which a cut has changed nothing but the rounding of float64."""
LOSS_ROUNDING = 1e-9
"""The rounding of differences of accuracies: a loss that is equal to a bound counts as within it."""
BANDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, math.inf)
"""The ends of the bands of errors."""


@dataclass(frozen=True)
class LargestCut:
    """The largest cut of a layer that costs at most what is allowed.

    Attributes:
        layer, depth: its name, and its place among the layers, 0 for the first.
        size: of the cut, as a rule between those that were tested.
        tested: the largest size that was tested and costs no more, as do all smaller ones; 0 where none does.
        bound: "smallest" where even the smallest cut that was tested costs more; "largest" where the largest one does
            not cost more, so that `size` is a lower bound; None where the cut lies between two tested ones.
    """

    layer: str
    depth: int
    size: float
    tested: float
    bound: Literal["smallest", "largest"] | None


@dataclass(frozen=True)
class DepthClaim:
    """How the largest harmless cut depends on depth, for each rewrite; and the mean of these correlations."""

    cuts: Mapping[str, Sequence[LargestCut]]
    correlations: Mapping[str, Correlation]
    mean: Correlation


@dataclass(frozen=True)
class Gain:
    """The correlation of the loss with the output error, less that with the relative error, on the same rows and draws.

    `mean_within` is the mean over the rewrites that have a correlation, `across` is that of all rows together.
    """

    mean_within: Correlation
    across: Correlation


@dataclass(frozen=True)
class NormClaim:
    """How the loss of accuracy depends on an error: (error, loss) of the rows of each rewrite, and their correlation.

    A loss is positive where the accuracy falls; 0.01 is one point. `mean_within` and `across` are as in `Gain`.
    """

    points: Mapping[str, Sequence[tuple[float, float]]]
    within: Mapping[str, Correlation]
    mean_within: Correlation
    across: Correlation


@dataclass(frozen=True)
class Band:
    """Rows whose error is at least `least` and below `most`, and the part of them that costs at most what is allowed.

    `low` and `high` are the ends of its interval, NaN for too few layers; `median` and `largest` are losses.
    """

    least: float
    most: float
    rows: int
    part: float
    low: float
    high: float
    median: float
    largest: float


@dataclass(frozen=True)
class Claims:
    """The results; those for which the rows lack numbers are missing.

    depth: measure of a cut's size -> claim.
    norms: "each" or "all" -> error -> claim.
    gains: "each" or "all" -> claim.
    bands: error -> how often a cut of one layer is harmless, band by band of that error.
    """

    depth: Mapping[str, DepthClaim]
    norms: Mapping[str, Mapping[str, NormClaim]]
    gains: Mapping[str, Gain]
    bands: Mapping[str, Sequence[Band]]


# Rows -------------------------------------------------------------------------------------------------------------


def curve_of(row: Row) -> str:
    """The name that rows of one rewrite share at all sizes: the rewrite, and how it is fitted if not as usual."""
    return ", ".join(filter(None, [row["rewrite"], variant(row)]))


def points_of(rows: Sequence[Row], scope: RowScope) -> pd.DataFrame:
    """A line for each row of a scope: curve, unit (the layer, in the scope "each"), loss of accuracy, and sizes.

    Rows that differ only in what they report count once, as the one that reports the most, and so do rows that keep
    the same values: across `kh | out in kw` a kernel has three, of which a quarter and an eighth are both one. Rows of
    one layer that cut nothing do not count: across `out in | kh kw` a 1x1 kernel has one singular value, which is
    always kept. The size of a row of several layers is the root mean square of theirs.

    Raises:
        StudyError: the rows are of several networks.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    if len(models) > 1:
        fix = "the rows of one of them; recipes.claims has --model NAME for it"
        raise StudyError("the rows are of several networks", networks=", ".join(models), fix=fix)
    distinct: dict[Key, Row] = {}
    for row in filter(touched, rows):
        if of_one_layer(row) if scope == "each" else row["scope"] == "all" and row["layers"]:
            key = Key.of(row)
            if key.metric == "frobenius":
                key = key._replace(calibration=None, reported=None)
            if key not in distinct or row["reported"] is not None:
                distinct[key] = row
    networks = {(key._replace(keep=None), _values_kept(row)): row for key, row in distinct.items()}
    lines = []
    for number, row in enumerate(networks.values()):
        layers = list(row["layers"].values())
        errors = [_root_mean_square([layer.get(name) for layer in layers]) for name in get_args(ErrorName)]
        dropped = math.nan if row["keep"] is None else 1 - layers[0]["rank"] / layers[0]["values"]
        unit = row["scope"] if scope == "each" else number
        lines.append((curve_of(row), unit, -row["accuracy_change"], *errors, dropped))
    columns = ["curve", "unit", "loss", "relative_error", "output_error", "values"]
    points = data_frame(lines, columns)
    return points[points["relative_error"] > UNCHANGED] if scope == "each" else points


def _values_kept(row: Row) -> tuple[object, ...]:
    """What cuts at a part of the singular values leave of each layer: equal where two rows are the same network."""
    layers = row["layers"].items() if row["keep"] is not None else ()
    return tuple((name, layer["rank"], f"{layer['relative_error']:.6g}") for name, layer in layers)


def _root_mean_square(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.sqrt(math.fsum(value**2 for value in known) / len(known)) if len(known) == len(values) else math.nan


def _sized(rows: Sequence[Row], scope: RowScope, *sizes: CutSize) -> pd.DataFrame:
    """The points of a scope that have all these sizes. Raises StudyError if no point has them."""
    points = points_of(rows, scope)
    what = "rows of single layers" if scope == "each" else "rows of scope all"
    if points.empty:
        raise StudyError(f"the study has no {what}", fix="a study with --scope all each")
    points = points.dropna(subset=list(sizes))
    if points.empty:
        raise StudyError(f"none of the {what} has {sizes[-1]!r}", fix="a study with --report-metric")
    return points.reset_index(drop=True)


# Claims -----------------------------------------------------------------------------------------------------------


def largest_cuts(rows: Sequence[Row], *, at_most: float, size: CutSize) -> dict[str, list[LargestCut]]:
    """The largest cut that each layer bears, in the order of the layers: rewrite -> cuts.

    For each layer and rewrite the rows of that layer alone are followed from the smallest cut to the largest, starting
    with no cut, which costs nothing. The largest cut that costs at most `at_most` is interpolated between the first row
    that costs more and the row before it; later rows that happen to cost less again do not count. If the first row
    costs more, the cut lies between no cut and this row; if no row costs more, it is the largest that was tested.
    Layers are in the order of the row with the most layers, if it has all of those with rows of their own; otherwise
    in the order in which they first occur.

    Raises:
        StudyError: no row is of a single layer, or none of these has the size.
    """
    points = _sized(rows, "each", size)
    names = list(dict.fromkeys(points["unit"]))
    widest: list[str] = max((list(row["layers"]) for row in rows), key=len)
    depth = {name: number for number, name in enumerate(name for name in widest if name in names)}
    if len(depth) < len(names):
        depth = {name: number for number, name in enumerate(names)}
    cuts: dict[str, list[LargestCut]] = {}
    for curve, some in points.groupby("curve", sort=False):
        layers = {name: [*zip(each[size], each["loss"], strict=True)] for name, each in some.groupby("unit")}
        cuts[str(curve)] = [_largest(name, depth[name], layers[name], at_most) for name in depth if name in layers]
    return cuts


def depth_correlation(rows: Sequence[Row], *, at_most: float, size: CutSize, draws: Draws) -> DepthClaim:
    """The correlation of a layer's depth with the largest cut that it bears, see `largest_cuts`.

    The mean is over the rewrites that enough layers have. Its errors are those of `largest_cuts`.
    """
    cuts = largest_cuts(rows, at_most=at_most, size=size)

    def correlation(some: Sequence[LargestCut], groups: Sequence[str] | None = None) -> Correlation:
        depths, sizes = [cut.depth for cut in some], [cut.size for cut in some]
        return rank_correlation(depths, sizes, units=depths, groups=groups, draws=draws)

    every = [(curve, cut) for curve, largest in cuts.items() for cut in largest]
    mean = correlation([cut for _, cut in every], [curve for curve, _ in every])
    return DepthClaim(cuts, {curve: correlation(largest) for curve, largest in cuts.items()}, mean)


def _largest(layer: str, depth: int, curve: Sequence[tuple[float, float]], at_most: float) -> LargestCut:
    """Follow sizes and losses, starting with no cut, to where the loss first exceeds what is allowed."""
    before, loss_before = 0.0, 0.0
    for number, (size, loss) in enumerate(sorted(curve)):
        if loss > at_most + LOSS_ROUNDING:
            part = (at_most - loss_before) / (loss - loss_before)
            return LargestCut(layer, depth, before + part * (size - before), before, None if number else "smallest")
        before, loss_before = size, loss
    return LargestCut(layer, depth, before, before, "largest")


def norm_correlation(
    rows: Sequence[Row],
    *,
    error: ErrorName,
    scope: RowScope,
    draws: Draws,
) -> NormClaim:
    """The correlation of the loss of accuracy with an error of the kernels, within each rewrite and across them.

    Rewrites of one name that are fitted in different ways count as several. Rows without the error are left out. For
    an interval, layers are drawn in the scope "each", rows in the scope "all".

    Raises:
        StudyError: no row of the scope has the error.
    """
    points = _sized(rows, scope, error)

    def correlation(some: pd.DataFrame, groups: Sequence[str] | None = None) -> Correlation:
        return rank_correlation(some[error], some["loss"], units=[*some["unit"]], groups=groups, draws=draws)

    curves = {str(curve): some for curve, some in points.groupby("curve", sort=False)}
    return NormClaim(
        points={name: [*zip(some[error], some["loss"], strict=True)] for name, some in curves.items()},
        within={name: correlation(some) for name, some in curves.items()},
        mean_within=correlation(points, [*points["curve"]]),
        across=correlation(points),
    )


def norm_gain(rows: Sequence[Row], *, scope: RowScope, draws: Draws) -> Gain:
    """How much more the loss of accuracy correlates with the output error than with the relative error.

    Raises:
        StudyError: no row of the scope has both errors.
    """
    points = _sized(rows, scope, "relative_error", "output_error")
    outputs, kernels, losses = (points[name].to_numpy() for name in ("output_error", "relative_error", "loss"))

    of_outputs, of_kernels = spearman_of(outputs, losses), spearman_of(kernels, losses)

    def gain(times: NDArray[np.float64]) -> NDArray[np.float64]:
        return of_outputs(times) - of_kernels(times)

    units = [*points["unit"]]
    return Gain(bootstrap_within(units, [*points["curve"]], gain, draws), bootstrap(units, gain, draws))


def harmless(rows: Sequence[Row], *, at_most: float, error: ErrorName, draws: Draws) -> list[Band]:
    """How often a cut of a single layer costs at most `at_most`, for each band of errors that has rows.

    Raises:
        StudyError: no row is of a single layer, or none of these has the error.
    """
    points = _sized(rows, "each", error)
    bands = []
    for least, most in pairwise(BANDS):
        some = points[(points[error] >= least) & (points[error] < most)]
        if len(some):
            within = (some["loss"] <= at_most + LOSS_ROUNDING).to_numpy()
            part = bootstrap([*some["unit"]], mean_of(within), draws)
            middle, largest = float(some["loss"].median()), float(some["loss"].max())
            bands.append(Band(least, most, len(some), float(within.mean()), part.low, part.high, middle, largest))
    return bands


def claims_of(rows: Sequence[Row], *, at_most: float, draws: Draws) -> Claims:
    """All claims for which the rows have numbers. Raises StudyError if none of them is of a single layer."""
    names: tuple[ErrorName, ...] = get_args(ErrorName)
    each, whole = points_of(rows, "each"), points_of(rows, "all")
    scopes: tuple[RowScope, ...] = ("each",) if whole.empty else ("each", "all")
    sizes: list[CutSize] = [size for size in get_args(CutSize) if each[size].notna().any()] or ["relative_error"]
    errors = {
        scope: [error for error in names if points[error].notna().any()] or names[:1]
        for scope, points in (("each", each), ("all", whole))
    }
    return Claims(
        depth={size: depth_correlation(rows, at_most=at_most, size=size, draws=draws) for size in sizes},
        norms={
            scope: {error: norm_correlation(rows, error=error, scope=scope, draws=draws) for error in errors[scope]}
            for scope in scopes
        },
        gains={scope: norm_gain(rows, scope=scope, draws=draws) for scope in scopes if len(errors[scope]) == 2},
        bands={error: harmless(rows, at_most=at_most, error=error, draws=draws) for error in errors["each"]},
    )
