"""Multiply-adds of a convolution whose kernel is a network, in the best order of its contractions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import prod

from ..errors import NetworkError, SizeError
from .labels import integer
from .network import Network
from .nodes import Conv, Copy, Fill, Fuse


def kernel_multiply_adds(kernel: Network, positions: Sequence[int]) -> int:
    """Count the multiply-adds of a convolution for one input, in the order of contractions that needs the fewest.

    A window label is applied together with the cores that carry it, and the input counts as large as the output
    (stride 1, padding "same"). A `Fuse` is a reshape and a `Fill` a factor: both are free. The terms of a sum are
    counted one by one, and adding them is free.

    Args:
        kernel: its output labels are the two channels and then the window's axes; all sizes are known.
        positions: sizes of the output, one for each axis of the window; all 1 for the count at one position.

    Returns:
        The least sum, over the pairwise contractions, of the product of the sizes of all labels that take part.

    Raises:
        NetworkError: the positions are not sizes; the numbers of axes differ; or the kernel has windows of its own.
        SizeError: the size of a label is unknown.

    Example:
        >>> kernel_multiply_adds(tn.parse("U[out:64 a:8] V[a in:32 kh:3 kw:3] -> [out in kh kw]"), (28, 28))
        2207744
    """
    sizes = positions if isinstance(positions, Iterable) else (-1,)  # as untyped callers may
    if not all((number := integer(size)) is not None and number >= 0 for size in sizes):
        raise NetworkError(f"the positions are {positions!r}", fix="sizes of the output, such as (28, 28)")
    if len(kernel.terms) > 1:
        return sum(kernel_multiply_adds(term, positions) for term in kernel.terms)
    if len(kernel.output) != len(positions) + 2:
        fact = f"positions={tuple(positions)} does not fit a kernel with the labels {' '.join(kernel.output) or 'none'}"
        fix = "two labels of channels, then one size of the output for each label, such as (28, 28) for 'out in kh kw'"
        raise NetworkError(fact, kernel=kernel, fix=fix)
    cores, parts = _cores(kernel)
    unknown = sorted(label for core in cores for label in core if label not in kernel.sizes)
    if unknown:
        raise SizeError(f"the size of label {unknown[0]!r} is unknown", kernel=kernel, fix="[out:64 ...]")
    first, second, *_ = (set(parts[label]) for label in kernel.output)
    open_labels = {label for labels in parts.values() for label in labels}
    return _Search([*cores, second], kernel.sizes, open_labels, first, prod(positions)).least()


def _cores(kernel: Network) -> tuple[list[set[str]], dict[str, tuple[str, ...]]]:
    """The labels of each tensor, labels of a `Copy` being one; and the parts that each output label is split into."""
    same: dict[str, str] = {}
    for node in kernel.nodes:
        if isinstance(node, Conv):
            raise NetworkError("the kernel has windows of its own", where=node, kernel=kernel)
        if isinstance(node, Copy):
            first, *others = (_last(label, same) for label in node.labels)
            same |= {label: first for label in others if label != first}
    split = {_last(node.whole, same): node.parts for node in kernel.nodes if isinstance(node, Fuse)}

    def parts(label: str) -> Iterator[str]:
        label = _last(label, same)
        if label in split:
            for part in split[label]:
                yield from parts(part)
        else:
            yield label

    cores = [{_last(label, same) for label in n.labels} for n in kernel.nodes if not isinstance(n, Copy | Fuse | Fill)]
    return cores, {label: tuple(parts(label)) for label in kernel.output}


def _last(label: str, same: Mapping[str, str]) -> str:
    while label in same:
        label = same[label]
    return label


@dataclass(frozen=True)
class _Search:
    """Dynamic programming over sets of tensors, the input last; a set's value does not depend on how it was made.

    open_labels: of the kernel, which sets without the input keep.
    out: the output's channels, which all sets keep.
    positions: number of the output's positions.
    """

    tensors: Sequence[set[str]]
    sizes: Mapping[str, int]
    open_labels: set[str]
    out: set[str]
    positions: int

    @property
    def input(self) -> int:
        return 1 << (len(self.tensors) - 1)

    def live(self, members: int) -> set[str]:
        """Labels that a set of tensors keeps; the input's windows and channels end with the last core that has them."""
        inside = {label for number, one in enumerate(self.tensors) if members >> number & 1 for label in one}
        outside = {label for number, one in enumerate(self.tensors) if not members >> number & 1 for label in one}
        return inside & (outside | (self.out if members & self.input else self.open_labels))

    def least(self) -> int:
        costs, live = {}, {}
        by_count: list[list[int]] = [[], [1 << number for number in range(len(self.tensors))]]
        for alone in by_count[1]:
            costs[alone], live[alone] = 0, self.live(alone)
        for count in range(2, len(self.tensors) + 1):
            made: dict[int, int] = {}
            for left, right in combinations_with_replacement(range(1, count), 2):
                if left + right != count:
                    continue
                for one in by_count[left]:
                    for other in by_count[right]:
                        # parts without a common label are joined only where nothing else is left
                        if one & other or not (live[one] & live[other] or count == len(self.tensors)):
                            continue
                        both = one | other
                        cost = prod(self.sizes[label] for label in live[one] | live[other])
                        cost *= self.positions if both & self.input else 1
                        total = costs[one] + costs[other] + cost
                        made[both] = min(made.get(both, total), total)
            by_count.append(list(made))
            costs |= made
            live |= {both: self.live(both) for both in made}
        return costs[(1 << len(self.tensors)) - 1]
