"""Fit a tree of cores to a tensor: one truncated SVD a bond, from the leaves to the root.

Each core but the root has orthonormal rows towards its bond, so the squared errors of the bonds add up exactly, and
the whole is within sqrt(number of bonds) of the best there is (Oseledets 2011, thm. 2.2; Grasedyck 2010, thm. 3.11).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import networkx
import torch
from torch import Tensor

from ..bipartition import Bipartition
from ..errors import RankError, explain
from ..linalg import matricise, truncated_svd
from ..network import Network, shape_of
from ..nodes import Fuse, NamedTensor, node_text
from ..ranks import ParameterBudget, Rank, allowance, kept
from ..valuation import norm


@dataclass(frozen=True)
class TreeFit:
    """values: core -> elements, float64. relative_error: of the contracted tree. ranks: bond -> size."""

    values: dict[str, Tensor]
    relative_error: float
    ranks: dict[str, int]


def why_no_tree(right: Network) -> str | None:
    """What keeps a right side from being a tree of cores, or None if it is one.

    Cores are named tensors, each once. `Fuse` nodes may split open labels. Every open label (or part of one) stands
    on one core, every bond on two; the bonds, no two of them parallel, join all cores without a loop.
    """
    cores, parts = _cores(right), _parts(right)
    if any(not isinstance(node, NamedTensor | Fuse) for node in right.nodes):
        return "a node is neither a core nor a Fuse"
    if len({node.name for node in cores}) < len(cores):
        return "a core stands twice"
    for node in right.nodes:
        if isinstance(node, Fuse) and node.whole not in right.output:
            return f"{node_text(node)} splits a bond"
    ends = _ends(cores)
    split = [part for label in right.output for part in parts_of(right, label)]
    for label in dict.fromkeys((*split, *ends)):
        if split.count(label) > 1:
            return f"{label!r} is a part of two labels, or twice of one"
        if label in right.output and label not in parts:
            return f"the label {label!r}, which a Fuse splits, stands on a core"
        wanted, standing = 1 if label in parts else 2, len(ends.get(label, ()))
        if standing != wanted:
            kind = "open label" if label in parts else "bond"
            return f"the {kind} {label!r} stands on {standing} cores, not on {wanted}"
    graph = _graph(cores, parts)
    if graph.number_of_edges() != sum(label not in parts for label in ends):
        return "two bonds are parallel"
    if not networkx.is_connected(graph):
        return "the cores are not connected"
    if graph.number_of_edges() >= len(cores):
        return "the bonds close a loop"
    return None


def bonds_of(right: Network) -> tuple[str, ...]:
    """The bonds of a right side, in order of first appearance: what is neither an open label nor part of one."""
    parts = _parts(right)
    return tuple(label for label in _ends(_cores(right)) if label not in parts)


def fit_tree(target: Tensor, right: Network, ranks: Mapping[str, Rank] | Rank, *, before: int) -> TreeFit:
    """Fit the cores of a tree.

    Args:
        target: one axis for each output label of `right`, in their order.
        right: a tree (`why_no_tree` is None); the sizes of its output, and of the parts of its `Fuse`, are known.
        ranks: bond -> rank; or a `ParameterBudget`. A rank counts the singular values of the target across the
            bond's cut; where smaller bonds beside it leave fewer, the bond becomes that much smaller.
        before: parameters of the left side, of which a budget is a fraction.

    Returns:
        Values in float64, in the order of each core's labels, and the relative error.

    Raises:
        RankError: a bond has no rank, or one out of range.
    """
    cores, parts = _cores(right), _parts(right)
    labels = tuple(part for label in right.output for part in parts_of(right, label))
    rest = target.detach().to(torch.float64).reshape(shape_of(right, labels))
    whole = norm(rest)
    graph = _graph(cores, parts)
    root = max(range(len(cores)), key=lambda core: (graph.degree(core), core))
    wanted = _resolve(rest, labels, _rows_of_bonds(cores, parts, graph, root), ranks, cores, before)

    values: dict[str, Tensor] = {}
    chosen: dict[str, int] = {}
    dropped = 0.0
    towards = {child: parent for parent, child in networkx.dfs_edges(graph, root)}
    for child in networkx.dfs_postorder_nodes(graph, root):
        node = cores[child]
        if child == root:
            values[node.name] = _ordered(rest, labels, node.labels)
            continue
        bond = graph.edges[child, towards[child]]["bond"]
        rows = tuple(label for label in node.labels if label != bond)
        columns = tuple(label for label in labels if label not in rows)
        shape = dict(zip(labels, rest.shape, strict=True))
        U, S, V = truncated_svd(_matrix(rest, labels, rows, columns))
        rank = chosen[bond] = min(wanted[bond], len(S))
        dropped = math.hypot(dropped, norm(S[rank:]))
        core = U[:, :rank].reshape([*(shape[label] for label in rows), rank])
        values[node.name] = _ordered(core, (*rows, bond), node.labels)
        rest = (S[:rank, None] * V[:rank]).reshape([rank, *(shape[label] for label in columns)])
        labels = (bond, *columns)
    return TreeFit(values, dropped / whole if whole else 0.0, chosen)


def _matrix(tensor: Tensor, labels: Sequence[str], rows: tuple[str, ...], columns: tuple[str, ...]) -> Tensor:
    if rows and columns:
        return matricise(tensor, labels, Bipartition(rows, columns))
    return tensor.reshape((1, -1) if columns else (-1, 1))  # a core, or the rest, with a bond as its only label


def _ordered(tensor: Tensor, labels: Sequence[str], order: Sequence[str]) -> Tensor:
    return tensor.permute([labels.index(label) for label in order]).contiguous()


# The shape of the tree ---------------------------------------------------------------------------------------


def _cores(right: Network) -> list[NamedTensor]:
    return [node for node in right.nodes if isinstance(node, NamedTensor)]


def parts_of(right: Network, label: str) -> tuple[str, ...]:
    """What an open label is split into by a `Fuse` of the right side; itself, if by none."""
    for node in right.nodes:
        if isinstance(node, Fuse) and node.whole == label:
            return node.parts
    return (label,)


def _parts(right: Network) -> set[str]:
    return {part for label in right.output for part in parts_of(right, label)}


def _ends(cores: Sequence[NamedTensor]) -> dict[str, list[int]]:
    """label -> the cores it stands on."""
    found: dict[str, list[int]] = {}
    for number, core in enumerate(cores):
        for label in core.labels:
            found.setdefault(label, []).append(number)
    return found


def _graph(cores: Sequence[NamedTensor], parts: set[str]) -> networkx.Graph[int]:
    graph: networkx.Graph[int] = networkx.Graph()
    graph.add_nodes_from(range(len(cores)))
    for label, ends in _ends(cores).items():
        if label not in parts and len(ends) == 2:
            graph.add_edge(*ends, bond=label)
    return graph


def _rows_of_bonds(
    cores: Sequence[NamedTensor], parts: set[str], graph: networkx.Graph[int], root: int
) -> dict[str, tuple[str, ...]]:
    """bond -> the open labels on the side of it that is away from the root."""
    found: dict[str, tuple[str, ...]] = {}
    for parent, child in networkx.dfs_edges(graph, root):
        pruned = graph.copy()
        pruned.remove_edge(parent, child)
        side = networkx.node_connected_component(pruned, child)
        labels = (label for core in sorted(side) for label in cores[core].labels if label in parts)
        found[graph.edges[parent, child]["bond"]] = tuple(labels)
    return found


# Ranks -------------------------------------------------------------------------------------------------------


def _resolve(
    target: Tensor,
    labels: tuple[str, ...],
    rows: Mapping[str, tuple[str, ...]],
    ranks: Mapping[str, Rank] | Rank,
    cores: Sequence[NamedTensor],
    before: int,
) -> dict[str, int]:
    """bond -> rank, as integers within the bond's full rank."""
    matrices = {
        bond: _matrix(target, labels, side, tuple(label for label in labels if label not in side))
        for bond, side in rows.items()
    }
    if isinstance(ranks, ParameterBudget):
        spectra = {bond: truncated_svd(matrix).S.tolist() for bond, matrix in matrices.items()}
        sizes = dict(zip(labels, target.shape, strict=True))
        return grow(spectra, lambda trial: _numbers(cores, {**sizes, **trial}), ranks, before)
    if not isinstance(ranks, Mapping):
        if len(matrices) != 1:
            raise RankError(
                explain(f"one rank, {ranks!r}, for the bonds {' '.join(matrices)}", fix="ranks={'a': ..., 'b': ...}")
            )
        ranks = dict.fromkeys(matrices, ranks)
    missing = [bond for bond in matrices if bond not in ranks]
    if missing:
        raise RankError(
            explain(
                f"no rank for {', '.join(map(repr, missing))}",
                fix=f"ranks={{{missing[0]!r}: ...}} or a ParameterBudget",
            )
        )
    return {bond: _kept(ranks[bond], matrix, bond) for bond, matrix in matrices.items()}


