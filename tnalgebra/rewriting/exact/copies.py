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
    """Two copies that share a label make all their labels agree, as one copy with all these labels does.

    A shared label that is closed and occurs nowhere else is summed away, because for given values of the other labels
    exactly one term is 1. If no label would be left, one stays and is summed. The rule does not fire if the result had
    more than 64 axes. Ends: there is one node fewer.
    """
    standing = carriers(network)
    for (i, first), (j, second) in combinations(of_type(network, Copy).items(), 2):
        if set(first.labels) & set(second.labels):
            dead = dead_outside(network, (i, j), standing)
            labels = once(first.labels + second.labels)
            kept = tuple(label for label in labels if label not in dead) or labels[:1]
            if len(kept) <= MAX_AXES:
                yield Place((i, j)), Edit(remove=(i, j), add=[Copy(kept)])


@exact("Copy[a a b c] -> [b] => Copy[a b] -> [b]")
def trim_copy(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A label that a copy has twice means the same as once, and a closed label that only the copy has sums to one.

    One label always stays. Ends: copies have fewer labels, and nothing else changes.
    """
    standing = carriers(network)
    for position, node in of_type(network, Copy).items():
        dead = dead_outside(network, (position,), standing)
        labels = once(node.labels)
        kept = tuple(label for label in labels if label not in dead) or labels[:1]
        if kept != node.labels:
            yield Place((position,)), Edit(remove=(position,), add=[Copy(kept)])


@exact("Copy[a b] T[b ...] => T[a ...]")
def drop_copy_of_two(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A copy of two labels is the identity matrix, so that the two labels are one.

    The rule does not fire if both labels are open, because each is an axis of the value, nor if no other node has
    either of them, because the sum over the label would then have no node. Ends: there is one node fewer.
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
    """A copy of one label is a vector of ones. Ends: copies become fills, and fills never become copies."""
    for position, node in of_type(network, Copy).items():
        if len(node.labels) == 1:
            fill = Fill(node.labels, Fraction(1))
            yield Place((position,)), Edit(remove=(position,), add=[fill])


@exact("Fill[a | value=v] Copy[a b c] => Fill[b | value=v] Copy[b c]")
def fill_through_copy(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A flat vector on one label of a copy can be on any other label of it, because the labels agree.

    The label must be closed and occur only on these two nodes, and the copy must have another label. Ends: copies have
    fewer labels.
    """
    standing = carriers(network)
    for i, fill in of_type(network, Fill).items():
        for j, copy in of_type(network, Copy).items():
            labels = once(copy.labels)
            if len(fill.labels) != 1 or fill.labels[0] not in labels or len(labels) < 2:
                continue
            label = fill.labels[0]
            if label in dead_outside(network, (i, j), standing):
                rest = tuple(other for other in labels if other != label)
                add: list[Node] = [Fill(rest[:1], fill.value), Copy(rest)]
                yield Place((i, j), (label,)), Edit(remove=(i, j), add=add)
