"""tnalgebra: a declarative tensor-network algebra for convolutional networks.

A kernel, its patch tensor, a pooling window are labelled tensor networks; cuts, decompositions and truncations are
rewrites of them. Start with `parse`, `cut`, `rule`, `rules`, `spectra`, `study`.
"""

from . import errors, nn
from ._version import VERSION
from .calibration import fit_in_order, input_metrics
from .checkpoint import load, save
from .comparison import compare
from .compiler import Compiled, Plan, compile  # the word of the field
from .compression import fit_planned, plan_budget
from .conversion import convert
from .decompositions import (
    all_cuts,
    block_term,
    correct_degeneracy,
    cp,
    cut,
    cut_sequence,
    depthwise_separable,
    drop_components,
    hierarchical_tucker,
    load_trace,
    matrix_product_operator,
    monarch,
    per_group,
    projection,
    register,
    reshaped_ring,
    reshaped_train,
    rule,
    rules,
    spatially_separable,
    tensor_ring,
    tensor_train,
    truncate,
    tucker,
    tucker2,
    unregister,
)
from .driver import contract_back, rewrite, simplify
from .evaluation import evaluate
from .exact_rules import EXACT_RULES, SIMPLIFY
from .fitting.metric import Metric
from .images import Images, load_images
from .isomorphism import isomorphic
from .layers import layer_network
from .network import Network, compose, draw, parameters
from .normalisation import fold_batch_norm
from .notation import parse
from .optimizers import update_optimizer
from .options import Place
from .quimb_bridge import from_quimb, to_quimb
from .ranks import KeepFraction, MultiplyAddsBudget, ParameterBudget, RelativeError
from .rewriting import Fit, Rule, Step, Trace
from .running_statistics import recalibrate_batch_norm
from .spectrum import hosvd, spectra
from .studies import Study, study
from .windows import (
    adaptive_average_pooling,
    average_pooling,
    convolution,
    global_average_pooling,
    linear,
    patch_tensor,
    transposed_convolution,
)

__version__ = VERSION

__all__ = [
    "EXACT_RULES",
    "SIMPLIFY",
    "Compiled",
    "Fit",
    "Images",
    "KeepFraction",
    "Metric",
    "MultiplyAddsBudget",
    "Network",
    "ParameterBudget",
    "Place",
    "Plan",
    "RelativeError",
    "Rule",
    "Step",
    "Study",
    "Trace",
    "adaptive_average_pooling",
    "all_cuts",
    "average_pooling",
    "block_term",
    "compare",
    "compile",
    "compose",
    "contract_back",
    "convert",
    "convolution",
    "correct_degeneracy",
    "cp",
    "cut",
    "cut_sequence",
    "depthwise_separable",
    "draw",
    "drop_components",
    "errors",
    "evaluate",
    "fit_in_order",
    "fit_planned",
    "fold_batch_norm",
    "from_quimb",
    "global_average_pooling",
    "hierarchical_tucker",
    "hosvd",
    "input_metrics",
    "isomorphic",
    "layer_network",
    "linear",
    "load",
    "load_images",
    "load_trace",
    "matrix_product_operator",
    "monarch",
    "nn",
    "parameters",
    "parse",
    "patch_tensor",
    "per_group",
    "plan_budget",
    "projection",
    "recalibrate_batch_norm",
    "register",
    "reshaped_ring",
    "reshaped_train",
    "rewrite",
    "rule",
    "rules",
    "save",
    "simplify",
    "spatially_separable",
    "spectra",
    "study",
    "tensor_ring",
    "tensor_train",
    "to_quimb",
    "transposed_convolution",
    "truncate",
    "tucker",
    "tucker2",
    "unregister",
    "update_optimizer",
]
