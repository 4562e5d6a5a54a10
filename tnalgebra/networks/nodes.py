"""The five kinds of node: named tensors, and four kinds of reserved nodes, whose elements follow from a formula.

A node is a frozen value. Its docstring says what its elements are; `tensors.evaluation` makes them as a dense array.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from numbers import Integral, Real
from typing import Literal, TypeAlias, get_args

from ..errors import NetworkError

Mode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True, slots=True)
class Variable:
    """An attribute that the left side of a rule leaves open, such as the `s` of `Conv[x y k | stride=s]`."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor whose elements are values. Two nodes with the same name are the same tensor: they are tied."""

    name: str
    labels: tuple[str, ...]

    @property
    def attributes(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True, slots=True)
class Copy:
    """Element [a, b, ...] is 1 where all labels agree, and otherwise 0. With one label it is a vector of ones."""

    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        return "Copy"

    @property
    def attributes(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True, slots=True)
class Conv:
    """The index pattern of a convolution along one axis.

    Element [x, y, k] is 1 where x = stride * y + dilation * k - low, and otherwise 0; `x` is the position in the
    input, `y` in the output, `k` in the window. `low` and `high` are how many positions the two ends of x are padded
    by (a negative number crops). With mode "zeros" the padded positions are left out; with "reflect", "replicate" and
    "circular" they are folded back into x, as in torch.
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
    """A reshape: element [whole, part, ...] is 1 where `whole` is the row-major number of the parts, and otherwise 0.

    The last part runs fastest.
    """

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
    """Every element is `value`; "mean" is one over the number of elements. Without labels it is a scalar."""

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
"""The names of the reserved nodes, which tensors cannot have."""


def relabel(node: Node, labels: Mapping[str, str]) -> Node:
    """The same node with labels replaced: old -> new."""
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
    """The same node with its name replaced (old -> new) if it is a named tensor; other nodes are unchanged."""
    return replace(node, name=names.get(node.name, node.name)) if isinstance(node, NamedTensor) else node


def exact_number(value: object) -> Fraction | None:
    """A number as a fraction, a float as its shortest decimal; None if it is not a real number, as True is not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    if not math.isfinite(value):
        raise NetworkError(f"the factor of a network is {value}", fix="a finite number")
    return Fraction(int(value)) if isinstance(value, Integral) else Fraction(str(value))


def scaled(nodes: Sequence[Node], factor: Fraction) -> list[Node]:
    """The nodes of a product that is multiplied by a number, in which all numbers are one `Fill`, or none for 1."""
    rest = []
    for node in nodes:
        if isinstance(node, Fill) and not node.labels and isinstance(node.value, int | Fraction):
            factor *= node.value
        else:
            rest.append(node)
    return rest if rest and factor == 1 else [*rest, Fill((), factor)]


def variables(node: Node) -> tuple[Variable, ...]:
    """The attributes that a node leaves open. A network that can be evaluated has no such node."""
    values = (getattr(node, field.name) for field in fields(node))
    return tuple(value for value in values if isinstance(value, Variable))


def node_text(node: Node, sizes: Mapping[str, int] | None = None, seen: set[str] | None = None) -> str:
    """The node in the notation.

    Args:
        sizes: label -> size. A size is written where its label occurs for the first time.
        seen: the labels that occurred before, to which the node's labels are added. Without it no size is written.
    """
    words = []
    for label in node.labels:
        first = seen is not None and label not in seen
        words.append(f"{label}:{sizes[label]}" if first and sizes and label in sizes else label)
        if seen is not None:
            seen.add(label)
    attributes = [f"{key}={text}" for key, text in node.attributes.items()]
    return f"{node.name}[{' '.join([*words, '|', *attributes] if attributes else words)}]"
