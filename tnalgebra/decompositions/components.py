"""The components of a network, which is the network where a bond has one of its values; drop them without a fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from math import prod

import networkx
import torch
from torch import Tensor

from ..errors import RuleError
from ..fitting import ParameterBudget, RelativeError, Size, allowance, kept, rank_of
from ..networks import (
    NamedTensor,
    Network,
    Node,
    all_nodes,
    check_word,
    node_text,
    resized,
    shape_of,
    tensor_nodes,
    tensors_of,
)
from ..rewriting import Change, Options, Place, Rule
from ..tensors import Operand, Values, common_dtype, contract, in_precision, operands, relative, value_of, values_for

_PRIME = "'"
"""Marks labels of a network's second copy; no label of the notation has it."""

DENSE = 2**24
"""Elements of a network's value up to which an error is measured on the value itself, and not on doubled networks,
which lose half of the digits: 128 MiB in float64."""


def drop_components(bond: str) -> Rule:
    """The rule that keeps the largest components of a network, and leaves all numbers as they are.

    A component is the network where the bond has one of its values. The components of the largest Frobenius norms are
    kept, in their order. This is not the best approximation, not even for CP; `truncate` continues from here with a
    fit. But it needs no fit, and the numbers that are kept do not change in a single bit.

    The size of the bond is an integer; `KeepFraction` of the bond's values; `RelativeError`, which keeps the fewest
    components whose measured error is at most that; or `ParameterBudget`.

    The bond may occur on any number of named tensors of any network. A tensor that occurs several times must have the
    bond at the same axis everywhere.
    """
    check_word(bond, what="bond")

    def find(network: Network, options: Options) -> Iterator[Place]:
        check_bonds(network, [bond])
        yield Place(connected_part(network, [bond]), (bond,))

    def build(network: Network, place: Place, values: Values, options: Options) -> Change:
        before = part(network, place)
        check_values(before, values, what="dropping components")
        gram = component_gram(before, values, bond)
        order = gram.diagonal().argsort(descending=True, stable=True)
        rank = _rank(options.size, bond, gram[order][:, order], before)
        chosen, dropped = order[:rank].sort().values, order[rank:].sort().values
        new = select_values(before, values, {bond: chosen})
        after = resize(network, new)
        error = 0.0 if rank == len(order) else _error(before, values, bond, dropped, gram=gram)
        return Change(after, values=new, relative_error=error, ranks={bond: rank}, pieces=(before, part(after, place)))

    equation = f"A[.. {bond}] B[.. {bond}] .. => A[.. {bond}] B[.. {bond}] .., {bond} smaller, numbers kept"
    name = f"drop components of {bond}"
    return Rule(name, "approximate", equation, find, build, ranks=(bond,), spec={"drop_components": bond})


def component_gram(network: Network, values: Values, bond: str) -> Tensor:
    """Inner products of a bond's components, by contraction of the network with itself.

    Returns:
        Shape (r, r), float64; element [a, b] is Re <component a, component b> over the largest product there can be, so
        that nothing overflows; only ratios mean something.
    """
    tensors = {name: in_precision(value, torch.float64) for name, value in values_for(network, values).items()}
    tensors = {name: value / (float(value.abs().max()) or 1.0) for name, value in tensors.items()}
    nodes = operands(network, tensors, common_dtype(tensors.values()))
    again = _prime([(tensor.conj(), labels) for tensor, labels in nodes], network.output)
    return contract([*nodes, *again], (bond, bond + _PRIME)).real


def _prime(nodes: Sequence[Operand], output: Sequence[str]) -> list[Operand]:
    return [(tensor, tuple(n if n in output else n + _PRIME for n in labels)) for tensor, labels in nodes]


