"""Rows that a benchmark appends to a file, one a cell, as JSON."""

from __future__ import annotations

import ctypes
import gc
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

import tnalgebra as tn
from recipes.benchmarks.layers.contenders import Cell, Problem, Shape, make_contender, make_problem

# benchmark_rows: Rows that a benchmark appends to a file, one a cell, as JSON.


Row: TypeAlias = dict[str, Any]
"""A line of results.jsonl or memory.jsonl."""


def last_rows(path: Path, key: Sequence[str]) -> list[Row]:
    """The rows of a file, of those that agree in `key` the last; a last line that was cut off is taken away.

    Raises:
        StudyError: a line is no row.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    rows: dict[str, Row] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            found = json.dumps([row[name] for name in key])
            rows.pop(found, None)
            rows[found] = row
        except (ValueError, TypeError, KeyError) as error:
            raise tn.errors.StudyError(
                tn.errors.explain(f"line {number} of {path} is no row", because=error, fix="another --output")
            ) from error
    return list(rows.values())


# layer_timing: Timing in turns, ratios of medians with an interval, and peak memory, for `recipes.benchmark_layers`.


CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
Found: TypeAlias = tuple[Tensor, Tensor | None]
"""Output and, in training, gradient of the input."""

M_MMAP_THRESHOLD = -3
"""glibc's number of the setting."""


class Ratio(NamedTuple):
    """The ratio of two medians and the interval that holds 95 % of its bootstrap."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio_of_medians(over: Sequence[float], under: Sequence[float], *, samples: int = 1000, seed: int = 0) -> Ratio:
    """median(over) / median(under), each resampled on its own: a slow contender has fewer times than a fast one."""
    generator = np.random.default_rng(seed)
    medians = [np.median(generator.choice(np.asarray(times), (samples, len(times))), axis=1) for times in (over, under)]
    low, high = np.quantile(medians[0] / medians[1], (0.025, 0.975))
    return Ratio(float(np.median(over) / np.median(under)), float(low), float(high))


def time_in_turns(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    slow_rounds: int,
    slow_factor: float,
    slow_seconds: float,
    warmup: int,
    seed: int,
    synchronise: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each call, one a round, in an order drawn anew each round.

    Args:
        slow_rounds: rounds, spread evenly, of calls that take more than `slow_factor` times the fastest's time in
            the `warmup` calls, of which a slow one makes fewer.
        slow_seconds: bounds the sum of a slow call's turns; one turn there is.
        synchronise: waits until the device is done.
    """

    def timed(call: Callable[[], object]) -> float:
        synchronise()
        started = perf_counter()
        call()
        synchronise()
        return perf_counter() - started

    warm: dict[str, float] = {}
    for name, call in calls.items():
        warm[name] = timed(call)
        for _ in range(warmup - 1):
            if warm[name] <= slow_factor * min(warm.values()):
                warm[name] = min(warm[name], timed(call))
    fastest = min(warm.values())
    turns = {}
    for name, seconds in warm.items():
        slow = int(min(rounds, slow_rounds, max(1.0, slow_seconds / seconds)))
        count = slow if seconds > slow_factor * fastest else rounds
        turns[name] = {place * rounds // count for place in range(count)}
    shuffled = random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with _no_collection():
        for turn in range(rounds):
            order = [name for name in calls if turn in turns[name]]
            shuffled.shuffle(order)
            for name in order:
                times[name].append(timed(calls[name]))
    return times


@contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage is collected before, and not while something is timed, as in timeit."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def one_call(module: nn.Module, problem: Problem) -> Callable[[], Found]:
    """What is timed; it returns the output and, in training, the gradient of the input.

    Forward: no gradients are noted. Training: the output, then the gradients of the input and of all parameters of the
    sum of the output's elements, with fixed random weights.
    """
    if problem.cell.goes == "forward":
        module.eval()

        @torch.no_grad()
        def forward() -> tuple[Tensor, None]:
            return module(problem.images), None

        return forward

    module.train()
    images = problem.images.detach().requires_grad_()
    wanted = [images, *(parameter for parameter in module.parameters() if parameter.requires_grad)]

    def training() -> tuple[Tensor, Tensor]:
        output = module(images)
        return output, torch.autograd.grad(output, wanted, problem.weights)[0]

    return training


def waiter(device: str) -> Callable[[], object]:
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


class Task(NamedTuple):
    """What a child process needs to measure the memory of one contender."""

    contender: str
    cell: Cell
    shape: Shape
    seed: int
    device: str
    threads: int


def peak_bytes(task: Task) -> int:
    """The peak memory of three calls of one contender after a first one, measured in a process of its own.

    On a CPU: the peak resident set during the calls less the resident set before them, from the kernel's VmHWM, set
    back just before; memory that is freed goes back to the system, so that it is counted again when it is used again.
    On CUDA: the same of torch's allocator. The input and the parameters are there before, and do not count.

    Raises:
        StudyError: on a CPU, the system has no /proc/self/clear_refs.
    """
    if not task.device.startswith("cuda") and not CLEAR.exists():
        raise tn.errors.StudyError(
            tn.errors.explain(f"peak memory needs {CLEAR}, which only Linux has", fix="Linux, or --device cuda")
        )
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        return child.submit(_measured_peak, task).result()


def _measured_peak(task: Task) -> int:
    prepare_memory(task.threads)
    problem = make_problem(task.cell, task.shape, seed=task.seed, dtype=torch.float32, device=task.device)
    return peak_of_calls(one_call(make_contender(task.contender, problem).module, problem), task.device)


def prepare_memory(threads: int) -> None:
    """Make a process give freed blocks back at once, so that its peak tells what was alive."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc keeps freed blocks below a threshold, and raises it as it goes unless told
        library.mallopt(M_MMAP_THRESHOLD, 65536)
    torch.set_num_threads(threads)


def peak_of_calls(call: Callable[[], object], device: str) -> int:
    """Bytes at the peak of three calls after a first one, above those before."""
    call()  # the first one makes what stays: code, caches
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        CLEAR.write_text("5")
        before = _resident("VmRSS")
    for _ in range(3):
        call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """A line of the process's status, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])
