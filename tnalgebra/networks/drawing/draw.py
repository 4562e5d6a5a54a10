"""Draw a network into a figure of its own, into a part of another figure, or as SVG for a notebook.

A named tensor is a circle, and tied tensors have the same colour. A Conv is a diamond, a Fuse a triangle whose tip
points to the whole, a Copy a black dot, and a Fill a square with its value. A bond is a line with its label. An open
label is a leg with a free end; a label that occurs once and is summed is a leg that ends in a bar. A hyperedge is a
small ring with a line to each node that carries it. The terms of a sum are side by side, with a plus between them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from ..nodes import Node
from .figures import check_suffix, own_style, render, store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def svg(terms: Sequence[Sequence[Node]], output: Sequence[str], sizes: Mapping[str, int]) -> str:
    """The network as the text of an SVG document; the same network gives the same text, byte for byte.

    A notebook calls this for every network it shows, so a network that is too large to draw is not an error here: the
    document says that it is too large.
    """
    from matplotlib.figure import Figure

    from .layout import LARGEST_DRAWING

    count = sum(map(len, terms))
    with own_style():
        if count <= LARGEST_DRAWING:
            figure = draw_terms(terms, output, sizes)
        else:
            figure = Figure(figsize=(4, 0.5))
            figure.text(0.5, 0.5, f"a network of {count} nodes: too large to draw", ha="center", va="center")
        return render(figure, ".svg").decode("utf-8")


def draw_terms(
    terms: Sequence[Sequence[Node]],
    output: Sequence[str],
    sizes: Mapping[str, int],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
    axes: Axes | None = None,
    places: Mapping[int | str, tuple[float, float]] | None = None,
) -> Figure:
    """Draw a network that is given by the nodes of its terms, its output and its sizes, as `Network.draw` describes."""
    check_suffix(path)
    from .layout import layout_terms
    from .paint import new_axes, paint

    plan = layout_terms(terms, output, sizes, places)
    nodes = [node for nodes in terms for node in nodes]
    with own_style() if axes is None else nullcontext():  # the caller's figure keeps the caller's style
        axes = axes or new_axes(plan, title)
        paint(axes, nodes, plan, title)
        around = axes.get_figure()
        assert around is not None
        figure: Figure = around.figure
        store(figure, path)
    return figure
