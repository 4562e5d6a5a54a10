"""A conversion under way: what each layer is offered, what came of it, the new layers. Nothing of the model changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from . import nn as layers
from . import surgery
from .compiler import Candidates
from .conversion_budget import Costs, ModelBudget, Treatment, share
from .conversion_mapping import Assigned, Offer
from .conversion_report import Row
from .decompositions import resolve
from .errors import TnalgebraError
from .fitting.metric import Metric
from .layers import kernel_labels_of
from .options import Choices
from .ranks import MultiplyAddsBudget
from .rewriting import Fit, Rule
from .surgery import Call, Example, Site


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

    def build(self) -> dict[str, layers.KernelLayer]:
        """The new layers, by name, in the order of the modules; the model does not have them yet."""
        made: dict[str, layers.KernelLayer] = {}
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

    def _made(self, name: str, rule: Rule, fit: Fit, *, tune: bool) -> layers.KernelLayer:
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
        return layers.decomposed(
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

    def _after(self, name: str, layer: layers.KernelLayer) -> int:
        """Multiply-adds of all calls: those of the first in its plan, the others in proportion to the dense layer's."""
        made = [call.multiply_adds for call in self.calls[name]]
        return round(layer.plan.multiply_adds * sum(made) / made[0]) if made else 0

    def row(self, name: str, assigned: Assigned, layer: layers.KernelLayer | None, *, counted: bool) -> Row:
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
