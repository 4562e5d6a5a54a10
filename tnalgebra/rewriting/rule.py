"""A rule as data: where it applies, what it makes of a place; and its application."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from textwrap import wrap
from typing import Any, TypeAlias, Unpack

import numpy as np
import torch

from .._tables import Table, Tabular, shorten
from ..errors import RuleError
from ..fitting import Metric, ParameterBudget
from ..networks import NamedTensor, Network, all_nodes
from ..tensors import Values
from .options import Choices, Options, Place
from .outline import Outline
from .step import Change, RuleKind
from .trace import Fit, start_fit

Finder: TypeAlias = Callable[[Network, Options], Iterable[Place]]
Builder: TypeAlias = Callable[[Network, Place, Values, Options], Change]
Outliner: TypeAlias = Callable[[Network, Place, Values, Options], Outline | None]
ManyBuilder: TypeAlias = Callable[[Sequence[tuple[Network, Place, Values, Options]]], list[Change]]


@dataclass(frozen=True, eq=False, repr=False)
class Rule(Tabular):
    """A rewrite as data: where it applies, and what it makes of a place.

    `tn.rule` makes one from a line of notation; `tn.rules()` lists those that exist.

    Attributes:
        name: the name in messages, traces and rows of studies.
        kind: "exact" rules keep the value of a network; "approximate" ones need values and report an error.
        equation: the rule in the notation, or as close to it as the notation allows.
        find: yields every place in a network where the rule applies.
        build: makes the change at a place that `find` yielded.
        start: makes the left side as a network for some values; None if the rule must be applied to a network.
        ranks: the bonds whose size the caller chooses.
        sized: the bonds whose size the equation has.
        variables: names and labels of the left side, which `bind=` may narrow down.
        labels: labels of the right side whose sizes the caller may give with `sizes=`.
        stated: those labels whose sizes the caller must give, because nothing else determines them.
        takes: which of the choices `fixed`, `constraints`, `metric` and `start` have a meaning for the rule.
        fixed: the basis of each constant of the right side.
        build_many: builds several applications together, where that is faster.
        build_outline: gives ranks and errors at any size without a fit, where the rule has a right side in notation.
        spec: what a saved trace holds in order to find or make the rule again.

    Example:
        >>> mine = tn.rule("K[o i h w] => A[o p] B[p i q] C[q h w]", name="mine")
        >>> mine.ranks
        ('p', 'q')
    """

    name: str
    kind: RuleKind
    equation: str
    find: Finder
    build: Builder
    start: Callable[[Mapping[str, Any]], Network] | None = None
    ranks: tuple[str, ...] = ()
    sized: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    stated: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)
    build_many: ManyBuilder | None = None
    build_outline: Outliner | None = None
    spec: Mapping[str, str] = field(default_factory=dict)
    explanation: str = ""

    def _summary(self) -> str:
        return shorten(f"{self.name}: {self.equation}")

    def _table(self) -> Table:
        bases = ", ".join(f"{name} is the {basis} basis" for name, basis in self.fixed.items())
        rows = {
            "kind": self.kind,
            "ranks": " ".join(self.ranks),
            "sizes": " ".join(self.stated),
            "constants": bases,
        }
        cells = [(f"  {name}", text) for name, text in rows.items() if text]
        about = [f"  {line}" for line in wrap(self.explanation, 110)]
        return Table(cells, left=(0, 1), above=[f"{self.name}: {self.equation}"], below=about)

    def records(self) -> list[dict[str, Any]]:
        """One dictionary: name, kind, equation, ranks (bonds), sizes (labels that need a size), fixed, about."""
        row = {"name": self.name, "kind": self.kind, "equation": self.equation, "ranks": self.ranks}
        return [{**row, "sizes": self.stated, "fixed": dict(self.fixed), "about": " ".join(self.explanation.split())}]

    @property
    def tensor(self) -> str:
        """The name of the first tensor of the left side, which is the kernel of a decomposition."""
        return self.variables[0] if self.variables else "K"

    def places(self, network: Network, *, bind: Mapping[str, str] | None = None) -> list[Place]:
        """List every place of `network` where the rule applies; `bind` narrows them down, see `apply`."""
        return list(self.find(network, Options(bind=bind or {})))

    def apply(
        self,
        target: Network | Mapping[str, Any] | Any,
        size: object = None,
        *,
        values: Mapping[str, Any] | None = None,
        **choices: Unpack[Choices],
    ) -> Fit:
        """Apply the rule once.

        Args:
            target: a tensor, which is the left side's only one; the values of the left side's tensors, name ->
                elements; or a network.
            size: of the new bonds, see `tn.fitting.read_size`: 8, {"p": 8, "q": 4}, "keep 0.5", "error 0.01",
                "parameters 0.3". A rule whose right side has no new bonds needs none.
            values: values of a network's tensors; may be left out for exact rules.
            choices: see `Choices`: at, bind, sizes, fixed, constraints, metric, start,
                seed, starts, sweeps, dtype, stability.

        Returns:
            The network after the step, its values, and the trace of this one step.

        Raises:
            RuleError: no place, several places and no `at`, or the rule cannot do what was asked.
            RankError: the size cannot be read, or a bond cannot have it.
            ValuesError, SizeError: values do not fit the left side, or a size of a label is missing.

        Example:
            >>> tn.rule("K[o i h w] => A[o p] B[p i q] C[q h w]").apply(conv.weight, {"p": 8, "q": 4})
        """
        return self.step(self._start_fit(target, values), choices.get("at"), Options.of(size, choices))

    def apply_many(
        self,
        targets: Sequence[Mapping[str, Any] | Any],
        size: object = None,
        *,
        metrics: Sequence[Metric] | None = None,
        **choices: Unpack[Choices],
    ) -> list[Fit]:
        """Apply the rule to many values of its left side. Values of one shape are fitted side by side.

        Args:
            targets: a tensor, or the values of the left side's tensors, once for each application.
            size: of the new bonds, the same for all.
            metrics: one for each target.

        Returns:
            For each target what `apply` would return, up to rounding; a descent may end in another minimum that is
            about as good.
        """
        if metrics is not None and len(metrics) != len(targets):
            raise RuleError(f"{len(metrics)} metrics are given for {len(targets)} targets")
        fits = [self._start_fit(target, None) for target in targets]
        shared = Options.of(size, choices)
        jobs = []
        for number, fit in enumerate(fits):
            options = shared if metrics is None else replace(shared, metric=metrics[number])
            self._check_options(options)
            jobs.append((fit.network, self._choose(fit.network, choices.get("at"), options), fit.values, options))
        changes = [self.build(*job) for job in jobs] if self.build_many is None else self.build_many(jobs)
        steps = zip(fits, jobs, changes, strict=True)
        return [fit.after(self, place, options, change) for fit, (_, place, _, options), change in steps]

    def outline(self, target: Network | Mapping[str, Any] | Any, **choices: Unpack[Choices]) -> Outline | None:
        """What the rule would make of a target at any size, without a fit; None where only a fit can show it.

        Arguments and errors are those of `apply`.
        """
        if self.build_outline is None or choices.get("constraints"):
            return None
        fit = self._start_fit(target, None)
        options = Options.of(None, choices)
        self._check_options(replace(options, size=dict.fromkeys(self.ranks, 1)))
        return self.build_outline(
            fit.network, self._choose(fit.network, choices.get("at"), options), fit.values, options
        )

    def step(self, fit: Fit, at: int | Place | None, options: Options) -> Fit:
        """Apply the rule once to a fit."""
        self._check_options(options)
        place = self._choose(fit.network, at, options)
        return fit.after(self, place, options, self.build(fit.network, place, fit.values, options))

    def _start_fit(self, target: Network | Mapping[str, Any] | Any, values: Mapping[str, Any] | None) -> Fit:
        if isinstance(target, Network):
            return start_fit(target, values or {})
        if not isinstance(target, Mapping):
            if not isinstance(target, torch.Tensor | np.ndarray):
                fix = "a tensor, values such as {'K': weight}, or a network"
                if isinstance(target, torch.nn.Module):
                    fix = (
                        "the weight of a layer: apply(layer.weight, size); tn.convert decomposes the layers of a model"
                    )
                raise RuleError(f"a rule is applied to an object of type {type(target).__name__}", fix=fix)
            target = {self.tensor: target}
        if values is not None:
            raise RuleError("values are given twice: as the target, and as values=")
        if self.start is None:
            raise RuleError(f"the rule {self.name!r} has no left side of its own", fix="give a network")
        return start_fit(self.start(target), target)

    def _check_options(self, options: Options) -> None:
        """Raise RuleError for a word that the rule does not have, or a choice that has no meaning for it."""
        bonds = options.size if isinstance(options.size, Mapping) else ()
        budget = self.kind == "approximate" and isinstance(options.size, ParameterBudget)
        if not self.ranks and not budget and not isinstance(options.size, Mapping):
            fact = f"the rule {self.name!r} has no bond whose size can be chosen"
            because = "the rule states the size of each of its bonds" if self.sized else None
            raise RuleError(fact, rule=self.equation, because=because, fix="leave the size out")
        for kind, where, words, known in (
            ("bond", "", bonds, (*self.ranks, *self.sized)),
            ("variable", "", options.bind, self.variables),
            ("label", " on its right side", options.sizes, self.labels),
        ):
            for word in words:
                if word not in known:
                    listed = " ".join(known) or "none"
                    raise RuleError(f"the rule {self.name!r} has no {kind} {word!r}{where}", known=listed)
        for label in self.stated:
            if label not in options.sizes:
                fix = f"sizes={{{label!r}: ...}}"
                raise RuleError(f"the rule {self.name!r} needs the size of {label!r}", fix=fix)
        for choice in ("fixed", "constraints", "metric", "start"):
            if getattr(options, choice) and choice not in self.takes:
                takes = " ".join(self.takes) or None
                raise RuleError(f"the choice {choice}= has no meaning for the rule {self.name!r}", takes=takes)

    def _choose(self, network: Network, at: int | Place | None, options: Options) -> Place:
        """The place that the caller means, with the match that was found there."""
        refusals: list[str] = []
        places = list(self.find(network, replace(options, refusals=refusals)))
        if isinstance(at, Place):
            if at not in places:
                raise RuleError(f"the rule {self.name!r} does not apply at this place", place=at, network=network)
            return places[places.index(at)]
        if not places:
            occurs = Counter(node.name for node in all_nodes(network) if isinstance(node, NamedTensor))
            tied = " ".join(name for name, times in occurs.items() if times > 1)
            raise RuleError(
                f"the rule {self.name!r} does not apply anywhere in the network",
                rule=self.equation,
                network=network,
                bind=options.bind or None,
                tied=f"{tied} (a tensor is rewritten at all its occurrences or not at all)" if tied else None,
                because=refusals[0] if refusals else None,
            )
        if at is None and len(places) > 1:
            listed = "\n".join(f"{number}: {place.text(network)}" for number, place in enumerate(places))
            fact = f"the rule {self.name!r} applies at {len(places)} places"
            raise RuleError(fact, places=listed, fix="choose one: at=0, ...")
        number = 0 if at is None else at
        if not isinstance(number, int):
            raise RuleError(f"at={number!r} is not a place", fix="at=0, or a place that the rule finds")
        if not 0 <= number < len(places):
            count = "1 place" if len(places) == 1 else f"{len(places)} places"
            raise RuleError(f"at={number}: the rule {self.name!r} applies at {count}, counted from 0")
        return places[number]
