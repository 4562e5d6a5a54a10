"""Inputs without elements: axes that may be empty get one element of zeros, and the output loses it again."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..networks import Network, tensors_of
from .choose import PlanRequest, is_free


def empty_labels(request: PlanRequest, tensors: Sequence[Tensor]) -> list[str]:
    """Labels of size 0 on all inputs that have them, and on nothing else, such as a batch."""
    if all(tensor.numel() for tensor in tensors):
        return []
    sizes: dict[str, set[int]] = {}
    for labels, tensor in zip(_labels(request), tensors, strict=True):
        for label, size in zip(labels, tensor.shape, strict=False):
            sizes.setdefault(label, set()).add(size)
    return [label for label, known in sizes.items() if known == {0} and is_free(request, label)]


def with_one_element(request: PlanRequest, tensors: Sequence[Tensor], empty: Collection[str]) -> list[Tensor]:
    """The inputs with one element, of zeros, along these labels: it adds nothing to a sum."""
    longer = []
    for labels, tensor in zip(_labels(request), tensors, strict=True):
        for axis, label in enumerate(labels):
            if label in empty:
                shape = [1 if place == axis else size for place, size in enumerate(tensor.shape)]
                tensor = torch.cat([tensor, tensor.new_zeros(shape)], axis)
        longer.append(tensor)
    return longer


def without_elements(network: Network, value: Tensor, empty: Collection[str]) -> Tensor:
    """The output with no element along these labels."""
    for axis, label in enumerate(network.output):
        if label in empty:
            value = value.narrow(axis, 0, 0)
    return value


def _labels(request: PlanRequest) -> list[tuple[str, ...]]:
    """The labels of each input."""
    nodes = tensors_of(request.network)
    return [nodes[name].labels for name in request.inputs]
