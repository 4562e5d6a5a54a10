"""Convert a whole model: patterns say which layers are decomposed and how, a budget may share out the ranks."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ..compiler import Candidates
from ..errors import DataError, LayerError, RankError, WeightError
from ..fitting import ModelBudget, MultiplyAddsBudget, ParameterBudget, Size, TimeBudget, read_size
from ..nn import KernelLayer, elements_by_default
from ..workers import Scheduler, check_scheduler
from .attention import unfolding_attentions
from .budget import group_reasons
from .conversion import Conversion, Fitting, count_parameters
from .example import CALL_ERRORS, Batch, Example, Inputs, inputs_of
from .input_metrics import RIDGE
from .measure_curves import FRACTIONS
from .modules import check_initialised, copy_model, other_kernels
from .new_layers import LayerMaker
from .obstacles import find_obstacles
from .patterns import LAYER_SIZES, Assigned, Patterns, assign
from .report import ConversionReport, Replaced
from .surgery import (
    Site,
    called_modules,
    exchange_layers,
    find_sites,
    restore_layers,
)
from .timing import time_models

_log = logging.getLogger(__name__)

_M = TypeVar("_M", bound=nn.Module)

Batches: TypeAlias = Tensor | Mapping[str, Any] | Iterable[Batch]
"""Batches of a model's inputs, see `inputs_of`; or one batch, which is a tensor or a mapping."""


def convert(
    model: _M,
    patterns: Patterns,
    *,
    size: object = None,
    example: Example | None = None,
    calibration: Batches | None = None,
    held_out: Batches | None = None,
    sequential: bool = False,
    inplace: bool = True,
    allow_larger: bool = False,
    candidates: Candidates = "all",
    tune: bool = True,
    backward: bool = False,
    ridge: float = RIDGE,
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    scheduler: Scheduler | None = None,
    progress: bool = True,
) -> tuple[_M, ConversionReport]:
    """Decompose the kernel layers of a model, each as the first pattern that fits it says.

    A layer that cannot be decomposed, or would not get smaller, stays dense, and the report says why. On any error,
    and when it is interrupted, the model is as it was. What is done to each layer is logged under "tnalgebra".

    Args:
        model: its layers are exchanged; they keep their modes, hooks, dtype, device, and which of them are trained.
        patterns: a glob over names of layers ("layer3.*.conv2", "*") or a class (torch.nn.Conv2d), either of them
            `tn.model.optional` where it need not fit -> what is requested; or a function (name, layer) -> what is
            requested. That is a rewrite (a name, a cut, a rule, notation, or a fit of the layer's weight);
            (rewrite, size); (rewrite, choices of `Rule.apply`, `size` among them); a list of these, of which the one
            with the least error is taken; or None: the layer stays dense.
        size: `ParameterBudget`, of all parameters of the model; `MultiplyAddsBudget`, of all kernel layers'
            multiply-adds, or `TimeBudget`, of the model's measured time, at the example; layers that stay dense count.
            One Lagrange multiplier chooses rewrite and ranks of each layer that has no size of its own. Any other
            size, such as `KeepFraction(0.5)`, is that of each layer that has none. Texts are read too: "time 0.7".
        example: an input of the model: a tensor, a shape, (shape, dtype), or all arguments in a sequence or a mapping
            of these. The model runs on it before, so that plans are made for the real sizes and layers that are never
            called stay dense; and after, to check that it does. Its hooks are called each time.
        calibration: batches of inputs, see `input_metrics`, or one; fits are in the norm of the outputs over them.
        held_out: other inputs, likewise: of several ways to share a budget out, that one is taken with which the
            model's outputs on these diverge least from the original ones (docs/models.md, "Inputs held out").
        sequential: fit the layers in the order they run, each to the output it had (`tn.model.fit_in_order`).
        inplace: False: a copy is converted, and the model stays as it is.
        allow_larger: also convert layers that do not get smaller.
        candidates, tune, backward: of the plans, see `compile`.
        ridge, seed: of the covariances, see `Metric.with_ridge`; of the fits whose choices name none.
        fractions: parts of a kernel's parameters at which its error curve is measured, for a budget.
        scheduler: of `tn.workers.run_tasks`, over which fits are spread; not error curves, and not `sequential` fits.
        progress: show bars, where stderr is a terminal.

    Returns:
        The model (with `inplace`, the same object) and the report.

    Raises:
        LayerError: a pattern that is not optional fits no layer, or every layer it fits is refused; the model is a
            single layer, or does not run on the example before or after the conversion, or on a batch.
        RuleError, RankError: a request or a size cannot be read; a budget cannot be met (the message has the least).
        DataError: calibration data, an example or a budget are missing where they are needed, or data hold no inputs.

    Example:
        >>> model, report = tn.convert(model, {torch.nn.Conv2d: "tucker2"}, size="parameters 0.5")
    """
    whole = None if size is None else read_size(size)
    inputs, others = (_list_inputs(batches, model, example) for batches in (calibration, held_out))
    fitting = Fitting(inputs, others, sequential, ridge, fractions)
    _check_settings(model, whole, example, fitting, scheduler=scheduler)
    target = model if inplace else copy_model(model)
    with torch.inference_mode(False), elements_by_default(), unfolding_attentions(target) as unfolding:
        maker = LayerMaker(find_sites(target), {}, candidates, tune, backward)
        work = Conversion(target, maker.sites, maker, allow_larger, progress, scheduler)
        assigned = assign(target, work.sites, patterns)
        budget = _check_sizes(whole, assigned)
        work.offer(assigned, None if budget is not None else whole, seed)
        trial = example if example is not None or not fitting.inputs else fitting.inputs[0].to(work.device).example
        work.record_calls(trial, of_batch=example is None)
        work.choose_and_fit(fitting, budget, example=example)
        report = _exchange(work, work.build(), assigned, trial, counted=example is not None, budget=budget)
        replaced = [Replaced(*row) for one in unfolding.put_back(all_of_them=False) for row in one.replaced()]
    return target, replace(report, replaced=(*replaced, *report.replaced))


