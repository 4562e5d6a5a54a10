"""Joins along windows by Fourier transforms: the lengths of the transforms, and the price of the step.

A window is a product for each frequency. An input is cut into blocks of L elements that overlap by the reach
R = d*(k-1) + 1 of the kernel less one, and each block gives L - R + 1 elements of the result (overlap-save). If one
block has the whole axis, this is one transform. Of a window with a stride every s-th element is kept; a transposed one
is the same window over an input with s-1 zeros after each element. A circular window needs neither blocks nor padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from math import inf, log2
from typing import NamedTuple

from ..networks import Conv, window
from .cost import TRANSFORM_WORK, Workload, filter_work, transform_work
from .operations import transform_sizes
from .steps import Steps, Windows
from .transforms import Points
from .trees import ContractionTree

PROMISING = 4.0
"""Plans with Fourier transforms are searched where a step by transforms is predicted to take at most this many times as
long as by a convolution: the times of torch's convolutions along long windows are least certain.
"""


class FourierAxis(NamedTuple):
    """One axis of a join by Fourier transforms.

    source, target: the labels of the positions before and after.
    apart: the distance of the elements of the input: 1, or the stride of a transposed window.
    pads: positions to add at both ends of the input, or to cut off, after its elements were put apart.
    dilation, reach: of the kernel.
    stride: the distance of the elements of the result that are kept.
    size: the nominal number of positions of the input.
    is_circle: whether the window goes around, so that a transform has as many points as the input has positions.
    """

    node: Conv
    source: str
    target: str
    apart: int
    pads: tuple[int, int]
    dilation: int
    reach: int
    stride: int
    size: int
    is_circle: bool = False

    @property
    def whole(self) -> int:
        """The least number of points of a transform for the whole axis."""
        if self.is_circle:
            return self.size
        low, high = (max(end, 0) for end in self.pads)
        positions = self.apart * self.size + sum(self.pads)
        return max(self.reach, positions - min(low, high) if max(low, high) < self.reach else positions)

    def points(self, length: int, *, is_cut: bool) -> Points:
        """How the input is transformed with this number of points."""
        is_cut = is_cut and not self.is_circle
        return Points(length, self.reach, self.pads, self.apart, self.stride, is_cut, self.is_circle)


def fourier_axis(steps: Steps, node: Conv, *, transposed: bool) -> FourierAxis:
    """The axis of one window."""
    sizes, numbers = steps.computation.sizes, window(node)
    stride, dilation, low, high = (numbers[name] for name in ("stride", "dilation", "low", "high"))
    reach = dilation * (sizes[node.k] - 1) + 1
    if transposed:
        pads = (reach - 1 - low, low + sizes[node.x] - stride * sizes[node.y])
        return FourierAxis(node, node.y, node.x, stride, pads, dilation, reach, 1, sizes[node.y])
    size, is_folded = sizes[node.x], steps.is_folded(node)
    around = node.mode == "circular" and is_folded and min(low, high) >= 0 and low + high < reach
    is_circle = around and not (size % 2) and is_smooth(size, 13)
    if is_folded and not is_circle:  # the positions are padded before
        size, low, high = size + low + high, 0, 0
    return FourierAxis(node, node.x, node.y, 1, (low, high), dilation, reach, stride, size, is_circle)


def may_be_faster(steps: Steps, tree: ContractionTree) -> bool:
    """Whether a join of the tree by a convolution is predicted to be about as fast by Fourier transforms.

    A window with fewer elements than the multiply-adds of a transform and its inverse, for each element, is not.
    """
    if tree.step == "join" and tree.views and not tree.lengths:
        windows = steps.absorbed(tree.views, tree.transposed)
        if steps.size(windows.ks) <= 2 * TRANSFORM_WORK * log2(steps.size(windows.xs)):
            return any(may_be_faster(steps, part) for part in tree.parts)
        left, right = (part.mask for part in tree.parts)
        way, seconds = fourier_join(steps, left, right, windows), steps.join_price(left, right, windows)
        if way is not None and seconds is not None and way[0] <= PROMISING * seconds:
            return True
    return any(may_be_faster(steps, part) for part in tree.parts)


def fourier_join(steps: Steps, left: int, right: int, windows: Windows) -> tuple[float, tuple[int, ...]] | None:
    """Seconds of a join along windows by Fourier transforms, and the length of a transform along each window.

    None if this join is not allowed.
    """
    key = (left, right, windows.numbers, windows.transposed)
    if key not in steps.fourier_joins:
        steps.fourier_joins[key] = _fourier_join(steps, left, right, windows)
    return steps.fourier_joins[key]


def _fourier_join(steps: Steps, left: int, right: int, windows: Windows) -> tuple[float, tuple[int, ...]] | None:
    if not windows.numbers or steps.join_price(left, right, windows) is None:
        return None
    nodes = [node for node in map(steps.view, windows.numbers) if isinstance(node, Conv)]
    axes = [fourier_axis(steps, node, transposed=windows.transposed) for node in nodes]
    join = _Join(steps, left, right, windows=windows, axes=axes)
    whole = tuple(axis.size if axis.is_circle else fast_length(axis.whole) for axis in axes)
    best = (join.seconds(whole), whole)
    for number, axis in enumerate(axes):
        for length in _block_lengths(axis):
            lengths = (*best[1][:number], length, *best[1][number + 1 :])
            best = min(best, (join.seconds(lengths), lengths))
    return best if best[0] < inf else None


class _Join:
    """The prices of a join for different lengths of the transforms."""

    def __init__(self, steps: Steps, left: int, right: int, *, windows: Windows, axes: Sequence[FourierAxis]) -> None:
        self.steps, self.axes = steps, axes
        one, other = steps.live(left), steps.live(right)
        live = steps.live(left | right | windows.mask)
        shared = one & other
        size = steps.size
        self.image, self.kernel = size(one), size(other)
        self.result = size(live)
        self.image_rest, self.kernel_rest = size(one & ~windows.xs), size(other & ~windows.ks)
        self.result_rest = size(live & ~windows.ys)
        self.groups, self.summed = size(shared & live), size(shared & ~live)
        self.old, self.new = size(one & ~other & ~windows.xs), size(other & ~one & ~windows.ks)
        self.has_sum = bool(shared & ~live)
        self.weights = [not side & steps.inputs for side in (left, right)]

    def seconds(self, lengths: Sequence[int]) -> float:
        """The predicted seconds; infinity where a tensor would have too many elements."""
        cut = [axis.points(length, is_cut=True) for axis, length in zip(self.axes, lengths, strict=True)]
        points, blocks = transform_sizes(cut, [axis.size for axis in self.axes])
        frequencies = points // lengths[-1] * (lengths[-1] // 2 + 1)
        spectra = [2 * frequencies * count for count in (self.image_rest * blocks, self.kernel_rest)]
        product = 2 * frequencies * blocks * self.result_rest
        if max(*spectra, product) > 2 * self.steps.most:
            return inf
        first, second, both = (*self.weights, all(self.weights))
        price = self.steps.prices.seconds
        total = price(transform_work(self.kernel, spectra[1], points, self.kernel_rest * points), weights=second)
        if not self.has_sum:
            moved = (self.image, spectra[1], self.result)
            work = filter_work(moved, points, (self.image_rest * blocks, self.result_rest * blocks))
            return total + price(work, weights=both)
        total += price(transform_work(self.image, spectra[0], points, self.image_rest * blocks * points), weights=first)
        for elements, weights in (*zip(spectra, self.weights, strict=True), (product, both)):
            total += price(Workload("pointwise", read=elements, written=elements), weights=weights)
        groups, left = frequencies * self.groups, self.old * blocks
        multiply_adds = 4 * groups * left * self.summed * self.new
        work = Workload("product", multiply_adds, sum(spectra), product, groups, self.summed, self.new, left)
        total += price(work, weights=both)
        elements = self.result_rest * blocks * points
        return total + price(transform_work(product, self.result, points, elements), weights=both)


def _block_lengths(axis: FourierAxis) -> Iterator[int]:
    """Lengths of blocks that are shorter than the whole axis."""
    length = fast_length(2 * axis.reach)
    while length < axis.whole and not axis.is_circle:
        yield length
        length = fast_length(2 * length)


@cache
def fast_length(least: int) -> int:
    """The smallest multiple of 4 from `least` on without prime factors above 7.

    Transforms of odd numbers of points take more than twice as long for each point, those of twice an odd number 1.3
    times as long.
    """
    number = max(-(-least // 4), 1) * 4
    while not is_smooth(number, 7):
        number += 4
    return number


def is_smooth(number: int, largest: int) -> bool:
    """Whether a number has no prime factors above `largest`."""
    for factor in range(2, largest + 1):
        while number % factor == 0:
            number //= factor
    return number == 1
