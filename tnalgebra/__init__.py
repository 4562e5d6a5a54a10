"""tnalgebra: a declarative tensor-network algebra for convolutional networks.

A kernel, its patch tensor, a pooling window are labelled tensor networks; cuts, decompositions and truncations are
rewrites of them. Start with `parse`, `cut`, `rule`, `spectra`, `study`.
"""

from . import errors
from ._version import VERSION
from .decompositions import all_cuts, cut, cut_sequence, load_trace, rule, truncate
from .driver import contract_back, rewrite, simplify
from .evaluation import evaluate
from .exact_rules import EXACT_RULES, SIMPLIFY
from .images import Images, load_images
from .isomorphism import isomorphic
from .layers import layer_network
from .network import Network, compose, draw, parameters
from .notation import parse
from .options import Place
from .quimb_bridge import from_quimb, to_quimb
from .ranks import KeepFraction, ParameterBudget, RelativeError
from .rewriting import Fit, Rule, Step, Trace
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
    "Fit",
    "Images",
    "KeepFraction",
    "Network",
    "ParameterBudget",
    "Place",
    "RelativeError",
    "Rule",
    "Step",
    "Study",
    "Trace",
    "adaptive_average_pooling",
    "all_cuts",
    "average_pooling",
    "compose",
    "contract_back",
    "convolution",
    "cut",
    "cut_sequence",
    "draw",
    "errors",
    "evaluate",
    "from_quimb",
    "global_average_pooling",
    "hosvd",
    "isomorphic",
    "layer_network",
    "linear",
    "load_images",
    "load_trace",
    "parameters",
    "parse",
    "patch_tensor",
    "rewrite",
    "rule",
    "simplify",
    "spectra",
    "study",
    "to_quimb",
    "transposed_convolution",
    "truncate",
]
