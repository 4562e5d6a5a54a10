"""The ranks of one topology at an error, one after the other: what its cuts allow, and a fit has not missed before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .bounds import EXACT_STEPS, Bounds, RankSearch
from .topology import Topology

_STEPS = 100
"""Ranks that are looked at for one topology before it is the turn of another."""


class Ladder:
    """The ranks at which a topology may have an error, one after the other.

    Attributes:
        parameters: no ranks that are still to come have fewer.
        ranks: those to be fitted next, empty where only a fit knows them; None where they are not known yet.
    """

    def __init__(self, topology: Topology, bounds: Bounds, error: float) -> None:
        self.topology, self.bounds, self.error = topology, bounds, error
        self.parameters: float = bounds.least_parameters(error)
        self.ranks: Mapping[str, int] | None = None
        self._failed: list[tuple[int, ...]] = []
        self._search = RankSearch(bounds, error)

    def climb(self, missed: float | None) -> None:
        """Move to the next ranks, or some way towards them.

        Args:
            missed: the error at the ranks before, which was too large; None where they were not fitted.
        """
        if not self.topology.has_spectral_ranks:
            self.ranks, self.parameters = ({}, self.parameters) if self.ranks is None else (None, math.inf)
            return
        if self.ranks is not None:
            self._failed.append(tuple(self.ranks.values()))
            if missed is not None and max(self._failed[-1]) > EXACT_STEPS:
                self.error *= max(self.error / missed, 0.5)
                self._search = RankSearch(self.bounds, self.error)
        ranks = self._search.next(_STEPS)
        self.ranks = None
        if ranks is not None and not any(_below(ranks, failed) for failed in self._failed):
            self.ranks = dict(zip(self.bounds.bonds, ranks, strict=True))
            self.parameters = max(self.parameters, self.bounds.parameters(ranks))
        else:
            self.parameters = max(self.parameters, self._search.bound)


def _below(ranks: Sequence[int], others: Sequence[int]) -> bool:
    return all(one <= two for one, two in zip(ranks, others, strict=True))
