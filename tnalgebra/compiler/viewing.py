"""Lowering of tensors, reshapes and windows alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..nodes import Conv, Fuse
from ..sizes import window
from .arranging import UNKNOWN, Arranging, Value, plain_label, run_of
from .operations import (
    Diagonal,
    Load,
    Pool,
    Rename,
    Unfold,
    labels_in,
)
from .problem import Leaf
from .search import Tree


class Viewing(Arranging):
    """Leaves and views of a tree."""

    def leaf(self, leaf: Leaf, tree: Tree) -> Value:
        value = self.loaded.get(leaf.name)
        if value is None:
            names = tuple((label,) for label in leaf.labels)
            order = leaf.labels
            if leaf.kind == "input" and self.channels_last_inputs and len(names) in (4, 5):
                order = (leaf.labels[0], *leaf.labels[2:], leaf.labels[1])
            value = self.add(Load(leaf.name, names, leaf.kind), order)
            self.loaded[leaf.name] = value
        elif value.labels != leaf.labels:  # tied: the same tensor under other labels
            renames = (
                dict(zip(value.labels, leaf.labels, strict=True)) if len(set(value.labels)) == len(value.labels) else {}
            )
            order = tuple(renames.get(label, label) for label in value.order) if renames else leaf.labels
            value = self.add(Rename(value.number, tuple((label,) for label in leaf.labels)), order)
        while len(set(value.labels)) < len(value.labels):
            first, second = next(
                (i, j) for i, a in enumerate(value.labels) for j, b in enumerate(value.labels) if i < j and a == b
            )
            rest = [axis for number, axis in enumerate(value.axes) if number not in (first, second)]
            value = self.add(Diagonal(value.number, (*rest, value.axes[first]), first, second), UNKNOWN)
        live = self.names(self.search.live(tree.mask))
        return self.summed_over(value, live)

    def view(self, tree: Tree, value: Value) -> Value:
        """The windows or the reshape of a tree, applied to the value of what is below them."""
        views = [self.problem.views[number - len(self.problem.leaves)] for number in tree.views]
        live = self.names(self.search.live(tree.mask))
        first = views[0]
        if isinstance(first, Fuse):
            return self._fused(value, first)
        windows = [view for view in views if isinstance(view, Conv)]
        if any(one.k in live or one.dilation != 1 for one in windows):
            for one in windows:
                value = self._unfolded(value, one)
            return value
        return self._pooled(value, windows)

    def _fused(self, value: Value, fuse: Fuse) -> Value:
        if fuse.whole in value.labels:
            new = {fuse.whole: fuse.parts}
            axes = tuple(tuple(p for label in axis for p in new.get(label, (label,))) for axis in value.axes)
            order = tuple(p for label in value.order for p in new.get(label, (label,)))
            return self.add(Rename(value.number, axes), order)
        together = next((n for n, axis in enumerate(value.axes) if run_of(axis, fuse.parts) is not None), None)
        if together is None:
            rest = [tuple(label for label in axis if label not in fuse.parts) for axis in value.axes]
            place = next(n for n, axis in enumerate(value.axes) if set(axis) & set(fuse.parts))
            before = [axis for axis in rest[:place] if axis]
            after = [axis for axis in rest[place:] if axis]
            value = self.arranged(value, (*before, fuse.parts, *after))
        axes = tuple(joined(axis, fuse) for axis in value.axes)
        place_in_order = run_of(value.order, fuse.parts)
        order = UNKNOWN if place_in_order is None else joined(value.order, fuse)
        return self.add(Rename(value.number, axes), order)

    def _unfolded(self, value: Value, node: Conv) -> Value:
        numbers = window(node)
        others = tuple(tuple(label for label in axis if label != node.x) for axis in value.axes)
        others = tuple(axis for axis in others if axis)
        low, high = numbers["low"], numbers["high"]
        if node.mode != "zeros" and (low > 0 or high > 0):
            others = (labels_in(others),)
        value = self.arranged(value, (*others, (node.x,)))
        value = self.padded(value, [(node.x, low, high, str(node.mode))])
        return self.add(
            Unfold(
                value.number,
                (*others, (node.y,), (node.k,)),
                len(others),
                self.sizes[node.k],
                numbers["stride"],
                numbers["dilation"],
            ),
            UNKNOWN,
        )

    def _pooled(self, value: Value, windows: Sequence[Conv]) -> Value:
        xs = {node.x: node for node in windows}
        first = min(n for n, axis in enumerate(value.axes) if set(axis) & xs.keys())
        channel = [label for label in (value.axes[first - 1] if first else ()) if label not in xs]
        batch, spatial = self.positions(value, channel, xs)
        value = self.arranged(value, (batch, tuple(channel), *spatial))
        inner, outer = [], []
        for axis in spatial:
            node = xs.get(axis[0]) if len(axis) == 1 else None
            low, high = (0, 0) if node is None else (window(node)["low"], window(node)["high"])
            size = 1 if node is None else self.sizes[node.k]
            same = low == high and 0 <= low <= size // 2 and (node is None or node.mode == "zeros")
            inner.append(low if same else 0)
            if node is not None and not same:
                outer.append((node.x, low, high, str(node.mode)))
        value = self.padded(value, outer)
        kernel, stride, after = [], [], []
        for axis in spatial:
            node = xs.get(axis[0]) if len(axis) == 1 else None
            kernel.append(1 if node is None else self.sizes[node.k])
            stride.append(1 if node is None else window(node)["stride"])
            after.append(axis if node is None else (node.y,))
        self.factor *= prod(kernel)
        ys = {node.x: node.y for node in windows}
        pool = Pool(value.number, (batch, tuple(channel), *after), tuple(kernel), tuple(stride), tuple(inner))
        return self.add(pool, tuple(ys.get(plain_label(label), label) for label in value.order))


def joined(labels: tuple[str, ...], fuse: Fuse) -> tuple[str, ...]:
    place = run_of(labels, fuse.parts)
    return labels if place is None else (*labels[:place], fuse.whole, *labels[place + len(fuse.parts) :])
