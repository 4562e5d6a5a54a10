"""Lowering: a join of two values along windows by Fourier transforms."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..networks import window
from . import operations as ops
from .fourier_steps import FourierAxis
from .operations import Axes, Axis, labels_in
from .values import Draft, Value, arrange, as_matrices, pad, roles, singles, without


def convolve_by_fourier(
    draft: Draft,
    left: Value,
    right: Value,
    *,
    axes: Sequence[FourierAxis],
    lengths: Sequence[int],
    live: Collection[str],
    transposed: bool,
) -> Value:
    """Join an input and a kernel along windows: a product for each frequency, between transforms of both.

    Args:
        lengths: of the transform along each window; an input is cut into blocks of that length, which overlap.
    """
    image, sources = _padded(draft, left, axes, transposed=transposed)
    is_cut = [
        source in draft.moving or axis.positions > length
        for axis, source, length in zip(axes, sources, lengths, strict=True)
    ]
    blocks = tuple(
        length - axis.reach + 1 if cut else 0 for axis, length, cut in zip(axes, lengths, is_cut, strict=True)
    )
    pads = tuple((0, 0) if draft.steps.is_folded(axis.node) and not transposed else axis.pads for axis in axes)
    frequencies = _frequencies(draft, axes, lengths)
    counts = _counts(draft, axes, sources, blocks)
    others = without(image.labels, sources)
    spectrum = draft.add(
        ops.Transform(
            image.number,
            singles((*others, *counts, *frequencies)),
            tuple(lengths),
            blocks,
            tuple(axis.apart for axis in axes),
            pads,
            tuple(axis.reach for axis in axes),
        )
    )
    kernel = _kernel(draft, right, axes, lengths=lengths, frequencies=frequencies, turned=not transposed)
    product = _product(draft, spectrum, kernel, frequencies=frequencies, live=live)
    kept = without(product.labels, (*counts, *frequencies))
    product = arrange(draft, product, singles((*kept, *counts, *frequencies)))
    ends = tuple((axis.apart, sum(ends) - axis.reach + 1) for axis, ends in zip(axes, pads, strict=True))
    result = ops.Inverse(
        product.number,
        image.number,
        singles((*kept, *(axis.target for axis in axes))),
        tuple(lengths),
        blocks,
        tuple(axis.reach for axis in axes),
        tuple(axis.stride for axis in axes),
        ends,
    )
    return draft.add(result)


def _padded(
    draft: Draft, value: Value, axes: Sequence[FourierAxis], *, transposed: bool
) -> tuple[Value, tuple[str, ...]]:
    """The input with its positions last, and their labels; padding that folds positions back is done."""
    sources = tuple(axis.source for axis in axes)
    others = without(value.labels, sources)
    folded = [axis.node for axis in axes if draft.steps.is_folded(axis.node) and not transposed]
    if folded:
        value = arrange(draft, value, (others, *singles(sources)))
        ends = [(node, window(node)["low"], window(node)["high"]) for node in folded]
        value = pad(draft, value, ends)
        sources = labels_in(value.axes[1:])
    return arrange(draft, value, singles((*others, *sources))), sources


def _frequencies(draft: Draft, axes: Sequence[FourierAxis], lengths: Sequence[int]) -> tuple[str, ...]:
    """New labels of frequencies; of the last axis half of them are enough, as the elements are real numbers."""
    labels = []
    for number, (axis, length) in enumerate(zip(axes, lengths, strict=True)):
        size = length // 2 + 1 if number == len(axes) - 1 else length
        labels.append(f"{axis.target}@{size}~")
        draft.sizes[labels[-1]] = size
    return tuple(labels)


def _counts(
    draft: Draft, axes: Sequence[FourierAxis], sources: Sequence[str], blocks: Sequence[int]
) -> tuple[str, ...]:
    """New labels of the blocks of axes that are cut, with all that their number depends on in the name."""
    labels = []
    for axis, source, block in zip(axes, sources, blocks, strict=True):
        if block:
            labels.append(f"{axis.target}@{axis.apart}.{sum(axis.pads) - axis.reach}.{block}#")
            draft.sizes[labels[-1]] = -(-axis.results // block)
            if source in draft.moving:
                draft.moving |= {labels[-1]}
    return tuple(labels)


def _kernel(
    draft: Draft,
    value: Value,
    axes: Sequence[FourierAxis],
    *,
    lengths: Sequence[int],
    frequencies: Sequence[str],
    turned: bool,
) -> Value:
    """The transform of the kernel, whose elements are a dilation apart; `turned`: from the last to the first."""
    ks = tuple(axis.node.k for axis in axes)
    others = without(value.labels, ks)
    value = arrange(draft, value, singles((*others, *ks)))
    apart = tuple(axis.dilation for axis in axes)
    return draft.add(
        ops.Transform(
            value.number,
            singles((*others, *frequencies)),
            tuple(lengths),
            (0,) * len(axes),
            apart,
            tuple((0, 1 - dilation) for dilation in apart),
            tuple(axis.reach for axis in axes),
            turned,
        )
    )


def _product(draft: Draft, left: Value, right: Value, *, frequencies: Sequence[str], live: Collection[str]) -> Value:
    """The product of two spectra at each frequency, summed over the labels of both that are not live."""
    groups, summed, new = roles(left, right, {*live, *frequencies})
    old = without(left.labels, groups + summed)
    if summed:
        left = as_matrices(draft, arrange(draft, left, (groups, old, summed)))
        right = as_matrices(draft, arrange(draft, right, (groups, summed, new)))
        return draft.add(ops.Matmul(left.number, right.number, (groups, old, new), summed, "batched"))
    first = without(left.labels, frequencies)
    axes: Axes = singles((*first, *new, *frequencies))
    left = arrange(draft, left, (*singles(first), *(() for _ in new), *singles(frequencies)))
    other: tuple[Axis, ...] = tuple(axis if set(axis) <= {*groups, *new} else () for axis in axes)
    while other and not other[0]:  # torch broadcasts along missing leading axes
        other = other[1:]
    right = arrange(draft, right, other)
    return draft.add(ops.Multiply(left.number, right.number, axes))
