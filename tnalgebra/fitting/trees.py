"""Fit a tree of cores to a tensor by one truncated SVD for each bond, from the leaves to the root.

Each core but the root has orthonormal rows towards its bond, so the squared errors of the bonds add up exactly, and the
error is at most sqrt(number of bonds) times the least one (Oseledets 2011, thm. 2.2; Grasedyck 2010, thm. 3.11). An
open label on several cores is a batch label: each of its values has an SVD of its own.
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
from ..tensors import singular_values, truncated_svd
from .axes import group_axes, split_axes
from .ranks import UpTo, grow, kept, kept_part, plain_rank
from .size import ParameterBudget, Rank

ROUNDING = 1e-13
"""Squares of singular values below this part of the largest one are only rounding."""


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
    return [node for node in right.nodes if isinstance(node, NamedTensor)]


def splitting(right: Network) -> list[Fuse]:
    """The `Fuse` nodes that split open labels, which a reshape of the target undoes.

    A `Fuse` splits an open label if no other node has the whole. Its parts must differ, occur on other nodes, and
    neither be open nor occur on another `Fuse`.
    """
    splits = []
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
    return tuple(label for label in dict.fromkeys(n for node in right.nodes for n in node.labels) if label not in known)


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


# Ranks -------------------------------------------------------------------------------------------------------------


class TreeSpectra:
    """The singular values of a target across each bond of a tree. Each is computed when it is needed, and once.

    Attributes:
        target: as for `fit_tree`.
        tree: the cores.
        edges: the edges that have bonds.
    """

    def __init__(self, target: Tensor, tree: CoreTree) -> None:
        self.target = target
        self.tree = tree
        self.edges = [edge for edge in tree.edges if edge.bonds]
        self._squares: dict[Edge, list[float]] = {}

    def matrix(self, edge: Edge) -> Tensor:
        """The target as the matrix of an edge: its rows are the labels on the side of the child."""
        tree, rows = self.tree, self.tree.rows[edge.child]
        columns = tuple(label for label in tree.open if label not in rows and label not in edge.batch)
        return matrix_of(self.target, tree.open, rows, columns, batch=edge.batch)

    def full_rank(self, edge: Edge) -> int:
        shape = dict(zip(self.tree.open, self.target.shape, strict=True))
        rows = prod(shape[label] for label in self.tree.rows[edge.child])
        return min(rows, self.target.numel() // (rows * prod(shape[label] for label in edge.batch)))

    def squares(self, edge: Edge) -> list[float]:
        """The squares of the singular values, descending; for a batch, sums over it.

        They are eigenvalues of a Gram matrix, whose error is about 1e-15 of the largest one.
        """
        if self.is_star:
            return self._star[0][edge]
        if edge not in self._squares:
            self._squares[edge] = _squared_values(self.matrix(edge))
        return self._squares[edge]

    @cached_property
    def is_star(self) -> bool:
        """Whether every bond joins a leaf to the root, so that a change of one basis leaves the others as they are."""
        each = (len(edge.bonds) == 1 and not edge.batch and edge.parent == self.tree.root for edge in self.tree.edges)
        return all(each)

    @cached_property
    def _star(self) -> tuple[dict[Edge, list[float]], Tensor]:
        """One orthogonal factorisation: the target in the bases of all its leaves.

        Returns:
            The squared singular values of each edge; and a table whose element [p - 1, q - 1, ..] is what ||target||^2
            is in the first p, q, .. left singular vectors of the edges.
        """
        rest, labels = self.target, self.tree.open
        spectra: dict[Edge, list[float]] = {}
        # a leaf with more values than the rest goes first: afterwards it has at most as many as that
        for edge in sorted(self.tree.edges, key=lambda edge: -prod(self._sizes(edge))):
            rows = self.tree.rows[edge.child]
            columns = tuple(label for label in labels if label not in rows)
            matrix = matrix_of(rest, labels, rows, columns)
            squares, turned = _turned_matrix(matrix)
            spectra[edge] = squares.tolist()
            sizes = dict(zip(labels, rest.shape, strict=True))
            labels = (*edge.bonds, *columns)
            rest = turned.reshape(len(turned), *(sizes[label] for label in columns))
        bonds = [edge.bonds for edge in self.tree.edges]
        others = tuple(label for label in labels if (label,) not in bonds)
        table = group_axes(rest.square(), labels, *bonds, others).sum(-1)
        for axis in range(table.ndim):
            table = table.cumsum(axis)
        return spectra, table

    def _sizes(self, edge: Edge) -> list[int]:
        shape = dict(zip(self.tree.open, self.target.shape, strict=True))
        return [shape[label] for label in self.tree.rows[edge.child]]

    def loss(self, ranks: Mapping[str, int]) -> float:
        """The squared relative error of the cores of these ranks, before any sweep, as a part of ||target||^2.

        In a star it is that of the target in the leading singular vectors of all bonds at the same time, from one
        orthogonal factorisation for all ranks. In another tree each bond is taken to keep its part of the squared norm
        independently of the others.
        """
        if self.is_star and self.tree.edges:
            place = tuple(min(ranks[edge.bonds[0]], self.full_rank(edge)) - 1 for edge in self.tree.edges)
            table = self._star[1]
            whole = float(table.flatten()[-1])
            part = float(table[place]) / whole if whole else 1.0
        else:
            part = 1.0
            for edge in self.tree.edges:
                squares = self.squares(edge)
                part *= kept_part(squares[: prod(ranks[bond] for bond in edge.bonds)], squares)
        return 0.0 if part > 1 - ROUNDING else 1 - part


def _squared_values(matrix: Tensor) -> list[float]:
    gram = matrix @ matrix.mT if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT @ matrix
    squares = torch.linalg.eigvalsh(gram).flip(-1).clamp(min=0)
    summed: list[float] = _without_rounding(squares if squares.ndim == 1 else squares.sum(0)).tolist()
    return summed


def _turned_matrix(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The squares of the singular values, descending, and U^T matrix, where U has the left singular vectors."""
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = torch.linalg.eigh(matrix @ matrix.mT if wide else matrix.mT @ matrix)
    squares, vectors = _without_rounding(squares.flip(0).clamp(min=0)), vectors.flip(1)
    return squares, vectors.mT @ matrix if wide else squares.sqrt()[:, None] * vectors.mT


