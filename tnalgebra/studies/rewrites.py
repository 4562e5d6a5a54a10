"""Rewrites of kernels by any rule, as a study does them: at given ranks, or under one budget for all layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from operator import index
from typing import Any, Literal, TypeAlias

from torch import Tensor

from ..decompositions import drop_components, resolve
from ..errors import NetworkError, NotationError, RankError, RuleError, SizeError, ValuesError, explain
from ..fitting import NoTreeError, bonds_of, tree_of
from ..model import Curves, MetricName, Planned, fit_planned, plan_budget
from ..network import WORD, Network, parameters
from ..rewriting import Fit, Rule, rule
from ..tensors import norm, relative
from .kernels import Asked, Layer, Treated, Workbench
from .store import BASELINE

Components: TypeAlias = Literal["refit", "drop"]
"""What happens at a smaller rank: a fit of its own; or components of the fit at the largest rank are dropped."""

Sweep: TypeAlias = Mapping[str, Sequence[int]]
"""Bond -> ranks, swept together."""

NO_FORM = (RuleError, SizeError, ValuesError, NetworkError, NotationError)
"""What says that a rewrite does not exist for kernels of some labels or sizes."""


@dataclass(frozen=True, eq=False)
class Form:
    """A rewrite of kernels of one shape.

    rule: for their labels.
    network: the right side, every bond that the caller chooses of size 1.
    equation: both sides without sizes.
    full: bond -> a rank beyond which nothing is gained.
    """

    rule: Rule
    network: Network
    equation: str
    full: Mapping[str, int]

    def planned(self, ranks: Mapping[str, int]) -> Planned:
        """What is done at these ranks, each at most a full one."""
        capped = {bond: min(ranks[bond], self.full[bond]) for bond in free_bonds(self.rule)}
        right = Network(self.network.nodes, self.network.output, {**self.network.sizes, **capped})
        return Planned(self.rule, capped, parameters(right))


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A decomposition as the user names it, and its form for each kernel.

    text: as it stands in rows.
    given: a rule; or what `resolve` reads.
    metric: the norm of its fits.
    """

    text: str
    given: str | Rule
    metric: MetricName
    _rules: dict[tuple[str, ...], Rule] = field(default_factory=dict)
    _forms: dict[tuple[object, ...], Form] = field(default_factory=dict)

    def form(self, layer: Layer) -> Form:
        """Raises RuleError, SizeError, ValuesError, ...: there is none for this kernel, with the reason."""
        shape = (layer.labels, *layer.weight.shape)
        if shape not in self._forms:
            self._forms[shape] = self._form(layer)
        return self._forms[shape]

    def _form(self, layer: Layer) -> Form:
        if layer.labels not in self._rules:
            self._rules[layer.labels] = self._rule(layer.labels)
        own = self._rules[layer.labels]
        # cheap, and sure to find out whether the rule can be applied, and to what network it leads
        once = own.apply({own.tensor: layer.weight}, ranks=dict.fromkeys(free_bonds(own), 1), starts=1, sweeps=0)
        left, right = (Network(side.nodes, side.output) for side in (once.trace.start, once.network))
        return Form(own, once.network, f"{left} => {right}", full_ranks(once.network))

    def _rule(self, labels: tuple[str, ...]) -> Rule:
        found = resolve(self.given, labels)
        if found.kind != "approximate" or found.start is None:
            raise RuleError(explain(f"the rule {found.name!r} decomposes nothing", rule=found.equation))
        return found


def free_bonds(given: Rule) -> tuple[str, ...]:
    """The bonds whose rank the text does not state."""
    return tuple(bond for bond in given.ranks if not re.search(rf"(?<!\w){bond}:\d", given.equation))


