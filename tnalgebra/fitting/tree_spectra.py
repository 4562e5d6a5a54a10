"""The singular values of a target across the bonds of a tree, and the ranks that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from math import prod

import torch
from torch import Tensor

from ..tensors import contract, gram_matrix, in_precision, singular_values
from ..tensors import squares as squared
from .digits import FEW_DIGITS
from .ranks import Growth, UpTo, kept, kept_part, plain_rank
from .size import ParameterBudget, Rank
from .trees import CoreTree, Edge, matrix_of

ROUNDING = 1e-13
"""Squares of singular values below this part of the largest one are only rounding."""


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
            is in the first p, q, .. left singular vectors of the edges, up to the rounding of `FEW_DIGITS`.
        """
        rest, labels = self.target, self.tree.open
        spectra: dict[Edge, list[float]] = {}
        bases: list[tuple[Tensor, tuple[str, ...]]] = []
        # a leaf with more values than the rest goes first: afterwards it has at most as many as that
        for edge in sorted(self.tree.edges, key=lambda edge: -prod(self._sizes(edge))):
            rows = self.tree.rows[edge.child]
            columns = tuple(label for label in labels if label not in rows)
            matrix = matrix_of(rest, labels, rows, columns)
            wide = matrix.shape[0] <= matrix.shape[1]
            squares, vectors = torch.linalg.eigh(gram_matrix(matrix if wide else matrix.mH))
            squares, vectors = _without_rounding(squares.flip(0).clamp(min=0)), vectors.flip(1)
            spectra[edge] = squares.tolist()
            sizes = dict(zip(labels, rest.shape, strict=True))
            if wide:
                shape = [*(sizes[label] for label in rows), len(squares)]
                bases.append((in_precision(vectors.conj().reshape(shape), FEW_DIGITS), (*rows, *edge.bonds)))
            else:  # in the left singular vectors, whose number is that of the columns
                rest = (squares.sqrt()[:, None] * vectors.mH).reshape(-1, *(sizes[label] for label in columns))
                labels = (*edge.bonds, *columns)
        turned = {label for _, rows in bases for label in rows[:-1]}
        bonds = [edge.bonds[0] for edge in self.tree.edges]
        others = [label for label in labels if label not in turned and label not in bonds]
        rest = contract([(in_precision(rest, FEW_DIGITS), labels), *bases], (*others, *bonds))
        table = squared(rest).reshape(-1, *rest.shape[len(others) :]).sum(0).double()
        for axis in range(table.ndim):
            table = table.cumsum(axis)
        return spectra, table

    @cached_property
    def growth(self) -> Growth:
        """The ranks of the first bonds of all edges under budgets; those that are parallel to them have rank 1."""
        squares = {edge.bonds[0]: self.squares(edge) for edge in self.edges}
        ones = {bond: 1 for edge in self.edges for bond in edge.bonds[1:]}
        sizes = {**dict(zip(self.tree.open, self.target.shape, strict=True)), **ones}
        cores = [
            (
                prod(sizes[label] for label in core.labels if label not in squares),
                [b for b in core.labels if b in squares],
            )
            for core in self.tree.cores
        ]

        def count(ranks: Mapping[str, int]) -> int:
            return sum([size * prod([ranks[bond] for bond in bonds]) for size, bonds in cores])

        return Growth(squares, count, self.loss if self.is_star else None)

    def _sizes(self, edge: Edge) -> list[int]:
        shape = dict(zip(self.tree.open, self.target.shape, strict=True))
        return [shape[label] for label in self.tree.rows[edge.child]]

    def loss(self, ranks: Mapping[str, int]) -> float:
        """The squared relative error of the cores of these ranks, before any sweep, as a part of ||target||^2.

        In a star it is that of the target in the leading singular vectors of all bonds at the same time, from one
        orthogonal factorisation for all ranks. In another tree each bond is taken to keep its part of the squared norm
        independently of the others.
        """
        parts = []
        for edge in self.tree.edges:
            squares = self.squares(edge)
            parts.append(kept_part(squares[: prod(ranks[bond] for bond in edge.bonds)], squares))
        loss = 1 - prod(parts)
        if self.is_star and parts:
            place = tuple(min(ranks[edge.bonds[0]], self.full_rank(edge)) - 1 for edge in self.tree.edges)
            table = self._star[1]
            whole = float(table.flatten()[-1])
            # it lies between the loss of one bond and the sum of all, which have all digits
            loss = 1 - float(table[place]) / whole if whole else 0.0
            loss = min(max(loss, 1 - min(parts)), sum([1 - part for part in parts]))
        return loss if loss > ROUNDING else 0.0


def _squared_values(matrix: Tensor) -> list[float]:
    gram = gram_matrix(matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mH)
    squares = torch.linalg.eigvalsh(gram).flip(-1).clamp(min=0)
    summed: list[float] = _without_rounding(squares if squares.ndim == 1 else squares.sum(0)).tolist()
    return summed


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
    if isinstance(ranks, ParameterBudget):
        # the first of parallel bonds has the rank of all of them, and the others are 1
        ones = {bond: 1 for edge in spectra.edges for bond in edge.bonds[1:]}
        return {**ones, **spectra.growth.ranks(ranks, before)}
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
