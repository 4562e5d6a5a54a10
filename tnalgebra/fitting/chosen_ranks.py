"""The ranks and the objective of any right side: how large each bond becomes, and what is held fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial

import networkx
import torch
from torch import Tensor

from ..errors import RankError, SizeError, ValuesError
from ..networks import Conv, Fuse, NamedTensor, Network, Node, fresh, node_text, with_sizes
from ..tensors import pattern
from .bonds import chosen_first, ends_of, equal_labels, grow_evenly, sizes_with, with_one_bond_for_copies
from .metric import Metric
from .objective import Objective, Occurrence
from .ranks import UpTo, allowance, kept, plain_rank, rank_of
from .size import ParameterBudget, Rank, Size
from .tree_spectra import TreeSpectra, bond_spectrum, tree_ranks
from .trees import (
    CoreTree,
    NoTreeError,
    bonds_of,
    cores_of,
    matrix_of,
    open_labels,
    splitting,
    tree_of,
)

KEPT_TREES = 256
"""How many right sides are kept as trees."""

SCALE = "scale/"
"""Name of the number that divides terms without a free core. No tensor of the notation has such a name."""

ORTHONORMAL = 1e-6
"""How far from orthonormal the rows of a constant may be if the best of them are to be chosen."""


def tree_or_none(right: Network, constants: Mapping[str, object] = {}) -> CoreTree | None:
    """The right side as a tree, if it is one and all of it is to be fitted."""
    return None if constants else _tree_or_none(right)


@lru_cache(maxsize=KEPT_TREES)
def _tree_or_none(right: Network) -> CoreTree | None:
    try:
        return tree_of(right)
    except NoTreeError:
        return None


def chosen_ranks(
    target: Tensor,
    right: Network,
    size: Size,
    *,
    spectra: TreeSpectra | None,
    constants: Mapping[str, Tensor],
    before: int,
) -> dict[str, int]:
    """The rank of every bond of a right side.

    Args:
        target: one axis for each of `open_labels(right)`.
        right: the sizes of its open labels are known. Sizes that it states for bonds are ranks.
        size: of the bonds, except for those whose size the right side or a constant states; of budgets,
            only a `ParameterBudget`.
        spectra: of the target, if the right side is a tree (`tree_or_none`).
        constants: the elements of the tensors that are held fixed, by name. They determine the sizes of their bonds.
        before: parameters of the left side, of which a budget is a fraction.

    Raises:
        RankError: a bond has no rank, its rank is out of range, or it would need singular values and has none.
    """
    bonds = bonds_of(right)
    stated = _stated_ranks(right, constants)
    if isinstance(size, ParameterBudget):
        if spectra is not None and not stated:
            return tree_ranks(spectra, size, before=before)
        # constants with orthonormal rows may become smaller, where another core has fewer parameters by that
        shared = {label for node in cores_of(right) if node.name not in constants for label in node.labels}
        most = {
            bond: full
            for bond, full in stated.items()
            if bond in shared - right.sizes.keys() and _rows_to_choose(bond, right, constants)
        }
        known = {bond: full for bond, full in stated.items() if bond not in most}
        return grow_evenly(right, known, most, constants=constants, limit=partial(allowance, size, before))
    if isinstance(size, Mapping):
        chosen = [bond for bond in bonds if bond in size]
    else:  # those of constants, too, which come first: what is not chosen follows from the others
        free = [bond for bond in bonds if bond not in right.sizes]
        chosen = sorted(chosen_first(right, free), key=lambda bond: bond not in stated)
    requested = {bond: rank_of(size, bond) for bond in chosen}
    if spectra is not None:
        _check_none_missing(bonds, right, {**stated, **dict.fromkeys(chosen, 1)})
        return tree_ranks(spectra, {**stated, **requested}, before=before)
    known = {bond: full for bond, full in stated.items() if bond not in requested}
    sizes = sizes_with(right, known)
    ranks: dict[str, int] = {}
    for bond, rank in requested.items():
        if isinstance(size, Mapping) or bond not in sizes:
            ranks[bond] = _rank(bond, rank, target, right, size=stated.get(bond))
            _check_equal(bond, ranks, right, {**known, **right.sizes})
            sizes = sizes_with(right, {**known, **ranks})
    _check_none_missing(bonds, right, sizes)
    return {bond: sizes[bond] for bond in bonds}


def _check_none_missing(bonds: Sequence[str], right: Network, sizes: Mapping[str, int]) -> None:
    """Raise RankError for bonds without a size, of which those are named that the others follow from."""
    missing: list[str] = []
    for bond in chosen_first(right, bonds):
        if bond not in sizes:
            missing.append(bond)
            with suppress(SizeError):
                sizes = sizes_with(right, {**sizes, bond: 1})
    if missing:
        each = ", ".join(f"{bond!r}: 8" for bond in missing)
        fix = f"{{{each}}}, one size for all bonds, or a ParameterBudget"
        raise RankError(f"no size is given for {', '.join(map(repr, missing))}", fix=fix)


def _stated_ranks(right: Network, constants: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes of the bonds whose size the right side or a constant states."""
    sizes = dict(right.sizes)
    for node in cores_of(right):
        if node.name in constants:
            sizes |= zip(node.labels, constants[node.name].shape, strict=True)
    return {bond: sizes[bond] for bond in bonds_of(right) if bond in sizes}


