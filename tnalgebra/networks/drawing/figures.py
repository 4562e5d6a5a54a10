"""Figures as files, whole and the same every time, and the colours that all drawings share."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..._files import write_whole
from ...errors import NetworkError, explain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#26323d"
"""Lines and texts."""

FILL, FUSE = "#f2efe6", "#e6e9ec"
"""Inside of the symbols of Fill (and Conv) and of Fuse."""

PALETTE = (
    "#a8c8e4",
    "#f6cda1",
    "#b5d9b0",
    "#e9b5b3",
    "#cdbfe3",
    "#f3e3a0",
    "#a6d8d4",
    "#e8c0d8",
    "#d3c4b2",
    "#c6d8a0",
)
"""Inside of the symbols of named tensors, one colour a tensor."""

_SUFFIXES = (".svg", ".png")


@contextmanager
def own_style() -> Iterator[None]:
    """matplotlib's own defaults for the time of a drawing, whatever style the user has set."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def render(figure: Figure, suffix: str) -> bytes:
    """The content of a file with this suffix, with nothing of the time or the machine in it."""
    import matplotlib

    stream = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "tnalgebra", "svg.fonttype": "none"}):
        figure.savefig(stream, format=suffix[1:], metadata=metadata)
    return stream.getvalue()


def suffix_of(path: str | os.PathLike[str]) -> str:
    """.svg or .png, by which a drawing is stored. Raises NetworkError for a path that ends in neither."""
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise NetworkError(
            explain(
                f"a drawing cannot be stored as {suffix!r}" if suffix else "the path of a drawing has no suffix",
                path=os.fspath(path),
                fix=f"a path that ends in {' or '.join(_SUFFIXES)}",
            )
        )
    return suffix


def store(figure: Figure, suffix: str, path: str | os.PathLike[str]) -> None:
    """Write a figure, whole or not at all."""
    content = render(figure, suffix)

    def write(file: Path) -> None:
        file.write_bytes(content)

    write_whole(Path(path), write)
