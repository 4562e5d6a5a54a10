"""What a study is to do: which kernels, which cuts and rewrites, at which sizes, in which scopes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Protocol

from torch import nn

from ..errors import RankError, RuleError, StudyError, explain
from ..model import Curves, MetricName
from .cuts import Identity, Treatment, treatment_of
from .kernels import Asked, Layer, Treated, Workbench, layers_of, no_match
from .rewrites import NO_FORM, Budgeted, Components, Ranked, Rewrite, Sweep, free_bonds, points_of
from .store import Key, Row


class Work(Protocol):
    """What is done to kernels; the rows of one work are made together."""

    @property
    def text(self) -> str: ...

    def treated(self, todo: Sequence[Asked], bench: Workbench) -> Iterator[tuple[Asked, dict[str, Treated]]]: ...


@dataclass(frozen=True, eq=False)
class Wishes:
    """What the caller asks for, read and checked as far as it can be without the network.

    treatments, keep: cuts, and the fractions of their singular values.
    rewrites, sweep, budgets: rewrites, the ranks of their bonds, and parts of the network's parameters.
    metric, components, curves: see `study`.
    calibration: as rows say it; None where there are no images.
    reported: the metric in which errors are reported beside that of the fits; None for none.
    scope, skip: as given.
    """

    treatments: Sequence[Treatment]
    keep: Sequence[float]
    rewrites: Sequence[Rewrite]
    sweep: Sweep
    budgets: Sequence[float]
    metric: MetricName
    components: Components
    curves: Curves
    calibration: str | None
    reported: str | None
    scope: Sequence[str]
    skip: Sequence[str]


@dataclass(frozen=True, eq=False)
class Plan:
    """layers: that may be rewritten. works: what is done, each with its rows."""

    layers: Sequence[Layer]
    works: Sequence[tuple[Work, Sequence[Asked]]]

    @property
    def rows(self) -> list[Asked]:
        return [asked for _, rows in self.works for asked in rows]

    @property
    def cuts(self) -> list[str]:
        """As they stand in rows."""
        return list(dict.fromkeys(asked.key.rewrite for asked in self.rows if asked.key.equations is None))

    @property
    def equations(self) -> dict[str, list[str]]:
        """Rewrite -> its equations."""
        return equations_of([asked.key.fields for asked in self.rows])


def equations_of(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Rewrite -> the equations that rows have of it, each once."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for equation in row["equations"] or ():
            there = found.setdefault(row["rewrite"], [])
            if equation not in there:
                there.append(equation)
    return found


def planned(model: nn.Module, wishes: Wishes, *, rows: Sequence[Row] = ()) -> Plan:
    """The kernels that may be rewritten, and the rows to come, work by work.

    Args:
        rows: those there are; a cut that they have in another wording takes theirs.

    Raises:
        RuleError, RankError, ValuesError, LayerError, StudyError: see `layers_of`; there is nothing to do; a cut, a
            rewrite or a scope is for none of the layers; a bond has no rank.
    """
    _check_complete(wishes)
    wordings: dict[Identity, str] = {}
    for text in dict.fromkeys(row["rewrite"] for row in rows if row["keep"] is not None):
        wordings.setdefault(treatment_of(text).identity, text)
    first: dict[Identity, Treatment] = {}
    for each in wishes.treatments:
        first.setdefault(each.identity, replace(each, text=wordings.get(each.identity, each.text)))
    layers = layers_of(model, wishes.skip)
    cut = {treatment: _cut_layers(treatment, layers) for treatment in first.values()}
    rewritten = {each: _rewritten_layers(each, layers) for each in wishes.rewrites}
    _check_bonds(wishes, rewritten)
    fitting = [*cut.values(), *rewritten.values()]
    names = [layer.name for layer in layers if any(layer in chosen for chosen in fitting)]
    for pattern in wishes.scope:
        if pattern not in ("all", "each") and not any(fnmatchcase(name, pattern) for name in names):
            raise StudyError(no_match(f"the scope {pattern!r} matches no layer that is cut", pattern, names))
    works: list[tuple[Work, Sequence[Asked]]] = [
        (treatment, _cut_rows(treatment, wishes, there)) for treatment, there in cut.items()
    ]
    for rewrite, there in rewritten.items():
        works += _ranked(rewrite, wishes, there)
        works += _budgeted(rewrite, wishes, there)
    return Plan(layers, works)


def _check_complete(wishes: Wishes) -> None:
    """Nothing that is asked for lacks what it needs, or is given in vain."""
    if not wishes.scope or not (wishes.rewrites or wishes.treatments) or (wishes.treatments and not wishes.keep):
        raise StudyError(
            explain(
                "there is nothing to do",
                cuts=len(wishes.treatments),
                keep=len(wishes.keep),
                rewrites=len(wishes.rewrites) or None,
                scope=len(wishes.scope),
                fix="at least one of each: a cut such as 'out | in kh kw', a fraction such as 0.5, a scope such as all",
            )
        )
    drops, diverges = wishes.components == "drop", wishes.curves == "divergence"
    frobenius = wishes.metric == "frobenius"
    for given, what, missing, needed in (
        (wishes.keep, "keep", wishes.treatments, "cuts"),
        (wishes.sweep, "ranks", wishes.rewrites, "rewrites"),
        (wishes.budgets, "budget", wishes.rewrites, "rewrites"),
        (not frobenius, f"metric={wishes.metric!r}", wishes.rewrites, "rewrites"),
        (drops, "components='drop'", wishes.sweep, "ranks"),
        (diverges, "curves='divergence'", wishes.budgets, "budget"),
    ):
        if given and not missing:
            raise StudyError(explain(f"{what} is given, and no {needed}", fix=f"{needed}=..., or leave it out"))
    if wishes.reported and not wishes.treatments and not frobenius:
        raise StudyError(
            explain(
                "report_metric adds nothing: rows of other metrics have their error already",
                metric=wishes.metric,
                fix="leave it out, or cuts or metric='frobenius'",
            )
        )
    for needs, what in (
        (not frobenius, f"metric={wishes.metric!r}"),
        (diverges, "curves='divergence'"),
        (wishes.reported is not None, "report_metric"),
    ):
        if needs and wishes.calibration is None:
            raise StudyError(explain(f"{what} needs calibration images", fix="calibration=training images"))


def _cut_layers(treatment: Treatment, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    chosen = tuple(layer for layer in layers if frozenset(layer.labels) == treatment.labels)
    if not chosen:
        raise RuleError(_fits_nothing(treatment, layers))
    return chosen


def _cut_rows(treatment: Treatment, wishes: Wishes, layers: tuple[Layer, ...]) -> list[Asked]:
    return [
        Asked(_calibrated(Key(treatment.text, name, keep=fraction), wishes), chosen)
        for fraction in wishes.keep
        for name, chosen in _scopes(wishes.scope, layers).items()
    ]


def _rewritten_layers(rewrite: Rewrite, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Those that there is a form of the rewrite for. Raises RuleError where there are none, with the reasons."""
    chosen: list[Layer] = []
    reasons: dict[tuple[str, ...], str] = {}
    for layer in layers:
        try:
            rewrite.form(layer)
        except NO_FORM as error:
            reasons.setdefault(layer.labels, f"K[{' '.join(layer.labels)}] of {layer.name!r}: {error}")
        else:
            chosen.append(layer)
    if not chosen:
        raise RuleError(explain(f"the rewrite {rewrite.text!r} fits no layer", because="\n".join(reasons.values())))
    return tuple(chosen)


