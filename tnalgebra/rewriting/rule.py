"""Where a rule is applied, and what the caller chooses there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, Unpack

import torch
from torch import Tensor

from .._files import write_text
from ..errors import RuleError, explain
from ..fitting import Metric, ParameterBudget, Rank, Report, Settings
from ..network import NamedTensor, Network, draw, node_text, parameters, tensor_nodes
from ..tensors import Values, bind_values, common_dtype, evaluate, magnitude, relative, value_of, values_for

# options: Where a rule is applied, and what the caller chooses there.


@dataclass(frozen=True)
class Place:
    """Where a rule applies: positions of nodes, and the labels that tell two places on the same nodes apart."""

    nodes: tuple[int, ...]
    labels: tuple[str, ...] = ()

    def text(self, network: Network) -> str:
        nodes = " ".join(node_text(network.nodes[position]) for position in self.nodes)
        return f"{nodes} at {' '.join(self.labels)}" if self.labels else nodes


class Choices(TypedDict, total=False):
    """What a caller may choose where a rule is applied.

    at: which place, a number in `places(network)` or one of them; needed only where there are several.
    bind: variable of the left side -> name or label of the network, to narrow the places down.
    ranks: bond -> rank; one for the only bond; or one `ParameterBudget` for all.
    sizes: label -> size, for parts of a `Fuse`; those left out are as equal as they can be.
    fixed: tensor of the right side -> its elements, or the name of a basis ("dct"): held as they are. Of orthonormal
        rows, those best aligned with the kernel are kept, as many as the rank says.
    metric: the norm to fit in, of a whole kernel; by default the Frobenius norm.
    start: cores of the right side to start from, at most as large as the ranks say.
    seed, starts, sweeps, dtype, slack: of the search, see `fitting.search.Settings`; trees need neither seed nor
        starts.
    """

    at: int | Place | None
    bind: Mapping[str, str] | None
    ranks: Mapping[str, Rank] | Rank | None
    sizes: Mapping[str, int] | None
    fixed: Mapping[str, Any] | None
    metric: Metric | None
    start: Mapping[str, Any] | None
    seed: int
    starts: int
    sweeps: int
    dtype: torch.dtype
    slack: float


SEARCH = ("seed", "starts", "sweeps", "dtype", "slack")
"""The choices that make `Settings`."""


@dataclass(frozen=True)
class Options:
    """What the user chooses for one application; the fields are those of `Choices`."""

    ranks: Mapping[str, Rank] | Rank = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    bind: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    metric: Metric | None = None
    start: Mapping[str, Any] | None = None
    settings: Settings = field(default_factory=Settings)
    lost: tuple[str, ...] = ()
    """Choices that a file could not hold; the step can be looked at, and not done again."""

    @classmethod
    def of(cls, choices: Choices) -> Options:
        """Raises TypeError for a choice that does not exist, RuleError or ValuesError for one that means nothing."""
        unknown = [key for key in choices if key not in Choices.__annotations__]
        if unknown:
            raise TypeError(f"there is no choice {unknown[0]!r}; there are {', '.join(Choices.__annotations__)}")
        for key, kind in (
            ("bind", Mapping),
            ("sizes", Mapping),
            ("fixed", Mapping),
            ("start", Mapping),
            ("metric", Metric),
        ):
            value = choices.get(key)
            if value is not None and not isinstance(value, kind):
                wanted = "a Metric" if kind is Metric else "a mapping"
                raise RuleError(explain(f"{key}= is a {type(value).__name__}", fix=f"{wanted}, see `Choices`"))
        search: dict[str, Any] = {key: value for key, value in choices.items() if key in SEARCH}
        given: dict[str, Any] = {
            key: value for key, value in choices.items() if key not in (*SEARCH, "at") and value is not None
        }
        return cls(**given, settings=Settings(**search))


def saved(options: Options) -> dict[str, object]:
    """What a saved step holds of how its cores were searched for, as JSON has it."""
    settings = options.settings
    found: dict[str, object] = {
        "search": {
            "seed": settings.seed,
            "starts": settings.starts,
            "sweeps": settings.sweeps,
            "dtype": str(settings.dtype).removeprefix("torch."),
            "slack": settings.slack,
        }
    }
    if options.fixed:
        found["fixed"] = {
            name: value if isinstance(value, str) else torch.as_tensor(value, dtype=torch.float64).tolist()
            for name, value in options.fixed.items()
        }
    lost = [key for key in ("metric", "start") if getattr(options, key) is not None]
    return {**found, **({"lost": [*options.lost, *lost]} if lost or options.lost else {})}


# rewriting: Rules, their application, and the record of it: `Rule`, `Step`, `Trace`, `Fit`.


Kind: TypeAlias = Literal["exact", "approximate"]

ROUNDING = 1e-12
"""What float64 rounding may change, relative to the network's `magnitude`."""


