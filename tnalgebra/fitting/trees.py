"""Fit a tree of cores to a tensor: one truncated SVD a bond, from the leaves to the root.

Each core but the root has orthonormal rows towards its bond, so the squared errors of the bonds add up exactly, and
the whole is within sqrt(number of bonds) of the best one (Oseledets 2011, thm. 2.2; Grasedyck 2010, thm. 3.11).
An open label on several cores is a batch: each of its values has an SVD of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from math import prod
from typing import NamedTuple

import networkx
import torch
from torch import Tensor

from ..networks import Fuse, NamedTensor, Network, shape_of
from ..tensors import contract, truncated_svd
from .ranks import UpTo, grow, kept, plain_rank
from .size import ParameterBudget, Rank


class NoTreeError(ValueError):
    """Why a right side is not a tree of cores."""


class Edge(NamedTuple):
    """Two cores, and the bonds between them; none where only open labels, or nothing, joins them."""

    child: int
    parent: int
    bonds: tuple[str, ...]
    batch: tuple[str, ...]
    """Open labels on both."""


@dataclass(frozen=True, eq=False)
class CoreTree:
    """The cores of a right side as a rooted tree.

    cores: named tensors, each occurring once.
    open: the open labels, those a `Fuse` splits replaced by their parts.
    edges: from the leaves to the root, each child before its parent.
    root: the core without a parent.
    """

    cores: tuple[NamedTensor, ...]
    open: tuple[str, ...]
    edges: tuple[Edge, ...]
    root: int

    @cached_property
    def rows(self) -> dict[int, tuple[str, ...]]:
        """child -> open labels that occur on its side of the edge to its parent only."""
        below = {number: set(core.labels) & set(self.open) for number, core in enumerate(self.cores)}
        found = {}
        for edge in self.edges:
            found[edge.child] = tuple(label for label in self.open if label in below[edge.child] - set(edge.batch))
            below[edge.parent] |= below[edge.child]
        return found


def tree_of(right: Network) -> CoreTree:
    """Read a right side as a tree of cores.

    Cores are named tensors, each once. `Fuse` nodes may split open labels. Every bond occurs on two cores; parallel
    bonds count as one; bonds do not close a loop. An open label may occur on several cores, if these hang together:
    then it is a batch label. Cores that no bond joins are multiplied, for each value of the batch labels they share.

    Raises:
        NoTreeError: it is not one, with the reason.
    """
    cores = cores_of(right)
    if any(not isinstance(node, NamedTensor | Fuse) for node in right.nodes):
        raise NoTreeError("a node is neither a core nor a Fuse")
    if len({node.name for node in cores}) < len(cores):
        raise NoTreeError("a core occurs twice")
    labels = open_labels(right)
    tree = _spanning_tree(cores, labels)
    degrees = dict.fromkeys(range(len(cores)), 0)
    for edge in tree.edges:
        for core in edge:
            degrees[core] += bool(tree.edges[edge]["bonds"])
    root = max(degrees, key=lambda core: (degrees[core], core))
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
    for label, there in ends.items():
        if label in labels:
            continue
        if len(there) != 2:
            raise NoTreeError(f"the bond {label!r} occurs on {len(there)} cores, not on 2")
        bonds.setdefault(tuple(there), []).append(label)
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


def cores_of(right: Network) -> list[NamedTensor]:
    """The named tensors of a right side."""
    return [node for node in right.nodes if isinstance(node, NamedTensor)]


def bonds_of(right: Network) -> tuple[str, ...]:
    """The bonds of a right side, in order of first appearance: what is neither an open label nor part of one."""
    known = {*right.output, *open_labels(right)}
    return tuple(label for label in dict.fromkeys(n for node in right.nodes for n in node.labels) if label not in known)


def open_labels(right: Network) -> tuple[str, ...]:
    """The open labels, each that a `Fuse` splits replaced by its parts.

    A `Fuse` splits an open label if nothing else carries the whole, and every part occurs on another node, is not
    open and not part of another `Fuse`.
    """
    standing = [label for node in right.nodes for label in node.labels]
    found: list[str] = []
    for label in right.output:
        found += next(
            (
                node.parts
                for node in right.nodes
                if isinstance(node, Fuse) and node.whole == label and standing.count(label) == 1 and _own(node, right)
            ),
            (label,),
        )
    return tuple(found)


def with_open_axes(target: Tensor, right: Network) -> Tensor:
    """A target with one axis for each of `open_labels(right)`."""
    return target.reshape(shape_of(right, open_labels(right)))


def _own(node: Fuse, right: Network) -> bool:
    elsewhere = [
        part for other in right.nodes if isinstance(other, Fuse) and other is not node for part in other.labels
    ]
    carried = {label for other in right.nodes if other is not node for label in other.labels}
    return len(set(node.parts)) == len(node.parts) and all(
        part in carried and part not in right.output and part not in elsewhere for part in node.parts
    )


def splitting(right: Network) -> list[Fuse]:
    """The `Fuse` nodes that split open labels: they are undone by reshaping the target."""
    labels = open_labels(right)
    return [
        node
        for node in right.nodes
        if isinstance(node, Fuse) and node.whole in right.output and all(part in labels for part in node.parts)
    ]


# Its numbers -------------------------------------------------------------------------------------------------


def fit_tree(target: Tensor, tree: CoreTree, ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Fit the cores of a tree.

    Args:
        target: one axis for each label of `tree.open`, in that order; its type is that of the computation.
        ranks: bond -> size; where smaller bonds beside it leave fewer singular values, the bond becomes smaller.

    Returns:
        core -> elements, in the order of its labels.
    """
    rest, labels = target, tree.open
    values: dict[str, Tensor] = {}
    for edge in tree.edges:
        node = tree.cores[edge.child]
        rows = tuple(label for label in node.labels if label in labels and label not in edge.batch)
        columns = tuple(label for label in labels if label not in rows and label not in edge.batch)
        shape = dict(zip(labels, rest.shape, strict=True))
        matrix = matrix_of(rest, labels, rows, columns, batch=edge.batch)
        requested = prod(ranks[bond] for bond in edge.bonds)
        rank = min(requested, *matrix.shape[-2:])
        U, S, V = truncated_svd(matrix, rank, dtype=target.dtype)
        batch_shape = [shape[label] for label in edge.batch]
        core, rest = U, S[..., None] * V
        bonds: Sequence[str] = edge.bonds
        if len(bonds) == 1:
            sizes = [rank]
        else:  # none, or parallel ones, which keep their sizes: what is missing is 0
            sizes = [ranks[bond] for bond in bonds]
            core = torch.nn.functional.pad(core, (0, requested - rank))
            rest = torch.nn.functional.pad(rest, (0, 0, 0, requested - rank))
        core = core.reshape([*batch_shape, *(shape[label] for label in rows), *sizes])
        values[node.name] = _permute(core, (*edge.batch, *rows, *bonds), node.labels)
        labels = (*edge.batch, *bonds, *columns)
        rest = rest.reshape([*batch_shape, *sizes, *(shape[label] for label in columns)])
    node = tree.cores[tree.root]
    values[node.name] = _permute(rest, labels, node.labels)
    return values


