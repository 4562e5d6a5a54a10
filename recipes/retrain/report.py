"""The results of recipes.retrain: accuracy by epoch, which trainings have recovered, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import tnalgebra as tn
from recipes.experiment import Row, Spread, draw_spreads, last_epoch, name_seeds
from recipes.reporting import aligned, count_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASELINE = "none"
"""The truncation in rows of the network as it is."""

POINTS, EPOCHS = 0.5, 5
"""A network has recovered if it is at most POINTS below the accuracy before truncation, within EPOCHS epochs."""

STYLES: dict[str, dict[str, Any]] = {
    "dense": {"color": tn.model.DISTINCT_COLOURS[0], "marker": "o", "linestyle": "-"},
    "factored": {"color": tn.model.DISTINCT_COLOURS[3], "marker": "s", "linestyle": "-"},
    "control": {"color": "#7f7f7f", "marker": "^", "linestyle": "--"},
}
DODGE = {"dense": -0.06, "factored": 0.06, "control": 0.0}
ROUNDING = 1e-9
"""The rounding of differences of accuracies: an accuracy that is equal to a bound counts as within it."""


class Claim(NamedTuple):
    """Whether a truncated network has recovered. Accuracies are means over seeds, 0 to 1.

    epoch: the first of at most five epochs within half a point of the accuracy before truncation; None if none is.
    seeds: the number of seeds that have such an epoch by themselves.
    of: the number of seeds.
    change: the accuracy after the last of these epochs less that before truncation.
    to_control: that accuracy less that of the control after the same epoch, as the mean over the seeds that both have;
        None if they share no seed.
    """

    truncation: str
    way: str
    epoch: int | None
    seeds: int
    of: int
    change: float
    to_control: float | None

    @property
    def recovered(self) -> bool:
        """Whether it comes within half a point of the accuracy before truncation, in at most five epochs."""
        return self.epoch is not None

    @property
    def reaches_control(self) -> bool | None:
        """Whether it is within half a point of the control after the same epoch; None without a control."""
        return None if self.to_control is None else self.to_control >= -POINTS / 100 - ROUNDING


def claims(rows: Sequence[Row]) -> list[Claim]:
    """One for each truncation and way for which at least one training is finished."""
    before = _baseline(rows)["accuracy"]
    bound = before - POINTS / 100 - ROUNDING
    control = _by_seed(rows, BASELINE, "control")
    last = min(EPOCHS, last_epoch(rows))
    results = []
    for text, way in curves(rows):
        if way == "control":
            continue
        seeds = _by_seed(rows, text, way)
        means = _spreads(seeds)
        to_control = [by[last] - control[seed][last] for seed, by in seeds.items() if seed in control]
        results.append(
            Claim(
                text,
                way,
                epoch=next((epoch for epoch in range(1, last + 1) if means[epoch].mean >= bound), None),
                seeds=sum(any(by[epoch] >= bound for epoch in range(1, last + 1)) for by in seeds.values()),
                of=len(seeds),
                change=fmean(by[last] for by in seeds.values()) - before,
                to_control=fmean(to_control) if to_control else None,
            )
        )
    return results


def _baseline(rows: Sequence[Row]) -> Row:
    return next(row for row in rows if row["way"] is None)


def curves(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Truncation and way of the finished trainings, in the order of the rows, which begin with the control."""
    done = {(row["truncation"], row["way"]) for row in rows if row["way"] and row["epoch"] == last_epoch(rows)}
    texts = dict.fromkeys(row["truncation"] for row in rows)
    return [(text, way) for text in texts for way in STYLES if (text, way) in done]


def _by_seed(rows: Sequence[Row], text: str, way: str) -> dict[int, dict[int, float]]:
    """Seed -> epoch -> accuracy, of the finished trainings."""
    by_seed: dict[int, dict[int, float]] = {}
    for row in rows:
        if (row["truncation"], row["way"]) == (text, way):
            by_seed.setdefault(row["seed"], {})[row["epoch"]] = row["accuracy"]
    last = last_epoch(rows)
    return {seed: by for seed, by in by_seed.items() if all(epoch in by for epoch in range(last + 1))}


def _spreads(seeds: dict[int, dict[int, float]]) -> dict[int, Spread]:
    """Epoch -> the spread of the accuracy over the seeds."""
    epochs = next(iter(seeds.values()))
    return {epoch: Spread.over(by[epoch] for by in seeds.values()) for epoch in epochs}


# Text -----------------------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> str:
    """The accuracy by epoch, the sizes of the factored networks, and which of them have recovered."""
    baseline, results = _baseline(rows), claims(rows)
    head = f"{baseline['model']}: {100 * baseline['accuracy']:.2f} % of {baseline['images']:,} test images right"
    parts = [f"{head} before truncation"]
    if curves(rows):
        parts += [_accuracies(rows), _sizes(rows, baseline)]
    if results:
        parts.append(_claims(results, baseline["accuracy"], last_epoch(rows)))
    return "\n\n".join(parts)


def _accuracies(rows: Sequence[Row]) -> str:
    last = last_epoch(rows)
    seeds = {curve: len(_by_seed(rows, *curve)) for curve in curves(rows)}
    several = max(seeds.values()) > 1
    of = ", means over seeds, below them the least and the largest" if several else ""
    numbers = [f"epoch {n}" if n == 0 else str(n) for n in range(last + 1)]
    lines = [["truncation", "trained", *(["seeds"] if several else []), *numbers, "s / epoch"]]
    above = ""
    for text, way in curves(rows):
        means = _spreads(_by_seed(rows, text, way))
        timed = [row["seconds"] for row in rows if (row["truncation"], row["way"]) == (text, way) and row["epoch"] > 0]
        count = [str(seeds[text, way])] if several else []
        cells = [*count, *(f"{100 * means[epoch].mean:.2f}" for epoch in range(last + 1))]
        lines.append([text if text != above else "", way, *cells, f"{fmean(timed):.3g}"])
        above = text
        if several:
            ranges = [means[epoch].range_text(".1f", times=100) for epoch in range(last + 1)]
            lines.append(["", "", "", *ranges, ""])
    return f"Top-1, %, after each epoch (0: truncated, not retrained){of}\n\n{aligned(lines, left=2)}"


