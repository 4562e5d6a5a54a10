"""Contract labelled torch tensors pair by pair, in an order found by opt_einsum, with any number of labels.

torch.einsum knows 52 labels; here each pair is one batched matrix product, its labels grouped into batch, left,
right and summed, so only torch's 64 axes per tensor remain as a limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from math import prod

import opt_einsum
import torch
from torch import Tensor

from .errors import NetworkError, SizeError, explain
from .labels import MAX_AXES

Operand = tuple[Tensor, tuple[str, ...]]
"""A tensor and the label of each of its axes; a label that stands twice means the diagonal."""

MAX_ELEMENTS = 2**28
"""Default bound of the largest intermediate: 2 GiB in float64."""


def contract(operands: Sequence[Operand], output: Sequence[str], *, max_elements: int = MAX_ELEMENTS) -> Tensor:
    """Sum the product of `operands` over every label that is not in `output`.

    Args:
        operands: at least one; equal labels have equal sizes.
        output: labels of the result's axes, each on some operand.
        max_elements: refuse, before computing anything, a contraction with a larger intermediate.

    Returns:
        Shape: the sizes of `output`; element [i, j, ...] is the sum at those values of the output labels.

    Raises:
        SizeError: some intermediate would have more than `max_elements` elements.
        NetworkError: some intermediate would have more than 64 axes.
    """
    keep = set(output)
    sizes = {label: size for tensor, labels in operands for label, size in zip(labels, tensor.shape, strict=True)}
    pending = [_reduced(operand, _elsewhere(operands, position) | keep) for position, operand in enumerate(operands)]
    for i, j in _order([labels for _, labels in pending], tuple(output), sizes):
        right, left = pending.pop(max(i, j)), pending.pop(min(i, j))
        needed = keep.union(*(labels for _, labels in pending))
        _check_axes(left, right, needed)
        _check_elements({label: sizes[label] for label in {*left[1], *right[1]} & needed}, max_elements)
        pending.append(_pair(left, right, needed))
    tensor, labels = pending[0]
    return tensor.permute([labels.index(label) for label in output])


def _elsewhere(operands: Sequence[Operand], position: int) -> set[str]:
    return {label for other, (_, labels) in enumerate(operands) if other != position for label in labels}


def _reduced(operand: Operand, needed: Collection[str]) -> Operand:
    """Take the diagonals of repeated labels, then sum the labels nobody needs."""
    tensor, labels = operand
    for label, times in Counter(labels).items():
        for _ in range(times - 1):
            first = labels.index(label)
            second = labels.index(label, first + 1)
            tensor = tensor.diagonal(dim1=first, dim2=second)
            labels = (*labels[:first], *labels[first + 1 : second], *labels[second + 1 :], label)
    dead = [axis for axis, label in enumerate(labels) if label not in needed]
    if dead:
        tensor = tensor.sum(dead)
        labels = tuple(label for label in labels if label in needed)
    return tensor, labels


def _order(
    labels: Sequence[tuple[str, ...]], output: tuple[str, ...], sizes: Mapping[str, int]
) -> list[tuple[int, int]]:
    if len(labels) < 2:
        return []
    inputs = [frozenset(operand) for operand in labels]
    path = opt_einsum.paths.auto(inputs, frozenset(output), dict(sizes))
    pairs: list[tuple[int, int]] = []
    remaining = len(labels)
    for group in path:
        # a path may name more than two operands (or one) in a step: fold them in pairs
        ahead = sorted(group, reverse=True)
        while len(ahead) > 1:
            i, j = ahead.pop(0), ahead.pop(0)
            pairs.append((i, j))
            remaining -= 1
            ahead.insert(0, remaining - 1)
    return pairs


def _check_axes(left: Operand, right: Operand, needed: Collection[str]) -> None:
    axes = {*left[1], *right[1]} & set(needed)
    if len(axes) > MAX_AXES:
        raise NetworkError(
            explain(f"an intermediate of the contraction has {len(axes)} axes", fix=f"at most {MAX_AXES}: fuse labels")
        )


def _check_elements(sizes: Mapping[str, int], max_elements: int) -> None:
    elements = prod(sizes.values())
    if elements > max_elements:
        raise SizeError(
            explain(
                f"an intermediate of the contraction would have {elements} elements",
                labels=" ".join(f"{label}={size}" for label, size in sizes.items()),
                fix=f"smaller sizes, or max_elements above {max_elements}",
            )
        )


def _pair(a: Operand, b: Operand, needed: Collection[str]) -> Operand:
    """One batched matrix product: (batch, left, summed) times (batch, summed, right)."""
    a, b = _reduced(a, {*needed, *b[1]}), _reduced(b, {*needed, *a[1]})
    both = [label for label in a[1] if label in b[1]]
    batch = [label for label in both if label in needed]
    summed = [label for label in both if label not in needed]
    left = [label for label in a[1] if label not in both]
    right = [label for label in b[1] if label not in both]
    sizes = {label: size for tensor, labels in (a, b) for label, size in zip(labels, tensor.shape, strict=True)}

    def grouped(operand: Operand, *groups: list[str]) -> Tensor:
        tensor, labels = operand
        order = [labels.index(label) for group in groups for label in group]
        return tensor.permute(order).reshape([prod(sizes[label] for label in group) for group in groups])

    product = torch.bmm(grouped(a, batch, left, summed), grouped(b, batch, summed, right))
    labels = (*batch, *left, *right)
    return product.reshape([sizes[label] for label in labels]), labels
