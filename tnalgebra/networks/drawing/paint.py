"""A layout painted into matplotlib axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import atan2, cos, hypot, sin
from typing import Any, TypeAlias

from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Patch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path

from ..nodes import Conv, Copy, Fill, Fuse, NamedTensor, Node
from .figures import FILL, FUSE, INK, PALETTE
from .items import FONT, LABEL_SIZE, NAME_SIZE, NOTE_SIZE, Item, half_extent, shown
from .layout import Layout

Point: TypeAlias = tuple[float, float]

TITLE_SIZE = 12.0
_MARGIN = 10.0
_DOTS_PER_INCH = 150
GREY, PAPER = "#6b7680", "white"


def new_axes(plan: Layout, title: str | None) -> Axes:
    """Axes of a new figure, in which a point of the layout is a point on paper."""
    left, bottom, right, top = plan.box
    half_width, half_height = half_extent(title or "", TITLE_SIZE)
    width, height = max(right - left, 2 * half_width) + 2 * _MARGIN, top - bottom + 2 * _MARGIN
    whole = height + 2 * half_height + (_MARGIN if title else 0.0)
    figure = Figure(figsize=(width / 72, whole / 72), dpi=_DOTS_PER_INCH, facecolor="white")
    return figure.add_axes((0.0, 0.0, 1.0, height / whole))


def paint(axes: Axes, nodes: Sequence[Node], plan: Layout, title: str | None) -> None:
    """Draw a layout into axes. It is made smaller where the axes have less room than it needs, and never larger."""
    left, bottom, right, top = plan.box
    figure = axes.get_figure()
    assert figure is not None
    room = axes.get_window_extent()
    width, height = room.width * 72 / figure.dpi, room.height * 72 / figure.dpi
    scale = min(width / (right - left + 2 * _MARGIN), height / (top - bottom + 2 * _MARGIN), 1.0)
    half_width, half_height = width / scale / 2, height / scale / 2
    axes.set_xlim((left + right) / 2 - half_width, (left + right) / 2 + half_width)
    axes.set_ylim((bottom + top) / 2 - half_height, (bottom + top) / 2 + half_height)
    axes.set_aspect("equal")
    axes.set_axis_off()
    if title is not None:
        axes.set_title(title, fontsize=TITLE_SIZE, family=FONT, color=INK, pad=4.0)
    brush = _Brush(axes, scale)
    directions: dict[tuple[int, str], float] = {}  # number of a symbol, label -> how the line leaves the symbol
    for item, curve, box in zip(plan.items, plan.curves.tolist(), plan.boxes.tolist(), strict=True):
        if item.kind != "note":
            brush.line(curve, closed=item.kind == "closed")
            for end, (near, next_) in zip(item.ends, ((0, 1), (3, 2)), strict=False):
                (x, y), (x1, y1) = curve[near], curve[next_]
                directions.setdefault((end, item.label), atan2(y1 - y, x1 - x))
        if item.text:
            brush.text(item, box)
    colours = _colours(nodes)
    for number, (symbol, at) in enumerate(zip(plan.symbols, plan.xy.tolist(), strict=True)):
        wide, high = symbol.half
        match None if isinstance(symbol.place, str) else nodes[symbol.place]:
            case None:
                brush.patch(Circle(at, high), PAPER, layer=4)
            case Conv() as node:
                brush.diamond(at, wide, x=directions[number, node.x], y=directions[number, node.y])
            case Fuse() as node:
                tip = directions[number, node.whole]
                brush.polygon(at, tip, [(wide * cos(turn), wide * sin(turn)) for turn in (0.0, 2.2, -2.2)], FUSE)
            case Copy():
                brush.patch(Circle(at, high), INK, layer=4, width=1.0)
            case Fill() as node:
                brush.patch(Rectangle((at[0] - wide, at[1] - high), 2 * wide, 2 * high), FILL, layer=4)
                brush.words(shown(str(node.value)), at, NOTE_SIZE, layer=5)
            case NamedTensor() as node:
                style = f"round,pad=0,rounding_size={high}"
                flat = FancyBboxPatch((at[0] - wide, at[1] - high), 2 * wide, 2 * high, style)
                brush.patch(Circle(at, high) if wide == high else flat, colours[node.name], layer=4)
                brush.words(shown(node.name), at, NAME_SIZE, layer=5)


def _colours(nodes: Sequence[Node]) -> dict[str, str]:
    """name of a tensor -> its fill, so that tied nodes have the same colour and different tensors different ones."""
    names = dict.fromkeys(node.name for node in nodes if isinstance(node, NamedTensor))
    golden = (5**0.5 - 1) / 2
    return {
        name: PALETTE[number]
        if number < len(PALETTE)
        else to_hex(hsv_to_rgb((number * golden % 1, 0.24, 0.92)).tolist())
        for number, name in enumerate(names)
    }


class _Brush:
    """Axes to draw into, and the scale of lines and texts, which matplotlib measures in points on paper."""

    def __init__(self, axes: Axes, scale: float) -> None:
        self.axes = axes
        self.scale = scale

    def patch(self, patch: Patch, fill: str, *, layer: float, width: float = 1.3, edge: str = INK) -> None:
        patch.set(facecolor=fill, edgecolor=edge, linewidth=width * self.scale, zorder=layer, clip_on=False)
        self.axes.add_patch(patch)

    def words(self, text: str, at: Point, size: float, *, layer: float, colour: str = INK) -> None:
        style: dict[str, Any] = {
            "family": FONT,
            "ha": "center",
            "va": "center",
            "linespacing": 1.1,
            "parse_math": False,
        }
        self.axes.text(at[0], at[1], text, fontsize=size * self.scale, color=colour, zorder=layer, **style)

    def line(self, curve: Sequence[Point], *, closed: bool) -> None:
        path = Path(curve, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
        self.patch(PathPatch(path, capstyle="round"), "none", layer=1)
        if closed:
            (x0, y0), (x, y) = curve[0], curve[3]
            length = hypot(x - x0, y - y0)
            dx, dy = 5 * (y0 - y) / length, 5 * (x - x0) / length
            bar = Path([(x - dx, y - dy), (x + dx, y + dy)])
            self.patch(PathPatch(bar, capstyle="round"), "none", layer=1, width=1.8)

    def text(self, item: Item, box: tuple[float, float, float, float]) -> None:
        x, y, wide, high = box
        corner = x - wide - 1.5, y - high + 1.0
        halo = FancyBboxPatch(corner, 2 * wide + 3.0, 2 * high - 2.0, boxstyle="round,pad=0,rounding_size=3")
        self.patch(halo, PAPER, layer=2, width=0.0, edge="none")
        size, colour = (LABEL_SIZE, INK) if item.label else (NOTE_SIZE, GREY)
        self.words(item.text, (x, y), size, layer=3, colour=colour)

    def polygon(self, at: Point, turn: float, corners: Sequence[Point], fill: str) -> None:
        """A polygon around `at`, turned."""
        turned = [(at[0] + r * cos(turn) - s * sin(turn), at[1] + r * sin(turn) + s * cos(turn)) for r, s in corners]
        self.patch(Polygon(turned, joinstyle="round"), fill, layer=4)

    def diamond(self, at: Point, half: float, *, x: float, y: float) -> None:
        """The symbol of a Conv. An arrowhead points in on the line of `x` and out on that of `y`, at these angles."""
        self.polygon(at, 0.0, [(-half, 0.0), (0.0, -half), (half, 0.0), (0.0, half)], FILL)
        self.words("\N{ASTERISK OPERATOR}", at, NAME_SIZE + 2, layer=5)
        for angle, tip, base in ((x, 1.0, 6.5), (y, 8.0, 2.5)):
            edge = half / (abs(cos(angle)) + abs(sin(angle)))
            self.polygon(at, angle, [(edge + tip, 0.0), (edge + base, 2.8), (edge + base, -2.8)], INK)
