"""How many values each bond keeps under a size: by its own singular values, or by its share of a budget."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from itertools import accumulate, takewhile
from typing import NamedTuple, TypeAlias

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
        fix = (
            "none: the left side is smaller"
            if least > parameters
            else f"a fraction of at least {least_fraction(least, parameters):g}"
        )
        fact = f"{str(budget)!r} allows {allowed} parameters, and the right side has {least} at the least"
        raise RankError(fact, fix=fix)
    return allowed


def least_fraction(least: int, parameters: int) -> float:
    """The least fraction, in three digits, that allows so many of the parameters."""
    exact = Decimal(least) / parameters
    step = Decimal(1).scaleb(exact.adjusted() - 2)
    fraction = exact.quantize(step, ROUND_CEILING)
    if math.floor(float(fraction) * parameters) < least:  # the float lies a hair below the decimal
        fraction += step
    return float(fraction)


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


class Growth:
    """Ranks under budgets: the best of four greedy ways, each of which is walked once for all budgets.

    If each bond keeps its part of the squared norm independently of the others, the whole keeps the product of these
    parts. From rank 1 upwards the bond grows whose next value adds most for each parameter, once to its part and once
    to the logarithm of its part. From full rank downwards the bond shrinks whose last value costs least for each
    parameter, until the budget is met, and then all grow again as far as there is room. A parameter's price depends on
    the ranks beside it, so that any of these ways can be led astray; the one that keeps most is taken.

    Args:
        squares: bond -> squares of its singular values, descending.
        count: parameters at given ranks.
        loss: the part of the squared norm that is lost at given ranks, by which the ways are compared; by default that
            of independent bonds.
    """

    def __init__(
        self,
        squares: Mapping[str, Sequence[float]],
        count: Callable[[Mapping[str, int]], int],
        loss: Callable[[Mapping[str, int]], float] | None = None,
    ) -> None:
        bonds = sorted(squares)
        lost = {bond: _lost_parts(squares[bond]) for bond in bonds}
        self._logarithms = {bond: [math.log1p(-part) for part in lost[bond]] for bond in bonds}
        self._count, self._loss = count, loss or self._loss_of_independent
        self._ones = dict.fromkeys(bonds, 1)
        full = {bond: len(squares[bond]) for bond in bonds}
        merits: list[_Merits] = [{bond: [-part for part in lost[bond]] for bond in bonds}, self._logarithms]
        self._ways = [
            (one, _Replayed(self._growing(one, self._ones, math.inf)), _Replayed(self._shrinking(one, full)))
            for one in merits
        ]

    def ranks(self, budget: ParameterBudget, before: int) -> dict[str, int]:
        """The ranks under a budget.

        Args:
            before: parameters of the left side, of which the budget is a fraction.

        Raises:
            RankError: even rank 1 everywhere is too much.
        """
        limit = allowance(budget, before, least=self._count(self._ones))
        found = []
        for merits, upwards, downwards in self._ways:
            up = _last(takewhile(lambda state: state.parameters <= limit, upwards))
            down = next(state for state in downwards if state.parameters <= limit)
            # what is too large for the room that is left may leave room for another bond
            found += [_last(self._growing(merits, state.ranks, limit)).ranks for state in (up, down)]
        return min(found, key=self._loss)

    def _loss_of_independent(self, ranks: Mapping[str, int]) -> float:
        return -math.expm1(math.fsum(self._logarithms[bond][rank - 1] for bond, rank in ranks.items()))

    def _growing(self, merits: _Merits, ranks: dict[str, int], limit: float) -> Iterator[_State]:
        """One value at a time, the one that adds most for a parameter; of equals, the first bond."""
        state = _State(self._count(ranks), ranks)
        while True:
            yield state
            best: tuple[float, _State] | None = None
            for bond, rank in state.ranks.items():
                if rank < len(merits[bond]):
                    grown = {**state.ranks, bond: rank + 1}
                    parameters = self._count(grown)
                    gain = (merits[bond][rank] - merits[bond][rank - 1]) / (parameters - state.parameters)
                    if parameters <= limit and (best is None or gain > best[0]):
                        best = gain, _State(parameters, grown)
            if best is None:
                return
            state = best[1]

    def _shrinking(self, merits: _Merits, ranks: dict[str, int]) -> Iterator[_State]:
        """One value at a time, the one that costs least for a parameter; of equals, the first bond."""
        state = _State(self._count(ranks), ranks)
        yield state
        while max(state.ranks.values(), default=1) > 1:
            best: tuple[float, _State] | None = None
            for bond, rank in state.ranks.items():
                if rank > 1:
                    shrunk = {**state.ranks, bond: rank - 1}
                    parameters = self._count(shrunk)
                    loss = (merits[bond][rank - 1] - merits[bond][rank - 2]) / (state.parameters - parameters)
                    if best is None or loss < best[0]:
                        best = loss, _State(parameters, shrunk)
            assert best is not None
            state = best[1]
            yield state


_Merits: TypeAlias = Mapping[str, Sequence[float]]
"""bond -> for each rank from 1, how much it keeps."""


def _lost_parts(squares: Sequence[float]) -> list[float]:
    """The part of the squared norm that is lost at rank 1, at rank 2, and so on; zeros where all values are zero."""
    lost = [0.0, *accumulate(reversed(squares[1:]))][::-1]
    whole = lost[0] + squares[0]
    return [square / whole if whole else 0.0 for square in lost]


class _State(NamedTuple):
    """A state of a greedy way."""

    parameters: int
    ranks: dict[str, int]


class _Replayed:
    """The states of an iterator, which is asked for each of them once, however often they are read."""

    def __init__(self, states: Iterator[_State]) -> None:
        self._ahead = states
        self._seen: list[_State] = []

    def __iter__(self) -> Iterator[_State]:
        yield from self._seen
        for state in self._ahead:
            self._seen.append(state)
            yield state


def _last(states: Iterable[_State]) -> _State:
    (last,) = deque(states, maxlen=1)
    return last


def kept_part(kept_squares: Sequence[float], squares: Sequence[float]) -> float:
    """The part of a squared norm that some of the squared singular values keep."""
    whole = math.fsum(squares)
    return math.fsum(kept_squares) / whole if whole else 1.0
