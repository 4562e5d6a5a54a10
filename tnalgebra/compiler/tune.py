"""The choice among programs by measurement, where their predictions are too close; results are kept on disk.

Predictions of two programs differ from their times by a factor that depends on the machine. So those that are
predicted within `NEAR` of the best are run in turns on tensors of the nominal shapes, and the fastest comes first.
Programs of one family differ least in that factor, so the best of each family is run within `FAMILIES_NEAR`, and the
others where the prediction, corrected by the factor of their family, is near. Where a run takes long, as of many
images, they are run with fewer images first, and the fastest of them with all. A time is the least of several, as other
programs can only make it longer; with one thread it is that of the CPU. Two batches of turns have to agree about the
fastest; if they never do, as on a busy machine, the least time decides for this process, and nothing is stored.
"""

from __future__ import annotations

import json
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import version
from time import get_clock_info, perf_counter, thread_time

import torch
from torch import Tensor, nn

from .._files import cache_folder, write_text
from .choose import COMPUTED, FAMILIES_NEAR, Candidate, PlanRequest, batch_label, candidates_for
from .constants import calibration_file, identity
from .emit import argument_names, emit
from .keeper import MOST_COPIED, Keeper
from .operations import Load, shape_in
from .tracing import is_watched
from .weights import dense_patterns

NEAR = 1.7
"""Candidates that are predicted to take at most this many times as long as the best are measured.

The best of each family may take `FAMILIES_NEAR` times as long.
"""

MOST = 12
"""Number of candidates that are measured: the best of each family, and others by their corrected predictions."""

TIE = 0.03
"""Relative difference of two times below which the candidate with fewer calls comes first."""

FAR_BEHIND = (2.0, 1.3, 1.15)
"""After the first turn, the second batch of turns and each later one, those slower by this factor are dropped."""

BATCHES = 6
"""Largest number of batches of turns."""

TURNS, ENOUGH = 5, 2e-3
"""Largest number of turns in a batch, and the seconds of the fastest candidate after which a batch ends."""

SMALL_PART = 0.25
"""Part of the predicted seconds that steps of weights alone may have if they are left out of the measured ones."""

HOPELESS = 4.0
"""A candidate that took this many times as long as the fastest one, and `PATIENCE` more, is not run again: other
programs rarely take that long."""

PATIENCE, TIMES = 0.02, 4
"""No further candidate is tried once the first turn took these seconds and as many times those of the fastest one."""

FEWEST = 4
"""Number of candidates that are tried, however long they take."""

_REMEMBERED = 1024
"""Number of requests whose candidates a process remembers."""

_remembered: OrderedDict[tuple[object, ...], tuple[Candidate, ...]] = OrderedDict()


def ranked_candidates(request: PlanRequest, *, tune: bool) -> tuple[Candidate, ...]:
    """Programs for a request, the one to use first; equal requests are answered once in a process.

    Args:
        tune: whether to measure those whose predictions are close, unless $TNALGEBRA_TUNE is 0.

    Raises:
        CompileError: as of `candidates_for`.
    """
    runs = request.device.type != "meta" and request.dtype in COMPUTED and not is_watched()
    tune = tune and runs and os.environ.get("TNALGEBRA_TUNE") != "0"
    key = request_key(request)
    listed = _once((key,), lambda: candidates_for(request))
    return _once((key, cache_folder()), lambda: tune_candidates(listed, request)) if tune else listed


def _once(key: tuple[object, ...], find: Callable[[], Sequence[Candidate]]) -> tuple[Candidate, ...]:
    """What was found for a key before, or what is found now."""
    if key not in _remembered:
        _remembered[key] = tuple(find())
        if len(_remembered) > _REMEMBERED:
            _remembered.popitem(last=False)
    return _remembered[key]


def tune_candidates(listed: Sequence[Candidate], request: PlanRequest) -> list[Candidate]:
    """Measure those of the candidates that are worth it: the fastest first, then those not measured."""
    families = [] if request.dynamic else _families(listed)
    if sum(map(len, families)) < 2:
        return list(listed)
    file = cache_folder() / "plans" / f"{request_key(request)}.json"
    digests = [digest(candidate) for candidate in listed]
    seconds = _read(file)
    if next(iter(seconds), None) not in digests:
        tried, timers, first = _worth_trying(families, request)
        measured, agreed = measure_candidates(tried, timers, first=first)
        seconds = {digest(one): time for one, time in measured}
        if agreed:
            with suppress(OSError):  # where the folder cannot be written to, the next process measures again
                write_text(file, json.dumps(list(seconds.items())))
    places = {name: place for place, name in enumerate(seconds)}
    tuned = [replace(one, measured=seconds.get(name)) for one, name in zip(listed, digests, strict=True)]
    order = sorted(range(len(listed)), key=lambda n: places.get(digests[n], len(places)))
    return [tuned[n] for n in order]


