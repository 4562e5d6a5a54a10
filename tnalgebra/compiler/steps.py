"""The steps of a contraction and their prices; sets of nodes and of labels are the bits of integers.

A state of the search is a set S of consumed nodes: tensors and views, that is windows and reshapes. A label of S is
live if it also occurs outside S or in the output. The intermediate T_S is summed over all other labels, so that it
depends on S alone. There are these steps:

- join(S1, S2, C): the product of two intermediates, which absorbs the windows C. It is one convolution if for each
  window of C the label x is live in S1 only, k is live in S2 only, both are not live afterwards, and y is in neither
  set. With x and y exchanged it is a transposed convolution. The windows of C have one direction and share no label.
- view(S, c): one window alone (an unfolding of x, or a sum over k if k is not live afterwards; or k becomes a Toeplitz
  matrix of x and y), or one reshape.
- A view becomes a dense 0/1 tensor if there is no other way, so that every network has a plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import combinations
from math import prod
from typing import Literal, NamedTuple, TypeAlias

from ..networks import Conv, Fuse
from .computation import Computation, labels_from_inputs, moving_labels
from .cost import CostModel, Workload, pooling_work
from .trees import ContractionTree, bits

MAX_WINDOWS = 3
"""Number of windows that one step may absorb: torch's convolutions have at most three axes of positions."""


_Way: TypeAlias = Literal["convolution", "fourier"]
"""How a join applies windows."""

CONVOLUTION: tuple[_Way, ...] = ("convolution",)
FOURIER: tuple[_Way, ...] = ("fourier",)


class Windows(NamedTuple):
    """A set of windows that a join absorbs.

    numbers, mask: the windows, by their numbers and as bits.
    xs, ys, ks: their labels as bits, with x and y exchanged for transposed windows.
    inputs, kernels: the nodes that carry one of the xs, or one of the ks.
    """

    numbers: tuple[int, ...] = ()
    transposed: bool = False
    mask: int = 0
    xs: int = 0
    ys: int = 0
    ks: int = 0
    inputs: int = 0
    kernels: int = 0


