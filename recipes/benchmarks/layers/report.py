"""What rows of the benchmark of layers say: ratios, a summary, a table of memory, a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log
from pathlib import Path
from statistics import geometric_mean, median
from typing import TYPE_CHECKING, Any, NamedTuple

from recipes.benchmarks.layers.contenders import DECOMPOSITIONS, TUNED, UNDECOMPOSED, Pass
from recipes.benchmarks.timing import Ratio, Row, last_rows, ratio_of_medians

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = ("shape", "decomposition", "ranks", "batch", "pass", "device", "threads")
"""What tells rows apart; of equal ones the last counts."""

COLOURS = {"3x3": "#1f77b4", "1x1": "#ff7f0e", "depthwise": "#2ca02c", "7x7": "#d62728"}

TICKS = (1, 10, 0.1, 100, 0.01, 3, 0.3, 30, 2, 0.5, 5, 0.2, 20, 1.5, 0.7, 1.2, 1.1, 0.8, 0.9, 1.3)
"""Of ratios, those first that are to be seen first; of two that lie too near the second is left out."""


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, of each cell the last. Raises StudyError where a line is no row."""
    return last_rows(path, CELL)


class Question(NamedTuple):
    """A ratio of the summary: one of ours over the best of some others."""

    title: str
    ours: str
    others: Callable[[str], bool]
    """Whether a contender is among those whose best counts."""
    of: Callable[[Row], bool]
    """Whether the cell is asked about."""
    limits: tuple[float, ...] = ()


def _decomposed(goes: Pass) -> Callable[[Row], bool]:
    return lambda row: row["pass"] == goes and row["decomposition"] != UNDECOMPOSED


QUESTIONS = (
    Question(
        "ours factored / best hand chain, forward",
        "ours factored",
        lambda name: name.startswith("hand "),
        _decomposed("forward"),
        (1.05, 1.15),
    ),
    Question(
        "ours frozen / dense, forward",
        "ours frozen",
        lambda name: name == "dense",
        _decomposed("forward"),
        (1.05,),
    ),
    Question(
        "ours factored / tensorly factorized, forward, 3x3 layers",
        "ours factored",
        lambda name: name == "tensorly",
        lambda row: _decomposed("forward")(row) and row["family"] == "3x3",
    ),
    Question(
        "ours / best of dense + rebuild and hand chains, training",
        "ours",
        lambda name: name.startswith("hand ") or name == "dense + rebuild",
        _decomposed("training"),
        (1.10,),
    ),
    Question(
        "ours / dense, kernel undecomposed",
        "ours",
        lambda name: name == "dense",
        lambda row: bool(row["decomposition"] == UNDECOMPOSED),
        (1.05,),
    ),
    Question("noise floor: dense / dense", "dense again", lambda name: name == "dense", lambda row: True),
)

NOISE = QUESTIONS[-1]


def ratio_of(question: Question, row: Row, suffix: str = "") -> Ratio | None:
    """A question's ratio in one cell; None where the cell is not asked about, or a contender is not there.

    Args:
        suffix: TUNED for ours compiled with tune=True.
    """
    contenders: Mapping[str, Any] = row["contenders"]
    others = [name for name in contenders if question.others(name)]
    ours = question.ours + suffix
    if not question.of(row) or not others or ours not in contenders:
        return None
    best = min(others, key=lambda name: float(contenders[name]["seconds"]))
    return ratio_of_medians(contenders[ours]["times"], contenders[best]["times"])


def ratios_in(row: Row) -> dict[str, Ratio]:
    """Every ratio of a cell, without the noise floor."""
    if "times" not in row["contenders"]["dense"]:
        return {}
    found = {
        question.title + suffix: ratio_of(question, row, suffix)
        for question in QUESTIONS[:-1]
        for suffix in ("", TUNED)
    }
    return {title: ratio for title, ratio in found.items() if ratio is not None}


def answers(rows: Sequence[Row]) -> dict[str, tuple[Question, list[tuple[Ratio, Row]]]]:
    """Title -> the question and its ratio in each cell that has one, largest first."""
    found: dict[str, tuple[Question, list[tuple[Ratio, Row]]]] = {}
    for question in QUESTIONS:
        for suffix in ("", TUNED):
            ratios = [(ratio, row) for row in rows if (ratio := ratio_of(question, row, suffix)) is not None]
            if ratios:
                title = question.title + (f" ({suffix.strip()})" if suffix else "")
                found[title] = question, sorted(ratios, key=lambda pair: -pair[0].value)
    return found


