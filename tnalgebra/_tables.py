"""How results show themselves: a short `repr`, a printed table, HTML in notebooks, and data frames of pandas."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import MissingPackageError

if TYPE_CHECKING:
    import pandas as pd

LONGEST_LINE = 160
"""Characters of a network or an equation that a `repr` shows."""

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Table:
    """Cells with a heading, and lines of text around them. `str(table)` is aligned text.

    rows: lines of cells, each as long as `head`.
    head: the names of the columns; empty for a list of names and values.
    left: the numbers of the columns that are aligned to the left; the others are aligned to the right.
    total: one more line of cells, set apart below the others; empty where there is nothing to add up.
    above, below: lines of text.
    """

    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()
    left: Collection[int] = (0,)
    total: Sequence[str] = ()
    above: Sequence[str] = ()
    below: Sequence[str] = ()

    def __str__(self) -> str:
        cells = [line for line in (self.head, *self.rows, self.total) if line]
        lines = self._align(cells)
        line = "-" * max(map(len, lines), default=0)
        if self.total:
            lines.insert(-1, line)
        if self.head:
            lines.insert(1, line)
        return "\n".join([*self.above, *lines, *self.below])

    def _align(self, cells: Sequence[Sequence[str]]) -> list[str]:
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return [
            "  ".join(
                cell.ljust(width) if number in self.left else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]

    def html(self) -> str:
        """The table as HTML; a long one scrolls."""
        parts = ((("thead", "th"), [self.head]), (("tbody", "td"), self.rows), (("tfoot", "th"), [self.total]))
        inside = ""
        for (part, tag), lines in parts:
            body = "".join(f"<tr>{self._html_cells(line, tag)}</tr>" for line in lines if line)
            inside += f'<{part} style="{_LINES[part]}">{body}</{part}>' if body else ""
        table = f'<table style="border-collapse: collapse">{inside}</table>'
        table = f'<div style="max-height: 40em; overflow: auto">{table}</div>'
        return _html_lines(self.above) + table + _html_lines(self.below)

    def _html_cells(self, line: Sequence[str], tag: str) -> str:
        return "".join(
            f'<{tag} style="{_STYLES[number in self.left]}">{html.escape(cell)}</{tag}>'
            for number, cell in enumerate(line)
        )


_PADDING = "padding: 2px 8px"
_STYLES = {True: f"text-align: left; {_PADDING}", False: f"text-align: right; white-space: nowrap; {_PADDING}"}
_LINES = {"thead": "border-bottom: 1px solid", "tbody": "", "tfoot": "border-top: 1px solid"}


def _html_lines(lines: Sequence[str]) -> str:
    text = html.escape("\n".join(lines))
    return f'<pre style="white-space: pre-wrap">{text}</pre>' if lines else ""


def tabulate(
    rows: Sequence[_Item],
    columns: Mapping[str, Callable[[_Item], str]],
    *,
    left: Collection[str] = (),
    total: Mapping[str, str] | None = None,
    above: Sequence[str] = (),
    below: Sequence[str] = (),
) -> Table:
    """A table of what `columns` write of each row, by their headings. A column that is empty in all rows is left out.

    left: headings of the columns that are aligned to the left, besides the first.
    total: heading -> cell of one more line, set apart below the others.
    """
    cells = {heading: [write(row) for row in rows] for heading, write in columns.items()}
    cells = {heading: column for heading, column in cells.items() if any(column) or not rows}
    aligned = {number for number, heading in enumerate(cells) if heading in left} | {0}
    last = () if total is None else tuple(total.get(heading, "") for heading in cells)
    return Table(list(zip(*cells.values(), strict=True)), tuple(cells), aligned, last, above, below)


def plural(count: int, noun: str) -> str:
    """A count with its noun: "1 layer", "2 layers"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def write_number(number: float | None, form: str = ",") -> str:
    """A number in a format of Python's, or an empty cell for None."""
    return "" if number is None else format(number, form)


def write_change(before: int | None, after: int | None) -> str:
    """Two counts as "1,000 -> 10", or one where they are equal; an empty cell where one is unknown."""
    if before is None or after is None:
        return ""
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


class Tabular(ABC):
    """A result with a short `repr`, a table that `print` and notebooks show, records, and a data frame.

    A class that derives from it says what its summary, its table and its records are. A dataclass needs `repr=False`.
    """

    @abstractmethod
    def _summary(self) -> str:
        """One short line, which `repr` shows after the name of the class: "of 3 layers"."""

    @abstractmethod
    def _table(self) -> Table:
        """What `print` and notebooks show."""

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each row, with numbers as numbers."""

    def to_pandas(self) -> pd.DataFrame:
        """The records as a data frame, one a row.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        return data_frame(self.records())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._summary()}>"

    def __str__(self) -> str:
        return str(self._table())

    def _repr_html_(self) -> str:
        return self._table().html()


def data_frame(rows: Iterable[Any], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Records, or tuples of the named columns, as a data frame.

    Raises:
        MissingPackageError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "a data frame needs pandas, which is not installed", fix='pip install "tnalgebra[study]"'
        ) from error
    return pd.DataFrame(list(rows), columns=columns)  # type: ignore[arg-type]


def shorten(text: str, longest: int = LONGEST_LINE) -> str:
    """The text, or its beginning and end with a mark between them where it is longer than `longest` characters."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[: half - 1]}…{text[-half:]}"
