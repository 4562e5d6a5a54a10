"""The order of a contraction: the cheapest trees, by dynamic programming over sets of consumed nodes.

A state is the set S of consumed nodes, tensors and views (windows and reshapes) alike. live(S) holds the labels in S
that also stand outside S or in the output. The intermediate T_S, everything else summed, depends on S alone, so the
search over subsets is exact for prices that add up. Steps:

- join(S1, S2, C): the product of two intermediates, absorbing the windows C. It is one convolution if for each window
  of C its x is live in S1 only and dead after, its k live in S2 only and dead after, its y in neither; with x and y
  swapped, a transposed convolution. All of C share a direction and no labels.
- view(S, c): a window alone (an unfolding, or a sum over its k where that dies), or a reshape.
- a view as a dense 0/1 tensor, if there is no other way, so that every network has a plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, Protocol, TypeAlias

from ..network import Conv, Fuse
from .problem import Problem, labels_from_inputs, moving_labels, size

EXACT = 12
"""Up to so many nodes all orders are looked at."""

WINDOW = 9
"""Nodes of the parts of a larger order that are looked at again exactly."""

MAX_WINDOWS = 3
"""Windows that one step may absorb: torch's convolutions have at most three axes."""

Step: TypeAlias = Literal["leaf", "pattern", "join", "view"]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """How the intermediate of a set of nodes is made.

    mask: the set, one bit a node: leaves first, then views.
    seconds: predicted, of all steps in it.
    step: how it is made of `parts`.
    views: those the step absorbs, by their number.
    transposed: the direction of the windows a join absorbs.
    """

    mask: int
    seconds: float
    step: Step
    parts: tuple[Tree, ...] = ()
    views: tuple[int, ...] = ()
    transposed: bool = False

    @property
    def text(self) -> str:
        """The tree without its prices: what tells two plans apart. Views one after the other have no order in it."""
        views, parts = list(self.views), self.parts
        while self.step == "view" and parts[0].step == "view":
            views, parts = sorted((*views, *parts[0].views)), parts[0].parts
        words = [self.step[0], *map(str, views), *(part.text for part in parts)]
        return f"{self.mask:x}" if self.step in ("leaf", "pattern") else f"({' '.join(words)})"


class Prices(Protocol):
    """What the search asks of a cost model. All numbers are elements, or multiply-adds; the answers are seconds."""

    def convolution(
        self, *, multiply_adds: int, groups: int, summed: int, new: int, read: int, written: int, weights: bool
    ) -> float:
        """A convolution with `summed` channels in and `new` channels out of each group."""
        ...

    def product(self, *, multiply_adds: int, groups: int, summed: int, left: int, right: int, weights: bool) -> float:
        """`groups` matrix products of (left, summed) with (summed, right)."""
        ...

    def pointwise(self, *, read: int, written: int, weights: bool) -> float:
        """A product element by element, a sum along axes, or a copy in another order."""
        ...


