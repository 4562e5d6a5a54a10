"""Which program: candidates from every search, priced in full, the best few measured if asked, one chosen."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from itertools import zip_longest
from math import prod
from statistics import median
from typing import Literal, TypeAlias

import torch

from .._files import cache_folder, write_text
from ..errors import CompileError, explain
from ..network import NamedTensor, Network, carriers
from .cost import CostModel, constants_for
from .lowering import lower
from .operations import STYLES, Arrange, Format, Load, Pad, Program, Rename, Work, shape_in, sources, work_of
from .problem import Problem, problems
from .search import Search

Candidates: TypeAlias = Literal["all", "factored"]

KEPT = 4
"""Trees kept of each state of the search."""

LISTED = 24
"""Candidates a plan remembers, the cheapest first."""

TUNED = 12
"""Candidates that `tune=True` measures: the best of each style in turn, in the order of their prices."""

TIE = 0.03
"""Of measurements this much apart the one with fewer calls wins."""

ROUNDS, FEWEST = 9, 3
"""Measurements of each; after the fewest, those far behind are left out."""

FORMATS: tuple[Format, ...] = ("contiguous", "channels_last")


MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


def is_channels_last(memory_format: torch.memory_format) -> bool:
    """Whether a memory format is channels_last. Raises CompileError if it is none that a plan is made for."""
    if memory_format not in MEMORY_FORMATS:
        listed = ", ".join(map(str, MEMORY_FORMATS))
        raise CompileError(explain(f"memory_format is {memory_format!r}", fix=f"one of {listed}"))
    return memory_format != torch.contiguous_format


@dataclass(frozen=True)
class Request:
    """What a plan is made for.

    network: with the sizes of inputs and weights.
    frozen: whether what only weights go into is there already.
    dynamic: label -> the range its size moves in.
    bias: the open label along which the vector `bias` is added.
    format_kept: whether the output lies in the memory format that the inputs come in, as that of torch's layers does.
    """

    network: Network
    inputs: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    candidates: Candidates = "all"
    backward: bool = False
    frozen: bool = False
    channels_last: bool = False
    dynamic: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    max_elements: int = 2**28
    bias: str | None = None
    format_kept: bool = False


@dataclass(frozen=True)
class Candidate:
    """A program with its price.

    seconds: predicted at the nominal sizes.
    measured: median seconds, if it was tried.
    """

    problem: Problem
    program: Program
    seconds: float
    measured: float | None = None

    @cached_property
    def works(self) -> tuple[tuple[Work, bool], ...]:
        """The work of every operation, and whether only weights go into it."""
        return works_of(self.program, self.program.sizes)

    @cached_property
    def calls(self) -> int:
        """Operations that compute, or copy."""
        return sum(
            work.kind != "view" for operation, (work, _) in zip(self.program.operations, self.works, strict=True)
        )

    @property
    def multiply_adds(self) -> int:
        """Of its convolutions and matrix products."""
        return sum(work.multiply_adds for work, _ in self.works)

    @cached_property
    def peak_elements(self) -> int:
        """The most elements alive at once: inputs, weights, intermediates; views count nothing."""
        return _peak(self.program)

    @cached_property
    def kept_elements(self) -> int:
        """Elements that a backward pass needs again: what convolutions and products take."""
        kept = {
            root
            for n, operation in enumerate(self.program.operations)
            if self.works[n][0].multiply_adds
            for root in (_root(self.program, source) for source in sources(operation))
        }
        return sum(prod(shape_in(self.program.operations[n].axes, self.program.sizes)) for n in kept)


def works_of(program: Program, sizes: Mapping[str, int]) -> tuple[tuple[Work, bool], ...]:
    """The work of every operation at some sizes, and whether only weights go into it."""
    axes = [operation.axes for operation in program.operations]
    flags = weights_only(program)
    return tuple(
        (work_of(operation, axes, sizes), flag) for operation, flag in zip(program.operations, flags, strict=True)
    )


def weights_only(program: Program) -> list[bool]:
    """For every value whether no input goes into it."""
    flags: list[bool] = []
    for operation in program.operations:
        own = operation.kind != "input" if isinstance(operation, Load) else True
        flags.append(own and all(flags[source] for source in sources(operation)))
    return flags


def price(program: Program, request: Request, sizes: Mapping[str, int] | None = None) -> float:
    """Predicted seconds of a program, at other sizes of its labels if they are given."""
    model = _model(request, program.style.memory_format)
    return sum(model.seconds(work, weights=flag) for work, flag in works_of(program, sizes or program.sizes))


def candidates_for(request: Request) -> list[Candidate]:
    """Programs that compute the network, the cheapest first.

    Raises:
        CompileError: none keeps within `max_elements`.
    """
    found: dict[str, Candidate] = {}
    for sizes in _nominal_sizes(request):
        for problem in problems(request.network, request.inputs, {}):
            problem = replace(problem, network=_resized(problem.network, sizes))
            for memory_format in FORMATS:
                for program in _programs(problem, request, memory_format):
                    found.setdefault(program.text, Candidate(problem, program, price(program, request)))
    if not found:
        raise CompileError(
            explain(
                f"no way to compute the network keeps every tensor within {request.max_elements} elements",
                network=request.network,
                fix="smaller sizes, or a larger max_elements",
            )
        )
    if request.dynamic:
        return _by_worst_ratio(list(found.values()), request)
    return sorted(found.values(), key=lambda one: (not is_single_call(one), one.seconds))[:LISTED]


def is_single_call(candidate: Candidate) -> bool:
    """Whether the network is one call of torch's, on tensors as they come or padded, with no two weights to order.

    A prediction is no reason to do without it; a measurement is.
    """
    weights = [leaf for leaf in candidate.problem.leaves if leaf.kind == "weight"]
    pads = sum(isinstance(operation, Pad) for operation in candidate.program.operations)
    return len(weights) < 2 and candidate.program.style == STYLES[0] and candidate.calls - pads == 1


def _nominal_sizes(request: Request) -> list[dict[str, int]]:
    """The sizes to search at: the nominal ones, or both ends of the ranges."""
    if not request.dynamic:
        return [{}]
    return [{label: ends[end] for label, ends in request.dynamic.items()} for end in (0, 1)]


def _resized(network: Network, sizes: Mapping[str, int]) -> Network:
    return Network(network.nodes, network.output, {**network.sizes, **sizes}) if sizes else network


def _programs(problem: Problem, request: Request, memory_format: Format) -> list[Program]:
    model = _model(request, memory_format)
    for patterns in (False, True):
        search = Search(
            problem,
            model,
            keep=KEPT,
            patterns=patterns,
            dense=request.candidates == "all",
            most=request.max_elements,
        )
        trees = search.best()
        if trees or not problem.views:
            break
    styles = [style for style in STYLES if style.memory_format == memory_format]
    return [
        lower(
            problem,
            search,
            tree,
            style,
            channels_last_inputs=request.channels_last,
            bias=request.bias,
            format_kept=request.format_kept,
        )
        for tree in trees
        for style in styles
    ]


def _model(request: Request, memory_format: Format) -> CostModel:
    constants = constants_for(request.device, request.dtype, memory_format)
    return CostModel(constants, backward=request.backward, frozen=request.frozen)


# Batches --------------------------------------------------------------------------------------------------------


def batch_label(request: Request) -> str | None:
    """The first axis of the first input, if no window, reshape or weight decides its size."""
    node = next(
        node for node in request.network.nodes if isinstance(node, NamedTensor) and node.name == request.inputs[0]
    )
    return node.labels[0] if node.labels and is_free(request, node.labels[0]) else None


def is_free(request: Request, label: str) -> bool:
    """Whether a label stands on inputs alone (and in the output): its size changes nothing else."""
    standing = carriers(request.network).get(label, [])
    nodes = [request.network.nodes[position] for position, _ in standing]
    return bool(nodes) and all(isinstance(node, NamedTensor) and node.name in request.inputs for node in nodes)


def _by_worst_ratio(found: list[Candidate], request: Request) -> list[Candidate]:
    """Sorted by how far, at worst over the ranges, a program is behind the best one for that size."""
    points: list[dict[str, int]] = [{}]
    for label, (low, high) in request.dynamic.items():
        steps, at = [], low
        while at < high:
            steps.append(at)
            at *= 2
        points = [{**point, label: number} for point in points for number in (*steps, high)]
    table = [[price(one.program, request, {**one.program.sizes, **point}) for point in points] for one in found]
    best = [min(column) for column in zip(*table, strict=True)]
    worst = [max(own / least for own, least in zip(row, best, strict=True)) for row in table]
    order = sorted(range(len(found)), key=lambda number: worst[number])
    return [found[number] for number in order][:LISTED]


def crossovers(listed: Sequence[Candidate], request: Request, label: str, largest: int = 4096) -> list[tuple[int, int]]:
    """From which size of a batch on which candidate is predicted to be the fastest: (size, its number), ascending.

    Prices are affine in a batch; between the sizes that are tried, powers of 2, the place is found by bisection.
    """

    def winner(count: int) -> int:
        prices = [price(one.program, request, {**one.program.sizes, label: count}) for one in listed]
        return prices.index(min(prices))

    found = [(1, winner(1))]
    low = 1
    while low < largest:
        high = low * 2
        at_high = winner(high)
        if at_high != found[-1][1]:
            below, above = low, high
            while above - below > 1:
                middle = (below + above) // 2
                below, above = (middle, above) if winner(middle) == found[-1][1] else (below, middle)
            found.append((above, winner(above)))
        low = high
    return found


# Memory ---------------------------------------------------------------------------------------------------------


def _root(program: Program, number: int) -> int:
    """The value whose memory a view shows."""
    operation = program.operations[number]
    if isinstance(operation, Rename) or (isinstance(operation, Arrange) and not operation.copies):
        return _root(program, operation.source)
    return number


def _peak(program: Program) -> int:
    last_use: dict[int, int] = {}
    for number, operation in enumerate(program.operations):
        for source in sources(operation):
            last_use[_root(program, source)] = number
    last_use[_root(program, len(program.operations) - 1)] = len(program.operations)
    elements = {n: prod(shape_in(operation.axes, program.sizes)) for n, operation in enumerate(program.operations)}
    loads = [n for n, operation in enumerate(program.operations) if isinstance(operation, Load)]
    alive, peak = sum(elements[n] for n in loads), 0
    for number in range(len(program.operations)):
        if _root(program, number) == number and number not in loads:
            alive += elements[number]
        peak = max(peak, alive)
        for root, last in last_use.items():
            if last == number and root not in loads:
                alive -= elements[root]
    return peak


# Measuring ------------------------------------------------------------------------------------------------------


def tuned(
    listed: Sequence[Candidate], request: Request, timer: Callable[[Candidate], Callable[[], float]]
) -> list[Candidate]:
    """The best few measured side by side, the fastest first, then the others; the result is remembered on disk.

    Args:
        timer: makes, for a candidate, a function that runs it once and returns the seconds.
    """
    file = cache_folder() / "plans" / f"{_key(request)}.json"
    known = _remembered(file)
    names = [_digest(candidate) for candidate in listed]
    if known and known[0][0] in names:
        seconds = dict(known)
        done = [replace(c, measured=seconds.get(name)) for c, name in zip(listed, names, strict=True)]
        return sorted(done, key=lambda c: (c.measured is None, c.measured or c.seconds))
    tried = _worth_trying(listed)
    timers = [timer(candidate) for candidate in tried]
    for run in timers:
        run()
        run()
    times: list[list[float]] = [[] for _ in tried]
    running = set(range(len(tried)))
    for round_ in range(ROUNDS):
        for number in sorted(running):
            times[number].append(timers[number]())
        if round_ + 1 >= FEWEST:
            least = min(median(times[number]) for number in running)
            running = {number for number in running if median(times[number]) < 1.15 * least}
            if len(running) == 1:
                break
    medians = [median(own) for own in times]
    measured = [replace(one, measured=seconds) for one, seconds in zip(tried, medians, strict=True)]
    # those left out early were far behind, whatever their few measurements say
    order = sorted(range(len(tried)), key=lambda n: (n not in running, measured[n].measured))
    near = [n for n in order if n in running and medians[n] <= (1 + TIE) * medians[order[0]]]
    first = min(near, key=lambda n: (tried[n].calls, medians[n]))
    result = [measured[number] for number in (first, *(n for n in order if n != first))]
    write_text(file, json.dumps([[_digest(one), one.measured] for one in result]))
    return [*result, *(one for one in listed if one not in tried)]


def _worth_trying(listed: Sequence[Candidate]) -> list[Candidate]:
    """The best of each style in turn: predictions between styles are the least certain."""
    by_style: dict[str, list[Candidate]] = {}
    for one in listed:
        by_style.setdefault(str(one.program.style), []).append(one)
    rounds = zip_longest(*by_style.values())
    chosen = [one for turn in rounds for one in turn if one is not None][:TUNED]
    return [one for one in listed if one in chosen]


def _digest(candidate: Candidate) -> str:
    return sha256(candidate.program.text.encode()).hexdigest()[:16]


def _key(request: Request) -> str:
    """All that a measurement depends on."""
    device = request.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {torch.get_num_threads()}"
    own = (
        version("tnalgebra"),
        torch.__version__,
        name,
        os.cpu_count(),
        str(request.network),
        sorted(request.network.sizes.items()),
        request.inputs,
        str(request.dtype),
        request.candidates,
        request.backward,
        request.frozen,
        request.channels_last,
        sorted(request.dynamic.items()),
        request.max_elements,
        request.bias,
        request.format_kept,
    )
    return sha256(repr(own).encode()).hexdigest()[:32]


def _remembered(file: os.PathLike[str]) -> list[tuple[str, float]]:
    """What was measured before; nothing if the file is not there, or is not what was written."""
    try:
        with open(file, encoding="utf-8") as handle:
            rows = json.load(handle)
        return [(str(name), float(seconds)) for name, seconds in rows]
    except (OSError, ValueError, TypeError):
        return []
