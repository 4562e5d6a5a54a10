"""The oracle: what a network is, computed slowly and obviously, in float64, with every index pattern dense."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import NetworkError, SizeError, ValuesError, explain
from ..networks import (
    Conv,
    Copy,
    Fill,
    Fuse,
    NamedTensor,
    Network,
    Node,
    node_text,
    shape_of,
    tensor_nodes,
    variables,
    window,
    with_sizes,
)
from .contraction import MAX_ELEMENTS, Operand, contract

Values: TypeAlias = Mapping[str, Tensor]
"""name of a tensor -> its elements, one axis a label, in the labels' order."""


def bind(network: Network, values: Mapping[str, Any]) -> tuple[Network, dict[str, Tensor]]:
    """Check that `values` fit the network; learn the sizes that their shapes determine.

    Args:
        values: name -> torch tensor (or anything `torch.as_tensor` takes), for some or all of the tensors.

    Returns:
        The network with those sizes, and the values as torch tensors.

    Raises:
        ValuesError: a name the network does not have, another number of axes, a size that contradicts, a value
            that is not finite, empty or complex.
    """
    names = tensor_nodes(network)
    tensors: dict[str, Tensor] = {}
    sizes = dict(network.sizes)
    for name, value in values.items():
        if name not in names:
            raise ValuesError(
                explain(f"a value is given for {name!r}, no tensor of the network", tensors=" ".join(names) or "none")
            )
        tensor = _tensor(name, value)
        labels = network.nodes[names[name][0]].labels
        if tensor.ndim != len(labels):
            raise ValuesError(
                explain(
                    f"the value of {name!r} has {tensor.ndim} axes, its node has {len(labels)}",
                    shape=tuple(tensor.shape),
                    node=node_text(network.nodes[names[name][0]]),
                )
            )
        _check_elements(name, tensor)
        for label, size in zip(labels, tensor.shape, strict=True):
            if sizes.setdefault(label, size) != size:
                raise ValuesError(
                    explain(
                        f"the axis {label!r} of {name!r} has {size} elements, the label has size {sizes[label]}",
                        shape=tuple(tensor.shape),
                        node=node_text(network.nodes[names[name][0]], network.sizes, set()),
                    )
                )
        tensors[name] = tensor
    try:
        return with_sizes(network, sizes), tensors
    except SizeError as error:
        raise ValuesError(explain("the shapes of the values contradict the network", because=error)) from error


