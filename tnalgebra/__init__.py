"""tnalgebra: a declarative tensor-network algebra for convolutional networks.

A kernel, its patch tensor, a pooling window are labelled tensor networks; cuts, decompositions and truncations are
rewrites of them. Start with `parse`, `cut`, `rule`, `spectra`, `study`.
"""

from ._version import VERSION
from .decompositions import all_cuts, cut, cut_sequence, load_trace, rule, truncate
from .driver import contract_back, rewrite, simplify
from .evaluation import evaluate
from .exact_rules import EXACT_RULES
from .network import Network, compose
from .notation import parse
from .ranks import KeepFraction, ParameterBudget, RelativeError
from .spectrum import hosvd, spectra
from .studies import Study, study

__version__ = VERSION

__all__ = [
    "EXACT_RULES",
    "KeepFraction",
    "Network",
    "ParameterBudget",
    "RelativeError",
    "Study",
    "all_cuts",
    "compose",
    "contract_back",
    "cut",
    "cut_sequence",
    "evaluate",
    "hosvd",
    "load_trace",
    "parse",
    "rewrite",
    "rule",
    "simplify",
    "spectra",
    "study",
    "truncate",
]
