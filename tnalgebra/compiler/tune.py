"""The choice among programs by measurement; results are stored on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from hashlib import sha256
from importlib.metadata import version
from itertools import zip_longest
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from .._files import cache_folder, write_text
from .choose import Candidate, PlanRequest
from .emit import argument_names, emit
from .operations import Load, shape_in
from .weights import contract_weights, dense_patterns

TUNED = 12
"""Number of candidates that `tune=True` measures, taken from each style in turn by their predicted prices."""

TIE = 0.03
"""Relative difference of measurements below which the candidate with fewer calls wins."""

ROUNDS, FEWEST, FAR_BEHIND = 9, 3, 1.15
"""Measurements of each candidate; after the fewest, those slower than the fastest by this factor are dropped."""


def tune_candidates(
    listed: Sequence[Candidate], request: PlanRequest, timer: Callable[[Candidate], Callable[[], float]]
) -> list[Candidate]:
    """Measure the best few candidates, and store the result on disk: the fastest first, then those not measured.

    Args:
        timer: makes a function that runs a candidate once and returns the seconds.
    """
    file = cache_folder() / "plans" / f"{request_key(request)}.json"
    seconds, digests = _remembered(file), [digest(candidate) for candidate in listed]
    if next(iter(seconds), None) not in digests:
        tried = _worth_trying(listed)
        seconds = {digest(one): time for one, time in _measure(tried, [timer(one) for one in tried])}
        write_text(file, json.dumps(list(seconds.items())))
    places = {name: place for place, name in enumerate(seconds)}
    tuned = [replace(one, measured=seconds.get(name)) for one, name in zip(listed, digests, strict=True)]
    order = sorted(range(len(listed)), key=lambda n: places.get(digests[n], len(places)))
    return [tuned[n] for n in order]


def _measure(tried: Sequence[Candidate], timers: Sequence[Callable[[], float]]) -> list[tuple[Candidate, float]]:
    """Every candidate with the median of its seconds: the winner first, then from the fastest to the slowest."""
    for run in timers:  # the first runs are slower, and are not counted
        run()
        run()
    times: list[list[float]] = [[] for _ in tried]
    running = set(range(len(tried)))
    for round_ in range(ROUNDS):
        for number in sorted(running):
            times[number].append(timers[number]())
        if round_ + 1 >= FEWEST:
            least = min(median(times[number]) for number in running)
            running = {number for number in running if median(times[number]) < FAR_BEHIND * least}
            if len(running) == 1:
                break
    medians = [median(one) for one in times]
    # the dropped ones come last, although few measurements of them were made
    order = sorted(range(len(tried)), key=lambda n: (n not in running, medians[n]))
    near = [n for n in order if n in running and medians[n] <= (1 + TIE) * medians[order[0]]]
    first = min(near, key=lambda n: (tried[n].calls, medians[n]))
    return [(tried[n], medians[n]) for n in (first, *(n for n in order if n != first))]


def _worth_trying(listed: Sequence[Candidate]) -> list[Candidate]:
    """The best of each style in turn, because predictions are least certain between styles."""
    by_style: dict[str, list[Candidate]] = {}
    for one in listed:
        by_style.setdefault(str(one.program.style), []).append(one)
    rounds = zip_longest(*by_style.values())
    chosen = [one for turn in rounds for one in turn if one is not None][:TUNED]
    return [one for one in listed if one in chosen]


def make_timer(candidate: Candidate, request: PlanRequest, weights: Mapping[str, Tensor]) -> Callable[[], float]:
    """A function that runs a candidate once, on copies of the weights and random inputs, and returns the seconds."""
    program, is_cuda = candidate.program, request.device.type == "cuda"
    tensors = {}
    for operation in program.operations:
        if isinstance(operation, Load) and operation.kind == "input":
            shape = shape_in(operation.axes, candidate.computation.sizes)
            tensor = torch.randn(shape, dtype=request.dtype, device=request.device)
            if request.channels_last and tensor.ndim in (4, 5):
                layout = torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
                tensor = tensor.contiguous(memory_format=layout)
            tensors[operation.name] = tensor
        elif isinstance(operation, Load) and operation.kind == "weight":
            tensors[operation.name] = weights[operation.name].detach().clone(memory_format=torch.contiguous_format)
    for tensor in tensors.values():
        tensor.requires_grad_(request.backward)
    tensors |= dense_patterns(candidate, request)
    supplied: dict[int, str] = {}
    if request.frozen:
        supplied, stored = contract_weights(program, tensors)
        tensors |= stored
    code = emit(program, supplied=supplied)
    arguments = [tensors[name] for name in (*program.inputs, *argument_names(program, supplied))]
    trained = [tensor for tensor in arguments if tensor.requires_grad]
    gradients: list[Tensor] = []

    def run() -> float:
        if is_cuda:
            torch.cuda.synchronize(request.device)
        start = perf_counter()
        with torch.set_grad_enabled(request.backward):
            value = code(*arguments)
        if request.backward:
            if not gradients:
                gradients.append(torch.randn_like(value))
            torch.autograd.grad(value, trained, gradients[0])
        if is_cuda:
            torch.cuda.synchronize(request.device)
        return perf_counter() - start

    return run


def digest(candidate: Candidate) -> str:
    """The key of a program in the stored results."""
    return sha256(candidate.program.text.encode()).hexdigest()[:16]


def request_key(request: PlanRequest) -> str:
    """The key of a request in the cache: a hash of all that a measurement depends on."""
    device = request.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {torch.get_num_threads()}"
    key = (
        version("tnalgebra"),
        torch.__version__,
        name,
        os.cpu_count(),
        sorted(request.network.sizes.items()),
        *(str(getattr(request, field.name)) for field in fields(request) if field.name != "device"),
    )
    return sha256(repr(key).encode()).hexdigest()[:32]


def _remembered(file: os.PathLike[str]) -> dict[str, float]:
    """Seconds by digest, the winner first; empty if the file does not exist or cannot be read."""
    try:
        with open(file, encoding="utf-8") as handle:
            return {str(name): float(seconds) for name, seconds in json.load(handle)}
    except (OSError, ValueError, TypeError):
        return {}
