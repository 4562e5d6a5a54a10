"""The five kinds of node: named tensors, and four whose elements follow from a formula.

A node is a frozen value; what it means is in its class docstring, what its dense array is in `evaluation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Literal, TypeAlias, get_args

from ..errors import NetworkError, explain
from .labels import MAX_AXES, MAX_DIGITS, MAX_SIZE, check_word

MAX_FILL = 10**300
"""Largest value of a Fill: it still fits a float64."""

Mode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True, slots=True)
class Variable:
    """An attribute that a rule's left side leaves open, such as the `s` of `Conv[x y k | stride=s]`."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor whose elements are given from outside; the same name twice is the same tensor (tied)."""

    name: str
    labels: tuple[str, ...]

    @property
    def attributes(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True, slots=True)
class Copy:
    """1 where all labels agree, else 0. Any number of labels: of one it is a vector of ones."""

    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        return "Copy"

    @property
    def attributes(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True, slots=True)
class Conv:
    """The index pattern of a convolution along one axis: 1 where x = stride*y + dilation*k - low, else 0.

    `x` runs over the input, `y` over the output, `k` over the window. `low` and `high` pad the two ends of x
    (a negative one crops). A padded position is left out (mode zeros) or folded back into x.
    """

    x: str
    y: str
    k: str
    stride: int | Variable = 1
    low: int | Variable = 0
    high: int | Variable = 0
    dilation: int | Variable = 1
    mode: str | Variable = "zeros"

    @property
    def name(self) -> str:
        return "Conv"

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.x, self.y, self.k)

    @property
    def attributes(self) -> dict[str, str]:
        padding = str(self.low) if self.low == self.high else f"{self.low}:{self.high}"
        written = {
            "stride": str(self.stride),
            "padding": padding,
            "dilation": str(self.dilation),
            "mode": str(self.mode),
        }
        defaults = {"stride": "1", "padding": "0", "dilation": "1", "mode": "zeros"}
        return {key: text for key, text in written.items() if text != defaults[key]}


@dataclass(frozen=True, slots=True)
class Fuse:
    """A reshape: 1 where whole is the row-major number of the parts (the last part runs fastest), else 0."""

    whole: str
    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        return "Fuse"

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.whole, *self.parts)

    @property
    def attributes(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True, slots=True)
class Fill:
    """`value` at every element; "mean" stands for one over the number of elements. Without labels: a scalar."""

    labels: tuple[str, ...]
    value: Fraction | Literal["mean"] | Variable = Fraction(1)

    @property
    def name(self) -> str:
        return "Fill"

    @property
    def attributes(self) -> dict[str, str]:
        return {"value": str(self.value)}


Node: TypeAlias = NamedTensor | Copy | Conv | Fuse | Fill

RESERVED = ("Copy", "Conv", "Fuse", "Fill")
"""Names that no tensor can have."""


def relabel(node: Node, labels: Mapping[str, str]) -> Node:
    """The same node with every label that `labels` names replaced."""
    new = tuple(labels.get(label, label) for label in node.labels)
    if new == node.labels:
        return node
    match node:
        case Conv():
            return replace(node, x=new[0], y=new[1], k=new[2])
        case Fuse():
            return Fuse(new[0], new[1:])
        case _:
            return replace(node, labels=new)


def rename(node: Node, names: Mapping[str, str]) -> Node:
    """The same node with its tensor's name replaced; other nodes stay as they are."""
    return replace(node, name=names.get(node.name, node.name)) if isinstance(node, NamedTensor) else node


def variables(node: Node) -> tuple[Variable, ...]:
    """The attributes a node leaves open: none in any network that can be evaluated."""
    found = (getattr(node, field.name) for field in fields(node))
    return tuple(value for value in found if isinstance(value, Variable))


def node_text(node: Node, sizes: Mapping[str, int] | None = None, seen: set[str] | None = None) -> str:
    """The node in the notation, each size in `sizes` at the first label not yet in `seen` (which grows)."""
    words = []
    for label in node.labels:
        first = seen is not None and label not in seen
        words.append(f"{label}:{sizes[label]}" if first and sizes and label in sizes else label)
        if seen is not None:
            seen.add(label)
    attributes = [f"{key}={text}" for key, text in node.attributes.items()]
    return f"{node.name}[{' '.join([*words, '|', *attributes] if attributes else words)}]"


def check_node(node: Node) -> None:
    """Raise NetworkError if a node by itself would not mean anything."""
    if len(node.labels) > MAX_AXES:
        fix = f"at most {MAX_AXES}, torch's own limit: fuse some labels"
        raise NetworkError(explain(f"node {node.name!r} has {len(node.labels)} axes", fix=fix), at=node)
    for label in node.labels:
        check_word(label, what="label")
    match node:
        case NamedTensor():
            check_word(node.name, what="tensor name")
            if node.name in RESERVED:
                fact = f"{node.name!r} names a reserved node, not a tensor"
                raise NetworkError(explain(fact, fix="another name"), at=node)
        case Fuse() if not node.parts:
            raise _wrong(node, "Fuse has no parts", fix="Fuse[whole part part ...]")
        case Conv():
            for attribute in ("stride", "low", "high", "dilation"):
                number: object = getattr(node, attribute)
                if isinstance(number, Variable):
                    continue
                if not isinstance(number, int) or abs(number) > MAX_SIZE:
                    raise _wrong(node, f"{attribute} is {number!r}", fix=f"an integer of at most {MAX_SIZE}")
                if attribute in ("stride", "dilation") and number < 1:
                    raise _wrong(node, f"{attribute} is {number}", fix=f"a {attribute} of at least 1")
            if not isinstance(node.mode, Variable) and node.mode not in MODES:
                raise _wrong(node, f"mode is {node.mode!r}", fix="one of " + ", ".join(MODES))
        case Fill():
            _check_value(node)


def _check_value(node: Fill) -> None:
    value: object = node.value
    if value == "mean" or isinstance(value, Variable):
        return
    if not isinstance(value, int | Fraction):
        raise _wrong(node, f"Fill has value {value!r}", fix="a Fraction, an integer, or 'mean'")
    if abs(Fraction(value)) > MAX_FILL or len(str(value)) > MAX_DIGITS:
        raise NetworkError(
            explain(
                f"Fill has a value of {len(str(value))} digits",
                where=f"Fill[{' '.join(node.labels)}]",
                fix=f"at most {MAX_DIGITS}, and at most 1e300",
            ),
            at=node,
        )


def _wrong(node: Node, fact: str, *, fix: str) -> NetworkError:
    return NetworkError(explain(fact, where=node_text(node), fix=fix), at=node)
