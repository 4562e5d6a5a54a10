"""The named approximate rules: families, cuts, truncations, the catalogue that lists them, and traces from files."""

from .catalogue import ADAPTERS, CATALOGUE, Entry, read_rewrite, register, rules, unregister
from .components import check_bonds, drop_components
from .cuts import all_cuts, cut, cut_sequence
from .degeneracy import correct_degeneracy
from .families import (
    block_term,
    cp,
    depthwise_separable,
    hierarchical_tucker,
    projection,
    spatially_separable,
    tensor_ring,
    tensor_train,
    tucker,
    tucker2,
)
from .load_trace import load_trace, read_trace
from .reshaped import matrix_product_operator, monarch, per_group, reshaped_ring, reshaped_train
from .truncate import truncate

__all__ = [
    "ADAPTERS",
    "CATALOGUE",
    "Entry",
    "all_cuts",
    "block_term",
    "check_bonds",
    "correct_degeneracy",
    "cp",
    "cut",
    "cut_sequence",
    "depthwise_separable",
    "drop_components",
    "hierarchical_tucker",
    "load_trace",
    "matrix_product_operator",
    "monarch",
    "per_group",
    "projection",
    "read_rewrite",
    "read_trace",
    "register",
    "reshaped_ring",
    "reshaped_train",
    "rules",
    "spatially_separable",
    "tensor_ring",
    "tensor_train",
    "truncate",
    "tucker",
    "tucker2",
    "unregister",
]