@dataclass(frozen=True, eq=False)
class Change:
    """What a rule makes of one place.

    after: the whole network after the step.
    definitions: new tensor -> the network over the old tensors whose value it is (exact rules).
    values: new tensor -> elements (approximate rules).
    relative_error: ||left - right|| / ||left|| of the part that was replaced, as the rule claims it; 0 if exact.
    ranks: bond -> rank that was chosen.
    output_error: sqrt(E||(K - K~) x||^2 / E||K x||^2), or of the wanted output, where there was a metric.
    report: how the fit went, where there was one.
    pieces: the part before and the part after, as networks of their own, where the claimed error is that of a part.
    """

    after: Network
    definitions: Mapping[str, Network] = field(default_factory=dict)
    values: Values = field(default_factory=dict)
    relative_error: float = 0.0
    ranks: Mapping[str, int] = field(default_factory=dict)
    output_error: float | None = None
    report: Report | None = None
    pieces: tuple[Network, Network] | None = None


Finder: TypeAlias = Callable[[Network, Options], Iterable[Place]]
Builder: TypeAlias = Callable[[Network, Place, Values, Options], Change]


@dataclass(frozen=True, eq=False)
class Job:
    """One application that is to be made: the arguments of a builder."""

    network: Network
    place: Place
    values: Values
    options: Options


@dataclass(frozen=True, eq=False)
class Rule:
    """A rewrite as data: where it applies, and what it makes of a place.

    name: unique among the rules a caller works with.
    kind: "exact" rules keep the value; "approximate" ones need values and report an error.
    equation: the rule in the notation, or as near to it as the notation goes.
    start: the left side as a network, for given values; None if the rule needs a network to be applied to.
    ranks: labels of the bonds whose ranks the caller chooses.
    variables: names and labels of the left side, which `bind` may narrow down.
    labels: of the right side, whose sizes the caller may give.
    stated: those of them that nothing else tells, not even that parts are as equal as they can be.
    takes: which of `fixed`, `metric` and `start` mean something to it.
    fixed: constants of the right side, by the name of their basis.
    build_many: builds several applications as one, if that is faster.
    spec: what a saved trace holds to find or make the rule again.
    """

    name: str
    kind: Kind
    equation: str
    find: Finder = field(repr=False)
    build: Builder = field(repr=False)
    start: Callable[[Mapping[str, Any]], Network] | None = field(default=None, repr=False)
    ranks: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    stated: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)
    build_many: Callable[[Sequence[Job]], list[Change]] | None = field(default=None, repr=False)
    spec: Mapping[str, str] = field(default_factory=dict)
    explanation: str = field(default="", repr=False)

    def __str__(self) -> str:
        constants = "".join(f", {name} the {basis} basis" for name, basis in self.fixed.items())
        return f"{self.name}: {self.equation}{constants}"

    @property
    def tensor(self) -> str:
        """The left side's first tensor: what a rule for kernels calls the kernel in `apply({rule.tensor: weight})`."""
        return self.variables[0] if self.variables else "K"

    def places(self, network: Network, *, bind: Mapping[str, str] | None = None) -> list[Place]:
        """Every place of `network` where the rule applies."""
        return list(self.find(network, Options(bind=bind or {})))

    def apply(
        self, target: Network | Mapping[str, Any], values: Mapping[str, Any] | None = None, **choices: Unpack[Choices]
    ) -> Fit:
        """Apply the rule once.

        Args:
            target: a network; or the values of the left side's tensors, name -> elements, to rewrite the left
                side itself.
            values: values of a network's tensors; may be left out for exact rules.
            choices: see `Choices`: at, bind, ranks, sizes, fixed, metric, start, seed, starts, sweeps, dtype.

        Returns:
            The network after the step, its values, and the trace of this one step.

        Raises:
            RuleError: no place, several places and no `at`, or the rule cannot do what was asked.
            RankError, ValuesError, SizeError: as their names say.
        """
        return self._started(target, values).then(self, **choices)

    def apply_many(
        self,
        targets: Sequence[Mapping[str, Any]],
        *,
        metrics: Sequence[Metric] | None = None,
        **choices: Unpack[Choices],
    ) -> list[Fit]:
        """Apply the rule to many values of its left side; those of one shape are fitted side by side.

        Args:
            targets: values of the left side's tensors, once for each application.
            metrics: one for each target.

        Returns:
            What `apply` would return for each, up to rounding.
        """
        if metrics is not None and len(metrics) != len(targets):
            raise RuleError(explain(f"{len(metrics)} metrics are given for {len(targets)} targets"))
        begun = [self._started(target, None) for target in targets]
        options = Options.of(choices)
        jobs = []
        for number, fit in enumerate(begun):
            own = options if metrics is None else replace(options, metric=metrics[number])
            _check_options(self, own)
            jobs.append(Job(fit.network, _choose(self, fit.network, choices.get("at"), own), fit.values, own))
        if self.build_many is None:
            changes = [self.build(job.network, job.place, job.values, job.options) for job in jobs]
        else:
            changes = self.build_many(jobs)
        return [fit.after(self, job, change) for fit, job, change in zip(begun, jobs, changes, strict=True)]

    def _started(self, target: Network | Mapping[str, Any], values: Mapping[str, Any] | None) -> Fit:
        if isinstance(target, Network):
            return started(target, values or {})
        if not isinstance(target, Mapping):
            raise RuleError(
                explain(
                    f"a rule is applied to a {type(target).__name__}",
                    fix="a network, or values by name: {'K': weight}",
                )
            )
        if values is not None:
            raise RuleError("values are given twice: apply(values), or apply(network, values)")
        if self.start is None:
            raise RuleError(explain(f"the rule {self.name!r} has no left side of its own", fix="give a network"))
        return started(self.start(target), target)