class Search:
    """The cheapest trees of one problem.

    Args:
        prices: of single steps.
        keep: trees kept of each state.
        patterns: whether windows and reshapes may become dense tensors.
        dense: whether the inputs may meet one tensor made of all weights.
        most: elements of the largest intermediate.
    """

    def __init__(self, problem: Problem, prices: Prices, *, keep: int, patterns: bool, dense: bool, most: int) -> None:
        self.problem, self.prices, self.keep, self.patterns, self.most = problem, prices, keep, patterns, most
        nodes = (*problem.leaves, *problem.views)
        names = list(dict.fromkeys(label for node in nodes for label in node.labels))
        self.bits = {label: 1 << number for number, label in enumerate(names)}
        self.names = names
        self.node_labels = [self._mask(node.labels) for node in nodes]
        self.carriers = {
            bit: sum(1 << node for node, labels in enumerate(self.node_labels) if labels & bit)
            for bit in self.bits.values()
        }
        self.output = self._mask(label for label in problem.output if label in self.bits)
        self.first_view = len(problem.leaves)
        self.everything = (1 << len(nodes)) - 1
        self.inputs = sum(1 << n for n, leaf in enumerate(problem.leaves) if leaf.kind == "input")
        moving = moving_labels(problem)
        self.sized_by_inputs = self._mask(
            label for label in labels_from_inputs(problem, splits=True) if label in moving
        )
        weights = [n for n, leaf in enumerate(problem.leaves) if leaf.kind == "weight"]
        self.all_weights = sum(1 << n for n in weights) if len(weights) > 1 and not dense else 0
        self._live: dict[int, int] = {}
        self._size: dict[int, int] = {0: 1}

    def _mask(self, labels: Iterable[str]) -> int:
        mask = 0
        for label in labels:
            mask |= self.bits[label]
        return mask

    def live(self, mask: int) -> int:
        """Labels that a set of nodes shares with the rest or with the output."""
        found = self._live.get(mask)
        if found is None:
            found, rest = 0, ~mask & self.everything
            for bit, nodes in self.carriers.items():
                if nodes & mask and (nodes & rest or bit & self.output):
                    found |= bit
            self._live[mask] = found
        return found

    def size(self, labels: int) -> int:
        """The product of the sizes of labels."""
        found = self._size.get(labels)
        if found is None:
            low = labels & -labels
            found = self.problem.sizes[self.names[low.bit_length() - 1]] * self.size(labels ^ low)
            self._size[labels] = found
        return found

    # The items that a search starts from -------------------------------------------------------------------

    def leaves(self) -> list[Tree]:
        """The tensors, each summed over what it carries alone; and the views as dense tensors, if allowed."""
        found = [Tree(1 << number, 0.0, "leaf") for number in range(self.first_view)]
        if self.patterns:
            for number in range(self.first_view, len(self.node_labels)):
                elements = self.size(self.node_labels[number])
                if elements <= self.most:
                    seconds = self.prices.pointwise(read=elements, written=0, weights=False)
                    found.append(Tree(1 << number, seconds, "pattern"))
        return found

    def best(self) -> list[Tree]:
        """The cheapest trees of the whole network, the cheapest first; empty if there is none."""
        leaves = self.leaves()
        if len(self.node_labels) <= EXACT:
            return self.exact(leaves, self.everything)
        tree = self.greedy(leaves)
        if tree is None:
            return []
        return [self.improved(tree)]

    # Exact search ----------------------------------------------------------------------------------------------

    def exact(self, items: Sequence[Tree], target: int) -> list[Tree]:
        """The cheapest trees of `target` out of items and the views in it that no item holds."""
        free = target & ~((1 << self.first_view) - 1)
        atoms = [item.mask for item in items if item.mask.bit_count() != 1 or item.mask < 1 << self.first_view]
        for mask in atoms:
            free &= ~mask
        units = [
            *dict.fromkeys(atoms),
            *(1 << n for n in range(self.first_view, len(self.node_labels)) if free >> n & 1),
        ]
        table: dict[int, list[Tree]] = {}
        for item in items:
            table.setdefault(item.mask, []).append(item)
        # every union of units, in an order in which parts come first
        masks = [0] * (1 << len(units))
        for number in range(1, len(masks)):
            low = number & -number
            mask = masks[number] = masks[number ^ low] | units[low.bit_length() - 1]
            found = table.setdefault(mask, [])
            self._views_into(mask, free, table, found)
            self._joins_into(mask, number, masks, free, table, found)
            if found:
                found.sort(key=lambda tree: tree.seconds)
                table[mask] = _distinct(found)[: self.keep]
            else:
                del table[mask]
        return table.get(target, [])

    def _views_into(self, mask: int, free: int, table: dict[int, list[Tree]], found: list[Tree]) -> None:
        inside = list(self._views(mask & free))
        sums = [n for n in inside if self._is_box_sum(n, mask)]
        groups: list[tuple[int, ...]] = [(n,) for n in inside]
        groups += [group for count in (2, 3) for group in combinations(sums, count) if self._apart(group)]
        for group in groups:
            rest = mask & ~sum(1 << n for n in group)
            for tree in table.get(rest, ())[: self.keep]:
                seconds = self.view_price(rest, group)
                if seconds is not None:
                    found.append(Tree(mask, tree.seconds + seconds, "view", (tree,), group))

    def _joins_into(
        self, mask: int, number: int, masks: list[int], free: int, table: dict[int, list[Tree]], found: list[Tree]
    ) -> None:
        live = self.live(mask)
        limit: list[float] = sorted(tree.seconds for tree in found)[: self.keep]
        for group, transposed in self._absorbable(mask, mask & free, live):
            views = sum(1 << n for n in group)
            rest = mask & ~views
            must_left, must_right = self._forced(group, transposed, rest)
            if must_left & must_right or (group and not (must_left and must_right)):
                continue
            # subsets are counted in units, so that items stay whole
            base = choice = 0
            for position in range(number.bit_length()):
                unit = masks[1 << position] if number >> position & 1 else 0
                if not unit & rest:
                    continue
                if unit & must_left or not (group or base):  # without windows left and right are alike
                    base |= 1 << position
                elif not unit & must_right:
                    choice |= 1 << position
            inner = choice
            while True:
                left = masks[base | inner]
                if left != rest and (one := table.get(left)) and (other := table.get(rest & ~left)):
                    seconds = self.join_price(left, rest & ~left, live, group, transposed)
                    if seconds is not None:
                        self._pairs(mask, one, other, seconds, group, transposed, found, limit)
                if not inner:
                    break
                inner = (inner - 1) & choice

    def _pairs(
        self,
        mask: int,
        left: list[Tree],
        right: list[Tree],
        seconds: float,
        group: tuple[int, ...],
        transposed: bool,
        found: list[Tree],
        limit: list[float],
    ) -> None:
        for one in left:
            for other in right:
                total = one.seconds + other.seconds + seconds
                if len(limit) >= self.keep and total >= limit[-1]:
                    break
                found.append(Tree(mask, total, "join", (one, other), group, transposed))
                limit.append(total)
                limit.sort()
                del limit[self.keep :]

    # What a step is, and what it costs -------------------------------------------------------------------------

    def _views(self, mask: int) -> Iterator[int]:
        for number in range(self.first_view, len(self.node_labels)):
            if mask >> number & 1:
                yield number

    def _view(self, number: int) -> Conv | Fuse:
        return self.problem.views[number - self.first_view]

    def _ends(self, number: int, transposed: bool) -> tuple[int, int, int]:
        """The bits of a window's x, y and k; x and y swapped if it is transposed."""
        node = self._view(number)
        assert isinstance(node, Conv)
        x, y, k = (self.bits[label] for label in (node.x, node.y, node.k))
        return (y, x, k) if transposed else (x, y, k)

    def _apart(self, group: Sequence[int]) -> bool:
        union = 0
        for number in group:
            if union & self.node_labels[number]:
                return False
            union |= self.node_labels[number]
        return True

    def _absorbable(self, mask: int, views: int, live: int) -> list[tuple[tuple[int, ...], bool]]:
        """The sets of windows that a join into `mask` may absorb, with their direction; none at all first."""
        found: list[tuple[tuple[int, ...], bool]] = [((), False)]
        for transposed in (False, True):
            fitting = []
            for number in self._views(views):
                if not isinstance(self._view(number), Conv):
                    continue
                x, y, k = self._ends(number, transposed)
                if (x | k) & live or self.carriers[y] & mask != 1 << number:
                    continue
                if transposed and not self._can_be_transposed(number):
                    continue
                fitting.append(number)
            for count in range(1, MAX_WINDOWS + 1):
                found += [(group, transposed) for group in combinations(fitting, count) if self._apart(group)]
        return found

    def _can_be_transposed(self, number: int) -> bool:
        """Padding with zeros only; and the input of a stride may have any of several sizes for one of its output, so
        that the inputs must not decide it on their own."""
        node = self._view(number)
        assert isinstance(node, Conv)
        return node.mode == "zeros" and (node.stride == 1 or not self.bits[node.x] & self.sized_by_inputs)

    def _forced(self, group: Sequence[int], transposed: bool, rest: int) -> tuple[int, int]:
        """Nodes that must stand left and right of a join: the carriers of the windows' x, and of their k."""
        left = right = 0
        for number in group:
            x, _, k = self._ends(number, transposed)
            left |= self.carriers[x] & rest
            right |= self.carriers[k] & rest
        return left, right

    def join_price(self, left: int, right: int, live: int, group: tuple[int, ...], transposed: bool) -> float | None:
        """Seconds of the join of two intermediates; None if it is no step."""
        one, other = self.live(left), self.live(right)
        weights = not (left | right) & self.inputs
        if self._is_dense(left, right) or self._is_dense(right, left):
            return None
        shared = one & other
        written = self.size(live)
        if written > self.most:
            return None
        if group:
            xs = ys = ks = 0
            for number in group:
                x, y, k = self._ends(number, transposed)
                xs, ys, ks = xs | x, ys | y, ks | k
            labels = (one | other | ys | ks) & ~xs
            # a kernel without channels acts alike on every one: a depthwise convolution
            groups = shared & live if self.size(shared) > 1 else one & ~other & ~xs
            return self.prices.convolution(
                multiply_adds=self.size((labels & ~ys) | xs) if transposed else self.size(labels),
                groups=self.size(groups),
                summed=self.size(shared & ~live),
                new=self.size(other & ~one & ~ks),
                read=self.size(one) + self.size(other),
                written=written,
                weights=weights,
            )
        if not shared and not (self._alone(left) or self._alone(right) or self._fused(one, other, left | right)):
            return None
        summed = shared & ~live
        if not summed:
            return self.prices.pointwise(read=self.size(one) + self.size(other), written=written, weights=weights)
        return self.prices.product(
            multiply_adds=self.size(one | other),
            groups=self.size(shared & live),
            summed=self.size(summed),
            left=self.size(one & ~other),
            right=self.size(other & ~one),
            weights=weights,
        )

    def _is_dense(self, weights: int, inputs: int) -> bool:
        """Whether one tensor made of all weights meets inputs, where that is forbidden."""
        return bool(self.all_weights and weights & self.all_weights == self.all_weights) and bool(
            not weights & self.inputs and inputs & self.inputs
        )

    def _alone(self, mask: int) -> bool:
        """Whether a set shares no label with the rest."""
        return not any(nodes & mask and nodes & ~mask for nodes in self.carriers.values())

    def _fused(self, one: int, other: int, mask: int) -> bool:
        """Whether a reshape outside joins labels of two sets: then their outer product leads somewhere."""
        return any(
            isinstance(self._view(number), Fuse) and self.node_labels[number] & one and self.node_labels[number] & other
            for number in self._views(self.everything & ~mask)
        )

    def _is_box_sum(self, number: int, mask: int) -> bool:
        node = self._view(number)
        if not isinstance(node, Conv):
            return False
        k = self.bits[node.k]
        return self.carriers[k] == 1 << number and not k & self.output

    def view_price(self, rest: int, group: Sequence[int]) -> float | None:
        """Seconds of windows or a reshape applied to the intermediate of `rest`; None if that is no step."""
        live = self.live(rest)
        after = self.live(rest | sum(1 << number for number in group))
        weights = not rest & self.inputs
        read, written = self.size(live), self.size(after)
        if written > self.most:
            return None
        for number in group:
            node = self._view(number)
            if isinstance(node, Conv):
                x, y, k = self._ends(number, transposed=False)
                if not live & x or after & x or live & (y | k):
                    return None
            else:
                whole = self.bits[node.whole]
                parts = self.node_labels[number] & ~whole
                split = live & whole and not after & whole and not live & parts
                merge = live & parts == parts and not after & parts and not live & whole
                if not split and not merge:
                    return None
        if all(isinstance(self._view(number), Fuse) for number in group):
            return self.prices.pointwise(read=0, written=0, weights=weights)
        if len(group) == 1 and not self._is_box_sum(group[0], rest | 1 << group[0]):
            return self.prices.pointwise(read=read, written=written, weights=weights)
        taken = written * size(self.problem.sizes, [node.k for n in group if isinstance(node := self._view(n), Conv)])
        return self.prices.pointwise(read=taken, written=written, weights=weights)

    # Beyond the exact search -----------------------------------------------------------------------------------

    def greedy(self, leaves: Sequence[Tree]) -> Tree | None:
        """One step after the other, each time the one that costs least above what it frees."""
        items = {tree.mask: tree for tree in leaves if tree.step == "leaf"}
        dense = {tree.mask: tree for tree in leaves if tree.step == "pattern"}
        while True:
            used = sum(items)
            if used == self.everything and len(items) == 1:
                return next(iter(items.values()))
            step = self._cheapest(items, self.everything & ~used)
            if step is None:
                left_over = [mask for mask in dense if not mask & used]
                if not left_over:
                    return None
                items[left_over[0]] = dense[left_over[0]]
                continue
            for part in step.parts:
                del items[part.mask]
            items[step.mask] = step

    def _cheapest(self, items: dict[int, Tree], free: int) -> Tree | None:
        best: tuple[float, Tree] | None = None
        for tree in self._next(items, free):
            spent = sum(part.seconds for part in tree.parts)
            freed = sum(self.size(self.live(part.mask)) for part in tree.parts)
            rank = (
                tree.seconds
                - spent
                + self.prices.pointwise(read=self.size(self.live(tree.mask)), written=0, weights=False)
                - self.prices.pointwise(read=freed, written=0, weights=False)
            )
            if best is None or rank < best[0]:
                best = (rank, tree)
        return best and best[1]

    def _next(self, items: dict[int, Tree], free: int) -> Iterator[Tree]:
        for tree in items.values():
            for number in self._views(free):
                seconds = self.view_price(tree.mask, (number,))
                if seconds is not None:
                    yield Tree(tree.mask | 1 << number, tree.seconds + seconds, "view", (tree,), (number,))
        for one in items.values():
            for other in items.values():
                if one is other:
                    continue
                touching = self.node_labels_of(one.mask) | self.node_labels_of(other.mask)
                near = sum(1 << n for n in self._views(free) if self.node_labels[n] & touching)
                whole = one.mask | other.mask
                for group, transposed in self._absorbable_in_join(whole, near):
                    if not group and one.mask < other.mask:
                        continue
                    mask = whole | sum(1 << n for n in group)
                    left, right = self._forced(group, transposed, whole)
                    fits = left & one.mask == left and right & other.mask == right
                    if group and not (fits and left and right):
                        continue
                    seconds = self.join_price(one.mask, other.mask, self.live(mask), group, transposed)
                    if seconds is not None:
                        total = one.seconds + other.seconds + seconds
                        yield Tree(mask, total, "join", (one, other), group, transposed)

    def _absorbable_in_join(self, whole: int, near: int) -> Iterator[tuple[tuple[int, ...], bool]]:
        seen = set()
        views = list(self._views(near))
        for count in range(min(MAX_WINDOWS, len(views)) + 1):
            for chosen in combinations(views, count):
                mask = whole | sum(1 << n for n in chosen)
                for group, transposed in self._absorbable(mask, mask & ~whole, self.live(mask)):
                    if set(group) == set(chosen) and (group, transposed) not in seen:
                        seen.add((group, transposed))
                        yield group, transposed

    def node_labels_of(self, mask: int) -> int:
        """All labels that stand on a set of nodes."""
        found = 0
        for number, labels in enumerate(self.node_labels):
            if mask >> number & 1:
                found |= labels
        return found

    def improved(self, tree: Tree) -> Tree:
        """The tree with its parts ordered anew, exactly, as long as that makes it cheaper."""
        parts = tuple(self.improved(part) for part in tree.parts)
        if parts:
            seconds = tree.seconds - sum(p.seconds for p in tree.parts) + sum(p.seconds for p in parts)
            tree = Tree(tree.mask, seconds, tree.step, parts, tree.views, tree.transposed)
        items, views = list(tree.parts), len(tree.views)
        while True:
            wide = [item for item in items if item.parts]
            if not wide:
                break
            chosen = max(wide, key=lambda item: item.seconds)
            if len(items) - 1 + len(chosen.parts) + views + len(chosen.views) > WINDOW:
                break
            items.remove(chosen)
            items += chosen.parts
            views += len(chosen.views)
        if len(items) < 2:
            return tree
        found = self.exact(items, tree.mask)
        return found[0] if found and found[0].seconds < tree.seconds * (1 - 1e-9) else tree


def _distinct(trees: Sequence[Tree]) -> list[Tree]:
    seen: dict[str, Tree] = {}
    for tree in trees:
        seen.setdefault(tree.text, tree)
    return list(seen.values())
