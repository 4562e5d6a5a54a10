"""The cost model: how many seconds each step of a plan takes on one device.

The time of a step with M multiply-adds, which reads R elements and writes W, is

    call + multiply_add * M * (1 + narrow_summed / summed) * (1 + narrow_new / new)
         + read * R + written * W + far * (R + W)**2 / (R + W + cache)
         + read_large * R, if R > large, + written_large * W, if W > large

with the rates of its kind (`Kinds`). Arithmetic is slower where channels are few; memory traffic is cheaper while it
fits the cache; and a tensor of more than `large` elements gets fresh memory from the operating system at every call (on
Linux from 32 MiB on), which often costs more than the arithmetic. More work never makes a step of a kind cheaper.

The backward pass is priced by the same formula with other rates, for the gradients of both operands. The operands of a
contraction are kept in memory until then, which is priced as additional traffic.

The rates are those that `tnalgebra.compiler.calibrate` measured for this device, dtype, number of threads and version
of torch, or else those of the tables in `constants.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Literal, NamedTuple, TypeAlias

Format: TypeAlias = Literal["contiguous", "channels_last"]
FORMATS: tuple[Format, ...] = ("contiguous", "channels_last")


class Workload(NamedTuple):
    """The amount of work of one step.

    multiply_adds: of a convolution or a matrix product; half the flops that `torch.utils.flop_counter` counts.
    read, written: numbers of elements.
    groups, summed, new: for a convolution, the number of groups and the channels in and out of each group; for a
        matrix product, `groups` products of shapes (left, summed) and (summed, new).
    filled: the number of elements that a product with a bias first fills with the bias; a convolution adds its own
        without a pass over memory.
    calls: the number of calls of torch, which share the work.
    window: for a convolution, the most elements that its window has along one axis.
    """

    kind: Literal["convolution", "product", "pointwise", "view"]
    multiply_adds: int = 0
    read: int = 0
    written: int = 0
    groups: int = 1
    summed: int = 1
    new: int = 1
    left: int = 1
    filled: int = 0
    calls: int = 1
    window: int = 1


TRANSFORM_WORK = 1.25
"""Multiply-adds of a fast Fourier transform of n real numbers, for each of them and each doubling of n."""

RADIX = 4
"""A Fourier transform is priced as products with matrices of this size, of which a fast one is made."""


LONG = 14
"""The longest window along an axis for which CPUs have fast depthwise convolutions in every memory format.

