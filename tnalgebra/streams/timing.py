"""When the frames of a value come in a stream, and what a window along time does to that. All numbers count steps.

At step t the frame t of the input arrives. Frame s of a value comes at step `stride * s + offset`, so the frames of all
values lie on lattices, and a window only changes the lattice. A clip is a stream that ends; its length is known when it
has ended, so a value whose last frames depend on the end (padding on the right) has these frames after the last step.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """When the frames of a value come.

    stride, offset: frame s comes at step stride * s + offset.
    gain: a clip of T frames has (T + gain) // stride frames of this value.
    first, last: frame s depends on the input's frames stride * s + first to stride * s + last.
    """

    stride: int = 1
    offset: int = 0
    gain: int = 0
    first: int = 0
    last: int = 0

    def count(self, clip: int) -> int:
        """The number of frames that a clip of this many frames of the input has."""
        return max(0, (clip + self.gain) // self.stride)

    def comes(self, step: int) -> bool:
        """Whether a step is on the value's lattice; before frame 0 and after the last frame too."""
        return (step - self.offset) % self.stride == 0

    def has(self, step: int, clip: int | None) -> bool:
        """Whether a frame comes at this step, of a clip of this length or of a stream that does not end."""
        number = (step - self.offset) // self.stride
        return self.comes(step) and number >= 0 and (clip is None or number < self.count(clip))

    def at(self, step: int, clip: int | None) -> tuple[bool, bool, bool]:
        """All that the code of a step depends on: steps that agree in it for all timings share their code."""
        return self.comes(step), step >= self.offset, self.has(step, clip)

    @property
    def receptive_field(self) -> int:
        """The number of frames of the input that a frame depends on."""
        return self.last - self.first + 1

    @property
    def after_the_end(self) -> int:
        """The number of steps after the last frame of the input at which the last frame of the value comes."""
        return self.offset + self.gain + 1 - self.stride


@dataclass(frozen=True)
class TimeWindow:
    """A window along time: frame s of the result has frames stride * s + dilation * k - low, for k below `size`.

    low, high: frames before the first and after the last one, each full of `fill`; negative numbers leave frames out.
    size: with the size 1 and padding, this is a padding or a slice by itself.
    """

    size: int
    stride: int = 1
    low: int = 0
    high: int = 0
    dilation: int = 1
    fill: float = 0.0

    @property
    def reach(self) -> int:
        """Frames from the first to the last one in the window, without one of the two."""
        return self.dilation * (self.size - 1)

    def after(self, before: Timing) -> Timing:
        """The timing of the result: as early as its frames are known, and known not to be left out at the end."""
        stride = before.stride * self.stride
        gain = before.gain + before.stride * (self.low + self.high - self.reach - 1 + self.stride)
        certain = -((before.offset - (stride - gain - 1)) // before.stride)
        wait = max(self.reach - self.low, certain)
        first = before.first - before.stride * self.low
        offset = before.offset + before.stride * wait
        return Timing(stride, offset, gain, first, first + before.last - before.first + before.stride * self.reach)

    def held(self, before: Timing) -> int:
        """The number of past frames in the state."""
        return (self.after(before).offset - before.offset) // before.stride + self.low


@dataclass(frozen=True)
class Delay:
    """A value that comes some steps later, so that it meets another one."""

    steps: int
    fill: float = 0.0

    def after(self, before: Timing) -> Timing:
        """The timing of the result."""
        return Timing(before.stride, before.offset + self.steps, before.gain, before.first, before.last)

    def held(self, before: Timing) -> int:
        """The number of past frames in the state."""
        return -(-self.steps // before.stride)
