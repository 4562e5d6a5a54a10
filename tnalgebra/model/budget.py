"""One budget for many layers: error curves of what each layer is offered, shared out by one Lagrange multiplier."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

from ..decompositions import read_rewrite
from ..errors import RankError, TnalgebraError, ValuesError
from ..fitting import Metric, MultiplyAddsBudget, ParameterBudget, Size
from ..networks import shape_of
from ..rewriting import Choices, Fit, Rule
from .progress import progress_bar

ModelBudget: TypeAlias = ParameterBudget | MultiplyAddsBudget

FRACTIONS = (0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""Parts of a kernel's parameters at which its error curve is measured."""

CURVE_SWEEPS = 6
"""Sweeps for a point of a curve: the order of the points matters, not their last digit."""


@dataclass(frozen=True, eq=False)
class Treatment:
    """What a layer may be turned into: a rule at a size, which may still be open, or a fit that exists already.

    parameters: of the cores, once the ranks are known.
    """

    rule: Rule | None
    size: Size | None = None
    choices: Choices = field(default_factory=Choices)
    fit: Fit | None = None
    parameters: int = 0

    @classmethod
    def read(cls, rewrite: str | Rule | Fit, labels: Sequence[str], size: Size | None, choices: Choices) -> Treatment:
        """The treatment by a rewrite. A fit stands for itself, unless a size or choices ask for another one."""
        if isinstance(rewrite, Fit) and size is None and not choices:
            return cls(None, fit=rewrite)
        return cls(read_rewrite(rewrite, labels), size, choices)

    @property
    def name(self) -> str:
        if self.rule is not None:
            return self.rule.name
        assert self.fit is not None
        return " then ".join(step.rule.name for step in self.fit.trace.steps) or "a fit"

    @property
    def is_sized(self) -> bool:
        """Whether nothing is left for a budget to choose."""
        return self.size is not None or self.fit is not None

    def completed(self, size: Size | None, *, seed: int) -> Treatment:
        """With this size and seed where the treatment has none; a rule without bonds takes no size but a budget."""
        if self.rule is None:
            return self
        takes_it = self.rule.ranks or isinstance(size, ParameterBudget)
        choices: Choices = {"seed": seed, **self.choices}
        return Treatment(self.rule, size if self.size is None and takes_it else self.size, choices)

    def at_ranks_of(self, fit: Fit) -> Treatment:
        """With the integer ranks that a fit of it got."""
        return replace(self, size=None if self.fit else ranks_of(fit), parameters=fit.parameters)

    def apply(self, weights: Sequence[Tensor], size: Size | None, *, metrics: Sequence[Metric] | None) -> list[Fit]:
        """Fit weights of one shape together; `size` is used if the treatment has no size."""
        if self.fit is not None:
            shape = shape_of(self.fit.network, self.fit.network.output)
            if shape != tuple(weights[0].shape):
                fact = f"the fit is one of a tensor of shape {shape}"
                raise ValuesError(fact, weight=tuple(weights[0].shape), fix="a fit of this weight, or its rule")
            return [self.fit] * len(weights)
        assert self.rule is not None
        chosen = self.size if self.size is not None else size
        norms = None if "metric" in self.choices else metrics
        return self.rule.apply_many(list(weights), chosen, metrics=norms, **self.choices)


def ranks_of(fit: Fit) -> dict[str, int]:
    """bond -> rank, as the last step that has the bond chose it."""
    return {bond: rank for step in fit.trace.steps for bond, rank in step.change.ranks.items()}


def error_of(fit: Fit) -> float:
    """Relative error of the layer's output where the fit had a metric, of the kernel otherwise."""
    return fit.relative_error if fit.output_error is None else fit.output_error


class Way(NamedTuple):
    """A point of a layer's curve: what it takes of the budget, the loss it causes, what is done (None: nothing)."""

    cost: int
    loss: float
    treatment: Treatment | None = None


# The multiplier -----------------------------------------------------------------------------------------------


