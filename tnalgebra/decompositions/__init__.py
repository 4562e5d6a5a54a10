"""Approximate rules: rules in the notation, cuts, truncation; and traces read from files."""

from .cuts import all_cuts, cut, cut_sequence
from .notational import rule
from .traces import load_trace
from .truncation import truncate

__all__ = ["all_cuts", "cut", "cut_sequence", "load_trace", "rule", "truncate"]