def canonical(values: Mapping[str, Tensor], tree: CoreTree) -> dict[str, Tensor]:
    """The same tree with every core but the root an isometry towards its bond, all of the norm on the root.

    Then an error made in the root is as large in the whole, and another decomposition of the root is the best one of
    the whole with these factors. A core that has fewer rows than values of its bond stays as it is.

    Args:
        values: core -> elements, in the order of its labels.
    """
    found = dict(values)
    for edge in tree.edges:
        child, parent = tree.cores[edge.child], tree.cores[edge.parent]
        rows = tuple(label for label in child.labels if label not in (*edge.batch, *edge.bonds))
        core = found[child.name]
        sizes = dict(zip(child.labels, core.shape, strict=True))
        matrix = matrix_of(core, child.labels, rows, edge.bonds, batch=edge.batch)
        if not edge.bonds or matrix.shape[-2] < matrix.shape[-1]:
            continue
        basis, triangle = torch.linalg.qr(matrix)
        sign = torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(matrix)
        basis, triangle = basis * sign[..., None, :], triangle * sign[..., None]
        shape = [sizes[label] for label in (*edge.batch, *rows, *edge.bonds)]
        found[child.name] = _permute(basis.reshape(shape), (*edge.batch, *rows, *edge.bonds), child.labels)
        new = tuple(bond + "/" for bond in edge.bonds)
        factor = triangle.reshape([sizes[label] for label in (*edge.batch, *edge.bonds, *edge.bonds)])
        after = [bond + "/" if bond in edge.bonds else bond for bond in parent.labels]
        operands = [(factor, (*edge.batch, *new, *edge.bonds)), (found[parent.name], parent.labels)]
        found[parent.name] = contract(operands, after).contiguous()
    return found