def _bonds(rewrite: Rewrite, layers: Sequence[Layer]) -> list[str]:
    return list(dict.fromkeys(bond for layer in layers for bond in free_bonds(rewrite.form(layer).rule)))


def _check_bonds(wishes: Wishes, rewritten: Mapping[Rewrite, Sequence[Layer]]) -> None:
    known = {rewrite.text: _bonds(rewrite, layers) for rewrite, layers in rewritten.items()}
    for bond in wishes.sweep:
        if not any(bond in bonds for bonds in known.values()):
            listed = "\n".join(f"{text}: {' '.join(bonds) or 'none'}" for text, bonds in known.items())
            raise RankError(explain(f"ranks holds {bond!r}, a bond of none of the rewrites", bonds=listed))


def _ranked(rewrite: Rewrite, wishes: Wishes, layers: tuple[Layer, ...]) -> list[tuple[Work, Sequence[Asked]]]:
    bonds = _bonds(rewrite, layers)
    if wishes.budgets and not any(bond in wishes.sweep for bond in bonds):
        return []
    points = points_of(rewrite.text, bonds, wishes.sweep)
    work = Ranked(rewrite, {text or None: ranks for text, ranks in points.items()}, wishes.components)
    return [
        (
            work,
            [
                Asked(
                    _calibrated(
                        Key(
                            rewrite.text,
                            name,
                            ranks=text,
                            metric=rewrite.metric,
                            components=work.label,
                            equations=_equations(rewrite, chosen),
                        ),
                        wishes,
                    ),
                    chosen,
                )
                for text in work.points
                for name, chosen in _scopes(wishes.scope, layers).items()
            ],
        )
    ]


