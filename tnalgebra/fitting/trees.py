"""Fit a tree of cores to a tensor: one truncated SVD a bond, from the leaves to the root.

Each core but the root has orthonormal rows towards its bond, so the squared errors of the bonds add up exactly, and
the whole is within sqrt(number of bonds) of the best there is (Oseledets 2011, thm. 2.2; Grasedyck 2010, thm. 3.11).
An open label on several cores is a batch: each of its values has an SVD of its own.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from math import prod
from typing import NamedTuple

import networkx
import torch
from torch import Tensor

from ..errors import RankError, explain
from ..network import Fuse, NamedTensor, Network, shape_of
from ..tensors import contract, truncated_svd
from .ranks import KeepFraction, ParameterBudget, Rank, RelativeError, allowance, kept


class NoTreeError(ValueError):
    """Why a right side is no tree of cores."""


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

    cores: named tensors, each standing once.
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
        """child -> open labels that stand on its side of the edge to its parent only."""
        below = {number: set(core.labels) & set(self.open) for number, core in enumerate(self.cores)}
        found = {}
        for edge in self.edges:
            found[edge.child] = tuple(label for label in self.open if label in below[edge.child] - set(edge.batch))
            below[edge.parent] |= below[edge.child]
        return found


def tree_of(right: Network) -> CoreTree:
    """Read a right side as a tree of cores.

    Cores are named tensors, each once. `Fuse` nodes may split open labels. Every bond stands on two cores; parallel
    bonds count as one; bonds close no loop. An open label may stand on several cores, if these hang together: then it
    is a batch label. Cores that no bond joins are multiplied, for each value of the batch labels they share.

    Raises:
        NoTreeError: it is none, with the reason.
    """
    cores = cores_of(right)
    if any(not isinstance(node, NamedTensor | Fuse) for node in right.nodes):
        raise NoTreeError("a node is neither a core nor a Fuse")
    if len({node.name for node in cores}) < len(cores):
        raise NoTreeError("a core stands twice")
    labels = open_labels(right)
    ends = _ends(cores)
    bonds: dict[tuple[int, ...], list[str]] = {}
    for label, there in ends.items():
        if label in labels:
            continue
        if len(there) != 2:
            raise NoTreeError(f"the bond {label!r} stands on {len(there)} cores, not on 2")
        bonds.setdefault(tuple(there), []).append(label)
    graph: networkx.Graph[int] = networkx.Graph()
    graph.add_nodes_from(range(len(cores)))
    for one, other in combinations(range(len(cores)), 2):
        shared = [label for label in labels if one in ends.get(label, ()) and other in ends[label]]
        joined = bonds.get((one, other), [])
        graph.add_edge(one, other, weight=len(shared) + (len(ends) + 1) * bool(joined), bonds=joined, batch=shared)
    # the tree with the heaviest edges keeps the cores of each batch label together, if any tree does
    tree = networkx.maximum_spanning_tree(graph)
    if sum(bool(tree.edges[edge]["bonds"]) for edge in tree.edges) < len(bonds):
        raise NoTreeError("the bonds close a loop")
    for label in labels:
        if label in ends and not networkx.is_connected(tree.subgraph(ends[label])):
            raise NoTreeError(f"the open label {label!r} closes a loop")
    degree = networkx.Graph([pair for pair in tree.edges if tree.edges[pair]["bonds"]])
    root = max(range(len(cores)), key=lambda core: (degree.degree(core) if core in degree else 0, core))
    towards = {child: parent for parent, child in networkx.dfs_edges(tree, root)}
    edges = [
        Edge(child, towards[child], *(tuple(tree.edges[child, towards[child]][key]) for key in ("bonds", "batch")))
        for child in networkx.dfs_postorder_nodes(tree, root)
        if child != root
    ]
    return CoreTree(tuple(cores), labels, tuple(edges), root)


def cores_of(right: Network) -> list[NamedTensor]:
    """The named tensors of a right side."""
    return [node for node in right.nodes if isinstance(node, NamedTensor)]


def bonds_of(right: Network) -> tuple[str, ...]:
    """The bonds of a right side, in order of first appearance: what is neither an open label nor part of one."""
    known = {*right.output, *open_labels(right)}
    return tuple(label for label in dict.fromkeys(n for node in right.nodes for n in node.labels) if label not in known)


def open_labels(right: Network) -> tuple[str, ...]:
    """The open labels, each that a `Fuse` splits replaced by its parts.

    A `Fuse` splits an open label if nothing else carries the whole, and every part stands on another node, is not
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


