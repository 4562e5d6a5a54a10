"""Lowering: a join of two values along windows by Fourier transforms."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from ..networks import window
from . import operations as ops
from .fourier_steps import FourierAxis
from .operations import Axes, labels_in
from .transforms import Points
from .values import Draft, Value, arrange, as_matrices, pad, roles, singles, without

TILE = 2**-5
"""The number of elements of an input that are transformed at a time, relative to that of a tensor which gets fresh
memory at every call.
"""


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
    points = tuple(
        axis.points(length, is_cut=source in draft.moving or axis.whole > length)
        for axis, source, length in zip(axes, sources, lengths, strict=True)
    )
    circles = _circles(draft, image, axes, points)
    frequencies = _frequencies(draft, axes, points, circles)
    counts = _counts(draft, axes, sources, points)
    plan = _Join(tuple(axes), points, circles, counts, frequencies)
    kernel = _kernel(draft, right, plan, turned=not transposed)
    if roles(image, kernel, live)[1]:
        return _by_matrices(draft, image, kernel, plan, live=live)
    return _filter(draft, image, kernel, plan)


class _Join(NamedTuple):
    """A join along windows.

    axes, points: of the windows.
    circles: for each axis the label whose size is the number of points, or "".
    counts, frequencies: the labels of blocks and of frequencies.
    """

    axes: tuple[FourierAxis, ...]
    points: tuple[Points, ...]
    circles: tuple[str, ...]
    counts: tuple[str, ...]
    frequencies: tuple[str, ...]

    @property
    def targets(self) -> Axes:
        """The axes of the result's positions."""
        return singles(axis.target for axis in self.axes)


def _circles(draft: Draft, image: Value, axes: Sequence[FourierAxis], points: Sequence[Points]) -> tuple[str, ...]:
    """The labels whose sizes are the numbers of points: of consecutive windows the first ones."""
    before = draft.operations[image.number]
    if isinstance(before, ops.Filter | ops.Inverse) and _may_follow(before.points, points):
        return before.circles
    return tuple(axis.source if axis.is_circle else "" for axis in axes)


def _padded(
    draft: Draft, value: Value, axes: Sequence[FourierAxis], *, transposed: bool
) -> tuple[Value, tuple[str, ...]]:
    """The input with its positions last, and their labels; padding that folds positions back is done."""
    sources = tuple(axis.source for axis in axes)
    others = without(value.labels, sources)
    if not transposed:
        folded = [axis.node for axis in axes if draft.steps.is_folded(axis.node) and not axis.is_circle]
        if folded:
            value = arrange(draft, value, (others, *singles(sources)))
            value = pad(draft, value, [(node, window(node)["low"], window(node)["high"]) for node in folded])
            sources = labels_in(value.axes[1:])
    return arrange(draft, value, singles((*others, *sources))), sources


def _frequencies(
    draft: Draft, axes: Sequence[FourierAxis], points: Sequence[Points], circles: Sequence[str]
) -> tuple[str, ...]:
    """New labels of frequencies; of the last axis half of them are enough, as the elements are real numbers."""
    labels = []
    for number, (axis, one, circle) in enumerate(zip(axes, points, circles, strict=True)):
        is_half = number == len(axes) - 1
        size = one.length // 2 + 1 if is_half else one.length
        labels.append(f"{circle}@{'half' if is_half else ''}~" if circle else f"{axis.target}@{size}~")
        draft.sizes[labels[-1]] = size
        if circle in draft.moving:
            draft.moving |= {labels[-1]}
    return tuple(labels)


def _counts(
    draft: Draft, axes: Sequence[FourierAxis], sources: Sequence[str], points: Sequence[Points]
) -> tuple[str, ...]:
    """New labels of the blocks of axes that are cut, with all that their number depends on in the name."""
    labels = []
    for axis, source, one in zip(axes, sources, points, strict=True):
        if one.is_cut:
            labels.append(f"{axis.target}@{one.apart}.{one.pads[0]}.{one.pads[1]}.{one.reach}.{one.length}#")
            draft.sizes[labels[-1]] = one.blocks(axis.size)
            if source in draft.moving:
                draft.moving |= {labels[-1]}
    return tuple(labels)