def _exchange(
    work: Conversion,
    new: Mapping[str, list[KernelLayer]],
    assigned: Mapping[str, Assigned],
    example: Example | None,
    *,
    counted: bool,
    budget: ModelBudget | None,
) -> ConversionReport:
    """Put the new layers in place; the old ones come back if the model does not run on the example then."""
    _check_refused(assigned, work)
    dense = copy_model(work.model) if isinstance(budget, TimeBudget) else None
    sites = [member for name in new for member in work.sites[name].members]
    layers = [layer for of_site in new.values() for layer in of_site]
    rows = tuple(work.row(name, assigned[name], new.get(name), counted=counted) for name in work.sites)
    replaced = _list_replaced(sites, layers)
    before = count_parameters(work.model)
    try:
        exchange_layers(sites, layers)
        if example is not None and new:
            _run_converted(work.model, example, sites, layers)
        for row in rows:
            _log.info("%s: %s", row.name, row.done)
        report = ConversionReport(rows, before, count_parameters(work.model), replaced, other_kernels(work.model))
        if dense is None or example is None:
            return report
        seconds, seconds_after = time_models((dense, example), (work.model, example))
        return replace(report, seconds=seconds, seconds_after=seconds_after)
    except BaseException:
        restore_layers(sites)
        raise


def _run_converted(model: nn.Module, example: Example, sites: Sequence[Site], layers: Sequence[KernelLayer]) -> None:
    """Run the converted model on the example, on which the model called all layers when they were dense.

    Raises:
        LayerError: it does not run, or calls a layer only as long as that is dense.
    """
    try:
        called = called_modules(model, example, layers)
    except CALL_ERRORS as error:
        because, name = f"{type(error).__name__}: {error}", _layer_of(error, sites, layers)
        fix = "None for a layer whose weight the model reads itself" if name is None else f"{{{name!r}: None, ...}}"
        fact = "the converted model does not run on the example"
        raise LayerError(fact, at_layer=name, because=because, fix=fix) from error
    missed = {site: layer for site, layer in zip(sites, layers, strict=True) if layer not in called}
    if not missed:
        return
    # where the other layers have changed a route that depends on numbers, the dense layers are not called either
    restore_layers([*missed])
    reached = called_modules(model, example, [site.module for site in missed])
    exchange_layers([*missed], [*missed.values()])
    lost = {site.names[0]: type(layer) for site, layer in missed.items() if site.module in reached}
    if lost:
        name, new = next(iter(lost.items()))
        fact = f"the converted model does not call the layer {name!r} on the example, and the dense model does"
        dense = f"torch.nn.{new.dense_class.__name__}"
        because = f"the model may look for layers of the class {dense}, or call the dense layer from a list"
        classes = f"({dense}, tn.nn.{new.__name__})"
        fix = f"isinstance(module, {classes}) in the model; or {{{name!r}: None, ...}}"
        raise LayerError(fact, also=", ".join([*lost][1:]) or None, because=because, fix=fix)


