"""What is done to the whole value: a factor and a bias, put where they cost least."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from .operations import (
    Add,
    Arrange,
    Axis,
    ChannelsLast,
    Convolve,
    Load,
    Operation,
    Product,
    Rename,
    Scale,
    Sizes,
    shape_in,
)

NUMBERS = ("source", "left", "right", "kernel", "vector", "bias")
"""Fields of operations that name a value by its position."""


def inserted(operations: Sequence[Operation], place: int, new: Operation, *, passed: bool = False) -> list[Operation]:
    """The operations with a new one at `place`; those from there on move by one.

    Args:
        passed: whether what took the value before the new one takes the new one instead.
    """
    edge = place - 1 if passed else place
    after = [renumbered(operation, lambda n: n + 1 if n >= edge else n) for operation in operations[place:]]
    return [*operations[:place], new, *after]


def renumbered(operation: Operation, number: Callable[[int], int]) -> Operation:
    """The operation with the positions of the values it takes replaced."""
    changes: dict[str, Any] = {}
    for name in NUMBERS:
        value = getattr(operation, name, None)
        if isinstance(value, int):
            changes[name] = number(value)
    return replace(operation, **changes)


def scaled(
    operations: Sequence[Operation],
    factor: float,
    sized: Sequence[tuple[str, int]],
    once: Collection[str],
    sizes: Sizes,
) -> list[Operation]:
    """Times a factor, and sizes known at the call: on the smallest weight that stands once, else on the value.

    Args:
        once: names of tensors that stand once in the network.
    """
    if factor == 1 and not sized:
        return list(operations)
    loads = [
        (prod(shape_in(operation.axes, sizes)), number)
        for number, operation in enumerate(operations)
        if isinstance(operation, Load) and operation.kind != "input" and operation.name in once
    ]
    last = len(operations) - 1
    if sized or not loads:
        return [*operations, Scale(last, operations[last].axes, factor, tuple(sized))]
    place = min(loads)[1]
    scale = Scale(place, operations[place].axes, factor, ())
    return inserted(operations, place + 1, scale, passed=True)


def biased(operations: Sequence[Operation], name: str, label: str) -> list[Operation]:
    """A vector added along one label of the value: by the call that makes the label, if that can, else at the end."""
    load = Load(name, ((label,),), "weight")
    place = _adds_bias(operations, label)
    found = inserted(operations, 0, load)
    if place is None:
        axes = found[-1].axes
        return [*found, Add(len(found) - 1, 0, axes, axes.index((label,)))]
    call = found[place + 1]
    assert isinstance(call, Convolve | Product)
    found[place + 1] = replace(call, bias=0)
    return found


def _adds_bias(operations: Sequence[Operation], label: str) -> int | None:
    """The convolution or linear product whose channels are the label.

    Between it and the value are the same elements in another order at most.
    """
    number = len(operations) - 1
    axis: Axis = (label,)
    while True:
        operation = operations[number]
        match operation:
            case Arrange() | ChannelsLast() if axis in operations[operation.source].axes:
                number = operation.source
            case Rename():
                before = operations[operation.source].axes
                axis = before[operation.axes.index(axis)]
                number = operation.source
            case Convolve():
                return number if operation.axes[1] == axis else None
            case Product():
                return number if operation.form == "linear" and operation.axes[-1] == axis else None
            case _:
                return None