@dataclass(frozen=True)
class Step:
    """One application of one rule: enough to print it, and to do it again on other values."""

    rule: Rule
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

    def __str__(self) -> str:
        ranks = " ".join(f"{bond}={rank}" for bond, rank in self.change.ranks.items())
        error = "exact" if self.rule.kind == "exact" else f"relative error {self.relative_error:.3g}"
        if self.change.output_error is not None:
            error += f", of the output {self.change.output_error:.3g}"
        counts = f"parameters {_count(self.before)} -> {_count(self.after)}"
        where = self.place.text(self.before)
        return f"{self.rule.name} on {where}\n    {'; '.join(filter(None, [ranks, error, counts]))}\n    {self.after}"


def _count(network: Network) -> str:
    known = all(
        label in network.sizes for node in network.nodes if isinstance(node, NamedTensor) for label in node.labels
    )
    return str(parameters(network)) if known else "?"


@dataclass(frozen=True)
class Trace:
    """The steps that led from one network to another."""

    start: Network
    steps: tuple[Step, ...]

    @property
    def network(self) -> Network:
        return self.steps[-1].after if self.steps else self.start

    def __str__(self) -> str:
        lines = [f"start\n    {self.start}", *(f"{number}. {step}" for number, step in enumerate(self.steps, 1))]
        return "\n".join(lines)

    def replay(self, values: Mapping[str, Any]) -> Fit:
        """Do the same steps on other values of the start, at the same places and ranks."""
        fit = started(self.start, values)
        for step in self.steps:
            fit = fit.again(step)
        return fit

    def check(self, values: Mapping[str, Any]) -> None:
        """Replay on these values, evaluating before and after every step.

        The errors that are compared are those that the steps claim for these values; an error that a loaded trace
        records belongs to the values it was made with.

        Raises:
            RuleError: a step breaks its promise; the first one is named, with what it promised and what is true.
        """
        fit = started(self.start, {name: torch.as_tensor(value).double() for name, value in values.items()})
        for number, step in enumerate(self.steps, 1):
            following = fit.again(step)
            if not _agree(step.after, following.network):
                raise RuleError(
                    explain(
                        f"step {number}, {step.rule.name}, does not lead where the trace says",
                        trace=step.after,
                        true=following.network,
                    )
                )
            check_step(following.trace.steps[-1], fit.values, following.values, number=number)
            fit = following

    def save(self, path: str | Path) -> None:
        """Write the trace as JSON: networks and rules as text, no values. `load_trace` reads it."""
        write_text(path, self.to_json() + "\n")

    def to_json(self) -> str:
        """What `save` writes; an infinite error is the text "inf", as JSON has no such number.

        Raises:
            RuleError: a rule was made of functions, which no text holds; an error is NaN.
        """
        steps = [
            {
                "rule": dict(step.rule.spec),
                "nodes": list(step.place.nodes),
                "labels": list(step.place.labels),
                "ranks": dict(step.change.ranks),
                "sizes": {label: index(size) for label, size in step.options.sizes.items()},
                "bind": dict(step.options.bind),
                **saved(step.options),
                **{name: error if math.isfinite(error) else str(error) for name, error in _errors(step.change)},
                "after": str(step.after),
            }
            for step in self.steps
        ]
        for step in self.steps:
            if not step.rule.spec:
                raise RuleError(explain(f"the rule {step.rule.name!r} cannot be saved", fix="a rule made by tn.rule"))
            if any(math.isnan(error) for _, error in _errors(step.change)):
                raise RuleError(explain(f"the step by {step.rule.name!r} cannot be saved", because="its error is NaN"))
        return json.dumps({"start": str(self.start), "steps": steps}, indent=2, allow_nan=False)


