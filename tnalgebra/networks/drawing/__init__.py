"""Networks as diagrams, drawn with matplotlib, which is imported when something is drawn."""

from .draw import draw_nodes, svg
from .figures import FILL, FUSE, INK, PALETTE, own_style, store, suffix_of

__all__ = ["FILL", "FUSE", "INK", "PALETTE", "draw_nodes", "own_style", "store", "suffix_of", "svg"]
