"""Approximate rules: rules in the notation, cuts, truncation; and traces read from files."""

from .cut import all_cuts, cut, cut_sequence
from .rule import rule
from .traces import load_trace
from .truncate import truncate

__all__ = ["all_cuts", "cut", "cut_sequence", "load_trace", "rule", "truncate"]
