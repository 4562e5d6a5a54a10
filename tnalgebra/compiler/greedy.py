"""The order of a contraction, found greedily: the intermediates so far, and the next steps by their ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import combinations, count

from ..networks import Conv
from .joins import join_ways
from .steps import MAX_WINDOWS, Steps, Windows
from .trees import ContractionTree, bits


def greedy_search(steps: Steps, leaves: Sequence[ContractionTree]) -> ContractionTree | None:
    """A tree made step by step, each time by the step with the lowest price, less that of reading what it frees."""
    items = Items(steps, [tree for tree in leaves if tree.step == "leaf"])
    dense = [tree for tree in leaves if tree.step == "pattern"]
    while True:
        items.take_steps()
        if not items.free and len(items.trees) == 1:
            return next(iter(items.trees.values()))
        left_over = [tree for tree in dense if tree.mask & items.free]
        if not left_over:
            return None
        items.add(left_over[0])


class Items:
    """The intermediates of a greedy search, and its possible steps by their ranks.

    A step depends on the sets that it takes alone, so every step is made once, with the later of its intermediates. It
    is forgotten when its turn comes and one of them, or one of its windows, is used already.

    trees: the intermediates by their sets, in the order in which they were made.
    free: the nodes that are in none of them.
    """

    def __init__(self, steps: Steps, trees: Iterable[ContractionTree]) -> None:
        self.steps, self.free = steps, steps.everything
        self.trees: dict[int, ContractionTree] = {}
        self._owners: dict[int, int] = {}
        self._heap: list[tuple[float, int, ContractionTree]] = []
        self._count = count()
        for tree in trees:
            self.add(tree)

    def add(self, tree: ContractionTree) -> None:
        """Add an intermediate, and the steps that it makes possible."""
        self.trees[tree.mask] = tree
        self.free &= ~tree.mask
        self._owners.update(dict.fromkeys(bits(tree.mask), tree.mask))
        for step in self._steps_with(tree):
            heappush(self._heap, (self._rank(step), next(self._count), step))

    def take_steps(self) -> None:
        """Replace intermediates by the results of the steps with the lowest ranks, until no step is left."""
        while self._heap:
            _, _, step = heappop(self._heap)
            views = sum(1 << number for number in step.views)
            if views & ~self.free or any(self.trees.get(part.mask) is not part for part in step.parts):
                continue
            for part in step.parts:
                del self.trees[part.mask]
            self.add(step)

    def _rank(self, tree: ContractionTree) -> float:
        steps = self.steps
        freed = sum(steps.size(steps.live(part.mask)) for part in tree.parts)
        return (
            tree.seconds
            - sum(part.seconds for part in tree.parts)
            + steps.pointwise(read=steps.size(steps.live(tree.mask)), written=0)
            - steps.pointwise(read=freed, written=0)
        )

    def _steps_with(self, tree: ContractionTree) -> Iterator[ContractionTree]:
        for number in self.steps.views(self.steps.near(tree.mask) & self.free):
            node = self.steps.view(number)
            if isinstance(node, Conv) and not self.steps.live(tree.mask) & self.steps.bits[node.x]:
                continue  # a Toeplitz matrix, which would leave no window to a convolution
            seconds = self.steps.view_price(tree.mask, (number,))
            if seconds is not None:
                yield ContractionTree(tree.mask | 1 << number, tree.seconds + seconds, "view", (tree,), (number,))
        for other in self._partners(tree):
            yield from self._joins(tree, other)
            yield from self._joins(other, tree)

    def _partners(self, tree: ContractionTree) -> list[ContractionTree]:
        """The other intermediates that share a label with this one, or with a view beside it."""
        near = self.steps.near(tree.mask)
        for number in self.steps.views(near & self.free):
            near |= self.steps.near(1 << number)
        owners = {self._owners.get(bit) for bit in bits(near & ~self.free)}
        alone = not self.steps.near(tree.mask)
        return [
            other
            for mask, other in self.trees.items()
            if other is not tree and (mask in owners or alone or not self.steps.near(mask))
        ]

    def _joins(self, one: ContractionTree, other: ContractionTree) -> Iterator[ContractionTree]:
        for windows in self._windows_between(one.mask, other.mask):
            if windows.numbers:
                left, right = (side & (one.mask | other.mask) for side in (windows.inputs, windows.kernels))
                if not (left and right) or left & ~one.mask or right & ~other.mask:
                    continue
            elif one.mask < other.mask:
                continue
            mask = one.mask | other.mask | windows.mask
            for way in join_ways(self.steps, one.mask, other.mask, windows):
                total, how = one.seconds + other.seconds + way.seconds, (windows.transposed, way.lengths, way.is_basis)
                yield ContractionTree(mask, total, "join", (one, other), windows.numbers, *how)

    def _windows_between(self, one: int, other: int) -> Iterator[Windows]:
        """The sets of free windows, the empty set included, that a join may absorb."""
        steps = self.steps
        near = list(steps.views(steps.near(one) & steps.near(other) & self.free))
        yield Windows()
        for size in range(1, min(MAX_WINDOWS, len(near)) + 1):
            for chosen in combinations(near, size):
                views = sum(1 << number for number in chosen)
                sets = steps.absorbable(one | other | views, views)
                yield from (windows for windows in sets if windows.mask == views)
