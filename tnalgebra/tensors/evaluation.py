"""The value of a network, computed in the obvious way: slowly, in float64, with dense index patterns.

All faster code of the package is tested against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import reduce
from math import isfinite, prod
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..errors import NetworkError, SizeError, ValuesError
from ..networks import (
    Conv,
    Copy,
    Fill,
    Fuse,
    NamedTensor,
    Network,
    Node,
    node_text,
    read_network,
    shape_of,
    tensors_of,
    variables,
    window,
    with_sizes,
)
from .bases import basis_matrix, with_bases
from .contraction import MAX_ELEMENTS, Operand, contract
from .numbers import real_parts

_COMPUTED = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64)
"""Types of real and complex numbers that torch computes in."""

Values: TypeAlias = Mapping[str, Tensor]
"""name of a tensor -> its elements, with one axis for each label of its node, in their order."""


def bind(network: Network, values: Mapping[str, Any]) -> tuple[Network, dict[str, Tensor]]:
    """Check that `values` fit the network, and take the sizes of labels from their shapes.

    Args:
        values: name -> torch tensor, or anything that `torch.as_tensor` takes, for some or all of the tensors; or the
            name of a basis, such as "dct", whose rows have the first label of the tensor.

    Returns:
        The network with these sizes, and the values as torch tensors; bases are in float64.

    Raises:
        ValuesError: the network has no tensor of that name; or a value has another number of axes than its node, a
            size that contradicts another one, no elements, or NaN or infinity; or as of `with_bases`.
        SizeError: as of `with_bases`.
    """
    check_mapping(values)
    nodes = tensors_of(network)
    tensors: dict[str, Tensor] = {}
    sizes = dict(network.sizes)
    for name, value in values.items():
        if name not in nodes:
            raise ValuesError(
                f"there is a value for {name!r}, which the network does not have", tensors=" ".join(nodes) or "none"
            )
        if isinstance(value, str):
            continue
        tensor = _tensor(name, value)
        labels = nodes[name].labels
        if tensor.ndim != len(labels):
            raise ValuesError(
                f"the value of {name!r} has {tensor.ndim} axes, but its node has {len(labels)}",
                shape=tuple(tensor.shape),
                node=node_text(nodes[name]),
            )
        _check_elements(name, tensor)
        for label, size in zip(labels, tensor.shape, strict=True):
            if sizes.setdefault(label, size) != size:
                raise ValuesError(
                    f"the axis {label!r} of {name!r} has {size} elements, but the label has size {sizes[label]}",
                    shape=tuple(tensor.shape),
                    node=node_text(nodes[name], network.sizes, set()),
                )
        tensors[name] = tensor
    try:
        network = with_sizes(network, sizes)
    except SizeError as error:
        raise ValuesError("the shapes of the values contradict the network", because=error) from error
    if bases := bases_among(values):
        network = with_bases(network, bases)
        device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
        size_of = {name: network.sizes[nodes[name].labels[0]] for name in bases}
        tensors |= {name: basis_matrix(basis, size_of[name]).to(device) for name, basis in bases.items()}
    return network, {name: tensors[name] for name in values}


def bases_among(values: Mapping[str, Any]) -> dict[str, str]:
    """Name of a tensor -> name of its basis, for the values that are names."""
    return {name: value for name, value in values.items() if isinstance(value, str)}


def check_mapping(values: object) -> None:
    """Raise ValuesError if values have no names."""
    if not isinstance(values, Mapping):
        fact = f"a {type(values).__name__} is given where the values of tensors are needed"
        raise ValuesError(fact, fix="a mapping, such as {'K': weight}")


def _tensor(name: str, value: Any) -> Tensor:
    try:
        tensor = as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValuesError(
            f"the value of {name!r} is not an array of numbers", given=type(value).__name__, because=error
        ) from error
    check_computable(f"the value of {name!r}", tensor)
    return tensor


def as_tensor(value: Any) -> Tensor:
    """`torch.as_tensor`, also of arrays that torch does not share: a reversed or read-only one is copied.

    So is a view that is conjugated only when it is read, which numpy refuses.
    """
    if isinstance(value, np.ndarray) and (not value.flags.writeable or any(stride < 0 for stride in value.strides)):
        value = value.copy()
    return torch.as_tensor(value).resolve_conj().resolve_neg()


def check_computable(what: str, tensor: Tensor) -> None:
    """Raise ValuesError for a tensor without elements, or of a type that torch does not compute with, as float8."""
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "has no elements: it is on the meta device" if tensor.is_meta else f"is {tensor.layout}"
        raise ValuesError(f"{what} {kind}", fix="a dense tensor with elements")
    short = (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype not in _COMPUTED
    if short or tensor.is_quantized:
        fix = "tensor.dequantize()" if tensor.is_quantized else "tensor.float()"
        fix = "tensor.to(torch.complex64)" if tensor.is_complex() else fix
        raise ValuesError(f"{what} has the type {tensor.dtype}, in which torch does not compute", fix=fix)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor, which has elements, has neither NaN nor infinity in it."""
    low, high = torch.aminmax(real_parts(tensor.detach()))
    return isfinite(float(low)) and isfinite(float(high))


