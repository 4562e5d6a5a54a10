"""A layer or a network as a linear map of its input: its sizes, its values, its transpose, and both as functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..compiler import compile as compile_network
from ..errors import LayerError, NetworkError, SizeError, ValuesError
from ..networks import (
    Conv,
    Fill,
    NamedTensor,
    Network,
    Node,
    aligned,
    all_nodes,
    axis_numbers,
    carriers,
    collected,
    fresh,
    in_one_window,
    parse,
    resized,
    shape_of,
    tensor_nodes,
    tensors_of,
    with_sizes,
)
from ..nn import KernelLayer, layer_network
from ..tensors import bind, check_mapping, value_of

Target: TypeAlias = nn.Module | Network | str
"""A layer of torch's or of `tnalgebra.nn`, or a network or its notation."""

InputSizes: TypeAlias = int | Sequence[int] | Mapping[str, int] | None
"""Sizes of the input's positions: one for all axes, one for each, or label -> size."""


@dataclass(frozen=True)
class LinearMap:
    """A network as the linear map of one of its tensors.

    network: its sizes are all known.
    source: the node of the tensor that is mapped, which occurs once.
    values: the elements of all other tensors.
    bias: what a layer adds along the second axis of its output, or None.
    """

    network: Network
    source: NamedTensor
    values: Mapping[str, Tensor]
    bias: Tensor | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        return shape_of(self.network, self.source.labels)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return shape_of(self.network, self.network.output)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of its matrix."""
        return prod(self.output_shape), prod(self.input_shape)

    def function(self, *, columns: int, transposed: bool = False) -> Callable[[Tensor], Tensor]:
        """The map, or its transpose, of several tensors at once in float64: (columns, ...) -> (columns, ...).

        The transpose is the network in which a tensor with the labels of the output replaces the input, and whose
        output has the labels of the input.
        """
        network, source = self.network, self.source
        column = fresh("column", carriers(network))
        before, after = (network.output, source.labels) if transposed else (source.labels, network.output)
        rest = [node for node in network.nodes if node is not source]
        name = fresh("Y", tensor_nodes(network)) if transposed else source.name
        nodes = [NamedTensor(name, (column, *before)), *rest]
        held = {label for node in nodes for label in node.labels}
        nodes += [Fill((label,)) for label in after if label not in held]
        known = {label: size for label, size in network.sizes.items() if label in held | {*after}}
        module = compile_network(
            Network(nodes, (column, *after), known),
            inputs={name: (columns, *shape_of(network, before))},
            values={name: value.detach().double() for name, value in self.values.items()},
            tune=False,
        )

        def apply(tensor: Tensor) -> Tensor:
            with torch.no_grad():
                return module(tensor)  # type: ignore[no-any-return]

        return apply


def network_of(target: Target, values: Mapping[str, Any] | None) -> tuple[Network, dict[str, Any], Tensor | None]:
    """The network of a layer without the sizes of its positions, its values (with their gradients), and its bias.

    A sum is one product, in which the sum of what its terms do not have in common is one tensor.

    Raises:
        LayerError: a module without a network.
        NetworkError: a sum whose terms differ in more than their kernels.
        ValuesError: values are given beside a layer.
    """
    if isinstance(target, str):
        target = parse(target)
    if isinstance(target, Network):
        values = {} if values is None else values
        check_mapping(values)
        return (*_as_product(target, dict(values)), None)
    if values is not None:
        raise ValuesError("values are given beside a layer", target=type(target).__name__, fix="only for a network")
    if isinstance(target, KernelLayer):
        network = target.network
        tensors = {name: getattr(target, name) for name in tensors_of(network) if name != "X"}
        return (*_as_product(_without_positions(network), tensors), target.bias)
    if not isinstance(target, nn.Module):
        raise LayerError(f"a {type(target).__name__} is not a linear map", fix="a layer, a network or its notation")
    layer = layer_network(target)
    held = {"K": "weight", "W": "weight"}
    tensors = {name: getattr(target, held[name]) if name in held else one for name, one in layer.values.items()}
    return layer.network, tensors, layer.bias


def _as_product(network: Network, values: dict[str, Any]) -> tuple[Network, dict[str, Any]]:
    """A sum as a product, with the value of the tensor that is the sum of what its terms do not have in common."""
    if len(network.terms) == 1:
        return network, values
    network, values = bind(network, values)
    free = {name for name in tensors_of(network) if name not in values}
    name = fresh("K", tensors_of(network))
    for terms in (aligned(network.terms), in_one_window(network.terms) or ()):
        positions = {label for term in terms for node in term.nodes if node.name in free for label in node.labels}

        def is_outside(node: Node, positions: set[str] = positions) -> bool:
            return node.name in free or (isinstance(node, Conv) and (node.x in positions or node.y in positions))

        pair = collected(terms, name, apart=is_outside) if terms else None
        if pair is not None:
            outer, kernel = pair
            common = {one: values[one] for one in tensors_of(outer) if one in values}
            return outer, {**common, name: value_of(kernel, {one: values[one] for one in tensors_of(kernel)})}
    fact = "the terms of the sum differ in more than their kernels, so that the sum is not one map with windows"
    raise NetworkError(fact, network=network, fix="one of network.terms")


def check_real(values: Mapping[str, Tensor]) -> None:
    """Raise ValuesError for a complex value, because frequencies of a real map come in pairs."""
    for name, value in values.items():
        if value.is_complex():
            raise ValuesError(
                f"the value of {name!r} is complex, and a map of real inputs is asked for", fix="real values"
            )


def _without_positions(network: Network) -> Network:
    """The network without the sizes of X's batch, of its positions, and of those that windows make of them."""
    ends = {label for node in all_nodes(network) if isinstance(node, Conv) for label in (node.x, node.y)}
    kept = {label: size for label, size in network.sizes.items() if label not in ends and label != "n"}
    return resized(network, kept)


