"""The results of the benchmark of models: a table, the comparison with chains by hand, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recipes.benchmarks.report import Bar, Row, bar_figure
from recipes.benchmarks.timing import Ratio, ratio_of_medians
from recipes.reporting import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    "contender", "ms", "images/s", "speed-up [95 %]", "multiply-adds kept", "fraction", "parameters", "peak MiB",
)  # fmt: skip


def describe(row: Row) -> str:
    """The cell of a row, as text."""
    ranks = f"multiply-adds {row['multiply_adds']:g}" if row["multiply_adds"] else f"ranks x {row['fraction']:g}"
    size = f"{row['image_size']}x{row['image_size']}"
    pointwise = f"1x1 {row['pointwise'] or 'dense'}"
    return f"{row['model']} {size}, batch {row['batch']}, {row['pass']}, {row['rewrite']}, {pointwise}, {ranks}"


def speed_up(row: Row, name: str) -> Ratio:
    """The speed-up of a contender over the dense network."""
    contenders = row["contenders"]
    return ratio_of_medians(contenders["dense"]["times"], contenders[name]["times"])


def against_hand(row: Row, *, folded: bool) -> tuple[str, str, Ratio] | None:
    """Our fastest contender, the fastest one by hand, and the ratio of their speeds; None if one is missing.

    Args:
        folded: whether contenders with folded batch normalisations are compared, or those without.
    """
    contenders = {name: one for name, one in row["contenders"].items() if ("folded" in name) == folded}
    kinds = [[name for name in contenders if name.startswith(kind)] for kind in ("ours", "hand")]
    if not all(kinds):
        return None
    ours, hand = (min(names, key=lambda name: float(contenders[name]["seconds"])) for names in kinds)
    return ours, hand, ratio_of_medians(contenders[hand]["times"], contenders[ours]["times"])


def table(rows: Sequence[Row], memory: Sequence[Row]) -> str:
    """A Markdown table for each cell, and the comparison with chains by hand."""
    peaks = {(describe(row), row["seed"], row["threads"]): row["contenders"] for row in memory}
    parts: list[str] = []
    for row in rows:
        peak = peaks.get((describe(row), row["seed"], row["threads"]), {})
        dense = row["contenders"]["dense"]
        lines = []
        for name, one in row["contenders"].items():
            kept = one["multiply_adds"] / dense["multiply_adds"]
            lines.append(
                [
                    name,
                    f"{1e3 * one['seconds']:.1f}",
                    f"{row['batch'] / one['seconds']:.1f}",
                    str(speed_up(row, name)),
                    f"{kept:.3f}",
                    f"{kept * dense['seconds'] / one['seconds']:.3f}",
                    f"{one['parameters']:,}",
                    f"{peak[name]['bytes'] / 2**20:.1f}" if name in peak else "",
                ]
            )
        parts += [f"{describe(row)}: {row['converted']} layers decomposed", markdown(COLUMNS, lines)]
        pairs = [against_hand(row, folded=folded) for folded in (False, True)]
        parts.append("\n".join(f"speed of {one[0]!r} over {one[1]!r}: {one[2]}" for one in pairs if one is not None))
    return "\n\n".join([*filter(None, parts), "fraction: speed-up over dense x multiply-adds kept"])


def figure(rows: Sequence[Row]) -> Figure:
    """The speed-ups over the dense network, with a panel for each cell and a bar for each contender."""
    panels: dict[str, list[Bar]] = {}
    for row in rows:
        dense = row["contenders"]["dense"]
        bars = panels.setdefault(describe(row), [])
        for name, one in row["contenders"].items():
            ratio, rate = speed_up(row, name), row["batch"] / one["seconds"]
            note = f"{rate:,.0f} images/s" if rate >= 100 else f"{rate:.3g} images/s"
            mark = dense["multiply_adds"] / one["multiply_adds"]
            bars.append(Bar(name, ratio.value, note, whiskers=(ratio.low, ratio.high), mark=mark))
    return bar_figure(
        panels,
        "speed-up over the dense network (medians; whiskers: 95 % of the bootstrap;\n"
        "diamonds: what the multiply-adds alone would give)",
    )