def _ends(cores: Sequence[NamedTensor]) -> dict[str, list[int]]:
    """label -> the cores it stands on."""
    found: dict[str, list[int]] = {}
    for number, core in enumerate(cores):
        for label in dict.fromkeys(core.labels):
            found.setdefault(label, []).append(number)
    return found


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
        wanted = prod(ranks[bond] for bond in edge.bonds)
        most = min(matrix.shape[-2:])
        U, S, V = truncated_svd(matrix, min(wanted, most), dtype=target.dtype)
        rank = min(wanted, most)
        batch_shape = [shape[label] for label in edge.batch]
        core, rest = U, S[..., None] * V
        bonds: Sequence[str] = edge.bonds
        if len(bonds) == 1:
            sizes = [rank]
        else:  # none, or parallel ones, whose sizes stand: what there is not is 0
            sizes = [ranks[bond] for bond in bonds]
            core = torch.nn.functional.pad(core, (0, wanted - rank))
            rest = torch.nn.functional.pad(rest, (0, 0, 0, wanted - rank))
        core = core.reshape([*batch_shape, *(shape[label] for label in rows), *sizes])
        values[node.name] = _ordered(core, (*edge.batch, *rows, *bonds), node.labels)
        labels = (*edge.batch, *bonds, *columns)
        rest = rest.reshape([*batch_shape, *sizes, *(shape[label] for label in columns)])
    node = tree.cores[tree.root]
    values[node.name] = _ordered(rest, labels, node.labels)
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
        found[child.name] = _ordered(basis.reshape(shape), (*edge.batch, *rows, *edge.bonds), child.labels)
        new = tuple(bond + "/" for bond in edge.bonds)
        factor = triangle.reshape([sizes[label] for label in (*edge.batch, *edge.bonds, *edge.bonds)])
        after = [bond + "/" if bond in edge.bonds else bond for bond in parent.labels]
        operands = [(factor, (*edge.batch, *new, *edge.bonds)), (found[parent.name], parent.labels)]
        found[parent.name] = contract(operands, after).contiguous()
    return found


def matrix_of(
    tensor: Tensor, labels: Sequence[str], rows: Sequence[str], columns: Sequence[str], *, batch: Sequence[str] = ()
) -> Tensor:
    """Shape (batch, rows, columns), or (rows, columns) if there is no batch."""
    groups = [batch, rows, columns] if batch else [rows, columns]
    moved = tensor.permute([labels.index(label) for group in groups for label in group])
    shape = dict(zip(labels, tensor.shape, strict=True))
    return moved.reshape([prod(shape[label] for label in group) for group in groups])


def _ordered(tensor: Tensor, labels: Sequence[str], order: Sequence[str]) -> Tensor:
    return tensor.permute([labels.index(label) for label in order]).contiguous()


# Ranks -------------------------------------------------------------------------------------------------------