def _budgeted(rewrite: Rewrite, wishes: Wishes, layers: tuple[Layer, ...]) -> list[tuple[Work, Sequence[Asked]]]:
    if not wishes.budgets:
        return []
    if "all" not in wishes.scope:
        raise StudyError(
            explain(
                "a budget is for all layers together",
                scope=", ".join(wishes.scope),
                fix="all among the scopes, or ranks in place of a budget",
            )
        )
    rows = [
        Asked(
            _calibrated(
                Key(
                    rewrite.text,
                    "all",
                    budget=budget,
                    metric=rewrite.metric,
                    curves=wishes.curves,
                    equations=_equations(rewrite, layers),
                ),
                wishes,
            ),
            layers,
        )
        for budget in wishes.budgets
    ]
    return [(Budgeted(rewrite, wishes.curves), rows)]


def _calibrated(key: Key, wishes: Wishes) -> Key:
    """The key of a row, with the images it looks at, if any, and the metric its errors are reported in beside."""
    frobenius = key.metric == "frobenius"
    looks = not frobenius or key.curves == "divergence" or wishes.reported is not None
    return key._replace(
        calibration=wishes.calibration if looks else None,
        reported=wishes.reported if frobenius else None,
    )


def _equations(rewrite: Rewrite, layers: Sequence[Layer]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(rewrite.form(layer).equation for layer in layers))


def _fits_nothing(treatment: Treatment, layers: Sequence[Layer]) -> str:
    """Why a cut is for none of the layers: which labels it lacks, or has too many, compared with the nearest kernel."""
    kinds = list(dict.fromkeys(layer.labels for layer in layers))
    nearest = min(kinds, key=lambda labels: len(treatment.labels.symmetric_difference(labels)))
    return explain(
        f"the cut {treatment.text!r} fits no layer: no kernel has just its labels",
        missing=" ".join(label for label in nearest if label not in treatment.labels) or None,
        unknown=" ".join(sorted(treatment.labels.difference(nearest))) or None,
        kernels="\n".join(" ".join(labels) for labels in kinds),
        fix="each label of a kernel on one side of the cut, once",
    )


def _scopes(scope: Sequence[str], layers: tuple[Layer, ...]) -> dict[str, tuple[Layer, ...]]:
    """Name of each scope -> its layers; a glob that matches none of these layers is left out."""
    found: dict[str, tuple[Layer, ...]] = {}
    for pattern in scope:
        if pattern == "all":
            found["all"] = layers
        elif pattern == "each":
            found |= {layer.name: (layer,) for layer in layers}
        elif chosen := tuple(layer for layer in layers if fnmatchcase(layer.name, pattern)):
            found[pattern] = chosen
    return found
