"""A conversion under way: what each layer of a model is offered, what is chosen and fitted, and why others stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor, nn

from ..errors import LayerError, TnalgebraError
from ..fitting import Metric, ModelBudget, ParameterBudget, Size, TimeBudget
from ..nn import KernelLayer, kernel_labels_of
from ..rewriting import Fit
from ..workers import Scheduler, run_tasks
from .budget import Treatment, error_of, least_error, ranks_of
from .curves import parameter_costs
from .divergence import Divergence
from .example import Example, Inputs
from .held_out import share_by_divergence
from .input_metrics import fit_in_order, input_metrics
from .measure_curves import measure_curves
from .new_layers import LayerMaker
from .obstacles import find_obstacles
from .patterns import Assigned, Offer
from .progress import progress_bar, track
from .readers import weights_read
from .report import LayerRow
from .surgery import LayerCall, Site, record_calls

_UNCALLED = "the model reads its weight elsewhere, or not at all"


class Fitting(NamedTuple):
    """Inputs for the norms of fits, inputs held out of them, and how the layers are fitted; see `convert`."""

    inputs: Sequence[Inputs] | None
    held_out: Sequence[Inputs] | None
    sequential: bool
    ridge: float
    fractions: Sequence[float]


@dataclass(eq=False)
class Conversion:
    """A conversion under way. Nothing of the model changes.

    offered: name -> treatments, of the layers that are still to be decomposed.
    reasons: name -> why a layer stays dense.
    refused: names of those that would have been decomposed, had they been able to.
    """

    model: nn.Module
    sites: Mapping[str, Site]
    maker: LayerMaker
    allow_larger: bool
    progress: bool
    scheduler: Scheduler | None = None
    offered: dict[str, list[Treatment]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    fits: dict[str, tuple[Treatment, Fit]] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return str(next(iter(self.sites.values())).module.weight.device)

    @property
    def calls(self) -> Mapping[str, Sequence[LayerCall]]:
        return self.maker.calls

    def weight(self, name: str) -> Tensor:
        return self.sites[name].module.weight.detach()

    def refuse(self, name: str, reason: object) -> None:
        self.reasons[name] = str(reason)
        self.refused.add(name)
        self.offered.pop(name, None)

    def offer(self, assigned: Mapping[str, Assigned], size: Size | None, seed: int) -> None:
        """Read what each layer is offered; layers that obstacles hold are left out."""
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
            treatments, failed = [], None
            # a weight that an embedding shares with a linear layer may be meant by the labels of either
            of_members = dict.fromkeys(kernel_labels_of(member.module) for member in site.members)
            for offer in offers:
                for labels in of_members:
                    try:
                        if (offer, labels) not in known:  # layers that share a treatment are fitted side by side
                            treatment = Treatment.read(offer.rewrite, labels, offer.size, offer.choices)
                            known[offer, labels] = treatment.completed(size, seed=seed)
                        treatments.append(known[offer, labels])
                        break
                    except TnalgebraError as error:
                        failed = failed or error
            if treatments:
                self.offered[name] = treatments
            else:
                self.refuse(name, failed)

    def record_calls(self, example: Example | None, *, of_batch: bool) -> None:
        """Run the model once, to see every layer's inputs; layers that are not called are left out.

        Without an example, so are layers whose weight the model reads, as far as its source says.
        """
        if example is None:
            read = weights_read(self.model)
            for name in list(self.offered):
                reader = next((read[one] for one in self.sites[name].all_names if one in read), None)
                if reader is not None:
                    fix = "example=, an input of the model, which shows whether the layer is called; or None for it"
                    self.refuse(name, LayerError(f"{reader} reads its weight, as its source says", fix=fix))
            return
        self.maker = replace(self.maker, calls=record_calls(self.model, example, self.sites, of_batch=of_batch))
        for name in list(self.offered):
            for member in self.sites[name].members:
                if not self.calls[member.names[0]] and name in self.offered:
                    who = "" if member.names == self.sites[name].names else f"{member.names[0]} is "
                    self.refuse(name, f"{who}never called on the example: {_UNCALLED}")

    def choose_and_fit(self, fitting: Fitting, budget: ModelBudget | None, *, example: Example | None) -> None:
        """Leave one treatment to each layer where there is a budget, then fit the layers, in the norm of the inputs."""
        inputs, sequential, ridge = fitting.inputs, fitting.sequential, fitting.ridge
        metrics: dict[str, Metric] = {}
        measured = [name for name in self.offered if self._has_metric(name)]
        if inputs is not None and measured and (budget is not None or not sequential):
            batches = track(inputs, "calibration", shown=self.progress)
            metrics = input_metrics(self.model, batches, layers=measured, ridge=ridge, device=self.device)
        if budget is not None:
            self.share_budget(budget, metrics, example, fitting)
        layers = list(self.offered)
        with progress_bar("fitting layers", len(layers), shown=self.progress) as bar:

            def fit(name: str, weight: Tensor, metric: Metric | None) -> Tensor:
                bar.update()
                self.keep(name, *fit_offers(None, [(name, self.offered[name], weight, metric)]))
                return self.fits[name][1].dense() if name in self.fits else weight

            ordered = [name for name in layers if self._has_metric(name)] if inputs is not None and sequential else []
            if inputs is not None and ordered:
                fit_in_order(self.model, inputs, fit, layers=ordered, ridge=ridge, device=self.device)
            alone = (
                [(name, self.offered[name], self.weight(name), metrics.get(name))]
                for name in layers
                if name not in ordered
            )
            with closing(run_tasks(fit_offers, alone, shared=None, scheduler=self.scheduler)) as results:
                for (name, *_), fits in results:
                    bar.update()
                    self.keep(name, fits)

    def _has_metric(self, name: str) -> bool:
        """Whether the inputs of a layer make a norm for its fit: not those of an embedding, or of tied layers."""
        site = self.sites[name]
        return not site.tied and not isinstance(site.module, nn.Embedding)

    def share_budget(
        self, budget: ModelBudget, metrics: Mapping[str, Metric], example: Example | None, fitting: Fitting
    ) -> None:
        """Leave one treatment to each layer, with integer ranks, or none."""
        weights = {name: self.weight(name) for name in self.offered}
        if isinstance(budget, ParameterBudget):
            costs = parameter_costs(self.model, weights)
        elif isinstance(budget, TimeBudget) and example is not None:
            costs = self.maker.time_costs(self.model, example, list(weights))
        else:
            costs = self.maker.costs(list(weights))
        curves = measure_curves(
            weights, self.offered, costs, metrics=metrics, fractions=fitting.fractions, progress=self.progress
        )
        dense = curves.why_dense()
        if fitting.held_out is None:
            ways = curves.share(budget, others=self.reasons)
        else:
            divergence = Divergence(self.model, [x.to(self.device) for x in fitting.held_out])
            ways = share_by_divergence(curves, budget, divergence, metrics=metrics, others=self.reasons)
        for name, way in ways.items():
            if way.treatment is not None:
                self.offered[name] = [way.treatment]
            elif name in curves.refused:
                self.refuse(name, curves.refused[name])
            else:
                del self.offered[name]
                self.reasons[name] = dense.get(name, "the budget leaves it dense")

    def keep(self, name: str, fits: Sequence[Fit | TnalgebraError]) -> None:
        """Keep the best that saves parameters, of the fits of what the layer is offered."""
        done = [
            (treatment, fit) for treatment, fit in zip(self.offered[name], fits, strict=True) if isinstance(fit, Fit)
        ]
        if not done:
            self.refuse(name, fits[-1])
            return
        weight = self.weight(name)
        saving = [one for one in done if self.allow_larger or one[1].parameters < weight.numel()]
        if not saving:
            least = min(fit.parameters for _, fit in done)
            del self.offered[name]
            self.reasons[name] = f"break-even: {least:,} parameters decomposed, {weight.numel():,} dense"
            return
        self.fits[name] = saving[0]
        if len(saving) > 1:
            self.fits[name] = least_error(saving, lambda one: error_of(one[1]), lambda one: one[1].parameters)

    def build(self) -> dict[str, list[KernelLayer]]:
        """The new layers, by name, in the order of the modules; the model does not have them yet.

        Those of a site that has several are in the order of its members, and have one set of cores.
        """
        layers: dict[str, list[KernelLayer]] = {}
        for name in track([name for name in self.sites if name in self.fits], "planning layers", shown=self.progress):
            try:
                layers[name] = self.maker.make(name, self.fits[name][1])
            except TnalgebraError as error:
                self.refuse(name, error)
                continue
            for layer, member in zip(layers[name], self.sites[name].members, strict=True):
                # the bias itself, so that an optimizer's moments still belong to it
                layer._parameters["bias"] = member.module._parameters.get("bias")
        return layers

    def row(self, name: str, assigned: Assigned, layers: Sequence[KernelLayer] | None, *, counted: bool) -> LayerRow:
        site = self.sites[name]
        before = count_parameters(nn.ModuleList(member.module for member in site.members))
        adds = self.maker.dense_multiply_adds(name) if counted else None
        row = LayerRow(
            name,
            " and ".join(type(member.module).__name__ for member in site.members),
            assigned.pattern,
            before,
            before,
            reason=self.reasons.get(name, ""),
            multiply_adds=adds,
            multiply_adds_after=adds,
            aliases=site.all_names[1:],
            also=assigned.also,
        )
        if layers is None:
            return row
        treatment, fit = self.fits[name]
        return replace(
            row,
            parameters_after=count_parameters(nn.ModuleList(layers)),
            rule=treatment.name,
            ranks=ranks_of(fit),
            relative_error=layers[0].relative_error,
            output_error=layers[0].output_error,
            degeneracy=fit.degeneracy,
            multiply_adds_after=self.maker.multiply_adds(name, layers) if counted else None,
        )


def fit_offers(
    _: None, layers: Sequence[tuple[str, Sequence[Treatment], Tensor, Metric | None]]
) -> Iterator[list[Fit | TnalgebraError]]:
    """For each layer, the fits of what it is offered, or why one of them fails; a task of `run_tasks`."""
    for _name, treatments, weight, metric in layers:
        fits: list[Fit | TnalgebraError] = []
        for treatment in treatments:
            try:
                fits += treatment.apply([weight], None, metrics=None if metric is None else [metric])
            except TnalgebraError as error:
                fits.append(error)
        yield fits


def count_parameters(model: nn.Module) -> int:
    """Numbers in all parameters of a module; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