def _kept(rank: Rank, matrix: Tensor, bond: str) -> int:
    return kept(rank, min(matrix.shape), bond=bond, singular_values=lambda: truncated_svd(matrix).S.tolist())


def _numbers(cores: Sequence[NamedTensor], sizes: Mapping[str, int]) -> int:
    return sum(prod(sizes[label] for label in core.labels) for core in cores)


def grow(
    spectra: Mapping[str, Sequence[float]],
    count: Callable[[Mapping[str, int]], int],
    budget: ParameterBudget,
    before: int,
) -> dict[str, int]:
    """Ranks under a budget: grow, one at a time, the bond whose next value saves most squared error a parameter.

    Args:
        spectra: bond -> singular values, descending.
        count: parameters at given ranks.
        before: parameters of the left side, of which the budget is a fraction.

    Raises:
        RankError: even rank 1 everywhere is too much.
    """
    ranks = dict.fromkeys(sorted(spectra), 1)
    limit = allowance(budget, before, least=count(ranks))
    largest = max((values[0] for values in spectra.values()), default=0.0) or 1.0  # squares must not overflow
    while True:
        now = count(ranks)
        gains = {}
        for bond, rank in ranks.items():
            if rank < len(spectra[bond]):
                cost = count({**ranks, bond: rank + 1}) - now
                if now + cost <= limit:
                    gains[bond] = (spectra[bond][rank] / largest) ** 2 / cost
        if not gains:
            return ranks
        ranks[max(gains, key=lambda bond: gains[bond])] += 1
