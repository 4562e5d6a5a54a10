"""Which program: candidates from every search, priced in full, the best few measured if asked, one chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Literal, TypeAlias

import torch

from ..errors import CompileError
from ..networks import NamedTensor, Network, carriers
from .computation import Computation, computations
from .constants import constants_for
from .cost import FORMATS, CostModel, Format, Workload
from .lowering import lower
from .operations import STYLES, Arrange, Load, Pad, Program, Rename, shape_in
from .search import cheapest_trees
from .steps import Steps

Candidates: TypeAlias = Literal["all", "factored"]

MAX_PLAN_ELEMENTS = 2**28
"""Default bound of the largest tensor a plan makes: 1 GiB in float32."""

KEPT = 4
"""Trees kept of each state of the search."""

LISTED = 24
"""Candidates a plan remembers, the cheapest first."""

LARGEST_BATCH = 4096
"""Up to which a plan says where another candidate is faster."""

_MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


def is_channels_last(memory_format: torch.memory_format) -> bool:
    """Whether a memory format is channels_last. Raises CompileError if no plan is made for it."""
    if memory_format not in _MEMORY_FORMATS:
        listed = ", ".join(map(str, _MEMORY_FORMATS))
        raise CompileError(f"memory_format is {memory_format!r}", fix=f"one of {listed}")
    return memory_format != torch.contiguous_format


@dataclass(frozen=True)
class PlanRequest:
    """What a plan is made for.

    network: with the sizes of inputs and weights.
    frozen: whether the values that only weights go into are stored already.
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
    max_elements: int = MAX_PLAN_ELEMENTS
    bias: str | None = None
    format_kept: bool = False

    def cost_model(self, memory_format: Format) -> CostModel:
        """The prices of steps in one memory format."""
        constants = constants_for(self.device, self.dtype, memory_format)
        return CostModel(constants, backward=self.backward, frozen=self.frozen)


@dataclass(frozen=True)
class Candidate:
    """A program with its price.

    seconds: predicted at the nominal sizes.
    measured: median seconds, if it was tried.
    """

    computation: Computation
    program: Program
    seconds: float
    measured: float | None = None

    @cached_property
    def works(self) -> list[tuple[Workload, bool]]:
        """The work of every operation, and whether only weights go into it."""
        return self.program.works(self.program.sizes)

    @cached_property
    def calls(self) -> int:
        """Operations that compute, or copy."""
        return sum(work.kind != "view" for work, _ in self.works)

    @property
    def multiply_adds(self) -> int:
        """Of its convolutions and matrix products."""
        return sum(work.multiply_adds for work, _ in self.works)

    @cached_property
    def peak_elements(self) -> int:
        """The most elements alive at once: inputs, weights, intermediates; views count nothing."""
        operations = self.program.operations
        last_use = {self._root(source): n for n, operation in enumerate(operations) for source in operation.sources}
        last_use[self._root(len(operations) - 1)] = len(operations)
        loads = {n for n, operation in enumerate(operations) if isinstance(operation, Load)}
        alive = peak = sum(map(self._elements, loads))
        for number in range(len(operations)):
            if self._root(number) == number and number not in loads:
                alive += self._elements(number)
            peak = max(peak, alive)
            done = {root for root, last in last_use.items() if last == number} - loads
            alive -= sum(map(self._elements, done))
        return peak

    @cached_property
    def kept_elements(self) -> int:
        """Elements that a backward pass needs again: what convolutions and products take."""
        contractions = [n for n, (work, _) in enumerate(self.works) if work.multiply_adds]
        return sum(
            map(self._elements, {self._root(one) for n in contractions for one in self.program.operations[n].sources})
        )

    def _elements(self, number: int) -> int:
        return prod(shape_in(self.program.operations[number].axes, self.program.sizes))

    def _root(self, number: int) -> int:
        """The value whose memory a view shows."""
        operation = self.program.operations[number]
        is_view = isinstance(operation, Rename) or (isinstance(operation, Arrange) and not operation.copies)
        return self._root(operation.sources[0]) if is_view else number

    @property
    def is_single_call(self) -> bool:
        """Whether the network is one call of torch's, on tensors as they come or padded, with no two weights to order.

        Only a measurement, not a prediction, is a reason to prefer another program.
        """
        weights = [leaf for leaf in self.computation.leaves if leaf.kind == "weight"]
        pads = sum(isinstance(operation, Pad) for operation in self.program.operations)
        return len(weights) < 2 and self.program.style == STYLES[0] and self.calls - pads == 1


