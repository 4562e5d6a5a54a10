"""One application of a rule to a network: what it changed, how it reads, and what a file holds of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from operator import index
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .._tables import write_change, write_number
from ..errors import RuleError
from ..fitting import FitReport
from ..networks import Network, count_parameters, tensors_of
from ..tensors import Values
from .options import Options, Place

RuleKind: TypeAlias = Literal["exact", "approximate"]


@dataclass(frozen=True, eq=False)
class Change:
    """What a rule makes of one place.

    after: the whole network after the step.
    definitions: for each new tensor of an exact rule, the network of old tensors whose value it is.
    values: the elements of each new tensor of an approximate rule.
    relative_error: ||left - right|| / ||left|| of the part that was replaced, as the rule claims it; 0 if exact.
    ranks: the rank of each bond that was chosen.
    output_error: sqrt(E||(K - K~) x||^2 / E||K x||^2) where there was a metric; of the wanted output, if it has one.
    report: how the fit went, if there was one.
    pieces: the part before and the part after, as separate networks, where the claimed error is that of a part.
    """

    after: Network
    definitions: Mapping[str, Network] = field(default_factory=dict)
    values: Values = field(default_factory=dict, repr=False)
    relative_error: float = 0.0
    ranks: Mapping[str, int] = field(default_factory=dict)
    output_error: float | None = None
    report: FitReport | None = None
    pieces: tuple[Network, Network] | None = None

    @property
    def errors(self) -> dict[str, float]:
        """The errors that a file records; that of the output only where there was a metric."""
        of_output = {} if self.output_error is None else {"output_error": self.output_error}
        return {"relative_error": self.relative_error, **of_output}


class RuleOfStep(Protocol):
    """What a trace needs of the rule of a step; `Rule` has it. Its `step` takes a `Fit` and gives one."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> RuleKind: ...

    @property
    def equation(self) -> str: ...

    @property
    def fixed(self) -> Mapping[str, str]: ...

    @property
    def spec(self) -> Mapping[str, str]: ...

    def step(self, fit: Any, at: int | Place | None, options: Options) -> Any: ...


@dataclass(frozen=True, repr=False)
class Step:
    """One application of one rule: enough to print it, and to do it again on other values."""

    rule: RuleOfStep
    place: Place
    options: Options
    before: Network
    change: Change

    @property
    def after(self) -> Network:
        return self.change.after

    @property
    def relative_error(self) -> float:
        """||left - right||_F / ||left||_F of the part that was replaced; 0 for an exact rule."""
        return self.change.relative_error

    @property
    def constants(self) -> frozenset[str]:
        """Names of the tensors of the right side that are given, and not fitted."""
        return frozenset((*self.rule.fixed, *self.options.fixed))

    @property
    def ranks(self) -> str:
        """The ranks that were chosen, as a text: "p=8 q=4"."""
        return " ".join(f"{bond}={rank}" for bond, rank in self.change.ranks.items())

    @property
    def constraints(self) -> str:
        """What cores must be, as a text: "U orthonormal, H nonnegative"."""
        return ", ".join(f"{name} {kind}" for name, kind in self.options.constraints.items())

    def summary(self) -> str:
        """The rule and its error, in a few words."""
        error = "exact" if self.rule.kind == "exact" else f"relative error {self.relative_error:.3g}"
        return f"{self.rule.name} ({error})"

    def record(self) -> dict[str, Any]:
        """The step as a row of `Trace.to_pandas`."""
        report = self.change.report
        return {
            "rule": self.rule.name,
            "place": self.place.text(self.before),
            "ranks": dict(self.change.ranks),
            "constraints": dict(self.options.constraints),
            "relative_error": self.relative_error,
            "output_error": self.change.output_error,
            "degeneracy": None if report is None else report.degeneracy,
            "parameters": known_parameters(self.before, ()),
            "parameters_after": known_parameters(self.after, self.constants),
            "network": str(self.after),
        }

    def __repr__(self) -> str:
        return f"<Step {self.summary()}>"

    def __str__(self) -> str:
        error = "exact" if self.rule.kind == "exact" else f"relative error {self.relative_error:.3g}"
        if self.change.output_error is not None:
            error += f", of the output {self.change.output_error:.3g}"
        numbers = (known_parameters(self.before, ()), known_parameters(self.after, self.constants))
        before, after = (write_number(number) or "?" for number in numbers)
        counts = f"parameters {before} -> {after}"
        where = self.place.text(self.before)
        facts = "; ".join(filter(None, [self.ranks, self.constraints, error, counts]))
        return f"{self.rule.name} on {where}\n    {facts}\n    {self.after}"

    def saved(self) -> dict[str, object]:
        """What a file holds of the step, as JSON has it; an infinite error is the text "inf".

        Raises:
            RuleError: the rule was made of functions, which no text holds; an error is NaN.
        """
        if not self.rule.spec:
            raise RuleError(f"the rule {self.rule.name!r} cannot be saved", fix="a rule made by tn.rule")
        if any(math.isnan(error) for error in self.change.errors.values()):
            raise RuleError(f"the step by {self.rule.name!r} cannot be saved", because="its error is NaN")
        settings = self.options.settings
        entry: dict[str, object] = {
            "rule": dict(self.rule.spec),
            "nodes": list(self.place.nodes),
            "labels": list(self.place.labels),
            "ranks": dict(self.change.ranks),
            "sizes": {label: index(size) for label, size in self.options.sizes.items()},
            "bind": dict(self.options.bind),
            "search": {
                "seed": settings.seed,
                "starts": settings.starts,
                "sweeps": settings.sweeps,
                "dtype": str(settings.dtype).removeprefix("torch."),
                "stability": settings.stability,
            },
        }
        if self.options.fixed:
            entry["fixed"] = {
                name: value if isinstance(value, str) else _as_json(value) for name, value in self.options.fixed.items()
            }
        if self.options.constraints:
            entry["constraints"] = dict(self.options.constraints)
        lost = [key for key in ("metric", "start") if getattr(self.options, key) is not None]
        if lost or self.options.lost:
            entry["lost"] = [*self.options.lost, *lost]
        errors = {name: error if math.isfinite(error) else str(error) for name, error in self.change.errors.items()}
        return {**entry, **errors, "after": str(self.after)}


def _as_json(value: Any) -> object:
    """Nested lists of numbers; of complex ones two of them, for the real and the imaginary parts."""
    if value.is_complex() if isinstance(value, Tensor) else np.iscomplexobj(value):
        numbers = torch.as_tensor(value, dtype=torch.complex128)
        return {"real": numbers.real.tolist(), "imaginary": numbers.imag.tolist()}
    return torch.as_tensor(value, dtype=torch.float64).tolist()


def known_parameters(network: Network, constants: Collection[str]) -> int | None:
    """The parameters of a network without constants; None where a size that they need is unknown."""
    known = all(label in network.sizes for node in tensors_of(network).values() for label in node.labels)
    return count_parameters(network, constants) if known else None


STEP_COLUMNS: dict[str, Callable[[Step], str]] = {
    "rule": lambda step: step.rule.name,
    "ranks": lambda step: step.ranks,
    "relative error": lambda step: "exact" if step.rule.kind == "exact" else f"{step.relative_error:.4f}",
    "output error": lambda step: write_number(step.change.output_error, ".4f"),
    "degeneracy": lambda step: write_number(step.change.report.degeneracy if step.change.report else None, ".3g"),
    "parameters": lambda step: write_change(
        known_parameters(step.before, ()), known_parameters(step.after, step.constants)
    ),
}
