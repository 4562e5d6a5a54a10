"""The ways of a join of two intermediates: by a product or a convolution, by Fourier transforms, into a basis.

A basis is a matrix whose elements its name says. Joined with an intermediate that has one of its labels, it takes this
label's place by the other one: a fast transform, which does not need the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .bases import basis_work, has_fast_transform
from .fourier_steps import fourier_join
from .steps import Steps, Windows


class Way(NamedTuple):
    """How a join is done.

    seconds: predicted.
    lengths: of Fourier transforms along windows; empty if there are none.
    is_basis: whether one of the sides is a basis, into which the other one is transformed.
    """

    seconds: float
    lengths: tuple[int, ...] = ()
    is_basis: bool = False


def join_ways(steps: Steps, left: int, right: int, windows: Windows) -> Iterator[Way]:
    """Each way of a join that is allowed."""
    if "convolution" in steps.ways or not windows.numbers:
        seconds = steps.join_price(left, right, windows)
        if seconds is not None and steps.fits(left) and steps.fits(right):
            yield Way(seconds)
    if "fourier" in steps.ways:
        way = fourier_join(steps, left, right, windows)
        if way is not None:
            yield Way(*way)
    if not windows.numbers:
        for basis, rest in ((left, right), (right, left)):
            if basis in steps.bases and (seconds := _basis_price(steps, basis, rest)) is not None:
                yield Way(seconds, is_basis=True)


def _basis_price(steps: Steps, basis: int, rest: int) -> float | None:
    """Seconds of the fast transform of an intermediate into a basis, or None where this is not one."""
    leaf, live = steps.bases[basis], steps.live(rest)
    old, new = live & steps.live(basis), steps.live(basis) & ~live
    after = steps.live(basis | rest, (basis, rest))
    if old.bit_count() != 1 or new.bit_count() != 1 or after & old or not after & new:
        return None
    size, elements = steps.size(old), steps.size(live)
    if elements > steps.most or not has_fast_transform(leaf.basis, size):
        return None
    return steps.prices.seconds(basis_work(leaf.basis, size, elements), weights=not rest & steps.inputs)
