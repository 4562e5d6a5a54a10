"""Whole numbers as products: sizes of the parts of a `Fuse`."""

from __future__ import annotations

from functools import cache
from math import isqrt
from operator import index

from ..errors import RuleError, explain
from ..labels import MAX_AXES, MAX_SIZE


def balanced_factors(size: int, count: int) -> tuple[int, ...]:
    """Split a size into `count` factors that are as equal as possible, the largest first.

    Of all ways to write `size` as a product of `count` numbers, those whose largest number is the smallest; of
    these, those whose second largest is the smallest; and so on. A prime leaves ones: 7 is 7 * 1.

    >>> balanced_factors(64, 2), balanced_factors(72, 3), balanced_factors(7, 2)
    ((8, 8), (6, 4, 3), (7, 1))

    Args:
        size: of the whole label.
        count: of the parts; in a `Fuse`, which is row-major, the first of them runs slowest.

    Raises:
        RuleError: the size or the count is no number, or out of range.
    """
    size, count = whole_number(size, 1, MAX_SIZE, "the size"), whole_number(count, 1, MAX_AXES, "the number of parts")
    low = [divisor for divisor in range(1, isqrt(size) + 1) if size % divisor == 0]
    divisors = sorted({*low, *(size // divisor for divisor in low)})

    @cache
    def best(rest: int, left: int, most: int) -> tuple[int, ...] | None:
        if rest == 1:
            return (1,) * left
        if left == 0:
            return None
        for largest in divisors:
            if largest > most:
                break
            if rest % largest == 0 and largest**left >= rest:
                smaller = best(rest // largest, left - 1, largest)
                if smaller is not None:
                    return (largest, *smaller)
        return None

    found = best(size, count, size)
    assert found is not None
    return found


def whole_number(number: object, least: int, most: int, what: str) -> int:
    """`number` as an integer. Raises RuleError if it is none, or out of range."""
    try:
        found = index(number)  # type: ignore[arg-type]
    except TypeError:
        found = least - 1
    if not least <= found <= most:
        raise RuleError(explain(f"{what} is {number!r}", fix=f"an integer from {least} to {most}"))
    return found