def allocate(curves: Mapping[str, Sequence[Way]], limit: int) -> dict[str, Way]:
    """Choose a way for each layer so that the sum of the losses is small and the costs keep within a limit.

    The sum of the losses plus a multiplier times the costs falls apart into layers: for any multiplier the best ways
    are vertices of the layers' lower convex hulls (Everett 1963). The multiplier is the largest saving of loss for
    each unit of cost that still fits; what is left over is then spent on the single moves that save most.

    Args:
        curves: layer -> its ways, in any order; a layer that may stay dense has that as a way of loss 0. The
            cheapest ways of all layers together are within the limit.
        limit: of the costs of all layers together.
    """
    hulls = {name: lower_hull(ways) for name, ways in curves.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    room = limit - sum(way.cost for way in chosen.values())
    assert room >= 0
    # the steps along all hulls, the steepest first; on one hull they come in order by themselves
    steps = [(_gain(before, after), name, after) for name, hull in hulls.items() for before, after in pairwise(hull)]
    for _, name, after in sorted(steps, key=lambda step: -step[0]):
        cost = after.cost - chosen[name].cost
        if cost > room:
            break
        chosen[name], room = after, room - cost
    while True:  # spend what is left: again and again the move that saves most for its cost, among those that fit
        moves = [
            ((chosen[name].loss - way.loss) / max(way.cost - chosen[name].cost, 1e-9), name, way)
            for name, ways in curves.items()
            for way in ways
            if way.loss < chosen[name].loss and way.cost - chosen[name].cost <= room
        ]
        if not moves:
            return chosen
        _, name, way = max(moves, key=lambda move: move[0])
        chosen[name], room = way, room - (way.cost - chosen[name].cost)


def lower_hull(ways: Sequence[Way]) -> list[Way]:
    """The ways on the lower convex hull, from the cheapest to the one of least loss."""
    hull: list[Way] = []
    for way in sorted(ways, key=lambda way: (way.cost, way.loss)):
        if hull and way.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], way):
            hull.pop()
        hull.append(way)
    return hull


def _gain(before: Way, after: Way) -> float:
    """Loss saved for each unit of cost added."""
    return (before.loss - after.loss) / (after.cost - before.cost)


# The curves and the sharer ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Costs:
    """What the budget is spent on.

    counted: "parameters" or "multiply-adds".
    whole: of the model as it is.
    dense: name -> of the layer as it is.
    of_fit: name, fit -> of the layer decomposed.
    """

    counted: str
    whole: int
    dense: Mapping[str, int]
    of_fit: Callable[[str, Fit], int]


def parameter_costs(model: nn.Module, weights: Mapping[str, Tensor]) -> Costs:
    """Count parameters: of the whole model, of the kernels, of the cores of fits."""
    whole = sum(parameter.numel() for parameter in model.parameters())
    dense = {name: weight.numel() for name, weight in weights.items()}
    return Costs("parameters", whole, dense, lambda name, fit: fit.parameters)


@dataclass(frozen=True, eq=False)
class ErrorCurves:
    """What each layer may be turned into, measured once; any number of budgets can be shared out.

    offered: name -> treatments, as they were requested.
    ways: name -> treatments that make the layer smaller, with integer ranks.
    refused: name -> why no treatment can be applied at all.
    """

    offered: Mapping[str, Sequence[Treatment]]
    costs: Costs
    ways: Mapping[str, Sequence[Way]]
    refused: Mapping[str, TnalgebraError]

    def why_dense(self) -> dict[str, str]:
        """name -> why a layer stays dense under every budget."""
        larger = "break-even: nothing that is offered is smaller than the dense layer"
        return {name: str(self.refused.get(name, larger)) for name, ways in self.ways.items() if not ways}

    def share(self, budget: ModelBudget, *, others: Mapping[str, str] | None = None) -> dict[str, Way]:
        """Choose a way for each layer, by one Lagrange multiplier; treatment None: the layer stays dense.

        Treatments whose sizes are given are one way each, and such a layer never stays dense for the budget's sake.

        Args:
            others: layers that have no curve -> why, for the error.

        Raises:
            RankError: the budget cannot be met; it says the least that can, and why layers stay dense.
        """
        curves: dict[str, list[Way]] = {}
        for name, ways in self.ways.items():
            fixed = ways and all(treatment.is_sized for treatment in self.offered[name])
            curves[name] = [*ways, *([] if fixed else [Way(self.costs.dense[name], 0.0)])]
        whole = self.costs.whole
        rest = whole - sum(self.costs.dense[name] for name in curves)
        limit = int(budget.fraction * whole) - rest
        least = sum(min(way.cost for way in ways) for ways in curves.values())
        if least > limit:
            parts = math.ceil(1e4 * (rest + least) / whole)  # rounded up, so that it can be met
            smallest = (parts + (int(parts / 1e4 * whole) < rest + least)) / 1e4
            by_parameters = isinstance(budget, ParameterBudget)
            fix = f"at least '{'parameters' if by_parameters else 'multiply-adds'} {smallest:g}'"
            rebuilt = "; or candidates='factored', where plans rebuild dense kernels; or more layers"
            counted = self.costs.counted
            raise RankError(
                f"a budget of {budget.fraction:g} of {whole} {counted} cannot be met",
                needed=f"{rest} {counted} that no rewrite touches, {least} of the rewritten layers at their smallest",
                dense=group_reasons({**(others or {}), **self.why_dense()}) or None,
                fix=fix if by_parameters else f"{fix}{rebuilt}",
            )
        return allocate(curves, limit)


