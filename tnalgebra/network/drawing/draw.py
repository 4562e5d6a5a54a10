"""Networks as diagrams, with matplotlib: SVG for notebooks, SVG and PNG files, figures of studies.

Named tensors are circles, tied ones of one colour; Conv is a diamond, Fuse a triangle whose tip is the whole, Copy a
black dot, Fill a square with its value. A bond is a line with its label; an open label is a leg that ends free; a
label that stands once and is summed is a leg that ends in a bar; a hyperedge is a small ring joined to its carriers.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..._files import write_whole
from ...errors import NetworkError, explain
from ..nodes import Node

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .layout import Layout

SUFFIXES = (".svg", ".png")
MARGIN = 10.0
DOTS_PER_INCH = 150


def svg(nodes: Sequence[Node], output: Sequence[str], sizes: Mapping[str, int]) -> str:
    """The network as the text of an SVG document: the same network gives the same text, byte for byte.

    Of a network that is too large to draw, the document says so: a notebook shows it without asking.
    """
    from matplotlib.figure import Figure

    from .layout import LARGEST_DRAWING

    with own_style():
        if len(nodes) <= LARGEST_DRAWING:
            figure = draw(nodes, output, sizes)
        else:
            figure = Figure(figsize=(4, 0.5))
            figure.text(0.5, 0.5, f"a network of {len(nodes)} nodes: too large to draw", ha="center", va="center")
        return _rendered(figure, ".svg").decode("utf-8")


def draw(
    nodes: Sequence[Node],
    output: Sequence[str],
    sizes: Mapping[str, int],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
    axes: Axes | None = None,
    places: Mapping[int | str, tuple[float, float]] | None = None,
) -> Figure:
    """Draw a network.

    Args:
        nodes, output, sizes: the fields of the network.
        path: where the figure is stored, as .svg or .png; an older file there is replaced in one step.
        title: a line above the network.
        axes: existing axes to draw into, shrunk to fit (so that several networks stand side by side in one
            figure); by default a new figure of the network's own size.
        places: where each node stands, by its number, or its name where only one node has that: x to the right and y
            upwards, neighbours 1 apart; and the dot of a hyperedge, by its label. By default chosen here.

    Returns:
        The figure. It is no pyplot figure: nothing pops up, nothing has to be closed.

    Raises:
        NetworkError: another suffix, a network of too many nodes to draw, or a node without a place.
        OSError: the file cannot be written; what was there before is still there.
    """
    suffix = None if path is None else suffix_of(path)
    from .layout import layout

    plan = layout(nodes, output, sizes, places)
    if axes is not None:
        from .paint import paint

        paint(axes, nodes, plan, title=title, margin=MARGIN)
        around = axes.get_figure()
        assert around is not None
        figure: Figure = around.figure
        if path is not None and suffix is not None:
            store(figure, suffix, path)
        return figure
    with own_style():
        figure = _new_figure(nodes, plan, title)
        if path is not None and suffix is not None:
            store(figure, suffix, path)
    return figure


def _new_figure(nodes: Sequence[Node], plan: Layout, title: str | None) -> Figure:
    """A figure in which a point of the layout is a point on paper."""
    from matplotlib.figure import Figure

    from .labels import half_extent
    from .paint import TITLE_SIZE, paint

    left, bottom, right, top = plan.box
    half_width, half_height = half_extent(title or "", TITLE_SIZE)
    width, height = max(right - left, 2 * half_width) + 2 * MARGIN, top - bottom + 2 * MARGIN
    whole = height + 2 * half_height + (MARGIN if title else 0.0)
    figure = Figure(figsize=(width / 72, whole / 72), dpi=DOTS_PER_INCH, facecolor="white")
    paint(figure.add_axes((0.0, 0.0, 1.0, height / whole)), nodes, plan, title=title, margin=MARGIN)
    return figure


@contextmanager
def own_style() -> Iterator[None]:
    """matplotlib's own defaults for the time of a drawing, whatever style the user has set."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def _rendered(figure: Figure, suffix: str) -> bytes:
    import matplotlib

    stream = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "tnalgebra", "svg.fonttype": "none"}):
        figure.savefig(stream, format=suffix[1:], metadata=metadata)
    return stream.getvalue()


def suffix_of(path: str | os.PathLike[str]) -> str:
    """.svg or .png, by which a drawing is stored. Raises NetworkError for a path that ends in neither."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise NetworkError(
            explain(
                f"a drawing cannot be stored as {suffix!r}" if suffix else "the path of a drawing has no suffix",
                path=os.fspath(path),
                fix=f"a path that ends in {' or '.join(SUFFIXES)}",
            )
        )
    return suffix


def store(figure: Figure, suffix: str, path: str | os.PathLike[str]) -> None:
    """Write a figure, whole or not at all, with nothing of the time or the machine in it."""
    content = _rendered(figure, suffix)

    def write(file: Path) -> None:
        file.write_bytes(content)

    write_whole(Path(path), write)