def summary(rows: Sequence[Row], *, worst: int = 5) -> str:
    """The answers: geometric mean, shares within the limits, and the worst cells with their intervals."""
    lines = []
    for title, (question, ratios) in answers(rows).items():
        values = [ratio.value for ratio, _ in ratios]
        lines.append(f"\n{title}: {len(values)} cells, geometric mean {geometric_mean(values):.3f}")
        for limit in question.limits:
            within = sum(value <= limit for value in values)
            lines.append(f"  <= {limit:.2f}: {within} of {len(values)} ({100 * within / len(values):.1f} %)")
        shown = ratios if question.limits and title.endswith("undecomposed") else ratios[:worst]
        if question is NOISE:
            within = sum(max(value, 1 / value) <= 1.05 for value in values)
            lines.append(f"  within 5 % of 1: {100 * within / len(values):.1f} %; median {median(values):.3f}")
        lines += [f"  {ratio}  {_described(row)}" for ratio, row in shown]
    lines += ["", _conditions(rows)]
    return "\n".join(lines).lstrip("\n")


def _described(row: Row) -> str:
    ranks = "".join(f" {bond}={rank}" for bond, rank in row["ranks"].items())
    return f"{row['shape']} {row['decomposition']}{ranks}, batch {row['batch']}, {row['pass']}, {row['rounds']} rounds"


def _conditions(rows: Sequence[Row]) -> str:
    """Devices, threads and versions of all rows."""
    kinds = {
        f"{row['device_name']}, {row['threads']} thread(s); "
        + ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        for row in rows
    }
    return "\n".join(sorted(kinds))


def memory_table(rows: Sequence[Row]) -> str:
    """MiB of each contender, a line for each cell."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row["contenders"]) if "again" not in name]
    lines = [f"| cell | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for row in rows:
        found = [row["contenders"].get(name) for name in names]
        cells = [f"{one['bytes'] / 2**20:.1f}" if one else "" for one in found]
        lines.append(f"| {_described(row).rpartition(',')[0]} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "peak MiB above the input and the parameters", _conditions(rows)])


def figure(rows: Sequence[Row]) -> Figure:
    """The ratios of every question: a point for each cell, a line of points for each decomposition."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = answers(rows)
    names = [name for name in DECOMPOSITIONS if any(row["decomposition"] == name for row in rows)]
    counts = [len({row["decomposition"] for _, row in ratios}) for _, ratios in panels.values()]
    heights = [count + 1.6 for count in counts]
    drawing = Figure(figsize=(8.5, 0.33 * sum(heights) + 1.2), layout="constrained")
    axes = drawing.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, (question, ratios)) in zip(axes, panels.items(), strict=True):
        _panel(axis, title, question, ratios, names)
    axes[-1].set_xlabel(
        "ratio of median times (log scale): a point for each cell, the black bar their median",
        fontsize=9,
    )
    families = [family for family in COLOURS if any(row["family"] == family for row in rows)]
    marks = [Line2D([], [], color=COLOURS[name], marker="o", linestyle="", label=f"{name} layers") for name in families]
    batches = sorted({row["batch"] for row in rows})
    marks += [
        Line2D([], [], color="grey", marker=_marker(batch, batches), linestyle="", label=f"batch {batch}")
        for batch in batches
    ]
    drawing.legend(handles=marks, loc="outside upper center", ncols=len(marks), fontsize=8, frameon=False)
    return drawing


def _marker(batch: int, batches: Sequence[int]) -> str:
    return "os^Dv"[batches.index(batch) % 5]


def _panel(
    axis: Axes, title: str, question: Question, ratios: Sequence[tuple[Ratio, Row]], names: Sequence[str]
) -> None:
    there = [name for name in names if any(row["decomposition"] == name for _, row in ratios)]
    batches = sorted({row["batch"] for _, row in ratios})
    for place, name in enumerate(there):
        found = [(ratio, row) for ratio, row in ratios if row["decomposition"] == name]
        for number, (ratio, row) in enumerate(found):
            axis.plot(
                ratio.value,
                place + 0.5 * ((number * 0.618) % 1 - 0.5),  # spread evenly, so that few points hide others
                marker=_marker(row["batch"], batches),
                color=COLOURS.get(row["family"], "grey"),
                markersize=4,
                alpha=0.7,
                markeredgewidth=0,
            )
        if place % 2:
            axis.axhspan(place - 0.5, place + 0.5, color="#f4f4f4", linewidth=0, zorder=0)
        middle = median(ratio.value for ratio, _ in found)
        axis.plot([middle, middle], [place - 0.36, place + 0.36], color="black", linewidth=2)
    axis.axvline(1, color="black", linewidth=0.8)
    for limit in question.limits:
        axis.axvline(limit, color="black", linewidth=0.8, linestyle="--")
    axis.set_xscale("log")
    values = [ratio.value for ratio, _ in ratios]
    low, high = min(*values, 0.9) / 1.05, max(*values, 1.2) * 1.05
    axis.set_xlim(low, high)
    ticks: list[float] = []
    for tick in TICKS:
        if low <= tick <= high and all(abs(log(tick / other)) > 0.045 * log(high / low) for other in ticks):
            ticks.append(tick)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_yticks(range(len(there)), there)
    axis.set_ylim(len(there) - 0.5, -0.5)
    axis.tick_params(labelsize=8)
    limits = " and ".join(f"{limit:.2f}" for limit in question.limits)
    axis.set_title(title + (f" (dashed: {limits})" if limits else ""), fontsize=9, loc="left")
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
