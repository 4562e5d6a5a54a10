"""Rules about copy tensors."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations

from ...networks import MAX_AXES, Copy, Edit, Fill, Network, Node, carriers
from ..options import Place
from .shared import dead_outside, exact, of_type, once


@exact("Copy[a b] Copy[b c] => Copy[a c]")
def fuse_copies(network: Network) -> Iterator[tuple[Place, Edit]]:
    """Two copies that share a label make all their labels agree, as one copy of all of them does.

    A shared label that is closed and occurs nowhere else is summed away: for given values of the others exactly
    one term is 1. If none is left, one stays, to be summed. Not above 64 axes. Ends: one node fewer.
    """
    for (i, first), (j, second) in combinations(of_type(network, Copy).items(), 2):
        if set(first.labels) & set(second.labels):
            dead = dead_outside(network, (i, j))
            labels = once(first.labels + second.labels)
            kept = tuple(label for label in labels if label not in dead) or labels[:1]
            if len(kept) <= MAX_AXES:
                yield Place((i, j)), Edit(remove=(i, j), add=[Copy(kept)])


@exact("Copy[a a b c] -> [b] => Copy[a b] -> [b]")
def trim_copy(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A label twice on a copy says the same twice; a closed label that occurs on the copy alone sums to one.

    One label always stays. Ends: fewer labels on copies, nothing else changes.
    """
    for position, node in of_type(network, Copy).items():
        dead = dead_outside(network, (position,))
        labels = once(node.labels)
        kept = tuple(label for label in labels if label not in dead) or labels[:1]
        if kept != node.labels:
            yield Place((position,)), Edit(remove=(position,), add=[Copy(kept)])


@exact("Copy[a b] T[b ...] => T[a ...]")
def drop_copy_of_two(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A copy of two labels is the identity matrix: the labels are one label.

    Not if both are open (each is an axis of the value), nor if no other node carries either (then the sum over
    the label would lose its carrier). Ends: one node fewer.
    """
    standing = carriers(network)
    for position, node in of_type(network, Copy).items():
        if len(node.labels) != 2 or node.labels[0] == node.labels[1]:
            continue
        kept, dropped = node.labels
        if dropped in network.output:
            kept, dropped = dropped, kept
        both_open = dropped in network.output
        elsewhere = any(place != position for label in node.labels for place, _ in standing[label])
        if not both_open and elsewhere:
            yield Place((position,)), Edit(remove=(position,), labels={dropped: kept})


@exact("Copy[a] => Fill[a | value=1]")
def copy_of_one(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A copy of one label is a vector of ones. Ends: copies become fills, never the other way."""
    for position, node in of_type(network, Copy).items():
        if len(node.labels) == 1:
            fill = Fill(node.labels, Fraction(1))
            yield Place((position,)), Edit(remove=(position,), add=[fill])


@exact("Fill[a | value=v] Copy[a b c] => Fill[b | value=v] Copy[b c]")
def fill_through_copy(network: Network) -> Iterator[tuple[Place, Edit]]:
    """What a flat vector weighs on one label of a copy, it weighs on any other: they agree.

    The label must be closed and occur on these two nodes only, once on each, and another label must be there.
    Ends: fewer labels on copies.
    """
    for i, fill in of_type(network, Fill).items():
        for j, copy in of_type(network, Copy).items():
            labels = once(copy.labels)
            if len(fill.labels) != 1 or fill.labels[0] not in labels or len(labels) < 2:
                continue
            label = fill.labels[0]
            if label in dead_outside(network, (i, j)):
                rest = tuple(other for other in labels if other != label)
                add: list[Node] = [Fill(rest[:1], fill.value), Copy(rest)]
                yield Place((i, j), (label,)), Edit(remove=(i, j), add=add)
