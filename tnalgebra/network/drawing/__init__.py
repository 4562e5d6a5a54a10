"""Networks as diagrams, drawn with matplotlib."""

from .draw import draw, own_style, store, suffix_of, svg
from .paint import FILL, FUSE, INK, PALETTE

__all__ = ["FILL", "FUSE", "INK", "PALETTE", "draw", "own_style", "store", "suffix_of", "svg"]
