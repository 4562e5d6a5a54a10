"""The sizes of labels: every size that follows from the nodes and the known sizes, and errors for contradictions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from operator import index
from typing import TypeAlias

from ..errors import SizeError
from .labels import MAX_SIZE
from .nodes import Conv, Copy, Fill, Fuse, NamedTensor, Node, Variable, node_text, variables


@dataclass(frozen=True, slots=True)
class _Tie:
    """An axis whose two labels on two occurrences of one tensor have the same size."""

    first: NamedTensor
    second: NamedTensor
    axis: int

    @property
    def labels(self) -> tuple[str, str]:
        return self.first.labels[self.axis], self.second.labels[self.axis]


Constraint: TypeAlias = _Tie | Copy | Fuse | Conv

Reason: TypeAlias = tuple[Node, str]
"""The node that determines the size of a label, and a remark; only errors make a text of them."""

Fact: TypeAlias = tuple[str, int, Reason]
"""A label, its size according to a node, and the reason."""


def output_size(x: int, k: int, *, stride: int, low: int, high: int, dilation: int) -> int:
    """The number of positions of a window of k elements on x: floor((x + low + high - d(k-1) - 1)/s) + 1."""
    return (x + low + high - dilation * (k - 1) - 1) // stride + 1


def input_size(y: int, k: int, *, stride: int, low: int, high: int, dilation: int) -> int:
    """The smallest number x of elements on which a window of k elements has y positions."""
    return stride * (y - 1) + dilation * (k - 1) + 1 - low - high


def infer_sizes(nodes: Sequence[Node], known: Mapping[str, int]) -> dict[str, int]:
    """Every size that follows from `known`: through ties, copies, fusions and windows.

    With a stride, inputs of several sizes have the same number of positions. If nothing else determines the size of a
    window's input, it is the smallest one.

    Raises:
        SizeError: two nodes, or a node and `known`, give one label different sizes; the message names both.
    """
    return _Inference(nodes).run(known)


class _Inference:
    """Sizes spread from label to label along a queue, so that the time is linear in the length of the network."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.known: dict[str, int] = {}
        self.reasons: dict[str, Reason | None] = {}
        self.constraints = list(_constraints(nodes))
        self.watching: dict[str, list[int]] = {}
        for number, constraint in enumerate(self.constraints):
            for label in dict.fromkeys(constraint.labels):
                self.watching.setdefault(label, []).append(number)
        self.queue = deque(range(len(self.constraints)))
        self.queued = set(self.queue)
        self.without_input: dict[int, Conv] = {}
        """Windows whose y and k are known, and whose x may not be."""

    def run(self, known: Mapping[str, int]) -> dict[str, int]:
        for label, size in known.items():
            try:
                self._learn(label, index(size), None)
            except TypeError:
                raise SizeError(f"the size of label {label!r} is {size!r}", fix="an integer") from None
        self._spread()
        while smallest := self._smallest_inputs():
            # the largest first, because it may determine the others
            for _, facts in groupby(smallest, key=lambda fact: fact[1]):
                for label, size, reason in [fact for fact in facts if fact[0] not in self.known]:
                    self._learn(label, size, reason)
                self._spread()
        for constraint in self.constraints:
            if isinstance(constraint, Conv):
                _check_fold(constraint, self.known)
        return self.known

    def _learn(self, label: str, size: int, reason: Reason | None) -> None:
        if not 1 <= size <= MAX_SIZE:
            raise SizeError(
                f"label {label!r} would have size {size}",
                where=_reason_text(label, size, reason),
                fix=f"sizes are 1 to {MAX_SIZE}",
                at=reason and reason[0],
                label=label,
            )
        if label not in self.known:
            self.known[label] = size
            self.reasons[label] = reason
            for number in self.watching.get(label, ()):
                if number not in self.queued:
                    self.queue.append(number)
                    self.queued.add(number)
        elif self.known[label] != size:
            before = self.known[label]
            raise SizeError(
                f"label {label!r} has two sizes",
                first=f"{before}, from {_reason_text(label, before, self.reasons[label])}",
                second=f"{size}, from {_reason_text(label, size, reason)}",
                at=reason and reason[0],
                label=label,
            )

    def _spread(self) -> None:
        """Learn all sizes that follow without a choice."""
        while self.queue:
            number = self.queue.popleft()
            self.queued.discard(number)
            constraint = self.constraints[number]
            for label, size, reason in list(_facts(constraint, self.known)):
                self._learn(label, size, reason)
            if isinstance(constraint, Conv) and constraint.y in self.known and constraint.k in self.known:
                self.without_input[number] = constraint

    def _smallest_inputs(self) -> list[Fact]:
        """The smallest possible size of each window's input that is not known, in descending order."""
        smallest: dict[str, Fact] = {}
        for number, node in list(self.without_input.items()):
            if node.x in self.known:
                del self.without_input[number]
                continue
            numbers, y, k = window(node), self.known[node.y], self.known[node.k]
            size, least = input_size(y, k, **numbers), _least_input(node)
            if size < least and output_size(least, k, **numbers) == y:
                size = least
            if node.x not in smallest or size > smallest[node.x][1]:
                smallest[node.x] = (node.x, size, (node, " (the smallest input that fits)"))
        return sorted(smallest.values(), key=lambda fact: -fact[1])


