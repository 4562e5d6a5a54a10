"""What the nodes say about the sizes of their labels: inference to a fixed point, contradictions by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

from .errors import SizeError, explain
from .labels import MAX_SIZE
from .nodes import Conv, Copy, Fuse, NamedTensor, Node, Variable, node_text, variables

Fact = tuple[str, int, str]
"""A label, the size some node gives it, and the text of that node."""


def output_size(x: int, k: int, *, stride: int, low: int, high: int, dilation: int) -> int:
    """Positions a window of k elements takes on x elements: floor((x + low + high - d(k-1) - 1)/s) + 1."""
    return (x + low + high - dilation * (k - 1) - 1) // stride + 1


def input_size(y: int, k: int, *, stride: int, low: int, high: int, dilation: int) -> int:
    """The fewest x elements on which a window of k elements takes y positions."""
    return stride * (y - 1) + dilation * (k - 1) + 1 - low - high


def infer_sizes(nodes: Sequence[Node], given: Mapping[str, int]) -> dict[str, int]:
    """Every size that follows from `given`: through ties, copies, fusions and windows.

    The size of a window's input does not follow from its output (a stride forgets up to stride - 1 elements);
    when nothing else determines it, it is the smallest that fits.

    Raises:
        SizeError: two nodes (or a node and `given`) demand different sizes of one label; both are named.
    """
    known: dict[str, int] = {}
    reasons: dict[str, str] = {}

    def learn(facts: Iterable[Fact]) -> bool:
        news = False
        for label, size, reason in facts:
            if not 1 <= size <= MAX_SIZE:
                raise SizeError(
                    explain(
                        f"label {label!r} would have size {size}",
                        where=reason,
                        fix=f"sizes are 1 to {MAX_SIZE}",
                    )
                )
            if known.setdefault(label, size) != size:
                raise SizeError(
                    explain(
                        f"label {label!r} has two sizes",
                        first=f"{known[label]}, from {reasons[label]}",
                        second=f"{size}, from {reason}",
                    )
                )
            if label not in reasons:
                reasons[label] = reason
                news = True
        return news

    learn((label, size, f"{label}={size}, as given") for label, size in given.items())
    closed = [node for node in nodes if not variables(node)]
    while True:
        while learn(list(_exact_facts(closed, known))):
            pass
        smallest: dict[str, Fact] = {}
        for label, size, reason in _smallest_inputs(closed, known):
            if label not in smallest or size > smallest[label][1]:
                smallest[label] = (label, size, reason)
        if not learn(smallest.values()):
            break
    for node in closed:
        if isinstance(node, Conv):
            _check_fold(node, known)
    return known


def _exact_facts(nodes: Sequence[Node], known: Mapping[str, int]) -> Iterator[Fact]:
    tied: dict[str, NamedTensor] = {}
    for node in nodes:
        match node:
            case NamedTensor():
                first = tied.setdefault(node.name, node)
                for a, b in zip(first.labels, node.labels, strict=True):
                    if a in known:
                        yield b, known[a], node_text(first)
                    elif b in known:
                        yield a, known[b], node_text(node)
            case Copy():
                size = next((known[label] for label in node.labels if label in known), None)
                if size is not None:
                    yield from ((label, size, node_text(node)) for label in node.labels)
            case Fuse():
                yield from _fuse_facts(node, known)
            case Conv():
                yield from _conv_facts(node, known)


def _fuse_facts(node: Fuse, known: Mapping[str, int]) -> Iterator[Fact]:
    unknown = [part for part in node.parts if part not in known]
    product = prod(known[part] for part in node.parts if part in known)
    if not unknown:
        yield node.whole, product, f"{node_text(node)} ({node.whole} is the product of its parts)"
    elif len(unknown) == 1 and node.whole in known:
        size, rest = divmod(known[node.whole], product)
        if rest:
            raise SizeError(
                explain(
                    f"label {node.whole!r} of size {known[node.whole]} does not divide into parts of {product}",
                    where=node_text(node, known, set()),
                    fix=f"a size of {node.whole!r} that is a multiple of {product}",
                )
            )
        yield unknown[0], size, node_text(node)


def window(node: Conv) -> dict[str, int]:
    """The integers of a window, as keyword arguments of `output_size` and `input_size`."""
    numbers = {"stride": node.stride, "low": node.low, "high": node.high, "dilation": node.dilation}
    return {key: number for key, number in numbers.items() if not isinstance(number, Variable)}


def _conv_facts(node: Conv, known: Mapping[str, int]) -> Iterator[Fact]:
    x, y, k = (known.get(label) for label in node.labels)
    if x is not None and k is not None:
        size = output_size(x, k, **window(node))
        if size < 1:
            reach = window(node)["dilation"] * (k - 1) + 1
            raise SizeError(
                explain(
                    f"the window over {node.k!r} reaches {reach} elements, more than the padded {node.x!r} has",
                    where=node_text(node, known, set()),
                    fix=f"a larger {node.x!r}, more padding, a smaller {node.k!r} or dilation",
                )
            )
        yield node.y, size, node_text(node)
    elif x is not None and y is not None and node.stride == 1:
        numbers = window(node)
        reach = x + numbers["low"] + numbers["high"] - y
        if reach % numbers["dilation"]:
            raise SizeError(
                explain(
                    f"no size of {node.k!r} takes {node.x!r} of {x} to {node.y!r} of {y}",
                    where=node_text(node),
                )
            )
        yield node.k, reach // numbers["dilation"] + 1, node_text(node)


def _smallest_inputs(nodes: Sequence[Node], known: Mapping[str, int]) -> Iterator[Fact]:
    for node in nodes:
        if isinstance(node, Conv) and node.x not in known and node.y in known and node.k in known:
            size = input_size(known[node.y], known[node.k], **window(node))
            yield node.x, size, f"{node_text(node)} (the smallest input that fits)"


def _check_fold(node: Conv, known: Mapping[str, int]) -> None:
    """torch's limits: reflection never reaches a whole length beyond the end, a circle goes round once."""
    x = known.get(node.x)
    widest = max(window(node)["low"], window(node)["high"])
    limit = {"reflect": (x or 0) - 1, "circular": x or 0}.get(str(node.mode))
    if x is not None and limit is not None and widest > limit:
        raise SizeError(
            explain(
                f"mode {node.mode} cannot pad {node.x!r} of size {x} by {widest}",
                where=node_text(node, known, set()),
                fix=f"padding of at most {limit}",
            )
        )
