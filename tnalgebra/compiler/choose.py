"""The choice among programs: candidates of every search, with the predicted price of all their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import prod
from typing import Literal, TypeAlias

import torch

from ..errors import CompileError
from ..networks import Conv, NamedTensor, Network, all_nodes, resized, tensors_of
from .bases import BY_FOURIER
from .computation import Computation, sort_nodes, variants
from .constants import constants_for
from .cost import FORMATS, CostModel, Format, Workload
from .fourier_steps import may_be_faster
from .lowering import lower
from .operations import (
    ApplyBasis,
    Arrange,
    Convolve,
    Crop,
    Load,
    Pad,
    Rename,
    Toeplitz,
    TransformKernel,
    Unfold,
    shape_in,
)
from .program import STYLES, Program
from .search import cheapest_trees
from .steps import CONVOLUTION, FOURIER, Steps
from .sums import SumPrograms
from .trees import ContractionTree

Candidates: TypeAlias = Literal["all", "factored", "spectral"]
"""Which plans are compared: all; those that never contract all weights into one tensor before an input; or those that
apply every window by Fourier transforms.
"""

MAX_PLAN_ELEMENTS = 2**28
"""Default limit for the number of elements of any tensor that a plan makes: 1 GiB in float32."""

COMPUTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Types of real numbers that torch multiplies and adds on every device."""

COMPLEX = (torch.complex64, torch.complex128)
"""Types of complex numbers that a compiled network, though not a layer, may have."""

KEPT = 4
"""Number of trees that the search keeps for each set of nodes."""

LISTED = 24
"""Number of candidates that a plan keeps."""

FAMILIES_NEAR = 4.0
"""The ratio of two predictions for programs of different families above which it is certain which one is faster."""

LARGEST_BATCH = 4096
"""Largest batch for which a plan looks for a faster candidate."""

_MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


def is_channels_last(memory_format: torch.memory_format) -> bool:
    """Whether a memory format is channels_last, in two or three dimensions.

    Raises:
        CompileError: it is neither contiguous nor channels_last.
    """
    if memory_format not in _MEMORY_FORMATS:
        listed = ", ".join(map(str, _MEMORY_FORMATS))
        raise CompileError(f"memory_format is {memory_format!r}", fix=f"one of {listed}")
    return memory_format != torch.contiguous_format


@dataclass(frozen=True)
class PlanRequest:
    """What a plan is made for; see `compile` for the fields that are not listed here.

    network: with every size that the inputs and the weights determine.
    frozen: whether all that depends on weights alone is already computed.
    channels_last: whether inputs with 4 or 5 axes are in that memory format.
    format_kept: whether the output has the memory format of the inputs, as the output of torch's layers has.
    bases: name of a tensor -> name of the basis whose matrix it is.
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
    bases: Mapping[str, str] = field(default_factory=dict)

    def cost_model(self, memory_format: Format) -> CostModel:
        """The cost model for steps in one memory format."""
        constants = constants_for(self.device, self.dtype, memory_format)
        return CostModel(constants, backward=self.backward, frozen=self.frozen)


@dataclass(frozen=True)
class Candidate:
    """A program with its price.

    seconds: predicted for one call at the nominal sizes.
    measured: the median of the measured seconds, or None if it was not measured.
    """

    computation: Computation
    program: Program
    seconds: float
    measured: float | None = None

    @property
    def works(self) -> list[tuple[Workload, bool]]:
        """The work of every operation, and whether it depends on weights alone."""
        return self.program.nominal_works

    @cached_property
    def is_spectral(self) -> bool:
        """Whether some windows are applied by Fourier transforms."""
        return any(isinstance(operation, TransformKernel) for operation in self.program.operations)

    @cached_property
    def has_transforms(self) -> bool:
        """Whether there are Fourier transforms, of windows or into a basis."""
        bases = (one.basis for one in self.program.operations if isinstance(one, ApplyBasis))
        return self.is_spectral or any(basis in BY_FOURIER for basis in bases)

    @cached_property
    def calls(self) -> int:
        """The number of operations that compute or copy."""
        return sum(work.kind != "view" for work, _ in self.works)

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of all convolutions and matrix products."""
        return sum(work.multiply_adds for work, _ in self.works)

    @cached_property
    def peak_elements(self) -> int:
        """The largest number of elements in memory at one time: inputs, weights and intermediates."""
        operations = self.program.operations
        last_use = {self._root(source): n for n, operation in enumerate(operations) for source in operation.sources}
        last_use[self._root(len(operations) - 1)] = len(operations)
        loads = {n for n, operation in enumerate(operations) if isinstance(operation, Load)}
        made = {root: (self._elements(root), last) for root, last in last_use.items() if root not in loads}
        alive = (
            sum(elements for root, (elements, last) in made.items() if root <= n <= last)
            for n in range(len(operations))
        )
        return sum(map(self._elements, loads)) + max(alive)

    @cached_property
    def kept_elements(self) -> int:
        """The number of elements kept for the backward pass: the operands of convolutions and products."""
        pairs = zip(self.program.operations, self.works, strict=True)
        roots = {self._root(source) for one, (work, _) in pairs if work.multiply_adds for source in one.sources}
        return sum(map(self._elements, roots))

    def _elements(self, number: int) -> int:
        return prod(shape_in(self.program.operations[number].axes, self.program.sizes))

    def _root(self, number: int) -> int:
        """The value whose memory a view shares."""
        operation = self.program.operations[number]
        is_view = isinstance(operation, Rename | Crop) or (isinstance(operation, Arrange) and not operation.copies)
        return self._root(operation.sources[0]) if is_view else number

    @cached_property
    def family(self) -> tuple[object, ...]:
        """What the error of the prediction depends on most: memory format, kinds of the calls, what is contracted."""
        pairs = zip(self.program.operations, self.works, strict=True)
        told = Convolve | Unfold | Toeplitz | TransformKernel | ApplyBasis
        kinds = {type(one) for one, _ in pairs if isinstance(one, told)}
        rebuilds = any(weights and work.multiply_adds for work, weights in self.works)
        return self.program.style, frozenset(kinds), rebuilds

    @property
    def is_single_call(self) -> bool:
        """Whether the program is one call of a function of torch, apart from padding, with at most one weight.

        Without a measurement such a program comes first, unless another is predicted `FAMILIES_NEAR` times as fast.
        """
        weights = [leaf for leaf in self.computation.leaves if leaf.kind == "weight"]
        pads = sum(isinstance(operation, Pad) for operation in self.program.operations)
        return len(weights) < 2 and self.program.style == STYLES[0] and self.calls - pads == 1


