"""What the steps of a plan cost: seconds of calls, multiply-adds and memory traffic, on one device.

A step of a kind (`Kinds`) takes

    call + multiply_add * M * (1 + narrow_summed / summed) * (1 + narrow_new / new)
         + read * R + written * W + far * (R + W)**2 / (R + W + cache)
         + read_large * R, if R > large, + written_large * W, if W > large

for M multiply-adds, R elements read and W written. So arithmetic slows down where channels are few; traffic is
cheaper while it fits the cache; and beyond `large` an allocator asks the system for fresh memory at every call (on
Linux the C library does so from 32 MiB on), which costs more than the arithmetic of many a step. The prices grow with
the work: more positions, channels or window elements never make a step of a kind cheaper.

Backward has the same form with rates of its own, fitted to the gradients of both operands; and everything that a
contraction read is kept until then, which is priced as traffic once more.

The rates come from `tnalgebra.compiler.calibrate`, if that has been called for the device, dtype, number of threads
and version of torch; otherwise from the tables in `constants.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, TypeAlias

Format: TypeAlias = Literal["contiguous", "channels_last"]
FORMATS: tuple[Format, ...] = ("contiguous", "channels_last")


class Workload(NamedTuple):
    """How much one step does.

    multiply_adds: of a convolution or a matrix product, as `torch.utils.flop_counter` counts them (half its flops).
    read, written: elements.
    groups, summed, new: of a convolution, its groups and the channels in and out of each; of `groups` matrix products
        (left, summed) with (summed, new), their sizes.
    filled: elements of a product's result that its bias is written into first; convolutions add theirs as they go.
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


@dataclass(frozen=True, slots=True)
class Rates:
    """What one kind of step costs; seconds, but for the two widths.

    call: of every step, however small.
    multiply_add: of each, where channels are many.
    narrow_summed, narrow_new: the widths at which arithmetic takes twice as long.
    read, written: of each element.
    far: of each element on top, as far as they do not fit the cache.
    read_large, written_large: of each element on top, where more than `Constants.large` are read, or written.
    """

    call: float
    multiply_add: float = 0.0
    narrow_summed: float = 0.0
    narrow_new: float = 0.0
    read: float = 0.0
    written: float = 0.0
    far: float = 0.0
    read_large: float = 0.0
    written_large: float = 0.0


@dataclass(frozen=True, slots=True)
class Kinds:
    """The rates of every kind of step.

    convolution: with a window of several elements and one group.
    one_wide: with a window of one element and one group.
    grouped: with several groups, of several channels each.
    depthwise: with one channel in and one out of each group.
    product: matrix products.
    copy: copies in another order and outer products: what writes no less than it reads.
    pointwise: products element by element, and sums along axes: what reads more than it writes.
    """

    convolution: Rates
    one_wide: Rates
    grouped: Rates
    depthwise: Rates
    product: Rates
    copy: Rates
    pointwise: Rates


@dataclass(frozen=True, slots=True)
class Constants:
    """Speeds of one device for one dtype and memory format.

    view: seconds of a step that moves nothing.
    cache: elements; traffic of that size costs half of `Rates.far`.
    large: elements of a tensor above which its memory is fresh at every call.
    kept: seconds of each element that is kept for backward.
    forward, backward: of a step, and of the gradients of both its operands.
    """

    view: float
    cache: float
    large: float
    kept: float
    forward: Kinds
    backward: Kinds


def kind_of(work: Workload) -> str:
    """The field of `Kinds` that prices a convolution, product or pointwise step."""
    if work.kind == "pointwise":
        return "copy" if work.read <= work.written else "pointwise"
    if work.kind != "convolution":
        return work.kind
    if work.groups > 1:
        return "depthwise" if work.summed == 1 and work.new == 1 else "grouped"
    return "one_wide" if work.multiply_adds <= work.written * work.summed else "convolution"


def step_seconds(rates: Rates, work: Workload, cache: float, large: float) -> float:
    """Seconds of one step, in one direction."""
    wide = work.multiply_adds * (1 + rates.narrow_summed / work.summed)
    if work.kind == "product":
        wide *= 1 + rates.narrow_new / work.left
    wide *= 1 + rates.narrow_new / work.new
    moved = work.read + work.written
    seconds = (
        rates.call
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
    """Seconds of steps on one device, in one memory format.

    Args:
        backward: whether the backward pass is paid too.
        frozen: whether what only weights go into is computed once and costs nothing.
    """

    def __init__(self, constants: Constants, *, backward: bool = False, frozen: bool = False) -> None:
        self.constants, self.backward, self.frozen = constants, backward, frozen
        names = [field.name for field in fields(Kinds)]
        self._rates = {name: (getattr(constants.forward, name), getattr(constants.backward, name)) for name in names}

    def seconds(self, work: Workload, *, weights: bool) -> float:
        """Seconds of one step; `weights` says whether only weights go into it.

        Backward of a step that moves nothing is another such step, and its node in the graph of gradients.
        """
        if weights and self.frozen:
            return 0.0
        constants = self.constants
        if work.filled:  # the bias is written into the result, and is not an operand of the product
            filling = Workload("pointwise", read=1, written=work.filled)
            product = work._replace(read=work.read - work.new, filled=0)
            return self.seconds(product, weights=weights) + self.seconds(filling, weights=weights)
        if not work.read and not work.written:
            return 3 * constants.view if self.backward else constants.view
        forward, backward = self._rates[kind_of(work)]
        seconds = step_seconds(forward, work, constants.cache, constants.large)
        if self.backward:
            back = step_seconds(backward, work, constants.cache, constants.large)
            seconds += back if work.kind == "pointwise" else back + constants.kept * work.read
        return seconds
