"""`Plan`: how a network is computed, step by step, with counts and prices, and why this way won; printed and drawn."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

from .._tables import Table, Tabular, plural, shorten, tabulate, write_number
from ..networks import resized
from . import operations as ops
from .choose import Candidate, PlanRequest, batch_label, crossovers
from .operations import Axes, shape_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 4
"""Number of other candidates that a printed plan lists."""


@dataclass(frozen=True)
class PlanStep:
    """One call of the emitted code.

    text: what the step does, with the labels of its result, one word for each axis.
    shape: the shape of the result at the nominal sizes.
    multiply_adds: the number of multiply-adds of a convolution or a matrix product, else 0.
    elements: the number of elements that are read and written.
    seconds: the predicted time, forward or forward and backward.
    weights: whether the step depends on weights alone.
    """

    text: str
    shape: tuple[int, ...]
    multiply_adds: int
    elements: int
    seconds: float
    weights: bool


@dataclass(frozen=True, repr=False)
class Plan(Tabular):
    """How a network is computed. `print(plan)` shows its steps, what they cost, and why this plan was chosen.

        plan = tn.compile("X[n i] W[o i]", inputs={"X": (16, 64)}, values={"W": weight}).plan
        plan.multiply_adds, plan.seconds, plan.steps[0].text

    request: what the plan is made for.
    candidates: the best programs, the one that is used first.
    """

    request: PlanRequest
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        """The candidate that is used: the first one."""
        return self.candidates[0]

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of all convolutions and matrix products of one call: half of torch's count of flops.

        A frozen plan does not count steps that depend on weights alone, as they are done beforehand.
        """
        return sum(step.multiply_adds for step in self.steps if not (step.weights and self.request.frozen))

    @property
    def peak_elements(self) -> int:
        """The largest number of elements in memory at one time of a forward pass: inputs, weights, intermediates."""
        return self.chosen.peak_elements

    @property
    def kept_elements(self) -> int:
        """The number of elements that are kept for the backward pass."""
        return self.chosen.kept_elements

    @property
    def seconds(self) -> float:
        """The predicted time of one call at the nominal sizes."""
        return self.chosen.seconds

    @cached_property
    def steps(self) -> tuple[PlanStep, ...]:
        """The calls of the code in order, without tensors that are only loaded or relabelled."""
        program = self.chosen.program
        axes = [operation.axes for operation in program.operations]
        model = self.request.cost_model(program.style.memory_format)
        return tuple(
            PlanStep(
                _text(operation, axes),
                shape_in(operation.axes, program.sizes),
                work.multiply_adds,
                work.read + work.written,
                model.seconds(work, weights=weights),
                weights,
            )
            for operation, (work, weights) in zip(program.operations, self.chosen.works, strict=True)
            if not isinstance(operation, ops.Load | ops.Rename)
        )

    def crossovers(self) -> list[tuple[int, Candidate]]:
        """Pairs of a size of the batch and the candidate that is predicted to be fastest from there on."""
        label = batch_label(self.request)
        return [] if label is None else crossovers(self.candidates, self.request, label)

    def draw(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the contraction tree; with `path`, write the figure there as .svg, .png or .pdf."""
        from .plan_drawing import draw_plan

        return draw_plan(self.chosen, frozen=self.request.frozen, path=path)

    def _summary(self) -> str:
        network = shorten(str(resized(self.request.network, {})))
        cost = f"{self.multiply_adds:,} multiply-adds, {_time(self.seconds)} predicted"
        return f"of {network}: {plural(len(self.steps), 'step')}, {cost}"

    def _table(self) -> Table:
        columns: dict[str, Callable[[PlanStep], str]] = {
            "step": lambda step: step.text,
            "shape": lambda step: " ".join(map(str, step.shape)) or "scalar",
            "multiply-adds": lambda step: write_number(step.multiply_adds),
            "elements": lambda step: write_number(step.elements),
            "predicted": lambda step: "before" if step.weights and self.request.frozen else _time(step.seconds),
        }
        above, below = [*self._head(), ""], ["", *self._why()]
        return tabulate(self.steps, columns, left=("shape",), above=above, below=below)

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each step, with the fields of `PlanStep`: text, shape, multiply_adds, elements, ..."""
        return [dict(vars(step)) for step in self.steps]

    def _head(self) -> list[str]:
        request, chosen = self.request, self.chosen
        what = ["forward and backward" if request.backward else "forward"]
        what += ["weights contracted before" if request.frozen else ""]
        what += ["factored: never one dense kernel" if request.candidates == "factored" else ""]
        measured = "" if chosen.measured is None else f", measured {_time(chosen.measured)}"
        sizes = " ".join(f"{label}={size}" for label, size in request.network.sizes.items())
        return [
            f"plan of {resized(request.network, {})}",
            f"  sizes:         {sizes}",
            f"  for:           {', '.join(word for word in what if word)}; {request.dtype} on {request.device}",
            f"  memory format: {chosen.program.style}",
            f"  multiply-adds: {self.multiply_adds:,}",
            f"  elements:      {self.peak_elements:,} at the peak; {self.kept_elements:,} kept for backward",
            f"  predicted:     {_time(self.seconds)}{measured}",
        ]

    def _why(self) -> list[str]:
        chosen, rivals = self.chosen, self.candidates[1 : _SHOWN + 1]
        if not rivals:
            return ["why: there is no other way"]
        how = "measured" if chosen.measured is not None else "predicted"
        if chosen.measured is None and chosen.is_single_call:
            how = "one call of torch's, on tensors as they come; predicted"
        if self.request.dynamic:
            ranges = ", ".join(f"{label} from {a} to {b}" for label, (a, b) in self.request.dynamic.items())
            how = f"the smallest slowdown at worst, for {ranges}"
        lines = [f"why: {how}; against"]
        for rival in rivals:
            seconds, base = rival.seconds, chosen.seconds
            if rival.measured is not None and chosen.measured is not None:
                seconds, base = rival.measured, chosen.measured
            ratio = seconds / base if base else 1.0
            line = f"{_contractions(rival)} ({rival.program.style})"
            if all(not other.endswith(line) for other in lines):
                lines.append(f"  {ratio:5.2f} x  {line}")
        return [*lines, *self._batches()]

    def _batches(self) -> list[str]:
        label = batch_label(self.request)
        return [
            f"  from {label}={count} on, predicted to be faster: {_contractions(one)} ({one.program.style})"
            for count, one in self.crossovers()
            if count > 1 and one is not self.chosen
        ]


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _word(axes: Axes) -> str:
    """The axes of a value, one word for each; a star joins labels on one axis, and 1 is an axis of one element."""
    words = (re.sub(r"@[^#~]*", "", "*".join(axis)) for axis in axes)  # of transforms, without what sets them apart
    return " ".join(word or "1" for word in words)


def _text(operation: ops.Operation, values: Sequence[Axes]) -> str:
    """What an operation does; `values` are the axes of every value of the program."""
    taken = [f"[{_word(values[source])}]" for source in operation.sources]
    return _TEXTS[type(operation)](operation, taken, f"[{_word(operation.axes)}]")


def _convolution(operation: ops.Convolve, taken: Sequence[str], made: str) -> str:
    kind = "transposed convolution" if operation.transposed else "convolution"
    if not any(operation.window):
        kind = "1x1 convolution"
    if operation.groups:
        kind = f"depthwise {kind}" if operation.is_depthwise else f"grouped {kind}"
    return f"{kind} of {taken[0]} with {taken[1]} -> {made}"


def _padding(operation: ops.Pad, taken: Sequence[str], _: str) -> str:
    ends = ", ".join(f"{low}:{high}" for low, high in operation.pads)
    return f"{operation.mode} padding of {taken[0]} by {ends}"


def _points(lengths: Sequence[int]) -> str:
    return " x ".join(map(str, lengths)) + " points"


def _filter(operation: ops.Filter, taken: Sequence[str], made: str) -> str:
    points = _points([one.length for one in operation.points])
    return f"filter of {taken[0]} by {taken[1]}, Fourier transforms of {points} -> {made}"


def _scale(operation: ops.Scale, _: Sequence[str], made: str) -> str:
    sized = "".join(f" {'*' if power > 0 else '/'} size of {label}" for label, power in operation.sized)
    return f"{made} times {operation.factor:g}{sized}"


_TEXTS: dict[type[ops.Operation], Callable[[Any, Sequence[str], str], str]] = {
    ops.Arrange: lambda one, taken, made: f"{'copy' if one.copies else 'view'} of {taken[0]} as {made}",
    ops.ChannelsLast: lambda _, taken, made: f"channels_last copy of {made}",
    ops.Repeat: lambda _, taken, made: f"{taken[0]} repeated as {made}",
    ops.SumAxes: lambda _, taken, made: f"sum of {taken[0]} -> {made}",
    ops.Diagonal: lambda _, taken, made: f"diagonal of {taken[0]} -> {made}",
    ops.Multiply: lambda _, taken, made: f"multiply {taken[0]} by {taken[1]} -> {made}",
    ops.Matmul: lambda one, taken, made: f"product of {taken[0]} and {taken[1]} over {_word((one.summed,))} -> {made}",
    ops.Convolve: _convolution,
    ops.ApplyBasis: lambda one, taken, made: f"{one.basis} transform of {taken[0]} -> {made}",
    ops.Pad: _padding,
    ops.Crop: lambda _, taken, made: f"part of {taken[0]} as {made}",
    ops.Unfold: lambda _, taken, made: f"windows of {taken[0]} -> {made}",
    ops.Toeplitz: lambda _, taken, made: f"Toeplitz matrices of {taken[0]} -> {made}",
    ops.Transform: lambda one, taken, made: (
        f"Fourier transforms of {taken[0]}, {_points([n.length for n in one.points])} -> {made}"
    ),
    ops.TransformKernel: lambda one, taken, made: f"Fourier transforms of {taken[0]}, {_points(one.lengths)} -> {made}",
    ops.Filter: _filter,
    ops.Inverse: lambda one, taken, made: f"inverse Fourier transforms of {taken[0]} -> {made}",
    ops.Pool: lambda _, taken, made: f"means of windows of {taken[0]} -> {made}",
    ops.Add: lambda _, taken, made: f"{taken[1]} added to {taken[0]}",
    ops.Plus: lambda _, taken, made: f"sum of {taken[0]} and {taken[1]} -> {made}",
    ops.Concatenate: lambda _, taken, made: f"{', '.join(taken)} side by side -> {made}",
    ops.Scale: _scale,
}
"""The description of each operation, from the operation, its operands and its result."""


def _contractions(candidate: Candidate) -> str:
    """A candidate in one line: its convolutions and products in order."""
    words = []
    for operation in candidate.program.operations:
        if isinstance(operation, ops.Inverse | ops.Filter):
            words.append(f"transform [{_word(operation.axes)}]")
        elif isinstance(operation, ops.Convolve | ops.Matmul) and not ops.is_complex(operation.axes):
            kind = "convolve" if isinstance(operation, ops.Convolve) else "product"
            words.append(f"{kind} [{_word(operation.axes)}]")
    return ", ".join(words) or "no contraction"