def _without_rounding(squares: Tensor) -> Tensor:
    return torch.where(squares > ROUNDING * squares.max(), squares, 0.0)


def tree_ranks(
    spectra: TreeSpectra, ranks: Mapping[str, Rank | UpTo] | ParameterBudget, *, before: int
) -> dict[str, int]:
    """The rank of each bond, as an integer within the full rank of the bond.

    Args:
        spectra: of the target.
        ranks: of each bond, or a budget for all. A rank counts the singular values of the target across the cut of the
            bond; for a batch, the root mean square over its values. The rank of a parallel bond is an integer.
        before: parameters of the left side, of which a budget is a fraction.

    Raises:
        RankError: a rank is out of range.
    """
    tree = spectra.tree
    if isinstance(ranks, ParameterBudget):
        squares = {edge.bonds[0]: spectra.squares(edge) for edge in spectra.edges}
        # the first of parallel bonds has the rank of all of them, and the others are 1
        ones = {bond: 1 for edge in spectra.edges for bond in edge.bonds[1:]}
        sizes = {**dict(zip(tree.open, spectra.target.shape, strict=True)), **ones}

        def count(trial: Mapping[str, int]) -> int:
            known = {**sizes, **trial}
            return sum([prod([known[label] for label in core.labels]) for core in tree.cores])

        return {**ones, **grow(squares, count, ranks, before)}
    chosen: dict[str, int] = {}
    for edge in spectra.edges:
        full, because = spectra.full_rank(edge), f"{' '.join(edge.bonds)} are parallel"
        for bond in edge.bonds:
            if len(edge.bonds) == 1:
                values = partial(bond_spectrum, spectra.matrix(edge))
                chosen[bond] = kept(ranks[bond], full, bond=bond, singular_values=values)
            else:
                chosen[bond] = plain_rank(ranks[bond], bond, full=full, because=because)
    return chosen


def bond_spectrum(matrix: Tensor) -> list[float]:
    """The singular values of a matrix. For a batch of matrices, the root of the sum of their squares."""
    values = singular_values(matrix)
    squares = values if values.ndim == 1 else torch.linalg.vector_norm(values, dim=0)
    return squares.tolist()
