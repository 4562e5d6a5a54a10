"""A study on a page: its rows, and the questions of the paper answered from them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from statistics import fmean
from typing import Any

from .._tables import plural
from ..errors import StudyError, TnalgebraError
from ..studies import (
    Correlation,
    Draws,
    LargestCut,
    Row,
    RowScope,
    curve_of,
    depth_correlation,
    drawn_networks,
    norm_correlation,
    of_one_layer,
    rank_correlation,
    touched,
)
from .parts import Answer, Column, Dataset, Drawing, Panel, Section, as_number, ranks_text, times
from .runs import Run

QUESTION_DEPTH = "Which layer bears least?"
QUESTION_HALF = "What is best at half of the parameters?"
QUESTION_NORM = "Does the norm predict the accuracy?"

ERROR = "relative error of the kernel"
CHANGE = "change of top-1 (points)"
PARAMETERS_KEPT = "parameters kept"
MEAN = "mean of the rewrites"
HALF = 0.5
DRAWS = Draws(resamples=1000)
MOST_DRAWINGS = 40

BOUNDS = {"smallest": "at most: the smallest tested costs more", "largest": "at least: no tested one costs more"}
"""Where the sizes that were tested end before a layer's largest harmless error: what is known of it."""


def study_section(run: Run) -> Section:
    """The section of a study's folder."""
    baseline = next((row for row in run.rows if not touched(row)), None)
    rows = [row for row in run.rows if touched(row)]
    sound = [row for row in run.rows if _is_sound(row)]
    notes = list(run.notes)
    if len(sound) < len(run.rows):
        missing = plural(len(run.rows) - len(sound), "row")
        notes.append(f"{missing} with numbers that are not finite: in the tables, but in none of the answers.")
    single, several = [row for row in rows if of_one_layer(row)], [row for row in rows if not of_one_layer(row)]
    datasets = [_several(several)] if several else []
    datasets += [_single(single, _layers(rows))] if single else []
    return Section(
        title=run.folder.name,
        kind="study",
        facts=_facts(run, baseline, _layers(rows)),
        details=run.details,
        notes=notes,
        answers=[answer for answer in (_depth(sound), _half(sound), _norm(sound)) if answer is not None],
        datasets=datasets,
        drawings=_drawings(rows),
    )


def _facts(run: Run, baseline: Row | None, layers: Sequence[str]) -> dict[str, str]:
    """What was run, without what is not known."""
    some = baseline or run.rows[0]
    facts = {
        "network": str(some["model"]),
        "top-1 as it is": f"{times(baseline['accuracy'], 100):.2f} %" if baseline is not None else "",
        "data": str(run.config.get("data", "")),
        "test images": f"{some['images']:,}",
        "rows": f"{len(run.rows):,}",
        "layers": ", ".join(layers) if len(layers) < 4 else str(len(layers)),
        "version": " and ".join(dict.fromkeys(f"tnalgebra {row['version']}" for row in run.rows)),
        "config": str(some["config"]),
    }
    return {name: text for name, text in facts.items() if text}


def _is_sound(row: Row) -> bool:
    """Whether the numbers that answers are taken from are finite."""
    numbers = [row["accuracy"], row["accuracy_change"], row["parameters_kept"]]
    numbers += [layer.get("relative_error") for layer in row["layers"].values()]
    return all(as_number(value) is not None for value in numbers)


def _layers(rows: Sequence[Row]) -> list[str]:
    """The names of all layers that were rewritten, in the order of the row that has most of them."""
    widest = max((list(row["layers"]) for row in rows), key=len, default=[])
    return list(dict.fromkeys([*widest, *(name for row in rows for name in row["layers"])]))


# Answers ----------------------------------------------------------------------------------------------------------


def _at_most(rows: Sequence[Row]) -> float:
    """The loss that counts as harmless: a point of accuracy, and at least one image."""
    counts = [as_number(row["images"]) for row in rows]
    return max(0.01, *(1 / count for count in counts if count))


