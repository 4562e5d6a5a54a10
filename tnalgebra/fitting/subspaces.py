"""Fit a tree of cores by the subspaces of its bonds: by Gram matrices, then by higher-order orthogonal iteration.

A bond keeps the leading eigenvectors of a Gram matrix of the target, which take a fraction of the time of an SVD. All
cores but one are isometries then, so that ||target||^2 - ||core||^2 is the loss, and no network is contracted for it.
Where several bonds lose something, each in turn gets its best subspace while the others stay (De Lathauwer, De Moor,
Vandewalle 2000, for a Tucker network; in any tree, the two cores of the bond are solved for together). Such a sweep
takes as much from the loss as several sweeps over single cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..tensors import contract, gram_matrix, in_precision, signs_of, squares
from .axes import group_axes, split_axes
from .digits import FEW_DIGITS, SMALL_LOSS_IN_FEW, few_digits_suffice
from .trees import CoreTree, attained_ranks

_Labels: TypeAlias = tuple[str, ...]

ENOUGH = 2e-4
"""The sweeps end where one takes, or the next one will take, less than this part of the squared error. For kernels of
random numbers, which converge slowest, the error is then 0.05 % above that of twice as many sweeps, and for trained
ones less."""


class SubspaceFit(NamedTuple):
    """Cores by name, the relative error at first and after each sweep, and whether the sweeps came to rest."""

    cores: dict[str, Tensor]
    errors: list[float]
    converged: bool


class _NotUniqueError(ValueError):
    """The Gram matrices do not determine the cores."""


class _Group(NamedTuple):
    """Neighbouring cores between which nothing is lost, as one core with these labels.

    members: the positions of the cores.
    parts: the two groups that this one was merged from, and their bond; none for a single core.
    """

    labels: _Labels
    members: tuple[int, ...]
    parts: tuple[_Group, _Group, str] | None = None


class _Bond(NamedTuple):
    """A bond that loses something, and the groups on it: positions in `_Walk.groups`, the parent nearer to the root."""

    label: str
    child: int
    parent: int


@dataclass(eq=False)
class _Walk:
    """The state of an iteration.

    Attributes:
        labels: of the target.
        groups: the cores, and bonds between them from the leaves to the root.
        values: the isometry of each group towards the group at the centre, and the core of that one.
        is_rough: whether the vectors of each bond are made orthonormal in more digits at the end.
    """

    target: Tensor
    labels: _Labels
    sizes: Mapping[str, int]
    groups: Sequence[_Group]
    bonds: Sequence[_Bond]
    values: dict[int, Tensor] = field(default_factory=dict)
    is_rough: bool = False

    @property
    def root(self) -> int:
        return self.bonds[-1].parent if self.bonds else 0

    def put(self, number: int, elements: Tensor, labels: _Labels) -> None:
        """Keep the elements of a group, which may be a matrix, in the axes of the group."""
        self.values[number] = split_axes(elements, self.sizes, self.groups[number].labels, labels)

    def without(self, number: int, bond: str) -> _Labels:
        return tuple([label for label in self.groups[number].labels if label != bond])


def fits_by_subspaces(tree: CoreTree) -> bool:
    """Whether each edge of a tree is a single bond without batch labels."""
    return all(len(edge.bonds) == 1 and not edge.batch for edge in tree.edges)


def fit_by_subspaces(
    target: Tensor, tree: CoreTree, ranks: Mapping[str, int], *, sweeps: int, kept: torch.dtype
) -> SubspaceFit | None:
    """Fit the cores of a tree for which `fits_by_subspaces` holds.

    Args:
        target: one axis for each label of `tree.open`, in that order.
        ranks: the size of each bond. Where smaller bonds beside it leave fewer singular values, a bond becomes smaller.
        sweeps: the most sweeps over all bonds.
        kept: the type in which the cores are held.

    Returns:
        None where Gram matrices do not determine the cores, because the error is small or eigenvalues are equal.
    """
    sizes = dict(zip(tree.open, target.shape, strict=True))
    sizes |= attained_ranks(tree, sizes, ranks)
    walk = _Walk(target, tree.open, sizes, *_merged(tree, sizes))
    power = float(squares(target).sum())
    if not power:
        return None
    few_digits = len(walk.bonds) > 1 and few_digits_suffice(kept, target.dtype)
    try:
        ended = _swept_roughly(walk, power, sweeps) if few_digits else None
        losses, converged = ended or _swept(walk, power, sweeps)
    except _NotUniqueError:
        return None
    if walk.bonds and not min(losses) > torch.finfo(target.dtype).eps ** 0.5 * power:
        return None
    _choose_signs(walk)
    cores = dict(_split(walk, tree))
    return SubspaceFit(cores, [(max(loss, 0.0) / power) ** 0.5 for loss in losses], converged)


# Which bonds lose something ------------------------------------------------------------------------------------


def _merged(tree: CoreTree, sizes: Mapping[str, int]) -> tuple[list[_Group], list[_Bond]]:
    """Merge the cores of each bond that has all values which one of its cores can use, until every bond has fewer."""
    group_of = {number: _Group(core.labels, (number,)) for number, core in enumerate(tree.cores)}
    left = list(tree.edges)
    while True:
        for edge in left:
            (bond,), child, parent = edge.bonds, group_of[edge.child], group_of[edge.parent]
            sides = [tuple([label for label in group.labels if label != bond]) for group in (child, parent)]
            if sizes[bond] >= min(prod([sizes[label] for label in side]) for side in sides):
                both = _Group((*sides[0], *sides[1]), (*child.members, *parent.members), (child, parent, bond))
                group_of |= dict.fromkeys(both.members, both)
                left.remove(edge)
                break
        else:
            break
    groups = list({id(group): group for group in group_of.values()}.values())
    position = {number: place for place, group in enumerate(groups) for number in group.members}
    return groups, [_Bond(edge.bonds[0], position[edge.child], position[edge.parent]) for edge in left]


# Subspaces -----------------------------------------------------------------------------------------------------


def _first_subspaces(walk: _Walk, power: float) -> float:
    """Find a subspace for each bond in turn, from the leaves to the root, in what is left. Returns the loss."""
    rest, labels = walk.target, walk.labels
    for bond, child, _ in walk.bonds:
        rows = walk.without(child, bond)
        columns = tuple([label for label in labels if label not in rows])
        matrix = group_axes(rest, labels, rows, columns)
        isometry = _leading(matrix, walk.sizes[bond], is_rough=walk.is_rough)
        labels = (bond, *columns)
        walk.put(child, isometry, (*rows, bond))
        rest = (isometry.mH @ matrix).reshape([walk.sizes[label] for label in labels])
    walk.put(walk.root, rest, labels)
    return power - float(squares(rest).sum())


def _swept(walk: _Walk, power: float, sweeps: int) -> tuple[list[float], bool]:
    """Sweep until a sweep gains little. Returns the losses, at first and after each sweep, and whether it does."""
    losses = [_first_subspaces(walk, power)]
    converged, gain = len(walk.bonds) < 2, 0.0
    while not converged and len(losses) <= sweeps:
        losses.append(_sweep(walk, power))
        gain, gain_before = losses[-2] - losses[-1], gain
        # gains fall by one factor, so that the next one is about the square of this one over the one before
        enough = ENOUGH * losses[-1]
        converged = gain <= enough or gain**2 <= enough * gain_before
    return losses, converged


def _swept_roughly(walk: _Walk, power: float, sweeps: int) -> tuple[list[float], bool] | None:
    """The same in few digits, with isometries and a core that have all digits at the end; None where it needs more."""
    rough = replace(walk, target=in_precision(walk.target, FEW_DIGITS), values={}, is_rough=True)
    try:
        losses, converged = _swept(rough, power, sweeps)
    except _NotUniqueError:
        return None
    if not losses[-1] > SMALL_LOSS_IN_FEW * power:
        return None
    for label, child, _ in walk.bonds:
        rows = walk.without(child, label)
        matrix = group_axes(rough.values[child].to(walk.target), walk.groups[child].labels, rows, (label,))
        vectors, triangle = torch.linalg.qr(matrix)
        # with the signs they had, on which the isometries that are nearer to the centre depend
        walk.put(child, vectors * triangle.diagonal().sgn(), (*rows, label))
    walk.values[walk.root] = _project(walk, walk.root)
    losses[-1] = power - float(squares(walk.values[walk.root]).sum())
    return losses, converged


def _sweep(walk: _Walk, power: float) -> float:
    """Find the best subspace for each bond in turn, with the root at the centre before and after. Returns the loss."""
    below: dict[int, list[_Bond]] = {}
    for bond in walk.bonds:
        below.setdefault(bond.parent, []).append(bond)

    def visit(number: int) -> None:
        bonds = below.get(number, ())
        for place, bond in enumerate(bonds):
            if bond.child in below:
                rows = walk.without(number, bond.label)
                matrix = group_axes(walk.values[number], walk.groups[number].labels, rows, (bond.label,))
                walk.put(number, torch.linalg.qr(matrix)[0], (*rows, bond.label))
                walk.values[bond.child] = _project(walk, bond.child)
                visit(bond.child)
            # the core of the parent is contracted again where the next bond is solved for, unless it is turned first
            _solve_bond(walk, bond, core=place + 1 == len(bonds) or bonds[place + 1].child in below)

    visit(walk.root)
    return power - float(squares(walk.values[walk.root]).sum())


def _project(walk: _Walk, *centre: int, labels: Sequence[str] | None = None) -> Tensor:
    """Contract the target with the adjoints of the isometries of all groups but those at the centre."""
    operands = [(walk.target, walk.labels)]
    operands += [
        (walk.values[number].conj(), group.labels) for number, group in enumerate(walk.groups) if number not in centre
    ]
    return contract(operands, walk.groups[centre[0]].labels if labels is None else labels)


def _solve_bond(walk: _Walk, bond: _Bond, *, core: bool) -> None:
    """The best two groups on a bond while all others stay: the isometry of the child, and the core of the parent.

    Args:
        core: whether the core of the parent is needed.
    """
    label, child, parent = bond
    rows, columns = walk.without(child, label), walk.without(parent, label)
    matrix = group_axes(_project(walk, child, parent, labels=(*rows, *columns)), (*rows, *columns), rows, columns)
    isometry = _leading(matrix, walk.sizes[label], is_rough=walk.is_rough)
    walk.put(child, isometry, (*rows, label))
    if core:
        walk.put(parent, isometry.mH @ matrix, (label, *columns))


def _leading(matrix: Tensor, rank: int, *, is_rough: bool) -> Tensor:
    """The `rank` leading left singular vectors of a matrix, by its smaller Gram matrix.

    Raises:
        _NotUniqueError: the last value that is kept and the next one may be equal, or, unless `is_rough`, two of those
            that are kept.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    squared, every = torch.linalg.eigh(gram_matrix(matrix if wide else matrix.mH))
    gaps = squared[-rank - 1 :].diff()
    if not bool((gaps[: 1 if is_rough else None] > torch.finfo(matrix.dtype).eps ** (2 / 3) * squared[-1]).all()):
        raise _NotUniqueError
    vectors: Tensor = every[:, -rank:].flip(1)
    if not wide:
        vectors = torch.linalg.qr(matrix @ vectors)[0]
    return vectors


