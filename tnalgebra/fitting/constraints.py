"""Constraints on cores: which exist, what cannot hold, and the best core that keeps one while all other cores stay.

An orthonormal core U, as the matrix of its open labels against its bonds, has U^H U = 1. Then the squared error is
linear in U, unless the open labels of the core occur on other cores too, and the best U is the polar factor of the
environment (Schoenemann 1966; Kiers 1990 for cores). A nonnegative core is solved for by hierarchical alternating least
squares, one value of its bonds after another (Cichocki, Zdunek, Amari 2007; Gillis, Glineur 2012), and where it has
many such values by an accelerated projected gradient (Beck, Teboulle 2009).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod, sqrt

import torch
from torch import Tensor

from ..errors import RankError, RuleError
from ..networks import NamedTensor, Network, carriers, node_text, tensors_of
from .axes import group_axes, split_axes
from .trees import cores_of, open_labels

ORTHONORMAL, NONNEGATIVE, COLUMNS, SAMPLED = "orthonormal", "nonnegative", "columns", "sampled columns"

CONSTRAINTS = (ORTHONORMAL, NONNEGATIVE, COLUMNS, SAMPLED)
"""The constraints that a core may have: the last two take it from the kernel before the fit."""

TURNS = 5
"""Polar steps for one core where the squared error is not linear in it."""

PASSES = 2
"""Passes over the values of the bonds of a nonnegative core: of 1 to 20, the number that took the least time in all."""

ONE_BY_ONE = 64
"""The most values of bonds that are solved for one after another."""

_STEPS = 20
"""Steps of the accelerated projected gradient."""

POWER_ROUNDS, ABOVE = 12, 1.1
"""Rounds of the power iteration for the largest eigenvalue of a system that is not written out, and the factor by which
its estimate is enlarged."""


def check_constraints(
    constraints: Mapping[str, str], right: Network, *, constants: Mapping[str, object], is_complex: bool
) -> None:
    """Raise RuleError for a constraint that cannot hold, whatever the ranks are."""
    opened = open_labels(right)
    known = ", ".join(map(repr, CONSTRAINTS))
    for name, kind in constraints.items():
        if kind not in CONSTRAINTS:
            raise RuleError(f"the constraint of {name!r} is {kind!r}", fix=f"one constraint, of {known}")
        if name in constants:
            raise RuleError(f"the constraint {kind!r} is on {name!r}, which is held fixed", right=right)
        if kind == NONNEGATIVE:
            if is_complex:
                raise RuleError(
                    f"{name!r} cannot be nonnegative: the kernel or a constant is complex", fix="real values"
                )
            continue
        nodes = [node for node in cores_of(right) if node.name == name]
        rows, bonds = _matrix_labels(nodes[0].labels, opened)
        if not rows or not bonds:
            fact = f"{name!r} cannot be {kind}: it has no {'bond' if rows else 'open label'}"
            because = "its matrix is that of its open labels against its bonds"
            raise RuleError(fact, core=node_text(nodes[0]), because=because)
        axes = {tuple(label in opened for label in node.labels) for node in nodes}
        if len(axes) > 1:
            fact = f"{name!r} cannot be {kind}: it occurs {len(nodes)} times, with open labels on other axes"
            raise RuleError(fact, right=right)
        if kind in (COLUMNS, SAMPLED):
            _check_columns(nodes, rows, bonds, right)


def _check_columns(nodes: Sequence[NamedTensor], rows: Sequence[str], bonds: Sequence[str], right: Network) -> None:
    """Require the shape of columns of the kernel's matrix: one bond numbers them, and no other core has the rows."""
    because = None
    if len(nodes) > 1:
        because = f"it occurs {len(nodes)} times"
    elif len(bonds) > 1:
        because = f"{len(bonds)} bonds would number the columns: {' '.join(bonds)}"
    else:
        (term,) = (term for term in right.terms if nodes[0] in term.nodes)
        shared = next((label for label in rows if len(carriers(term)[label]) > 1), None)
        because = None if shared is None else f"another node has its open label {shared!r} too"
        if not set(open_labels(right)) - set(rows):
            because = "it has all open labels, so that the kernel has one column"
    if because is not None:
        fix = "a core with one bond, and with open labels that no other core has"
        raise RuleError(
            f"{nodes[0].name!r} cannot have columns of the kernel", core=node_text(nodes[0]), because=because, fix=fix
        )


def check_shapes(constraints: Mapping[str, str], right: Network, sizes: Mapping[str, int]) -> None:
    """Raise RankError where a core has too many columns for its constraint; `sizes` are those of all labels."""
    opened = open_labels(right)
    for name, kind in constraints.items():
        if kind == NONNEGATIVE:
            continue
        rows, bonds = _matrix_labels(tensors_of(right)[name].labels, opened)
        height, width = (prod(sizes[label] for label in labels) for labels in (rows, bonds))
        columns = prod(sizes[label] for label in opened if label not in rows)
        if kind == ORTHONORMAL and width > height:
            fact = f"{name!r} has {height} rows ({' '.join(rows)}) and {width} columns ({' '.join(bonds)})"
            raise RankError(f"{fact}, which cannot be orthonormal", fix=f"at most {height} columns")
        if kind != ORTHONORMAL and width > columns:
            fact = f"{name!r} would have {width} of the {columns} columns of the kernel"
            raise RankError(fact, fix=f"a size of {bonds[0]!r} of at most {columns}")