def matrix_of(
    tensor: Tensor, labels: Sequence[str], rows: Sequence[str], columns: Sequence[str], *, batch: Sequence[str] = ()
) -> Tensor:
    """Shape (batch, rows, columns), or (rows, columns) without a batch."""
    groups = [batch, rows, columns] if batch else [rows, columns]
    moved = tensor.permute([labels.index(label) for group in groups for label in group])
    shape = dict(zip(labels, tensor.shape, strict=True))
    return moved.reshape([prod(shape[label] for label in group) for group in groups])


def _permute(tensor: Tensor, labels: Sequence[str], order: Sequence[str]) -> Tensor:
    return tensor.permute([labels.index(label) for label in order]).contiguous()


# Ranks -------------------------------------------------------------------------------------------------------


def tree_ranks(
    target: Tensor, tree: CoreTree, ranks: Mapping[str, Rank | UpTo] | ParameterBudget, *, before: int
) -> dict[str, int]:
    """bond -> rank, as integers within the bond's full rank.

    Args:
        target: as for `fit_tree`.
        ranks: bond -> rank; or a budget for all. A rank counts the singular values of the target across the bond's
            cut (of a batch: the root mean square over its values); a parallel bond's rank is an integer.
        before: parameters of the left side, of which a budget is a fraction.

    Raises:
        RankError: a bond has no rank, or one out of range.
    """
    edges = [edge for edge in tree.edges if edge.bonds]
    matrices = {}
    for edge in edges:
        rows = tree.rows[edge.child]
        columns = tuple(label for label in tree.open if label not in rows and label not in edge.batch)
        matrices[edge.bonds] = matrix_of(target, tree.open, rows, columns, batch=edge.batch)
    if isinstance(ranks, ParameterBudget):
        spectra = {bonds[0]: bond_spectrum(matrix) for bonds, matrix in matrices.items()}
        sizes = dict(zip(tree.open, target.shape, strict=True))

        def count(trial: Mapping[str, int]) -> int:
            # the first of parallel bonds has the rank of all of them, the others are 1
            there = {**sizes, **dict.fromkeys(ones, 1), **trial}
            return sum([prod([there[label] for label in core.labels]) for core in tree.cores])

        ones = [bond for edge in edges for bond in edge.bonds[1:]]
        return {**dict.fromkeys(ones, 1), **grow(spectra, count, ranks, before)}
    found: dict[str, int] = {}
    for bonds, matrix in matrices.items():
        full = min(matrix.shape[-2:])
        if len(bonds) == 1:
            of_matrix = partial(bond_spectrum, matrix)
            found[bonds[0]] = kept(ranks[bonds[0]], full, bond=bonds[0], singular_values=of_matrix)
        else:
            for bond in bonds:
                found[bond] = plain_rank(ranks[bond], bond, full=full, because=f"{' '.join(bonds)} are parallel")
    return found


def bond_spectrum(matrix: Tensor) -> list[float]:
    """Of a matrix; of a batch of them, the root mean square over the batch times its root."""
    values = truncated_svd(matrix).S
    squares = values if values.ndim == 1 else torch.linalg.vector_norm(values, dim=0)
    return squares.tolist()
