"""Pages: one HTML file each, with tables and plots, that needs neither a server nor a network."""

from .compressions import draw_layers
from .explorer import REWRITES, write_explorer
from .report import write_report
from .runs import DRAWINGS

__all__ = ["DRAWINGS", "REWRITES", "draw_layers", "write_explorer", "write_report"]
