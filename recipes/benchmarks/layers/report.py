"""What rows of the benchmark of layers say: ratios, a summary, a figure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import log
from statistics import geometric_mean, median
from typing import TYPE_CHECKING, Any, NamedTuple

from recipes.benchmarks.layers.cells import DECOMPOSITIONS, UNDECOMPOSED
from recipes.benchmarks.report import AGAIN, Row
from recipes.benchmarks.runner import PREDICTED
from recipes.benchmarks.timing import Ratio, ratio_of_medians

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"3x3": "#1f77b4", "1x1": "#ff7f0e", "depthwise": "#2ca02c", "7x7": "#d62728", "4x4": "#9467bd"}
MARKERS = "os^Dv"

TICKS = (1, 10, 0.1, 100, 0.01, 3, 0.3, 30, 2, 0.5, 5, 0.2, 20, 1.5, 0.7, 1.2, 1.1, 0.8, 0.9, 1.3)
"""Ticks of ratios, the most important first; of two that are too close the second is left out."""


class Question(NamedTuple):
    """A ratio in the summary: the time of one of our contenders over that of the best of some others."""

    title: str
    ours: str
    others: str
    """A regular expression for these others."""
    of: Callable[[Row], bool]
    """Whether the question is about a cell."""
    limits: tuple[float, ...] = ()


def _forward(row: Row) -> bool:
    return bool(row["pass"] == "forward" and row["decomposition"] != UNDECOMPOSED)


def _training(row: Row) -> bool:
    return bool(row["pass"] == "training" and row["decomposition"] != UNDECOMPOSED)


def _undecomposed(row: Row) -> bool:
    return bool(row["decomposition"] == UNDECOMPOSED)


QUESTIONS = (
    Question("ours factored / best hand chain, forward", "ours factored", "hand .*", _forward, (1.05, 1.15)),
    Question("ours frozen / dense, forward", "ours frozen", "dense", _forward, (1.05,)),
    Question(
        "ours factored / tensorly factorized, forward, 3x3 layers",
        "ours factored",
        "tensorly",
        lambda row: _forward(row) and row["family"] == "3x3",
    ),
    Question(
        "ours / best of dense + rebuild and hand chains, training",
        "ours",
        r"hand .*|dense \+ rebuild",
        _training,
        (1.10,),
    ),
    Question("ours / dense, kernel undecomposed", "ours", "dense", _undecomposed, (1.05,)),
    Question("noise floor: dense / dense", f"dense{AGAIN}", "dense", lambda row: True),
)

NOISE = QUESTIONS[-1]


def ratio_of(question: Question, row: Row, suffix: str = "") -> Ratio | None:
    """The ratio of a question in one cell; None if the question is not about the cell, or a contender is missing.

    Args:
        suffix: PREDICTED for our contenders that are compiled with tune=False.
    """
    contenders: Mapping[str, Any] = row["contenders"]
    others = [name for name in contenders if re.fullmatch(question.others, name)]
    ours = question.ours + suffix
    if not question.of(row) or not others or ours not in contenders:
        return None
    best = min(others, key=lambda name: float(contenders[name]["seconds"]))
    return ratio_of_medians(contenders[ours]["times"], contenders[best]["times"])


def answers(rows: Sequence[Row]) -> dict[str, tuple[Question, list[tuple[Ratio, Row]]]]:
    """Title -> the question and its ratio in each cell that has one, the largest first."""
    by_title: dict[str, tuple[Question, list[tuple[Ratio, Row]]]] = {}
    for question in QUESTIONS:
        for suffix in ("", PREDICTED):
            ratios = [(ratio, row) for row in rows if (ratio := ratio_of(question, row, suffix)) is not None]
            if ratios:
                title = question.title + (f" ({suffix.strip()})" if suffix else "")
                by_title[title] = question, sorted(ratios, key=lambda pair: -pair[0].value)
    return by_title


def ratios_in(row: Row) -> list[float]:
    """All ratios of a cell except the noise floor."""
    return [ratios[0][0].value for question, ratios in answers([row]).values() if question is not NOISE]


def summary(rows: Sequence[Row], *, worst: int = 5) -> str:
    """The answers as text: geometric mean, shares within the limits, and the worst cells with their intervals."""
    lines = []
    for title, (question, ratios) in answers(rows).items():
        values = [ratio.value for ratio, _ in ratios]
        lines.append(f"\n{title}: {len(values)} cells, geometric mean {geometric_mean(values):.3f}")
        for limit in question.limits:
            within = sum(value <= limit for value in values)
            lines.append(f"  <= {limit:.2f}: {within} of {len(values)} ({100 * within / len(values):.1f} %)")
        if question is NOISE:
            within = sum(max(value, 1 / value) <= 1.05 for value in values)
            lines.append(f"  within 5 % of 1: {100 * within / len(values):.1f} %; median {median(values):.3f}")
        lines += [f"  {ratio}  {describe(row)}, {row['rounds']} rounds" for ratio, row in ratios[:worst]]
    return "\n".join(lines).lstrip("\n")


def describe(row: Row) -> str:
    """The cell of a row, as text."""
    ranks = "".join(f" {bond}={rank}" for bond, rank in row["ranks"].items())
    return f"{row['shape']} {row['decomposition']}{ranks}, batch {row['batch']}, {row['pass']}, {row['memory_format']}"


def figure(rows: Sequence[Row]) -> Figure:
    """The ratios of every question, with a point for each cell and a line of points for each decomposition."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = answers(rows)
    heights = [len({row["decomposition"] for _, row in ratios}) + 1.6 for _, ratios in panels.values()]
    drawing = Figure(figsize=(8.5, 0.33 * sum(heights) + 1.2), layout="constrained")
    axes = drawing.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    batches = sorted({row["batch"] for row in rows})
    markers = {batch: MARKERS[number % len(MARKERS)] for number, batch in enumerate(batches)}
    for axis, (title, (question, ratios)) in zip(axes, panels.items(), strict=True):
        _panel(axis, ratios, markers, question.limits)
        limits = " and ".join(f"{limit:.2f}" for limit in question.limits)
        axis.set_title(title + (f" (dashed: {limits})" if limits else ""), fontsize=9, loc="left")
    axes[-1].set_xlabel(
        "ratio of median times (log scale): a point for each cell, the black bar their median", fontsize=9
    )
    families = [family for family in COLOURS if any(row["family"] == family for row in rows)]
    styles = [(f"{name} layers", COLOURS[name], "o") for name in families]
    styles += [(f"batch {batch}", "grey", marker) for batch, marker in markers.items()]
    marks = [Line2D([], [], color=colour, marker=mark, linestyle="", label=label) for label, colour, mark in styles]
    drawing.legend(handles=marks, loc="outside upper center", ncols=len(marks), fontsize=8, frameon=False)
    return drawing


