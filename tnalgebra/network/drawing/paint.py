"""The shapes and colours of a drawing: a layout painted into matplotlib axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import atan2, cos, hypot, sin

from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.patches import Circle, FancyBboxPatch, Patch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path

from ..nodes import Conv, Copy, Fill, Fuse, NamedTensor, Node
from .labels import FONT, LABEL_SIZE, NOTE_SIZE, shown
from .layout import NAME_SIZE, Layout, Line, Symbol, Text

TITLE_SIZE = 12.0
INK, GREY, PAPER = "#26323d", "#6b7680", "white"
CONV, FUSE, FILL = "#f2efe6", "#e6e9ec", "#f2efe6"
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


def paint(axes: Axes, nodes: Sequence[Node], plan: Layout, *, title: str | None = None, margin: float = 0.0) -> None:
    """Draw a layout into axes; a point of the layout is at most one point on paper, less where room is small."""
    left, bottom, right, top = plan.box
    figure = axes.get_figure()
    assert figure is not None
    room = axes.get_window_extent()
    width, height = room.width * 72 / figure.dpi, room.height * 72 / figure.dpi
    scale = min(width / (right - left + 2 * margin), height / (top - bottom + 2 * margin), 1.0)
    half_width, half_height = width / scale / 2, height / scale / 2
    axes.set_xlim((left + right) / 2 - half_width, (left + right) / 2 + half_width)
    axes.set_ylim((bottom + top) / 2 - half_height, (bottom + top) / 2 + half_height)
    axes.set_aspect("equal")
    axes.set_axis_off()
    if title is not None:
        axes.set_title(title, fontsize=TITLE_SIZE, family=FONT, color=INK, pad=4.0)
    brush = _Brush(axes, scale)
    for line in plan.lines:
        brush.line(line)
    for text in plan.texts:
        brush.text(text)
    colours = _colours(nodes)
    for symbol in plan.symbols:
        node = None if isinstance(symbol.place, str) else nodes[symbol.place]
        brush.symbol(symbol, node, colours, plan.lines)


def _colours(nodes: Sequence[Node]) -> dict[str, str]:
    """A fill for each tensor name: the same for tied occurrences, different for different tensors."""
    names = dict.fromkeys(node.name for node in nodes if isinstance(node, NamedTensor))
    golden = (5**0.5 - 1) / 2
    return {
        name: PALETTE[number]
        if number < len(PALETTE)
        else to_hex(hsv_to_rgb((number * golden % 1, 0.24, 0.92)).tolist())
        for number, name in enumerate(names)
    }


class _Brush:
    """Axes, and the scale of everything that is measured in points rather than in the axes' own units."""

    def __init__(self, axes: Axes, scale: float) -> None:
        self.axes = axes
        self.scale = scale

    def patch(self, patch: Patch, fill: str, edge: str, *, width: float, layer: float) -> None:
        patch.set(facecolor=fill, edgecolor=edge, linewidth=width * self.scale, zorder=layer, clip_on=False)
        self.axes.add_patch(patch)

    def words(self, text: str, x: float, y: float, size: float, colour: str, *, layer: float) -> None:
        self.axes.text(
            x,
            y,
            text,
            fontsize=size * self.scale,
            family=FONT,
            color=colour,
            ha="center",
            va="center",
            linespacing=1.1,
            zorder=layer,
            parse_math=False,
        )

    def line(self, line: Line) -> None:

        path = Path(line.curve, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
        self.patch(PathPatch(path, capstyle="round"), "none", INK, width=1.3, layer=1)
        if line.kind == "closed":
            (x0, y0), (x, y) = line.curve[0], line.curve[3]
            length = hypot(x - x0, y - y0)
            dx, dy = 5 * (y0 - y) / length, 5 * (x - x0) / length
            bar = Path([(x - dx, y - dy), (x + dx, y + dy)])
            self.patch(PathPatch(bar, capstyle="round"), "none", INK, width=1.8, layer=1)

    def text(self, text: Text) -> None:

        corner = text.x - text.half_width - 1.5, text.y - text.half_height + 1.0
        width, height = 2 * text.half_width + 3.0, 2 * text.half_height - 2.0
        halo = FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=3")
        self.patch(halo, PAPER, "none", width=0.0, layer=2)
        size, colour = (LABEL_SIZE, INK) if text.kind == "label" else (NOTE_SIZE, GREY)
        self.words(text.text, text.x, text.y, size, colour, layer=3)

    def symbol(self, symbol: Symbol, node: Node | None, colours: Mapping[str, str], lines: Sequence[Line]) -> None:

        x, y, wide, high = symbol.x, symbol.y, symbol.half_width, symbol.half_height
        corner = x - wide, y - high
        match node:
            case None:
                self.patch(Circle((x, y), high), PAPER, INK, width=1.3, layer=4)
            case Copy():
                self.patch(Circle((x, y), high), INK, INK, width=1.0, layer=4)
            case NamedTensor():
                style = f"round,pad=0,rounding_size={high}"
                shape = Circle((x, y), high) if wide == high else FancyBboxPatch(corner, 2 * wide, 2 * high, style)
                self.patch(shape, colours[node.name], INK, width=1.3, layer=4)
                self.words(shown(node.name), x, y, NAME_SIZE, INK, layer=5)
            case Conv():
                self.patch(
                    Polygon([(x - wide, y), (x, y - high), (x + wide, y), (x, y + high)]), CONV, INK, width=1.3, layer=4
                )
                self.words("\N{ASTERISK OPERATOR}", x, y, NAME_SIZE + 2, INK, layer=5)
                for label, inward in ((node.x, True), (node.y, False)):
                    self.arrow(symbol, _direction(label, symbol, lines), inward=inward)
            case Fuse():
                tip = _direction(node.whole, symbol, lines)
                corners = [(x + wide * cos(tip + turn), y + high * sin(tip + turn)) for turn in (0.0, 2.2, -2.2)]
                self.patch(Polygon(corners, joinstyle="round"), FUSE, INK, width=1.3, layer=4)
            case Fill():
                self.patch(Rectangle(corner, 2 * wide, 2 * high), FILL, INK, width=1.3, layer=4)
                self.words(shown(str(node.value)), x, y, NOTE_SIZE, INK, layer=5)

    def arrow(self, symbol: Symbol, angle: float, *, inward: bool) -> None:
        """A small head on a line at the edge of a diamond: the input points in, the output points out."""
        edge = symbol.half_width / (abs(cos(angle)) + abs(sin(angle)))
        tip, base = (edge + 1.0, edge + 6.5) if inward else (edge + 8.0, edge + 2.5)
        corners = [(tip, 0.0), (base, 2.8), (base, -2.8)]
        turned = [
            (symbol.x + r * cos(angle) - s * sin(angle), symbol.y + r * sin(angle) + s * cos(angle)) for r, s in corners
        ]
        self.patch(Polygon(turned, joinstyle="round"), INK, INK, width=0.6, layer=1.5)


def _direction(label: str, symbol: Symbol, lines: Sequence[Line]) -> float:
    """The angle at which the line with this label leaves a symbol."""
    for line in lines:
        for near, next_ in ((0, 1), (3, 2)):
            (x, y), (x1, y1) = line.curve[near], line.curve[next_]
            if line.label == label and hypot(x - symbol.x, y - symbol.y) < 1e-2:
                return atan2(y1 - y, x1 - x)
    return 0.0
