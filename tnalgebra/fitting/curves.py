"""What a right side would cost and miss at any size, before its cores are fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from ..networks import Network, shape_of
from .chosen_ranks import chosen_ranks, objective_of, tree_or_none
from .metric import Metric
from .objective import Objective
from .size import ParameterBudget, Size
from .targets import prepare_target, split_metric
from .tree_spectra import TreeSpectra
from .trees import CoreTree, attained_ranks, bonds_of, open_labels
from .whitening import absorb_metric, absorbing_core, whiten, whitening_factors


class ErrorCurve:
    """The ranks and the error of one kernel at any size, from one orthogonal factorisation and without a fit.

    Args:
        kernel: one axis for each output label of `right`.
        right: the sizes of its open labels, and of their parts, are known.
        before: parameters of the left side, of which a budget is a fraction.
        constants: tensors of the right side that are held fixed, by name.
        metric: the norm of the error, over labels of the output of `right`; None for the Frobenius norm.
        dtype: of the computation.

    Raises:
        ValuesError: the kernel is empty or not finite, or the metric does not fit it.
    """

    def __init__(
        self,
        kernel: Tensor,
        right: Network,
        *,
        before: int,
        constants: Mapping[str, Tensor],
        metric: Metric | None,
        dtype: torch.dtype,
    ) -> None:
        self.target, _ = prepare_target(kernel, right, metric, dtype)
        self.right, self.before, self.constants, self.metric = right, before, constants, metric
        self.tree = tree_or_none(right, constants)

    @cached_property
    def _spectra(self) -> TreeSpectra | None:
        return None if self.tree is None else TreeSpectra(self.target, self.tree)

    def ranks(self, size: Size) -> dict[str, int]:
        """The size of every bond, as a fit would have it.

        Raises:
            RankError: see `chosen_ranks`.
        """
        spectra = self._in_metric if isinstance(size, ParameterBudget) else self._spectra
        ranks = chosen_ranks(
            self.target, self.right, size, spectra=spectra, constants=self.constants, before=self.before
        )
        if self.tree is None:
            return ranks
        labels = open_labels(self.right)
        return attained_ranks(self.tree, dict(zip(labels, shape_of(self.right, labels), strict=True)), ranks)

    def loss(self, ranks: Mapping[str, int]) -> float | None:
        """The squared relative error of the truncated SVDs, before any sweep; None where only a fit can show it.

        With a metric that no single core can take up, it is that of the kernel in the metric's nearest Kronecker
        product.
        """
        if self._in_metric is None:
            return None
        return self._in_metric.loss(ranks)

    @property
    def is_exact(self) -> bool:
        """Whether `loss` is in the norm of the fit: in the Frobenius norm, or in a metric that one core can take up."""
        return self.tree is not None and (self.metric is None or absorbing_core(self._objective) is not None)

    @cached_property
    def _objective(self) -> Objective:
        return _objective_at_one(self.target, self.right, self.metric)

    @cached_property
    def _in_metric(self) -> TreeSpectra | None:
        """The spectra of what the cores have to come near in the metric, or in the nearest Kronecker product to it."""
        if self.metric is None or self.tree is None:
            return self._spectra
        return _spectra_in_metric(self._objective, self.metric, self.tree)


def spectra_for(
    size: Size, target: Tensor, right: Network, tree: CoreTree | None, *, metric: Metric | None
) -> TreeSpectra | None:
    """The singular values that determine the ranks of a size; None where the right side is not a tree.

    A budget is shared out by what the bonds lose in the metric, or in the nearest Kronecker product to it. The other
    sizes are of the singular values of the target itself.

    Args:
        target: one axis for each of `open_labels(right)`.
    """
    if tree is None:
        return None
    if metric is None or not isinstance(size, ParameterBudget):
        return TreeSpectra(target, tree)
    return _spectra_in_metric(_objective_at_one(target, right, metric), metric, tree)


def _objective_at_one(target: Tensor, right: Network, metric: Metric | None) -> Objective:
    """The objective where every bond has size 1."""
    metrics = [] if metric is None else [split_metric(metric, right)]
    return objective_of(target[None], right, dict.fromkeys(bonds_of(right), 1), metrics=metrics)


def _spectra_in_metric(objective: Objective, metric: Metric, tree: CoreTree) -> TreeSpectra:
    if absorbing_core(objective) is not None:
        whitened = absorb_metric(objective, (metric.factor() / math.sqrt(metric.unit))[None].to(objective.target))
    else:
        whitened = whiten(objective, whitening_factors(objective))
    return TreeSpectra(whitened.target[0], tree)