def _depth(rows: Sequence[Row]) -> Answer | None:
    at_most = _at_most(rows) if rows else 0.01
    try:
        claim = depth_correlation(rows, at_most=at_most, size="relative_error", draws=DRAWS)
    except StudyError:
        return None  # without rows of single layers
    names, curves = _shared(claim.cuts)
    sizes = {name: [cut.size for curve in curves for cut in claim.cuts[curve] if cut.layer == name] for name in names}
    means = {name: fmean(values) for name, values in sizes.items()}
    mean = rank_correlation(range(len(names)), [*means.values()], units=names, draws=DRAWS)
    order = sorted(means, key=lambda name: means[name])
    points = f"{100 * at_most:g} {'point' if math.isclose(at_most, 0.01) else 'points'} of accuracy"
    depth = {"rises with depth": 1, "falls with depth": -1}
    trend = next((text for text, sign in depth.items() if _clear(mean, sign)), "does not clearly depend on depth")
    text = (
        f"Alone, it can lose {means[order[0]]:.2f} of its norm before the network loses more than {points}. This is "
        f"the relative error of its kernel, averaged over {plural(len(curves), 'rewrite')}. Next come "
        f"{' and '.join(f'{name} ({means[name]:.2f})' for name in order[1:3])}; {order[-1]} bears most "
        f"({means[order[-1]]:.2f}). What a layer bears {trend}: {_correlation(mean, 'depth')}."
    )
    lines = [
        (cut.layer, name, cut.size, BOUNDS.get(cut.bound or "")) for name, cuts in claim.cuts.items() for cut in cuts
    ]
    lines += [(name, MEAN, means[name], None) for name in names]
    return Answer(QUESTION_DEPTH, f"{order[0]} bears least.", text, _by_depth(lines, _layers(rows)))


def _by_depth(lines: Sequence[tuple[str, str, float, str | None]], layers: Sequence[str]) -> Dataset:
    """What layers bear: lines of a layer, a rewrite, the largest harmless error, and how that is bounded."""
    depths = {name: number for number, name in enumerate(layers, 1)}
    size = "largest harmless relative error"
    columns = [
        Column("depth", [depths.get(line[0]) for line in lines], "count"),
        Column("layer", [line[0] for line in lines]),
        Column("rewrite", [line[1] for line in lines], choose=MEAN),
        Column(size, [line[2] for line in lines], "short"),
        Column("bound", [line[3] for line in lines]),
    ]
    panels = [Panel("What each layer bears, by depth", "layer", size, "lines")]
    return Dataset("What each layer bears", columns, panels, series="rewrite", folded=True)


def _shared(cuts: Mapping[str, Sequence[LargestCut]]) -> tuple[list[str], list[str]]:
    """Layers, and rewrites that all of them have: those with which the most layers can be compared by the most."""
    layers = {curve: [cut.layer for cut in largest] for curve, largest in cuts.items()}
    choices = [(names, [curve for curve in layers if {*names} <= {*layers[curve]}]) for names in layers.values()]
    return max(choices, key=lambda choice: (len(choice[0]) * len(choice[1]), len(choice[0])))


def _clear(correlation: Correlation, sign: int) -> bool:
    """Whether a correlation has this sign in its whole interval."""
    return correlation.why is None and min(sign * correlation.low, sign * correlation.high) > 0


def _correlation(correlation: Correlation, what: str) -> str:
    if correlation.why is not None:
        return f"no rank correlation with {what} ({correlation.why})"
    interval = f"95 % interval {correlation.low:+.2f} to {correlation.high:+.2f}"
    return f"rank correlation with {what} {correlation.rho:+.2f}, {interval}"