def predicted_seconds(program: Program, request: PlanRequest, sizes: Mapping[str, int] | None = None) -> float:
    """Of one call, at other sizes of some labels if they are given."""
    model = request.cost_model(program.style.memory_format)
    works = program.works({**program.sizes, **(sizes or {})})
    return sum(model.seconds(work, weights=weights) for work, weights in works)


def candidates_for(request: PlanRequest) -> list[Candidate]:
    """Programs that compute the network, the cheapest first.

    Raises:
        CompileError: none keeps within `max_elements`.
    """
    found: dict[str, Candidate] = {}
    # at the nominal sizes, or at both ends of the ranges
    for end in (0, 1) if request.dynamic else (0,):
        sizes = {label: ends[end] for label, ends in request.dynamic.items()}
        for one in computations(request.network, request.inputs, {}):
            network = Network(one.network.nodes, one.network.output, {**one.network.sizes, **sizes})
            computation = replace(one, network=network)
            for memory_format in FORMATS:
                for program in _programs(computation, request, memory_format):
                    seconds = predicted_seconds(program, request)
                    found.setdefault(program.text, Candidate(computation, program, seconds))
    if not found:
        raise CompileError(
            f"no way to compute the network keeps every tensor within {request.max_elements} elements",
            network=request.network,
            fix="smaller sizes, or a larger max_elements",
        )
    if request.dynamic:
        return _by_worst_ratio(list(found.values()), request)
    return sorted(found.values(), key=lambda one: (not one.is_single_call, one.seconds))[:LISTED]


def _programs(computation: Computation, request: PlanRequest, memory_format: Format) -> list[Program]:
    dense = request.candidates == "all"
    steps = Steps(computation, request.cost_model(memory_format), dense=dense, most=request.max_elements)
    return [
        lower(
            steps,
            tree,
            style,
            channels_last_inputs=request.channels_last,
            bias=request.bias,
            format_kept=request.format_kept,
        )
        for tree in cheapest_trees(steps, keep=KEPT)
        for style in STYLES
        if style.memory_format == memory_format
    ]


# Batches --------------------------------------------------------------------------------------------------------


def batch_label(request: PlanRequest) -> str | None:
    """The first axis of the first input, if no window, reshape or weight decides its size."""
    nodes = request.network.nodes
    labels = next(n.labels for n in nodes if isinstance(n, NamedTensor) and n.name == request.inputs[0])
    return labels[0] if labels and is_free(request, labels[0]) else None


def is_free(request: PlanRequest, label: str) -> bool:
    """Whether a label occurs on inputs alone (and in the output): its size changes nothing else."""
    nodes = [request.network.nodes[position] for position, _ in carriers(request.network).get(label, [])]
    return bool(nodes) and all(isinstance(node, NamedTensor) and node.name in request.inputs for node in nodes)


def _by_worst_ratio(found: list[Candidate], request: PlanRequest) -> list[Candidate]:
    """Sorted by the largest slowdown over the ranges against the best program for each size (minimax regret)."""
    points: list[dict[str, int]] = [{}]
    for label, (low, high) in request.dynamic.items():
        doubled = [size for n in range(high.bit_length()) if (size := low * 2**n) < high]
        points = [{**point, label: size} for point in points for size in (*doubled, high)]
    table = [[predicted_seconds(one.program, request, point) for point in points] for one in found]
    best = [min(column) for column in zip(*table, strict=True)]
    worst = [max(seconds / least for seconds, least in zip(row, best, strict=True)) for row in table]
    return [found[number] for number in sorted(range(len(found)), key=worst.__getitem__)][:LISTED]


def crossovers(listed: Sequence[Candidate], request: PlanRequest, label: str) -> list[tuple[int, Candidate]]:
    """From which size of a batch on which candidate is predicted to be the fastest, ascending.

    Prices are affine in a batch; between the sizes that are tried, powers of 2, the place is found by bisection.
    """

    def winner(size: int) -> Candidate:
        return min(listed, key=lambda one: predicted_seconds(one.program, request, {label: size}))

    found = [(1, winner(1))]
    for exponent in range(LARGEST_BATCH.bit_length() - 1):
        below, above = 2**exponent, 2 ** (exponent + 1)
        before = found[-1][1]
        if winner(above) is not before:
            while above - below > 1:
                middle = (below + above) // 2
                below, above = (middle, above) if winner(middle) is before else (below, middle)
            found.append((above, winner(above)))
    return found
