"""What a topology cannot do better than, from the singular values of the kernel over its cuts, and ranks from there.

If some bonds of sizes r, s, ... separate the open labels S from the others, the network has at most rank r * s * ...
across S, so that its error is at least that of the truncated SVD over S (Eckart and Young 1936). The rank of a sum is
at most the sum of its terms' ranks.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain, count, product
from math import ceil, inf, prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..fitting import Metric, least_fraction
from ..model import cut_singular_values
from ..networks import Bipartition, Fuse, Network, shape_of
from .topology import Topology

ERROR_ROUNDING = 1e-7
"""Below this relative error a cut loses nothing but rounding."""

EXACT_STEPS = 8
"""Ranks up to this grow by one, and larger ones by an eighth, where ranks are searched."""

MOST_STATES = 50_000
"""How many ranks are looked at, at the most, for a topology at an error."""

_FEWER_STATES = 4000
_RESOLUTION = 1e-6
_COARSE = 1 / 32


class CutErrors:
    """The least error of a kernel at a rank across any bipartition of its labels; each spectrum is computed once.

    Args:
        kernel: its axes have the labels `labels`.
        metric: of the error; None for the Frobenius norm. Cuts that divide its labels then have no bound.
    """

    def __init__(self, kernel: Tensor, labels: Sequence[str], metric: Metric | None = None) -> None:
        self.labels = tuple(labels)
        self.kernel = kernel.detach()
        self.coupled: frozenset[str] = frozenset()
        self.is_bounded = metric is None or (metric.cross is None and not metric.batch)
        if metric is not None and self.is_bounded:
            self.coupled = frozenset(metric.labels)
            last = [label for label in labels if label not in metric.labels]
            order = [self.labels.index(label) for label in (*last, *metric.labels)]
            turned = self.kernel.double().permute(order)
            whitened = turned.reshape(-1, prod(metric.sizes)) @ metric.factor().to(turned)
            self.kernel = whitened.reshape(turned.shape).permute([order.index(axis) for axis in range(len(order))])
        self._tails: dict[tuple[tuple[tuple[str, int], ...], frozenset[str]], NDArray[np.float64]] = {}

    def least_rank(self, right: Network, open_labels: Sequence[str], side: frozenset[str], error: float) -> int:
        """The least rank across a cut at which the error may be as small as `error`; 1 where nothing is known.

        Args:
            right: with the sizes of its open labels.
            open_labels: of the kernel; parts in the place of labels that are split.
            side: the open labels on one side.
        """
        tails = self._of(right, tuple(open_labels), side)
        return max(1, int(np.searchsorted(-tails, -max(error, ERROR_ROUNDING))))

    def _of(self, right: Network, open_labels: tuple[str, ...], side: frozenset[str]) -> NDArray[np.float64]:
        """Element [r] is the relative error at rank r; it falls."""
        shape = shape_of(right, open_labels)
        key = tuple(zip(open_labels, shape, strict=True)), side
        other = frozenset(open_labels) - side
        if key not in self._tails:
            coupled = {part for part in open_labels if self._whole(right, part) in self.coupled}
            if not self.is_bounded or (coupled & side and coupled & other):
                tails = np.zeros(2)
            else:
                cut = Bipartition(tuple(sorted(side)), tuple(sorted(other)))
                (values,) = cut_singular_values(self.kernel.reshape(shape), open_labels, [cut])
                squares = values.double().square().cpu().numpy()
                tails = np.sqrt(np.append(squares[::-1].cumsum()[::-1], 0.0) / max(squares.sum(), np.finfo(float).tiny))
            self._tails[key] = self._tails[key[0], other] = tails
        return self._tails[key]

    def _whole(self, right: Network, part: str) -> str:
        nodes = (node for term in right.terms for node in term.nodes)
        return next((node.whole for node in nodes if isinstance(node, Fuse) and part in node.parts), part)


class Cut(NamedTuple):
    """A cut of a topology between its cores.

    side: the open labels on one side.
    crossing: the bonds that it cuts, in each term.
    """

    side: frozenset[str]
    crossing: tuple[tuple[int, ...], ...]

    def rank(self, ranks: Sequence[int]) -> int:
        """The largest rank that the network may have across it."""
        return sum(prod([ranks[bond] for bond in bonds]) for bonds in self.crossing)


class Within(NamedTuple):
    """What is known of a topology with a number of parameters: its least error, and ranks that the cuts allow."""

    error: float
    ranks: tuple[int, ...] | None = None


class Bounds:
    """Bounds of one topology for one kernel.

    Args:
        errors: of the kernel.
        topology: its cores.
        right: its right side, with the sizes of its open labels.
    """

    def __init__(self, errors: CutErrors, topology: Topology, right: Network) -> None:
        self.errors, self.topology, self.right = errors, topology, right
        self.bonds = topology.bonds
        self.cores = [tuple(n for n, bond in enumerate(self.bonds) if bond in c) for c in topology.cores.values()]
        self.groups = [frozenset(topology.open) & frozenset(labels) for labels in topology.cores.values()]
        self._within: dict[int, Within] = {}
        self.weights = [prod(shape_of(right, tuple(group))) for group in self.groups]

    def core_sizes(self, ranks: Sequence[int]) -> list[int]:
        """The parameters of each core at the ranks of all bonds."""
        return [w * prod([ranks[b] for b in bonds]) for w, bonds in zip(self.weights, self.cores, strict=True)]

    def parameters(self, ranks: Sequence[int]) -> int:
        """The parameters at the ranks of all bonds."""
        return sum(self.core_sizes(ranks))

    @cached_property
    def fewest(self) -> int:
        """The parameters at the smallest size of each bond."""
        fixed = self.topology.rule.fixed
        sizes = self.core_sizes([self.right.sizes.get(bond, 1) for bond in self.bonds])
        return sum(size for name, size in zip(self.topology.cores, sizes, strict=True) if name not in fixed)

    def rank(self, side: frozenset[str], error: float) -> int:
        return self.errors.least_rank(self.right, self.topology.open, side, error)

    @cached_property
    def cuts(self) -> list[Cut]:
        """Every bipartition of the cores that has open labels on both sides; of a sum, one of each term's, alike."""
        names = list(self.topology.cores)
        each = [self._cuts_of([names.index(name) for name in term]) for term in self.topology.terms]
        alike = [side for side in each[0] if all(side in others for others in each)]
        return [Cut(side, crossing) for side in alike for crossing in product(*(others[side] for others in each))]

    def _cuts_of(self, cores: Sequence[int]) -> dict[frozenset[str], list[tuple[int, ...]]]:
        """The cuts of one term: the open labels on the side of the first one -> the bonds that are cut, in each way."""
        listed: dict[frozenset[str], list[tuple[int, ...]]] = {}
        bonds = sorted({bond for core in cores for bond in self.cores[core]})
        for choice in product((True, False), repeat=len(cores)):
            first = {core for core, chosen in zip(cores, choice, strict=True) if chosen}
            side = frozenset[str]().union(*(self.groups[core] for core in first))
            if self.topology.open[0] in side and len(side) < len(self.topology.open):
                sides = {bond: {core in first for core in cores if bond in self.cores[core]} for bond in bonds}
                listed.setdefault(side, []).append(tuple(bond for bond in bonds if len(sides[bond]) == 2))
        return listed

    @property
    def is_tree(self) -> bool:
        """Whether every bond alone separates two parts or more."""
        return len(self._bridges) == len(self.bonds)

    @cached_property
    def _bridges(self) -> dict[int, list[frozenset[str]]]:
        """Bond -> the open labels on one side, in each way in which this bond alone separates two parts."""
        bridges: dict[int, list[frozenset[str]]] = {}
        for side, (bonds, *others) in self.cuts:
            if len(bonds) == 1 and not others:
                bridges.setdefault(bonds[0], []).append(side)
        return bridges

    def least_parameters(self, error: float) -> int:
        """No fit of this topology with this error has fewer parameters; 0 where nothing is known."""
        if not self.topology.is_plain or not self.errors.is_bounded:
            return 0
        if len(self.topology.terms) > 1:
            return self.parameters([1] * len(self.bonds))
        total = 0
        for weight, group, bonds in zip(self.weights, self.groups, self.cores, strict=True):
            sides = [self._bridges[bond] for bond in bonds if bond in self._bridges]
            bridges = prod(max(self.rank(side, error) for side in each) for each in sides)
            alone = self.rank(group, error) if 0 < len(group) < len(self.topology.open) else 1
            total += weight * max(bridges, alone)
        return total

    def within(self, parameters: int) -> Within:
        """The least error with at most so many parameters, and ranks of a loop that all its cuts allow there."""
        if parameters not in self._within:
            self._within[parameters] = self._search_within(parameters)
        return self._within[parameters]

    def _search_within(self, parameters: int) -> Within:
        if not self.topology.is_plain or not self.errors.is_bounded:
            return Within(0.0)
        if self.parameters([1] * len(self.bonds)) > parameters:
            return Within(inf)
        low, high = 0.0, 1.0
        while self.least_parameters(low) > parameters and high - low > _RESOLUTION:
            middle = (low + high) / 2
            low, high = (low, middle) if self.least_parameters(middle) <= parameters else (middle, high)
        if self.is_tree:
            return Within(low)
        error, high, best = low, 1.0, None
        while best is None or high - low > _COARSE:  # the cuts of several bonds, where their ranks are few
            search = RankSearch(self, error)
            ranks = search.next(_FEWER_STATES, parameters)
            if ranks is not None:
                best, high = self._filled(ranks, parameters), error
            elif search.proves_more_than(parameters):
                low = error
            else:
                break
            error = (low + high) / 2
        return Within(low, best)

    def _filled(self, ranks: tuple[int, ...], parameters: int) -> tuple[int, ...]:
        """Larger ranks, as long as the parameters allow: the smallest bond grows first."""
        while True:
            larger = [tuple(r + (n == bond) for n, r in enumerate(ranks)) for bond in range(len(ranks))]
            fitting = [(ranks[bond], bond) for bond, each in enumerate(larger) if self.parameters(each) <= parameters]
            if not fitting:
                return ranks
            ranks = larger[min(fitting)[1]]


