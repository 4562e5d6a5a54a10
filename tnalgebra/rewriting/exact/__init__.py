"""The exact rules, which keep the value. Their docstrings say why they hold and end, and when they must not fire."""

from .copies import copy_of_one, drop_copy_of_two, fill_through_copy, fuse_copies, trim_copy
from .fuses import cancel_fuses, fill_through_fuse, merge_fuses, split_fuse, unit_fuse
from .sums import add_cores, collect_terms, drop_zero_term, join_terms, share_window
from .tensors import absorb_fill, contract_bond, drop_size_one, fold_scalar, sum_label, take_diagonal
from .windows import merge_circular_windows, merge_windows, unit_window, window_to_fuse

SIMPLIFY = (
    trim_copy,
    fuse_copies,
    drop_copy_of_two,
    fill_through_copy,
    copy_of_one,
    drop_size_one,
    window_to_fuse,
    unit_window,
    merge_fuses,
    cancel_fuses,
    unit_fuse,
    fill_through_fuse,
    drop_zero_term,
    add_cores,
)
"""Rules that only make a network smaller: each lowers the numbers of (terms, windows, fuses, labels on copies, labels),
in the order of words in a dictionary, so that they end in whichever order they are applied. They compute no new numbers
but sums of cores; axes of size 1 are removed by a reshape.
"""

EXACT_RULES = (
    *SIMPLIFY,
    split_fuse,
    merge_windows,
    merge_circular_windows,
    contract_bond,
    absorb_fill,
    fold_scalar,
    sum_label,
    take_diagonal,
    collect_terms,
    join_terms,
    share_window,
)
"""All exact rules."""

__all__ = [
    "EXACT_RULES",
    "SIMPLIFY",
    "absorb_fill",
    "add_cores",
    "cancel_fuses",
    "collect_terms",
    "contract_bond",
    "copy_of_one",
    "drop_copy_of_two",
    "drop_size_one",
    "drop_zero_term",
    "fill_through_copy",
    "fill_through_fuse",
    "fold_scalar",
    "fuse_copies",
    "join_terms",
    "merge_circular_windows",
    "merge_fuses",
    "merge_windows",
    "share_window",
    "split_fuse",
    "sum_label",
    "take_diagonal",
    "trim_copy",
    "unit_fuse",
    "unit_window",
    "window_to_fuse",
]