def _rank(bond: str, rank: Rank | UpTo, target: Tensor, right: Network, *, size: int | None) -> int:
    """The rank of one bond of a right side that is not a tree; `size` is that of the bond, where it is known."""
    nodes, words = with_one_bond_for_copies(right)
    ends, names = ends_of(words[bond], nodes), [core.name for core in cores_of(right)]
    pattern = next((node for node in ends if isinstance(node, Conv | Fuse)), None)
    full: int | None = target.numel()
    if pattern is not None:
        reason, full = f"it occurs on {node_text(pattern)}", None  # its values are not independent of each other
    elif len(right.terms) > 1:
        reason = "it is a bond of one term of a sum"
    elif len(ends) != 2:
        reason = f"it occurs on {len(ends)} tensors"
    elif len(set(names)) < len(names):
        reason = "a core occurs twice"
    else:
        labels = open_labels(right)
        side = _bridge(words[bond], [node for node in nodes if node not in splitting(right)], labels)
        if side is not None:
            matrix = matrix_of(target, labels, side, [label for label in labels if label not in side])
            full = min(matrix.shape) if size is None else size
            return kept(rank, full, bond=bond, singular_values=partial(bond_spectrum, matrix))
        reason = "it is part of a loop"
    return plain_rank(rank, bond, full=full if size is None else size, because=reason)


def _bridge(bond: str, nodes: Sequence[Node], labels: Sequence[str]) -> list[str] | None:
    """The open labels on one side of a bond without which the nodes fall into two parts; None if they do not."""
    graph: networkx.Graph[object] = networkx.Graph()
    graph.add_nodes_from(range(len(nodes)))
    for number, node in enumerate(nodes):
        graph.add_edges_from((number, label) for label in node.labels if label != bond)
    first, second = (number for number, node in enumerate(nodes) if bond in node.labels)
    side = networkx.node_connected_component(graph, first)
    return None if second in side else [label for label in labels if label in side]


def _check_equal(bond: str, ranks: Mapping[str, int], right: Network, known: Mapping[str, int]) -> None:
    """Raise RankError if a bond and another label that must have its size would have two sizes."""
    sizes = {**known, **ranks}
    for other in sorted(equal_labels(right)[bond] & sizes.keys()):
        if sizes[other] != ranks[bond]:
            fact = f"bond {bond!r} has size {ranks[bond]} and {other!r} has size {sizes[other]}"
            words = with_one_bond_for_copies(right)[1]
            copied = other in words and words[other] == words[bond]
            because = "a Copy joins them" if copied else "a tensor that occurs several times has both on one axis"
            raise RankError(fact, because=because, right=right, fix="one size for both")


def _rows_to_choose(bond: str, right: Network, constants: Mapping[str, Tensor]) -> bool:
    """Whether every constant on a bond can be reduced to fewer values of the bond."""
    ends = [node for node in cores_of(right) if bond in node.labels and node.name in constants]
    return all(
        len(node.labels) == 2
        and set(node.labels) - {bond} <= set(open_labels(right))
        and _orthonormal(constants[node.name].movedim(node.labels.index(bond), 0))
        for node in ends
    )


