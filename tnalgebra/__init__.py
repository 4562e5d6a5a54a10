"""tnalgebra: a declarative tensor-network algebra for convolutional networks.

A kernel, its patch tensor and a pooling window are labelled tensor networks. Cuts, decompositions and truncations are
rewrites of them. Start with `parse`, `cut`, `rule`, `rules`, `compare`, `convert`, `study`; everything else is in the
folder that it belongs to, such as `tn.networks`, `tn.decompositions` or `tn.tensors`.
"""

from importlib.metadata import version as _version

from . import command as command  # the recipes use its settings; it is not for everyday use
from . import decompositions, errors, model, networks, nn, rewriting, tensors
from .checkpoint import load, save
from .compiler import compile
from .decompositions import all_cuts, cut, register, rules
from .fitting import KeepFraction, Metric, MultiplyAddsBudget, ParameterBudget, RelativeError, TimeBudget
from .model import (
    compare,
    convert,
    fold_batch_norm,
    input_metrics,
    load_images,
    recalibrate_batch_norm,
    spectra,
    update_optimizer,
)
from .networks import Network, parse
from .rewriting import Fit, Rule, rule, simplify
from .studies import StudyOptions, study
from .tensors import evaluate

__version__ = _version("tnalgebra")

__all__ = [
    "Fit",
    "KeepFraction",
    "Metric",
    "MultiplyAddsBudget",
    "Network",
    "ParameterBudget",
    "RelativeError",
    "Rule",
    "StudyOptions",
    "TimeBudget",
    "all_cuts",
    "compare",
    "compile",
    "convert",
    "cut",
    "decompositions",
    "errors",
    "evaluate",
    "fold_batch_norm",
    "input_metrics",
    "load",
    "load_images",
    "model",
    "networks",
    "nn",
    "parse",
    "recalibrate_batch_norm",
    "register",
    "rewriting",
    "rule",
    "rules",
    "save",
    "simplify",
    "spectra",
    "study",
    "tensors",
    "update_optimizer",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
