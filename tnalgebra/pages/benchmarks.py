"""The rows of a benchmark on a page, and rows of a kind that is not known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._tables import shorten
from .parts import Column, Dataset, Panel, Section, as_number, flat
from .runs import Run

CONDITIONS = ("device", "device_name", "threads", "smoke", "seed", "rounds", "versions")
"""What all rows of a benchmark usually have in common."""

MILLISECONDS, RATIO = "milliseconds", "times the first's"


def benchmark_section(run: Run) -> Section:
    """The section of a benchmark: a line for each contender of each cell."""
    rows = run.rows
    facts = {name: ", ".join(dict.fromkeys(_text(row[name]) for row in rows if name in row)) for name in CONDITIONS}
    lines: list[tuple[str, dict[str, Any], str, dict[str, Any], float | None]] = []
    for row in rows:
        cell = {name: value for name, value in row.items() if name not in (*CONDITIONS, "contenders")}
        short = {name: value for name, value in cell.items() if isinstance(value, str | int | float | None)}
        named = ", ".join(f"{name} {value}" for name, value in short.items() if value is not None)
        contenders = {name: each for name, each in row["contenders"].items() if isinstance(each, Mapping)}
        first = next((as_number(each.get("seconds")) for each in contenders.values()), None)
        for name, each in contenders.items():
            numbers = {key: value for key, value in each.items() if key not in ("seconds", "times")}
            time = as_number(each.get("seconds"))
            ratio = time / first if time is not None and first else None
            lines.append((named, short, name, {**numbers, "seconds": time}, ratio))
    cells = dict.fromkeys(key for line in lines for key in line[1])
    further = dict.fromkeys(key for line in lines for key in line[3] if key != "seconds")
    seconds = [line[3]["seconds"] for line in lines]
    columns = [
        Column("cell", [line[0] for line in lines], shown=False),
        *(Column(name, [line[1].get(name) for line in lines], "short", choose=True) for name in cells),
        Column("contender", [line[2] for line in lines], choose=True),
        Column(MILLISECONDS, [None if each is None else 1e3 * each for each in seconds], "short"),
        Column(RATIO, [line[4] for line in lines], "short"),
        *(Column(f"{name} ", [_cell(line[3].get(name)) for line in lines], "short") for name in further),
    ]
    panels = [
        Panel("Median time", "cell", MILLISECONDS, log=True),
        Panel("Time, as a multiple of the first contender's", "cell", RATIO, log=True),
    ]
    text = "Times are medians of turns. A contender whose name ends in 'again' is timed twice: the difference is noise."
    return Section(
        title=run.folder.name,
        kind="benchmark",
        facts={name.replace("_", " "): value for name, value in facts.items() if value},
        details=run.details,
        notes=run.notes,
        datasets=[Dataset("Contenders", columns, panels, "contender", text)],
    )


def other_section(run: Run) -> Section:
    """The section of rows, or of a result, of a kind that is not known: a table of all that they hold."""
    rows = [flat(row) for row in run.rows] or [flat(run.result)]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [Column(name, [row.get(name) for row in rows], "short", choose=True) for name in names]
    few = [_with_menu(one) for one in columns]
    note = "These rows are of a kind that this version has no plots and answers for. The table has all that they hold."
    return Section(
        title=run.folder.name,
        kind="rows",
        facts={"rows": f"{len(rows):,}"},
        details=run.details,
        notes=[*run.notes, note],
        datasets=[Dataset("All rows", few)],
    )


def _with_menu(one: Column) -> Column:
    """A column of few texts has a menu; others would fill the page with them."""
    few = 1 < len({str(value) for value in one.values}) <= 12 and all(isinstance(value, str) for value in one.values)
    return Column(one.name, one.values, one.form, few)


def _cell(value: object) -> object:
    return shorten(str(value)) if isinstance(value, Mapping | list) else value


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {version}" for name, version in value.items())
    return str(value)
