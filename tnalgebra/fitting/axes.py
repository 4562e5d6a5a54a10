"""Tensors whose axes have labels: several axes as one, and an axis as several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor


def group_axes(tensor: Tensor, labels: Sequence[str], *groups: Sequence[str]) -> Tensor:
    """Write a tensor with one axis for each group of labels.

    Args:
        labels: of the axes of the tensor.
        groups: all labels, each in one group. In a group the last label runs fastest; the axis of an empty group has
            size 1.
    """
    sizes = dict(zip(labels, tensor.shape, strict=True))
    moved = tensor.permute([labels.index(label) for group in groups for label in group])
    return moved.reshape([prod(sizes[label] for label in group) for group in groups])


def split_axes(tensor: Tensor, sizes: Mapping[str, int], labels: Sequence[str], *groups: Sequence[str]) -> Tensor:
    """The inverse of `group_axes`: a tensor with one axis for each of `labels`, which have these sizes."""
    order = [label for group in groups for label in group]
    return tensor.reshape([sizes[label] for label in order]).permute([order.index(label) for label in labels])