def _rank(size: Size, bond: str, gram: Tensor, before: Network) -> int:
    """gram: of the components, the largest first."""
    full = len(gram)
    if isinstance(size, ParameterBudget):
        one, two = (with_new_sizes(before, {bond: count}).parameters for count in (1, 2))
        limit = allowance(size, before.parameters, least=one)
        return min(full, 1 + (limit - one) // (two - one))
    rank = rank_of(size, bond)
    if isinstance(rank, RelativeError):
        # the error of keeping the first k is the network of the others: no sum of squares, as they may cancel
        left = gram.flip(0, 1).cumsum(0).cumsum(1).diagonal().clamp(min=0).sqrt()
        allowed = rank.error * float(left[-1])
        return next(k for k in range(1, full + 1) if k == full or float(left[full - k - 1]) <= allowed)
    return kept(rank, full, bond=bond, singular_values=list)


def _error(before: Network, values: Values, bond: str, dropped: Tensor, *, gram: Tensor) -> float:
    """||network of the dropped components|| / ||network||."""
    if prod(shape_of(before, before.output)) <= DENSE:
        rest = with_new_sizes(before, {bond: len(dropped)})
        left = value_of(rest, select_values(before, values, {bond: dropped}), dtype=torch.float64)
        return relative(left, value_of(before, values, dtype=torch.float64))
    above, below = float(gram[dropped][:, dropped].sum()), float(gram.sum())
    above = max(above, 0.0)
    return above and (math.sqrt(above / below) if below > 0 else math.inf)


# What truncation uses too ------------------------------------------------------------------------------------


def check_bonds(network: Network, bonds: Sequence[str]) -> None:
    """Require that the values of every bond can be chosen freely.

    Raises:
        RuleError: the network has no such label, it is open, or its size is tied to that of something else.
    """
    standing: dict[str, list[Node]] = {}
    for node in all_nodes(network):
        for label in node.labels:
            standing.setdefault(label, []).append(node)
    for bond in bonds:
        if bond not in standing:
            raise RuleError(f"the network has no bond {bond!r}", labels=" ".join(standing), network=network)
        if bond in network.output:
            raise RuleError(f"{bond!r} is an open label, not a bond", network=network)
        for node in standing[bond]:
            if not isinstance(node, NamedTensor):
                raise RuleError(
                    f"the bond {bond!r} occurs on {node_text(node)}, which fixes its size",
                    network=network,
                    fix="a bond of named tensors",
                )
    for name in tensors_of(network):
        for axis in zip(*(node.labels for node in all_nodes(network) if node.name == name), strict=True):
            bond, other = axis[0], next((label for label in axis if label != axis[0]), None)
            if other is not None and {*axis} & {*bonds}:
                raise RuleError(
                    f"the tensor {name!r} occurs several times, with {bond!r} and with {other!r} at one axis",
                    network=network,
                    fix="a bond that occurs at one axis of it everywhere",
                )


def check_values(network: Network, values: Values, *, what: str) -> None:
    """Raise RuleError if a tensor has no value."""
    for name in tensor_nodes(network):
        if name not in values:
            raise RuleError(f"{what} needs the value of {name!r}", fix="apply(network, size, values={...})")


def connected_part(network: Network, bonds: Sequence[str]) -> tuple[int, ...]:
    """Positions of all nodes that are connected with one of the bonds, in ascending order."""
    graph: networkx.Graph[object] = networkx.Graph()
    for position, node in enumerate(network.nodes):
        graph.add_node(position)
        graph.add_edges_from((position, label) for label in node.labels)
    found = {thing for bond in bonds for thing in networkx.node_connected_component(graph, bond)}
    return tuple(position for position in range(len(network.nodes)) if position in found)


def part(network: Network, place: Place) -> Network:
    """The nodes at a place as a separate network."""
    nodes = [network.nodes[position] for position in place.nodes]
    labels = {label for node in nodes for label in node.labels}
    sizes = {label: size for label, size in network.sizes.items() if label in labels}
    return Network(nodes, [label for label in network.output if label in labels], sizes)


def select_values(network: Network, values: Values, chosen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors at some values of its bonds; `chosen` has the numbers of these values for each label."""
    found = {}
    for name, places in tensor_nodes(network).items():
        tensor = values[name]
        for axis, label in enumerate(network.nodes[places[0]].labels):
            if label in chosen:
                tensor = tensor.index_select(axis, chosen[label].to(tensor.device))
        found[name] = tensor
    return found


def resize(network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """The network with the sizes of these tensors."""
    sizes: dict[str, int] = {}
    for node in network.nodes:
        if isinstance(node, NamedTensor) and node.name in tensors:
            sizes |= dict(zip(node.labels, tensors[node.name].shape, strict=True))
    return with_new_sizes(network, sizes)


def with_new_sizes(network: Network, sizes: Mapping[str, int]) -> Network:
    """The network with other sizes of some labels."""
    return resized(network, {**network.sizes, **sizes})