def _panel(
    axis: Axes, ratios: Sequence[tuple[Ratio, Row]], markers: Mapping[int, str], limits: Sequence[float]
) -> None:
    names = [name for name in DECOMPOSITIONS if any(row["decomposition"] == name for _, row in ratios)]
    for place, name in enumerate(names):
        points = [(ratio.value, row) for ratio, row in ratios if row["decomposition"] == name]
        for number, (value, row) in enumerate(points):
            axis.plot(
                value,
                place + 0.5 * ((number * 0.618) % 1 - 0.5),  # spread evenly, so that few points hide others
                marker=markers[row["batch"]],
                color=COLOURS.get(row["family"], "grey"),
                markersize=4,
                alpha=0.7,
                markeredgewidth=0,
            )
        if place % 2:
            axis.axhspan(place - 0.5, place + 0.5, color="#f4f4f4", linewidth=0, zorder=0)
        middle = median(value for value, _ in points)
        axis.plot([middle, middle], [place - 0.36, place + 0.36], color="black", linewidth=2)
    for limit in (1, *limits):
        axis.axvline(limit, color="black", linewidth=0.8, linestyle="-" if limit == 1 else "--")
    axis.set_xscale("log")
    low, high = min(ratios[-1][0].value, 0.9) / 1.05, max(ratios[0][0].value, 1.2) * 1.05
    axis.set_xlim(low, high)
    ticks: list[float] = []
    for tick in TICKS:
        if low <= tick <= high and all(abs(log(tick / other)) > 0.045 * log(high / low) for other in ticks):
            ticks.append(tick)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
