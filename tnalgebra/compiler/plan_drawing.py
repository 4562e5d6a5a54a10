"""A drawing of a plan: the contraction tree, inputs and weights at the bottom, the value on top."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..network import own_style, store, suffix_of
from .choose import Candidate, weights_only
from .operations import Arrange, ChannelsLast, Convolve, Load, Multiply, Pool, Product, Rename, Sum, Unfold, sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LETTER = 0.082
"""Inches of a letter."""

LEVEL, GAP, HEIGHT = 0.95, 0.25, 0.46
"""Inches between levels, between boxes, and of a box."""


@dataclass(frozen=True)
class _Box:
    lines: tuple[str, ...]
    parts: tuple[tuple[_Box, str], ...]
    fill: str
    dashed: bool

    @property
    def width(self) -> float:
        return max(len(line) for line in self.lines) * LETTER + 0.2


def draw_plan(
    candidate: Candidate, counts: Mapping[int, int], *, frozen: bool, path: str | os.PathLike[str] | None
) -> Figure:
    """Draw the steps that compute; views and new names are left out. Dashed: done before the call.

    Args:
        counts: position of an operation -> its multiply-adds.
        path: where to store it, as .svg or .png.

    Raises:
        NetworkError: another suffix.
    """
    suffix = None if path is None else suffix_of(path)
    from matplotlib.figure import Figure

    from ..network import FILL, FUSE, INK, PALETTE

    fills = {"input": PALETTE[0], "weight": PALETTE[1], "pattern": FILL, "step": FUSE}
    root = _box(
        candidate, len(candidate.program.operations) - 1, counts, weights_only(candidate.program), frozen, fills
    )
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
        if suffix is not None and path is not None:
            store(figure, suffix, path)
    return figure


def _box(
    candidate: Candidate,
    number: int,
    counts: Mapping[int, int],
    flags: Sequence[bool],
    frozen: bool,
    fills: Mapping[str, str],
) -> _Box:
    operations = candidate.program.operations
    operation = operations[number]
    if isinstance(operation, Arrange | Rename | ChannelsLast) and number != 0:
        return _box(candidate, operation.source, counts, flags, frozen, fills)
    if isinstance(operation, Load):
        return _Box((operation.name, _sizes(candidate, number) or "scalar"), (), fills[operation.kind], False)
    boxes = [_box(candidate, source, counts, flags, frozen, fills) for source in sources(operation)]
    # a tensor says its own sizes
    labels = [
        _sizes(candidate, source) if box.parts else "" for box, source in zip(boxes, sources(operation), strict=True)
    ]
    parts = tuple(zip(boxes, labels, strict=True))
    second = f"{counts[number]:,} multiply-adds" if counts.get(number) else ""
    lines = (_kind(operation), second) if second else (_kind(operation),)
    return _Box(lines, parts, fills["step"], frozen and flags[number])


def _sizes(candidate: Candidate, number: int) -> str:
    axes = candidate.program.operations[number].axes
    return " ".join(f"{label}:{candidate.program.sizes[label]}" for axis in axes for label in axis)


def _kind(operation: object) -> str:
    match operation:
        case Convolve():
            window = " ".join(label for axis in operation.window for label in axis)
            depth = "depthwise " if operation.groups and not operation.summed and not operation.new else ""
            name = "transposed convolution" if operation.transposed else "convolution"
            return f"{depth}{name} {window or '1x1'}"
        case Product():
            return f"product over {' '.join(operation.summed)}"
        case Multiply():
            return "multiply"
        case Pool():
            return "means of windows"
        case Unfold():
            return "windows"
        case Sum():
            return "sum"
        case _:
            return type(operation).__name__.lower()


def _depth(box: _Box) -> int:
    return 1 + max((_depth(part) for part, _ in box.parts), default=-1)


def _place(box: _Box, left: float, y: float, places: list[tuple[_Box, float, float]]) -> float:
    """Place a box above its parts; the right end of what it covers."""
    if not box.parts:
        places.append((box, left + box.width / 2, y))
        return left + box.width
    right = left
    centres: list[float] = []
    for part, label in box.parts:
        begin = right + (GAP if centres else 0.0)
        before = len(places)
        own = _place(part, begin, y - LEVEL, places)
        right = max(own, begin + len(label) * LETTER * 0.8)
        centres.append(next(x for other, x, _ in places[before:] if other is part))
    centre = (centres[0] + centres[-1]) / 2
    places.append((box, max(centre, left + box.width / 2), y))
    return max(right, centre + box.width / 2)
