"""A conversion under way: what each layer is offered, what came of it, the new layers. Nothing of the model changes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..compiler import Candidates
from ..decompositions import resolve
from ..errors import DataError, LayerError, RankError, TnalgebraError, explain
from ..fitting import Metric, MultiplyAddsBudget, ParameterBudget
from ..nn import KernelLayer, decomposed, kernel_labels_of
from ..rewriting import Choices, Fit, Rule
from . import surgery
from .budget import FRACTIONS, Costs, ModelBudget, Treatment, share
from .images import Images
from .input_metrics import RIDGE, fit_in_order, input_metrics
from .patterns import Assigned, Offer, Patterns, assign
from .report import Replaced, Report, Row
from .surgery import Call, Example, Site

# conversion_work: A conversion under way: what each layer is offered, what came of it, the new layers. Nothing of the model changes.


@dataclass(eq=False)
class Work:
    """A conversion under way. Nothing of the model changes.

    offered: name -> treatments, of the layers that are still to be decomposed.
    reasons: name -> why a layer stays dense.
    refused: names of those that would have been decomposed, had they been able to.
    """

    model: nn.Module
    sites: dict[str, Site]
    candidates: Candidates
    tune: bool
    backward: bool
    allow_larger: bool
    offered: dict[str, list[Treatment]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    fits: dict[str, tuple[Treatment, Fit]] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    _counts: dict[tuple[object, ...], int] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return str(next(iter(self.sites.values())).module.weight.device)

    def refuse(self, name: str, reason: object) -> None:
        self.reasons[name] = str(reason)
        self.refused.add(name)
        self.offered.pop(name, None)

    def offer(self, assigned: Mapping[str, Assigned], seed: int) -> None:
        """Resolve what each layer is offered; layers that obstacles hold are left out."""
        obstacles = surgery.obstacles(self.model, self.sites)
        known: dict[tuple[Offer, tuple[str, ...]], Treatment] = {}
        for name, site in self.sites.items():
            offers = assigned[name].offers
            if offers is None:
                self.reasons[name] = "as asked" if assigned[name].pattern else "no pattern"
                continue
            if name in obstacles:
                self.refuse(name, obstacles[name])
                continue
            labels = kernel_labels_of(site.module)
            found = []
            for offer in offers:
                try:
                    if (offer, labels) not in known:  # layers that share a treatment are fitted side by side
                        choices: Choices = {"seed": seed, **offer.choices}
                        known[offer, labels] = Treatment(resolve(offer.rewrite, labels), choices)
                    found.append(known[offer, labels])
                except TnalgebraError as error:
                    reason = str(error)
            if found:
                self.offered[name] = found
            else:
                self.refuse(name, reason)

    def look(self, example: Example) -> None:
        """Run the model once, to see every layer's inputs; layers that are not called are left out."""
        self.calls = surgery.calls(self.model, example, self.sites)
        for name in list(self.offered):
            if not self.calls[name]:
                self.refuse(name, "never called on the example: the model reads its weight elsewhere, or not at all")

    def plan(self, budget: ModelBudget, metrics: Mapping[str, Metric] | None, fractions: Sequence[float]) -> None:
        """Leave one treatment to each layer, with integer ranks, or none."""
        weights = {name: self.sites[name].module.weight.detach() for name in self.offered}
        if isinstance(budget, MultiplyAddsBudget):
            adds = {name: sum(call.multiply_adds for call in made) for name, made in self.calls.items()}
            costs = Costs(sum(adds.values()), {name: adds[name] for name in weights}, self._multiply_adds_of)
        else:
            whole = sum(parameter.numel() for parameter in self.model.parameters())
            sizes = {name: weight.numel() for name, weight in weights.items()}
            costs = Costs(whole, sizes, lambda name, rule, fit: fit.parameters)
        shares = share(budget, weights, self.offered, costs, metrics=metrics, fractions=fractions)
        for name in list(self.offered):
            if name in shares.picked:
                self.offered[name] = [shares.picked[name]]
            elif name in shares.refused:
                self.refuse(name, shares.refused[name])
            else:
                del self.offered[name]
                larger = "break-even: nothing that is offered is smaller than the dense layer"
                self.reasons[name] = larger if name in shares.larger else "the budget leaves it dense"

    def fit(self, name: str, weight: Tensor, metric: Metric | None) -> Tensor:
        """Fit what the layer is offered, and keep the best that saves parameters. Returns the kernel as it is then."""
        found: list[tuple[Treatment, Fit]] = []
        failed: TnalgebraError | None = None
        for treatment in self.offered[name]:
            choices: Choices = {"metric": metric, **treatment.choices}
            try:
                found.append((treatment, treatment.rule.apply({treatment.rule.tensor: weight}, **choices)))
            except TnalgebraError as error:
                failed = error
        if not found:
            self.refuse(name, failed)
            return weight
        saving = [one for one in found if self.allow_larger or one[1].parameters < weight.numel()]
        if not saving:
            least = min(fit.parameters for _, fit in found)
            del self.offered[name]
            self.reasons[name] = f"break-even: {least:,} parameters decomposed, {weight.numel():,} dense"
            return weight
        self.fits[name] = min(saving, key=lambda one: _error(one[1]))
        return self.fits[name][1].dense()

    def build(self) -> dict[str, KernelLayer]:
        """The new layers, by name, in the order of the modules; the model does not have them yet."""
        made: dict[str, KernelLayer] = {}
        for name in self.sites:
            if name in self.fits:
                treatment, fit = self.fits[name]
                try:
                    made[name] = self._made(name, treatment.rule, fit, tune=self.tune)
                except TnalgebraError as error:
                    self.refuse(name, error)
                    continue
                # the bias itself, so that an optimizer's moments still belong to it
                made[name]._parameters["bias"] = self.sites[name].module._parameters["bias"]
        return made

    def _made(self, name: str, rule: Rule, fit: Fit, *, tune: bool) -> KernelLayer:
        """The layer, planned for the input of its first call where there was one."""
        module = surgery.without_hooks(self.sites[name].module)
        batch, positions, layout = None, None, None
        if self.calls.get(name):
            shape = self.calls[name][0].shape
            axes = module.weight.ndim - 2
            if axes and self.calls[name][0].memory_format != torch.contiguous_format:
                layout = self.calls[name][0].memory_format  # else the weight's: torch takes either for a sign
            batch = max(1, prod(shape[: len(shape) - axes - 1]))
            positions = shape[len(shape) - axes :] or None
        return decomposed(
            module,
            rule,
            fit=fit,
            input_size=positions,
            batch_size=batch,
            candidates=self.candidates,
            tune=tune,
            backward=self.backward,
            memory_format=layout,
        )

    def _multiply_adds_of(self, name: str, rule: Rule, fit: Fit) -> int:
        """Counted in the plan that the layer would get; layers that agree in all arguments are counted once."""
        ranks = tuple(fit.trace.steps[-1].change.ranks.items())
        key = (rule, ranks, str(self.sites[name].module), *self.calls[name])
        if key not in self._counts:
            self._counts[key] = self._after(name, self._made(name, rule, fit, tune=False))
        return self._counts[key]

    def _after(self, name: str, layer: KernelLayer) -> int:
        """Multiply-adds of all calls: those of the first in its plan, the others in proportion to the dense layer's."""
        made = [call.multiply_adds for call in self.calls[name]]
        return round(layer.plan.multiply_adds * sum(made) / made[0]) if made else 0

    def row(self, name: str, assigned: Assigned, layer: KernelLayer | None, *, counted: bool) -> Row:
        site = self.sites[name]
        before = sum(parameter.numel() for parameter in site.module.parameters())
        adds = sum(call.multiply_adds for call in self.calls[name]) if counted else None
        row = Row(
            name,
            type(site.module).__name__,
            assigned.pattern,
            before,
            before,
            reason=self.reasons.get(name, ""),
            multiply_adds=adds,
            multiply_adds_after=adds,
            aliases=site.names[1:],
            also=assigned.also,
        )
        if layer is None:
            return row
        treatment, fit = self.fits[name]
        changed = {
            "parameters_after": sum(parameter.numel() for parameter in layer.parameters()),
            "rule": treatment.rule.name,
            "ranks": dict(fit.trace.steps[-1].change.ranks),
            "relative_error": fit.relative_error,
            "output_error": fit.output_error,
            "multiply_adds_after": self._after(name, layer) if counted else None,
        }
        return Row(**{**vars(row), **changed})


def _error(fit: Fit) -> float:
    return fit.relative_error if fit.output_error is None else fit.output_error


# conversion: Convert a whole model: patterns say which layers are decomposed and how, a budget may share out the ranks.


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
