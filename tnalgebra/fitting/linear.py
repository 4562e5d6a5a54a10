"""The fit of a single core beside constants: a linear least-squares problem, which is solved in one step.

The tensors beside the core fall into groups that share no label, apart from batch labels. For each value of the batch
labels the matrix of the problem is the Kronecker product of the matrices of the groups, and its pseudoinverse is the
Kronecker product of their pseudoinverses. So the core of `C[o p] U[p q] R[q i]` is C^+ K R^+, of all best cores the
one with the least norm, and no matrix is larger than C or R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from ..tensors import Operand, contract
from .als import Cores, Descent
from .axes import group_axes, split_axes
from .objective import LAYER, PRIME, Objective
from .report import SearchResult
from .search import results_of
from .systems import LARGEST_SYSTEM, System

_Labels: TypeAlias = tuple[str, ...]

LARGEST_DESIGN = 2**27
"""The most elements of the matrix of a group: 1 GiB in float64. Above it the normal equations are solved."""

_WHITE = "white/"
"""The label of the outputs of the metric's factor. The notation has no such label."""


def is_linear(objective: Objective) -> bool:
    """Whether the network is linear in what is fitted: a product with one core, which occurs once."""
    return objective.factors == 1 and len(objective.terms) == 1


def solve_core(objective: Objective, factor: Tensor | None = None) -> list[SearchResult] | None:
    """Find the best core of each layer and, of several, the one with the least norm.

    Args:
        objective: of a single core that occurs once.
        factor: M of shape (layers, *blocks, d, d) where the metric is M M^T; None without a metric.

    Returns:
        None where all matrices of the problem are too large.
    """
    cores = _by_pseudoinverses(objective, factor)
    if cores is None:
        return None
    descent = Descent.begin(objective, {name: core[:, None] for name, core in cores.items()}, "linear least squares")
    return results_of(objective, replace(descent, still=torch.ones_like(descent.still)))


def _by_pseudoinverses(objective: Objective, factor: Tensor | None) -> Cores | None:
    ((name, (position,)),) = objective.places.items()
    system = System(objective, position)
    target, labels, beside = _in_white_coordinates(objective, system, factor)
    known = {label for _, names in beside for label in names}
    alone = [label for label in system.coupled if label not in known]  # summed over the core alone
    beside += [(target.new_ones(objective.sizes[label]), (label,)) for label in alone]
    batch = {LAYER, *system.batch}
    for group in _groups(beside, batch):
        solved = _solve_group(group, (target, labels), batch=batch, coupled=system.coupled)
        if solved is None:
            return _by_normal_equations(system)
        target, labels = solved
    return {name: group_axes(target, labels, *((label,) for label in (LAYER, *system.labels))).contiguous()}


def _solve_group(
    group: Sequence[Operand], target: Operand, *, batch: set[str], coupled: Sequence[str]
) -> tuple[Tensor, _Labels] | None:
    """The target times the pseudoinverse of a group; None where the matrix of the group is too large."""
    tensor, labels = target
    names = dict.fromkeys(label for _, each in group for label in each)
    blocks = tuple(label for label in names if label in batch)
    rows = tuple(label for label in names if label in labels and label not in batch)
    columns = tuple(label for label in names if label in coupled)
    sizes = {label: size for each, axes in group for label, size in zip(axes, each.shape, strict=True)}
    order, turned = (*blocks, *rows, *columns), (*blocks, *columns, *rows)
    if prod(map(sizes.__getitem__, order)) > LARGEST_DESIGN:
        return None
    matrix = group_axes(contract(group, order), order, blocks, rows, columns)
    inverse = split_axes(torch.linalg.pinv(matrix), sizes, turned, blocks, columns, rows)
    after = (*(label for label in labels if label not in rows), *columns)
    return contract([(tensor, labels), (inverse, turned)], after), after


def _in_white_coordinates(
    objective: Objective, system: System, factor: Tensor | None
) -> tuple[Tensor, _Labels, list[Operand]]:
    """The target, its labels and all tensors beside the core, where the metric has become the Frobenius norm."""
    target, labels = objective.target, (LAYER, *objective.output)
    beside = objective.operands({}, objective.others(system.position))
    if factor is None:
        return target, labels, beside
    # a coupled label of the core itself is one of the unknowns, and has a second name in the target
    coupled = {label: label + PRIME if label in system.labels else label for label in objective.coupled}
    renamed = [(tensor, tuple(coupled.get(label, label) for label in names)) for tensor, names in beside]
    for label, other in coupled.items():
        if other != label:
            identity = torch.eye(objective.sizes[label], dtype=target.dtype, device=target.device)
            renamed.append((identity, (other, label)))
    sizes = [objective.sizes[label] for label in (*objective.blocks, *objective.coupled)]
    white = factor.reshape(len(target), *sizes, factor.shape[-1])
    metric: Operand = white, (LAYER, *objective.blocks, *coupled.values(), _WHITE)
    before = tuple(coupled.get(label, label) for label in labels)
    after = (*(label for label in labels if label not in coupled), _WHITE)
    return contract([(target, before), metric], after), after, [*renamed, metric]


def _groups(operands: Sequence[Operand], apart: set[str]) -> list[list[Operand]]:
    """Divide tensors into groups that share none but the labels in `apart`."""
    groups: list[tuple[set[str], list[Operand]]] = []
    for operand in operands:
        names, members = set(operand[1]) - apart, [operand]
        for other in [group for group in groups if group[0] & names]:
            groups.remove(other)
            names, members = names | other[0], [*other[1], *members]
        groups.append((names, members))
    return [members for _, members in groups]


def _by_normal_equations(system: System) -> Cores | None:
    if system.unknowns > LARGEST_SYSTEM:
        return None
    objective, name = system.objective, system.name
    inverse = torch.linalg.pinv(system.gram({}), hermitian=True)
    right = objective.environment(objective.pulled[:, None], system.position, {})
    core = system.as_core(inverse @ system.as_matrix(right))
    return {name: core[:, 0].contiguous()}
