"""Convert a whole model: patterns say which layers are decomposed and how, a budget may share out the ranks."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from . import surgery
from .calibration import RIDGE, fit_in_order, input_metrics
from .compiler import Candidates
from .compression import FRACTIONS
from .conversion_budget import ModelBudget
from .conversion_mapping import Assigned, Patterns, assign
from .conversion_report import Replaced, Report
from .conversion_work import Work
from .errors import DataError, LayerError, RankError, explain
from .images import Images
from .ranks import MultiplyAddsBudget, ParameterBudget
from .surgery import Example

M = TypeVar("M", bound=nn.Module)


def convert(
    model: M,
    patterns: Patterns,
    *,
    budget: ModelBudget | None = None,
    example: Example | None = None,
    calibration: Iterable[Tensor | Sequence[Tensor]] | None = None,
    sequential: bool = False,
    inplace: bool = True,
    allow_larger: bool = False,
    candidates: Candidates = "all",
    tune: bool = False,
    backward: bool = False,
    ridge: float = RIDGE,
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
) -> tuple[M, Report]:
    """Decompose the kernel layers of a model, each as the first pattern that fits it says.

    A layer that cannot be decomposed, or would not get smaller, stays dense, and the report says why. On any error
    the model is as it was.

    Args:
        model: its modules are exchanged; they keep their modes, hooks, dtype, device, and which of them are trained.
        patterns: a glob over names of layers ("layer3.*.conv2", "*") or a class (torch.nn.Conv2d) -> what is wished;
            or a function (name, layer) -> what is wished. That is a rewrite (a rule, its name, a cut, notation);
            (rewrite, ranks); (rewrite, choices of `Rule.apply`, `ranks` among them); a list of these, of which
            the one with the least error is taken; or None: the layer stays dense.
        budget: of the whole model, what is not touched included: one Lagrange multiplier over all layers chooses
            rewrite and ranks of each layer whose ranks are not given. `MultiplyAddsBudget` counts the kernel layers,
            at the example.
        example: an input of the model, its shape, or all its arguments. The model runs on it before, so that plans
            are made for the real sizes and layers that are never called stay dense; and after, to see that it does.
            Hooks that it has run along.
        calibration: batches of inputs; the fits are in the norm of the layer's outputs over them.
        sequential: fit the layers in the order they run, each to the original output from the inputs that the layers
            before leave (`fit_in_order`).
        inplace: False: a copy is converted, the model stays.
        allow_larger: also convert layers that get no smaller.
        candidates, tune, backward: of the plans, see `compile`.
        ridge: of the covariances, see `Metric.with_ridge`.
        seed: of the fits whose choices name none.
        fractions: parts of a kernel's parameters at which its curves are measured, for `budget`.

    Returns:
        The model (with `inplace`, the same object) and the report.

    Raises:
        LayerError: a pattern fits no layer, or every layer it fits is refused; the model is a single layer, does not
            run on the example, or does not run once it is converted.
        RuleError: no rule of that name, a wish that is none.
        RankError: the budget cannot be met (it says the least that can); ranks that are none; a budget for the model
            and another for a layer.
        DataError: `sequential` without calibration, a budget of multiply-adds without an example, or calibration
            data that are none.
    """
    _check_settings(budget, example, calibration, sequential=sequential)
    _check_values(model)
    target = model if inplace else copy.deepcopy(model)
    work = Work(target, surgery.sites(target), candidates, tune, backward, allow_larger)
    assigned = assign(target, work.sites, patterns)
    _check_budgets(budget, assigned)
    work.offer(assigned, seed)
    batches = None if calibration is None else _batches(calibration)
    seen = example if example is not None or batches is None else _first(batches).to(work.device)
    if seen is not None:
        work.look(seen)
    metrics = None
    if batches is not None and work.offered and (budget is not None or not sequential):
        metrics = input_metrics(target, batches, layers=list(work.offered), ridge=ridge, device=work.device)
    if budget is not None:
        work.plan(budget, metrics, fractions)
    if batches is not None and sequential and work.offered:
        fit_in_order(target, batches, work.fit, layers=list(work.offered), ridge=ridge, device=work.device)
    else:
        for name in list(work.offered):
            work.fit(name, work.sites[name].module.weight.detach(), None if metrics is None else metrics[name])
    new = work.build()
    _check_refused(assigned, work)
    report_before = sum(parameter.numel() for parameter in target.parameters())
    rows = [work.row(name, assigned[name], new.get(name), counted=example is not None) for name in work.sites]
    replaced = tuple(Replaced(name, work.sites[name].module, layer) for name, layer in new.items())
    old = [work.sites[name] for name in new]
    try:
        surgery.exchange(old, list(new.values()))
        if seen is not None and new:
            _try(target, seen)
    except BaseException:
        surgery.restore(old)
        raise
    after = sum(parameter.numel() for parameter in target.parameters())
    return target, Report(tuple(rows), report_before, after, replaced)


def _try(model: nn.Module, example: Example) -> None:
    try:
        surgery.run(model, example)
    except surgery.CALL_ERRORS as error:
        raise LayerError(
            explain(
                "the converted model does not run on the example",
                because=f"{type(error).__name__}: {error}",
                fix="None for a layer whose weight the model reads itself",
            )
        ) from error


# Checks -----------------------------------------------------------------------------------------------------


def _check_settings(budget: object, example: object, calibration: object, *, sequential: bool) -> None:
    if budget is not None and not isinstance(budget, ParameterBudget | MultiplyAddsBudget):
        raise RankError(
            explain(f"budget={budget!r}", fix="tn.ParameterBudget(0.5), or tn.MultiplyAddsBudget(0.5) with an example")
        )
    if isinstance(budget, MultiplyAddsBudget) and example is None:
        raise DataError(explain("multiply-adds are counted at an example input", fix="example=x, or its shape"))
    if sequential and calibration is None:
        raise DataError(explain("fits to the original outputs need inputs", fix="calibration=[batch, ...]"))


def _check_values(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise LayerError(explain(f"{name!r} has no value yet", fix="run the model once on an input"))


def _check_budgets(budget: object, assigned: Mapping[str, Assigned]) -> None:
    for name, one in assigned.items():
        for offer in one.offers or ():
            ranks = offer.choices.get("ranks")
            if budget is not None and isinstance(ranks, ParameterBudget):
                raise RankError(
                    explain(
                        "a budget is given for the model and for a layer",
                        model=budget,
                        layer=f"{name!r}, by {one.pattern!r}: {ranks}",
                        fix="one of the two; or integers, KeepFraction or RelativeError for the layer",
                    )
                )


def _check_refused(assigned: Mapping[str, Assigned], work: Work) -> None:
    """A pattern that says what cannot be done to any of its layers is a mistake, not a report."""
    followers: dict[str, list[str]] = {}
    for name, one in assigned.items():
        if one.offers is not None:
            followers.setdefault(one.pattern, []).append(name)
    for pattern, names in followers.items():
        if all(name in work.refused for name in names):
            fact = f"layer {names[0]!r} cannot be decomposed"
            if len(names) > 1:
                fact = f"none of the {len(names)} layers of {pattern!r} can be decomposed"
            because = _because({name: work.reasons[name] for name in names})
            stuck = surgery.obstacles(work.model, work.sites)
            tried = any(name not in stuck and work.calls.get(name, True) for name in names)
            fix = "another rewrite, or None" if tried else "None for what stays dense"
            raise LayerError(explain(fact, because=because, fix=None if "fix:" in because else fix))


def _because(reasons: Mapping[str, str]) -> str:
    """Each reason once, the first three, with the layers that it is of where there are several."""
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    if len(layers) == 1:
        return next(iter(layers))
    lines = [
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") + f": {reason}"
        for reason, names in layers.items()
    ]
    return "\n".join(lines[:3] + ([f"... and {len(lines) - 3} more"] if len(lines) > 3 else []))


def _batches(calibration: Iterable[Tensor | Sequence[Tensor]]) -> list[Tensor | Sequence[Tensor]]:
    if isinstance(calibration, Images):
        raise DataError(explain("calibration needs batches", fix="images.batches(64, mean=..., std=...)"))
    if isinstance(calibration, Tensor):
        return [calibration]
    if not isinstance(calibration, Iterable):  # as untyped callers may
        raise DataError(explain(f"calibration is a {type(calibration).__name__}", fix="[batch, ...], or a loader"))
    batches = list(calibration)
    if not batches:
        raise DataError("there are no calibration batches")
    return batches


def _first(batches: Sequence[object]) -> Tensor:
    """One input, of the first batch."""
    first = batches[0]
    x = first[0] if isinstance(first, Sequence) and first else first
    if not isinstance(x, Tensor) or not x.ndim:
        given = f"a {type(first).__name__}" + ("" if x is first else f" with a {type(x).__name__} first")
        fix = "tensors (n, ...), or sequences with one first; example= for models of several inputs"
        raise DataError(explain("calibration holds no batches of inputs", given=given, fix=fix))
    return x[:1]
