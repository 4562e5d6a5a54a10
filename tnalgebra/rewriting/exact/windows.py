"""Rules about windows, the index patterns of convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import gcd, inf

from ...networks import Conv, Copy, Edit, Fill, Fuse, Network, Node, carriers, fresh, window
from ..options import Place
from .shared import dead_outside, exact, of_type


@exact("Conv[x y k | stride=size(k)] => Fuse[x y k]")
def window_to_fuse(network: Network) -> Iterator[tuple[Place, Edit]]:
    """Windows that are side by side and cover x exactly divide it into blocks: x = size(k)*y + k is a reshape.

    The dilation must be 1, there must be no padding, and x must be stride * y without a remainder. Ends: there is one
    window fewer.
    """
    for position, node in of_type(network, Conv).items():
        x, y, k = (network.sizes.get(label) for label in node.labels)
        plain = (node.low, node.high, node.dilation) == (0, 0, 1) and node.stride == k
        if plain and x is not None and y is not None and k is not None and x == k * y:
            fuse = Fuse(node.x, (node.y, node.k))
            yield Place((position,)), Edit(remove=(position,), add=[fuse])


@exact("Conv[x y k:1] => Copy[x y]")
def unit_window(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A window of one element with stride 1 and without padding is the identity, x = y.

    Its label k stays on other nodes; where it is open and occurs nowhere else, it becomes a vector of ones. Ends: there
    is one window fewer.
    """
    standing = carriers(network)
    for position, node in of_type(network, Conv).items():
        if network.sizes.get(node.k) != 1 or (node.stride, node.low, node.high) != (1, 0, 0):
            continue
        add: list[Node] = [Copy((node.x, node.y))]
        if node.k in network.output and len(standing[node.k]) == 1:
            add.append(Fill((node.k,), Fraction(1)))
        yield Place((position,)), Edit(remove=(position,), add=add)


def merged_windows(network: Network, i: int, j: int) -> Edit:
    """Windows i (x y k1) and j (y z k2) as one window over x and a wider kernel label, which a second window makes."""
    first, second = network.nodes[i], network.nodes[j]
    assert isinstance(first, Conv)
    assert isinstance(second, Conv)
    a, b = window(first), window(second)
    step = a["stride"] * b["dilation"]
    common = gcd(a["dilation"], step)
    k = fresh("k", carriers(network))
    low, high = (a[end] + a["stride"] * b[end] for end in ("low", "high"))
    wide = Conv(first.x, second.y, k, a["stride"] * b["stride"], low, high, dilation=common, mode=first.mode)
    inner = Conv(k, second.k, first.k, stride=step // common, dilation=a["dilation"] // common)
    return Edit(remove=(i, j), add=[wide, inner])


@exact("Conv[x y k1] Conv[y z k2] => Conv[x z k] Conv[k k2 k1]")
def merge_windows(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A window over the output of a window is a window: x = s1*s2*z + (s1*d2)*k2 + d1*k1 - low.

    With g = gcd(d1, s1*d2) the wide window has stride s1*s2, dilation g and the padding of the first one. Its label k
    counts steps of g, k = (s1*d2/g)*k2 + (d1/g)*k1. The second window must have no padding: it would reach positions of
    y that do not exist, where the merged window reads elements of x. The label between the two must occur nowhere else.
    Ends: of two windows over x and y one over x remains, and the other is over a label of the kernel.
    """
    for (i, _), (j, second) in _consecutive(network):
        if (second.low, second.high) == (0, 0):
            yield Place((i, j)), merged_windows(network, i, j)


@exact("Conv[x y k1 | mode=circular] Conv[y z k2 | mode=circular] => Conv[x z k | mode=circular] Conv[k k2 k1]")
def merge_circular_windows(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A circular window over the output of a circular window of the same length is one circular window.

    As in `merge_windows`, and the padding of the second window is added to that of the first one. The first window must
    have stride 1 and as many positions as x, low + high = d1*(size(k1) - 1): then positions of y that are folded back
    into y are the outputs at positions of x that are folded back into x. The size of k1 must be known, and x must be as
    long as the sum of both paddings, if its size is known. Ends: as `merge_windows` does.
    """
    for (i, first), (j, second) in _consecutive(network):
        a, b, size = window(first), window(second), network.sizes.get(first.k)
        keeps = size is not None and a["stride"] == 1 and a["low"] + a["high"] == a["dilation"] * (size - 1)
        positive = min(a["low"], a["high"], b["low"], b["high"]) >= 0
        fits = max(a["low"] + b["low"], a["high"] + b["high"]) <= network.sizes.get(first.x, inf)
        if first.mode == second.mode == "circular" and keeps and positive and fits:
            yield Place((i, j)), merged_windows(network, i, j)


def _consecutive(network: Network) -> Iterator[tuple[tuple[int, Conv], tuple[int, Conv]]]:
    """Pairs of windows, with their positions, where the second is over the output of the first and nothing else is."""
    standing = carriers(network)
    windows = of_type(network, Conv)
    for i, first in windows.items():
        for j, second in windows.items():
            distinct = len({*first.labels, *second.labels}) == 5
            if i != j and first.y == second.x and distinct and first.y in dead_outside(network, (i, j), standing):
                yield (i, first), (j, second)
