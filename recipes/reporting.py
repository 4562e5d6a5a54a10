"""How every recipe prints its settings, writes text and figures, and sets a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tnalgebra as tn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def print_settings(config: Any) -> None:
    """A line for each field of a recipe's config."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    width = max(map(len, values)) + 2
    for name, value in values.items():
        print(f"{name:<{width}}{value}")


def check_least(
    config: Any, least: Mapping[str, float], error: type[tn.errors.TnalgebraError] = tn.errors.StudyError
) -> None:
    """Refuse a setting, or an element of one, below its least value; None means a default."""
    for name, bound in least.items():
        for one in _values(config, name):
            if not one >= bound:
                raise error(tn.errors.explain(f"{name} is {one}", fix=f"at least {bound}"))


def check_part(config: Any, *names: str) -> None:
    """Refuse settings that are not in (0, 1]; None means a default."""
    for name in names:
        for one in _values(config, name):
            if not 0 < one <= 1:
                raise tn.errors.StudyError(f"{name} is {one:g}", fix="above 0, at most 1")


def check_known(kind: str, asked: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that is not among the known ones."""
    for name in asked:
        if name not in known:
            raise tn.errors.StudyError(f"no {kind} is called {name!r}", known=", ".join(known))


def _values(config: Any, name: str) -> list[Any]:
    value = getattr(config, name)
    return [one for one in (value if isinstance(value, tuple) else (value,)) if one is not None]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises StudyError where a file or folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise tn.errors.StudyError(f"{path} cannot be written", because=error, fix="another --output") from error


def write(path: Path, content: str | Callable[[Path], None]) -> None:
    """Write a file whole or not at all: text, or what a function writes into the path that it receives.

    Raises:
        StudyError: it cannot be written.
    """
    with writing(path):
        if isinstance(content, str):
            tn.studies.write_text(path, content.rstrip("\n") + "\n")
        else:
            tn.studies.write_whole(path, content)


def write_figure(figure: Figure, path: Path) -> None:
    """As PNG and SVG. Raises StudyError where they cannot be written."""
    for suffix in tn.studies.SUFFIXES:
        write(path.with_suffix(suffix), partial(figure.savefig, dpi=150))


def line_style(number: int) -> dict[str, Any]:
    """Colour and marker of the n-th line of a figure."""
    colours, markers = tn.model.DISTINCT_COLOURS, tn.studies.MARKERS
    return {"color": colours[number % len(colours)], "marker": markers[number % len(markers)]}


def aligned(rows: Sequence[Sequence[str]], *, left: int = 1, ruled: bool = True) -> str:
    """Columns of text, the first `left` of them to the left, the others to the right, with a line below the head."""
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
    """A table in Markdown, the first `left` columns to the left, the others to the right."""
    ruler = "".join("---|" if number < left else "---:|" for number in range(len(head)))
    return "\n".join([f"| {' | '.join(head)} |", f"|{ruler}", *(f"| {' | '.join(row)} |" for row in rows)])


def count_text(count: float) -> str:
    """A count in three digits: 269,722 -> 270 k."""
    for unit, size in ((" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def plain(value: Any) -> Any:
    """As JSON has it: paths as text, dataclasses as objects, and no NaN."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
