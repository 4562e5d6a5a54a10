"""Networks as diagrams, drawn with matplotlib, which is imported when something is drawn."""

from .draw import draw_nodes, svg
from .figures import FILL, FUSE, INK, PALETTE, check_suffix, own_style, store

__all__ = ["FILL", "FUSE", "INK", "PALETTE", "check_suffix", "draw_nodes", "own_style", "store", "svg"]
