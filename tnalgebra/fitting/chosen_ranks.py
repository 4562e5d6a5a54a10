"""Ranks and objective of any right side: which labels are bonds, how large each becomes, what is held fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod

import networkx
import torch
from torch import Tensor

from ..errors import RankError, ValuesError, explain
from ..networks import NamedTensor, Network, carriers, fresh, with_sizes
from ..tensors import pattern
from .metric import Metric
from .objective import Objective, Occurrence
from .ranks import UpTo, allowance, kept, plain_rank, rank_of
from .size import ParameterBudget, Rank, Size
from .trees import (
    CoreTree,
    NoTreeError,
    bond_spectrum,
    bonds_of,
    cores_of,
    matrix_of,
    open_labels,
    splitting,
    tree_of,
    tree_ranks,
)

ORTHONORMAL = 1e-6
"""How far rows of a constant may be from orthonormal where the best of them are chosen."""


def tree_or_none(right: Network, constants: Mapping[str, object] = {}) -> CoreTree | None:
    """The right side as a tree, if it is one and all of it is to be fitted."""
    if constants:
        return None
    try:
        return tree_of(right)
    except NoTreeError:
        return None


def chosen_ranks(
    target: Tensor,
    right: Network,
    size: Size,
    *,
    tree: CoreTree | None,
    constants: Mapping[str, Tensor],
    before: int,
) -> dict[str, int]:
    """bond -> size, for every bond of a right side.

    Args:
        target: one axis for each of `open_labels(right)`.
        right: the sizes of its open labels are known; sizes it states for bonds are ranks.
        size: of the bonds, but for those whose size the right side or a constant states; no `MultiplyAddsBudget`.
        tree: of the right side, see `tree_or_none`.
        constants: name -> elements, of tensors that are held fixed; they determine the sizes of their bonds.
        before: parameters of the left side, of which a budget is a fraction.

    Raises:
        RankError: a bond has no rank, or one out of range, or one that needs singular values where it has none.
    """
    bonds = bonds_of(right)
    given = _given(right, constants, bonds)
    if isinstance(size, ParameterBudget):
        if tree is not None and not given:
            return tree_ranks(target, tree, size, before=before)
        return _grow_evenly(right, given, constants, limit=partial(allowance, size, before))
    missing = [bond for bond in bonds if bond not in given and isinstance(size, Mapping) and bond not in size]
    if missing:
        each = ", ".join(f"{bond!r}: 8" for bond in missing)
        fix = f"{{{each}}}, one size for all bonds, or a ParameterBudget"
        raise RankError(explain(f"no size is given for {', '.join(map(repr, missing))}", fix=fix))
    own = set(size) if isinstance(size, Mapping) else set(bonds) - set(given)
    requested = {bond: rank_of(size, bond) if bond in own else given[bond] for bond in bonds}
    if tree is not None:
        return tree_ranks(target, tree, requested, before=before)
    return {bond: _rank(bond, requested[bond], target, right, size=given.get(bond)) for bond in bonds}


def _given(right: Network, constants: Mapping[str, Tensor], bonds: Sequence[str]) -> dict[str, int]:
    """Sizes of bonds that are stated in the text, follow from others, or that a constant has."""
    found = {bond: right.sizes[bond] for bond in bonds if bond in right.sizes}
    for node in right.nodes:
        if isinstance(node, NamedTensor) and node.name in constants:
            found |= {
                label: size
                for label, size in zip(node.labels, constants[node.name].shape, strict=True)
                if label in bonds
            }
    return found


def _rank(bond: str, rank: Rank | UpTo, target: Tensor, right: Network, *, size: int | None) -> int:
    """size: of the bond, where it is known."""
    most = target.numel() if size is None else size
    standing = carriers(right)[bond]
    if len(standing) != 2:
        return plain_rank(rank, bond, full=most, because=f"it occurs on {len(standing)} tensors")
    names = [node.name for node in cores_of(right)]
    if len(set(names)) < len(names):
        return plain_rank(rank, bond, full=most, because="a core occurs twice")
    side = _bridge(right, bond)
    if side is None:
        return plain_rank(rank, bond, full=most, because="it is part of a loop")
    labels = open_labels(right)
    rows = tuple(label for label in labels if label in side)
    columns = tuple(label for label in labels if label not in side)
    matrix = matrix_of(target, labels, rows, columns)
    full = min(matrix.shape[-2:]) if size is None else size
    return kept(rank, full, bond=bond, singular_values=partial(bond_spectrum, matrix))


def _bridge(right: Network, bond: str) -> set[str] | None:
    """The open labels on one side of a bond whose cut makes the network fall apart; None if it does not."""
    graph: networkx.Graph[object] = networkx.Graph()
    nodes = [node for node in right.nodes if node not in splitting(right)]
    for number, node in enumerate(nodes):
        graph.add_edges_from((number, label) for label in node.labels if label != bond)
    ends = [number for number, node in enumerate(nodes) if bond in node.labels]
    side = networkx.node_connected_component(graph, ends[0]) if ends[0] in graph else {ends[0]}
    if ends[1] in side:
        return None
    return {label for label in open_labels(right) if label in side}


def _grow_evenly(
    right: Network, given: Mapping[str, int], constants: Mapping[str, Tensor], *, limit: Callable[..., int]
) -> dict[str, int]:
    """Where bonds have no singular values, the smallest grows first; of equals, the first in the alphabet.

    limit: the most parameters, given the `least` there can be.
    """
    tensors = {node.name: node.labels for node in right.nodes if isinstance(node, NamedTensor)}
    standing = carriers(right)
    cut = {
        bond: size
        for bond, size in given.items()
        if bond not in right.sizes and _rows_to_choose(bond, right, constants)
    }
    bonds = sorted(bond for bond in bonds_of(right) if bond not in given or bond in cut)
    ranks = {**given, **dict.fromkeys(bonds, 1)}

    def size(label: str, trial: Mapping[str, int]) -> int:
        return trial[label] if label in trial else right.sizes[label]

    def count(trial: Mapping[str, int]) -> int:
        return sum(prod(size(label, trial) for label in labels) for labels in tensors.values())

    def useful(bond: str) -> bool:
        """Between two tensors a bond never needs more values than the other labels of either of them have."""
        ends = [right.nodes[position].labels for position, _ in standing[bond]]
        most = min(prod(size(label, ranks) for label in labels if label != bond) for labels in ends)
        return ranks[bond] < cut.get(bond, ranks[bond] + 1) and (len(ends) != 2 or ranks[bond] < most)

    most = limit(least=count(ranks))
    while True:
        fitting = [bond for bond in bonds if useful(bond) and count({**ranks, bond: ranks[bond] + 1}) <= most]
        if not fitting:
            return ranks
        ranks[min(fitting, key=lambda bond: (ranks[bond], bond))] += 1


def _rows_to_choose(bond: str, right: Network, constants: Mapping[str, Tensor]) -> bool:
    """Whether every constant on a bond can be cut down to fewer values of it."""
    ends = [node for node in right.nodes if isinstance(node, NamedTensor) and bond in node.labels]
    there = [(node, constants[node.name]) for node in ends if node.name in constants]
    return all(
        len(node.labels) == 2
        and set(node.labels) - {bond} <= set(open_labels(right))
        and _orthonormal(constant.movedim(node.labels.index(bond), 0))
        for node, constant in there
    )


def _orthonormal(rows: Tensor) -> bool:
    gram = rows @ rows.mT
    return float((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs().max()) <= ORTHONORMAL


def select_rows(
    constants: Mapping[str, Tensor], right: Network, ranks: Mapping[str, int], target: Tensor
) -> dict[str, Tensor]:
    """Constants cut down to the ranks of their bonds: of orthonormal rows, those that keep most of the target's norm.

    Args:
        target: one axis for each of `open_labels(right)`.

    Raises:
        ValuesError: a constant is to be cut down whose rows are not orthonormal, or that is not a matrix of a bond and
            an open label.
    """
    labels = open_labels(right)
    found = {}
    for node in right.nodes:
        if not isinstance(node, NamedTensor) or node.name not in constants:
            continue
        constant = constants[node.name]
        smaller = [
            axis for axis, label in enumerate(node.labels) if label in ranks and ranks[label] < constant.shape[axis]
        ]
        for axis in smaller:
            other = [label for label in node.labels if label in labels]
            if len(node.labels) != 2 or len(other) != 1:
                raise ValuesError(
                    explain(
                        f"the constant {node.name!r} has {constant.shape[axis]} values of {node.labels[axis]!r}, "
                        f"the rank is {ranks[node.labels[axis]]}",
                        fix="a matrix of a bond and an open label, or a constant of the size of the rank",
                    )
                )
            rows = constant.movedim(axis, 0)
            if not _orthonormal(rows):
                raise ValuesError(
                    explain(
                        f"the rows of the constant {node.name!r} are not orthonormal, so none are the best aligned",
                        fix=f"an orthonormal basis, or {ranks[node.labels[axis]]} rows chosen by you",
                    )
                )
            energy = torch.tensordot(rows.to(target), target, dims=([1], [labels.index(other[0])]))
            norms = torch.linalg.vector_norm(energy.flatten(1), dim=1)
            best = norms.argsort(descending=True, stable=True)[: ranks[node.labels[axis]]].sort().values
            constant = rows[best].movedim(0, axis)
        found[node.name] = constant
    return found


def objective_of(
    targets: Tensor,
    right: Network,
    ranks: Mapping[str, int],
    *,
    constants: Mapping[str, Tensor] = {},
    metrics: Sequence[Metric] = (),
) -> Objective:
    """The fit of a right side to kernels of one shape.

    Args:
        targets: shape (layers, *sizes of open_labels(right)).
        constants: name -> elements; reserved nodes become constants too.
        metrics: one for each layer, their labels those of `open_labels(right)`; none for the Frobenius norm.
    """
    sizes = {**right.sizes, **ranks}
    undone, output = splitting(right), open_labels(right)
    taken = {node.name for node in right.nodes if isinstance(node, NamedTensor)}
    held = {name: constant.to(targets) for name, constant in constants.items()}
    occurrences: list[Occurrence] = []
    free: dict[str, tuple[int, ...]] = {}
    for node in right.nodes:
        if isinstance(node, NamedTensor):
            occurrences.append(Occurrence(node.name, node.labels))
            if node.name not in constants:
                free[node.name] = tuple([sizes[label] for label in node.labels])
        elif node not in undone:
            name = fresh(node.name, taken)
            taken.add(name)
            held[name] = pattern(node, with_sizes(right, ranks)).to(targets)
            occurrences.append(Occurrence(name, node.labels))
    metric = None
    coupled: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    if metrics:
        coupled, blocks = metrics[0].labels, metrics[0].batch
        metric = torch.stack([each.covariance.to(targets) for each in metrics])
    return Objective(tuple(occurrences), output, targets, free, held, metric, coupled, blocks)
