"""Fit a tree of cores to a tensor by one truncated SVD for each bond, from the leaves to the root.

Each core but the root has orthonormal rows towards its bond, so the squared errors of the bonds add up exactly, and the
error is at most sqrt(number of bonds) times the least one (Oseledets 2011, thm. 2.2; Grasedyck 2010, thm. 3.11). An
open label on several cores is a batch label: each of its values has an SVD of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import prod
from typing import NamedTuple

import networkx
import torch
from torch import Tensor

from ..networks import Fuse, NamedTensor, Network, all_nodes, shape_of
from ..tensors import truncated_svd
from .axes import group_axes, split_axes


class NoTreeError(ValueError):
    """Says why a right side is not a tree of cores."""


class Edge(NamedTuple):
    """Two cores that are neighbours in a tree.

    child, parent: positions of the cores.
    bonds: the labels that are summed between them; none where the two are only multiplied.
    batch: the open labels that both cores have.
    """

    child: int
    parent: int
    bonds: tuple[str, ...]
    batch: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class CoreTree:
    """The cores of a right side as a rooted tree.

    Attributes:
        cores: named tensors, each occurring once.
        open: the open labels, where a label that a `Fuse` splits is replaced by its parts.
        edges: from the leaves to the root, each child before its parent.
        root: position of the core without a parent.
    """

    cores: tuple[NamedTensor, ...]
    open: tuple[str, ...]
    edges: tuple[Edge, ...]
    root: int

    @cached_property
    def rows(self) -> dict[int, tuple[str, ...]]:
        """For each child, the open labels that occur only on its side of the edge to its parent."""
        below = {number: set(core.labels) & set(self.open) for number, core in enumerate(self.cores)}
        rows = {}
        for edge in self.edges:
            rows[edge.child] = tuple(label for label in self.open if label in below[edge.child] - set(edge.batch))
            below[edge.parent] |= below[edge.child]
        return rows


def tree_of(right: Network) -> CoreTree:
    """Read a right side as a tree of cores.

    The cores are the named tensors, and each occurs once. `Fuse` nodes may split open labels. Every bond occurs on two
    cores; parallel bonds count as one; bonds do not close a loop. An open label may occur on several cores if these are
    neighbours: then it is a batch label. Cores that no bond joins are multiplied, for each value of the batch labels
    that they share.

    Raises:
        NoTreeError: the right side is not a tree, with the reason.
    """
    if len(right.terms) > 1:
        raise NoTreeError("it is a sum")
    cores = cores_of(right)
    if len(cores) + len(splitting(right)) < len(right.nodes):
        raise NoTreeError("a node is neither a core nor a Fuse that splits an open label")
    if len({node.name for node in cores}) < len(cores):
        raise NoTreeError("a core occurs twice")
    labels = open_labels(right)
    tree = _spanning_tree(cores, labels)
    degrees = [sum(bool(tree.edges[edge]["bonds"]) for edge in tree.edges(core)) for core in range(len(cores))]
    root = max(range(len(cores)), key=lambda core: (degrees[core], core))
    towards = {child: parent for parent, child in networkx.dfs_edges(tree, root)}
    edges = []
    for child in networkx.dfs_postorder_nodes(tree, root):
        if child != root:
            joined = tree.edges[child, towards[child]]
            edges.append(Edge(child, towards[child], tuple(joined["bonds"]), tuple(joined["batch"])))
    return CoreTree(tuple(cores), labels, tuple(edges), root)


def _spanning_tree(cores: Sequence[NamedTensor], labels: Sequence[str]) -> networkx.Graph[int]:
    """The tree with the heaviest edges: it keeps the cores of each batch label together, if any tree does."""
    ends: dict[str, list[int]] = {}
    for number, core in enumerate(cores):
        for label in dict.fromkeys(core.labels):
            ends.setdefault(label, []).append(number)
    bonds: dict[tuple[int, ...], list[str]] = {}
    for label, positions in ends.items():
        if label not in labels:
            if len(positions) != 2:
                raise NoTreeError(f"the bond {label!r} occurs on {len(positions)} cores, not on 2")
            bonds.setdefault(tuple(positions), []).append(label)
    graph: networkx.Graph[int] = networkx.Graph()
    graph.add_nodes_from(range(len(cores)))
    for one, other in combinations(range(len(cores)), 2):
        shared = [label for label in labels if one in ends.get(label, ()) and other in ends[label]]
        joined = bonds.get((one, other), [])
        graph.add_edge(one, other, weight=len(shared) + (len(ends) + 1) * bool(joined), bonds=joined, batch=shared)
    tree = networkx.maximum_spanning_tree(graph)
    if sum(bool(tree.edges[edge]["bonds"]) for edge in tree.edges) < len(bonds):
        raise NoTreeError("the bonds close a loop")
    for label in labels:
        if label in ends and not networkx.is_connected(tree.subgraph(ends[label])):
            raise NoTreeError(f"the open label {label!r} closes a loop")
    return tree


# The labels of a right side ------------------------------------------------------------------------------------


def cores_of(right: Network) -> list[NamedTensor]:
    """The named tensors of a right side."""
    return [node for node in all_nodes(right) if isinstance(node, NamedTensor)]


def splitting(right: Network) -> list[Fuse]:
    """The `Fuse` nodes that split open labels, which a reshape of the target undoes.

    A `Fuse` splits an open label if no other node has the whole. Its parts must differ, occur on other nodes, and
    neither be open nor occur on another `Fuse`. In a sum no `Fuse` does, because other terms have the whole.
    """
    splits: list[Fuse] = []
    if len(right.terms) > 1:
        return splits
    labels = [label for node in right.nodes for label in node.labels]
    for node in right.nodes:
        if isinstance(node, Fuse) and node.whole in right.output and labels.count(node.whole) == 1:
            others = [other for other in right.nodes if other is not node]
            elsewhere = {label for other in others for label in other.labels}
            taken = {label for other in others if isinstance(other, Fuse) for label in other.labels}
            parts = set(node.parts)
            if len(parts) == len(node.parts) and parts <= elsewhere - taken - set(right.output):
                splits.append(node)
    return splits


def open_labels(right: Network) -> tuple[str, ...]:
    """The open labels, where a label that a `Fuse` splits is replaced by its parts."""
    parts = {node.whole: node.parts for node in splitting(right)}
    return tuple(part for label in right.output for part in parts.get(label, (label,)))


def bonds_of(right: Network) -> tuple[str, ...]:
    """The bonds of a right side, in the order of first appearance: the labels that are neither open nor part of one."""
    known = {*right.output, *open_labels(right)}
    return tuple(
        label for label in dict.fromkeys(n for node in all_nodes(right) for n in node.labels) if label not in known
    )


def with_open_axes(target: Tensor, right: Network) -> Tensor:
    """A target with one axis for each of `open_labels(right)`."""
    return target.reshape(shape_of(right, open_labels(right)))


# The elements of the cores ---------------------------------------------------------------------------------------


def fit_tree(target: Tensor, tree: CoreTree, ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Fit the cores of a tree.

    Args:
        target: one axis for each label of `tree.open`, in that order. Its type is that of the computation.
        ranks: the size of each bond. Where smaller bonds beside it leave fewer singular values, a bond becomes smaller.

    Returns:
        The elements of each core by name, in the order of its labels.
    """
    rest, labels = target, tree.open
    values: dict[str, Tensor] = {}
    for edge in tree.edges:
        node, bonds = tree.cores[edge.child], edge.bonds
        rows = tuple(label for label in node.labels if label in labels and label not in edge.batch)
        columns = tuple(label for label in labels if label not in rows and label not in edge.batch)
        sizes = {**dict(zip(labels, rest.shape, strict=True)), **{bond: ranks[bond] for bond in bonds}}
        matrix = matrix_of(rest, labels, rows, columns, batch=edge.batch)
        requested = prod(map(ranks.__getitem__, bonds))
        rank = min(requested, *matrix.shape[-2:])
        U, S, V = truncated_svd(matrix, rank, dtype=target.dtype)
        core, rest = U, S[..., None] * V
        if len(bonds) == 1:
            sizes[bonds[0]] = rank
        else:  # no bond, or parallel ones, which keep their sizes: what is missing is 0
            core = torch.nn.functional.pad(core, (0, requested - rank))
            rest = torch.nn.functional.pad(rest, (0, 0, 0, requested - rank))
        values[node.name] = split_axes(core, sizes, node.labels, edge.batch, rows, bonds).contiguous()
        labels = (*edge.batch, *bonds, *columns)
        rest = rest.reshape([sizes[label] for label in labels])
    node = tree.cores[tree.root]
    values[node.name] = group_axes(rest, labels, *((label,) for label in node.labels)).contiguous()
    return values


def attained_ranks(tree: CoreTree, sizes: Mapping[str, int], ranks: Mapping[str, int]) -> dict[str, int]:
    """The sizes that bonds have in `fit_tree`: a bond is no larger than either side of its matrix.

    Args:
        sizes: of the open labels.
        ranks: of the bonds.
    """
    attained, labels = {**sizes, **ranks}, tree.open
    for edge in tree.edges:
        here = set(tree.cores[edge.child].labels) & set(labels) - set(edge.batch)
        columns = [label for label in labels if label not in here and label not in edge.batch]
        if len(edge.bonds) == 1:
            sides = (prod(attained[label] for label in side) for side in (here, columns))
            attained[edge.bonds[0]] = min(attained[edge.bonds[0]], *sides)
        labels = (*edge.batch, *edge.bonds, *columns)
    return {bond: attained[bond] for bond in ranks}


def matrix_of(
    tensor: Tensor, labels: Sequence[str], rows: Sequence[str], columns: Sequence[str], *, batch: Sequence[str] = ()
) -> Tensor:
    """Shape (batch, rows, columns), or (rows, columns) without a batch."""
    matrices = group_axes(tensor, labels, batch, rows, columns)
    return matrices if batch else matrices[0]
