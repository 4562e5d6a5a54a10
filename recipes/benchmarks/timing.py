"""Timing in turns, ratios of medians with an interval, and peak memory."""

from __future__ import annotations

import ctypes
import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

import tnalgebra as tn

SLOW_FACTOR = 8.0
"""A call is slow if it takes more than this many times as long as the fastest."""

SLOW_SECONDS = 20.0
"""The seconds that all turns of a slow call may take together; it has at least one turn."""

CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
M_MMAP_THRESHOLD = -3
"""glibc's number of the setting."""


class Ratio(NamedTuple):
    """The ratio of two medians, and the interval that holds 95 % of its bootstrap draws."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio_of_medians(over: Sequence[float], under: Sequence[float], *, samples: int = 1000, seed: int = 0) -> Ratio:
    """median(over) / median(under). Each list is resampled by itself, because a slow call has fewer times."""
    generator = np.random.default_rng(seed)
    medians = [np.median(generator.choice(np.asarray(times), (samples, len(times))), axis=1) for times in (over, under)]
    low, high = np.quantile(medians[0] / medians[1], (0.025, 0.975))
    return Ratio(float(np.median(over) / np.median(under)), float(low), float(high))


def time_in_turns(
    calls: Mapping[str, Callable[[int], object]],
    *,
    rounds: int,
    warmup: int = 3,
    slow_rounds: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, list[float]]:
    """The seconds of each call, once in each round, in an order that is drawn again in each round.

    Args:
        calls: functions that receive the number of the round.
        warmup: the number of calls before the first round; a slow call makes two, as the first may do more than others.
        slow_rounds: the number of rounds, spread evenly, in which a slow call has a turn; None: all rounds.
        device: if it is a CUDA device, each call is timed until the device is idle.
    """
    cuda = device.startswith("cuda")

    def timed(call: Callable[[int], object], turn: int) -> float:
        if cuda:
            torch.cuda.synchronize()
        started = perf_counter()
        call(turn)
        if cuda:
            torch.cuda.synchronize()
        return perf_counter() - started

    turns = {name: set(range(rounds)) for name in calls}
    if warmup:
        warm: dict[str, float] = {}
        for name, call in calls.items():
            warm[name] = timed(call, 0)
            if warmup > 1:
                warm[name] = timed(call, 0)
            for _ in range(warmup - 2):
                if slow_rounds is None or warm[name] <= SLOW_FACTOR * min(warm.values()):
                    warm[name] = min(warm[name], timed(call, 0))
        for name, seconds in warm.items():
            if slow_rounds is not None and seconds > SLOW_FACTOR * min(warm.values()):
                count = int(min(rounds, slow_rounds, max(1.0, SLOW_SECONDS / seconds)))
                turns[name] = {place * rounds // count for place in range(count)}
    shuffled = random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with _no_collection():
        for turn in range(rounds):
            order = [name for name in calls if turn in turns[name]]
            shuffled.shuffle(order)
            for name in order:
                times[name].append(timed(calls[name], turn))
    return times


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage before and not during the timing, as timeit does."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def peak_bytes(make: Callable[[], Callable[[int], object]], *, device: str, threads: int) -> int:
    """The peak memory of three calls after a first one, above the memory before them, measured in another process.

    On a CPU: the peak resident set during the calls less the resident set before them, from the kernel's VmHWM, which
    is reset just before. Freed memory returns to the system, so that it counts again when it is used again. On CUDA:
    the same of torch's allocator. The input and the parameters exist before, and do not count.

    Args:
        make: a function that makes the call, and that can be pickled.

    Raises:
        StudyError: on a CPU, if the system does not have /proc/self/clear_refs.
    """
    if not device.startswith("cuda") and not CLEAR.exists():
        raise tn.errors.StudyError(f"peak memory needs {CLEAR}, which only Linux has", fix="Linux, or --device cuda")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        return child.submit(_peak_here, make, device, threads).result()


def _peak_here(make: Callable[[], Callable[[int], object]], device: str, threads: int) -> int:
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # by default glibc keeps freed blocks below a threshold, which it raises
        library.mallopt(M_MMAP_THRESHOLD, 65536)
    torch.set_num_threads(threads)
    call = make()
    call(0)  # the first call makes what stays: code, caches
    gc.collect()
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        CLEAR.write_text("5")
        before = _resident("VmRSS")
    for turn in range(3):
        call(turn)
    if cuda:
        torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() if cuda else _resident("VmHWM")) - before


def _resident(field: str) -> int:
    """A field of the status of this process, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])
