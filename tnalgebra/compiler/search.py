"""The order of a contraction: the cheapest trees, by dynamic programming over sets of nodes.

The intermediate of a set of nodes depends on the set alone, so the search over subsets is exact for prices that add up.
For more than `EXACT` nodes an order is found greedily, and then parts of it are improved by exact searches.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from math import inf

from .greedy import Items, greedy_search
from .joins import join_ways
from .steps import Steps, Windows
from .trees import ContractionTree

EXACT = 12
"""Largest number of nodes for which all orders are compared."""

WINDOW = 7
"""Number of nodes in the parts of a larger order that are searched exactly."""

REPEATED = 40
"""Largest number of nodes for which such searches are repeated until they find nothing cheaper."""


def cheapest_trees(steps: Steps, *, keep: int, patterns: bool = False) -> list[ContractionTree]:
    """The cheapest trees of the whole network, the cheapest first; empty if the search finds none.

    Args:
        keep: the number of trees that are kept for each set of nodes.
        patterns: windows and reshapes may be dense tensors, whose sizes every input then has to have.
    """
    leaves = steps.leaves(patterns=patterns)
    if len(steps.node_labels) <= EXACT:
        return exact_search(steps, leaves, steps.everything, keep=keep)
    tree = greedy_search(steps, leaves)
    if tree is None and not patterns:
        tree = weights_first(steps)
    if tree is None:
        return []
    before, tree = tree, improved(steps, tree)
    while len(steps.node_labels) <= REPEATED and tree.seconds < before.seconds * (1 - 1e-9):
        before, tree = tree, improved(steps, tree)
    return [tree]


# Exact search ----------------------------------------------------------------------------------------------------


class _Kept:
    """The trees of one set that were among the `keep` cheapest when they were added."""

    def __init__(self, trees: Sequence[ContractionTree], keep: int, limit: float) -> None:
        self.keep, self.trees, self.limit = keep, list(trees), limit
        self.least = sorted(tree.seconds for tree in trees)[:keep]

    def admits(self, seconds: float) -> bool:
        return seconds < (self.limit if len(self.least) < self.keep else self.least[-1])

    def add(self, tree: ContractionTree) -> None:
        self.trees.append(tree)
        insort(self.least, tree.seconds)
        del self.least[self.keep :]

    def cheapest(self) -> list[ContractionTree]:
        """The `keep` cheapest distinct trees."""
        if self.keep == 1:
            return [min(self.trees, key=lambda tree: tree.seconds)]
        distinct: dict[str, ContractionTree] = {}
        for tree in sorted(self.trees, key=lambda tree: tree.seconds):
            distinct.setdefault(tree.text, tree)
        return list(distinct.values())[: self.keep]


def exact_search(
    steps: Steps, items: Sequence[ContractionTree], target: int, *, keep: int, limit: float = inf
) -> list[ContractionTree]:
    """The cheapest trees of the set `target`, made of the items and of the views of the set that are in no item.

    Args:
        limit: seconds that every tree that is joined takes less than.
    """
    tensors = (1 << steps.first_view) - 1
    free = target & ~tensors
    atoms = [item.mask for item in items if item.mask.bit_count() != 1 or item.mask <= tensors]
    for mask in atoms:
        free &= ~mask
    units = [*dict.fromkeys(atoms), *(1 << number for number in steps.views(free))]
    table: dict[int, list[ContractionTree]] = {}
    for item in items:
        table.setdefault(item.mask, []).append(item)
    # every union of units, after all its subsets
    masks = [0] * (1 << len(units))
    connected = _connected(steps, units)
    for number in range(1, len(masks)):
        low = number & -number
        mask = masks[number] = masks[number ^ low] | units[low.bit_length() - 1]
        if not connected[number]:
            continue
        steps.live(mask, (masks[number ^ low], units[low.bit_length() - 1]))
        kept = _Kept(table.get(mask, ()), keep, limit)
        for tree in _views(steps, mask, mask & free, table):
            kept.add(tree)
        for windows in steps.absorbable(mask, mask & free):
            for left, right in _splits(number, masks, mask & ~windows.mask, windows):
                if left in table and right in table:
                    _add_joins(steps, kept, (table[left], table[right]), windows)
        if kept.trees:
            table[mask] = kept.cheapest()
    return table.get(target, [])


def _connected(steps: Steps, units: Sequence[int]) -> list[bool]:
    """For every set of units whether its nodes may be joined before others: no tree has a set for which this is False.

    From every connected set some unit can be taken away so that the rest is still connected.
    """
    if not steps.is_connected:
        return [True] * (1 << len(units))
    links = [sum(1 << n for n, other in enumerate(units) if steps.may_meet(one, other)) for one in units]
    connected = [number.bit_count() < 2 for number in range(1 << len(units))]
    for number in range(1, len(connected)):
        for place, link in enumerate(links):
            rest = number ^ 1 << place
            if rest < number and link & rest and connected[rest]:
                connected[number] = True
                break
    return connected


def _views(steps: Steps, mask: int, views: int, table: dict[int, list[ContractionTree]]) -> Iterator[ContractionTree]:
    """Trees whose last step applies one window or reshape, or several sums over windows at once."""
    inside = list(steps.views(views))
    sums = [number for number in inside if steps.is_box_sum(number)]
    groups: list[tuple[int, ...]] = [(number,) for number in inside]
    groups += [group for count in (2, 3) for group in combinations(sums, count) if steps.are_apart(group)]
    for group in groups:
        rest = mask & ~sum(1 << number for number in group)
        seconds = steps.view_price(rest, group) if rest in table else None
        if seconds is not None:
            yield from (ContractionTree(mask, tree.seconds + seconds, "view", (tree,), group) for tree in table[rest])


def _splits(number: int, masks: Sequence[int], rest: int, windows: Windows) -> Iterator[tuple[int, int]]:
    """The pairs of sets whose union is `rest`, with the inputs of the windows left and their kernels right.

    Args:
        number: the set with its windows, one bit for each unit, so that items are not split.
        masks: the set of nodes for each such number.
    """
    must_left, must_right = windows.inputs & rest, windows.kernels & rest
    if must_left & must_right or (windows.numbers and not (must_left and must_right)):
        return
    base = choice = 0
    for position in range(number.bit_length()):
        unit = masks[1 << position] if number >> position & 1 else 0
        if not unit & rest:
            continue
        if unit & must_left and unit & must_right:
            return
        if unit & must_left or not (windows.numbers or base):  # without windows the sides can be exchanged
            base |= 1 << position
        elif not unit & must_right:
            choice |= 1 << position
    inner = choice
    while True:
        left = masks[base | inner]
        if left != rest:
            yield left, rest & ~left
        if not inner:
            return
        inner = (inner - 1) & choice


def _add_joins(
    steps: Steps, kept: _Kept, sides: tuple[list[ContractionTree], list[ContractionTree]], windows: Windows
) -> None:
    """Join each tree of the left set with each of the right set, as long as the sum is cheap enough."""
    left, right = sides[0][0].mask, sides[1][0].mask
    if not kept.admits(sides[0][0].seconds + sides[1][0].seconds):
        return
    mask = left | right | windows.mask
    for way in join_ways(steps, left, right, windows):
        how = windows.transposed, way.lengths, way.is_basis
        for one in sides[0]:
            for other in sides[1]:
                total = one.seconds + other.seconds + way.seconds
                if not kept.admits(total):
                    break
                kept.add(ContractionTree(mask, total, "join", (one, other), windows.numbers, *how))


# Beyond the exact search -----------------------------------------------------------------------------------------


def weights_first(steps: Steps) -> ContractionTree | None:
    """A tree that contracts the weights before they meet an input, as a greedy search may begin with a dead end.

    Every window can be applied to a kernel that is one tensor.
    """
    leaves = steps.leaves(patterns=False)
    items = Items(steps, [tree for tree in leaves if not tree.mask & steps.inputs])
    items.take_steps()
    trees = [*items.trees.values(), *(tree for tree in leaves if tree.mask & steps.inputs)]
    if len(trees) + (items.free & steps.all_views).bit_count() > EXACT:
        return None
    cheapest = exact_search(steps, trees, steps.everything, keep=1)
    return cheapest[0] if cheapest else None


def improved(steps: Steps, tree: ContractionTree) -> ContractionTree:
    """The tree with parts of it replaced by the result of an exact search, where that is cheaper."""
    parts = tuple(improved(steps, part) for part in tree.parts)
    if parts:
        seconds = tree.seconds - sum(p.seconds for p in tree.parts) + sum(p.seconds for p in parts)
        tree = replace(tree, seconds=seconds, parts=parts)
    # take the most expensive parts apart as long as an exact search of all items is feasible
    items, views = list(tree.parts), len(tree.views)
    while wide := [item for item in items if item.parts]:
        chosen = max(wide, key=lambda item: item.seconds)
        if len(items) - 1 + len(chosen.parts) + views + len(chosen.views) > WINDOW:
            break
        items.remove(chosen)
        items += chosen.parts
        views += len(chosen.views)
    if len(items) < 2:
        return tree
    trees = exact_search(steps, items, tree.mask, keep=1, limit=tree.seconds)
    return trees[0] if trees and trees[0].seconds < tree.seconds * (1 - 1e-9) else tree