def _errors(change: Change) -> list[tuple[str, float]]:
    """The errors that a step records; that of the output only where there was a metric."""
    recorded = [("relative_error", change.relative_error), ("output_error", change.output_error)]
    return [(name, error) for name, error in recorded if error is not None]


def _agree(claimed: Network, found: Network) -> bool:
    """The same nodes and outputs; sizes that a trace without values does not know are no disagreement."""
    same = (claimed.nodes, claimed.output) == (found.nodes, found.output)
    return same and claimed.sizes.items() <= found.sizes.items()


def check_step(step: Step, before: Values, after: Values, *, number: int = 1) -> None:
    """Evaluate both sides of a step and compare with its promise: the same value, or the error it claims."""
    left, right = step.change.pieces or (step.before, step.after)
    if left.output != right.output:
        raise RuleError(explain(f"step {number}, {step.rule.name}, changes the open labels", before=left, after=right))
    old, scale = evaluate(left, values_for(left, before)), magnitude(left, values_for(left, before))
    difference = evaluate(right, values_for(right, after)) - old
    where = step.place.text(step.before)
    if step.rule.kind == "exact":
        worst = float((difference.abs() - ROUNDING * scale).max())
        if worst > 0:
            raise RuleError(
                explain(
                    f"step {number}, {step.rule.name}, is said to be exact and changes the value by {worst:.3g}",
                    where=where,
                    before=left,
                    after=right,
                )
            )
        return
    true = relative(difference, old)
    if abs(true - step.relative_error) > 1e-9 + 1e-6 * true:
        raise RuleError(
            explain(
                f"step {number}, {step.rule.name}, claims a relative error of {step.relative_error:.6g}",
                where=where,
                true=f"{true:.6g}",
            )
        )


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """A network with values, and the trace that led to it. What every rewrite returns.

    network: after the last step.
    values: name -> elements, for the tensors that have values; one axis a label.
    trace: the steps, from the network one started with.
    """

    network: Network
    values: dict[str, Tensor]
    trace: Trace
    _start: Values | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        steps = ", ".join(step.rule.name for step in self.trace.steps) or "no steps"
        return f"Fit({str(self.network)!r} after {steps})"

    @property
    def parameters(self) -> int:
        """Numbers the tensors hold, tied ones once."""
        return parameters(self.network)

    @cached_property
    def relative_error(self) -> float:
        """||N0 - N||_F / ||N0||_F, measured in float64 between the first network and this one."""
        before = value_of(self.trace.start, self.values if self._start is None else self._start, dtype=torch.float64)
        return relative(value_of(self.network, self.values, dtype=torch.float64) - before, before)

    def dense(self) -> Tensor:
        """The network contracted to one tensor, in the order of the open labels.

        Contracted in float64, then in the values' own type: cores that cancel lose nothing on the way.
        """
        dense = value_of(self.network, self.values, dtype=torch.float64)
        return dense.to(common_dtype(self.values.values()))

    def draw(self, path: str | Path) -> None:
        """Write a drawing of the network: SVG or PNG, by the suffix."""
        draw(self.network, path)

    def _repr_svg_(self) -> str:
        return self.network._repr_svg_()

    @property
    def output_error(self) -> float | None:
        """Of the last step: sqrt(E||(K - K~) x||^2 / E||K x||^2) over the layer's inputs; None without a metric."""
        return self.trace.steps[-1].change.output_error if self.trace.steps else None

    @property
    def report(self) -> Report | None:
        """How the last fit of the trace went; None where there was none."""
        return next((step.change.report for step in reversed(self.trace.steps) if step.change.report), None)

    def then(self, rule: Rule, **choices: Unpack[Choices]) -> Fit:
        """Apply one more rule; the arguments are those of `Rule.apply`."""
        return self._then(rule, choices.get("at"), Options.of(choices))

    def again(self, step: Step) -> Fit:
        """Do a step that was done before, at the same place with the same ranks, on these values.

        Raises:
            RuleError: the step used something that the file it was read from does not hold.
        """
        if step.options.lost:
            raise RuleError(
                explain(
                    f"the step {step.rule.name!r} was made with a {' and a '.join(step.options.lost)}",
                    because="a saved trace does not hold it",
                    fix="apply the rule anew",
                )
            )
        return self._then(step.rule, step.place, replace(step.options, ranks=step.change.ranks))

    def after(self, rule: Rule, job: Job, change: Change) -> Fit:
        """This fit and one more step, whose change is known."""
        step, values = _stepped(rule, job, change)
        start = self.values if self._start is None else self._start
        return Fit(step.after, values, Trace(self.trace.start, (*self.trace.steps, step)), start)

    def _then(self, rule: Rule, at: int | Place | None, options: Options) -> Fit:
        _check_options(rule, options)
        place = _choose(rule, self.network, at, options)
        change = rule.build(self.network, place, self.values, options)
        return self.after(rule, Job(self.network, place, self.values, options), change)


