"""The bonds of a right side: which of them are one bond, which sizes follow from others, and how budgets grow them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import prod

import networkx

from ..errors import SizeError
from ..networks import MAX_SIZE, Conv, Copy, Fuse, Network, Node, all_nodes, infer_sizes, relabel, tensors_of
from .trees import bonds_of, cores_of


def with_one_bond_for_copies(right: Network) -> tuple[list[Node], dict[str, str]]:
    """The nodes of all terms without the `Copy` nodes of bonds, and the word of each bond in them: the first one."""
    bonds = bonds_of(right)
    copies = [node for node in all_nodes(right) if isinstance(node, Copy) and {*node.labels} <= {*bonds}]
    graph: networkx.Graph[str] = networkx.Graph()
    graph.add_nodes_from(bonds)
    for node in copies:
        networkx.add_path(graph, node.labels)
    words = {bond: min(part, key=bonds.index) for part in networkx.connected_components(graph) for bond in part}
    return [relabel(node, words) for node in all_nodes(right) if node not in copies], words


def equal_labels(right: Network) -> dict[str, set[str]]:
    """label -> all labels of its size, itself too: those of one `Copy`, or of one axis of a tensor that is tied."""
    graph: networkx.Graph[str] = networkx.Graph()
    graph.add_nodes_from(label for node in all_nodes(right) for label in node.labels)
    first = tensors_of(right)
    for core in cores_of(right):
        graph.add_edges_from(zip(first[core.name].labels, core.labels, strict=True))
    for node in all_nodes(right):
        if isinstance(node, Copy):
            networkx.add_path(graph, node.labels)
    return {label: part for part in networkx.connected_components(graph) for label in part}


def sizes_with(right: Network, known: Mapping[str, int]) -> dict[str, int]:
    """The sizes that follow from those that are known, which are among them. Raises SizeError for a contradiction."""
    return infer_sizes([*all_nodes(right)], {**right.sizes, **known})


def chosen_first(right: Network, bonds: Iterable[str]) -> list[str]:
    """The bonds, those last whose sizes follow from others: the positions of windows, wholes and inputs of windows."""
    windows = [node for node in all_nodes(right) if isinstance(node, Conv)]
    wholes = {node.whole for node in all_nodes(right) if isinstance(node, Fuse)} | {node.x for node in windows}
    positions = {node.y for node in windows}
    return sorted(bonds, key=lambda bond: 2 if bond in wholes else int(bond in positions))


def grow_evenly(
    right: Network,
    known: Mapping[str, int],
    largest: Mapping[str, int],
    *,
    constants: Collection[str],
    limit: Callable[..., int],
) -> dict[str, int]:
    """Ranks under a budget without singular values: the smallest bond grows; of equals, the first in the alphabet.

    Args:
        known: sizes that are not chosen.
        largest: for some bonds, the most values that they can have.
        constants: names of tensors whose elements are not trained.
        limit: gives the most parameters, from the `least` that are possible.
    """
    bonds, alike = bonds_of(right), equal_labels(right)
    tensors = {node.name: node.labels for node in cores_of(right) if node.name not in constants}
    values: dict[str, Sequence[int]] = {}  # of each bond whose size is chosen: its sizes, from the one that grows first
    now = sizes_with(right, known)
    windows = []
    for bond in chosen_first(right, sorted(bonds)):
        if bond not in now:
            values[bond] = range(1, min(largest.get(label, MAX_SIZE) for label in alike[bond]) + 1)
            windows += [bond] * _shrinks_another(bond, right, now)
            now = sizes_with(right, {**now, bond: 1})

    def count(sizes: Mapping[str, int]) -> int:
        return sum(prod([sizes[label] for label in labels]) for labels in tensors.values())

    levels = dict.fromkeys(values, 0)

    def sizes_at(levels: Mapping[str, int]) -> dict[str, int]:
        return sizes_with(right, {**known, **{bond: values[bond][level] for bond, level in levels.items()}})

    for bond in windows:  # a larger window has fewer positions, so that its sizes are put in the order of parameters
        costs = {}
        for level in range(len(values[bond])):
            try:
                costs[values[bond][level]] = count(sizes_at({**levels, bond: level}))
            except SizeError:
                break
        values[bond] = sorted(costs, key=lambda size: costs[size])
    now = sizes_at(levels)
    allowed = limit(least=count(now))
    useful = _Useful(right, alike)
    while True:
        for bond in sorted(values, key=lambda bond: (levels[bond], bond)):
            if levels[bond] + 1 == len(values[bond]) or (bond not in windows and not useful(bond, now)):
                continue
            try:
                grown = sizes_at({**levels, bond: levels[bond] + 1})
            except SizeError:
                continue
            if count(grown) <= allowed and (bond in windows or count(grown) > count(now)):
                levels[bond], now = levels[bond] + 1, grown
                break
        else:
            return {bond: now[bond] for bond in bonds}


def _shrinks_another(bond: str, right: Network, sizes: Mapping[str, int]) -> bool:
    """Whether a bond is a window over an input that has a size, and the number of its positions follows."""
    windows = [node for node in all_nodes(right) if isinstance(node, Conv) and node.k == bond]
    return any(node.x in sizes and node.y not in sizes and node.y != bond for node in windows)


class _Useful:
    """Between two tensors a bond never needs more values than the other labels of one of them have together."""

    def __init__(self, right: Network, alike: Mapping[str, set[str]]) -> None:
        nodes, words = with_one_bond_for_copies(right)
        self._alike = {bond: {words.get(label, label) for label in labels} for bond, labels in alike.items()}
        self._ends = {bond: ends_of(bond, nodes) for bond in {*words.values()}}

    def __call__(self, bond: str, sizes: Mapping[str, int]) -> bool:
        for label in self._alike[bond]:
            ends = self._ends.get(label, [])
            if len(ends) == 2 and not any(isinstance(node, Conv | Fuse) for node in ends):
                others = [[sizes[other] for other in node.labels if other != label] for node in ends]
                if sizes[label] >= min(map(prod, others)):
                    return False
        return True


def ends_of(bond: str, nodes: Sequence[Node]) -> list[Node]:
    """The nodes that have a bond, each as often as it has it."""
    return [node for node in nodes for label in node.labels if label == bond]