def _check_elements(name: str, tensor: Tensor) -> None:
    if tensor.numel() == 0:
        raise ValuesError(f"the value of {name!r} is empty", shape=tuple(tensor.shape), fix="sizes of at least 1")
    if (tensor.is_floating_point() or tensor.is_complex()) and not is_finite(tensor):
        count = int((~tensor.isfinite()).sum())
        raise ValuesError(f"the value of {name!r} holds NaN or infinity", where=f"{count} of {tensor.numel()} elements")


def evaluate(
    network: Network | str, values: Mapping[str, Any] | None = None, *, max_elements: int = MAX_ELEMENTS
) -> Tensor:
    """The value of a network: the product of its nodes, summed over every label that is not in the output.

    The value of a sum is the sum of the values of its terms.

    It is computed in the obvious way, in float64 with dense index patterns, as the reference for everything that is
    faster. `tn.compile` makes code for training and for large inputs. Where a value is complex, so is the result; the
    elements of reserved nodes are real.

    Args:
        network: a network, or its notation.
        values: name -> elements, for every named tensor: torch tensors, or anything that `torch.as_tensor` takes; or
            the name of an orthonormal basis, "dct", "fourier", "haar" or "hadamard", for a tensor of two labels, of
            which the first is that of the basis's rows.
        max_elements: the most elements that a dense index pattern or an intermediate may have.

    Returns:
        float64, or complex128 for complex values, with one axis for each output label, in their order; element
        [i, j, ...] is the sum over the other labels at these values of the output labels.

    Raises:
        ValuesError: a value is missing or not finite, or its shape does not fit.
        SizeError: the size of a label is unknown, or something would have more than `max_elements` elements.

    Example:
        >>> tn.evaluate(tn.parse("A[i j] B[j]"), {"A": [[1, 2], [3, 4]], "B": [1, 1]})
        tensor([3., 7.], dtype=torch.float64)
    """
    return _evaluate(read_network(network), {} if values is None else values, max_elements, absolute=False)


def magnitude(network: Network, values: Mapping[str, Any] | None = None, *, max_elements: int = MAX_ELEMENTS) -> Tensor:
    """`evaluate` with the absolute values of all elements: the scale to which rounding errors are relative."""
    return _evaluate(network, values or {}, max_elements, absolute=True)


def _evaluate(network: Network, values: Mapping[str, Any], max_elements: int, *, absolute: bool) -> Tensor:
    network, tensors = bind(network, values)
    tensors = values_for(network, tensors)
    complex_values = any(tensor.is_complex() for tensor in tensors.values())
    dtype = torch.complex128 if complex_values else torch.float64
    values_of_terms = []
    for term in network.terms:
        dense = operands(term, tensors, dtype, max_elements=max_elements)
        if absolute:
            dense = [(tensor.abs(), labels) for tensor, labels in dense]
        values_of_terms.append(contract(dense, term.output, max_elements=max_elements))
    return add_up(values_of_terms)


def add_up(values_of_terms: Sequence[Tensor]) -> Tensor:
    """The sum of the values of the terms of a network, of equal shapes."""
    return reduce(torch.add, values_of_terms)


def values_for(network: Network, values: Values) -> dict[str, Tensor]:
    """The values of the tensors that the network has, from among `values`. Raises ValuesError if one is missing."""
    names = tensors_of(network)
    missing = [name for name in names if name not in values]
    if missing:
        raise ValuesError(f"the value of {', '.join(map(repr, missing))} is missing", where=network)
    return {name: values[name] for name in names}


def operands(
    network: Network, tensors: Values, dtype: torch.dtype, *, max_elements: int = MAX_ELEMENTS
) -> list[Operand]:
    """Every node of a product as a dense tensor in `dtype`. Index patterns are on the device of the named tensors."""
    device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
    arrays = []
    for node in network.nodes:
        if isinstance(node, NamedTensor):
            array = tensors[node.name]
        else:
            array = pattern(node, network, max_elements=max_elements).to(device)
        arrays.append((array.to(dtype), node.labels))
    return arrays


def pattern(node: Node, network: Network, *, max_elements: int = MAX_ELEMENTS) -> Tensor:
    """The dense float64 array of a reserved node, with one axis for each of its labels.

    Raises:
        SizeError: the size of a label is unknown, or the array would have more than `max_elements` elements.
        NetworkError: an attribute is a variable, as in a rule.
    """
    if variables(node):
        raise NetworkError(
            f"the attributes {', '.join(v.name for v in variables(node))} are variables",
            where=node_text(node),
            fix="numbers: only the sides of a rule have variables",
        )
    shape = shape_of(network, node.labels)
    if prod(shape) > max_elements:
        raise SizeError(
            f"the dense pattern of a node would have {prod(shape)} elements",
            where=node_text(node, network.sizes, set()),
            fix=f"smaller sizes, or max_elements above {max_elements}",
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
            pass  # a position outside x equals no x, so it is left out
    return (x == position).double()
