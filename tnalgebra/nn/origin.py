"""Where the numbers of a decomposed layer come from."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..decompositions import read_trace
from ..errors import LayerError, RuleError, ValuesError
from ..networks import all_nodes
from ..rewriting import Fit, Trace, metric_in
from ..tensors import relative, value_of


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a layer's numbers come from, as it was when the layer was made; None where nothing was fitted.

    Its trace is what a file can hold: rules, places and ranks, without metrics and values. The errors are those of the
    cores whose check sum is `measured`.
    """

    trace: Trace | None = None
    relative_error: float | None = None
    output_error: float | None = None
    measured: int | None = None

    def is_of(self, cores: Mapping[str, Tensor]) -> bool:
        """Whether these cores are the numbers whose errors were measured."""
        return self.measured is not None and self.measured == check_sum(cores)

    def __deepcopy__(self, memo: dict[int, object]) -> Origin:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            text = None if self.trace is None else self.trace.to_json()
        except RuleError:  # a rule made of functions
            text = None
        return _read_origin, (text, self.relative_error, self.output_error, self.measured)


def _read_origin(text: str | None, *measured: Any) -> Origin:
    return Origin(None if text is None else read_trace(text), *measured)


def check_sum(cores: Mapping[str, Tensor]) -> int | None:
    """CRC-32 of the numbers of the cores: the same in every type that holds them exactly. None without elements."""
    total = 0
    for name, core in sorted(cores.items()):
        plain = type(core) in (Tensor, torch.nn.Parameter)  # not a part of one on each of several devices
        if core.is_meta or not plain or not core.is_floating_point():
            return None
        with torch.no_grad():
            flat = core.detach().reshape(-1)
            short = flat.float()
            exact = short if torch.equal(short.to(flat.dtype), flat) else flat.double()
        total = zlib.crc32(exact.cpu().numpy().data, zlib.crc32(f"{name} {list(core.shape)}".encode(), total))
    return total


def in_type(fit: Fit, dtype: torch.dtype) -> Fit:
    """The same fit with values of the type in which a layer holds them, and the errors of these numbers."""
    if all(value.dtype == dtype for value in fit.values.values()):
        return fit
    name = next((name for name, value in fit.values.items() if value.is_complex()), None)
    if name is not None:
        raise LayerError(
            f"the tensor {name!r} of the fit is complex, and a layer of {dtype} is real", fix="real values"
        )
    values = {name: value.to(dtype) for name, value in fit.values.items()}
    held = replace(fit, values=values, _start=fit.start_values)
    steps = held.trace.steps
    if not steps or any(step.rule.kind != "exact" for step in steps[:-1]):
        return held
    *earlier, last = steps
    change, metric = replace(last.change, relative_error=held.relative_error), last.options.metric
    if metric is not None:
        output, before = fit.network.output, held.start_values
        metric = metric_in(metric, {label: label for label in output}, output)
        kernel = value_of(fit.trace.start, before, dtype=torch.float64)
        dense = value_of(held.network, held.values, dtype=torch.float64)
        change = replace(change, output_error=metric.output_error(dense, output, kernel=kernel))
    if change.report is not None:
        report = replace(change.report, relative_error=change.relative_error, output_error=change.output_error)
        change = replace(change, report=report)
    return replace(held, trace=Trace(held.trace.start, (*earlier, replace(last, change=change))))


def check_fit_of(fit: Fit, weight: Tensor) -> None:
    """Check that a fit was made from this weight, up to rounding, if the weight has elements.

    Raises:
        ValuesError: it was made from a tensor of another shape.
        LayerError: it was made from another tensor.
    """
    start, fix = fit.start_values, "a fit of this weight, or its rule"
    if weight.is_meta:
        return
    before, now = value_of(fit.trace.start, start, dtype=torch.float64), weight.detach().double()
    if before.shape != now.shape:
        raise ValuesError(
            f"the fit is one of a tensor of shape {tuple(before.shape)}", weight=tuple(now.shape), fix=fix
        )
    away = relative(before.to(now.device) - now, now)
    if not away <= 4 * max(torch.finfo(each.dtype).eps for each in (weight, *start.values())):
        raise LayerError("the fit is one of another weight", distance=f"{away:.3g} of this weight's norm", fix=fix)


def origin_of_fit(fit: Fit) -> Origin:
    """The origin of a layer that is made from a fit of its weight."""
    steps = fit.trace.steps
    whole = len(steps) == 1 and steps[0].change.pieces is not None and len([*all_nodes(fit.trace.start)]) == 1
    error = steps[0].relative_error if whole else fit.relative_error
    light = []
    for step in steps:
        held = {"metric": step.options.metric, "start": step.options.start}
        lost = dict.fromkeys((*step.options.lost, *(name for name, value in held.items() if value is not None)))
        options = replace(step.options, metric=None, start=None, lost=tuple(lost))
        light.append(replace(step, options=options, change=replace(step.change, values={})))
    return Origin(Trace(fit.trace.start, tuple(light)), error, fit.output_error, check_sum(fit.values))