def tree_ranks(
    target: Tensor, tree: CoreTree, ranks: Mapping[str, Rank] | ParameterBudget, *, before: int
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
        spectra = {bonds[0]: singular_values(matrix) for bonds, matrix in matrices.items()}
        sizes = dict(zip(tree.open, target.shape, strict=True))

        def count(trial: Mapping[str, int]) -> int:
            # the first of parallel bonds has the rank of all of them, the others are 1
            return _numbers(tree.cores, {**sizes, **dict.fromkeys(ones, 1), **trial})

        ones = [bond for edge in edges for bond in edge.bonds[1:]]
        return {**dict.fromkeys(ones, 1), **grow(spectra, count, ranks, before)}
    found: dict[str, int] = {}
    for bonds, matrix in matrices.items():
        full = min(matrix.shape[-2:])
        if len(bonds) == 1:
            of_matrix = partial(singular_values, matrix)
            found[bonds[0]] = kept(ranks[bonds[0]], full, bond=bonds[0], singular_values=of_matrix)
        else:
            for bond in bonds:
                found[bond] = plain_rank(ranks[bond], bond, full=full, because=f"{' '.join(bonds)} are parallel")
    return found


def plain_rank(rank: Rank, bond: str, *, full: int | None, because: str) -> int:
    """A rank that must be a number, as the bond has no singular values of its own.

    Args:
        full: no fit needs a larger one; None where nobody knows.

    Raises:
        RankError: it is a fraction, an error or a budget, out of range, or no rank at all.
    """
    if isinstance(rank, KeepFraction | RelativeError | ParameterBudget):
        raise RankError(
            explain(
                f"the bond {bond!r} has no singular values of its own: {because}",
                given=rank,
                fix="an integer, or one ParameterBudget for all bonds",
            )
        )
    try:
        number = operator.index(rank)
    except TypeError:
        number = None
    if number is None or isinstance(rank, bool):
        raise RankError(explain(f"the rank of bond {bond!r} is {rank!r}", fix="an integer"))
    if number < 1 or (full is not None and number > full):
        most = "" if full is None else f" to {full}"
        fix = "at least 1" if full is None else f"1 to {full}; more are never needed"
        raise RankError(explain(f"rank {number} of bond {bond!r} is outside 1{most}", fix=fix))
    return number


def singular_values(matrix: Tensor) -> list[float]:
    """Of a matrix; of a batch of them, the root mean square over the batch times its root."""
    values = truncated_svd(matrix).S
    squares = values if values.ndim == 1 else torch.linalg.vector_norm(values, dim=0)
    return squares.tolist()


def _numbers(cores: Sequence[NamedTensor], sizes: Mapping[str, int]) -> int:
    return sum(prod(sizes[label] for label in core.labels) for core in cores)


def grow(
    spectra: Mapping[str, Sequence[float]],
    count: Callable[[Mapping[str, int]], int],
    budget: ParameterBudget,
    before: int,
) -> dict[str, int]:
    """Ranks under a budget: the better of two greedy ways.

    From rank 1 upwards the bond grows whose next value saves most squared error a parameter. From full rank downwards
    the bond shrinks whose last value costs least a parameter, until the budget is met, and then all grow again as far
    as there is room. A parameter's price depends on the ranks beside it, so either way can be led astray: upwards,
    Tucker cores stay flat; downwards, a bond that is no use keeps the room of others. The better one is the one that
    keeps more, if each bond keeps its part of the squared norm independently of the others.

    Args:
        spectra: bond -> singular values, descending.
        count: parameters at given ranks.
        before: parameters of the left side, of which the budget is a fraction.

    Raises:
        RankError: even rank 1 everywhere is too much.
    """
    ones = dict.fromkeys(sorted(spectra), 1)
    limit = allowance(budget, before, least=count(ones))
    largest = max((values[0] for values in spectra.values()), default=0.0) or 1.0  # squares must not overflow
    squares = {bond: [(value / largest) ** 2 for value in spectra[bond]] for bond in ones}

    def left_out(ranks: Mapping[str, int]) -> float:
        return 1 - prod(_part(squares[bond][:rank], squares[bond]) for bond, rank in ranks.items())

    upwards = _grown(ones, squares, count, limit)
    full = {bond: len(values) for bond, values in squares.items()}
    downwards = _grown(_shrunk(full, squares, count, limit), squares, count, limit)
    return min((upwards, downwards), key=left_out)


def _part(kept_squares: Sequence[float], squares: Sequence[float]) -> float:
    whole = math.fsum(squares)
    return math.fsum(kept_squares) / whole if whole else 1.0


def _grown(
    ranks: Mapping[str, int],
    squares: Mapping[str, Sequence[float]],
    count: Callable[[Mapping[str, int]], int],
    limit: int,
) -> dict[str, int]:
    """One value at a time, the one that saves most a parameter; of equals, the first bond."""
    grown = dict(ranks)
    now = count(grown)
    while True:
        best: tuple[float, str, int] | None = None
        for bond, rank in grown.items():
            if rank < len(squares[bond]):
                cost = count({**grown, bond: rank + 1}) - now
                gain = squares[bond][rank] / cost
                if now + cost <= limit and (best is None or gain > best[0]):
                    best = gain, bond, cost
        if best is None:
            return grown
        grown[best[1]] += 1
        now += best[2]


def _shrunk(
    ranks: Mapping[str, int],
    squares: Mapping[str, Sequence[float]],
    count: Callable[[Mapping[str, int]], int],
    limit: int,
) -> dict[str, int]:
    """One value at a time, the one that costs least a parameter; of equals, the first bond."""
    shrunk = dict(ranks)
    now = count(shrunk)
    while now > limit:
        costs = []
        for bond, rank in shrunk.items():
            if rank > 1:
                saved = now - count({**shrunk, bond: rank - 1})
                costs.append((squares[bond][rank - 1] / saved, bond, saved))
        _, bond, saved = min(costs, key=lambda cost: cost[0])
        shrunk[bond] -= 1
        now -= saved
    return shrunk
