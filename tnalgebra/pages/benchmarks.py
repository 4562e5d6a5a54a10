"""The rows of a benchmark on a page, and rows of a kind that is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .._tables import shorten
from .parts import Column, Dataset, Panel, Section, as_number, flat
from .runs import Run

CONDITIONS = ("device", "device_name", "threads", "smoke", "seed", "rounds", "versions")
"""What all rows of a benchmark usually have in common."""

MILLISECONDS, RATIO = "milliseconds", "times the first's"


class _Timing(NamedTuple):
    """What a contender took in a cell; `named` is the cell in words, `ratio` the multiple of the first contender's."""

    named: str
    cell: Mapping[str, Any]
    contender: str
    seconds: float | None
    ratio: float | None
    further: Mapping[str, Any]


def benchmark_section(run: Run) -> Section:
    """The section of a benchmark: a line for each contender of each cell."""
    facts = {name: ", ".join(dict.fromkeys(_text(row[name]) for row in run.rows if name in row)) for name in CONDITIONS}
    columns = _columns([timing for row in run.rows for timing in _timings(row)])
    panels = [
        Panel("Median time", "cell", MILLISECONDS, log=True),
        Panel("Time, as a multiple of the first contender's", "cell", RATIO, log=True),
    ]
    text = "Times are medians of turns. A contender whose name ends in 'again' is timed twice: the difference is noise."
    return Section(
        title=run.title,
        kind="benchmark",
        facts={name.replace("_", " "): value for name, value in facts.items() if value},
        details=run.details,
        notes=run.notes,
        datasets=[Dataset("Contenders", columns, panels, "contender", text)],
    )


def _timings(row: Mapping[str, Any]) -> list[_Timing]:
    """The contenders of a row."""
    cell = {
        name: value
        for name, value in row.items()
        if name not in (*CONDITIONS, "contenders") and isinstance(value, str | int | float | None)
    }
    named = ", ".join(f"{name} {value}" for name, value in cell.items() if value is not None)
    contenders = {name: each for name, each in row["contenders"].items() if isinstance(each, Mapping)}
    first = next((as_number(each.get("seconds")) for each in contenders.values()), None)
    timings = []
    for name, each in contenders.items():
        further = {key: value for key, value in each.items() if key not in ("seconds", "times")}
        seconds = as_number(each.get("seconds"))
        ratio = seconds / first if seconds is not None and first else None
        timings.append(_Timing(named, cell, name, seconds, ratio, further))
    return timings


def _columns(timings: Sequence[_Timing]) -> list[Column]:
    cells = dict.fromkeys(key for one in timings for key in one.cell)
    further = dict.fromkeys(key for one in timings for key in one.further)
    milliseconds = [None if one.seconds is None else 1e3 * one.seconds for one in timings]
    return [
        Column("cell", [one.named for one in timings], shown=False),
        *(Column(name, [one.cell.get(name) for one in timings], "short", choose=True) for name in cells),
        Column("contender", [one.contender for one in timings], choose=True),
        Column(MILLISECONDS, milliseconds, "short"),
        Column(RATIO, [one.ratio for one in timings], "short"),
        *(Column(f"{name} ", [_cell(one.further.get(name)) for one in timings], "short") for name in further),
    ]


def other_section(run: Run) -> Section:
    """The section of rows, or of a result, of a kind that is not known: a table of all that they hold."""
    rows = [flat(row) for row in run.rows] or [flat(run.result)]
    names = dict.fromkeys(name for row in rows for name in row)
    note = "These rows are of a kind that this version has no plots and answers for. The table has all that they hold."
    return Section(
        title=run.title,
        kind="rows",
        facts={"rows": f"{len(rows):,}"},
        details=run.details,
        notes=[*run.notes, note],
        datasets=[Dataset("All rows", [_with_menu(name, [row.get(name) for row in rows]) for name in names])],
    )


def _with_menu(name: str, values: Sequence[object]) -> Column:
    """A column of few texts has a menu; others would fill the page with them."""
    few = 1 < len(set(map(str, values))) <= 12 and all(isinstance(value, str) for value in values)
    return Column(name, values, "short", few)


def _cell(value: object) -> object:
    return shorten(str(value)) if isinstance(value, Mapping | list) else value


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {version}" for name, version in value.items())
    return str(value)