def _half(rows: Sequence[Row]) -> Answer | None:
    """The best row of each rewrite that keeps at most half of the parameters."""
    whole = [row for row in rows if row["scope"] == "all" and touched(row) and row["layers"]]
    if not whole:
        return None
    best: dict[str, Row] = {}
    for row in whole:
        if row["parameters_kept"] <= HALF + 1e-9:
            name = _name(row)
            if name not in best or row["accuracy"] > best[name]["accuracy"]:
                best[name] = row
    if not best:
        least = min(row["parameters_kept"] for row in whole)
        return Answer(QUESTION_HALF, "No row keeps as few.", f"The smallest network keeps {least:.3f} of them.")
    ranked = sorted(best.values(), key=lambda row: -row["accuracy"])
    cuts = [row for row in ranked if row["keep"] is not None]
    text = (
        "All layers are rewritten together, and nothing is trained again. Of all rows that keep at most half of the "
        "network's parameters, this has the highest accuracy."
    )
    if cuts and cuts[0] is not ranked[0]:
        text += f" Of the cuts the best is {_best(cuts[0])}."
    if len(ranked) > 1:
        text += f" The table has the best row of each rewrite, down to {_best(ranked[-1])}."
    table = Dataset("The best row of each rewrite within half", _columns(ranked, several=True))
    return Answer(QUESTION_HALF, f"{_best(ranked[0])}.", text, table)


def _best(row: Row) -> str:
    kept = f"{row['parameters_kept']:.2f} of the parameters"
    return f"{_name(row)} at {_size(row)}, with {100 * row['accuracy']:.2f} % at {kept}"


def _norm(rows: Sequence[Row]) -> Answer | None:
    texts, shorts = [], []
    columns: dict[str, list[Any]] = {"rows": [], "rewrite": [], "error": [], "loss": []}
    scopes: dict[RowScope, str] = {"each": "one layer rewritten", "all": "all layers rewritten"}
    for scope, what in scopes.items():
        try:
            claim = norm_correlation(rows, error="relative_error", scope=scope, draws=DRAWS)
        except StudyError:
            continue
        across, within = claim.across, claim.mean_within
        shorts.append(f"With {what}, {_verdict(across)}.")
        texts.append(
            f"With {what}, over all {across.points} rows: {_correlation(across, 'the loss of accuracy')}. Within one "
            f"rewrite, on average: {_correlation(within, 'the loss')}."
        )
        for name, points in claim.points.items():
            columns["rows"] += [what] * len(points)
            columns["rewrite"] += [name] * len(points)
            columns["error"] += [error for error, _ in points]
            columns["loss"] += [100 * loss for _, loss in points]
    if not texts:
        return None
    loss = "loss of top-1 (points)"
    return Answer(
        QUESTION_NORM,
        " ".join(shorts),
        " ".join(texts),
        Dataset(
            "Loss of accuracy against loss of norm",
            [
                Column("rows", columns["rows"], choose=columns["rows"][0]),
                Column("rewrite", columns["rewrite"], choose=True),
                Column(ERROR, columns["error"], "short"),
                Column(loss, columns["loss"], "change"),
            ],
            [Panel("Each point is a row", ERROR, loss)],
            series="rewrite",
            folded=True,
        ),
    )


def _verdict(correlation: Correlation) -> str:
    """A correlation in words, by the lower end of its interval."""
    if correlation.why is not None or not _clear(correlation, 1):
        return "the rows do not show that it does"
    strengths = ((0.8, "it does, closely"), (0.5, "it does, with exceptions"), (0.0, "it does, weakly"))
    return next(text for least, text in strengths if correlation.low > least)


# Tables -----------------------------------------------------------------------------------------------------------


def _name(row: Row) -> str:
    """The name that rows of one curve share: budgets are a curve of their own."""
    return curve_of(row) + ("" if row["budget"] is None else ", budget")


def _size(row: Row) -> str:
    """The size of a row as it was written; "keep 0.5" for "a=keep 0.5 b=keep 0.5"."""
    if row["keep"] is not None:
        return f"keep {row['keep']:g}"
    if row["budget"] is not None:
        return f"parameters {row['budget']:g}" if isinstance(row["budget"], float) else str(row["budget"])
    ranks = str(row["ranks"] or "")
    parts = {part.strip() for part in re.findall(r"=\s*([^=]*?)(?=\s+\w+=|$)", ranks)}
    return parts.pop() if len(parts) == 1 and not ranks.startswith("r=") and "keep" in ranks else ranks