def _sizes(rows: Sequence[Row], baseline: Row) -> str:
    lines = [["truncation", "mean sq. rel. error", "parameters", "kept", "multiply-adds", "kept"]]
    texts = dict.fromkeys(text for text, _ in curves(rows) if text != BASELINE)
    for row in (baseline, *(next(row for row in rows if row["truncation"] == text) for text in texts)):
        error = "" if row is baseline else f"{row['mean_squared_relative_error']:.4f}"
        counts = [f"{row['parameters']:,}", f"{row['parameters_kept']:.3f}"]
        adds = [count_text(row["multiply_adds"]), f"{row['multiply_adds_kept']:.3f}"]
        lines.append([row["truncation"], error, *counts, *adds])
    return f"Sizes in factored form, of the whole network and one image\n\n{aligned(lines)}"


def _claims(results: Sequence[Claim], before: float, last: int) -> str:
    epochs = min(EPOCHS, last)
    lines = [["truncation", "trained", "recovered", "of seeds", f"change by epoch {epochs}", "less the control's"]]
    above = ""
    for claim in results:
        to_control = "" if claim.to_control is None else _points(claim.to_control)
        when = "no" if claim.epoch is None else f"after epoch {claim.epoch}"
        cells = [when, f"{claim.seeds} of {claim.of}", _points(claim.change), to_control]
        lines.append([claim.truncation if claim.truncation != above else "", claim.way, *cells])
        above = claim.truncation
    here = "" if last >= EPOCHS else f" (here {last})"
    head = (
        f"Recovered: within {POINTS} points of the {100 * before:.2f} % before truncation, "
        f"in at most {EPOCHS} epochs{here}; changes in points"
    )
    yes = sum(claim.recovered for claim in results)
    sentences = [f"{yes} of {len(results)} have recovered"]
    compared = [claim.reaches_control for claim in results if claim.to_control is not None]
    if compared:
        sentences.append(f"{sum(map(bool, compared))} of {len(compared)} end within {POINTS} points of the control")
    return f"{head}\n\n{aligned(lines, left=2)}\n\n{'; '.join(sentences)}."


def _points(change: float) -> str:
    return f"{round(100 * change, 2) + 0.0:+.2f}"  # adding 0 makes 0 of -0


# Figure ---------------------------------------------------------------------------------------------------------


def figure(rows: Sequence[Row]) -> Figure:
    """Accuracy less that before, by epoch, with a panel for each truncation; whiskers span the seeds."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    texts = list(dict.fromkeys(text for text, _ in curves(rows) if text != BASELINE)) or [BASELINE]
    across = min(3, len(texts))
    down = -(-len(texts) // across)
    drawing = Figure(figsize=(1.2 + 3.3 * across, 1.5 + 3.0 * down), layout="constrained")
    grid = drawing.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for panel in grid.flat[len(texts) :]:
        panel.set_axis_off()
    for panel, text in zip(grid.flat, texts, strict=False):
        _draw_panel(panel, rows, text)
    for line in grid:
        line[0].set_ylabel("top-1 less that before (points)")
    for panel in grid[-1]:
        panel.set_xlabel("epochs of retraining")
    names = {"dense": "dense kernels", "factored": "factors", "control": "control: not truncated"}
    ways = {way for _, way in curves(rows)}
    marks = [Line2D([], [], label=names[way], **STYLES[way]) for way in STYLES if way in ways]
    bound = Line2D([], [], color="#2ca02c", linestyle=":", label=f"recovered from here on: {POINTS} points below")
    drawing.legend(handles=[*marks, bound], loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    baseline = _baseline(rows)
    drawing.suptitle(
        f"{baseline['model']} truncated, then retrained: {100 * baseline['accuracy']:.2f} % before, "
        f"{baseline['images']:,} test images{name_seeds(len(_by_seed(rows, *curve)) for curve in curves(rows))}",
        fontsize="medium",
    )
    return drawing


def _draw_panel(panel: Axes, rows: Sequence[Row], text: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    before = _baseline(rows)["accuracy"]
    for way in STYLES:
        seeds = _by_seed(rows, BASELINE if way == "control" else text, way)
        if seeds:
            points = {
                n: Spread.over(100 * (by[n] - before) for by in seeds.values()) for n in next(iter(seeds.values()))
            }
            places = [epoch + DODGE[way] for epoch in points]  # or whiskers would hide one another
            style = {**STYLES[way], "markersize": 4.5, "elinewidth": 0.8, "linewidth": 1.4}
            draw_spreads(panel, places, list(points.values()), **style)
    panel.axhline(-POINTS, color="#2ca02c", linewidth=1, linestyle=":")
    panel.axhline(0, color="black", linewidth=0.7)
    panel.set_yscale("symlog", linthresh=1, linscale=0.7)
    panel.yaxis.set_major_locator(FixedLocator([-80, -40, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 40, 80]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    panel.yaxis.set_minor_locator(FixedLocator([]))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.3)
    panel.set_title(text, fontsize="small")