def measure_candidates(
    tried: Sequence[Candidate], timers: Sequence[Callable[[], float]], *, first: Sequence[float] = ()
) -> tuple[list[tuple[Candidate, float]], bool]:
    """Every candidate with the least of its seconds: the winner first, then from the fastest to the slowest.

    Args:
        timers: functions that run a candidate once and return the seconds.
        first: what the first of them returned already.

    Returns:
        The candidates, and whether two batches of turns in a row agree about the winner.
    """
    last = least = [*first, *_first_turn(timers[len(first) :], least=min(first, default=math.inf))]
    running = _near(least, FAR_BEHIND[0])
    agreed = False
    for batch in range(1, BATCHES):
        now = [math.inf] * len(tried)
        for _ in range(max(1, min(TURNS, round(ENOUGH / min(least))))):
            for number in running:
                now[number] = min(now[number], timers[number]())
        least = [min(pair) for pair in zip(least, now, strict=True)]
        agreed = batch > 1 and _agree(last, now, running) and {*_near(least, 1)} <= {*running}
        if agreed:
            break
        # what was fast once runs again, as what was slow then may have been disturbed
        running = sorted({*_near(now, FAR_BEHIND[min(batch, len(FAR_BEHIND) - 1)]), *_near(least, 1 + TIE)})
        last = now
    # those that were dropped come last, although few measurements of them were made
    measured = [n for n in range(len(tried)) if least[n] < math.inf]
    order = sorted(measured, key=lambda n: (n not in running, least[n]))
    near = [n for n in running if least[n] <= (1 + TIE) * least[order[0]]]
    winner = min(near, key=lambda n: (tried[n].calls, least[n]))
    return [(tried[n], least[n]) for n in (winner, *(n for n in order if n != winner))], agreed


def _first_turn(
    timers: Sequence[Callable[[], float]], *, least: float = math.inf, patience: float = PATIENCE
) -> list[float]:
    """The seconds of the first run of each candidate; infinity for those for which there was no time.

    What would be dropped runs twice more, as another program, or what torch does once, may have slowed the first run.

    Args:
        least: the seconds of the fastest of those that ran before.
        patience: the seconds that may be spent beside `TIMES` runs of the fastest.
    """
    times = [math.inf] * len(timers)
    spent = 0.0
    for number, run in enumerate(timers):
        if (number < FEWEST and least == math.inf) or spent < patience + TIMES * min((least, *times)):
            times[number] = run()
            spent += times[number]
    for number in sorted(range(len(timers)), key=times.__getitem__) * 2:
        fastest = min((least, *times))
        may_win = FAR_BEHIND[0] * fastest < times[number] < HOPELESS * fastest + PATIENCE
        if may_win and spent < 2 * (patience + TIMES * fastest):
            again = timers[number]()
            times[number], spent = min(times[number], again), spent + again
    return times


def _near(times: Sequence[float], factor: float) -> list[int]:
    """The positions of the times that are at most this factor above the least."""
    return [number for number, time in enumerate(times) if time <= factor * min(times)]


def _agree(one: Sequence[float], other: Sequence[float], running: Sequence[int]) -> bool:
    """Whether the fastest of each batch is about the fastest of the other one too."""
    first, second = (min(running, key=times.__getitem__) for times in (one, other))
    return one[second] <= (1 + TIE) * one[first] and other[first] <= (1 + TIE) * other[second]


def _families(listed: Sequence[Candidate]) -> list[list[Candidate]]:
    """Those near the best prediction by family, each from the fastest prediction to the slowest.

    The best of each family may be further away: between families predictions are least certain. Of plans for a range of
    sizes none is measured, as each is chosen for the worst of them, which the nominal size is not.
    """
    least = min(one.seconds for one in listed)
    families: dict[tuple[object, ...], list[Candidate]] = {}
    for one in sorted(listed, key=lambda one: one.seconds):
        family = families.setdefault(one.family, [])
        if one.seconds <= (NEAR if family else FAMILIES_NEAR) * least or one.is_single_call:
            family.append(one)
    return [family for family in families.values() if family]


def _worth_trying(
    families: Sequence[Sequence[Candidate]], request: PlanRequest
) -> tuple[list[Candidate], list[Callable[[], float]], list[float]]:
    """The best of each family, and those that are near by what it took.

    Returns:
        The candidates, functions that run them, and the seconds of the first of them.
    """
    tried = [family[0] for family in families][:MOST]
    fewer, seconds = _fewer_images(tried[0], request)
    # what is made of weights alone weighs more beside few images
    brief = replace(request, frozen=request.frozen or bool(fewer))

    def timer(one: Candidate) -> Callable[[], float]:
        sizes = {**one.program.sizes, **fewer}
        return make_timer(replace(one, program=replace(one.program, sizes=sizes)) if fewer else one, brief)

    timers = [timer(one) for one in tried]
    times = _first_turn(timers, patience=max(PATIENCE, seconds))
    expected = [
        (one.seconds * time / family[0].seconds, place, one)
        for family, time in zip(families, times, strict=False)
        for place, one in enumerate(family[1:])
    ]
    near = sorted((row for row in expected if row[0] <= NEAR * min(times)), key=lambda row: row[:2])[
        : MOST - len(tried)
    ]
    more = [one for _, _, one in near]
    tried, timers = [*tried, *more], [*timers, *map(timer, more)]
    if not fewer:
        return tried, timers, times
    times += _first_turn(timers[len(times) :], least=min(times), patience=max(PATIENCE, seconds))
    fastest = sorted(_near(times, FAR_BEHIND[0]), key=times.__getitem__)
    tried = [tried[number] for number in fastest]
    return tried, [make_timer(one, request) for one in tried], []


