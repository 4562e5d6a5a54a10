"""Calibration: microbenchmarks of single steps on this machine, to which the constants of the cost model are fitted.

A user calls `calibrate()` once on a machine. Every later compilation for the same device, dtype, number of threads and
version of torch uses the constants that it stores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from .._files import write_text
from .constants import CPU_DEFAULTS, CUDA_DEFAULTS, as_record, calibration_file, constants_for, identity
from .cost import FORMATS, Constants, Format, Kinds, Rates, Workload, kind_of, step_seconds

_Call: TypeAlias = Callable[..., Tensor]


class Convolution(NamedTuple):
    """A convolution of a square image with groups*summed channels, padded so that stride 1 keeps its size."""

    batch: int
    groups: int
    summed: int
    new: int
    window: tuple[int, int]
    side: int
    stride: int = 1


class Channels(NamedTuple):
    """A matrix product that contracts the channels of a square image."""

    batch: int
    summed: int
    new: int
    side: int


class Matrices(NamedTuple):
    """`groups` matrix products of shapes (left, summed) and (summed, right)."""

    groups: int
    left: int
    summed: int
    right: int


class Pointwise(NamedTuple):
    """A step on a square image: its product with another image ("multiply") or with one number for each channel
    ("scale"), an outer product ("outer"), a copy into the other format ("copy"), or a sum over positions ("sum").
    """

    batch: int
    channels: int
    side: int
    step: str


Case: TypeAlias = Convolution | Channels | Matrices | Pointwise

SQUARES = ((64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7))
NARROW = ((8, 8, 56), (16, 16, 28), (16, 64, 28), (64, 16, 28), (4, 32, 56), (32, 4, 28), (3, 16, 32), (32, 32, 14))
LINES = ((16, 16, 56), (64, 64, 28), (32, 8, 28), (128, 128, 7))
BOTTLENECKS = (
    *((64, 16, 56), (16, 64, 56), (64, 256, 56), (256, 64, 56), (512, 128, 28), (1024, 256, 14), (2048, 512, 7)),
    *((512, 2048, 7), (8, 8, 56), (3, 16, 112), (16, 4, 28), (128, 32, 28), (32, 32, 14), (256, 256, 7)),
)
DEPTHWISE = (
    *((64, (3, 3), 56, 1), (64, (3, 1), 56, 1), (64, (1, 3), 56, 1), (256, (3, 3), 14, 1), (256, (3, 1), 14, 1)),
    *((32, (3, 3), 112, 1), (512, (3, 3), 7, 1), (512, (1, 3), 7, 1), (128, (3, 3), 28, 2), (64, (7, 7), 28, 1)),
    *((16, (3, 3), 28, 1), (16, (3, 1), 56, 1), (8, (3, 3), 14, 1), (24, (1, 3), 28, 1)),
)
GROUPED = (
    *((32, 1, 4, (3, 3), 28), (32, 4, 4, (3, 3), 28), (8, 2, 2, (3, 3), 56), (4, 16, 16, (3, 3), 28)),
    *((16, 8, 8, (1, 1), 28), (16, 2, 1, (3, 1), 28), (4, 64, 64, (3, 3), 14), (32, 1, 2, (1, 3), 28)),
    *((2, 32, 32, (3, 1), 28), (64, 2, 2, (1, 1), 28), (8, 4, 16, (3, 3), 14)),
)
LONG_DEPTHWISE = (
    *((8, (27, 27), 28), (32, (15, 15), 16), (64, (1, 15), 16), (16, (31, 1), 32), (128, (1, 21), 28)),
    *((8, (51, 5), 56), (4, (1, 63), 64)),
)
MATRICES = (
    *((1, 64, 64, 64), (1, 512, 64, 512), (1, 16, 16, 576), (1, 512, 512, 512), (1, 2048, 32, 512), (1, 64, 576, 64)),
    *((16, 64, 16, 64), (64, 16, 16, 16), (9, 64, 16, 64), (9, 256, 64, 256), (16, 784, 64, 16), (512, 49, 4, 4)),
    (16, 3136, 9, 8),
)
_STEPS = ("multiply", "scale", "outer", "copy", "sum")
IMAGES = ((16, 28), (64, 56), (256, 14), (64, 28), (256, 56), (512, 7), (8, 56))


def _cases() -> Iterator[Case]:
    """Layers of residual networks and their factors, with 3 to 2048 channels and sides of 7 to 112 positions."""
    for batch in (1, 16):
        yield Convolution(batch, 1, 3, 64, (7, 7), 112, 2)
        yield Convolution(batch, 1, 64, 128, (3, 3), 56, 2)
        yield Convolution(batch, 1, 256, 512, (1, 1), 56, 2)
        yield from (Convolution(batch, 1, summed, new, (3, 3), side) for summed, new, side in (*SQUARES, *NARROW))
        for summed, new, side in LINES:
            yield from (Convolution(batch, 1, summed, new, window, side) for window in ((3, 1), (1, 3)))
        yield from (Convolution(batch, 1, summed, new, (1, 1), side) for summed, new, side in BOTTLENECKS)
        yield from (Convolution(batch, count, 1, 1, window, side, stride) for count, window, side, stride in DEPTHWISE)
        yield from (Convolution(batch, *sizes) for sizes in GROUPED)
        yield from (Channels(batch, *sizes) for sizes in BOTTLENECKS)
        for channels, side in IMAGES:
            yield from (Pointwise(batch, channels, side, step) for step in _STEPS)
    for batch in (1, 8):
        yield from (Convolution(batch, count, 1, 1, window, side) for count, window, side in LONG_DEPTHWISE)
    yield from (Matrices(*sizes) for sizes in MATRICES)
    # steps that read or write more than 32 MiB in float32
    yield Convolution(16, 1, 64, 16, (3, 3), 112)
    yield Convolution(16, 1, 16, 64, (3, 3), 112)
    yield Convolution(16, 64, 1, 1, (3, 3), 112)
    yield Convolution(16, 16, 4, 4, (3, 3), 112)


CASES: tuple[Case, ...] = tuple(_cases())


@dataclass(frozen=True)
class Measurement:
    """The shortest time of one step, or of the gradients of its operands alone if `backward`."""

    work: Workload
    backward: bool
    seconds: float


def calibrate(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, *, seconds: float = 45.0
) -> dict[Format, Constants]:
    """Measure the time of single steps on a device, and store the fitted constants for later compilations.

        tn.compiler.calibrate("cpu")        # about a minute

    The constants are stored in the cache folder, in a file that replaces that of an earlier call. Delete it to
    return to the defaults of the package.

    Args:
        device: where to measure; it should be idle. The CPU is measured with the current number of threads.
        dtype: the floating-point type of all tensors.
        seconds: how long to measure. Every case runs at least once; a longer time gives steadier constants.

    Returns:
        The constants for each memory format, "contiguous" and "channels_last".
    """
    device = torch.device(device)
    start = CUDA_DEFAULTS if device.type == "cuda" else CPU_DEFAULTS
    fitted = {
        memory_format: fit(measure(device, dtype, memory_format, seconds=seconds / len(FORMATS)), start[memory_format])
        for memory_format in FORMATS
    }
    data = {"identity": identity(device, dtype), "constants": {name: as_record(fitted[name]) for name in FORMATS}}
    write_text(calibration_file(device, dtype), json.dumps(data, indent=1) + "\n")
    return {name: constants_for(device, dtype, name) for name in FORMATS}


# Measuring -----------------------------------------------------------------------------------------------------------


def measure(
    device: torch.device, dtype: torch.dtype, memory_format: Format, *, seconds: float, cases: Sequence[Case] = CASES
) -> list[Measurement]:
    """Run every case forward and backward, in rounds until the time is up, and keep the shortest times.

    Each round runs all cases, so that another program that is active for a while cannot disturb one case in all rounds.
    """
    best: dict[tuple[Case, bool], Measurement] = {}
    end = perf_counter() + seconds
    rounds = 0
    while not rounds or perf_counter() < end:
        for case in cases:
            if rounds and perf_counter() > end:
                break
            operands, call, work = prepare_case(case, device, dtype, memory_format)
            for backward in (False, True):
                # the gradient of a sum is a view; outer products should not determine the rates of copies
                if backward and isinstance(case, Pointwise) and case.step in ("outer", "sum"):
                    continue
                shortest = _shortest(operands, call, backward=backward)
                old = best.get((case, backward))
                if old is None or shortest < old.seconds:
                    best[case, backward] = Measurement(work, backward, shortest)
        rounds += 1
    return list(best.values())


def prepare_case(
    case: Case, device: torch.device, dtype: torch.dtype, memory_format: Format
) -> tuple[list[Tensor], _Call, Workload]:
    """The operands of a case, the function that is called with them, and the work of the call."""
    layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
    other = torch.contiguous_format if memory_format == "channels_last" else torch.channels_last

    def ones(*shape: int) -> Tensor:
        tensor = torch.ones(shape, device=device, dtype=dtype)
        return tensor.contiguous(memory_format=layout) if len(shape) == 4 else tensor

    call: _Call
    match case:
        case Convolution(batch, groups, summed, new, (height, width), side, stride):
            operands = [ones(batch, groups * summed, side, side), ones(groups * new, summed, height, width)]
            written = batch * groups * new * (-(-side // stride)) ** 2
            multiply_adds, longest = written * summed * height * width, max(height, width)
            work = Workload("convolution", multiply_adds, 0, written, groups, summed, new, window=longest)
            padding = (height // 2, width // 2)
            call = partial(functional.conv2d, stride=stride, padding=padding, groups=groups)
        case Channels(batch, summed, new, side):
            positions = batch * side * side
            work = Workload("product", positions * summed * new, 0, positions * new, 1, summed, new, positions)
            weight = torch.ones(new, summed, device=device, dtype=dtype)
            if memory_format == "channels_last":
                image = torch.ones(batch, side, side, summed, device=device, dtype=dtype)
                operands, call = [image, weight], functional.linear
            else:
                operands, call = [weight, ones(batch, summed, side * side)], torch.matmul
        case Matrices(groups, left, summed, right):
            lead = () if groups == 1 else (groups,)
            operands, call = [ones(*lead, left, summed), ones(*lead, summed, right)], torch.matmul
            written = groups * left * right
            work = Workload("product", written * summed, 0, written, groups, summed, right, left)
        case Pointwise(batch, channels, side, step):
            image = ones(batch, channels, side, side)
            work = Workload("pointwise", written=image.numel())
            if step == "copy":
                operands, call = [image], partial(torch.clone, memory_format=other)
            elif step == "sum":
                operands, call = [image], partial(torch.sum, dim=(2, 3))
                work = Workload("pointwise", written=batch * channels)
            elif step == "outer":
                operands, call = [ones(batch, channels, side, 1), ones(channels, 1, side)], torch.mul
            else:
                factor = torch.ones_like(image) if step == "multiply" else ones(channels, 1, 1)
                operands, call = [image, factor], torch.mul
    return operands, call, work._replace(read=sum(operand.numel() for operand in operands))


def _shortest(operands: Sequence[Tensor], call: _Call, *, backward: bool, seconds: float = 4e-3) -> float:
    """The shortest time of one call; on a GPU, which runs behind the calls, the mean of ten in a row."""
    device = operands[0].device
    with torch.set_grad_enabled(backward):
        inputs = [operand.requires_grad_(backward) for operand in operands]
        result = call(*inputs)
        if backward:
            gradient = torch.ones_like(result)
            orders = [_order(operand) for operand in operands]

            def run() -> object:
                # the gradient of a copy has the order of its output, which the preceding step has to change back
                gradients = torch.autograd.grad(result, inputs, gradient, retain_graph=True)
                return [one.contiguous(memory_format=order) for one, order in zip(gradients, orders, strict=True)]
        else:

            def run() -> object:
                return call(*inputs)

        row = 1 if device.type == "cpu" else 10
        shortest, end = math.inf, perf_counter() + seconds
        run()
        while True:
            _wait(device)
            start = perf_counter()
            for _ in range(row):
                run()
            _wait(device)
            now = perf_counter()
            shortest = min(shortest, (now - start) / row)
            if now > end:
                break
    for operand in operands:
        operand.requires_grad_(False)
    return shortest


def _order(tensor: Tensor) -> torch.memory_format:
    """The memory format of a tensor."""
    last = tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Fitting -------------------------------------------------------------------------------------------------------------

_TOLERANCE = 0.3
"""The residual of a logarithm above which a measurement counts linearly and not by its square (Huber 1964)."""

PRIOR = 0.03
"""Weight of the initial values relative to one measurement: they determine only what no measurement does."""

FLOOR = 1e-16
"""Smallest initial value of a rate in seconds: rates are fitted as logarithms, so that 0 could not grow."""

UNUSED = {
    "depthwise": ("narrow_summed", "narrow_new"),
    "long_depthwise": ("narrow_summed", "narrow_new"),
    "copy": ("multiply_add", "narrow_summed", "narrow_new"),
    "pointwise": ("multiply_add", "narrow_summed", "narrow_new"),
}
"""Fields of `Rates` that are not fitted: a kind does not use them, or its measurements cannot separate them."""


def fit(measurements: Sequence[Measurement], start: Constants) -> Constants:
    """The constants whose predictions come closest to the measurements: a robust fit of the logarithms.

    Args:
        start: the initial values, which `large` and kinds without measurements keep.
    """
    points: dict[tuple[bool, str], list[Measurement]] = {}
    for one in measurements:
        points.setdefault((one.backward, kind_of(one.work)), []).append(one)
    fitted: dict[bool, dict[str, Rates]] = {False: {}, True: {}}
    for backward, kinds in ((False, start.forward), (True, start.backward)):
        for name in reversed(Kinds._fields):  # pointwise comes first, because it determines the cache
            rates: Rates = getattr(kinds, name)
            if chosen := points.get((backward, name)):
                free_cache = name == "pointwise" and not backward
                rates, start = _fit_rates(chosen, rates, start, UNUSED.get(name, ()), free_cache=free_cache)
            fitted[backward][name] = rates
    pointwise = fitted[False]["pointwise"]
    return replace(
        start,
        view=min(start.view, pointwise.call),
        kept=pointwise.written + pointwise.far,
        forward=Kinds(**fitted[False]),
        backward=Kinds(**fitted[True]),
    )


def _fit_rates(
    points: Sequence[Measurement], start: Rates, constants: Constants, unused: Sequence[str], *, free_cache: bool
) -> tuple[Rates, Constants]:
    """The rates of one kind, and the constants with the fitted cache if that is free; fitted as logarithms."""
    from scipy.optimize import least_squares

    names = [name for name in Rates._fields if name not in unused]

    def unpack(logarithms: Sequence[float]) -> tuple[Rates, Constants]:
        values = [math.exp(value) for value in logarithms]
        cache = values.pop() if free_cache else constants.cache
        return start._replace(**dict(zip(names, values, strict=True))), replace(constants, cache=cache)

    def residuals(logarithms: Sequence[float]) -> list[float]:
        rates, fitted = unpack(logarithms)
        predicted = [step_seconds(rates, one.work, fitted.cache, fitted.large) for one in points]
        errors = [math.log(value / one.seconds) for value, one in zip(predicted, points, strict=True)]
        return errors + [PRIOR**0.5 * (value - before) for value, before in zip(logarithms, first, strict=True)]

    values = [max(getattr(start, name), 0.1 if name.startswith("narrow") else FLOOR) for name in names]
    if free_cache:
        values.append(constants.cache)
    first = [math.log(value) for value in values]
    return unpack(least_squares(residuals, first, loss="huber", f_scale=_TOLERANCE, x_scale="jac").x)