class Steps:
    """The steps of one computation.

    Args:
        dense: whether an input may be joined with a tensor made of all weights.
        unfold: whether a window may be applied alone, which copies each element into every window that it is in.
        most: the largest number of elements of an intermediate.
        ways: how a join may apply windows: by convolutions, by Fourier transforms, or both.
    """

    def __init__(
        self,
        computation: Computation,
        prices: CostModel,
        *,
        dense: bool,
        unfold: bool,
        most: int,
        ways: Collection[_Way] = CONVOLUTION,
    ) -> None:
        self.computation, self.prices, self.unfold, self.most, self.ways = computation, prices, unfold, most, ways
        nodes = (*computation.leaves, *computation.views)
        self.names = list(dict.fromkeys(label for node in nodes for label in node.labels))
        self.bits = {label: 1 << number for number, label in enumerate(self.names)}
        self.node_labels = [self._mask(node.labels) for node in nodes]
        self.carriers = _carriers(self.node_labels)
        self.output = self._mask(label for label in computation.output if label in self.bits)
        self.first_view = len(computation.leaves)
        self.everything = (1 << len(nodes)) - 1
        self.all_views = self.everything & ~((1 << self.first_view) - 1)
        self.fuses = sum(1 << number for number in self.views(self.all_views) if isinstance(self.view(number), Fuse))
        self.inputs = sum(1 << n for n, leaf in enumerate(computation.leaves) if leaf.kind == "input")
        moving = moving_labels(computation)
        self.moving = self._mask(moving & self.bits.keys())
        self.on_inputs = self._mask(
            label for leaf in computation.leaves if leaf.kind == "input" for label in leaf.labels
        )
        self.sized_by_inputs = self._mask(labels_from_inputs(computation, splits=True) & moving)
        weights = [n for n, leaf in enumerate(computation.leaves) if leaf.kind == "weight" or leaf.basis]
        self.bases = {1 << n: leaf for n, leaf in enumerate(computation.leaves) if leaf.basis}
        self.all_weights = sum(1 << n for n in weights) if len(weights) > 1 and not dense else 0
        self.fourier_joins: dict[object, tuple[float, tuple[int, ...]] | None] = {}
        self._live: dict[int, int] = {}
        self._near: dict[int, int] = {}
        self._size: dict[int, int] = {0: 1}
        self._windows: dict[tuple[tuple[int, ...], bool], Windows] = {}

    def _mask(self, labels: Iterable[str]) -> int:
        mask = 0
        for label in labels:
            mask |= self.bits[label]
        return mask

    def live(self, mask: int, parts: Sequence[int] = ()) -> int:
        """The labels of a set of nodes that also occur outside it or in the output.

        Args:
            parts: sets whose union is this one, if they are known: only their live labels are looked at.
        """
        live = self._live.get(mask)
        if live is None:
            live, rest, open_labels = 0, ~mask & self.everything, self.output
            for bit in bits(self._on(mask, parts)):
                if open_labels & bit or self.carriers[bit] & rest:
                    live |= bit
            self._live[mask] = live
        return live

    def _on(self, mask: int, parts: Sequence[int]) -> int:
        """All labels of a set, without some that are live in none of the parts."""
        labels = 0
        for part in parts:
            labels |= self.live(part)
        if not parts:
            for node in bits(mask):
                labels |= self.node_labels[node.bit_length() - 1]
        return labels

    def near(self, mask: int) -> int:
        """The nodes outside of a set that have a label of it."""
        near = self._near.get(mask)
        if near is None:
            near = self._near[mask] = self._carrying(self.live(mask)) & ~mask
        return near

    @cached_property
    def is_connected(self) -> bool:
        """Whether labels connect all nodes with each other."""
        reached = 1
        while more := self.near(reached):
            reached |= more
        return reached == self.everything

    def may_meet(self, one: int, other: int) -> bool:
        """Whether two sets share a label, or a reshape outside has labels of both, so that a product may be useful."""
        return bool(self.near(one) & (other | self.near(other) & self.fuses))

    def live_names(self, mask: int) -> set[str]:
        """The names of live labels."""
        return {self.names[bit.bit_length() - 1] for bit in bits(self.live(mask))}

    def size(self, labels: int) -> int:
        """The product of the sizes of labels."""
        total = self._size.get(labels)
        if total is None:
            low = labels & -labels
            total = self.computation.sizes[self.names[low.bit_length() - 1]] * self.size(labels ^ low)
            self._size[labels] = total
        return total

    def view(self, number: int) -> Conv | Fuse:
        """The window or reshape with this number."""
        return self.computation.views[number - self.first_view]

    def views(self, mask: int) -> Iterator[int]:
        """The numbers of the windows and reshapes in a set."""
        return (bit.bit_length() - 1 for bit in bits(mask & self.all_views))

    def pointwise(self, *, read: int, written: int, weights: bool = False) -> float:
        """Seconds of a step that only moves elements."""
        return self.prices.seconds(Workload("pointwise", read=read, written=written), weights=weights)

    def leaves(self, *, patterns: bool) -> list[ContractionTree]:
        """The tensors as trees; with `patterns` the views too, as dense tensors."""
        trees = [ContractionTree(1 << number, 0.0, "leaf") for number in range(self.first_view)]
        for number in self.views(self.everything) if patterns else ():
            elements = self.size(self.node_labels[number])
            if elements <= self.most:
                trees.append(ContractionTree(1 << number, self.pointwise(read=elements, written=0), "pattern"))
        return trees

    # Joins ---------------------------------------------------------------------------------------------------------

    def absorbable(self, mask: int, views: int) -> list[Windows]:
        """The sets of windows among `views` that a join into `mask` may absorb; the empty set comes first."""
        live = self.live(mask)
        sets = [Windows()]
        for transposed in (False, True):
            fitting = []
            for number in self.views(views):
                if not isinstance(self.view(number), Conv):
                    continue
                x, y, k = self._ends(number, transposed)
                if (x | k) & live or self.carriers[y] & mask != 1 << number or self.is_box_sum(number):
                    continue
                if not all(self.carriers[label] & mask & ~(1 << number) for label in (x, k)):
                    continue  # nothing to convolve, as where x is on a filled tensor alone
                if not transposed or self._can_be_transposed(number):
                    fitting.append(number)
            for count in range(1, MAX_WINDOWS + 1):
                groups = (group for group in combinations(fitting, count) if self.are_apart(group))
                sets += [self.absorbed(group, transposed) for group in groups]
        return sets

    def absorbed(self, numbers: tuple[int, ...], transposed: bool) -> Windows:
        """The windows with these numbers as one set."""
        if (numbers, transposed) not in self._windows:
            xs, ys, ks = (sum(bits) for bits in zip(*(self._ends(n, transposed) for n in numbers), strict=True))
            inputs, kernels = (self._carrying(ends) for ends in (xs, ks))
            mask = sum(1 << number for number in numbers)
            self._windows[numbers, transposed] = Windows(numbers, transposed, mask, xs, ys, ks, inputs, kernels)
        return self._windows[numbers, transposed]

    def _carrying(self, labels: int) -> int:
        """The nodes that have one of the labels."""
        nodes = 0
        for bit in bits(labels):
            nodes |= self.carriers[bit]
        return nodes

    def _ends(self, number: int, transposed: bool) -> tuple[int, int, int]:
        """The bits of the labels x, y and k of a window, with x and y exchanged if it is transposed."""
        node = self.view(number)
        assert isinstance(node, Conv)
        x, y, k = (self.bits[label] for label in (node.x, node.y, node.k))
        return (y, x, k) if transposed else (x, y, k)

    def are_apart(self, group: Sequence[int]) -> bool:
        """Whether no two of the views share a label."""
        return not any(self.node_labels[one] & self.node_labels[other] for one, other in combinations(group, 2))

    def _can_be_transposed(self, number: int) -> bool:
        """Whether a transposed convolution can do this window: it pads with zeros, and x has a size that y determines.

        With a stride, several sizes of x have the same size of y, so the inputs must not determine x.
        """
        node = self.view(number)
        assert isinstance(node, Conv)
        return node.mode == "zeros" and (node.stride == 1 or not self.bits[node.x] & self.sized_by_inputs)

    def join_price(self, left: int, right: int, windows: Windows) -> float | None:
        """Seconds of the join of two intermediates, or None if this join is not allowed."""
        if self._is_dense(left, right) or self._is_dense(right, left):
            return None
        one, other = self.live(left), self.live(right)
        live = self.live(left | right | windows.mask, (left, right, *(1 << number for number in windows.numbers)))
        written = self.size(live)
        if written > self.most:
            return None
        read, shared = self.size(one) + self.size(other), one & other
        summed = shared & ~live
        if windows.numbers:
            work = self._convolution(one, other, live, windows)._replace(read=read, written=written)
        elif not shared and self.near(left) and self.near(right) and not self.may_meet(left, right):
            return None
        elif summed:
            work = Workload(
                "product",
                multiply_adds=self.size(one | other),
                read=read,
                written=written,
                groups=self.size(shared & live),
                summed=self.size(summed),
                new=self.size(other & ~one),
                left=self.size(one & ~other),
            )
        else:
            work = Workload("pointwise", read=read, written=written)
        return self.prices.seconds(work, weights=not (left | right) & self.inputs)

    def _convolution(self, one: int, other: int, live: int, windows: Windows) -> Workload:
        shared = one & other
        labels = (one | other | windows.ys | windows.ks) & ~windows.xs
        # a kernel without channels acts equally on all of them, by a depthwise convolution
        groups = shared & live if self.size(shared) > 1 else one & ~other & ~windows.xs
        return Workload(
            "convolution",
            multiply_adds=self.size((labels & ~windows.ys) | windows.xs if windows.transposed else labels),
            groups=self.size(groups),
            summed=self.size(shared & ~live),
            new=self.size(other & ~one & ~windows.ks),
            window=max(map(self.size, bits(windows.ks))),
        )

    def fits(self, mask: int) -> bool:
        """Whether a set is not a basis with a matrix of too many elements."""
        return mask not in self.bases or self.size(self.node_labels[mask.bit_length() - 1]) <= self.most

    def _is_dense(self, weights: int, inputs: int) -> bool:
        """Whether a tensor made of all weights would be joined with inputs although that is forbidden."""
        return bool(self.all_weights and weights & self.all_weights == self.all_weights) and bool(
            not weights & self.inputs and inputs & self.inputs
        )

    # Views ---------------------------------------------------------------------------------------------------------

    def is_box_sum(self, number: int) -> bool:
        """Whether a view is a window whose label k occurs nowhere else: a sum over the window."""
        node = self.view(number)
        return (
            isinstance(node, Conv)
            and self.carriers[self.bits[node.k]] == 1 << number
            and not self.bits[node.k] & self.output
        )

    def is_toeplitz(self, number: int, live: int, after: int) -> bool:
        """Whether a view makes a matrix of x and y from the kernel of a window, padded with zeros.

        The sizes of x and y, if they can change, have to be those of axes of inputs.
        """
        node = self.view(number)
        if not isinstance(node, Conv) or self.is_folded(node):
            return False
        x, y, k = self._ends(number, transposed=False)
        is_sized = not (x | y) & self.moving & ~self.on_inputs
        return bool(live & k) and not after & k and not live & (x | y) and after & (x | y) == x | y and is_sized

    @staticmethod
    def is_folded(node: Conv) -> bool:
        """Whether a window reads elements at the other side of an end of x."""
        return node.mode != "zeros" and any(isinstance(end, int) and end > 0 for end in (node.low, node.high))

    def view_price(self, rest: int, group: Sequence[int]) -> float | None:
        """Seconds of applying views to the intermediate of `rest`, or None if that is not allowed."""
        live = self.live(rest)
        bits_of_group = [1 << number for number in group]
        after = self.live(rest | sum(bits_of_group), (rest, *bits_of_group))
        weights = not rest & self.inputs and not (self.moving & after & ~live)
        read, written = self.size(live), self.size(after)
        if written > self.most or not all(self._applies(number, live, after) for number in group):
            return None
        nodes = [self.view(number) for number in group]
        windows = [node for node in nodes if isinstance(node, Conv)]
        if not windows:
            return self.pointwise(read=0, written=0, weights=weights)
        if not (self.unfold or self.is_box_sum(group[0])):
            return None
        if len(group) > 1 or self.is_box_sum(group[0]):
            work = pooling_work(read, written, prod(self.computation.sizes[node.k] for node in windows))
            return self.prices.seconds(work, weights=weights)
        return self.pointwise(read=read, written=written, weights=weights)

    def _applies(self, number: int, live: int, after: int) -> bool:
        """Whether a view turns the live labels before it into those after it."""
        node = self.view(number)
        if isinstance(node, Conv):
            x, y, k = self._ends(number, transposed=False)
            unfolds = bool(live & x) and not after & x and not live & (y | k)
            return unfolds or self.is_toeplitz(number, live, after)
        whole = self.bits[node.whole]
        parts = self.node_labels[number] & ~whole
        split = live & whole and not after & whole and not live & parts
        merge = live & parts == parts and not after & parts and not live & whole
        return bool(split or merge)


def _carriers(node_labels: Sequence[int]) -> dict[int, int]:
    """For each label, as a bit, the nodes that have it."""
    carriers: dict[int, int] = {}
    for node, labels in enumerate(node_labels):
        for bit in bits(labels):
            carriers[bit] = carriers.get(bit, 0) | 1 << node
    return carriers