def _layer_of(error: BaseException, sites: Sequence[Site], layers: Sequence[KernelLayer]) -> str | None:
    """The name of the new layer in which an error was raised, or whose weight was read."""
    names = {id(layer): site.names[0] for site, layer in zip(sites, layers, strict=True)}
    if isinstance(error, WeightError):
        return names.get(id(error.module))
    called = (id(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__))
    return next((names[one] for one in called if one in names), None)


def _list_replaced(sites: Sequence[Site], layers: Sequence[KernelLayer]) -> tuple[Replaced, ...]:
    """Old and new parameters of exchanged layers; those of an attention's inputs are in `UnfoldedAttention`."""
    replaced: list[Replaced] = []
    for site, layer in zip(sites, layers, strict=True):
        if all(attention.out_proj is site.module for attention in site.attentions):
            replaced.append(Replaced(site.names[0], site.module.get_parameter("weight"), layer.cores()))
            if layer.bias is not None:
                replaced.append(Replaced(site.names[0], layer.bias, {"bias": layer.bias}))
    return tuple(replaced)


def _list_inputs(batches: Batches | None, model: nn.Module, example: Example | None) -> list[Inputs] | None:
    several = [batches] if isinstance(batches, Tensor | Mapping) else batches
    return None if several is None else list(inputs_of(several, model, example))


# Checks -----------------------------------------------------------------------------------------------------


def _check_settings(
    model: nn.Module, size: Size | None, example: object, fitting: Fitting, *, scheduler: Scheduler | None
) -> None:
    check_scheduler(scheduler)
    if isinstance(size, MultiplyAddsBudget | TimeBudget) and example is None:
        fact = "time is measured" if isinstance(size, TimeBudget) else "multiply-adds are counted"
        raise DataError(f"{fact} at an example input", fix="example=x, or its shape")
    if fitting.sequential and fitting.inputs is None:
        fact = "sequential=True fits each layer to its original outputs, which needs inputs"
        raise DataError(fact, fix="calibration=[batch, ...]")
    if fitting.held_out is not None and not isinstance(size, ModelBudget):
        fact = "held_out= decides how a budget of the whole model is shared out, and the size is not one"
        raise DataError(fact, fix="size='parameters 0.5'")
    check_initialised(model)


def _check_sizes(size: Size | None, assigned: Mapping[str, Assigned]) -> ModelBudget | None:
    """The budget of the whole model, if the size is one. Raises RankError if a layer has a budget as well."""
    budget = size if isinstance(size, ModelBudget) else None
    for name, one in assigned.items():
        for offer in one.offers or ():
            if budget is not None and isinstance(offer.size, ParameterBudget):
                raise RankError(
                    "a budget is given for the model and for a layer",
                    model=budget,
                    layer=f"{name!r}, by {one.pattern!r}: {offer.size}",
                    fix=f"one of the two; or for the layer {LAYER_SIZES.partition(' or ')[0]}",
                )
    return budget


def _check_refused(assigned: Mapping[str, Assigned], work: Conversion) -> None:
    """A pattern that says what cannot be done to any of its layers is a mistake, not a report."""
    followers: dict[str, list[str]] = {}
    for name, one in assigned.items():
        if one.offers is not None and not one.optional:
            followers.setdefault(one.pattern, []).append(name)
    for pattern, names in followers.items():
        if all(name in work.refused for name in names):
            fact = f"layer {names[0]!r} cannot be decomposed"
            if len(names) > 1:
                fact = f"none of the {len(names)} layers of {pattern!r} can be decomposed"
            reasons = {name: work.reasons[name] for name in names}
            alike = len({*reasons.values()}) == 1
            because = reasons[names[0]] if alike else group_reasons(reasons, most=3)
            stuck = find_obstacles(work.model, work.sites)
            tried = any(name not in stuck and work.calls.get(name, True) for name in names)
            fix = "another rewrite, or None" if tried else "None for what stays dense"
            raise LayerError(fact, because=because, fix=None if "fix:" in because else fix)