def full_ranks(right: Network) -> dict[str, int]:
    """Bond -> a rank beyond which nothing is gained.

    That of a tree's bond is the smaller number of values of its two sides, where nothing is lost any more; that of
    parallel bonds, and of those of loops and hyperedges, the number of all elements, which is too many for any kernel.
    """
    found = dict.fromkeys(bonds_of(right), prod(right.sizes[label] for label in right.output))
    try:
        tree = tree_of(right)
    except NoTreeError:
        return found
    for edge in tree.edges:
        rows = tree.rows[edge.child]
        columns = [label for label in tree.open if label not in rows and label not in edge.batch]
        if len(edge.bonds) == 1:
            found[edge.bonds[0]] = min(prod(right.sizes[label] for label in side) for side in (rows, columns))
    return found


def rewrite_of(given: object, metric: MetricName) -> Rewrite:
    """A rewrite as the user gives it; a rule in the notation is read at once.

    Raises:
        RuleError, NotationError, NetworkError, SizeError: it is none.
    """
    if isinstance(given, Rule):
        # a cut has labels, not axes: it is made anew for the order that a layer has them in
        return Rewrite(given.name, given.spec.get("cut", given), metric)
    if not isinstance(given, str) or not given.strip() or given.strip() == BASELINE.rewrite:
        fix = "a name of the catalogue, a cut, a rule in the notation, or a Rule"
        raise RuleError(explain(f"rewrites holds {given!r}", fix=fix))
    text = " ".join(given.split())
    return Rewrite(text, rule(text) if "=>" in text else text, metric)


def sweep_of(ranks: object) -> dict[str, tuple[int, ...]]:
    """Bond -> ranks, from {"r": 16}, {"r": [16, 32]}, "r=16,32" or several such texts.

    Raises:
        RankError: an entry is no bond and its ranks; a bond stands twice; a rank is below 1.
    """
    found: dict[str, tuple[int, ...]] = {}
    for bond, numbers in _entries(ranks):
        if bond in found:
            raise RankError(explain(f"ranks holds the bond {bond!r} twice", fix=f"{bond}=16,32"))
        found[bond] = tuple(_rank(bond, number) for number in numbers)
        if not numbers:
            raise RankError(explain(f"ranks holds no rank for the bond {bond!r}", fix=f"{bond}=16,32"))
    return found


def _entries(ranks: object) -> Iterator[tuple[str, Sequence[object]]]:
    if isinstance(ranks, Mapping):
        for bond, given in ranks.items():
            yield bond, given if isinstance(given, list | tuple) else (given,)
        return
    for text in ranks if isinstance(ranks, list | tuple) else (ranks,):
        for part in text.split() if isinstance(text, str) else (text,):
            bond, _, numbers = part.partition("=") if isinstance(part, str) else ("", "", "")
            if not numbers or not WORD.fullmatch(bond):
                raise RankError(explain(f"ranks holds {part!r}", fix="a bond and its ranks, such as r=16,32"))
            yield bond, [int(number) if number.strip().isdigit() else number for number in numbers.split(",")]


def _rank(bond: str, number: object) -> int:
    try:
        rank = 0 if isinstance(number, bool) else index(number)  # type: ignore[arg-type]
    except TypeError:
        rank = 0
    if rank < 1:
        raise RankError(explain(f"the rank of bond {bond!r} is {number!r}", fix="an integer of at least 1"))
    return rank


def points_of(text: str, bonds: Sequence[str], sweep: Sweep) -> dict[str, dict[str, int]]:
    """The i-th point has the i-th rank of each bond; a single one is for all points.

    Returns:
        "r=16" -> bond -> rank, for bonds in the rule's order.

    Raises:
        RankError: a bond has no rank; bonds have different numbers of them.
    """
    missing = [bond for bond in bonds if bond not in sweep]
    if missing:
        raise RankError(
            explain(
                f"the rewrite {text!r} has no rank for {', '.join(map(repr, missing))}",
                bonds=" ".join(bonds),
                fix=f"ranks such as {' '.join(f'{bond}=8,16' for bond in missing)}, or a budget",
            )
        )
    count = max((len(sweep[bond]) for bond in bonds), default=1)
    if any(len(sweep[bond]) not in (1, count) for bond in bonds):
        raise RankError(
            explain(
                f"the ranks of {text!r} are swept together, and are not equally many",
                ranks=" ".join(f"{bond}={','.join(map(str, sweep[bond]))}" for bond in bonds),
                fix="as many for each bond, or one for all",
            )
        )
    rows = [{bond: sweep[bond][number % len(sweep[bond])] for bond in bonds} for number in range(count)]
    return {ranks_text(row): row for row in rows}


