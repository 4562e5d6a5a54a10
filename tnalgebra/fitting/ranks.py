"""How many values each bond keeps under a size: by its own singular values, or by its share of a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from math import prod

from ..errors import RankError
from .size import KeepFraction, ModelBudget, ParameterBudget, Rank, RelativeError, Size


@dataclass(frozen=True, slots=True)
class UpTo:
    """An int that is the size of every bond: a bond of a smaller full rank gets that."""

    rank: int


def kept(rank: Rank | UpTo, full: int, *, bond: str, singular_values: Callable[[], Sequence[float]]) -> int:
    """The number of leading values that `rank` allows.

    Args:
        rank: an integer from 1 to `full`, `UpTo`, `KeepFraction` or `RelativeError`.
        full: how many values there are.
        bond: label of the bond, for messages.
        singular_values: gives them, descending; called only where their sizes matter.

    Raises:
        RankError: an integer below 1 or above the full rank, or something that is not a rank.
    """
    match rank:
        case UpTo():
            return min(rank.rank, full)
        case KeepFraction():
            return max(1, round(rank.fraction * full))
        case RelativeError():
            return _fewest(rank.error, singular_values())
    if not 1 <= rank <= full:
        raise RankError(
            f"rank {rank} of bond {bond!r} is outside 1 to {full}", fix=f"1 to {full}; at {full} nothing is lost"
        )
    return rank


def allowance(budget: ParameterBudget, parameters: int, *, least: int) -> int:
    """How many parameters a budget allows.

    Args:
        parameters: of the left side.
        least: of the right side, at rank 1 where its ranks can be chosen.

    Raises:
        RankError: the budget allows fewer than that.
    """
    allowed = math.floor(budget.fraction * parameters)
    if least > allowed:
        fix = "none: the left side is smaller" if least > parameters else _least_fraction(least, parameters)
        fact = f"{str(budget)!r} allows {allowed} parameters, and the right side has {least} at the least"
        raise RankError(fact, fix=fix)
    return allowed


def _least_fraction(least: int, parameters: int) -> str:
    exact = Decimal(least) / parameters
    step = Decimal(1).scaleb(exact.adjusted() - 2)
    fraction = exact.quantize(step, ROUND_CEILING)
    if math.floor(float(fraction) * parameters) < least:  # the float lies a hair below the decimal
        fraction += step
    return f"a fraction of at least {float(fraction):g}"


def rank_of(size: Size, bond: str) -> Rank | UpTo:
    """The rank of one bond in a size that is not a budget.

    Raises:
        RankError: the size has no rank for this bond.
    """
    if isinstance(size, Mapping):
        if bond not in size:
            raise RankError(f"the bond {bond!r} has no size", fix=f"{{{bond!r}: 8}}, or a size of all bonds")
        return size[bond]
    if isinstance(size, ModelBudget):
        raise RankError(f"{str(size)!r} is a size of all bonds together, and not of {bond!r} alone")
    return UpTo(size) if isinstance(size, int) else size


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


def plain_rank(rank: Rank | UpTo, bond: str, *, full: int | None, because: str) -> int:
    """A rank that must be a number, as the bond has no singular values of its own.

    Args:
        full: no fit needs a larger rank; None where that is not known.

    Raises:
        RankError: the rank is a fraction or an error, or it is out of range.
    """
    if isinstance(rank, KeepFraction | RelativeError):
        fact = f"the bond {bond!r} has no singular values of its own, which {str(rank)!r} needs"
        raise RankError(fact, because=because, fix="an integer, or a ParameterBudget for all bonds")
    if isinstance(rank, UpTo):
        return rank.rank if full is None else min(rank.rank, full)
    if full is not None and rank > full:
        fix = f"1 to {full}; a larger rank is never needed"
        raise RankError(f"rank {rank} of bond {bond!r} is outside 1 to {full}", fix=fix)
    return rank


def grow(
    squares: Mapping[str, Sequence[float]],
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
        squares: bond -> squares of its singular values, descending.
        count: parameters at given ranks.
        before: parameters of the left side, of which the budget is a fraction.

    Raises:
        RankError: even rank 1 everywhere is too much.
    """
    ones = dict.fromkeys(sorted(squares), 1)
    limit = allowance(budget, before, least=count(ones))

    def left_out(ranks: Mapping[str, int]) -> float:
        return 1 - prod(kept_part(squares[bond][:rank], squares[bond]) for bond, rank in ranks.items())

    upwards = _grow_greedily(ones, squares, count, limit)
    full = {bond: len(values) for bond, values in squares.items()}
    downwards = _grow_greedily(_shrink_greedily(full, squares, count, limit), squares, count, limit)
    return min((upwards, downwards), key=left_out)


def kept_part(kept_squares: Sequence[float], squares: Sequence[float]) -> float:
    """The part of a squared norm that some of the squared singular values keep."""
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