def started(network: Network, values: Mapping[str, Any]) -> Fit:
    """A network with values, before the first step. Raises ValuesError where they do not fit."""
    network, tensors = bind_values(network, values)
    return Fit(network, tensors, Trace(network, ()))


def _stepped(rule: Rule, job: Job, change: Change) -> tuple[Step, dict[str, Tensor]]:
    """The step and the values after it; the open labels and their order stay.

    Values are optional for exact rules: a new tensor is computed where all that it is made of is known.
    """
    network, values = job.network, job.values
    if change.after.output != network.output:
        raise RuleError(explain(f"the rule {rule.name!r} changes the open labels", before=network, after=change.after))
    new = {**values, **change.values}
    for name, definition in change.definitions.items():
        if all(part in values for part in tensor_nodes(definition)):
            new[name] = value_of(definition, values)
    kept = tensor_nodes(change.after)
    step = Step(rule, job.place, job.options, network, change)
    return step, {name: v for name, v in new.items() if name in kept}


def _check_options(rule: Rule, options: Options) -> None:
    """Every word the caller uses is one the rule has."""
    budget = isinstance(options.ranks, ParameterBudget) and rule.kind == "approximate"
    ranks = options.ranks if isinstance(options.ranks, Mapping) else rule.ranks or (() if budget else ("all bonds",))
    for kind, where, given, known in (
        ("bond", "", ranks, rule.ranks),
        ("variable", "", options.bind, rule.variables),
        ("label", " on its right side", options.sizes, rule.labels),
    ):
        for word in given:
            if word not in known:
                listed = " ".join(known) or "none"
                raise RuleError(explain(f"the rule {rule.name!r} has no {kind} {word!r}{where}", known=listed))
    for label in rule.stated:
        if label not in options.sizes:
            raise RuleError(
                explain(f"the rule {rule.name!r} needs the size of {label!r}", fix=f"sizes={{{label!r}: ...}}")
            )
    for choice in ("fixed", "metric", "start"):
        if getattr(options, choice) and choice not in rule.takes:
            raise RuleError(
                explain(f"the rule {rule.name!r} has no use for {choice}=", takes=" ".join(rule.takes) or None)
            )


def _choose(rule: Rule, network: Network, at: int | Place | None, options: Options) -> Place:
    places = list(rule.find(network, options))
    if isinstance(at, Place):
        if at not in places:
            raise RuleError(explain(f"the rule {rule.name!r} does not apply there", place=at, network=network))
        return at
    if not places:
        raise RuleError(
            explain(
                f"the rule {rule.name!r} applies nowhere",
                rule=rule.equation,
                network=network,
                bind=options.bind or None,
                tied=_tied(network),
            )
        )
    if at is None and len(places) > 1:
        listed = "\n".join(f"{number}: {place.text(network)}" for number, place in enumerate(places))
        raise RuleError(
            explain(
                f"the rule {rule.name!r} applies at {len(places)} places", places=listed, fix="choose one: at=0, ..."
            )
        )
    number = 0 if at is None else at
    if not 0 <= number < len(places):
        there = "1 place" if len(places) == 1 else f"{len(places)} places"
        raise RuleError(explain(f"at={number}: the rule {rule.name!r} applies at {there}, counted from 0"))
    return places[number]


def _tied(network: Network) -> str | None:
    names = " ".join(name for name, places in tensor_nodes(network).items() if len(places) > 1)
    return f"{names} (a tensor is rewritten at all its occurrences or not at all)" if names else None