def group_reasons(reasons: Mapping[str, str], *, most: int | None = None) -> str:
    """A line for each reason, or for the first `most`, with the names of three layers and the number of the others."""
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    lines = [
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") + f": {reason}"
        for reason, names in layers.items()
    ]
    shown = lines[:most]
    return "\n".join(shown + ([f"... and {len(lines) - len(shown)} more"] if len(shown) < len(lines) else []))


def measure_curves(
    weights: Mapping[str, Tensor],
    offered: Mapping[str, Sequence[Treatment]],
    costs: Costs,
    *,
    metrics: Mapping[str, Metric] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    loss_of: Callable[[str, Fit], float] | None = None,
    progress: bool = False,
) -> ErrorCurves:
    """Fit each layer with all it is offered, at several sizes; layers of one shape are fitted side by side.

    Args:
        metrics: name -> the norm of its fits; by default the Frobenius norm.
        fractions: parts of a kernel's parameters at which treatments without sizes are fitted.
        loss_of: name, fit -> what it costs the network; by default its squared relative error.
        progress: show a bar.
    """
    ways: dict[str, list[Way]] = {name: [] for name in offered}
    refused: dict[str, TnalgebraError] = {}
    points = _points(weights, offered, fractions, metrics or {})
    with progress_bar("error curves", sum(len(names) for names, _, _ in points), shown=progress) as bar:
        for names, treatment, fraction in points:
            bar.update(len(names))
            norms = None if metrics is None else [metrics[name] for name in names if name in metrics] or None
            try:
                fits = _fit_point(treatment, fraction, [weights[name].detach() for name in names], norms)
            except TnalgebraError as error:
                refused.update(dict.fromkeys(names, error))
                continue
            for name, fit in zip(names, fits, strict=False):  # no fits where even rank 1 is too large
                cost = costs.of_fit(name, fit)
                if cost < costs.dense[name] and fit.parameters < weights[name].numel():
                    loss = error_of(fit) ** 2 if loss_of is None else loss_of(name, fit)
                    ways[name].append(Way(cost, loss, treatment.at_ranks_of(fit)))
    return ErrorCurves(offered, costs, ways, {name: error for name, error in refused.items() if not ways[name]})


def _points(
    weights: Mapping[str, Tensor],
    offered: Mapping[str, Sequence[Treatment]],
    fractions: Sequence[float],
    metrics: Mapping[str, Metric],
) -> list[tuple[list[str], Treatment, float | None]]:
    """Layers of one shape that are offered the same, a treatment, and a part of the parameters where it has no size."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, weight in weights.items():
        key = (weight.shape, weight.dtype, weight.device, name in metrics)
        groups.setdefault((*key, *offered[name]), []).append(name)
    return [
        (names, treatment, fraction)
        for names in groups.values()
        for treatment in offered[names[0]]
        for fraction in ([None] if treatment.is_sized else fractions)
    ]


def _fit_point(
    treatment: Treatment, fraction: float | None, weights: Sequence[Tensor], metrics: Sequence[Metric] | None
) -> list[Fit]:
    """Fit every kernel at its size, or at a part of its parameters; no fits where even rank 1 is more than that."""
    quick = replace(treatment, choices={"sweeps": CURVE_SWEEPS, **treatment.choices})
    if fraction is None:
        return quick.apply(weights, None, metrics=metrics)
    try:
        return quick.apply(weights, ParameterBudget(fraction), metrics=metrics)
    except RankError:
        return []
