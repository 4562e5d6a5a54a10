"""Pages: one HTML file each, with tables and plots, that needs neither a server nor a network."""

from .compressions import draw_layers
from .report import write_report
from .runs import DRAWINGS

__all__ = ["DRAWINGS", "draw_layers", "write_report"]