def _fewer_images(candidate: Candidate, request: PlanRequest) -> tuple[dict[str, int], float]:
    """The size of the batch, at least 2, with which a call takes about `ENOUGH` seconds, and the seconds with all.

    It is empty where that is more than half of the batch. One image may be computed by other functions, and in the
    backward pass the steps of weights alone would weigh too much.
    """
    batch = None if request.backward else batch_label(request)
    size = request.network.sizes[batch] if batch else 1
    if batch is None or size < FEWEST:
        return {}, 0.0
    seconds = make_timer(candidate, request)()
    fewer = max(2, int(size * ENOUGH / seconds))
    return ({batch: fewer} if 2 * fewer <= size else {}), seconds


def make_timer(candidate: Candidate, request: PlanRequest) -> Callable[[], float]:
    """A function that runs a candidate once, on tensors of ones, and returns the seconds."""
    program, device = candidate.program, request.device
    tensors = {}
    for operation in program.operations:
        if isinstance(operation, Load) and operation.kind != "pattern":
            shape = shape_in(operation.axes, program.sizes)
            tensor = torch.ones(shape, dtype=request.dtype, device=device)
            if operation.kind == "input" and request.channels_last and tensor.ndim in (4, 5):
                layout = torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
                tensor = tensor.contiguous(memory_format=layout)
            tensors[operation.name] = tensor.requires_grad_(request.backward)
    patterns = dense_patterns(candidate, request)
    tensors |= patterns
    inputs = [tensors[name] for name in program.inputs]
    code, arguments = emit(program), [tensors[name] for name in argument_names(program)]
    check: Callable[[], object] = bool
    if request.frozen or (not request.backward and _is_kept(candidate, request)):
        keeper = Keeper(program, patterns, prefix="kept", packs=True)
        keeper.keep(tensors, most=None if request.frozen else MOST_COPIED)
        if keeper.values:
            code, arguments = keeper.code, keeper.values
            holder = nn.Module()
            holder._buffers = dict(tensors)
            check = partial(keeper.is_current, holder)
    arguments = [*inputs, *arguments]
    call = code.forward
    trained = [tensor for tensor in arguments if tensor.requires_grad]
    gradients: list[Tensor] = []

    clock = _clock(device)

    def run() -> float:
        _wait(device)
        start = clock()
        check()
        value = call(*arguments)
        if request.backward:
            if not gradients:
                gradients.append(torch.ones_like(value))
            torch.autograd.grad(value, trained, gradients[0])
        _wait(device)
        return clock() - start

    def run_alone() -> float:
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(request.backward),
            torch.autocast(device.type, enabled=False),
        ):
            return run()

    return run_alone


def _clock(device: torch.device) -> Callable[[], float]:
    """CPU time, which other programs lengthen least, if one thread computes; else the time that passes."""
    is_fine = get_clock_info("thread_time").resolution <= 1e-6
    return thread_time if device.type == "cpu" and torch.get_num_threads() == 1 and is_fine else perf_counter


def _is_kept(candidate: Candidate, request: PlanRequest) -> bool:
    """Whether the steps of weights alone, which are kept between calls without gradients, are left out of the time.

    Where they are much of a call, they are not, as a plan is used in training too.
    """
    model = request.cost_model(candidate.program.style.memory_format)
    seconds = sum(model.seconds(work, weights=False) for work, weights in candidate.works if weights)
    return seconds <= SMALL_PART * candidate.seconds and not candidate.program.weights_only[-1]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def digest(candidate: Candidate) -> str:
    """The key of a program in the stored results."""
    return sha256(candidate.program.text.encode()).hexdigest()[:16]


def request_key(request: PlanRequest) -> str:
    """The key of a request: a hash of all that its candidates and their times depend on."""
    calibration = calibration_file(request.device, request.dtype)
    key = (
        _version(),
        *identity(request.device, request.dtype).values(),
        os.cpu_count(),
        calibration.stat().st_mtime_ns if calibration.exists() else 0,
        sorted(request.network.sizes.items()),
        *(str(getattr(request, field.name)) for field in fields(request)),
    )
    return sha256(repr(key).encode()).hexdigest()[:32]


@cache
def _version() -> str:
    return version("tnalgebra")


def _read(file: os.PathLike[str]) -> dict[str, float]:
    """Seconds by digest, the winner first; empty if the file does not exist or cannot be read."""
    try:
        with open(file, encoding="utf-8") as handle:
            return {str(name): float(seconds) for name, seconds in json.load(handle)}
    except (OSError, ValueError, TypeError):
        return {}
