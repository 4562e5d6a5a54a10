"""What a page consists of: sections with facts, answers, data sets with their plots, and drawings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from .._tables import shorten

CellFormat: TypeAlias = Literal["text", "count", "percent", "change", "short", "code"]
"""How numbers are written: as they are, with thousands, with two decimals, with a sign too, in four digits. "code" is a
text with a button that copies it."""


@dataclass(frozen=True)
class Column:
    """A column of a data set.

    name: its heading, which panels use too.
    values: texts, numbers and None, one for each row.
    form: how its numbers are written.
    choose: a menu over the table shows the rows of one value; with a text, of this value at first.
    shown: whether the table has it; where not, only plots use it.
    """

    name: str
    values: Sequence[Any]
    form: CellFormat = "text"
    choose: bool | str = False
    shown: bool = True


@dataclass(frozen=True)
class Panel:
    """A plot of two columns. A row is a point; in "cells" it is a cell whose colour is the value of the column `z`."""

    title: str
    x: str
    y: str
    kind: Literal["points", "lines", "cells"] = "points"
    z: str | None = None
    log: bool = False


@dataclass(frozen=True)
class Dataset:
    """Rows that a table and several plots show at once: a filter and a cursor are shared by all of them.

    columns: of the table.
    panels: the plots.
    series: the column whose values are distinguished by colours.
    folded: whether the table is shown only on demand.
    sort: the column by which the table is sorted at first.
    """

    title: str
    columns: Sequence[Column]
    panels: Sequence[Panel] = ()
    series: str | None = None
    text: str = ""
    folded: bool = False
    sort: str | None = None

    def data(self) -> dict[str, Any]:
        """As the script of the page reads it."""
        columns = [column for column in self.columns if any(value is not None for value in column.values)]
        known = {column.name for column in columns}
        panels = [panel for panel in self.panels if {panel.x, panel.y, panel.z or panel.x} <= known]
        return {
            "title": self.title,
            "folded": self.folded,
            "sort": self.sort,
            "series": self.series if self.series in known else None,
            "columns": [{**vars(column), "values": [plain(value) for value in column.values]} for column in columns],
            "panels": [vars(panel) for panel in panels],
        }


@dataclass(frozen=True)
class Answer:
    """A question, the answer in short, what the rows say about it, and the data behind it."""

    question: str
    short: str
    text: str
    dataset: Dataset | None = None


@dataclass(frozen=True)
class Drawing:
    """An SVG document with its title. It is shown as an image, so that nothing in it can run."""

    title: str
    svg: str


@dataclass(frozen=True)
class Section:
    """What a page says about one run.

    kind: what was done, such as "study".
    facts: name -> value, the most important first.
    details: further texts, folded: the config, for instance.
    notes: what is not as it should be.
    parts: name -> a section, of which a menu shows one at a time: the networks of a study.
    """

    title: str
    kind: str
    facts: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    answers: Sequence[Answer] = ()
    datasets: Sequence[Dataset] = ()
    drawings: Sequence[Drawing] = ()
    parts: Mapping[str, Section] = field(default_factory=dict)


def plain(value: object) -> str | int | float | None:
    """A value for JSON, whose numbers are finite: others become text, as whatever is not a number does."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return value if math.isfinite(value) else str(value)


def as_number(value: object) -> float | None:
    """A value of a row as a number; None for whatever is not one, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def times(value: object, factor: float) -> object:
    """A number times a factor; anything else as it is."""
    return value * factor if isinstance(value, int | float) and not isinstance(value, bool) else value


def known(facts: Mapping[str, str]) -> dict[str, str]:
    """Facts without those that are not known."""
    return {name: text for name, text in facts.items() if text}


def ranks_text(ranks: object) -> str | None:
    """Bond -> rank as a text; None where there is nothing to write."""
    return " ".join(f"{bond}={rank}" for bond, rank in ranks.items()) or None if isinstance(ranks, Mapping) else None


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A row without nested mappings: their keys are joined by dots, and lists are texts."""
    cells: dict[str, Any] = {}
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            cells |= flat(value, f"{name}.")
        else:
            cells[name] = shorten(", ".join(map(str, value))) if isinstance(value, list | tuple) else value
    return cells
