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

The rates come from `tnalgebra.compiler.calibration.calibrate`, if that has been called for the device, dtype, number
of threads and version of torch; otherwise from the tables below.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from .._files import cache_folder
from ..errors import CompileError, explain
from .operations import Format, Work

FORMATS: tuple[Format, ...] = ("contiguous", "channels_last")


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


def kind_of(work: Work) -> str:
    """The field of `Kinds` that prices a convolution, product or pointwise step."""
    if work.kind == "pointwise":
        return "copy" if work.read <= work.written else "pointwise"
    if work.kind != "convolution":
        return work.kind
    if work.groups > 1:
        return "depthwise" if work.summed == 1 and work.new == 1 else "grouped"
    return "one_wide" if work.multiply_adds <= work.written * work.summed else "convolution"


def widened(rates: Rates, work: Work) -> float:
    """Multiply-adds, more where channels are few."""
    wide = work.multiply_adds * (1 + rates.narrow_summed / work.summed) * (1 + rates.narrow_new / work.new)
    return wide * (1 + rates.narrow_new / work.left) if work.kind == "product" else wide


def price(rates: Rates, multiply_adds: float, read: float, written: float, cache: float, large: float) -> float:
    """Seconds of one step, in one direction."""
    moved = read + written
    seconds = (
        rates.call
        + rates.multiply_add * multiply_adds
        + rates.read * read
        + rates.written * written
        + rates.far * moved * (moved / (moved + cache))
    )
    if read > large:
        seconds += rates.read_large * read
    if written > large:
        seconds += rates.written_large * written
    return seconds


class CostModel:
    """Seconds of steps on one device, in one memory format.

    Args:
        backward: whether the backward pass is paid too.
        frozen: whether what only weights go into is computed once and costs nothing.
    """

    def __init__(self, constants: Constants, *, backward: bool = False, frozen: bool = False) -> None:
        self.constants, self.backward, self.frozen = constants, backward, frozen
        self._cache, self._large = constants.cache, constants.large
        names = [field.name for field in fields(Kinds)]
        self._rates = {name: (getattr(constants.forward, name), getattr(constants.backward, name)) for name in names}

    def convolution(
        self, *, multiply_adds: int, groups: int, summed: int, new: int, read: int, written: int, weights: bool
    ) -> float:
        """A convolution with `summed` channels in and `new` channels out of each group."""
        if weights and self.frozen:
            return 0.0
        if groups > 1:
            kind = "depthwise" if summed == 1 and new == 1 else "grouped"
        else:
            kind = "one_wide" if multiply_adds <= written * summed else "convolution"
        forward, backward = self._rates[kind]
        wide = multiply_adds * (1 + forward.narrow_summed / summed) * (1 + forward.narrow_new / new)
        seconds = price(forward, wide, read, written, self._cache, self._large)
        if self.backward:
            wide = multiply_adds * (1 + backward.narrow_summed / summed) * (1 + backward.narrow_new / new)
            seconds += price(backward, wide, read, written, self._cache, self._large) + self.constants.kept * read
        return seconds

    def product(self, *, multiply_adds: int, groups: int, summed: int, left: int, right: int, weights: bool) -> float:
        """`groups` matrix products of (left, summed) with (summed, right)."""
        if weights and self.frozen:
            return 0.0
        read, written = groups * summed * (left + right), groups * left * right
        forward, backward = self._rates["product"]
        new = forward.narrow_new
        wide = multiply_adds * (1 + forward.narrow_summed / summed) * (1 + new / left) * (1 + new / right)
        seconds = price(forward, wide, read, written, self._cache, self._large)
        if self.backward:
            new = backward.narrow_new
            wide = multiply_adds * (1 + backward.narrow_summed / summed) * (1 + new / left) * (1 + new / right)
            seconds += price(backward, wide, read, written, self._cache, self._large) + self.constants.kept * read
        return seconds

    def pointwise(self, *, read: int, written: int, weights: bool) -> float:
        """A product element by element, a sum along axes, or a copy in another order; a view if nothing is moved."""
        if weights and self.frozen:
            return 0.0
        if not read and not written:
            return self.view(weights=weights)
        forward, backward = self._rates["copy" if read <= written else "pointwise"]
        seconds = price(forward, 0.0, read, written, self._cache, self._large)
        return seconds + price(backward, 0.0, read, written, self._cache, self._large) if self.backward else seconds

    def view(self, *, weights: bool) -> float:
        """A step that moves nothing; backward is another such step, and its node in the graph of gradients."""
        if weights and self.frozen:
            return 0.0
        return 3 * self.constants.view if self.backward else self.constants.view

    def seconds(self, work: Work, *, weights: bool) -> float:
        """Seconds of one lowered operation."""
        if work.kind == "convolution":
            return self.convolution(
                multiply_adds=work.multiply_adds,
                groups=work.groups,
                summed=work.summed,
                new=work.new,
                read=work.read,
                written=work.written,
                weights=weights,
            )
        if work.kind == "product":
            product = self.product(
                multiply_adds=work.multiply_adds,
                groups=work.groups,
                summed=work.summed,
                left=work.left,
                right=work.new,
                weights=weights,
            )
            return product + (self.pointwise(read=1, written=work.filled, weights=weights) if work.filled else 0.0)
        if work.kind == "pointwise":
            return self.pointwise(read=work.read, written=work.written, weights=weights)
        return self.view(weights=weights)


