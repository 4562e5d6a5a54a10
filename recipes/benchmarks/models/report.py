"""What rows of the benchmark of models say: a table, the comparison that counts, a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.benchmarks.models.contenders import FOLDED
from recipes.benchmarks.timing import Ratio, Row, last_rows, ratio_of_medians

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = (
    *("model", "batch", "image_size", "pass", "rewrite", "pointwise", "multiply_adds", "fraction"),
    *("device", "device_name", "threads", "smoke", "seed"),
)
"""What tells rows apart; of equal ones the last counts."""

COLOURS = {"dense": "#7f7f7f", "hand": "#ff7f0e", "ours": "#1f77b4"}


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, of each cell the last. Raises StudyError where a line is no row."""
    return last_rows(path, CELL)


def describe(row: Row) -> str:
    wish = f"multiply-adds {row['multiply_adds']:g}" if row["multiply_adds"] else f"ranks x {row['fraction']:g}"
    size = f"{row['image_size']}x{row['image_size']}"
    pointwise = f"1x1 {row['pointwise'] or 'dense'}"
    return f"{row['model']} {size}, batch {row['batch']}, {row['pass']}, {row['rewrite']}, {pointwise}, {wish}"


def speed_up(row: Row, name: str) -> Ratio:
    """Of a contender over the dense network."""
    contenders = row["contenders"]
    return ratio_of_medians(contenders["dense"]["times"], contenders[name]["times"])


def fraction_of(row: Row, name: str) -> float:
    """Speed-up over dense, as a part of what the multiply-adds alone would give."""
    contenders = row["contenders"]
    fewer = contenders["dense"]["multiply_adds"] / contenders[name]["multiply_adds"]
    return float(contenders["dense"]["seconds"] / contenders[name]["seconds"] / fewer)


def against_hand(row: Row, *, folded: bool) -> tuple[str, str, Ratio] | None:
    """The best of ours, the best by hand, and the speed of the one over that of the other; None if one is missing.

    Args:
        folded: among those with batch normalisations folded, or among those without.
    """
    contenders = {name: one for name, one in row["contenders"].items() if (FOLDED in name) == folded}
    best = {}
    for kind in ("ours", "hand"):
        names = [name for name in contenders if name.startswith(kind)]
        if not names:
            return None
        best[kind] = min(names, key=lambda name: float(contenders[name]["seconds"]))
    ours, hand = best["ours"], best["hand"]
    return ours, hand, ratio_of_medians(contenders[hand]["times"], contenders[ours]["times"])


def table(rows: Sequence[Row], memory: Sequence[Row] = ()) -> str:
    """A Markdown table for each cell, then ours against the chains written by hand, then the conditions."""
    peaks = {json.dumps([row[key] for key in CELL]): row["contenders"] for row in memory}
    lines: list[str] = []
    for row in rows:
        there = peaks.get(json.dumps([row[key] for key in CELL]), {})
        lines += [
            f"\n{describe(row)}: {row['converted']} layers decomposed, {row['rounds']} rounds\n",
            "| contender | ms | images/s | speed-up [95 %] | multiply-adds kept | fraction | parameters | peak MiB |",
            f"|---|{'---:|' * 7}",
        ]
        dense = row["contenders"]["dense"]
        for name, one in row["contenders"].items():
            kept = one["multiply_adds"] / dense["multiply_adds"]
            peak = f"{there[name]['bytes'] / 2**20:.1f}" if name in there else ""
            cells = [
                f"{1e3 * one['seconds']:.1f}",
                f"{row['batch'] / one['seconds']:.1f}",
                str(speed_up(row, name)),
                f"{kept:.3f}",
                f"{fraction_of(row, name):.3f}",
                f"{one['parameters']:,}",
                peak,
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        for folded in (False, True):
            found = against_hand(row, folded=folded)
            if found is not None:
                ours, hand, ratio = found
                lines.append(("\n" if not folded else "") + f"speed of {ours!r} over {hand!r}: {ratio}")
    lines += ["", "fraction: speed-up over dense x multiply-adds kept", conditions(rows)]
    return "\n".join(lines).lstrip("\n")


def memory_table(rows: Sequence[Row]) -> str:
    """MiB of each contender, a line for each cell."""
    names = list(dict.fromkeys(name for row in rows for name in row["contenders"]))
    lines = [f"| cell | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for row in rows:
        found = [row["contenders"].get(name) for name in names]
        cells = [f"{one['bytes'] / 2**20:.1f}" if one else "" for one in found]
        lines.append(f"| {describe(row)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "peak MiB above the input and the parameters", conditions(rows)])


def conditions(rows: Sequence[Row]) -> str:
    """Devices, threads and versions of all rows."""
    kinds = {
        f"{row['device_name']}, {row['threads']} thread(s); "
        + ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        for row in rows
    }
    return "\n".join(sorted(kinds))


def figure(rows: Sequence[Row]) -> Figure:
    """A panel for each cell, a bar for each contender: its speed-up over the dense network."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    heights = [len(row["contenders"]) + 2.5 for row in rows]
    drawing = Figure(figsize=(8.5, 0.24 * sum(heights) + 0.9), layout="constrained")
    axes = drawing.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, row in zip(axes, rows, strict=True):
        _panel(axis, row)
    axes[-1].set_xlabel(
        "speed-up over the dense network (medians; whiskers: 95 % of the bootstrap;\n"
        "diamonds: what the multiply-adds alone would give)",
        fontsize=8,
    )
    marks = [Patch(color=colour, label=label) for label, colour in COLOURS.items()]
    drawing.legend(handles=marks, loc="outside upper center", ncols=len(marks), fontsize=8, frameon=False)
    return drawing


def _panel(axis: Axes, row: Row) -> None:
    names = list(row["contenders"])
    dense = row["contenders"]["dense"]["multiply_adds"]
    for place, name in enumerate(names):
        one = row["contenders"][name]
        found = speed_up(row, name)
        spread = [[found.value - min(found.low, found.value)], [max(found.high, found.value) - found.value]]
        axis.barh(place, found.value, color=COLOURS[name.split()[0]], height=0.7)
        axis.errorbar(found.value, place, xerr=spread, color="black", capsize=2, linewidth=1)
        axis.plot(dense / one["multiply_adds"], place, marker="D", color="white", markeredgecolor="black", markersize=4)
        rate = row["batch"] / one["seconds"]
        axis.annotate(
            f"{rate:,.0f} images/s" if rate >= 100 else f"{rate:.3g} images/s",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=7,
        )
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.tick_params(labelsize=7)
    axis.set_title(describe(row), fontsize=9, loc="left")
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
