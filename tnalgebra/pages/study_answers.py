"""The questions of the paper, answered from the rows of one network in a study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from .._tables import plural
from ..errors import StudyError
from ..studies import (
    Correlation,
    Draws,
    LargestCut,
    Row,
    RowScope,
    largest_cuts,
    norm_correlation,
    rank_correlation,
    touched,
)
from .parts import Answer, Column, Dataset, Panel, as_number
from .study_tables import ERROR, layer_names, row_columns, row_name, size_text

QUESTION_DEPTH = "Which layer bears least?"
QUESTION_HALF = "What is best at half of the parameters?"
QUESTION_NORM = "Does the norm predict the accuracy?"

MEAN = "mean of the rewrites"
HALF = 0.5
DRAWS = Draws()

BOUNDS = {"smallest": "at most: the smallest tested costs more", "largest": "at least: no tested one costs more"}
"""Where the sizes that were tested end before a layer's largest harmless error: what is known of it."""


def harmless_loss(rows: Sequence[Row]) -> float:
    """The loss that counts as harmless: a point of accuracy, and at least one image."""
    counts = [as_number(row["images"]) for row in rows]
    return max(0.01, *(1 / count for count in counts if count))


def depth_answer(rows: Sequence[Row]) -> Answer | None:
    at_most = harmless_loss(rows) if rows else 0.01
    try:
        cuts = largest_cuts(rows, at_most=at_most, size="relative_error")
    except StudyError:
        return None  # without rows of single layers
    names, curves = _shared(cuts)
    means = means_of_layers(cuts)
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
        (cut.layer, name, cut.size, BOUNDS.get(cut.bound or "")) for name, largest in cuts.items() for cut in largest
    ]
    lines += [(name, MEAN, means[name], None) for name in names]
    return Answer(QUESTION_DEPTH, f"{order[0]} bears least.", text, _by_depth(lines, layer_names(rows)))


def means_of_layers(cuts: Mapping[str, Sequence[LargestCut]]) -> dict[str, float]:
    """What each layer bears, the mean over the rewrites that all compared layers have."""
    names, curves = _shared(cuts)
    sizes = {name: [cut.size for curve in curves for cut in cuts[curve] if cut.layer == name] for name in names}
    return {name: fmean(values) for name, values in sizes.items()}


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


def half_answer(rows: Sequence[Row]) -> Answer | None:
    """The best row of each rewrite that keeps at most half of the parameters."""
    whole = of_all_layers(rows)
    if not whole:
        return None
    ranked = best_within_half(whole)
    if not ranked:
        least = min(row["parameters_kept"] for row in whole)
        return Answer(QUESTION_HALF, "No row keeps as few.", f"The smallest network keeps {least:.3f} of them.")
    cuts = [row for row in ranked if row["keep"] is not None]
    text = (
        "All layers are rewritten together, and nothing is trained again. Of all rows that keep at most half of the "
        "network's parameters, this has the highest accuracy."
    )
    if cuts and cuts[0] is not ranked[0]:
        text += f" Of the cuts the best is {_best(cuts[0])}."
    if len(ranked) > 1:
        text += f" The table has the best row of each rewrite, down to {_best(ranked[-1])}."
    table = Dataset("The best row of each rewrite within half", row_columns(ranked, several=True))
    return Answer(QUESTION_HALF, f"{_best(ranked[0])}.", text, table)


def of_all_layers(rows: Sequence[Row]) -> list[Row]:
    """The rows in which all layers are rewritten."""
    return [row for row in rows if row["scope"] == "all" and touched(row) and row["layers"]]


def best_within_half(whole: Sequence[Row]) -> list[Row]:
    """The best row of each rewrite that keeps at most half of the parameters, the best of all first."""
    best: dict[str, Row] = {}
    for row in whole:
        if row["parameters_kept"] <= HALF + 1e-9:
            name = row_name(row)
            if name not in best or row["accuracy"] > best[name]["accuracy"]:
                best[name] = row
    return sorted(best.values(), key=lambda row: -row["accuracy"])


def _best(row: Row) -> str:
    kept = f"{row['parameters_kept']:.2f} of the parameters"
    return f"{row_name(row)} at {size_text(row)}, with {100 * row['accuracy']:.2f} % at {kept}"


def norm_answer(rows: Sequence[Row]) -> Answer | None:
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
