"""The rows that a study will make: each is a rewrite, at a size, in a scope."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeGuard

from ..errors import RankError, RuleError, StudyError
from ..fitting import KeepFraction, ModelBudget, ParameterBudget, Rank, RelativeError, Size, TimeBudget, size_text
from .kernels import Layer, no_match
from .options import StudyOptions
from .rewrites import Rewrite
from .rows import BASELINE, Key, Row


@dataclass(frozen=True, eq=False)
class Task:
    """A row that will be made.

    rewrite: None for the row of a network as it is.
    layers: names of the layers that are rewritten.
    size: that of the row: `KeepFraction` for cuts, a budget, or the rank of each bond.
    fitted: the ranks at which the fit is made; larger than the size where components are then dropped.
    budgets: of a row under a budget: all budgets of its rewrite, which are planned together.
    """

    rewrite: Rewrite | None
    key: Key
    layers: tuple[str, ...]
    size: Size
    fitted: Mapping[str, Rank]
    budgets: tuple[ModelBudget, ...] = ()


def untouched(model: str) -> Task:
    """The row of a network as it is."""
    return Task(None, BASELINE._replace(model=model), (), {}, {})


def plan_rows(
    rewrites: Sequence[Rewrite],
    sizes: Sequence[Size],
    layers: Mapping[str, Sequence[Layer]],
    options: StudyOptions,
    *,
    stored: Sequence[Row] = (),
) -> list[Task]:
    """For each network, combine each rewrite with every size that suits it, every scope, and the seeds of its fits.

    A rewrite, a size or a scope is left out for a network that has no layers for it.

    Args:
        layers: name of a network -> its kernels that may be rewritten.
        stored: the rows that exist. A cut that they have in another wording takes theirs.

    Returns:
        The rows of the first network, then those of the next.

    Raises:
        RuleError: a rewrite exists for none of the layers.
        RankError: a rewrite has no size, a size has no rewrite, or a bond has no rank.
        StudyError: nothing is to be done; a scope matches no layer; an option has no use, or lacks images.
    """
    if not rewrites or not options.scope:
        fix = "at least one of each: a cut such as 'out | in kh kw' or another rewrite, a scope such as all"
        raise StudyError("the study has no rows", rewrites=len(rewrites), scopes=len(options.scope), fix=fix)
    cuts = dict.fromkeys(row["rewrite"] for row in stored if row["keep"] is not None)
    wordings = {Rewrite.read(text).identity: text for text in reversed(cuts)}
    distinct: dict[Hashable, Rewrite] = {}
    for rewrite in rewrites:
        distinct.setdefault(rewrite.identity, replace(rewrite, text=wordings.get(rewrite.identity, rewrite.text)))
    suited = [pair for rewrite in distinct.values() for pair in _suited(rewrite, layers)]
    _check_sizes(sizes, suited)
    rewritten = {(pair.model, layer.name) for pair in suited for layer in pair.layers}
    everything = [(model, layer.name) for model, some in layers.items() for layer in some]
    names = list(dict.fromkeys(name for model, name in everything if (model, name) in rewritten))
    for pattern in options.scope:
        if pattern not in ("all", "each") and not any(fnmatchcase(name, pattern) for name in names):
            raise StudyError(no_match(f"the scope {pattern!r} matches no layer that is rewritten", pattern, names))
    tasks = [
        task for model in layers for pair in suited if pair.model == model for task in _tasks(pair, sizes, options)
    ]
    _check_options(options, [task.key for task in tasks])
    return tasks


class _Suited(NamedTuple):
    """A rewrite, and the layers of a network for which it exists."""

    rewrite: Rewrite
    model: str
    layers: list[Layer]


def _suited(rewrite: Rewrite, layers: Mapping[str, Sequence[Layer]]) -> list[_Suited]:
    """The networks that have layers for a rewrite. Raises RuleError if none has."""
    pairs: list[_Suited] = []
    errors: list[RuleError] = []
    for model, some in layers.items():
        try:
            pairs.append(_Suited(rewrite, model, rewrite.suited(some)))
        except RuleError as error:
            errors.append(error)
    if not pairs:
        raise errors[0]
    return pairs


def rounds_of(tasks: Iterable[Task]) -> list[list[Task]]:
    """Rows that need the same fits, together."""
    rounds: dict[tuple[object, ...], list[Task]] = {}
    for task in tasks:
        key = task.key
        alone = key.scope if key.metric == "output" else None
        rounds.setdefault((task.rewrite, key.keep, key.budget, *task.fitted.items(), key.seed, alone), []).append(task)
    return list(rounds.values())


def groups_of(tasks: Iterable[Task], layers: Mapping[str, Iterable[str]], *, spread: bool) -> list[list[Task]]:
    """Rows of one network and rewrite that are made one after another, in the order of `rounds_of`.

    The networks as they are come first, so that one that looks untrained is found before any other row is made. Rows
    of one layer are made in the order in which layers run, so that what is kept of one test is of use for the next.
    Those of several layers are in one group where they share fits.

    Args:
        layers: name of a network -> the names of all its layers, in the order in which they run.
        spread: whether groups are spread over workers. Otherwise all fits of a rewrite are in one group, each once.
    """
    order = {(model, name): place for model, names in layers.items() for place, name in enumerate(names)}
    models = {model: number for number, model in enumerate(layers)}
    groups: dict[tuple[Any, ...], list[Task]] = {}
    for task in tasks:
        key = task.key
        alone = len(task.layers) == 1 and (spread or key.keep is not None)  # a cut is quick, a fit may not be
        place = order[key.model, task.layers[0]] if alone else -1
        several = (key.scope, key.keep, key.budget is None, *task.fitted.items(), key.seed) if place < 0 else ()
        first = (task.rewrite is not None, models[key.model], place)
        groups.setdefault((*first, task.rewrite, *(several if spread else ())), []).append(task)
    sorted_groups = [groups[key] for key in sorted(groups, key=lambda key: key[:3])]
    return [[task for together in rounds_of(group) for task in together] for group in sorted_groups]


def _check_sizes(sizes: Sequence[Size], suited: Sequence[_Suited]) -> None:
    """Refuse a size that no rewrite can have."""
    for size in sizes:
        if isinstance(size, KeepFraction | RelativeError) and not any(
            pair.rewrite.cuts or _spectral(pair.rewrite, pair.layers) for pair in suited
        ):
            fact = f"the size {str(size)!r} needs bonds with singular values, and no rewrite has only such bonds"
            raise RankError(fact, fix="another size, or a cut among the rewrites")
        if isinstance(size, Mapping):
            bonds: dict[str, list[str]] = {}
            for pair in suited:
                bonds.setdefault(pair.rewrite.text, []).extend(pair.rewrite.bonds(pair.layers))
            for bond in size:
                if not any(bond in known for known in bonds.values()):
                    texts = {text: " ".join(dict.fromkeys(known)) or "none" for text, known in bonds.items()}
                    listed = "\n".join(f"{text}: {known}" for text, known in texts.items())
                    raise RankError(f"a size has the bond {bond!r}, which no rewrite has", bonds=listed)


def _spectral(rewrite: Rewrite, layers: Iterable[Layer]) -> bool:
    return bool(rewrite.bonds(layers)) and all(rewrite.form(layer).spectral for layer in layers)


def _check_options(options: StudyOptions, keys: Sequence[Key]) -> None:
    """Refuse an option that changes nothing, or that lacks images."""
    for name, chosen, used in (
        ("metric", options.metric != "frobenius", any(key.metric == options.metric for key in keys)),
        ("components", options.components == "drop", any((key.components or "").startswith("drop") for key in keys)),
        ("curves", options.curves == "divergence", any(key.curves == "divergence" for key in keys)),
        ("report_metric", options.report_metric, any(key.reported for key in keys)),
    ):
        if chosen and not used:
            fact = f"{name}={getattr(options, name)!r} changes nothing for these rewrites and sizes"
            raise StudyError(fact, fix="leave it out")
        if chosen and name != "components" and options.calibration is None:
            fact = f"{name}={getattr(options, name)!r} needs calibration images"
            raise StudyError(fact, fix="calibration=training images")


def _tasks(suited: _Suited, sizes: Sequence[Size], options: StudyOptions) -> list[Task]:
    """The rows of a rewrite and a network, size by size, scope by scope, seed by seed."""
    rewrite, model, layers = suited
    scopes = _scopes(options.scope, layers)
    points = _points(rewrite, sizes, layers)
    counted = [point for point in points if _counts(point)]
    largest = {bond: max(ranks[bond] for ranks in counted) for bond in (counted[0] if counted else ())}
    budgets = tuple(point for point in points if isinstance(point, ModelBudget))
    tasks: dict[Key, Task] = {}
    for point in points:
        budget = isinstance(point, ModelBudget)
        if budget and "all" not in scopes:
            fix = "all among the scopes, or ranks instead of a budget"
            raise StudyError("a budget is for all layers together", scope=", ".join(options.scope), fix=fix)
        for name, chosen in scopes.items() if not budget else [("all", scopes["all"])]:
            drops = largest if options.components == "drop" and largest and _counts(point) else None
            fitted = drops or (point if isinstance(point, Mapping) else {})
            sized = _with_size(Key(model, rewrite.text, name), rewrite, point, chosen, options=options, drops=drops)
            names = tuple(layer.name for layer in chosen)
            for key in [sized] if rewrite.cuts else [sized._replace(seed=seed) for seed in options.seeds]:
                tasks.setdefault(key, Task(rewrite, key, names, point, fitted, budgets))
    return list(tasks.values())


def _with_size(
    key: Key,
    rewrite: Rewrite,
    point: Size,
    layers: Sequence[Layer],
    *,
    options: StudyOptions,
    drops: Mapping[str, int] | None,
) -> Key:
    """The key with the size, and with what it implies; `drops`: ranks of the fit whose components are dropped."""
    if isinstance(point, KeepFraction):
        return _with_calibration(key._replace(keep=float(point.fraction)), options)
    equations = tuple(dict.fromkeys(rewrite.form(layer).equation for layer in layers))
    key = key._replace(metric=options.metric, equations=equations)
    if isinstance(point, Mapping):
        components = f"drop from {size_text(drops)}" if drops else "refit"
        key = key._replace(ranks=size_text(point) if point else None, components=components)
    else:
        part = float(point.fraction) if isinstance(point, ParameterBudget) else str(point)
        key = key._replace(budget=part, curves=options.curves)
    return _with_calibration(key, options)


def _counts(point: Size) -> TypeGuard[Mapping[str, int]]:
    """Whether a size is a mapping of bonds to integers."""
    return isinstance(point, Mapping) and all(isinstance(rank, int) for rank in point.values())


def _points(rewrite: Rewrite, sizes: Sequence[Size], layers: Sequence[Layer]) -> list[Size]:
    """The sizes that suit a rewrite; those of bonds as a mapping of its bonds.

    Raises:
        RankError: no size suits it, or a bond is left out.
    """
    bonds = rewrite.bonds(layers)
    points = [point for size in sizes if (point := _point(rewrite, size, bonds, layers)) is not None]
    if not points and (bonds or rewrite.cuts):
        fixes = ["'keep 0.5'"] if rewrite.cuts else []
        fixes += [f"{dict.fromkeys(bonds, 8)}, 'parameters 0.5'"] if bonds else []
        fact = f"no size suits the rewrite {rewrite.text!r}"
        raise RankError(fact, bonds=" ".join(bonds) or None, fix=", ".join(fixes))
    return points or [{}]


def _point(rewrite: Rewrite, size: Size, bonds: Sequence[str], layers: Sequence[Layer]) -> Size | None:
    """The size as one of this rewrite; None if it does not suit it."""
    if isinstance(size, KeepFraction) and rewrite.cuts:
        return size
    if len(rewrite.cuts) > 1:  # only a part of the singular values is a size of several cuts
        return None
    if isinstance(size, TimeBudget):
        fact = f"{str(size)!r} depends on measured times, so that the rows could not be made again"
        raise RankError(fact, fix="'multiply-adds 0.5'")
    if isinstance(size, ModelBudget):
        return size
    if isinstance(size, Mapping):
        ranks = {bond: size[bond] for bond in bonds if bond in size}
        missing = [bond for bond in bonds if bond not in ranks]
        if ranks and missing:
            fact = f"the rewrite {rewrite.text!r} has no rank for {', '.join(map(repr, missing))}"
            raise RankError(fact, bonds=" ".join(bonds), fix=f"ranks such as {dict.fromkeys(missing, 8)}")
        return ranks or None
    return dict.fromkeys(bonds, size) if bonds and (isinstance(size, int) or _spectral(rewrite, layers)) else None


def _with_calibration(key: Key, options: StudyOptions) -> Key:
    """The key with the images that the row depends on, if any, and the metric in which its errors are reported too."""
    reported = "input" if options.report_metric and key.metric == "frobenius" else None
    depends = key.metric != "frobenius" or key.curves == "divergence" or reported
    images = options.calibration
    text = f"{len(images)} images {images.fingerprint[:8]}" if images is not None and depends else None
    return key._replace(calibration=text, reported=reported)


def _scopes(patterns: Sequence[str], layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Name of each scope -> its layers; a glob that matches none of these layers is left out."""
    scopes: dict[str, list[Layer]] = {}
    for pattern in patterns:
        if pattern == "all":
            scopes["all"] = list(layers)
        elif pattern == "each":
            scopes |= {layer.name: [layer] for layer in layers}
        elif chosen := [layer for layer in layers if fnmatchcase(layer.name, pattern)]:
            scopes[pattern] = chosen
    return scopes
