"""Rules about `Fuse`, the index pattern of a reshape."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from ...networks import MAX_AXES, Copy, Edit, Fill, Fuse, Network, carriers, fresh
from ..options import Place
from .shared import dead_outside, exact, of_type


@exact("Fuse[a b c] Fuse[b d e] => Fuse[a d e c]")
def merge_fuses(network: Network) -> Iterator[tuple[Place, Edit]]:
    """Parts of a part are parts, because row-major numbers nest.

    The label between the two must be closed, occur nowhere else, and occur once on each. The rule does not fire if the
    result had more than 64 axes. Ends: there is one `Fuse` fewer.
    """
    standing = carriers(network)
    fuses = of_type(network, Fuse)
    for i, outer in fuses.items():
        for j, inner in fuses.items():
            label = inner.whole
            once = outer.parts.count(label) == 1 and label != outer.whole and label not in inner.parts
            if i != j and once and label in dead_outside(network, (i, j), standing):
                place = outer.parts.index(label)
                parts = outer.parts[:place] + inner.parts + outer.parts[place + 1 :]
                if len(parts) < MAX_AXES:
                    fuse = Fuse(outer.whole, parts)
                    yield Place((i, j)), Edit(remove=(i, j), add=[fuse])


@exact("Fuse[a b c d] => Fuse[a b f] Fuse[f c d]")
def split_fuse(network: Network) -> Iterator[tuple[Place, Edit]]:
    """The last parts of a reshape, two or more of them, can be fused first. This is the inverse of `merge_fuses`.

    Ends: every `Fuse` that it makes has fewer parts. Together with `merge_fuses` it would never end.
    """
    for position, node in of_type(network, Fuse).items():
        for cut in range(1, len(node.parts) - 1):
            label = fresh("f", carriers(network))
            add = [Fuse(node.whole, (*node.parts[:cut], label)), Fuse(label, node.parts[cut:])]
            where = Place((position,), node.parts[cut:])
            yield where, Edit(remove=(position,), add=add)


@exact("Fuse[a b c] Fuse[a d e] => Copy[b d] Copy[c e]")
def cancel_fuses(network: Network) -> Iterator[tuple[Place, Edit]]:
    """Fusing parts and splitting them into the same sizes changes nothing, so that each part is its partner.

    The whole must be closed and occur nowhere else. The sizes of the parts must be known and equal one by one, because
    2 times 3 and 3 times 2 are different reshapes. Ends: there are two `Fuse` nodes fewer.
    """
    standing = carriers(network)
    for (i, first), (j, second) in combinations(of_type(network, Fuse).items(), 2):
        if first.whole != second.whole or len(first.parts) != len(second.parts):
            continue
        pairs = list(zip(first.parts, second.parts, strict=True))
        equal = all(a in network.sizes and network.sizes[a] == network.sizes.get(b) for a, b in pairs)
        dead = dead_outside(network, (i, j), standing)
        inside = first.whole not in first.parts + second.parts and first.whole in dead
        if equal and inside:
            add = [Copy(pair) for pair in pairs]
            yield Place((i, j)), Edit(remove=(i, j), add=add)


@exact("Fuse[a b] => Copy[a b]")
def unit_fuse(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A reshape into one part is the identity. Ends: there is one `Fuse` fewer."""
    for position, node in of_type(network, Fuse).items():
        if len(node.parts) == 1:
            yield Place((position,)), Edit(remove=(position,), add=[Copy(node.labels)])


@exact("Fill[a | value=v] Fuse[a b c] => Fill[b c | value=v]")
def fill_through_fuse(network: Network) -> Iterator[tuple[Place, Edit]]:
    """A flat vector that is reshaped is a flat tensor, and a mean stays a mean over as many elements.

    The whole must be closed and occur only on these two nodes, once on each, and the parts must differ. Ends: there is
    one `Fuse` fewer.
    """
    standing = carriers(network)
    for i, fill in of_type(network, Fill).items():
        for j, fuse in of_type(network, Fuse).items():
            distinct = len(set(fuse.labels)) == len(fuse.labels)
            if fill.labels == (fuse.whole,) and distinct and fuse.whole in dead_outside(network, (i, j), standing):
                add = [Fill(fuse.parts, fill.value)]
                yield Place((i, j)), Edit(remove=(i, j), add=add)