def ranks_text(ranks: Mapping[str, int]) -> str:
    return " ".join(f"{bond}={rank}" for bond, rank in ranks.items())


# At given ranks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ranked:
    """A rewrite at ranks that are the same for all layers."""

    rewrite: Rewrite
    points: Mapping[str | None, Mapping[str, int]]
    components: Components

    @property
    def text(self) -> str:
        return self.rewrite.text

    @property
    def largest(self) -> dict[str, int]:
        """The largest rank of each bond."""
        rows = list(self.points.values())
        return {bond: max(row[bond] for row in rows) for bond in rows[0]}

    @property
    def label(self) -> str:
        """As rows say it: a fit that others are dropped from is part of what they are."""
        return "refit" if self.components == "refit" else f"drop from {ranks_text(self.largest)}"

    def treated(self, todo: Sequence[Asked], bench: Workbench) -> Iterator[tuple[Asked, dict[str, Treated]]]:
        """For each row the kernels it tests. Rows that need the same fits come one after another.

        Raises:
            RankError: a rank is out of range in a loop, as the rule says it.
            ValuesError, LayerError: a fit or a metric cannot be had (the layers are named).
        """
        drops, together = self.components == "drop", self.rewrite.metric != "output"
        rounds: dict[tuple[str | None, ...], list[Asked]] = {}
        for asked in todo:
            same = (None if drops else asked.key.ranks, None if together else asked.key.scope)
            rounds.setdefault(same, []).append(asked)
        for part in rounds.values():
            layers = {layer.name: layer for asked in part for layer in asked.layers}
            ranks = self.largest if drops else self.points[part[0].key.ranks]
            planned = {name: self.rewrite.form(layer).planned(ranks) for name, layer in layers.items()}
            fits = fitted(self.rewrite, planned, layers, bench)
            for asked in part:
                wanted = self.points[asked.key.ranks]
                cut_down = {
                    layer.name: _dropped(fits[layer.name], wanted) if drops else fits[layer.name]
                    for layer in asked.layers
                }
                yield asked, described(asked, self.rewrite, cut_down, layers, bench)


def _dropped(fit: Fit, ranks: Mapping[str, int]) -> Fit:
    """The fit with the components of largest norm of each bond alone."""
    for bond, rank in ranks.items():
        if rank < fit.network.sizes.get(bond, 0):
            fit = fit.then(drop_components(bond), ranks={bond: rank})
    return fit


# Under a budget ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Budgeted:
    """A rewrite at ranks that are chosen for all layers together."""

    rewrite: Rewrite
    curves: Curves

    @property
    def text(self) -> str:
        return self.rewrite.text

    def treated(self, todo: Sequence[Asked], bench: Workbench) -> Iterator[tuple[Asked, dict[str, Treated]]]:
        """For each row the kernels it tests; the layers' error curves are measured once.

        Raises:
            RankError: a budget cannot be met.
        """
        layers = {layer.name: layer for asked in todo for layer in asked.layers}
        budgets = [asked.key.budget for asked in todo if asked.key.budget is not None]
        with about(self.rewrite, layers):
            plans = plan_budget(
                bench.model,
                {name: [self.rewrite.form(layer).rule] for name, layer in layers.items()},
                budgets,
                metrics=None if self.rewrite.metric == "frobenius" else bench.metrics(layers),
                curves=self.curves,
                inputs=bench.inputs if self.curves == "divergence" else (),
                seed=bench.seed,
            )
        for asked, planned in zip(todo, plans, strict=True):
            fits = fitted(self.rewrite, planned, layers, bench)
            yield asked, described(asked, self.rewrite, fits, layers, bench)


