"""Approximate rules: rules in the notation, cuts, truncation, the catalogue; and traces read from files."""

from .catalogue import register, resolve, rules, unregister
from .components import drop_components
from .cuts import all_cuts, cut, cut_sequence
from .factors import balanced_factors
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
from .notational import rule
from .own_value import correct_degeneracy
from .reshaped import matrix_product_operator, monarch, per_group, reshaped_ring, reshaped_train
from .traces import load_trace
from .truncation import truncate

__all__ = [
    "all_cuts",
    "balanced_factors",
    "block_term",
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
    "register",
    "reshaped_ring",
    "reshaped_train",
    "resolve",
    "rule",
    "rules",
    "spatially_separable",
    "tensor_ring",
    "tensor_train",
    "truncate",
    "tucker",
    "tucker2",
    "unregister",
]