def _choose_signs(walk: _Walk) -> None:
    """Make the largest element of each vector of a bond positive, in the isometry of the child."""
    for label, child, parent in walk.bonds:
        rows = walk.without(child, label)
        sign = signs_of(group_axes(walk.values[child], walk.groups[child].labels, rows, (label,)))[0]
        for number, factor in ((child, sign), (parent, sign.conj())):
            labels = walk.groups[number].labels
            walk.values[number] = walk.values[number] * factor.reshape([-1 if n == label else 1 for n in labels])


def _split(walk: _Walk, tree: CoreTree) -> Iterator[tuple[str, Tensor]]:
    """The name and the elements of each core: where nothing is lost, one of two cores has the identity."""
    waiting = [(group, walk.values[place]) for place, group in enumerate(walk.groups)]
    while waiting:
        group, core = waiting.pop()
        if group.parts is None:
            yield tree.cores[group.members[0]].name, core.contiguous()
            continue
        child, parent, bond = group.parts
        rows, columns = (tuple([label for label in part.labels if label != bond]) for part in (child, parent))
        matrix, size = group_axes(core, group.labels, rows, columns), walk.sizes[bond]
        unit = torch.eye(min(matrix.shape), size, dtype=core.dtype, device=core.device)
        if matrix.shape[0] <= matrix.shape[1]:
            left, right = unit, torch.nn.functional.pad(matrix, (0, 0, 0, size - len(matrix)))
        else:
            left, right = torch.nn.functional.pad(matrix, (0, size - matrix.shape[1])), unit.mT
        waiting.append((child, split_axes(left, walk.sizes, child.labels, rows, (bond,))))
        waiting.append((parent, split_axes(right, walk.sizes, parent.labels, (bond,), columns)))
