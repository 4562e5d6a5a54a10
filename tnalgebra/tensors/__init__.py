"""The numbers of a network: values for its tensors, contractions, factorisations, and conversion to quimb and back."""

from .bases import BASES, basis_matrix, check_basis, is_basis, with_bases
from .contraction import MAX_ELEMENTS, Operand, contract
from .evaluation import (
    Values,
    add_up,
    as_tensor,
    bases_among,
    bind,
    check_mapping,
    evaluate,
    is_finite,
    magnitude,
    operands,
    pattern,
    values_for,
)
from .linalg import (
    SVD,
    check_axes,
    gram_matrix,
    gram_singular_values,
    matricise,
    relative_residual,
    scaled,
    singular_values,
    svd_of_product,
    truncated_svd,
)
from .numbers import in_precision, phases, products, squares
from .quimb import from_quimb, to_quimb
from .schmidt import cut_of_bond, network_singular_values
from .unique import signs_of
from .values import bind_values, common_dtype, norm, relative, target_of, value_of

__all__ = [
    "BASES",
    "MAX_ELEMENTS",
    "SVD",
    "Operand",
    "Values",
    "add_up",
    "as_tensor",
    "bases_among",
    "basis_matrix",
    "bind",
    "bind_values",
    "check_axes",
    "check_basis",
    "check_mapping",
    "common_dtype",
    "contract",
    "cut_of_bond",
    "evaluate",
    "from_quimb",
    "gram_matrix",
    "gram_singular_values",
    "in_precision",
    "is_basis",
    "is_finite",
    "magnitude",
    "matricise",
    "network_singular_values",
    "norm",
    "operands",
    "pattern",
    "phases",
    "products",
    "relative",
    "relative_residual",
    "scaled",
    "signs_of",
    "singular_values",
    "squares",
    "svd_of_product",
    "target_of",
    "to_quimb",
    "truncated_svd",
    "value_of",
    "values_for",
    "with_bases",
]