def predicted_seconds(program: Program, request: PlanRequest, sizes: Mapping[str, int] | None = None) -> float:
    """The predicted seconds of one call, with the given sizes in place of the nominal ones."""
    model = request.cost_model(program.style.memory_format)
    works = program.works({**program.sizes, **sizes}) if sizes else program.nominal_works
    return sum(model.seconds(work, weights=weights) for work, weights in works)


def candidates_for(request: PlanRequest) -> list[Candidate]:
    """Programs that compute the network, the cheapest first.

    Raises:
        CompileError: every way to compute it makes a tensor of more than `max_elements` elements.
    """
    candidates: dict[str, Candidate] = {}
    # search at the nominal sizes, or at both ends of the ranges
    for end in (0, 1) if request.dynamic else (0,):
        sizes = {label: ends[end] for label, ends in request.dynamic.items()}
        find = _programs_of_product if len(request.network.terms) == 1 else _programs_of_sum
        for computation, program in find(request, sizes):
            seconds = predicted_seconds(program, request)
            one = Candidate(computation, program, seconds)
            if one.is_spectral or request.candidates != "spectral":
                candidates.setdefault(program.text, one)
    if not candidates and request.candidates == "spectral":
        raise CompileError(
            "no plan applies all windows of the network by Fourier transforms",
            network=request.network,
            fix="real numbers, and windows between an input and a tensor with their last label, or candidates='all'",
        )
    if not candidates:
        raise CompileError(
            f"no way to compute the network keeps every tensor within {request.max_elements} elements",
            network=request.network,
            fix="smaller sizes, or a larger max_elements",
        )
    if request.dynamic:
        return _by_worst_ratio(list(candidates.values()), request)
    near = FAMILIES_NEAR * min(one.seconds for one in candidates.values())
    ranked = sorted(candidates.values(), key=lambda one: (not one.is_single_call or one.seconds > near, one.seconds))
    firsts = {one.family: one for one in reversed(ranked)}.values()
    return [one for place, one in enumerate(ranked) if place < LISTED or one in firsts]


def _programs_of_product(request: PlanRequest, sizes: Mapping[str, int]) -> Iterator[tuple[Computation, Program]]:
    """Programs for a product, where some labels have other sizes than the nominal ones."""
    for one in variants(request.network):
        computation = sort_nodes(resized(one, {**one.sizes, **sizes}), request.inputs, bases=request.bases)
        for memory_format in FORMATS:
            for program in _programs(computation, request, memory_format):
                yield computation, program


def _programs_of_sum(request: PlanRequest, sizes: Mapping[str, int]) -> Iterator[tuple[Computation, Program]]:
    """Programs for a sum, where some labels have other sizes than the nominal ones."""
    network = resized(request.network, {**request.network.sizes, **sizes})
    kernels = replace(request, channels_last=False, format_kept=True)

    for memory_format in FORMATS:

        def lower_product(
            computation: Computation,
            *,
            bias: str | None,
            fixed: frozenset[str],
            is_kernel: bool,
            memory_format: Format = memory_format,
        ) -> list[Program]:
            each = replace(kernels if is_kernel else request, bias=bias)
            return _programs(computation, each, memory_format, fixed=fixed)

        found = SumPrograms(
            network,
            request.inputs,
            lower_product,
            partial(predicted_seconds, request=request),
            merges=request.candidates == "all",
            bias=request.bias,
            bases=request.bases,
        )
        for program in found.programs():
            yield found.computation, program