def budgets_of(budget: object) -> list[float]:
    """The budgets, each once. Raises RankError where one is no number in (0, 1]."""
    found: list[float] = []
    for given in budget if isinstance(budget, Sequence) and not isinstance(budget, str) else (budget,):
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= 1:
            fix = "the part of all parameters that is kept, in (0, 1]"
            raise RankError(explain(f"budget holds {given!r}", fix=fix))
        found.append(float(given))
    return list(dict.fromkeys(found))


# Fits --------------------------------------------------------------------------------------------------------


def fitted(
    rewrite: Rewrite, planned: Mapping[str, Planned], layers: Mapping[str, Layer], bench: Workbench
) -> dict[str, Fit]:
    """Fit the layers of a plan; but to the outputs of the network, those of one shape and rank are fitted together."""
    if not planned:
        return {}
    if rewrite.metric == "output":
        with about(rewrite, planned):
            return fit_planned(bench.model, planned, metric="output", inputs=bench.inputs, seed=bench.seed)
    metrics = bench.metrics(planned) if rewrite.metric == "input" else None
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, plan in planned.items():
        groups.setdefault((plan.rule, *sorted(plan.ranks.items())), []).append(name)
    fits: dict[str, Fit] = {}
    for names in groups.values():
        plan = planned[names[0]]
        with about(rewrite, names):
            found = plan.rule.apply_many(
                [{plan.rule.tensor: _placed(layers[name], bench)} for name in names],
                metrics=None if metrics is None else [metrics[name] for name in names],
                ranks=plan.ranks,
                seed=bench.seed,
            )
        fits |= dict(zip(names, found, strict=True))
    return {name: fits[name] for name in planned}


def described(
    asked: Asked, rewrite: Rewrite, fits: Mapping[str, Fit], layers: Mapping[str, Layer], bench: Workbench
) -> dict[str, Treated]:
    """The kernels of fits, contracted back, and what a row says of them."""
    in_inputs = rewrite.metric == "input" or asked.key.reported is not None
    if in_inputs:
        bench.metrics(fits)  # of all layers in one pass over the images
    return {name: _described(fit, layers[name], bench, in_inputs=in_inputs) for name, fit in fits.items()}


def _described(fit: Fit, layer: Layer, bench: Workbench, *, in_inputs: bool) -> Treated:
    weight = fit.dense()
    own = _placed(layer, bench)
    dense = norm(own)
    ranks: dict[str, int] = {}
    for step in fit.trace.steps:
        ranks |= step.change.ranks
    error = fit.output_error
    if in_inputs and error is None:  # components were dropped, or the fit was in another metric
        error = bench.output_error(layer, weight)
    details = {
        "ranks": ranks,
        "relative_error": relative(weight.double() - own, own),
        "output_error": error,
        "norm_kept": norm(weight) / dense if dense else 1.0,
        "parameters": fit.parameters,
    }
    return Treated(weight.to(bench.dtype), details)


def _placed(layer: Layer, bench: Workbench) -> Tensor:
    return layer.weight.to(bench.settings["device"])


@contextmanager
def about(rewrite: Rewrite, names: Any) -> Iterator[None]:
    """Name the rewrite and the layers in errors of fits."""
    try:
        yield
    except (RankError, RuleError, SizeError, ValuesError) as error:
        listed = ", ".join(list(names)[:8]) + (", ..." if len(names) > 8 else "")
        raise type(error)(
            explain(f"the rewrite {rewrite.text!r} cannot be made", layers=listed, because=error)
        ) from error
