"""Networks as diagrams, drawn with matplotlib, which is imported when something is drawn."""

from .draw import draw_terms, svg
from .figures import FILL, FUSE, INK, PALETTE, check_suffix, own_style, store

__all__ = ["FILL", "FUSE", "INK", "PALETTE", "check_suffix", "draw_terms", "own_style", "store", "svg"]