class RankSearch:
    """Ranks of the bonds that all cuts allow at an error, those with the fewest parameters first.

    Args:
        bounds: of the topology.
        error: the relative error that the cuts must allow.
    """

    def __init__(self, bounds: Bounds, error: float) -> None:
        self.bounds = bounds
        self._needed = [(bounds.rank(cut.side, error), cut) for cut in bounds.cuts]
        alone = len(bounds.topology.terms) == 1  # a core whose bonds have the rank that the kernel has across it
        self._least = [
            weight * (bounds.rank(group, error) if alone and 0 < len(group) < len(bounds.topology.open) else 1)
            for weight, group in zip(bounds.weights, bounds.groups, strict=True)
        ]
        self._is_exact = True
        self._order = count()
        self._heap: list[tuple[int, int, tuple[int, ...]]] = []
        self._seen: set[tuple[int, ...]] = set()
        self._push((1,) * len(bounds.bonds))

    def _push(self, ranks: tuple[int, ...]) -> None:
        if ranks in self._seen:
            return
        self._seen.add(ranks)
        least = sum(
            map(max, self.bounds.core_sizes(ranks), self._least)
        )  # no larger ranks that the cuts allow have fewer parameters
        heapq.heappush(self._heap, (least, next(self._order), ranks))

    def _grow(self, ranks: tuple[int, ...], bonds: Iterable[int]) -> None:
        for bond in bonds:
            step = 1 if ranks[bond] < EXACT_STEPS else ceil(ranks[bond] / EXACT_STEPS)
            self._is_exact = self._is_exact and step == 1
            self._push((*ranks[:bond], ranks[bond] + step, *ranks[bond + 1 :]))

    @property
    def bound(self) -> float:
        """No ranks that are still to come have fewer parameters, up to the steps of large ranks; inf at the end."""
        return self._heap[0][0] if self._heap and len(self._seen) < MOST_STATES else inf

    def proves_more_than(self, parameters: int) -> bool:
        """Whether all ranks that are still to come certainly have more parameters than that."""
        return self._is_exact and self._heap[0][0] > parameters

    def next(self, states: int, parameters: float = inf) -> tuple[int, ...] | None:
        """The next ranks, if they are among the next states and have at most so many parameters."""
        while self._heap and states and self._heap[0][0] <= parameters:
            states -= 1
            _, _, ranks = heapq.heappop(self._heap)
            needed = next((cut for least, cut in self._needed if cut.rank(ranks) < least), None)
            self._grow(ranks, range(len(ranks)) if needed is None else {*chain(*needed.crossing)})
            if needed is None:
                return ranks
        return None


def least_fraction_of(bounds: Iterable[Bounds]) -> float:
    """The least budget, as a part of each kernel's parameters, at which one topology has fits of all kernels."""
    return max(least_fraction(each.fewest, each.errors.kernel.numel()) for each in bounds)


def prepare_bounds(errors: CutErrors, topology: Topology) -> Bounds:
    """The bounds of a topology for a kernel. Raises TnalgebraError where the rule does not fit the kernel."""
    outline = topology.rule.outline(errors.kernel.new_zeros(errors.kernel.shape) + 1)
    assert outline is not None
    return Bounds(errors, topology, outline.curve.right)
