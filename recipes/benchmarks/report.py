"""Rows of benchmarks, and the tables and figures that several benchmarks share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import tnalgebra as tn
from recipes.reporting import line_style, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row: TypeAlias = dict[str, Any]
"""A line of results.jsonl or memory.jsonl."""

AGAIN = " again"
"""The end of a contender's name where it takes part a second time in a cell."""


def read_rows(path: Path, key: Sequence[str]) -> list[Row]:
    """The rows of a file; of rows that agree in `key`, the last one. An unfinished last line is removed.

    Raises:
        StudyError: a line is not a row.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    rows: dict[str, Row] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            place = json.dumps([row[name] for name in key])
        except (ValueError, TypeError, KeyError) as error:
            raise tn.errors.StudyError(
                f"line {number} of {path} is not a row", because=error, fix="another --output"
            ) from error
        rows.pop(place, None)
        rows[place] = row
    return list(rows.values())


def conditions(rows: Sequence[Row]) -> str:
    """The rounds, devices, threads and versions of all rows, as text."""
    kinds = {
        f"{row['rounds']} rounds; {row['device_name']}, {row['threads']} thread(s); "
        + ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        for row in rows
    }
    return "\n".join(sorted(kinds))


def memory_table(rows: Sequence[Row], describe: Callable[[Row], str]) -> str:
    """The peak memory of each contender in MiB, with a line for each cell."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row["contenders"]) if AGAIN not in name]
    lines = []
    for row in rows:
        measured = [row["contenders"].get(name) for name in names]
        lines.append([describe(row), *(f"{one['bytes'] / 2**20:.1f}" if one else "" for one in measured)])
    table = markdown(["cell", *names], lines)
    return f"{table}\n\npeak MiB above the input and the parameters\n{conditions(rows)}"


class Bar(NamedTuple):
    """A bar of a panel."""

    label: str
    value: float
    note: str
    points: Sequence[float] = ()
    whiskers: tuple[float, float] | None = None
    mark: float | None = None
    """The value at which a diamond is drawn."""


def bar_figure(panels: Mapping[str, Sequence[Bar]], label: str) -> Figure:
    """A panel for each title, with a bar for each contender; bars whose names begin with one word have one colour."""
    from matplotlib.figure import Figure

    words = list(dict.fromkeys(bar.label.split(",")[0].split()[0] for bars in panels.values() for bar in bars))
    heights = [len(bars) + 2 for bars in panels.values()]
    figure = Figure(figsize=(8.5, 0.27 * sum(heights) + 0.8), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        for place, bar in enumerate(bars):
            colour = line_style(words.index(bar.label.split(",")[0].split()[0]))["color"]
            axis.barh(place, bar.value, color=colour, alpha=0.75, height=0.7)
            axis.plot(bar.points, [place] * len(bar.points), ".", color="black", markersize=3)
            if bar.whiskers is not None:
                low, high = (abs(end - bar.value) for end in bar.whiskers)
                axis.errorbar(bar.value, place, xerr=[[low], [high]], color="black", capsize=2, linewidth=1)
            if bar.mark is not None:
                axis.plot(bar.mark, place, marker="D", color="white", markeredgecolor="black", markersize=4)
            beside = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 7}
            axis.annotate(bar.note, (1.01, place), **beside)
        axis.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axis.set_ylim(len(bars) - 0.4, -0.6)
        axis.set_xlim(left=0)
        axis.tick_params(labelsize=7)
        axis.set_title(title, fontsize=9, loc="left")
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel(label, fontsize=8)
    return figure