Longer ones take up to a hundred times as long for each multiply-add in a contiguous format.
"""


def pooling_work(read: int, written: int, window: int) -> Workload:
    """The work of means over windows: that of a depthwise convolution, which has the same loops."""
    return Workload("convolution", written * window, read, written, groups=2)


def transform_work(read: int, written: int, points: int, elements: int) -> Workload:
    """The work of Fourier transforms of so many points on so many real numbers in all."""
    multiply_adds = round(TRANSFORM_WORK * elements * log2(max(points, 2)))
    return Workload("product", multiply_adds, read, written, 1, RADIX, RADIX, RADIX)


def filter_work(moved: tuple[int, int, int], points: int, blocks: tuple[int, int]) -> Workload:
    """The work of an elementwise product of spectra with the transforms of an input and back.

    Args:
        moved: the numbers of elements of the input, of the kernel's spectrum and of the result.
        points: of one transform.
        blocks: the number of transforms, and of inverse ones.
    """
    image, kernel, result = moved
    forth, back = (points * count for count in blocks)
    there, again = transform_work(image, forth, points, forth), transform_work(back, result, points, back)
    multiply_adds = there.multiply_adds + again.multiply_adds + 2 * back
    read, written = there.read + again.read + forth + kernel, there.written + again.written + back
    return Workload("product", multiply_adds, read, written, 1, RADIX, RADIX, RADIX)


class Rates(NamedTuple):
    """The prices of one kind of step, in seconds except for the two widths.

    call: for every step, however small.
    multiply_add: for each multiply-add, where channels are many.
    narrow_summed, narrow_new: the numbers of channels at which a multiply-add takes twice as long.
    read, written: for each element.
    far: additionally for each element, in proportion to the traffic that does not fit the cache.
    read_large, written_large: additionally for each element, if more than `Constants.large` are read or written.
    """

    call: float
    multiply_add: float
    narrow_summed: float
    narrow_new: float
    read: float
    written: float
    far: float = 0.0
    read_large: float = 0.0
    written_large: float = 0.0


class Kinds(NamedTuple):
    """The rates of every kind of step.

    convolution: a convolution with a window of several elements and one group.
    one_wide: a convolution with a window of one element and one group.
    grouped: a convolution with several groups of several channels each.
    depthwise: a convolution with one channel in and one channel out of each group.
    long_depthwise: the same with a window of more than `LONG` elements along some axis.
    product: a matrix product.
    copy: a step that writes at least as much as it reads, such as a copy in another order or an outer product.
    pointwise: a step that reads more than it writes, such as an elementwise product or a sum along an axis.
    """

    convolution: Rates
    one_wide: Rates
    grouped: Rates
    depthwise: Rates
    long_depthwise: Rates
    product: Rates
    copy: Rates
    pointwise: Rates


@dataclass(frozen=True, slots=True)
class Constants:
    """The constants of the cost model for one device, dtype and memory format.

    view: seconds of a step that moves no data.
    cache: the number of elements at which traffic costs half of `Rates.far`.
    large: the number of elements above which a tensor gets fresh memory at every call.
    kept: seconds for each element that is kept for the backward pass.
    forward, backward: the rates of a step, and of the gradients of both its operands.
    """

    view: float
    cache: float
    large: float
    kept: float
    forward: Kinds
    backward: Kinds


def kind_of(work: Workload) -> str:
    """The name of the field of `Kinds` that prices a convolution, product or pointwise step."""
    if work.kind == "pointwise":
        return "copy" if work.read <= work.written else "pointwise"
    if work.kind != "convolution":
        return work.kind
    if work.groups > 1 and work.summed == work.new == 1:
        return "depthwise" if work.window <= LONG else "long_depthwise"
    if work.groups > 1:
        return "grouped"
    return "one_wide" if work.multiply_adds <= work.written * work.summed else "convolution"


def step_seconds(rates: Rates, work: Workload, cache: float, large: float) -> float:
    """Seconds of one step, forward or backward according to the rates: the formula of this module."""
    wide = work.multiply_adds * (1 + rates.narrow_summed / work.summed)
    if work.kind == "product":
        wide *= 1 + rates.narrow_new / work.left
    wide *= 1 + rates.narrow_new / work.new
    moved = work.read + work.written
    seconds = (
        rates.call * work.calls
        + rates.multiply_add * wide
        + rates.read * work.read
        + rates.written * work.written
        + rates.far * moved * (moved / (moved + cache))
    )
    if work.read > large:
        seconds += rates.read_large * work.read
    if work.written > large:
        seconds += rates.written_large * work.written
    return seconds


class CostModel:
    """Predicts the seconds of steps on one device, in one memory format.

    Args:
        backward: whether the backward pass is included.
        frozen: whether steps that depend on weights alone are computed beforehand, and cost nothing.
    """

    def __init__(self, constants: Constants, *, backward: bool = False, frozen: bool = False) -> None:
        self.constants, self.backward, self.frozen = constants, backward, frozen
        pairs = zip(constants.forward, constants.backward, strict=True)
        self._rates = dict(zip(Kinds._fields, pairs, strict=True))

    def seconds(self, work: Workload, *, weights: bool) -> float:
        """Seconds of one step; `weights`: whether it depends on weights alone."""
        if weights and self.frozen:
            return 0.0
        constants = self.constants
        if work.filled:  # the bias is first written into the result, so it is not an operand of the product
            filling = Workload("pointwise", read=1, written=work.filled)
            return self.seconds(work._replace(filled=0), weights=weights) + self.seconds(filling, weights=weights)
        if not work.read and not work.written:  # backward is a view again, and a node of the graph of gradients
            return 3 * constants.view if self.backward else constants.view
        forward, backward = self._rates[kind_of(work)]
        seconds = step_seconds(forward, work, constants.cache, constants.large)
        if self.backward:
            back = step_seconds(backward, work, constants.cache, constants.large)
            seconds += back if work.kind == "pointwise" else back + constants.kept * work.read
        return seconds
