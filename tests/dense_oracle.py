"""A second oracle, in plain numpy: every element from the definitions in the docstrings of `tnalgebra.nodes`."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tnalgebra.networks.network import Network
from tnalgebra.networks.nodes import Conv, Copy, Fill, Fuse, NamedTensor, Node, Variable

PADDING = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""torch's name of a way to pad -> numpy's."""

Array = NDArray[np.float64]


def dense_value(network: Network, values: Mapping[str, Tensor]) -> Array:
    """The value of a network with known sizes: for each term one sum of products over all labels at once."""
    return np.asarray(sum(_dense_product(term, values) for term in network.terms))


def _dense_product(network: Network, values: Mapping[str, Tensor]) -> Array:
    numbers = {label: number for number, label in enumerate(network.sizes)}
    operands: list[object] = []
    for node in network.nodes:
        operands += [dense_node(node, network, values), [numbers[label] for label in node.labels]]
    return np.asarray(np.einsum(*operands, [numbers[label] for label in network.output], optimize=False))


def dense_node(node: Node, network: Network, values: Mapping[str, Tensor]) -> Array:
    """One axis for each place of a label on the node."""
    if isinstance(node, NamedTensor):
        return values[node.name].double().numpy()
    shape = tuple(network.sizes[label] for label in node.labels)
    array = np.zeros(shape)
    for element in np.ndindex(shape):
        array[element] = _element(node, element, shape)
    return array


def _element(node: Node, element: tuple[int, ...], shape: tuple[int, ...]) -> float:
    match node:
        case Copy():
            return float(len(set(element)) <= 1)
        case Fuse():
            whole, *parts = element
            return float(whole == (np.ravel_multi_index(parts, shape[1:]) if parts else 0))
        case Fill():
            return 1 / prod(shape) if node.value == "mean" else float(node.value)  # type: ignore[arg-type]
        case Conv():
            x, y, k = element
            assert not any(isinstance(number, Variable) for number in (node.stride, node.dilation, node.low, node.high))
            padded = _padded(shape[0], int(node.low), int(node.high), str(node.mode))  # type: ignore[arg-type]
            return float(padded[int(node.stride) * y + int(node.dilation) * k] == x)  # type: ignore[arg-type]
    raise AssertionError(node)


def _padded(size: int, low: int, high: int, mode: str) -> NDArray[np.int64]:
    """The x at each position of the padded axis, or -1 for padding with zeros."""
    pad = (max(low, 0), max(high, 0))
    axis = np.arange(size)
    axis = np.pad(axis, pad, constant_values=-1) if mode == "zeros" else np.pad(axis, pad, PADDING[mode])  # type: ignore[call-overload]
    return axis[max(-low, 0) : len(axis) - max(-high, 0)]