def _orthonormal(rows: Tensor) -> bool:
    gram = rows @ rows.mH
    return float((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs().max()) <= ORTHONORMAL


def select_rows(
    constants: Mapping[str, Tensor], right: Network, ranks: Mapping[str, int], target: Tensor
) -> dict[str, Tensor]:
    """Reduce constants to the ranks of their bonds: of orthonormal rows, keep those with most of the target's norm.

    Args:
        target: one axis for each of `open_labels(right)`.

    Raises:
        ValuesError: a constant that is to be reduced is not a matrix of a bond and an open label, or its rows are not
            orthonormal.
    """
    labels, selection = open_labels(right), dict(constants)
    for node in [node for node in cores_of(right) if node.name in constants]:
        name, constant = node.name, constants[node.name]
        for axis, bond in enumerate(node.labels):
            rank = ranks.get(bond, constant.shape[axis])
            if rank >= constant.shape[axis]:
                continue
            others = [label for label in node.labels if label in labels]
            if len(node.labels) != 2 or len(others) != 1:
                fact = f"the constant {name!r} has {constant.shape[axis]} values of {bond!r}, and the rank is {rank}"
                fix = "a matrix of a bond and an open label, or a constant of the size of the rank"
                raise ValuesError(fact, fix=fix)
            rows = constant.movedim(axis, 0)
            if not _orthonormal(rows):
                fact = f"the rows of the constant {name!r} are not orthonormal, so that none of them are the best"
                raise ValuesError(fact, fix=f"an orthonormal basis, or {rank} rows that you choose")
            energy = torch.tensordot(rows.conj().to(target), target, dims=([1], [labels.index(others[0])]))
            norms = torch.linalg.vector_norm(energy.flatten(1), dim=1)
            best = norms.argsort(descending=True, stable=True)[:rank].sort().values
            constant = selection[name] = rows[best].movedim(0, axis)
    return selection


def objective_of(
    targets: Tensor,
    right: Network,
    ranks: Mapping[str, int],
    *,
    constants: Mapping[str, Tensor] = {},
    metrics: Sequence[Metric] = (),
    scale: float = 1.0,
) -> Objective:
    """The objective of a fit of a right side to kernels of one shape.

    Args:
        targets: shape (layers, *sizes of open_labels(right)).
        ranks: of the bonds.
        constants: the elements of the tensors that are held fixed, by name. Reserved nodes become constants too.
        metrics: one for each layer, over labels of `open_labels(right)`; none for the Frobenius norm.
        scale: of the kernels, by which the targets were divided. Terms without a free core are divided by it as well.
    """
    sizes = {**right.sizes, **ranks}
    undone, output = splitting(right), open_labels(right)
    taken = {node.name for node in cores_of(right)}
    held = {name: constant.to(targets) for name, constant in constants.items()}
    occurrences: list[Occurrence] = []
    free: dict[str, tuple[int, ...]] = {}
    term_of: list[int] = []
    for number, term in enumerate(right.terms):
        for node in term.nodes:
            if isinstance(node, NamedTensor):
                occurrences.append(Occurrence(node.name, node.labels))
                if node.name not in constants:
                    free[node.name] = tuple([sizes[label] for label in node.labels])
            elif node not in undone:
                name = fresh(node.name, taken)
                taken.add(name)
                held[name] = pattern(node, with_sizes(right, ranks)).to(targets)
                occurrences.append(Occurrence(name, node.labels))
        if not any(node.name in free for node in term.nodes):  # a term of constants is divided by the scale, too
            held[SCALE] = targets.new_tensor(1 / scale)
            occurrences.append(Occurrence(SCALE, ()))
        term_of += [number] * (len(occurrences) - len(term_of))
    metric = torch.stack([(each.covariance / each.unit).to(targets) for each in metrics]) if metrics else None
    coupled, blocks = (metrics[0].labels, metrics[0].batch) if metrics else ((), ())
    return Objective(tuple(occurrences), output, targets, free, held, metric, coupled, blocks, term_of=tuple(term_of))
