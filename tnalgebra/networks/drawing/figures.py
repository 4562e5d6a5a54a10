"""Figures as files, byte for byte the same each time, and the colours that all drawings share."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..._files import write_whole
from ...errors import NetworkError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#26323d"
"""The colour of lines and texts."""

FILL, FUSE = "#f2efe6", "#e6e9ec"
"""The fills of the symbols of Fill (and of Conv), and of Fuse."""

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
"""The fills of the symbols of named tensors, one colour for each tensor."""

_METADATA: dict[str, dict[str, None]] = {
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""The formats of figures; and what matplotlib would write into each that depends on the time or the machine."""


@contextmanager
def own_style() -> Iterator[None]:
    """Draw with matplotlib's own defaults inside the block, whatever style the user has set."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def render(figure: Figure, suffix: str) -> bytes:
    """The content of a file with this suffix. It does not depend on the time or the machine, and its text is text."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "tnalgebra", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(stream, format=suffix[1:], metadata=_METADATA[suffix])
    return stream.getvalue()


def check_suffix(path: str | os.PathLike[str] | None) -> None:
    """Check that a figure can be written to `path` (None: it is not to be written), before it is drawn.

    Raises:
        NetworkError: the path ends in neither .svg nor .png nor .pdf.
    """
    suffix = None if path is None else Path(path).suffix.lower()
    if path is not None and suffix not in _METADATA:
        raise NetworkError(
            f"a figure cannot be written as {suffix!r}" if suffix else "the path of a figure has no suffix",
            path=os.fspath(path),
            fix="a path that ends in .svg, .png or .pdf",
        )


def store(figure: Figure, path: str | os.PathLike[str] | None) -> None:
    """Write a figure in the format of the path's suffix, whole or not at all; do nothing where `path` is None."""
    if path is None:
        return
    content = render(figure, Path(path).suffix.lower())

    def write(file: Path) -> None:
        file.write_bytes(content)

    write_whole(Path(path), write)