# Constants: measured ones, or those of the package -------------------------------------------------------------------


def constants_for(device: torch.device, dtype: torch.dtype, memory_format: Format) -> Constants:
    """The constants that `calibrate` stored for a device; if it never ran there, the ones of the package.

    Those of the package were measured in float32; for another dtype arithmetic and traffic are scaled with its size
    (on CUDA, types of two bytes to the speed of tensor cores).

    Raises:
        CompileError: what is stored cannot be read.
    """
    path = calibration_file(device, dtype)
    if path.exists():
        return read_constants(path, device, dtype)[memory_format]
    cuda = device.type == "cuda"
    constants = (CUDA_DEFAULTS if cuda else CPU_DEFAULTS)[memory_format]
    if dtype == torch.float32:
        return constants
    size = dtype.itemsize / 4
    arithmetic = 1 / 12 if cuda and dtype.itemsize == 2 else size

    def scaled(rates: Rates) -> Rates:
        traffic = ("read", "written", "far", "read_large", "written_large")
        return replace(
            rates,
            multiply_add=rates.multiply_add * arithmetic,
            **{name: getattr(rates, name) * size for name in traffic},
        )

    def all_scaled(kinds: Kinds) -> Kinds:
        return Kinds(**{field.name: scaled(getattr(kinds, field.name)) for field in fields(Kinds)})

    return Constants(
        view=constants.view,
        cache=constants.cache / size,
        large=constants.large / size,
        kept=constants.kept * size,
        forward=all_scaled(constants.forward),
        backward=all_scaled(constants.backward),
    )


def identity(device: torch.device, dtype: torch.dtype) -> dict[str, str | int]:
    """What measured constants hold for: the device's name, dtype, threads, and the version of torch."""
    if device.type == "cuda":
        name, threads = torch.cuda.get_device_name(device), 0
    else:
        name, threads = f"{device.type} {_processor()}", torch.get_num_threads()
    return {
        "device": name,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "torch": str(torch.__version__),
    }


def _processor() -> str:
    """The processor's name; Linux tells it nowhere but in /proc."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def calibration_file(device: torch.device, dtype: torch.dtype) -> Path:
    """Where `calibrate` stores the constants of a device: one file in the cache for each identity."""
    words = "-".join(str(word) for word in identity(device, dtype).values())
    return cache_folder() / "calibrations" / f"{re.sub(r'[^A-Za-z0-9.+]+', '-', words)}.json"


def read_constants(path: Path, device: torch.device, dtype: torch.dtype) -> dict[Format, Constants]:
    """The constants in a file of `calibrate`, one for each memory format.

    Raises:
        CompileError: the file is broken, or of another device.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.keys() != {"identity", "constants"}:
            raise ValueError("it does not hold 'identity' and 'constants'")
        if data["identity"] != identity(device, dtype):
            raise ValueError(f"it is of {data['identity']}, not of {identity(device, dtype)}")
        if not isinstance(data["constants"], dict) or data["constants"].keys() != set(FORMATS):
            raise ValueError(f"'constants' does not hold {' and '.join(FORMATS)}")
        return {name: _constants(data["constants"][name], name) for name in FORMATS}
    except (OSError, ValueError) as error:  # what json raises is a ValueError, as is what is not UTF-8
        raise CompileError(
            explain(
                "the stored calibration cannot be used",
                file=path,
                reason=error,
                fix="delete the file; calibrate() measures anew, without it the package's own constants hold",
            )
        ) from error


