"""A metric that cores take up, whole or nearly, so that the rest is a fit in the Frobenius norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from ..tensors import contract
from .axes import group_axes, split_axes
from .objective import LAYER, PRIME, Objective

_Labels: TypeAlias = tuple[str, ...]


def absorbing_core(objective: Objective) -> str | None:
    """The core that can take up the whole metric: it occurs once, and only it has the labels that are coupled."""
    if objective.metric is None or len(objective.terms) > 1:
        return None
    for name, places in objective.places.items():
        elsewhere, labels = objective.labels_elsewhere(places[0]), set(objective.occurrences[places[0]].labels)
        if (
            len(places) == 1
            and not elsewhere & set(objective.coupled)
            and {*objective.coupled, *objective.blocks} <= labels
        ):
            return name
    return None


def absorb_metric(objective: Objective, factor: Tensor) -> Objective:
    """The objective of the core times the factor M of the metric: it is one in the Frobenius norm.

    Args:
        factor: shape (layers, *blocks, d, d), where d is the number of coupled values.
    """
    sizes, labels = {**objective.sizes, LAYER: objective.layers}, (LAYER, *objective.output)
    groups = _groups(objective, labels)
    rows = group_axes(objective.target, labels, *groups)
    return replace(objective.without_metric(), target=split_axes(rows @ factor, sizes, labels, *groups))


def release_metric(objective: Objective, core: Tensor, factor: Tensor, name: str) -> Tensor:
    """The core itself, from what was fitted in its place; both of one layer, without an axis in front."""
    labels = (LAYER, *objective.occurrences[objective.places[name][0]].labels)
    groups = _groups(objective, labels)
    rows = group_axes(core[None], labels, *groups)
    solved = torch.linalg.solve_triangular(factor[None], rows, upper=False, left=False)
    sizes = dict(zip(labels, core[None].shape, strict=True))
    return split_axes(solved, sizes, labels, *groups)[0].contiguous()


def _groups(objective: Objective, labels: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of labels whose axes are (layers, *blocks, others, coupled values)."""
    others = tuple(label for label in labels if label not in (LAYER, *objective.blocks, *objective.coupled))
    return [(LAYER,), *((label,) for label in objective.blocks), others, objective.coupled]


def whitening_factors(objective: Objective) -> dict[str, Tensor]:
    """The factors of a Kronecker product near the metric, by coupled label.

    Returns:
        M of shape (layers, n, n), where M M^T is the metric traced over all other labels, up to its scale: the product
        of all factors is as large as the metric. A label has a factor only if it occurs on a single core, which can
        take the factor up.
    """
    traced = {}
    for label in objective.coupled:
        names = [occurrence.name for occurrence in objective.occurrences if label in occurrence.labels]
        if len(names) == 1 and len(objective.places.get(names[0], ())) == 1 and label not in objective.blocks:
            assert objective.metric is not None
            again = tuple(label + PRIME if other == label else other for other in objective.coupled)
            labels = (LAYER, *objective.blocks, *objective.coupled, *again)
            traced[label] = contract([(objective.metric, labels)], (LAYER, label, label + PRIME))
    factors = {}
    for label, matrix in traced.items():
        # all have the trace of the metric, of which the product of the factors must have the mean diagonal element
        trace = matrix.diagonal(dim1=1, dim2=2).sum(1)
        whole = trace / prod(objective.sizes[other] for other in (*objective.blocks, *objective.coupled))
        scale = objective.sizes[label] / trace * whole ** (1 / len(traced))
        factors[label] = torch.linalg.cholesky(matrix * scale[:, None, None])
    return factors


def whiten(objective: Objective, factors: Mapping[str, Tensor]) -> Objective:
    """The same objective for cores that have taken up the factors. Its metric is nearly the identity."""
    assert objective.metric is not None
    target, labels = objective.target, (LAYER, *objective.output)
    metric, coupled = objective.metric, objective.metric_labels
    for label, factor in factors.items():
        new = label + "new"
        target = contract([(target, labels), (factor, (LAYER, label, new))], _replace_label(labels, label, new))
        for old in (label, label + PRIME):
            inverse = (torch.linalg.inv(factor), (LAYER, new, old))
            metric = contract([(metric, coupled), inverse], _replace_label(coupled, old, new))
    return replace(objective, target=target.contiguous(), metric=metric.contiguous())


def take_up(objective: Objective, values: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiply cores of one layer, which have no axes in front, with the factors of their labels."""
    taken = {}
    for name, core in values.items():
        labels = objective.occurrences[objective.places[name][0]].labels
        for label in [label for label in labels if label in factors]:
            new = label + "new"
            core = contract([(core, labels), (factors[label], (label, new))], _replace_label(labels, label, new))
        taken[name] = core.contiguous()
    return taken


def _replace_label(labels: _Labels, old: str, new: str) -> _Labels:
    return tuple(new if label == old else label for label in labels)
