"""Lowering: a join of two values as one of torch's convolutions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ..networks import Conv, window
from . import operations as ops
from .operations import Axes, Axis, Pads, labels_in
from .values import (
    UNKNOWN,
    Draft,
    Value,
    arrange,
    as_image,
    axes_of_images,
    channels_last_order,
    copy_value,
    pad,
    relabel_axes,
    relabel_axis,
    roles,
    singles,
    without,
)


class _Positions(NamedTuple):
    """One axis of positions, and the window that moves along it, if there is one.

    before, after, k: the axis of the input, of the result and of the kernel.
    padding, extra: the arguments `padding` and `output_padding` of torch.
    rest: positions to add (or to cut off, if negative) at both ends: before a convolution, after a transposed one.
    """

    node: Conv | None
    before: Axis
    after: Axis
    k: Axis = ()
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    extra: int = 0
    rest: tuple[int, int] = (0, 0)


def convolve(
    draft: Draft,
    left: Value,
    right: Value,
    *,
    windows: Sequence[Conv],
    live: Collection[str],
    transposed: bool,
) -> Value:
    """Join an input and a kernel by a convolution along the windows; without windows, by a 1x1 convolution."""
    is_last = draft.style.memory_format == "channels_last"
    ends = {(node.y if transposed else node.x): node for node in windows}
    ks = [node.k for node in windows]
    groups, summed, new = roles(left, right, live)
    new = without(new, ks)
    batch, axes = axes_of_images(left, groups + summed, ends)
    if alike := _alike(draft, left, batch, groups + summed):
        batch = without(batch, alike)
        right = _repeat(draft, right, alike, (*(axis for axis in (groups, new, summed) if axis), *singles(ks)))
        groups += alike
    while len(axes) < (2 if is_last else 1):
        axes.insert(0, ())
    positions = [_positions(draft, axis, ends, transposed=transposed) for axis in axes]
    # bring both sides onto the axes that torch expects, in the memory format of the style
    left = arrange(draft, left, (batch, groups + summed, *axes))
    window_axes = tuple(one.k for one in positions)
    kernel_axes = (*((groups + summed, new) if transposed else (groups + new, summed)), *window_axes)
    right = arrange(draft, right, kernel_axes, last=is_last)
    if not transposed:
        left = pad(draft, left, [(one.node, *one.rest) for one in positions if one.node])
    left, image_is_last = as_image(draft, left)
    # an image of one channel does not show its format, and a frozen kernel is converted beforehand
    by_torch = not (transposed or draft.steps.prices.frozen) and any(draft.counts(label) for label in groups + summed)
    right = _kernel_in_format(draft, right, by_torch=by_torch)
    # the call, and the padding that it cannot do itself
    _, _, after, _, stride, dilation, padding, extra, rest = zip(*positions, strict=True)
    axes_after = (batch, groups + new, *after)
    numbers = (stride, padding, dilation, transposed, extra)
    call = ops.Convolve(left.number, right.number, axes_after, groups, summed, new, window_axes, *numbers)
    value = draft.add(call, labels_in([batch, *after, groups + new]) if image_is_last else None)
    return _pad_after(draft, value, rest) if transposed else value


def _kernel_in_format(draft: Draft, kernel: Value, *, by_torch: bool) -> Value:
    """A kernel in the memory format of the style; torch would give the output that of the kernel.

    In channels_last the format of the image is enough: torch converts a contiguous kernel itself, in less time than a
    step of the program takes.
    """
    order, plain = channels_last_order(kernel.axes), labels_in(kernel.axes)
    if draft.style.memory_format == "channels_last":
        lies = draft.lies(kernel, order) or (by_torch and draft.lies(kernel, plain))
        return kernel if lies else draft.add(ops.ChannelsLast(kernel.number, kernel.axes), order)
    turned = draft.lies(kernel, order) and not draft.lies(kernel, plain)
    return copy_value(draft, kernel, kernel.axes) if turned else kernel


def _alike(draft: Draft, value: Value, batch: Axis, shared: Axis) -> Axis:
    """Batch labels that become groups, if the kernel has no channels and so acts alike on all their values.

    A depthwise convolution with a repeated kernel is far faster than a convolution of one channel in a long batch.
    """
    if any(draft.counts(label) for label in shared):
        return ()
    first = next((axis for axis in value.axes if set(axis) & set(batch)), ())
    return tuple(label for label in batch if label not in first)


def _repeat(draft: Draft, kernel: Value, groups: Axis, inner: Axes) -> Value:
    kernel = arrange(draft, kernel, ((), *inner))
    return draft.add(ops.Repeat(kernel.number, (groups, *inner)), UNKNOWN)


def _positions(draft: Draft, axis: Axis, ends: Mapping[str, Conv], *, transposed: bool) -> _Positions:
    """An axis of positions with its window, if `ends` has one for its label."""
    node = ends.get(axis[0]) if len(axis) == 1 else None
    if node is None:
        return _Positions(None, axis, axis)
    numbers = window(node)
    low, high, stride, dilation = (numbers[name] for name in ("low", "high", "stride", "dilation"))
    positions = _Positions(node, axis, (node.y,), (node.k,), stride, dilation)
    if not transposed:
        by_call = low == high >= 0 and node.mode == "zeros"
        return positions._replace(padding=low) if by_call else positions._replace(rest=(low, high))
    # The full result has `reach` positions, of which the low end loses `low` and the high end `cut`. torch cuts off
    # `padding` at both ends, and gives back less than a stride or dilation at the high end.
    reach = stride * (draft.sizes[node.y] - 1) + dilation * (draft.sizes[node.k] - 1) + 1
    cut = reach - low - draft.sizes[node.x]
    most_extra = max(stride, dilation) - 1
    padding = max(low, 0)
    if padding - cut > most_extra or reach - 2 * padding < 1:
        padding = min(padding, max(cut, 0))
    front, back = padding - low, padding - cut
    extra = back if 0 <= back <= most_extra else 0
    rest = (front, back - extra)
    after = node.x if rest == (0, 0) else draft.prime(node.x, -sum(rest))
    return positions._replace(after=(after,), padding=padding, extra=extra, rest=rest)


def _pad_after(draft: Draft, value: Value, ends: Pads) -> Value:
    """Add or cut the positions that a transposed convolution leaves over; its labels lose their prime."""
    plain = {axis[0]: axis[0][:-1] for axis, pair in zip(value.axes[2:], ends, strict=True) if pair != (0, 0)}
    if not plain:
        return value
    axes, order = relabel_axes(value.axes, plain), relabel_axis(value.order, plain)
    return draft.add(ops.Pad(value.number, axes, ends), order)
