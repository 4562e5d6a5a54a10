"""How many values of a bond to keep: ranks have types, so that 0.5 never means two things."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
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
    way of counting loses less (`fitting.trees.grow`; ties: the label that comes first in the alphabet), until nothing
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
    """At most `fraction` of the multiply-adds of a whole model: no rank of one rule, since a kernel alone has none.

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
        raise RankError(explain(f"{type(rank).__name__}({fraction!r}) holds no number", fix="for example 0.5"))
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
        RankError: an integer below 1 or above the full rank, or something that is no rank.
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
    try:
        number = operator.index(rank)
    except TypeError:
        number = None
    if number is None or isinstance(rank, bool):
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
        RankError: there is none.
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