def _programs(
    computation: Computation, request: PlanRequest, memory_format: Format, *, fixed: frozenset[str] = frozenset()
) -> list[Program]:
    lower_tree = partial(
        lower,
        channels_last_inputs=request.channels_last,
        bias=request.bias,
        format_kept=request.format_kept,
        fixed=fixed,
    )
    styles = [style for style in STYLES if style.memory_format == memory_format]
    prices = request.cost_model(memory_format)
    # transforms take real numbers in the order of their axes
    transforms = memory_format == "contiguous" and not request.dtype.is_complex
    is_spectral = request.candidates == "spectral" and any(isinstance(view, Conv) for view in computation.views)
    if is_spectral and not transforms:
        return []
    # a plan for inputs of every size comes before one that keeps the kernel apart, as its windows are dense tensors
    for patterns in (False, True) if computation.views and not is_spectral else (False,):
        for dense in (False, True) if request.candidates == "factored" else (True,):
            make_steps = partial(Steps, computation, prices, dense=dense, most=request.max_elements)
            search = partial(_trees, make_steps, patterns=patterns, transforms=transforms, is_spectral=is_spectral)
            programs = []
            # trees of convolutions alone are searched too, as the price of unfolding is the least certain one
            for unfold in (False, True) if computation.views and not is_spectral else (False,):
                steps, trees = search(unfold=unfold)
                programs += [lower_tree(steps, tree, style) for tree in trees for style in styles]
            if programs:
                return programs
    return []


def _trees(
    make_steps: Callable[..., Steps], *, unfold: bool, patterns: bool, transforms: bool, is_spectral: bool
) -> tuple[Steps, list[ContractionTree]]:
    """The cheapest trees and their steps; `transforms` adds those by Fourier transforms where they may be faster."""
    steps = make_steps(unfold=unfold, ways=FOURIER if is_spectral else CONVOLUTION)
    trees = cheapest_trees(steps, keep=KEPT, patterns=patterns)
    if transforms and not unfold and any(may_be_faster(steps, tree) for tree in trees):
        steps = make_steps(unfold=unfold, ways=(*CONVOLUTION, *FOURIER))
        trees += cheapest_trees(steps, keep=KEPT, patterns=patterns)
    return steps, trees


# Batches --------------------------------------------------------------------------------------------------------


def batch_label(request: PlanRequest) -> str | None:
    """The label of the first axis of the first input, if it occurs on inputs alone; else None."""
    labels = tensors_of(request.network)[request.inputs[0]].labels
    return labels[0] if labels and is_free(request, labels[0]) else None


def is_free(request: PlanRequest, label: str) -> bool:
    """Whether a label occurs only on inputs (and in the output), so that its size can change on its own.

    A label of one term of a sum is not free where another term has the input under another label.
    """
    network = request.network
    nodes = [node for node in all_nodes(network) if label in node.labels]
    names = {node.name for node in nodes}
    if not nodes or not all(isinstance(node, NamedTensor) and node.name in request.inputs for node in nodes):
        return False
    elsewhere = [
        node
        for term in network.terms
        if label not in {one for node in term.nodes for one in node.labels}
        for node in term.nodes
        if isinstance(node, NamedTensor) and node.name in names
    ]
    return not elsewhere


def _by_worst_ratio(candidates: list[Candidate], request: PlanRequest) -> list[Candidate]:
    """Sorted by the largest slowdown over the ranges, relative to the best program for each size (minimax regret).

    They come back at the nominal sizes, whichever ends of the ranges they were found at.
    """
    points: list[dict[str, int]] = [{}]
    for label, (low, high) in request.dynamic.items():
        doubled = [size for n in range(high.bit_length()) if (size := low * 2**n) < high]
        points = [{**point, label: size} for point in points for size in (*doubled, high)]
    table = [[predicted_seconds(one.program, request, point) for point in points] for one in candidates]
    best = [min(column) for column in zip(*table, strict=True)]
    worst = [max(seconds / least for seconds, least in zip(row, best, strict=True)) for row in table]
    nominal = {label: request.network.sizes[label] for label in request.dynamic}
    ranked = [candidates[number] for number in sorted(range(len(candidates)), key=worst.__getitem__)][:LISTED]
    programs = [replace(one.program, sizes={**one.program.sizes, **nominal}) for one in ranked]
    return [
        Candidate(one.computation, program, predicted_seconds(program, request))
        for one, program in zip(ranked, programs, strict=True)
    ]


def crossovers(listed: Sequence[Candidate], request: PlanRequest, label: str) -> list[tuple[int, Candidate]]:
    """Pairs of a size of the batch `label`, ascending, and the candidate that is predicted to be fastest from there on.

    Powers of 2 are compared; between two of them the size is found by bisection, as prices are affine in the batch.
    """

    def winner(size: int) -> Candidate:
        return min(listed, key=lambda one: predicted_seconds(one.program, request, {label: size}))

    changes = [(1, winner(1))]
    for exponent in range(LARGEST_BATCH.bit_length() - 1):
        below, above = 2**exponent, 2 ** (exponent + 1)
        before = changes[-1][1]
        if winner(above) is not before:
            while above - below > 1:
                middle = (below + above) // 2
                below, above = (middle, above) if winner(middle) is before else (below, middle)
            changes.append((above, winner(above)))
    return changes
