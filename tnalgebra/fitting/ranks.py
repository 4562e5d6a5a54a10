"""How many values of a bond to keep: ranks have types, so that 0.5 never means two things."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from math import prod
from typing import SupportsFloat, TypeAlias

from ..errors import RankError, explain


@dataclass(frozen=True, slots=True)
class KeepFraction:
    """Keep `max(1, round(fraction * number of singular values))` of a bond, with Python's `round`.

    Args:
        fraction: in (0, 1].
    """

    fraction: float

    def __post_init__(self) -> None:
        _check_fraction(self, self.fraction, "keeps")

    def __str__(self) -> str:
        return f"keep {self.fraction:g}"


@dataclass(frozen=True, slots=True)
class RelativeError:
    """Keep the fewest values with ||dropped||_2 <= error * ||all||_2; values that tie with the last one kept stay.

    Args:
        error: in [0, 1).
    """

    error: float

    def __post_init__(self) -> None:
        if not 0 <= self.error < 1:
            raise RankError(explain(f"RelativeError({self.error}) is outside [0, 1)", fix="for example 1e-2"))

    def __str__(self) -> str:
        return f"error {self.error:g}"


@dataclass(frozen=True, slots=True)
class ParameterBudget:
    """At most `fraction` of the left side's parameters, over all bonds together.

    Values are taken where they save most squared error a parameter, or left out where they cost least, whichever
    way of counting loses less (`grow`; ties: the label that comes first in the alphabet), until nothing
    more fits. Bonds without singular values of their own, in loops and hyperedges, grow evenly.

    Args:
        fraction: in (0, 1].
    """

    fraction: float

    def __post_init__(self) -> None:
        _check_fraction(self, self.fraction, "leaves")

    def __str__(self) -> str:
        return f"budget {self.fraction:g}"


@dataclass(frozen=True, slots=True)
class MultiplyAddsBudget:
    """At most `fraction` of the multiply-adds of a whole model: not a rank of one rule, since a kernel alone has none.

    Args:
        fraction: in (0, 1].
    """

    fraction: float

    def __post_init__(self) -> None:
        _check_fraction(self, self.fraction, "leaves")

    def __str__(self) -> str:
        return f"budget {self.fraction:g} of the multiply-adds"


Rank: TypeAlias = int | KeepFraction | RelativeError | ParameterBudget


def _check_fraction(rank: object, fraction: object, verb: str) -> None:
    if isinstance(fraction, bool | str) or not isinstance(fraction, SupportsFloat):
        raise RankError(explain(f"{type(rank).__name__}({fraction!r}) does not hold a number", fix="for example 0.5"))
    if not 0 < float(fraction) <= 1:
        raise RankError(
            explain(f"{type(rank).__name__}({fraction}) {verb} a fraction outside (0, 1]", fix="for example 0.5")
        )


def kept(rank: Rank, full: int, *, bond: str, singular_values: Callable[[], Sequence[float]]) -> int:
    """The number of leading values that `rank` allows.

    Args:
        rank: an integer from 1 to `full`, `KeepFraction` or `RelativeError`.
        full: how many values there are.
        bond: label of the bond, for messages.
        singular_values: gives them, descending; called only where their sizes matter.

    Raises:
        RankError: an integer below 1 or above the full rank, or something that is not a rank.
    """
    match rank:
        case KeepFraction():
            return max(1, round(rank.fraction * full))
        case RelativeError():
            return _fewest(rank.error, singular_values())
        case ParameterBudget():
            raise RankError(
                explain(
                    "a ParameterBudget is for all bonds of a rule together",
                    bond=bond,
                    fix=f"ranks={rank!r}; or an integer, KeepFraction or RelativeError for this bond",
                )
            )
    number = _integer(rank)
    if number is None:
        fraction = isinstance(rank, float) and 0 < rank < 1
        fix = f"an integer, or KeepFraction({rank:g})" if fraction else "an integer, KeepFraction or RelativeError"
        raise RankError(explain(f"the rank of bond {bond!r} is {rank!r}", fix=fix))
    if not 1 <= number <= full:
        raise RankError(
            explain(
                f"rank {number} of bond {bond!r} is outside 1 to {full}", fix=f"1 to {full}; at {full} nothing is lost"
            )
        )
    return number


def _integer(rank: object) -> int | None:
    try:
        return None if isinstance(rank, bool) else operator.index(rank)  # type: ignore[arg-type]
    except TypeError:
        return None


def allowance(budget: ParameterBudget, parameters: int, *, least: int) -> int:
    """How many parameters a budget allows.

    Args:
        parameters: of the left side.
        least: what the right side takes at rank 1.

    Raises:
        RankError: the budget allows fewer than that.
    """
    allowed = math.floor(budget.fraction * parameters)
    if least > allowed:
        fix = "none: the left side is smaller" if least > parameters else _least_fraction(least, parameters)
        raise RankError(explain(f"{budget!r} allows {allowed} parameters, rank 1 takes {least}", fix=fix))
    return allowed


def _least_fraction(least: int, parameters: int) -> str:
    exact = Decimal(least) / parameters
    step = Decimal(1).scaleb(exact.adjusted() - 2)
    fraction = exact.quantize(step, ROUND_CEILING)
    if math.floor(float(fraction) * parameters) < least:  # the float lies a hair below the decimal
        fraction += step
    return f"a fraction of at least {float(fraction):g}"


def rank_of(ranks: Mapping[str, Rank] | Rank, bond: str) -> Rank:
    """The rank of a rule's only bond: under its label, or given alone.

    Raises:
        RankError: the bond has no rank.
    """
    if not isinstance(ranks, Mapping):
        return ranks
    if bond not in ranks:
        raise RankError(explain(f"no rank for {bond!r}", fix=f"ranks={{{bond!r}: 8}} or ranks=KeepFraction(0.5)"))
    return ranks[bond]


def _fewest(error: float, singular_values: Sequence[float]) -> int:
    allowed = error * math.hypot(*singular_values)
    count = len(singular_values)
    dropped = 0.0
    while count > 1:
        dropped = math.hypot(dropped, singular_values[count - 1])
        if dropped > allowed:
            break
        count -= 1
    while count < len(singular_values) and singular_values[count] == singular_values[count - 1] > 0:
        count += 1
    return count


# Where a bond has no singular values of its own, and under a budget ----------------------------------------------


def plain_rank(rank: Rank, bond: str, *, full: int | None, because: str) -> int:
    """A rank that must be a number, as the bond has no singular values of its own.

    Args:
        full: no fit needs a larger one; None where that is not known.

    Raises:
        RankError: it is a fraction, an error or a budget, out of range, or not a rank at all.
    """
    if isinstance(rank, KeepFraction | RelativeError | ParameterBudget):
        raise RankError(
            explain(
                f"the bond {bond!r} has no singular values of its own: {because}",
                given=rank,
                fix="an integer, or one ParameterBudget for all bonds",
            )
        )
    number = _integer(rank)
    if number is None:
        raise RankError(explain(f"the rank of bond {bond!r} is {rank!r}", fix="an integer"))
    if number < 1 or (full is not None and number > full):
        most = "" if full is None else f" to {full}"
        fix = "at least 1" if full is None else f"1 to {full}; more are never needed"
        raise RankError(explain(f"rank {number} of bond {bond!r} is outside 1{most}", fix=fix))
    return number


def grow(
    spectra: Mapping[str, Sequence[float]],
    count: Callable[[Mapping[str, int]], int],
    budget: ParameterBudget,
    before: int,
) -> dict[str, int]:
    """Ranks under a budget: the better of two greedy ways.

    From rank 1 upwards the bond grows whose next value saves most squared error a parameter. From full rank downwards
    the bond shrinks whose last value costs least a parameter, until the budget is met, and then all grow again as far
    as there is room. A parameter's price depends on the ranks beside it, so either way can be led astray: upwards,
    Tucker cores stay flat; downwards, a bond of no use keeps the room of others. The better one is the one that
    keeps more, if each bond keeps its part of the squared norm independently of the others.

    Args:
        spectra: bond -> singular values, descending.
        count: parameters at given ranks.
        before: parameters of the left side, of which the budget is a fraction.

    Raises:
        RankError: even rank 1 everywhere is too much.
    """
    ones = dict.fromkeys(sorted(spectra), 1)
    limit = allowance(budget, before, least=count(ones))
    largest = max((values[0] for values in spectra.values()), default=0.0) or 1.0  # squares must not overflow
    squares = {bond: [(value / largest) ** 2 for value in spectra[bond]] for bond in ones}

    def left_out(ranks: Mapping[str, int]) -> float:
        return 1 - prod(_part(squares[bond][:rank], squares[bond]) for bond, rank in ranks.items())

    upwards = _grow_greedily(ones, squares, count, limit)
    full = {bond: len(values) for bond, values in squares.items()}
    downwards = _grow_greedily(_shrink_greedily(full, squares, count, limit), squares, count, limit)
    return min((upwards, downwards), key=left_out)


def _part(kept_squares: Sequence[float], squares: Sequence[float]) -> float:
    whole = math.fsum(squares)
    return math.fsum(kept_squares) / whole if whole else 1.0


def _grow_greedily(
    ranks: Mapping[str, int],
    squares: Mapping[str, Sequence[float]],
    count: Callable[[Mapping[str, int]], int],
    limit: int,
) -> dict[str, int]:
    """One value at a time, the one that saves most a parameter; of equals, the first bond."""
    grown = dict(ranks)
    now = count(grown)
    while True:
        best: tuple[float, str, int] | None = None
        for bond, rank in grown.items():
            if rank < len(squares[bond]):
                cost = count({**grown, bond: rank + 1}) - now
                gain = squares[bond][rank] / cost
                if now + cost <= limit and (best is None or gain > best[0]):
                    best = gain, bond, cost
        if best is None:
            return grown
        grown[best[1]] += 1
        now += best[2]


def _shrink_greedily(
    ranks: Mapping[str, int],
    squares: Mapping[str, Sequence[float]],
    count: Callable[[Mapping[str, int]], int],
    limit: int,
) -> dict[str, int]:
    """One value at a time, the one that costs least a parameter; of equals, the first bond."""
    shrunk = dict(ranks)
    now = count(shrunk)
    while now > limit:
        costs = []
        for bond, rank in shrunk.items():
            if rank > 1:
                saved = now - count({**shrunk, bond: rank - 1})
                costs.append((squares[bond][rank - 1] / saved, bond, saved))
        _, bond, saved = min(costs, key=lambda cost: cost[0])
        shrunk[bond] -= 1
        now -= saved
    return shrunk
