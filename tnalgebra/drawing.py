"""Networks as diagrams, with matplotlib: SVG for notebooks, SVG and PNG files, figures of studies.

Named tensors are circles, tied ones of one colour; Conv is a diamond, Fuse a triangle whose tip is the whole, Copy a
black dot, Fill a square with its value. A bond is a line with its label; an open label is a leg that ends free; a
label that stands once and is summed is a leg that ends in a bar; a hyperedge is a small ring joined to its carriers.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import NetworkError, explain
from .nodes import Node

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
MARGIN = 10.0


def svg(nodes: Sequence[Node], output: Sequence[str], sizes: Mapping[str, int]) -> str:
    """The network as the text of an SVG document: the same network gives the same text, byte for byte."""
    return _rendered(draw(nodes, output, sizes), ".svg").decode("utf-8")


def draw(
    nodes: Sequence[Node],
    output: Sequence[str],
    sizes: Mapping[str, int],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
    axes: Axes | None = None,
) -> Figure:
    """Draw a network.

    Args:
        nodes, output, sizes: the fields of the network.
        path: where the figure is stored, as .svg or .png; an older file there is replaced in one step.
        title: a line above the network.
        axes: existing axes to draw into, scaled to fit; by default a new figure of the network's own size.

    Returns:
        The figure. It is no pyplot figure: nothing pops up, nothing has to be closed.

    Raises:
        NetworkError: another suffix.
    """
    if path is not None and Path(path).suffix.lower() not in SUFFIXES:
        raise NetworkError(
            explain(
                f"a drawing is not stored as {Path(path).suffix or 'a file without a suffix'!r}",
                path=os.fspath(path),
                fix=f"a path that ends in {' or '.join(SUFFIXES)}",
            )
        )
    import matplotlib
    from matplotlib.figure import Figure

    from .drawing_layout import layout
    from .drawing_paint import paint

    plan = layout(nodes, output, sizes)
    left, bottom, right, top = plan.box
    left, bottom, right, top = left - MARGIN, bottom - MARGIN, right + MARGIN, top + MARGIN
    if axes is not None:
        paint(axes, nodes, plan, title, (left, bottom, right, top))
        figure = axes.get_figure(root=True)
        assert figure is not None
    else:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            figure = Figure(figsize=((right - left) / 72, (top - bottom + (22 if title else 0)) / 72), dpi=150)
            own = figure.add_axes((0, 0, 1, (top - bottom) / (top - bottom + (22 if title else 0))))
            paint(own, nodes, plan, title, (left, bottom, right, top))
    if path is not None:
        _store(figure, Path(path))
    return figure


def _rendered(figure: Figure, suffix: str) -> bytes:
    import matplotlib

    metadata = {"Date": None} if suffix == ".svg" else {"Software": None}
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "tnalgebra", "svg.fonttype": "none", "savefig.bbox": None}):
        figure.savefig(stream, format=suffix[1:], metadata=metadata)
    return stream.getvalue()


def _store(figure: Figure, path: Path) -> None:
    content = _rendered(figure, path.suffix.lower())
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
        try:
            stream.write(content)
            stream.close()
            os.replace(stream.name, path)
        except BaseException:
            stream.close()
            os.unlink(stream.name)
            raise
