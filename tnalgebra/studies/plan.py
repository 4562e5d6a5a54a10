"""What a study is to do: the rows to come, each a rewrite at a size in a scope."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from operator import index
from typing import Any, TypeAlias

from ..errors import RankError, StudyError, explain
from ..fitting import KeepFraction, ParameterBudget
from .kernels import Layer, no_match
from .options import StudyOptions
from .rewrites import Rewrite, read_rewrite
from .store import Key, Row

Size: TypeAlias = KeepFraction | ParameterBudget | int | Mapping[str, int]
"""How large a rewrite is: a fraction of the singular values, of cuts; a part of the whole network's parameters; the
rank of all bonds, or of each."""


@dataclass(frozen=True, eq=False)
class Task:
    """A row to come.

    layers: names of those that are rewritten.
    ranks: bond -> rank, where the size is of that kind.
    fitted: bond -> rank of the fit that the row is made from; larger where components are dropped from it.
    """

    key: Key
    layers: tuple[str, ...]
    ranks: Mapping[str, int] = field(default_factory=dict)
    fitted: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Work:
    """A rewrite and its rows, which are made together."""

    rewrite: Rewrite
    tasks: Sequence[Task]


def read_size(size: object) -> Size:
    """Check a size.

    Raises:
        RankError: it is of another kind, or a rank is below 1.
    """
    if isinstance(size, KeepFraction | ParameterBudget):
        return size
    ranks: Mapping[str, Any] = size if isinstance(size, Mapping) else {"r": size}
    try:
        read: dict[str, int] = {bond: 0 if isinstance(rank, bool) else index(rank) for bond, rank in ranks.items()}
    except TypeError:
        read = {}
    if not read or min(read.values()) < 1:
        fix = "KeepFraction(0.5) for cuts, ParameterBudget(0.5) of the whole network, or ranks: 16, {'r': 16}"
        raise RankError(explain(f"sizes holds {size!r}", fix=fix))
    return read if isinstance(size, Mapping) else read["r"]


def plan_rows(
    rewrites: Sequence[Rewrite],
    sizes: Sequence[Size],
    layers: Sequence[Layer],
    options: StudyOptions,
    *,
    stored: Sequence[Row] = (),
) -> list[Work]:
    """Combine each rewrite with every size that suits it, and with every scope.

    Args:
        layers: the kernels that may be rewritten.
        stored: rows that exist; a cut that they have in another wording takes theirs.

    Raises:
        RuleError: a rewrite is for none of the layers.
        RankError: a rewrite has no size, a size has no rewrite, a bond has no rank.
        StudyError: there is nothing to do; a scope matches no layer; an option has no use, or lacks images.
    """
    if not rewrites or not options.scope:
        fix = "at least one of each: a cut such as 'out | in kh kw' or another rewrite, a scope such as all"
        raise StudyError(explain("there is nothing to do", rewrites=len(rewrites), scopes=len(options.scope), fix=fix))
    cuts = dict.fromkeys(row["rewrite"] for row in stored if row["keep"] is not None)
    wordings = {read_rewrite(text).identity: text for text in reversed(cuts)}
    distinct: dict[Hashable, Rewrite] = {}
    for rewrite in rewrites:
        distinct.setdefault(rewrite.identity, replace(rewrite, text=wordings.get(rewrite.identity, rewrite.text)))
    suited = {rewrite: rewrite.suited(layers) for rewrite in distinct.values()}
    _check_sizes(sizes, suited)
    names = [layer.name for layer in layers if any(layer in chosen for chosen in suited.values())]
    for pattern in options.scope:
        if pattern not in ("all", "each") and not any(fnmatchcase(name, pattern) for name in names):
            raise StudyError(no_match(f"the scope {pattern!r} matches no layer that is rewritten", pattern, names))
    works = [Work(rewrite, _tasks(rewrite, sizes, chosen, options)) for rewrite, chosen in suited.items()]
    _check_options(options, [task.key for work in works for task in work.tasks])
    return works


def _check_sizes(sizes: Sequence[Size], suited: Mapping[Rewrite, Sequence[Layer]]) -> None:
    """No size is given in vain."""
    for size in sizes:
        if isinstance(size, KeepFraction) and not any(rewrite.cuts for rewrite in suited):
            raise RankError(explain(f"{size!r} is a size of cuts, and no rewrite is one", fix="another size, or a cut"))
        if isinstance(size, Mapping):
            bonds = {rewrite.text: rewrite.bonds(layers) for rewrite, layers in suited.items()}
            for bond in size:
                if not any(bond in known for known in bonds.values()):
                    listed = "\n".join(f"{text}: {' '.join(known) or 'none'}" for text, known in bonds.items())
                    raise RankError(explain(f"sizes holds {bond!r}, a bond of none of the rewrites", bonds=listed))


def _check_options(options: StudyOptions, keys: Sequence[Key]) -> None:
    """No option is given in vain, or lacks images."""
    for name, given, used in (
        ("metric", options.metric != "frobenius", any(key.metric == options.metric for key in keys)),
        ("components", options.components == "drop", any(key.ranks for key in keys)),
        ("curves", options.curves == "divergence", any(key.curves == "divergence" for key in keys)),
        ("report_metric", options.report_metric, any(key.reported for key in keys)),
    ):
        if given and not used:
            fact = f"{name}={getattr(options, name)!r} changes nothing for these rewrites and sizes"
            raise StudyError(explain(fact, fix="leave it out"))
        if given and name != "components" and options.calibration is None:
            fact = f"{name}={getattr(options, name)!r} needs calibration images"
            raise StudyError(explain(fact, fix="calibration=training images"))


def _tasks(rewrite: Rewrite, sizes: Sequence[Size], layers: Sequence[Layer], options: StudyOptions) -> list[Task]:
    """The rows of a rewrite, size by size, scope by scope."""
    scopes = _scopes(options.scope, layers)
    points = _points(rewrite, sizes, layers)
    ranked = [point for point in points if isinstance(point, Mapping)]
    largest = {bond: max(ranks[bond] for ranks in ranked) for bond in (ranked[0] if ranked else ())}
    drops = options.components == "drop"
    label = f"drop from {ranks_text(largest)}" if drops else "refit"
    tasks: dict[Key, Task] = {}
    for point in points:
        budget = isinstance(point, ParameterBudget)
        if budget and "all" not in scopes:
            scope, fix = ", ".join(options.scope), "all among the scopes, or ranks in place of a budget"
            raise StudyError(explain("a budget is for all layers together", scope=scope, fix=fix))
        for name, chosen in scopes.items() if not budget else [("all", scopes["all"])]:
            key, names = Key(rewrite.text, name), tuple(layer.name for layer in chosen)
            if isinstance(point, KeepFraction):
                task = Task(key._replace(keep=float(point.fraction)), names)
            else:
                equations = tuple(dict.fromkeys(rewrite.form(layer).equation for layer in chosen))
                key = key._replace(metric=options.metric, equations=equations)
                if isinstance(point, ParameterBudget):
                    task = Task(key._replace(budget=float(point.fraction), curves=options.curves), names)
                else:
                    key = key._replace(ranks=ranks_text(point) or None, components=label)
                    task = Task(key, names, point, largest if drops else point)
            task = replace(task, key=_with_calibration(task.key, options))
            tasks.setdefault(task.key, task)
    return list(tasks.values())


def _points(
    rewrite: Rewrite, sizes: Sequence[Size], layers: Sequence[Layer]
) -> list[KeepFraction | ParameterBudget | Mapping[str, int]]:
    """The sizes that suit a rewrite, ranks by its own bonds.

    Raises:
        RankError: none does, or a bond is left out.
    """
    bonds = rewrite.bonds(layers)
    points: list[KeepFraction | ParameterBudget | Mapping[str, int]] = []
    for size in sizes:
        if isinstance(size, KeepFraction):
            points += [size] if rewrite.cuts else []
        elif len(rewrite.cuts) > 1:  # several rules, which only fractions of singular values are for
            continue
        elif isinstance(size, ParameterBudget):
            points.append(size)
        elif ranks := dict.fromkeys(bonds, size) if isinstance(size, int) else {b: size[b] for b in bonds if b in size}:
            if len(ranks) < len(bonds):
                missing = [bond for bond in bonds if bond not in ranks]
                fact = f"the rewrite {rewrite.text!r} has no rank for {', '.join(map(repr, missing))}"
                fix = f"ranks such as {dict.fromkeys(missing, 8)}, as many for each bond"
                raise RankError(explain(fact, bonds=" ".join(bonds), fix=fix))
            points.append(ranks)
    if not points and (bonds or rewrite.cuts):
        fixes = ["KeepFraction(0.5)"] if rewrite.cuts else []
        fixes += [f"{dict.fromkeys(bonds, 8)}, ParameterBudget(0.5)"] if bonds else []
        fact = f"no size suits the rewrite {rewrite.text!r}"
        raise RankError(explain(fact, bonds=" ".join(bonds) or None, fix=", ".join(fixes)))
    return points or [{}]


def ranks_text(ranks: Mapping[str, int]) -> str:
    """As rows have it: "p=8 q=4"."""
    return " ".join(f"{bond}={rank}" for bond, rank in ranks.items())


def _with_calibration(key: Key, options: StudyOptions) -> Key:
    """The key with the images that the row looks at, if any, and the metric its errors are reported in beside."""
    reported = "input" if options.report_metric and key.metric == "frobenius" else None
    looks, images = key.metric != "frobenius" or key.curves == "divergence" or reported, options.calibration
    text = f"{len(images)} images {images.fingerprint[:8]}" if images is not None and looks else None
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
