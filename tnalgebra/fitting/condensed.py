"""An objective in the leading subspaces of its target: sweeps are cheaper there, and nearly as good.

A label that only one core has matters in no more dimensions than the other labels of that core have values: the column
space of `A[out r]` has dimension r. Where this is less than the size of the label, a search may begin with the
coordinates of the target in that many leading directions. Cores found there are cores for the target itself, and
their loss differs by what the subspaces leave out, whatever the cores are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ..tensors import contract
from .objective import BATCH, LAYER, Objective

LARGEST_CONDENSED = 2048
"""The most values of a label whose Gram matrix is decomposed, which takes a few seconds."""

_NEW = "new/"
"""Names the coordinates in a subspace; the notation has no such label."""


def leading_subspaces(objective: Objective) -> dict[str, Tensor]:
    """For each label that matters in fewer dimensions than it has, a basis with most of the norm of the target.

    Returns:
        Orthonormal columns of shape (layers, size of the label, dimension); none in a metric.
    """
    bases = {}
    for axis, label in enumerate(objective.output, 1):
        ends = [occurrence for occurrence in objective.occurrences if label in occurrence.labels]
        if objective.metric is None and len(ends) == 1 and len(objective.places.get(ends[0].name, ())) == 1:
            most = prod([objective.sizes[other] for other in ends[0].labels if other != label])
            if most < objective.sizes[label] <= LARGEST_CONDENSED:
                rows = objective.target.movedim(axis, 1).flatten(2)
                bases[label] = torch.linalg.eigh(rows @ rows.mH)[1][..., -most:]
    return bases


def condense(objective: Objective, bases: Mapping[str, Tensor]) -> Objective:
    """The objective for the coordinates of the target in subspaces, whose bases are those of `leading_subspaces`."""
    operands = [(objective.target, (LAYER, *objective.output))]
    operands += [(basis.conj(), (LAYER, label, _NEW + label)) for label, basis in bases.items()]
    output = tuple([_NEW + label if label in bases else label for label in objective.output])
    free = {
        name: tuple(
            bases[label].shape[2] if label in bases else size
            for label, size in zip(objective.occurrences[places[0]].labels, objective.free[name], strict=True)
        )
        for name, places in objective.places.items()
    }
    return replace(objective, target=contract(operands, (LAYER, *output)).contiguous(), free=free)


def expand(objective: Objective, values: Mapping[str, Tensor], bases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The cores for the target itself, from those for its coordinates; both with the axes of layers and starts."""
    expanded = {}
    for name, core in values.items():
        labels = (*BATCH, *objective.occurrences[objective.places[name][0]].labels)
        operands = [(core, tuple([_NEW + label if label in bases else label for label in labels]))]
        operands += [(bases[label], (LAYER, label, _NEW + label)) for label in labels if label in bases]
        expanded[name] = contract(operands, labels).contiguous()
    return expanded
