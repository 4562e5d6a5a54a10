"""Rank correlations and means, each with a bootstrap interval.

Units, such as layers, are drawn again with replacement, each with all its points. The ends of an interval are
percentiles of the statistic over these draws. A statistic is computed for many draws at once, from how often each point
occurs in each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Statistic: TypeAlias = "Callable[[NDArray[np.float64]], NDArray[np.float64]]"
"""How often each point occurs, an array of shape (draws, points) -> the statistic of each draw, or NaN."""

FEWEST_UNITS = 4
"""The least number of layers, or rows of several layers, for a correlation: of 3 points, one order in 6 is perfect."""

CONFIDENCE = 0.95
"""The part of the draws that lies inside an interval."""


AT_ONCE = 200_000
"""The most elements of the arrays of draws and points that are computed at once."""


class Draws(NamedTuple):
    """How units are drawn for an interval. Each statistic begins with the same seed.

    With 10,000 draws the ends of the interval of a correlation are known to about a hundredth.
    """

    seed: int = 0
    resamples: int = 10_000


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
    return float(spearman_of(first, second)(np.ones((1, np.size(first))))[0])


def spearman_of(first: ArrayLike, second: ArrayLike) -> Statistic:
    """Spearman's rank correlation of the points first[n], second[n], in each draw; see `spearman`."""
    x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    missing = np.isnan(x) | np.isnan(y)

    def statistic(times: NDArray[np.float64]) -> NDArray[np.float64]:
        there = times.any(axis=0)
        if not there.any():
            return np.full(len(times), math.nan)
        undefined = (times[:, missing] > 0).any(axis=1)
        times = np.ascontiguousarray(times[:, there])
        one, other = _ranks(x[there], times), _ranks(y[there], times)
        of_one = times * one
        together, squares = (of_one * other).sum(axis=1), (of_one * one).sum(axis=1)
        rho = _quotient(together, np.sqrt(squares * (times * other * other).sum(axis=1)))
        rho[undefined] = math.nan
        clipped: NDArray[np.float64] = np.clip(rho, -1, 1)
        return clipped

    return statistic


def _ranks(values: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each point in each draw, less the mean of all; equal values have the mean of their ranks."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    first_of_equal = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]])
    equal = np.add.reduceat(times[:, order], first_of_equal, axis=1)
    middle = equal.cumsum(axis=1) - equal / 2
    ranks = np.empty_like(times)
    ranks[:, order] = np.repeat(middle, np.diff(np.r_[first_of_equal, len(values)]), axis=1)
    ranks -= times.sum(axis=1, keepdims=True) / 2
    return ranks


def _quotient(numbers: NDArray[np.float64], divisors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quotients; NaN where a divisor is 0."""
    quotients = np.full(len(numbers), math.nan)
    np.divide(numbers, divisors, out=quotients, where=divisors > 0)
    return quotients


def mean_of(values: ArrayLike) -> Statistic:
    """The mean of the values of the points, in each draw; of truth values the part that is true."""
    numbers = np.asarray(values, dtype=float)

    def statistic(times: NDArray[np.float64]) -> NDArray[np.float64]:
        return _quotient(times @ numbers, times.sum(axis=1))

    return statistic


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
    statistic = spearman_of(first, second)
    return bootstrap(units, statistic, draws) if groups is None else bootstrap_within(units, groups, statistic, draws)


def bootstrap(units: Sequence[Hashable], statistic: Statistic, draws: Draws) -> Correlation:
    """A statistic of all points, and its interval over draws of units, each with all its points.

    Args:
        units: the unit of each point.
        statistic: such as `spearman_of` or `mean_of` the points.
        draws: how units are drawn.
    """
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    codes, count = np.array([numbers[unit] for unit in units], dtype=int), len(numbers)
    value = float(statistic(np.ones((1, len(codes))))[0]) if count >= FEWEST_UNITS else math.nan
    if math.isnan(value):
        few = f"fewer than {FEWEST_UNITS} layers or rows: {count}"
        why = few if count < FEWEST_UNITS else "all values of one side are equal, or one is not a number"
        return Correlation(math.nan, math.nan, math.nan, len(codes), count, why=why)
    generator = np.random.default_rng(draws.seed)
    at_once = max(1, AT_ONCE // len(codes))
    sizes = [min(at_once, draws.resamples - done) for done in range(0, draws.resamples, at_once)]
    values = np.concatenate([statistic(_times(generator, size, count)[:, codes]) for size in sizes])
    undefined = int(np.isnan(values).sum())
    outside = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(values, [outside, 1 - outside]) if undefined < len(values) else (math.nan, math.nan)
    return Correlation(value, float(low), float(high), len(codes), count, undefined)


def _times(generator: np.random.Generator, draws: int, count: int) -> NDArray[np.float64]:
    """How often each of `count` units occurs in each draw of as many, with replacement."""
    drawn = generator.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count).astype(float)


def bootstrap_within(
    units: Sequence[Hashable], groups: Sequence[str], statistic: Statistic, draws: Draws
) -> Correlation:
    """The mean of a statistic over the groups that have enough units, and its interval over draws of units."""
    names = np.array(groups, dtype=object)
    members = set(zip(groups, units, strict=True))
    counts = {name: sum(group == name for group, _ in members) for name in groups}
    stated = np.array([counts[name] >= FEWEST_UNITS for name in groups], dtype=bool)
    if not stated.any():
        most = max(counts.values(), default=0)
        why = f"fewer than {FEWEST_UNITS} layers or rows: {most}"
        return Correlation(math.nan, math.nan, math.nan, len(units), most, why=why)
    chosen = [names == name for name in dict.fromkeys(names[stated])]

    def mean(times: NDArray[np.float64]) -> NDArray[np.float64]:
        every = np.zeros((len(times), len(names)))
        every[:, stated] = times
        values = np.array([statistic(every * of_group) for of_group in chosen])
        defined = ~np.isnan(values)
        return _quotient(np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0).astype(float))

    return bootstrap([unit for unit, enough in zip(units, stated, strict=True) if enough], mean, draws)