def _kernel(draft: Draft, value: Value, join: _Join, *, turned: bool) -> Value:
    """The transform of the kernel, whose elements are a dilation apart; `turned`: from the last to the first."""
    ks = tuple(axis.node.k for axis in join.axes)
    others = without(value.labels, ks)
    value = arrange(draft, value, singles((*others, *ks)))
    return draft.add(
        ops.TransformKernel(
            value.number,
            singles((*others, *join.frequencies)),
            tuple(one.length for one in join.points),
            join.circles,
            tuple(axis.dilation for axis in join.axes),
            tuple(axis.reach - 1 - axis.pads[0] if axis.is_circle else 0 for axis in join.axes),
            turned,
        )
    )


def _by_matrices(draft: Draft, image: Value, kernel: Value, join: _Join, *, live: Collection[str]) -> Value:
    """The product of matrices at each frequency, summed over the labels of both sides that are not live."""
    before = draft.operations[image.number]
    inside = (*join.counts, *join.frequencies)
    if isinstance(before, ops.Inverse) and _may_follow(before.points, join.points):
        # consecutive windows on circles: the spectrum that was just transformed back
        axes = draft.operations[before.source].axes
        spectrum, like = Value(before.source, axes, labels_in(axes)), before.like
    else:
        like = image.number
        others = labels_in(image.axes[: -len(join.axes)])
        transform = ops.Transform(image.number, singles((*others, *inside)), join.points, join.circles)
        spectrum = draft.add(transform)
    groups, summed, new = roles(spectrum, kernel, {*live, *join.frequencies})
    old = without(spectrum.labels, groups + summed)
    one = as_matrices(draft, arrange(draft, spectrum, (groups, old, summed)))
    other = as_matrices(draft, arrange(draft, kernel, (groups, summed, new)))
    product = draft.add(ops.Matmul(one.number, other.number, (groups, old, new), summed, "batched"))
    kept = without(product.labels, inside)
    product = arrange(draft, product, singles((*kept, *inside)))
    axes = (*singles(kept), *join.targets)
    return draft.add(ops.Inverse(product.number, like, axes, join.points, join.circles))


def _filter(draft: Draft, image: Value, kernel: Value, join: _Join) -> Value:
    """The elementwise product of the spectra of both sides."""
    first, positions = image.axes[: -len(join.axes)], image.axes[-len(join.axes) :]
    new = without(kernel.labels, (*labels_in(first), *join.frequencies))
    image = arrange(draft, image, (*first, *(() for _ in new), *positions))
    channels: Axes = (*(axis if axis[0] in kernel.labels else () for axis in first), *singles(new))
    kernel = arrange(draft, kernel, (*channels, *(() for _ in join.counts), *singles(join.frequencies)))
    before, source = draft.operations[image.number], image.number
    if isinstance(before, ops.Filter) and _may_follow(before.points, join.points):
        # consecutive windows on circles: the product of their spectra
        axes = draft.operations[before.spectrum].axes
        union = tuple(one or other for one, other in zip(axes, kernel.axes, strict=True))
        kernel, source = draft.add(ops.Multiply(before.spectrum, kernel.number, union)), before.source
    axes = (*first, *singles(new), *join.targets)
    tile = int(TILE * draft.steps.prices.constants.large)
    return draft.add(ops.Filter(source, kernel.number, axes, join.points, join.circles, tile))


def _may_follow(before: Sequence[Points], points: Sequence[Points]) -> bool:
    """Whether windows on circles follow others that keep all positions of the same axes."""
    if len(before) != len(points) or not all(one.is_circle for one in (*before, *points)):
        return False
    return all(one.stride == 1 and sum(one.pads) == one.reach - 1 for one in before)
