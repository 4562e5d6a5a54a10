"""What was done to a network: the trace of all steps, and the fit that they led to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from .._files import write_text
from .._tables import Table, Tabular, shorten, tabulate, write_number
from ..errors import RuleError, ValuesError
from ..fitting import FitReport
from ..networks import Network, count_parameters, kernel_multiply_adds, resized, tensors_of
from ..tensors import (
    Values,
    as_tensor,
    bind_values,
    check_mapping,
    common_dtype,
    evaluate,
    in_precision,
    is_finite,
    magnitude,
    relative,
    value_of,
    values_for,
)
from .options import Choices, Options, Place
from .step import STEP_COLUMNS, Change, RuleOfStep, Step, known_parameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXACT_TO = 1e-12
"""What float64 rounding may change, relative to the network's `magnitude`."""


@dataclass(frozen=True, repr=False)
class Trace(Tabular):
    """The steps that led from one network to another. `print(trace)` shows each with its place and its network."""

    start: Network
    steps: tuple[Step, ...]

    @property
    def network(self) -> Network:
        return self.steps[-1].after if self.steps else self.start

    def _summary(self) -> str:
        return f"by {shorten(', '.join(step.summary() for step in self.steps) or 'no steps')}"

    def _table(self) -> Table:
        columns = {**STEP_COLUMNS, "network": lambda step: str(step.after)}
        return tabulate(self.steps, columns, left=("ranks", "network"), above=[f"start: {self.start}"])

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each step.

        Keys: rule, place, ranks, constraints, relative_error (of the part that was replaced), output_error, degeneracy,
        parameters, parameters_after, network.
        """
        return [step.record() for step in self.steps]

    def __str__(self) -> str:
        lines = [f"start\n    {self.start}", *(f"{number}. {step}" for number, step in enumerate(self.steps, 1))]
        return "\n".join(lines)

    def replay(self, values: Mapping[str, Any]) -> Fit:
        """Do the same steps on other values of the start, at the same places and ranks."""
        fit = start_fit(self.start, values)
        for step in self.steps:
            fit = fit.again(step)
        return fit

    def check(self, values: Mapping[str, Any]) -> None:
        """Replay on these values, evaluating before and after every step.

        The errors that are compared are those that the steps claim for these values; an error that a loaded trace
        records belongs to the values it was made with.

        Raises:
            RuleError: a step breaks its promise; the first one is named, with what it promised and what is true.
        """
        check_mapping(values)
        fit = start_fit(
            self.start, {name: in_precision(as_tensor(value), torch.float64) for name, value in values.items()}
        )
        for number, step in enumerate(self.steps, 1):
            following = fit.again(step)
            claimed, true = step.after, following.network
            same = resized(claimed, {}) == resized(true, {})
            if not same or not claimed.sizes.items() <= true.sizes.items():  # a trace without values knows fewer sizes
                fact = f"step {number}, {step.rule.name}, does not lead where the trace says"
                raise RuleError(fact, trace=claimed, true=true)
            check_step(following.trace.steps[-1], fit.values, following.values, number=number)
            fit = following

    def save(self, path: str | Path) -> None:
        """Write the trace as JSON: networks and rules as text, no values. `load_trace` reads it."""
        write_text(path, self.to_json() + "\n")

    def to_json(self) -> str:
        """What `save` writes. Raises RuleError where a step cannot be saved, see `Step.saved`."""
        steps = [step.saved() for step in self.steps]
        return json.dumps({"start": str(self.start), "steps": steps}, indent=2, allow_nan=False)


def check_step(step: Step, before: Values, after: Values, *, number: int = 1) -> None:
    """Evaluate both sides of a step and compare with its promise: the same value, or the error it claims."""
    left, right = step.change.pieces or (step.before, step.after)
    if left.output != right.output:
        raise RuleError(f"step {number}, {step.rule.name}, changes the open labels", before=left, after=right)
    old, scale = evaluate(left, values_for(left, before)), magnitude(left, values_for(left, before))
    difference = evaluate(right, values_for(right, after)) - old
    where = step.place.text(step.before)
    if step.rule.kind == "exact":
        worst = float((difference.abs() - EXACT_TO * scale).max())
        if worst > 0:
            raise RuleError(
                f"step {number}, {step.rule.name}, is said to be exact and changes the value by {worst:.3g}",
                where=where,
                before=left,
                after=right,
            )
        return
    true = relative(difference, old)
    if abs(true - step.relative_error) > 1e-9 + 1e-6 * true:
        raise RuleError(
            f"step {number}, {step.rule.name}, claims a relative error of {step.relative_error:.6g}",
            where=where,
            true=f"{true:.6g}",
        )


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Tabular):
    """A network with values, and the trace that led to it: the result of every rewrite.

    Attributes:
        network: the network after the last step.
        values: the elements of the tensors that have values, by name; a tensor has one axis for each of its labels.
        trace: the steps, from the network at the start to this one.

    Example:
        >>> fit = tn.cut("out kh | in kw").apply(conv.weight, "keep 0.5")
        >>> fit.network, fit.relative_error, fit.parameters
    """

    network: Network
    values: dict[str, Tensor]
    trace: Trace
    _start: Values | None = field(default=None, repr=False)

    def _summary(self) -> str:
        steps = ", ".join(step.summary() for step in self.trace.steps) or "no steps"
        count = write_number(known_parameters(self.network, self.constants))
        facts = [f"{count} parameters"] if count else []
        facts += [] if self.degeneracy is None else [f"degeneracy {self.degeneracy:.3g}"]
        return ", ".join([f"{shorten(str(self.network))} by {shorten(steps)}", *facts])

    def _table(self) -> Table:
        below = [f"fit: {self.report}"] if self.report else []
        if sum(step.rule.kind == "approximate" for step in self.trace.steps) > 1:
            below.append("Each error is of the part that the step replaced; fit.relative_error measures the whole.")
        return tabulate(self.trace.steps, STEP_COLUMNS, left=("ranks",), above=[str(self.network), ""], below=below)

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each step of the trace, see `Trace.records`."""
        return self.trace.records()

    @property
    def constants(self) -> frozenset[str]:
        """Names of the tensors that are given, and not fitted."""
        return frozenset(name for step in self.trace.steps for name in step.constants)

    @property
    def parameters(self) -> int:
        """How many numbers the tensors have without constants; one that occurs several times counts once."""
        return count_parameters(self.network, self.constants)

    @property
    def ranks(self) -> dict[str, int]:
        """The size of each bond that the last fit made, such as a budget chose; `Rule.apply` takes them as its size."""
        ranks = (step.change.ranks for step in reversed(self.trace.steps) if step.change.ranks)
        return dict(next(ranks, {}))

    def multiply_adds(self, positions: Sequence[int] = ()) -> int:
        """Count the multiply-adds of a convolution with this kernel, for one input.

        The contractions are in the order that needs the fewest. The input counts as large as the output (stride 1,
        padding "same"); a layer's own count, at its own stride, is in its plan.

        Args:
            positions: sizes of the output, such as (28, 28); () for a linear layer.

        Raises:
            NetworkError: the kernel does not have two labels of channels and one for each axis of `positions`.

        Example:
            >>> tn.cut("out | in kh kw").apply(conv.weight, 16).multiply_adds((28, 28))
        """
        return kernel_multiply_adds(self.network, positions)

    @property
    def degeneracy(self) -> float | None:
        """The norm of the components over the norm of the kernel, of the last fit; None where nothing can cancel."""
        return None if self.report is None else self.report.degeneracy

    @cached_property
    def relative_error(self) -> float:
        """||N0 - N||_F / ||N0||_F, where N0 is the first network and N this one, measured in float64."""
        before = value_of(self.trace.start, self.start_values, dtype=torch.float64)
        return relative(value_of(self.network, self.values, dtype=torch.float64) - before, before)

    @property
    def start_values(self) -> Values:
        """The values of the network before the first step."""
        return self.values if self._start is None else self._start

    def dense(self) -> Tensor:
        """Contract the network to one tensor, whose axes are the open labels.

        It contracts in float64, so that cores which cancel lose no digits; the result has the type of the values.
        """
        dense = value_of(self.network, self.values, dtype=torch.float64)
        return dense.to(common_dtype(self.values.values()))

    def draw(self, path: str | Path | None = None) -> Figure:
        """Draw the network; with `path`, write the figure there as .svg, .png or .pdf."""
        return self.network.draw(path)

    def _repr_html_(self) -> str:
        """The drawing of the network, and the table below it."""
        drawing = self.network._repr_svg_()
        return drawing[drawing.index("<svg") :] + super()._repr_html_()

    @property
    def output_error(self) -> float | None:
        """sqrt(E||(K - K~) x||^2 / E||K x||^2) of the last step, over the layer's inputs; None without a metric."""
        return self.trace.steps[-1].change.output_error if self.trace.steps else None

    @property
    def report(self) -> FitReport | None:
        """How the last fit of the trace went; None where nothing was fitted."""
        return next((step.change.report for step in reversed(self.trace.steps) if step.change.report), None)

    def then(self, rule: RuleOfStep, size: object = None, **choices: Unpack[Choices]) -> Fit:
        """Apply one more rule; the arguments are those of `Rule.apply`. Raises RuleError if it is not a rule."""
        if not hasattr(rule, "step"):
            raise RuleError(f"{rule!r} is not a rule", fix="tn.rule('K[o i] => ...'), tn.cut('o | i'), ...")
        fit: Fit = rule.step(self, choices.get("at"), Options.of(size, choices))
        return fit

    def again(self, step: Step) -> Fit:
        """Repeat a step on these values, at the same place and with the same ranks.

        Raises:
            RuleError: the step used a metric or a start, which a saved trace does not hold.
        """
        if step.options.lost:
            raise RuleError(
                f"the step {step.rule.name!r} was made with a {' and a '.join(step.options.lost)}",
                because="a saved trace does not hold it",
                fix="apply the rule again",
            )
        fit: Fit = step.rule.step(self, step.place, replace(step.options, size=step.change.ranks))
        return fit

    def after(self, rule: RuleOfStep, place: Place, options: Options, change: Change) -> Fit:
        """Add a step to this fit. The open labels and their order stay the same.

        Exact rules need no values: a new tensor is computed where all tensors of its definition have values.
        """
        if change.after.output != self.network.output:
            fact = f"the rule {rule.name!r} changes the open labels"
            raise RuleError(fact, before=self.network, after=change.after)
        for name, value in change.values.items():
            if not is_finite(value):
                fact = f"numbers of the new tensor {name!r} are beyond the range of {value.dtype}"
                raise ValuesError(fact, rule=rule.name, fix="values of a wider type, such as tensor.float()")
        new = {**self.values, **change.values}
        for name, definition in change.definitions.items():
            if all(part in self.values for part in tensors_of(definition)):
                new[name] = value_of(definition, self.values)
        kept = tensors_of(change.after)
        step = Step(rule, Place(place.nodes, place.labels), options, self.network, change)
        trace = Trace(self.trace.start, (*self.trace.steps, step))
        values = {name: value for name, value in new.items() if name in kept}
        return Fit(change.after, values, trace, self.start_values)


def start_fit(network: Network, values: Mapping[str, Any]) -> Fit:
    """Make the fit of a network before the first step. Raises ValuesError where the values do not fit it."""
    network, tensors = bind_values(network, values)
    return Fit(network, tensors, Trace(network, ()))
