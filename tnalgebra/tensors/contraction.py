"""Contract labelled torch tensors pair by pair, with any number of labels, in an order that opt_einsum chooses.

torch.einsum has at most 52 labels. Here the labels of each pair are grouped into batch, left, right and summed labels,
and the pair is one batched matrix product, so that the only limit is torch's 64 axes for one tensor. The steps of a
contraction are planned once for the same labels and sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple, TypeAlias

import opt_einsum
import torch
from torch import Tensor

from ..errors import NetworkError, SizeError
from ..networks import MAX_AXES

_Labels: TypeAlias = tuple[str, ...]

Operand = tuple[Tensor, _Labels]
"""A tensor and the label of each of its axes. A label that occurs twice takes the diagonal."""

MAX_ELEMENTS = 2**28
"""Most elements of an intermediate by default, which take 2 GiB in float64."""

SMALL = 5
"""Most operands for which all orders are tried, to take the one with the fewest multiply-adds."""

CACHED = 4096
"""How many contractions keep their planned steps."""


def contract(operands: Sequence[Operand], output: Sequence[str], *, max_elements: int = MAX_ELEMENTS) -> Tensor:
    """Sum the product of `operands` over every label that is not in `output`.

    Args:
        operands: at least one. Axes with the same label have the same size.
        output: the labels of the result's axes, each of which some operand has.
        max_elements: the most elements that an intermediate may have. This is checked before anything is computed.

    Returns:
        One axis for each output label; element [i, j, ...] is the sum for these values of the output labels.

    Raises:
        SizeError: an intermediate would have more than `max_elements` elements.
        NetworkError: an intermediate would have more than 64 axes.
    """
    tensors, labels = zip(*operands, strict=True)
    shapes = tuple([tuple(tensor.shape) for tensor in tensors])
    steps = _plan(tuple(map(tuple, labels)), shapes, tuple(output), max_elements)
    pending: list[Tensor] = list(tensors)
    for position, reduce in steps.reductions:
        pending[position] = reduce(pending[position])
    for i, j, multiply in steps.pairs:
        right, left = pending.pop(max(i, j)), pending.pop(min(i, j))
        pending.append(multiply(left, right))
    return pending[0].permute(steps.order)


class _Steps(NamedTuple):
    """Steps of a contraction: reductions of single operands, then pairs, whose product goes to the end of the list."""

    reductions: tuple[tuple[int, Callable[[Tensor], Tensor]], ...]
    pairs: tuple[tuple[int, int, Callable[[Tensor, Tensor], Tensor]], ...]
    order: tuple[int, ...]


@lru_cache(maxsize=CACHED)
def _plan(
    operands: tuple[_Labels, ...], shapes: tuple[tuple[int, ...], ...], output: _Labels, max_elements: int
) -> _Steps:
    _check_axes(output, (), output)
    sizes: dict[str, int] = {}
    for labels, shape in zip(operands, shapes, strict=True):
        sizes |= dict(zip(labels, shape, strict=True))
    keep = set(output)
    reductions = []
    pending: list[_Labels] = []
    for position, labels in enumerate(operands):
        elsewhere = {label for other, names in enumerate(operands) if other != position for label in names}
        reduction, left_over = _reduction(labels, elsewhere | keep)
        if reduction is not None:
            reductions.append((position, reduction))
        pending.append(left_over)
    pairs = []
    for i, j in _order(pending, output, sizes):
        right, left = pending.pop(max(i, j)), pending.pop(min(i, j))
        needed = keep.union(*pending)
        _check_axes(left, right, needed)
        _check_elements({label: sizes[label] for label in {*left, *right} & needed}, max_elements)
        multiply, labels = _product(left, right, needed, sizes)
        pairs.append((i, j, multiply))
        pending.append(labels)
    return _Steps(tuple(reductions), tuple(pairs), tuple(pending[0].index(label) for label in output))


def _reduction(labels: _Labels, needed: Collection[str]) -> tuple[Callable[[Tensor], Tensor] | None, _Labels]:
    """Take the diagonals of repeated labels, and sum over labels that are not needed.

    Returns:
        The function that does it, or None if there is nothing to do; and the labels that remain.
    """
    diagonals = []
    for label, times in Counter(labels).items():
        for _ in range(times - 1):
            first = labels.index(label)
            second = labels.index(label, first + 1)
            diagonals.append((first, second))
            labels = (*labels[:first], *labels[first + 1 : second], *labels[second + 1 :], label)
    dead = [axis for axis, label in enumerate(labels) if label not in needed]

    def reduce(tensor: Tensor) -> Tensor:
        for first, second in diagonals:
            tensor = tensor.diagonal(dim1=first, dim2=second)
        return tensor.sum(dead) if dead else tensor

    left_over = tuple(label for label in labels if label in needed)
    return (reduce if diagonals or dead else None), left_over


def _order(labels: Sequence[_Labels], output: _Labels, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    if len(labels) < 2:
        return []
    inputs = [frozenset(operand) for operand in labels]
    search = opt_einsum.paths.optimal if len(labels) <= SMALL else opt_einsum.paths.auto
    path = search(inputs, frozenset(output), dict(sizes))
    pairs: list[tuple[int, int]] = []
    remaining = len(labels)
    for group in path:
        # a step of a path may have more than two operands, or only one: they are folded in pairs
        ahead = sorted(group, reverse=True)
        while len(ahead) > 1:
            i, j = ahead.pop(0), ahead.pop(0)
            pairs.append((i, j))
            remaining -= 1
            ahead.insert(0, remaining - 1)
    return pairs


def _check_axes(left: _Labels, right: _Labels, needed: Collection[str]) -> None:
    axes = {*left, *right} & set(needed)
    if len(axes) > MAX_AXES:
        raise NetworkError(
            f"an intermediate of the contraction has {len(axes)} axes", fix=f"at most {MAX_AXES}: fuse labels"
        )


def _check_elements(sizes: Mapping[str, int], max_elements: int) -> None:
    elements = prod(sizes.values())
    if elements > max_elements:
        raise SizeError(
            f"an intermediate of the contraction would have {elements} elements",
            labels=" ".join(f"{label}={size}" for label, size in sorted(sizes.items())),
            fix=f"smaller sizes, or max_elements above {max_elements}",
        )


def _product(
    a: _Labels, b: _Labels, needed: Collection[str], sizes: Mapping[str, int]
) -> tuple[Callable[[Tensor, Tensor], Tensor], _Labels]:
    """A function for one batched matrix product, (batch, left, summed) times (batch, summed, right); and its labels."""
    reduce_a, a = _reduction(a, {*needed, *b})
    reduce_b, b = _reduction(b, {*needed, *a})
    both = [label for label in a if label in b]
    batch = [label for label in both if label in needed]
    summed = [label for label in both if label not in needed]
    left = [label for label in a if label not in both]
    right = [label for label in b if label not in both]
    labels = (*batch, *left, *right)
    shape = [sizes[label] for label in labels]
    product: Callable[[Tensor, Tensor], Tensor]
    if summed:
        groups = [batch] if batch else []
        first, second = _grouped(a, (*groups, left, summed), sizes), _grouped(b, (*groups, summed, right), sizes)
        product = torch.bmm if batch else torch.mm
    else:  # each element of the result is one product
        first = _grouped(a, ([label] if label in a else [] for label in labels), sizes)
        second = _grouped(b, ([label] if label in b else [] for label in labels), sizes)
        product = torch.mul

    def multiply(one: Tensor, other: Tensor) -> Tensor:
        one, other = one if reduce_a is None else reduce_a(one), other if reduce_b is None else reduce_b(other)
        return product(first(one), second(other)).reshape(shape)

    return multiply, labels


def _grouped(labels: _Labels, groups: Iterable[Sequence[str]], sizes: Mapping[str, int]) -> Callable[[Tensor], Tensor]:
    """The function that gives a tensor one axis for each group of labels, of size 1 for an empty group."""
    groups = list(groups)
    order = [labels.index(label) for group in groups for label in group]
    shape = [prod(sizes[label] for label in group) for group in groups]
    single = all(len(group) == 1 for group in groups)
    if order == sorted(order):
        return (lambda tensor: tensor) if single else (lambda tensor: tensor.reshape(shape))
    return (lambda tensor: tensor.permute(order)) if single else (lambda tensor: tensor.permute(order).reshape(shape))