def _constraints(nodes: Sequence[Node]) -> Iterator[Constraint]:
    first: dict[str, NamedTensor] = {}
    for node in nodes:
        match node:
            case NamedTensor():
                other = first.setdefault(node.name, node)
                if other is not node:
                    yield from (_Tie(other, node, axis) for axis in range(len(node.labels)))
            case Fill():
                pass
            case _:
                if not variables(node):
                    yield node


def _facts(constraint: Constraint, known: Mapping[str, int]) -> Iterable[Fact]:
    match constraint:
        case _Tie():
            return _tie_facts(constraint, known)
        case Copy():
            sizes = (known[label] for label in constraint.labels if label in known)
            size = next(sizes, None)
            return [] if size is None else [(label, size, (constraint, "")) for label in constraint.labels]
        case Fuse():
            return _fuse_facts(constraint, known)
        case Conv():
            return _conv_facts(constraint, known)


def _reason_text(label: str, size: int, reason: Reason | None) -> str:
    return f"{label}={size}, as given" if reason is None else node_text(reason[0]) + reason[1]


def _tie_facts(tie: _Tie, known: Mapping[str, int]) -> Iterator[Fact]:
    a, b = tie.labels
    if a in known:
        yield b, known[a], (tie.first, "")
    elif b in known:
        yield a, known[b], (tie.second, "")


def _fuse_facts(node: Fuse, known: Mapping[str, int]) -> Iterator[Fact]:
    unknown = [part for part in node.parts if part not in known]
    product = prod(known[part] for part in node.parts if part in known)
    if not unknown:
        yield node.whole, product, (node, f" ({node.whole} is the product of its parts)")
    elif len(unknown) == 1 and node.whole in known:
        size, rest = divmod(known[node.whole], product)
        if rest:
            fact = f"label {node.whole!r} of size {known[node.whole]} cannot be split into parts of {product}"
            raise SizeError(fact, where=node_text(node, known, set()), fix=f"a multiple of {product}", at=node)
        yield unknown[0], size, (node, "")


def window(node: Conv) -> dict[str, int]:
    """The numbers of a window, as keyword arguments of `output_size` and `input_size`."""
    numbers = {"stride": node.stride, "low": node.low, "high": node.high, "dilation": node.dilation}
    return {key: number for key, number in numbers.items() if not isinstance(number, Variable)}


def _conv_facts(node: Conv, known: Mapping[str, int]) -> Iterator[Fact]:
    x, y, k = (known.get(label) for label in node.labels)
    if x is not None and k is not None:
        size = output_size(x, k, **window(node))
        if size < 1:
            reach = window(node)["dilation"] * (k - 1) + 1
            fact = f"the window over {node.k!r} spans {reach} elements, more than the padded {node.x!r} has"
            fix = f"a larger {node.x!r}, more padding, a smaller {node.k!r} or dilation"
            raise SizeError(fact, where=node_text(node, known, set()), fix=fix, at=node)
        yield node.y, size, (node, "")
    elif x is not None and y is not None and node.stride == 1:
        numbers = window(node)
        reach = x + numbers["low"] + numbers["high"] - y
        if reach % numbers["dilation"]:
            fact = f"a window over {node.x!r} of {x} has {y} positions {node.y!r} for no size of {node.k!r}"
            raise SizeError(fact, where=node_text(node), at=node)
        yield node.k, reach // numbers["dilation"] + 1, (node, "")


def _least_input(node: Conv) -> int:
    """The smallest input that torch can pad: longer than the padding in mode reflect, as long in mode circular."""
    widest = max(window(node)["low"], window(node)["high"])
    return max(1, {"reflect": widest + 1, "circular": widest}.get(str(node.mode), 1))


def _check_fold(node: Conv, known: Mapping[str, int]) -> None:
    """Refuse an input that is shorter than its mode of padding allows."""
    x = known.get(node.x)
    widest = max(window(node)["low"], window(node)["high"])
    if x is not None and x < _least_input(node):
        limit = x - 1 if node.mode == "reflect" else x
        fact = f"mode {node.mode} cannot pad {node.x!r} of size {x} by {widest}"
        raise SizeError(fact, where=node_text(node, known, set()), fix=f"padding of at most {limit}", at=node)