def _root(square: object) -> object:
    """The root of a number; anything else as it is."""
    value = as_number(square)
    return square if value is None or value < 0 else math.sqrt(value)


def _of_layers(row: Row, name: str) -> float | None:
    """The root mean square of a number of each layer."""
    values = [as_number(layer.get(name)) for layer in row["layers"].values()]
    known = [value for value in values if value is not None]
    return (
        math.sqrt(math.fsum(value**2 for value in known) / len(known)) if known and len(known) == len(values) else None
    )


def _ranks(row: Row) -> str | None:
    """The ranks of the layer of a row of one layer."""
    (layer,) = row["layers"].values()
    if "rank" in layer:
        return f"{layer['rank']} of {layer.get('values')}"
    return ranks_text(layer.get("ranks"))


def _columns(rows: Sequence[Row], *, several: bool) -> list[Column]:
    """The columns of rows; `several` says whether these are of several layers."""
    scopes = {row["scope"] for row in rows}
    scope = Column("scope" if several else "layer", [row["scope"] for row in rows], choose=True)
    what = [] if scopes == {"all"} else [scope]
    middle = [] if several else [Column("ranks", [_ranks(row) for row in rows])]
    sizes = [_size(row) for row in rows]
    first: bool | str = True if several or "keep 0.5" not in sizes else "keep 0.5"
    return [
        *what,
        Column("rewrite", [_name(row) for row in rows], choose=True),
        Column("size", sizes, choose=first),
        *middle,
        Column("top-1 %", [times(row["accuracy"], 100) for row in rows], "percent"),
        Column(CHANGE, [times(row["accuracy_change"], 100) for row in rows], "change"),
        Column(ERROR, [_root(row["mean_squared_relative_error"]) for row in rows], "short"),
        Column("relative error of the output", [_of_layers(row, "output_error") for row in rows], "short"),
        Column(PARAMETERS_KEPT, [row["parameters_kept"] for row in rows], "short"),
        Column("multiply-adds kept", [row.get("multiply_adds_kept") for row in rows], "short"),
        Column("seconds of the row", [row["seconds"] for row in rows], "short"),
    ]


def _several(rows: Sequence[Row]) -> Dataset:
    panels = [
        Panel("Accuracy", PARAMETERS_KEPT, "top-1 %", "lines"),
        Panel("Norm that is lost", PARAMETERS_KEPT, ERROR, "lines"),
        Panel("Time of the row: fits and test", PARAMETERS_KEPT, "seconds of the row", log=True),
    ]
    text = "A point is a row. The root of the mean squared relative error stands for the error of several kernels."
    return Dataset("Several layers at once", _columns(rows, several=True), panels, "rewrite", text)


def _single(rows: Sequence[Row], layers: Sequence[str]) -> Dataset:
    place = {name: number for number, name in enumerate(layers)}
    ordered = sorted(rows, key=lambda row: place[row["scope"]])
    panels = [
        Panel("Accuracy, layer by layer", "layer", CHANGE),
        Panel("Norm that is lost", "layer", ERROR),
        Panel("Time of the row: fits and test", "layer", "seconds of the row", log=True),
        Panel("Change of top-1 (points): each layer, each rewrite", "rewrite", "layer", "cells", z=CHANGE),
    ]
    text = "Only one layer is rewritten in a row, all others stay as they are. The menu chooses the size."
    return Dataset("One layer at a time", _columns(ordered, several=False), panels, "rewrite", text)


def _drawings(rows: Sequence[Row]) -> list[Drawing]:
    """The kernel, and what each rewrite makes of it; a text that is not a network is left out."""
    try:
        networks = drawn_networks(rows)
    except TnalgebraError:
        return []
    return [Drawing(title, network._repr_svg_()) for title, network in islice(networks.items(), MOST_DRAWINGS)]
