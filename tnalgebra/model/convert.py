"""Convert a whole model: patterns say which layers are decomposed and how, a budget may share out the ranks."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..compiler import Candidates
from ..decompositions import read_rewrite
from ..errors import DataError, LayerError, RankError, TnalgebraError, explain
from ..fitting import Metric, MultiplyAddsBudget, ParameterBudget
from ..nn import KernelLayer, decomposed, kernel_labels_of
from ..rewriting import Fit, Rule, SizedChoices
from .budget import FRACTIONS, Costs, ModelBudget, Treatment, error_of, measure_curves, parameter_costs
from .images import inputs_of
from .input_metrics import RIDGE, fit_in_order, input_metrics
from .patterns import Assigned, Offer, Patterns, assign
from .report import ConversionReport, LayerRow, Replaced
from .surgery import (
    CALL_ERRORS,
    Example,
    LayerCall,
    Site,
    check_initialised,
    exchange_layers,
    find_obstacles,
    find_sites,
    record_calls,
    restore_layers,
    run_example,
    without_hooks,
)

_M = TypeVar("_M", bound=nn.Module)


def convert(
    model: _M,
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
) -> tuple[_M, ConversionReport]:
    """Decompose the kernel layers of a model, each as the first pattern that fits it says.

    A layer that cannot be decomposed, or would not get smaller, stays dense, and the report says why. On any error
    the model is as it was.

    Args:
        model: its modules are exchanged; they keep their modes, hooks, dtype, device, and which of them are trained.
        patterns: a glob over names of layers ("layer3.*.conv2", "*") or a class (torch.nn.Conv2d) -> what is
            requested; or a function (name, layer) -> what is requested. That is a rewrite (a rule, its name, a cut,
            notation); (rewrite, ranks); (rewrite, choices of `Rule.apply`, `ranks` among them); a list of these, of
            which the one with the least error is taken; or None: the layer stays dense.
        budget: of the whole model, layers that stay dense included: one Lagrange multiplier over all layers chooses
            rewrite and ranks of each layer whose ranks are not given. `MultiplyAddsBudget` counts the kernel layers,
            at the example.
        example: an input of the model, its shape, or all its arguments. The model runs on it before, so that plans
            are made for the real sizes and layers that are never called stay dense; and after, to check that it does.
            Its hooks are called each time.
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
        RuleError: a name that no rule has, a request that cannot be read.
        RankError: the budget cannot be met (it says the least that can); ranks that cannot be read; a budget for the
            model and another for a layer.
        DataError: `sequential` without calibration, a budget of multiply-adds without an example, or calibration
            data that hold no inputs.
    """
    _check_settings(model, budget, example, calibration, sequential=sequential)
    target = model if inplace else copy.deepcopy(model)
    work = _Conversion(target, find_sites(target), candidates, tune, backward, allow_larger)
    assigned = assign(target, work.sites, patterns)
    _check_budgets(budget, assigned)
    work.offer(assigned, seed)
    inputs = None
    if calibration is not None:
        inputs = list(inputs_of([calibration] if isinstance(calibration, Tensor) else calibration))
    trial = example if example is not None or inputs is None else inputs[0][:1].to(work.device)
    if trial is not None:
        work.record_calls(trial)
    work.choose_and_fit(inputs, budget, sequential=sequential, ridge=ridge, fractions=fractions)
    new = work.build()
    _check_refused(assigned, work)
    rows = [work.row(name, assigned[name], new.get(name), counted=example is not None) for name in work.sites]
    replaced = tuple(Replaced(name, work.sites[name].module, layer) for name, layer in new.items())
    before = _count(target)
    _exchange([work.sites[name] for name in new], list(new.values()), target, trial)
    return target, ConversionReport(tuple(rows), before, _count(target), replaced)


@dataclass(eq=False)
class _Conversion:
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
    calls: dict[str, list[LayerCall]] = field(default_factory=dict)
    _counts: dict[tuple[object, ...], int] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return str(next(iter(self.sites.values())).module.weight.device)

    def weight(self, name: str) -> Tensor:
        return self.sites[name].module.weight.detach()

    def refuse(self, name: str, reason: object) -> None:
        self.reasons[name] = str(reason)
        self.refused.add(name)
        self.offered.pop(name, None)

    def offer(self, assigned: Mapping[str, Assigned], seed: int) -> None:
        """Resolve what each layer is offered; layers that obstacles hold are left out."""
        obstacles = find_obstacles(self.model, self.sites)
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
            treatments = []
            for offer in offers:
                try:
                    if (offer, labels) not in known:  # layers that share a treatment are fitted side by side
                        choices: SizedChoices = {"seed": seed, **offer.choices}
                        known[offer, labels] = Treatment(read_rewrite(offer.rewrite, labels), choices)
                    treatments.append(known[offer, labels])
                except TnalgebraError as error:
                    reason = str(error)
            if treatments:
                self.offered[name] = treatments
            else:
                self.refuse(name, reason)

    def record_calls(self, example: Example) -> None:
        """Run the model once, to see every layer's inputs; layers that are not called are left out."""
        self.calls = record_calls(self.model, example, self.sites)
        for name in list(self.offered):
            if not self.calls[name]:
                self.refuse(name, "never called on the example: the model reads its weight elsewhere, or not at all")

    def choose_and_fit(
        self,
        inputs: Sequence[Tensor] | None,
        budget: ModelBudget | None,
        *,
        sequential: bool,
        ridge: float,
        fractions: Sequence[float],
    ) -> None:
        """Leave one treatment to each layer where there is a budget, then fit the layers, in the norm of the inputs."""
        metrics = None
        if inputs is not None and self.offered and (budget is not None or not sequential):
            metrics = input_metrics(self.model, inputs, layers=list(self.offered), ridge=ridge, device=self.device)
        if budget is not None:
            self.share_budget(budget, metrics, fractions)
        if inputs is not None and sequential and self.offered:
            layers = list(self.offered)
            fit_in_order(self.model, inputs, self.fit, layers=layers, ridge=ridge, device=self.device)
        else:
            for name in list(self.offered):
                self.fit(name, self.weight(name), None if metrics is None else metrics[name])

    def share_budget(
        self, budget: ModelBudget, metrics: Mapping[str, Metric] | None, fractions: Sequence[float]
    ) -> None:
        """Leave one treatment to each layer, with integer ranks, or none."""
        weights = {name: self.weight(name) for name in self.offered}
        if isinstance(budget, MultiplyAddsBudget):
            adds = {name: sum(call.multiply_adds for call in calls) for name, calls in self.calls.items()}
            costs = Costs(sum(adds.values()), {name: adds[name] for name in weights}, self._multiply_adds_of)
        else:
            costs = parameter_costs(self.model, weights)
        curves = measure_curves(weights, self.offered, costs, metrics=metrics, fractions=fractions)
        for name, way in curves.share(budget).items():
            if way.treatment is not None:
                self.offered[name] = [way.treatment]
            elif name in curves.refused:
                self.refuse(name, curves.refused[name])
            else:
                del self.offered[name]
                larger = "break-even: nothing that is offered is smaller than the dense layer"
                self.reasons[name] = "the budget leaves it dense" if curves.ways[name] else larger

    def fit(self, name: str, weight: Tensor, metric: Metric | None) -> Tensor:
        """Fit what the layer is offered, and keep the best that saves parameters. Returns the kernel as it is then."""
        fits: list[tuple[Treatment, Fit]] = []
        failed: TnalgebraError | None = None
        for treatment in self.offered[name]:
            choices: SizedChoices = {"metric": metric, **treatment.choices}
            try:
                fits.append((treatment, treatment.rule.apply({treatment.rule.tensor: weight}, **choices)))
            except TnalgebraError as error:
                failed = error
        if not fits:
            self.refuse(name, failed)
            return weight
        saving = [one for one in fits if self.allow_larger or one[1].parameters < weight.numel()]
        if not saving:
            least = min(fit.parameters for _, fit in fits)
            del self.offered[name]
            self.reasons[name] = f"break-even: {least:,} parameters decomposed, {weight.numel():,} dense"
            return weight
        self.fits[name] = min(saving, key=lambda one: error_of(one[1]))
        return self.fits[name][1].dense()

    def build(self) -> dict[str, KernelLayer]:
        """The new layers, by name, in the order of the modules; the model does not have them yet."""
        layers: dict[str, KernelLayer] = {}
        for name, site in self.sites.items():
            if name in self.fits:
                treatment, fit = self.fits[name]
                try:
                    layers[name] = self._make_layer(name, treatment.rule, fit, tune=self.tune)
                except TnalgebraError as error:
                    self.refuse(name, error)
                    continue
                # the bias itself, so that an optimizer's moments still belong to it
                layers[name]._parameters["bias"] = site.module._parameters["bias"]
        return layers

    def _make_layer(self, name: str, rule: Rule, fit: Fit, *, tune: bool) -> KernelLayer:
        """The layer, planned for the input of its first call where there was one."""
        module = without_hooks(self.sites[name].module)
        batch, positions, layout = None, None, None
        if self.calls.get(name):
            first = self.calls[name][0]
            axes = module.weight.ndim - 2
            if axes and first.memory_format != torch.contiguous_format:
                layout = first.memory_format  # else the weight's: torch takes either for a sign
            batch = max(1, prod(first.shape[: len(first.shape) - axes - 1]))
            positions = first.shape[len(first.shape) - axes :] or None
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
            self._counts[key] = self._multiply_adds_in(name, self._make_layer(name, rule, fit, tune=False))
        return self._counts[key]

    def _multiply_adds_in(self, name: str, layer: KernelLayer) -> int:
        """Multiply-adds of all calls: those of the first in its plan, the others in proportion to the dense layer's."""
        dense = [call.multiply_adds for call in self.calls[name]]
        return round(layer.plan.multiply_adds * sum(dense) / dense[0]) if dense else 0

    def row(self, name: str, assigned: Assigned, layer: KernelLayer | None, *, counted: bool) -> LayerRow:
        site = self.sites[name]
        before = _count(site.module)
        adds = sum(call.multiply_adds for call in self.calls[name]) if counted else None
        row = LayerRow(
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
        return replace(
            row,
            parameters_after=_count(layer),
            rule=treatment.rule.name,
            ranks=dict(fit.trace.steps[-1].change.ranks),
            relative_error=fit.relative_error,
            output_error=fit.output_error,
            multiply_adds_after=self._multiply_adds_in(name, layer) if counted else None,
        )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _exchange(sites: list[Site], layers: list[KernelLayer], model: nn.Module, example: Example | None) -> None:
    """Put the new layers in place; the old ones come back if the model does not run on the example then."""
    try:
        exchange_layers(sites, layers)
        if example is not None and layers:
            run_example(model, example)
    except BaseException as error:
        restore_layers(sites)
        if isinstance(error, CALL_ERRORS):
            because, fix = f"{type(error).__name__}: {error}", "None for a layer whose weight the model reads itself"
            fact = "the converted model does not run on the example"
            raise LayerError(explain(fact, because=because, fix=fix)) from error
        raise


# Checks -----------------------------------------------------------------------------------------------------


def _check_settings(
    model: nn.Module, budget: object, example: object, calibration: object, *, sequential: bool
) -> None:
    if budget is not None and not isinstance(budget, ParameterBudget | MultiplyAddsBudget):
        raise RankError(
            explain(f"budget={budget!r}", fix="tn.ParameterBudget(0.5), or tn.MultiplyAddsBudget(0.5) with an example")
        )
    if isinstance(budget, MultiplyAddsBudget) and example is None:
        raise DataError(explain("multiply-adds are counted at an example input", fix="example=x, or its shape"))
    if sequential and calibration is None:
        raise DataError(explain("fits to the original outputs need inputs", fix="calibration=[batch, ...]"))
    check_initialised(model)


def _check_budgets(budget: object, assigned: Mapping[str, Assigned]) -> None:
    for name, one in assigned.items():
        for offer in one.offers or ():
            ranks = offer.choices.get("size")
            if budget is not None and isinstance(ranks, ParameterBudget):
                raise RankError(
                    explain(
                        "a budget is given for the model and for a layer",
                        model=budget,
                        layer=f"{name!r}, by {one.pattern!r}: {ranks}",
                        fix="one of the two; or integers, KeepFraction or RelativeError for the layer",
                    )
                )


def _check_refused(assigned: Mapping[str, Assigned], work: _Conversion) -> None:
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
            stuck = find_obstacles(work.model, work.sites)
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
