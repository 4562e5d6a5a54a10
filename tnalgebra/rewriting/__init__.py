"""What may change in a network: a rule, where it matches, what it makes there, and the trace of what was done."""

from .driver import contract_back, rewrite, simplify
from .exact import EXACT_RULES, SIMPLIFY
from .exact.tensors import drop_size_one
from .exact.windows import merge_circular_windows, merge_windows, window_to_fuse
from .options import Choices, Options, Place, SizedChoices, check_choice
from .outline import Outline
from .reading import metric_in
from .right_side import right_side
from .rule import Rule
from .starred import read_pattern
from .step import Change, Step
from .text import rule
from .trace import Fit, Trace, start_fit

__all__ = [
    "EXACT_RULES",
    "SIMPLIFY",
    "Change",
    "Choices",
    "Fit",
    "Options",
    "Outline",
    "Place",
    "Rule",
    "SizedChoices",
    "Step",
    "Trace",
    "check_choice",
    "contract_back",
    "drop_size_one",
    "merge_circular_windows",
    "merge_windows",
    "metric_in",
    "read_pattern",
    "rewrite",
    "right_side",
    "rule",
    "simplify",
    "start_fit",
    "window_to_fuse",
]