def _matrix_labels(labels: Sequence[str], opened: Sequence[str]) -> tuple[list[str], list[str]]:
    """The open labels, and the bonds."""
    return [label for label in labels if label in opened], [label for label in labels if label not in opened]


# One core while the others stay --------------------------------------------------------------------------------


def polar_factor(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    product: Tensor = left @ right
    return product


def with_matrix(
    core: Tensor, labels: Sequence[str], opened: Sequence[str], change: Callable[[Tensor], Tensor]
) -> Tensor:
    """The core whose matrix of open labels against bonds is `change` of this core's.

    Args:
        core: shape (.., *sizes of labels).
    """
    rows, bonds = _matrix_labels(labels, opened)
    front = [f"{axis}/" for axis in range(core.ndim - len(labels))]
    names, groups = (*front, *labels), [*((axis,) for axis in front), rows, bonds]
    changed = change(group_axes(core, names, *groups))
    return split_axes(changed, dict(zip(names, core.shape, strict=True)), names, *groups)


def best_orthonormal(
    right: Tensor,
    present: Tensor,
    *,
    polar: Callable[[Tensor], Tensor],
    product: Callable[[Tensor], Tensor],
    largest: Tensor | None,
) -> Tensor:
    """The orthonormal core of the least error, or one of less error than the present core.

    Args:
        right, present: shape (layers, starts, *sizes).
        largest: None where the squared error is linear in the core. Elsewhere the largest eigenvalue of the system,
            shape (layers, starts): below a parabola of this curvature the error is bounded by a linear function.
    """
    if largest is None:
        return polar(right)
    core, curvature = polar(present), largest.reshape(*largest.shape, *[1] * (right.ndim - 2))
    for _ in range(TURNS):
        core = polar(right - product(core) + curvature * core)
    return core


def best_nonnegative(
    right: Tensor,
    present: Tensor,
    *,
    gram: Tensor | None,
    product: Callable[[Tensor], Tensor],
    largest: Callable[[], Tensor],
) -> Tensor:
    """A nonnegative matrix of less error than the present one, near the least.

    Args:
        right, present: shape (layers, starts, *batch, values of bonds, others).
        gram: shape (layers, starts, *batch, values, values); None where it is not written out.
        product: the gram matrix times such a matrix.
        largest: computes the largest eigenvalue; shape (layers, starts).
    """
    core = present.clamp(min=0)
    if gram is None or gram.shape[-1] > ONE_BY_ONE:
        return _by_projected_gradient(right, core, product, largest())
    diagonal = gram.diagonal(dim1=-2, dim2=-1)[..., None]
    inverse = torch.where(diagonal > 0, 1 / torch.where(diagonal > 0, diagonal, 1.0), 0.0)
    for _ in range(PASSES):
        for value in range(gram.shape[-1]):
            row = slice(value, value + 1)
            slope = right[..., row, :] - gram[..., row, :] @ core
            core[..., row, :] = (core[..., row, :] + slope * inverse[..., row, :]).clamp_(min=0)
    return core


def _by_projected_gradient(right: Tensor, core: Tensor, product: Callable[[Tensor], Tensor], largest: Tensor) -> Tensor:
    """Accelerated projected gradient, started again where it turns back."""
    step = torch.where(largest > 0, 1 / torch.where(largest > 0, largest, 1.0), 0.0)
    step = step.reshape(*step.shape, *[1] * (core.ndim - 2))
    ahead, pace = core, 1.0
    for _ in range(_STEPS):
        following = (ahead + step * (right - product(ahead))).clamp(min=0)
        moved = following - core
        back = ((ahead - following) * moved).flatten(2).sum(2) > 0
        faster = (1 + sqrt(1 + 4 * pace**2)) / 2
        momentum = torch.where(back, 0.0, (pace - 1) / faster).reshape(step.shape)
        ahead, core, pace = following + momentum * moved, following, faster
    return core


def largest_eigenvalue(product: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Nearly the largest eigenvalue of a positive operator, rather above it, by power iteration; (layers, starts)."""
    vector = torch.ones_like(like)
    size = like.new_ones(like.shape[:2]).real
    for _ in range(POWER_ROUNDS):
        size = torch.linalg.vector_norm(vector.flatten(2), dim=2).clamp(min=torch.finfo(like.dtype).tiny)
        vector = product(vector / size.reshape(*size.shape, *[1] * (like.ndim - 2)))
    largest: Tensor = ABOVE * torch.linalg.vector_norm(vector.flatten(2), dim=2)
    return largest