def _constants(data: object, at: str) -> Constants:
    found = _fields_of(Constants, data, at)
    view, cache, large, kept = (_number(found[name], f"{at}.{name}") for name in ("view", "cache", "large", "kept"))
    if not cache or not large:
        raise ValueError(f"{at}: 'cache' and 'large' are above 0")
    forward, backward = (_kinds(found[name], f"{at}.{name}") for name in ("forward", "backward"))
    return Constants(view, cache, large, kept, forward, backward)


def _kinds(data: object, at: str) -> Kinds:
    return Kinds(**{name: _rates(value, f"{at}.{name}") for name, value in _fields_of(Kinds, data, at).items()})


def _rates(data: object, at: str) -> Rates:
    return Rates(**{name: _number(value, f"{at}.{name}") for name, value in _fields_of(Rates, data, at).items()})


def _fields_of(record: Any, data: object, at: str) -> Mapping[str, object]:
    names = {field.name for field in fields(record)}
    if not isinstance(data, dict) or data.keys() != names:
        raise ValueError(f"{at} does not hold {', '.join(sorted(names))}")
    return data


def _number(value: object, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{at} is {value!r}, not a finite number of 0 or more")
    return float(value)


# call, multiply_add, narrow_summed, narrow_new, read, written, far, read_large, written_large
CPU_DEFAULTS: Mapping[Format, Constants] = {
    "contiguous": Constants(
        view=1.0e-6,
        cache=2.7e6,
        large=2**23,
        kept=1.3e-10,
        forward=Kinds(
            convolution=Rates(3.4e-5, 4.9e-12, 0.62, 8.9, 3.1e-10, 3.4e-11, 9.4e-12, 2.6e-9, 4.3e-9),
            one_wide=Rates(1.2e-6, 5.8e-12, 41, 19, 1.3e-10, 4.5e-11, 8.0e-12, 1.1e-9, 1.7e-9),
            grouped=Rates(3.6e-5, 3.8e-12, 8.1, 5.2, 2.7e-10, 1.4e-10, 1.2e-11, 1.1e-9, 3.7e-9),
            depthwise=Rates(5.6e-5, 5.4e-12, 0, 0, 1.1e-10, 1.6e-10, 2.2e-10, 1.0e-9, 2.9e-9),
            product=Rates(3.8e-6, 5.6e-12, 3.4, 3.2, 9.2e-12, 1.2e-11, 5.2e-11, 4.5e-11, 8.5e-10),
            copy=Rates(3.7e-6, 0, 0, 0, 8.7e-11, 4.4e-11, 1.7e-10, 2.8e-10, 6.5e-10),
            pointwise=Rates(2.6e-6, 0, 0, 0, 8.5e-12, 8.3e-12, 1.2e-10, 9.2e-12, 6.4e-10),
        ),
        backward=Kinds(
            convolution=Rates(1.0e-4, 1.1e-11, 7.1, 10, 6.0e-10, 8.9e-11, 2.5e-11, 5.3e-9, 5.0e-9),
            one_wide=Rates(2.3e-5, 1.3e-11, 39, 24, 6.3e-10, 8.3e-11, 1.7e-11, 2.8e-9, 2.7e-9),
            grouped=Rates(1.3e-4, 7.3e-12, 7.7, 27, 3.8e-10, 1.0e-10, 2.3e-11, 3.1e-9, 1.2e-7),
            depthwise=Rates(1.5e-4, 1.1e-10, 0, 0, 5.8e-11, 7.9e-11, 1.7e-9, 1.3e-9, 2.3e-9),
            product=Rates(3.3e-5, 9.9e-12, 7.6, 9.9, 9.8e-11, 5.7e-11, 7.1e-10, 2.8e-10, 1.2e-9),
            copy=Rates(1.8e-5, 0, 0, 0, 9.0e-11, 1.4e-10, 3.4e-10, 2.7e-10, 2.9e-9),
            pointwise=Rates(1.6e-5, 0, 0, 0, 1.0e-11, 3.0e-10, 2.3e-10, 8.8e-10, 8.5e-10),
        ),
    ),
    "channels_last": Constants(
        view=1.0e-6,
        cache=6.9e6,
        large=2**23,
        kept=2.9e-10,
        forward=Kinds(
            convolution=Rates(3.0e-05, 3.6e-12, 0.65, 8.6, 9.6e-11, 2.5e-11, 6.2e-12, 8.0e-11, 8.8e-10),
            one_wide=Rates(3.8e-06, 3.9e-12, 5.2, 2, 1.2e-10, 1.1e-10, 4.6e-12, 3.5e-11, 1.8e-09),
            grouped=Rates(3.1e-05, 2.3e-12, 3.4, 9.4, 2.1e-10, 2.9e-11, 8.0e-12, 3.4e-10, 4.8e-10),
            depthwise=Rates(2.8e-05, 5.7e-12, 0, 0, 4.5e-11, 3.4e-11, 6.1e-11, 3.5e-10, 4.9e-10),
            product=Rates(3.4e-6, 5.2e-12, 5.2, 10, 1.1e-11, 8.5e-12, 6.2e-11, 6.1e-10, 2.1e-9),
            copy=Rates(2.3e-6, 0, 0, 0, 2.7e-10, 6.2e-11, 4.4e-10, 2.5e-9, 4.6e-10),
            pointwise=Rates(2.2e-6, 0, 0, 0, 1.3e-11, 1.4e-11, 2.8e-10, 1.5e-11, 7.9e-10),
        ),
        backward=Kinds(
            convolution=Rates(8.0e-05, 7.9e-12, 8.3, 2, 3.9e-10, 4.6e-11, 1.5e-11, 5.5e-10, 2.2e-10),
            one_wide=Rates(2.6e-05, 1.1e-11, 3.3, 2.4, 5.8e-10, 7.9e-11, 1.2e-11, 1.8e-09, 1.4e-10),
            grouped=Rates(8.8e-05, 6.3e-12, 6.2, 3.9, 5.7e-10, 2.9e-10, 1.8e-11, 8.0e-10, 1.1e-09),
            depthwise=Rates(8.8e-05, 5.4e-11, 0, 0, 2.3e-10, 5.3e-11, 1.3e-11, 2.7e-10, 3.3e-10),
            product=Rates(3.1e-5, 1.1e-11, 11, 9.5, 7.0e-11, 8.3e-11, 7.1e-11, 3.4e-9, 3.3e-10),
            copy=Rates(1.8e-5, 0, 0, 0, 4.7e-11, 6.1e-11, 3.7e-10, 2.0e-10, 6.0e-10),
            pointwise=Rates(1.3e-5, 0, 0, 0, 1.1e-11, 5.7e-10, 5.7e-11, 1.3e-9, 5.7e-10),
        ),
    ),
}
"""float32 on two cores of an Intel Xeon with AVX-512: measured, rounded to two digits. `large` is 32 MiB.

Windows in channels_last are lowered by a fifth, forward and backward, after whole chains of layers were measured in
both formats.
"""

CUDA_DEFAULTS: Mapping[Format, Constants] = {
    "contiguous": Constants(
        view=2.0e-6,
        cache=1.0e7,
        large=2**60,
        kept=1.6e-12,
        forward=Kinds(
            convolution=Rates(2.0e-5, 7.0e-14, 16, 16, 1.6e-12, 1.6e-12, 0, 0, 0),
            one_wide=Rates(2.0e-5, 6.0e-14, 16, 16, 1.6e-12, 1.6e-12, 0, 0, 0),
            grouped=Rates(2.5e-5, 2.0e-13, 8, 8, 3.2e-12, 3.2e-12, 0, 0, 0),
            depthwise=Rates(1.5e-5, 2.0e-13, 0, 0, 1.6e-12, 1.6e-12, 0, 0, 0),
            product=Rates(1.0e-5, 5.0e-14, 16, 16, 1.6e-12, 1.6e-12, 0, 0, 0),
            copy=Rates(5.0e-6, 0, 0, 0, 2.4e-12, 2.4e-12, 0, 0, 0),
            pointwise=Rates(5.0e-6, 0, 0, 0, 1.6e-12, 1.6e-12, 0, 0, 0),
        ),
        backward=Kinds(
            convolution=Rates(4.0e-5, 1.4e-13, 16, 16, 3.2e-12, 3.2e-12, 0, 0, 0),
            one_wide=Rates(4.0e-5, 1.2e-13, 16, 16, 3.2e-12, 3.2e-12, 0, 0, 0),
            grouped=Rates(5.0e-5, 8.0e-13, 8, 8, 6.4e-12, 6.4e-12, 0, 0, 0),
            depthwise=Rates(3.0e-5, 8.0e-13, 0, 0, 3.2e-12, 3.2e-12, 0, 0, 0),
            product=Rates(2.0e-5, 1.0e-13, 16, 16, 3.2e-12, 3.2e-12, 0, 0, 0),
            copy=Rates(1.0e-5, 0, 0, 0, 4.8e-12, 4.8e-12, 0, 0, 0),
            pointwise=Rates(1.0e-5, 0, 0, 0, 3.2e-12, 3.2e-12, 0, 0, 0),
        ),
    ),
    "channels_last": Constants(
        view=2.0e-6,
        cache=1.0e7,
        large=2**60,
        kept=1.6e-12,
        forward=Kinds(
            convolution=Rates(2.0e-5, 1.0e-13, 16, 16, 1.6e-12, 1.6e-12, 0, 0, 0),
            one_wide=Rates(2.0e-5, 6.0e-14, 16, 16, 1.6e-12, 1.6e-12, 0, 0, 0),
            grouped=Rates(2.5e-5, 2.0e-13, 8, 8, 3.2e-12, 3.2e-12, 0, 0, 0),
            depthwise=Rates(1.5e-5, 6.0e-13, 0, 0, 1.6e-12, 1.6e-12, 0, 0, 0),
            product=Rates(1.0e-5, 5.0e-14, 16, 16, 1.6e-12, 1.6e-12, 0, 0, 0),
            copy=Rates(5.0e-6, 0, 0, 0, 2.4e-12, 2.4e-12, 0, 0, 0),
            pointwise=Rates(5.0e-6, 0, 0, 0, 1.6e-12, 1.6e-12, 0, 0, 0),
        ),
        backward=Kinds(
            convolution=Rates(4.0e-5, 2.0e-13, 16, 16, 3.2e-12, 3.2e-12, 0, 0, 0),
            one_wide=Rates(4.0e-5, 1.2e-13, 16, 16, 3.2e-12, 3.2e-12, 0, 0, 0),
            grouped=Rates(5.0e-5, 8.0e-13, 8, 8, 6.4e-12, 6.4e-12, 0, 0, 0),
            depthwise=Rates(3.0e-5, 2.4e-12, 0, 0, 3.2e-12, 3.2e-12, 0, 0, 0),
            product=Rates(2.0e-5, 1.0e-13, 16, 16, 3.2e-12, 3.2e-12, 0, 0, 0),
            copy=Rates(1.0e-5, 0, 0, 0, 4.8e-12, 4.8e-12, 0, 0, 0),
            pointwise=Rates(1.0e-5, 0, 0, 0, 3.2e-12, 3.2e-12, 0, 0, 0),
        ),
    ),
}
"""float32 without TF32 on a GPU of the H100's order of magnitude, from published figures: not measured.

2e13 multiply-adds and 2.5e12 bytes a second, 5 to 20 microseconds a call; its allocator keeps what is freed, so nothing
is large.
"""
