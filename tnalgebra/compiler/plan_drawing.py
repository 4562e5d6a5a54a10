"""A drawing of a plan: the contraction tree, inputs and weights at the bottom, the value on top."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..networks import check_suffix, own_style, store
from . import operations as ops
from .choose import Candidate
from .operations import labels_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LETTER = 0.082
"""Width of a letter in inches."""

LEVEL, GAP, HEIGHT = 0.95, 0.25, 0.46
"""Distances between levels and between boxes, and the height of a box, in inches."""


@dataclass(frozen=True)
class _Box:
    lines: tuple[str, ...]
    parts: tuple[tuple[_Box, str], ...]
    fill: str
    dashed: bool

    @property
    def width(self) -> float:
        return max(len(line) for line in self.lines) * LETTER + 0.2


def draw_plan(candidate: Candidate, *, frozen: bool, path: str | os.PathLike[str] | None) -> Figure:
    """Draw the steps that compute; views and new names are left out. Dashed: done before the call.

    Args:
        path: the file to write, .svg, .png or .pdf; None writes nothing.

    Raises:
        NetworkError: another suffix.
    """
    check_suffix(path)
    from matplotlib.figure import Figure

    from ..networks import FILL, FUSE, INK, PALETTE

    fills = {"input": PALETTE[0], "weight": PALETTE[1], "pattern": FILL, "step": FUSE}
    root = _box(candidate, len(candidate.program.operations) - 1, fills, frozen=frozen)
    places: list[tuple[_Box, float, float]] = []
    right = _place(root, 0.0, _depth(root) * LEVEL, places)
    top = _depth(root) * LEVEL + HEIGHT
    with own_style():
        figure = Figure(figsize=(right + 0.4, top + 0.7), dpi=150, facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(-0.2, right + 0.2)
        axes.set_ylim(-0.45, top + 0.25)
        axes.set_axis_off()
        centre = {id(box): (x, y) for box, x, y in places}
        for box, x, y in places:
            for part, label in box.parts:
                end = centre[id(part)]
                axes.plot([x, end[0]], [y, end[1]], color=INK, linewidth=1.0, zorder=1)
                middle = ((x + end[0]) / 2, (y + end[1]) / 2)
                white = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
                axes.text(*middle, label, fontsize=7.5, color=INK, ha="center", va="center", bbox=white, zorder=2)
        for box, x, y in places:
            edge = {"boxstyle": "round,pad=0.35", "facecolor": box.fill, "edgecolor": INK, "linewidth": 1.0}
            style = {**edge, "linestyle": "--" if box.dashed else "-"}
            text = "\n".join(box.lines)
            axes.text(x, y, text, fontsize=9, color=INK, ha="center", va="center", bbox=style, zorder=3)
        store(figure, path)
    return figure


def _box(candidate: Candidate, number: int, fills: Mapping[str, str], *, frozen: bool) -> _Box:
    program = candidate.program
    operation = program.operations[number]
    if isinstance(operation, ops.Arrange | ops.Rename | ops.ChannelsLast):
        return _box(candidate, operation.source, fills, frozen=frozen)
    if isinstance(operation, ops.Load):
        return _Box((operation.name, _sizes(candidate, number) or "scalar"), (), fills[operation.kind], False)
    boxes = [(_box(candidate, source, fills, frozen=frozen), source) for source in operation.sources]
    # the box of a tensor shows its sizes, so its line does not
    parts = tuple((box, _sizes(candidate, source) if box.parts else "") for box, source in boxes)
    count = candidate.works[number][0].multiply_adds
    lines = (_kind(operation), *([f"{count:,} multiply-adds"] if count else []))
    return _Box(lines, parts, fills["step"], frozen and program.weights_only[number])


def _sizes(candidate: Candidate, number: int) -> str:
    program = candidate.program
    return " ".join(f"{label}:{program.sizes[label]}" for label in labels_in(program.operations[number].axes))


def _kind(operation: ops.Operation) -> str:
    match operation:
        case ops.Convolve():
            depth = "depthwise " if operation.is_depthwise else ""
            name = "transposed convolution" if operation.transposed else "convolution"
            return f"{depth}{name} {' '.join(labels_in(operation.window)) or '1x1'}"
        case ops.Matmul():
            return f"product over {' '.join(operation.summed)}"
        case ops.Pool():
            return "means of windows"
        case ops.Unfold():
            return "windows"
        case ops.SumAxes():
            return "sum"
        case _:
            return type(operation).__name__.lower()


def _depth(box: _Box) -> int:
    return 1 + max((_depth(part) for part, _ in box.parts), default=-1)


def _place(box: _Box, left: float, y: float, places: list[tuple[_Box, float, float]]) -> float:
    """Place a box above its parts, and return the right end of the space that they use."""
    if not box.parts:
        places.append((box, left + box.width / 2, y))
        return left + box.width
    right = left
    centres: list[float] = []
    for part, label in box.parts:
        begin = right + (GAP if centres else 0.0)
        before = len(places)
        end = _place(part, begin, y - LEVEL, places)
        right = max(end, begin + len(label) * LETTER * 0.8)
        centres.append(next(x for other, x, _ in places[before:] if other is part))
    centre = (centres[0] + centres[-1]) / 2
    places.append((box, max(centre, left + box.width / 2), y))
    return max(right, centre + box.width / 2)