def read_map(target: Target, size: InputSizes = None, values: Mapping[str, Any] | None = None) -> LinearMap:
    """A layer, or a network with one tensor that has no value, as a linear map of its input.

    Args:
        size: sizes of the input's positions; a batch has one element.

    Raises:
        LayerError: a module without a network.
        NetworkError: not exactly one tensor is without a value, or it occurs twice, so that the value is not linear.
        SizeError: sizes are not known, or contradict each other.
        ValuesError: values that do not fit.
    """
    network, tensors, bias = network_of(target, values)
    network, bound = bind(network, tensors)
    check_real(bound)
    names = tensor_nodes(network)
    free = [name for name in names if name not in bound]
    if len(free) != 1:
        fact = f"{len(free)} tensors have no value, and one is the input"
        raise NetworkError(fact, without=" ".join(free) or "none", network=network, fix="values for all other tensors")
    if len(names[free[0]]) > 1:
        fix = "an input that occurs once"
        raise NetworkError(f"the input {free[0]!r} occurs {len(names[free[0]])} times: it is not linear in it", fix=fix)
    source = network.nodes[names[free[0]][0]]
    assert isinstance(source, NamedTensor)
    network = with_sizes(network, _positions(network, source, size))
    standing = carriers(network)
    batch = [label for label in source.labels if label in network.output and len(standing[label]) == 1]
    network = with_sizes(network, {label: 1 for label in batch if label not in network.sizes})
    unknown = [label for label in (*standing, *network.output) if label not in network.sizes]
    if unknown:
        raise SizeError(
            f"the size of label {unknown[0]!r} is unknown", where=network, fix="size=..., of the input's positions"
        )
    return LinearMap(network, source, bound, bias)


def _positions(network: Network, source: NamedTensor, size: InputSizes) -> dict[str, int]:
    """label -> size for the labels of the input that are ends of windows."""
    if size is None:
        return {}
    if isinstance(size, Mapping):
        return dict(size)
    ends = {label for node in network.nodes if isinstance(node, Conv) for label in (node.x, node.y)}
    labels = [label for label in source.labels if label in ends]
    if not labels:
        raise SizeError("a size is given for a map without positions", network=network, fix="size=None")
    if not isinstance(size, Sequence | int):
        raise SizeError(f"size is {size!r}", fix="an integer, one for each axis of positions, or {label: size}")
    numbers = axis_numbers("size", size if isinstance(size, int) else tuple(size), len(labels))
    return dict(zip(labels, numbers, strict=True))
