"""Rank correlations, each with a bootstrap interval.

Units, such as layers, are drawn again with replacement, each with all its points. The ends of an interval are
percentiles of the statistic over these draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

FEWEST_UNITS = 4
"""The least number of layers, or rows of several layers, for a correlation: of 3 points, one order in 6 is perfect."""

CONFIDENCE = 0.95
"""The part of the draws that lies inside an interval."""


class Draws(NamedTuple):
    """How units are drawn for an interval. Each statistic begins with the same seed."""

    seed: int = 0
    resamples: int = 2000


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation, with a bootstrap interval.

    Attributes:
        rho: the correlation, -1 to 1; equal values have the mean of their ranks. NaN where it is not defined.
        low, high: the ends of the interval, over the draws that have a correlation; NaN where it is not defined.
        points: the number of pairs that were ranked.
        units: the number of layers, or rows of several layers, that were drawn again.
        undefined: the number of draws without a correlation, because all values of one side are equal.
        why: the reason where the correlation is not defined.
    """

    rho: float
    low: float
    high: float
    points: int
    units: int
    undefined: int = 0
    why: str | None = None

    @property
    def interval(self) -> str:
        """The correlation and the ends of its interval, as text."""
        return f"{self.rho:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    def __str__(self) -> str:
        if self.why is not None:
            return f"none: {self.why}"
        left_out = f", {self.undefined} draws undefined" if self.undefined else ""
        return f"{self.interval}  {self.points} points, {self.units} drawn{left_out}"


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation; NaN if a value is NaN, if all values of a side are equal, or of fewer than two."""
    from scipy.stats import rankdata

    x, y = rankdata([first, second], axis=1) - (np.size(first) + 1) / 2
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return max(-1.0, min(1.0, float(x @ y) / scale)) if scale > 0 else math.nan


def rank_correlation(
    first: ArrayLike,
    second: ArrayLike,
    *,
    units: Sequence[Hashable],
    draws: Draws,
    groups: Sequence[str] | None = None,
) -> Correlation:
    """Spearman's correlation of the pairs first[n], second[n], with its bootstrap interval.

    Args:
        units: the unit of each pair; units are drawn again, each with all its pairs.
        draws: how they are drawn.
        groups: the group of each pair. The result is then the mean of the correlations within the groups that have at
            least `FEWEST_UNITS` units; in a draw, within those that have a correlation. By default all pairs are ranked
            together.
    """
    x, y = np.asarray(first), np.asarray(second)

    def measure(chosen: NDArray[np.int64]) -> float:
        return spearman(x[chosen], y[chosen])

    return bootstrap(units, measure, draws) if groups is None else bootstrap_within(units, groups, measure, draws)


def bootstrap(units: Sequence[Hashable], measure: Callable[[NDArray[np.int64]], float], draws: Draws) -> Correlation:
    """A statistic of all points, and its interval over draws of units, each with all its points.

    Args:
        units: the unit of each point.
        measure: a function of the numbers of points, some of them repeated, that returns the statistic or NaN.
        draws: how units are drawn.
    """
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    codes = np.array([numbers[unit] for unit in units])
    members = [np.flatnonzero(codes == code) for code in range(len(numbers))]
    value = measure(np.arange(len(codes))) if len(members) >= FEWEST_UNITS else math.nan
    if math.isnan(value):
        few = f"fewer than {FEWEST_UNITS} layers or rows: {len(members)}"
        why = few if len(members) < FEWEST_UNITS else "all values of one side are equal, or one is not a number"
        return Correlation(math.nan, math.nan, math.nan, len(codes), len(members), why=why)
    generator = np.random.default_rng(draws.seed)
    samples = (generator.integers(len(members), size=len(members)) for _ in range(draws.resamples))
    values = np.array([measure(np.concatenate([members[unit] for unit in sample])) for sample in samples])
    undefined = int(np.isnan(values).sum())
    outside = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(values, [outside, 1 - outside]) if undefined < len(values) else (math.nan, math.nan)
    return Correlation(value, float(low), float(high), len(codes), len(members), undefined)


def bootstrap_within(
    units: Sequence[Hashable], groups: Sequence[str], measure: Callable[[NDArray[np.int64]], float], draws: Draws
) -> Correlation:
    """The mean of a statistic over the groups that have enough units, and its interval over draws of units."""
    names = np.array(groups, dtype=object)
    members = set(zip(groups, units, strict=True))
    counts = {name: sum(group == name for group, _ in members) for name in groups}
    stated = np.flatnonzero([counts[name] >= FEWEST_UNITS for name in groups])
    if not len(stated):
        most = max(counts.values(), default=0)
        why = f"fewer than {FEWEST_UNITS} layers or rows: {most}"
        return Correlation(math.nan, math.nan, math.nan, len(units), most, why=why)

    def mean(chosen: NDArray[np.int64]) -> float:
        places = stated[chosen]
        of_points = names[places]
        values = [measure(places[of_points == name]) for name in dict.fromkeys(of_points)]
        defined = [value for value in values if not math.isnan(value)]
        return math.fsum(defined) / len(defined) if defined else math.nan

    return bootstrap([units[int(place)] for place in stated], mean, draws)