def _tensor(name: str, value: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValuesError(
            explain(f"the value of {name!r} is not an array of numbers", given=type(value).__name__, because=error)
        ) from error
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "has no elements: it is on the meta device" if tensor.is_meta else f"is {tensor.layout}"
        raise ValuesError(explain(f"the value of {name!r} {kind}", fix="a dense tensor with elements"))
    return tensor


def _check_elements(name: str, tensor: Tensor) -> None:
    if tensor.numel() == 0:
        raise ValuesError(
            explain(f"the value of {name!r} is empty", shape=tuple(tensor.shape), fix="sizes of at least 1")
        )
    if tensor.is_complex():
        raise ValuesError(explain(f"the value of {name!r} is complex", fix="real numbers"))
    if tensor.is_floating_point() and not tensor.isfinite().all():
        count = int((~tensor.isfinite()).sum())
        raise ValuesError(
            explain(f"the value of {name!r} holds NaN or infinity", where=f"{count} of {tensor.numel()} elements")
        )


def evaluate(network: Network, values: Mapping[str, Any] | None = None, *, max_elements: int = MAX_ELEMENTS) -> Tensor:
    """The value of a network: the product of its nodes, summed over every label that is not in the output.

    Args:
        values: name -> elements, for every named tensor.
        max_elements: refuse a dense index pattern or an intermediate with more elements.

    Returns:
        float64, one axis for each output label, in their order; element [i, j, ...] is the sum at those labels.

    Raises:
        ValuesError: a value is missing, not finite, or does not fit.
        SizeError: a size is not known, or something would have more than `max_elements` elements.
    """
    return _evaluate(network, values or {}, max_elements, absolute=False)


def magnitude(network: Network, values: Mapping[str, Any] | None = None, *, max_elements: int = MAX_ELEMENTS) -> Tensor:
    """`evaluate` with the absolute value of every element of every node: what rounding errors are measured against."""
    return _evaluate(network, values or {}, max_elements, absolute=True)


def _evaluate(network: Network, values: Mapping[str, Any], max_elements: int, *, absolute: bool) -> Tensor:
    network, tensors = bind(network, values)
    dense = operands(network, values_for(network, tensors), torch.float64, max_elements=max_elements)
    if absolute:
        dense = [(tensor.abs(), labels) for tensor, labels in dense]
    return contract(dense, network.output, max_elements=max_elements)


def values_for(network: Network, values: Values) -> dict[str, Tensor]:
    """The values of a network's own tensors, out of those of a larger one. Raises ValuesError if one is missing."""
    missing = [name for name in tensor_nodes(network) if name not in values]
    if missing:
        raise ValuesError(explain(f"no value for {', '.join(map(repr, missing))}", where=network))
    return {name: values[name] for name in tensor_nodes(network)}


def operands(
    network: Network, tensors: Values, dtype: torch.dtype, *, max_elements: int = MAX_ELEMENTS
) -> list[Operand]:
    """Every node as a dense tensor in `dtype`, index patterns on the device of the named tensors."""
    device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
    found = []
    for node in network.nodes:
        if isinstance(node, NamedTensor):
            dense = tensors[node.name]
        else:
            dense = pattern(node, network, max_elements=max_elements).to(device)
        found.append((dense.to(dtype), node.labels))
    return found


def pattern(node: Node, network: Network, *, max_elements: int = MAX_ELEMENTS) -> Tensor:
    """The dense float64 array of a reserved node, one axis for each of its labels.

    Raises:
        SizeError: a size is not known, or the array would have more than `max_elements` elements.
        NetworkError: an attribute is a variable.
    """
    if variables(node):
        raise NetworkError(
            explain(
                f"attributes are variables: {', '.join(v.name for v in variables(node))}",
                where=node_text(node),
                fix="numbers; only rules have variables",
            )
        )
    shape = shape_of(network, node.labels)
    if prod(shape) > max_elements:
        raise SizeError(
            explain(
                f"the dense pattern of a node would have {prod(shape)} elements",
                where=node_text(node, network.sizes, set()),
                fix=f"smaller sizes, or max_elements above {max_elements}",
            )
        )
    axes = [
        torch.arange(size).reshape([-1 if a == b else 1 for b in range(len(shape))]) for a, size in enumerate(shape)
    ]
    match node:
        case Fill():
            value = Fraction(1, prod(shape)) if node.value == "mean" else Fraction(str(node.value))
            return torch.full(shape, float(value), dtype=torch.float64)
        case Copy():
            agree = torch.ones(shape, dtype=torch.bool)
            for axis in axes[1:]:
                agree = agree & (axis == axes[0])
            return agree.double()
        case Fuse():
            number = torch.zeros((), dtype=torch.int64)
            for axis, size in zip(axes[1:], shape[1:], strict=True):
                number = number * size + axis
            return (axes[0] == number).double()
        case Conv():
            return _window_pattern(node, axes, shape)
        case _:
            raise AssertionError(f"{node_text(node)} has no pattern")


def _window_pattern(node: Conv, axes: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    x, y, k = axes
    numbers = window(node)
    position = numbers["stride"] * y + numbers["dilation"] * k - numbers["low"]
    size = shape[0]
    match node.mode:
        case "reflect":
            position = position.abs()
            position = torch.where(position >= size, 2 * (size - 1) - position, position)
        case "replicate":
            position = position.clamp(0, size - 1)
        case "circular":
            position = position % size
        case _:
            pass  # a position outside x meets no x: it is left out
    return (x == position).double()
