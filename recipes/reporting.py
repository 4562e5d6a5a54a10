"""What every recipe needs to print its settings, to check them, and to write texts, tables and figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tnalgebra as tn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def print_settings(config: Any) -> None:
    """Print a line for each field of a recipe's config."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    width = max(map(len, values)) + 2
    for name, value in values.items():
        print(f"{name:<{width}}{value}")


def check_least(
    config: Any, least: Mapping[str, float], error: type[tn.errors.TnalgebraError] = tn.errors.StudyError
) -> None:
    """Raise the error where a setting, or an element of a tuple, is below its least value. None, a default, passes."""
    for name, bound in least.items():
        for one in _values(config, name):
            if not one >= bound:
                raise error(f"{name} is {one}", fix=f"at least {bound}")


def check_part(config: Any, *names: str) -> None:
    """Raise StudyError where a setting is not a part: above 0, at most 1. None, a default, passes."""
    for name in names:
        for one in _values(config, name):
            if not 0 < one <= 1:
                raise tn.errors.StudyError(f"{name} is {one:g}", fix="above 0, at most 1")


def check_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise StudyError where a name is not one of those known."""
    for name in names:
        if name not in known:
            raise tn.errors.StudyError(f"no {kind} is called {name!r}", known=", ".join(known))


def _values(config: Any, name: str) -> list[Any]:
    value = getattr(config, name)
    return [one for one in (value if isinstance(value, tuple) else (value,)) if one is not None]


def write(path: Path, content: str | Callable[[Path], None]) -> None:
    """Write a file whole or not at all.

    Args:
        content: a text, or a function that writes into the path it receives.

    Raises:
        StudyError: the file cannot be written.
    """
    with tn.studies.writing(path):
        if isinstance(content, str):
            tn.studies.write_text(path, content.rstrip("\n") + "\n")
        else:
            tn.studies.write_whole(path, content)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and as SVG. Raises StudyError where a file cannot be written."""
    for suffix in tn.studies.SUFFIXES:
        write(path.with_suffix(suffix), partial(figure.savefig, dpi=150))


def line_style(number: int) -> dict[str, Any]:
    """The colour and the marker of the n-th line of a figure."""
    colours, markers = tn.model.DISTINCT_COLOURS, tn.studies.MARKERS
    return {"color": colours[number % len(colours)], "marker": markers[number % len(markers)]}


def aligned(rows: Sequence[Sequence[str]], *, left: int = 1, ruled: bool = True) -> str:
    """Rows as aligned columns: the first `left` of them to the left, the others to the right, a line below the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], *(["-" * max(map(len, lines))] if ruled else []), *lines[1:]])


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table in Markdown, its first `left` columns aligned to the left, the others to the right."""
    ruler = "".join("---|" if number < left else "---:|" for number in range(len(head)))
    return "\n".join([f"| {' | '.join(head)} |", f"|{ruler}", *(f"| {' | '.join(row)} |" for row in rows)])


def count_text(count: float) -> str:
    """A count in three digits: 269,722 -> 270 k."""
    for unit, size in ((" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def plain(value: Any) -> Any:
    """A value for JSON: paths as text, dataclasses as objects, and null in place of NaN and infinity."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
