"""Which gram matrices are Kronecker products, and of which factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import networkx

from .objective import BATCH, PRIME

_Labels: TypeAlias = tuple[str, ...]


def kronecker_factors(coupled: _Labels, doubled: Sequence[_Labels]) -> list[tuple[_Labels, list[int]]]:
    """The Kronecker factors of a gram matrix; empty where it is not a product of several.

    Args:
        coupled: the labels whose values number its rows; with primes, its columns.
        doubled: the labels of each of the tensors that it is contracted from.

    Returns:
        For each factor, a group of labels that no tensor joins with the others, and the positions of its tensors.
    """
    graph: networkx.Graph[object] = networkx.Graph()
    graph.add_edges_from((label, label + PRIME) for label in coupled)
    for number, labels in enumerate(doubled):
        graph.add_node(number)
        graph.add_edges_from((number, label) for label in labels if label not in BATCH)
    factors = []
    for part in networkx.connected_components(graph):
        group = tuple(label for label in coupled if label in part)
        numbers = [number for number in range(len(doubled)) if number in part]
        if not group or not {label for number in numbers for label in doubled[number]}.issuperset(group):
            return []
        factors.append((group, numbers))
    return factors if len(factors) > 1 else []
