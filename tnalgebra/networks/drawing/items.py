"""The parts of a drawing: a symbol for each node and hyperedge, and the bonds, legs and texts to be placed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from ..nodes import Conv, Copy, Fill, Fuse, NamedTensor, Node
from .vertices import Array

ItemKind: TypeAlias = Literal["bond", "loop", "open", "closed", "note"]

FONT = ("DejaVu Sans", "sans-serif")
"""matplotlib has the first font; a viewer of an SVG that lacks it may take any sans-serif font."""

NAME_SIZE, LABEL_SIZE, NOTE_SIZE = 11.0, 10.0, 8.0
LINE_HEIGHT = 1.25

LONGEST_TEXT = 40
"""Characters of a name or label that are shown. A longer one is shown without its middle."""

LARGEST_CIRCLE = 21.0
"""Points. A name that needs a circle with a larger radius is written in a flat shape with round ends."""


def shown(text: str) -> str:
    """The text as it is drawn: a very long one without its middle."""
    half = LONGEST_TEXT // 2
    return text if len(text) <= LONGEST_TEXT else f"{text[:half]}…{text[1 - half :]}"


@lru_cache(maxsize=4096)
def half_extent(text: str, size: float) -> tuple[float, float]:
    """Half the width and half the height of a text, in points."""
    font = FontProperties(family=FONT, size=size)
    lines = text.split("\n") if text else []
    widths = [text_to_path.get_text_width_height_descent(line, font, False)[0] for line in lines]
    return max(widths, default=0.0) / 2, len(lines) * size * LINE_HEIGHT / 2


@dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol to draw, given by the position of its node or the label of its hyperedge.

    half: half its width and half its height, in points.
    """

    place: int | str
    half: tuple[float, float]

    def reach(self, angle: Array | float) -> Array:
        """The distance from the centre to the edge of the symbol, in each direction."""
        width, height = self.half
        if width == height:
            return np.full(np.shape(angle), width)
        cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
        return np.asarray(np.minimum(width / np.maximum(cos, 1e-9), height / np.maximum(sin, 1e-9)))


@dataclass(frozen=True, slots=True)
class Item:
    """A bond, a leg or a loop with its label, or a text beside a symbol.

    Args:
        ends: the numbers of the symbols that it touches: two for a bond, otherwise one.
        label: the label of the network that it shows; empty for the attributes of a node.
        text: what is written; empty for a bond of a hyperedge, whose label is written only once.
        offset: its number among parallel bonds, or among the legs of one symbol, counted from the middle.
        spread: half the width and height of the largest text of its parallel bonds; None if it has no parallels.
    """

    kind: ItemKind
    ends: tuple[int, ...]
    label: str
    text: str
    offset: float = 0.0
    spread: tuple[float, float] | None = None

    @property
    def half(self) -> tuple[float, float]:
        """Half the width and half the height of the text, in points."""
        return half_extent(self.text, LABEL_SIZE if self.label else NOTE_SIZE)


def symbols_and_items(
    nodes: Sequence[Node], output: Sequence[str], sizes: Mapping[str, int]
) -> tuple[list[Symbol], list[Item]]:
    """The symbols of the nodes in their order, then those of the hyperedges; and the items, the bonds first."""
    symbols = [Symbol(position, _half_symbol(node)) for position, node in enumerate(nodes)]
    carriers: dict[str, list[int]] = defaultdict(list)
    for position, node in enumerate(nodes):
        for label in node.labels:
            carriers[label].append(position)
    items: list[Item] = []
    for label, at in carriers.items():
        text = shown(label) + (f":{sizes[label]}" if label in sizes else "")
        if len(at) == 1:
            items.append(Item("open" if label in output else "closed", (at[0],), label, text))
        elif len(at) == 2 and label not in output:
            items.append(Item("bond" if at[0] != at[1] else "loop", tuple(dict.fromkeys(at)), label, text))
        else:
            dot = len(symbols)
            symbols.append(Symbol(label, (3.5, 3.5)))
            items += [Item("bond", (position, dot), label, "") for position in at]
            items.append(Item("open" if label in output else "note", (dot,), label, text))
    for position, node in enumerate(nodes):
        if isinstance(node, Conv) and node.attributes:
            note = "\n".join(f"{key} {text}" for key, text in node.attributes.items())
            items.append(Item("note", (position,), "", note))
    order: dict[ItemKind, int] = {"bond": 0, "loop": 1, "open": 2, "closed": 2, "note": 3}
    return symbols, sorted(_numbered(items), key=lambda item: order[item.kind])


def _half_symbol(node: Node) -> tuple[float, float]:
    match node:
        case NamedTensor():
            width = max(15.0, half_extent(shown(node.name), NAME_SIZE)[0] + 5.0)
            return width, 15.0 if width > LARGEST_CIRCLE else width
        case Fill():
            return max(10.0, half_extent(shown(str(node.value)), NOTE_SIZE)[0] + 5.0), 10.0
        case Conv():
            return 14.0, 14.0
        case Fuse():
            return 13.0, 13.0
        case Copy():
            return 4.0, 4.0


def _numbered(items: Sequence[Item]) -> list[Item]:
    """The same items with the offsets of parallel bonds and of legs of one symbol."""
    groups: dict[tuple[bool, tuple[int, ...]], list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        if item.kind in ("bond", "open", "closed"):
            groups[item.kind == "bond", item.ends].append(position)
    numbered = list(items)
    for group in groups.values():
        spread = largest_half(items[position] for position in group) if len(group) > 1 else None
        for number, position in enumerate(group):
            numbered[position] = replace(items[position], offset=number - (len(group) - 1) / 2, spread=spread)
    return numbered


def largest_half(items: Iterable[Item]) -> tuple[float, float]:
    """Half the width and half the height of a box that is large enough for the text of each of the items."""
    widths, heights = zip(*(item.half for item in items), strict=True)
    return max(widths), max(heights)
