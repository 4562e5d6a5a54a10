"""tnalgebra: a declarative tensor-network algebra for convolutional networks.

A kernel, its patch tensor and a pooling window are labelled tensor networks. Cuts, decompositions and truncations are
rewrites of them. Start with `parse`, `cut`, `rule`, `rules`, `compare`, `convert`, `study`; everything else is in the
folder that it belongs to, such as `tn.networks`, `tn.decompositions` or `tn.tensors`.

A folder is imported when one of its names is first used. So notation, networks and drawings need no torch.
"""

from typing import TYPE_CHECKING

from ._lazy import lazy as _lazy

if TYPE_CHECKING:
    from . import command as command  # the recipes use its settings; it is not for everyday use
    from . import decompositions, errors, model, networks, nn, operators, rewriting, streams, tensors, workers
    from .checkpoint import load, load_adapter, save, save_adapter
    from .compiler import compile
    from .decompositions import all_cuts, cut, register, rules
    from .fitting import KeepFraction, Metric, MultiplyAddsBudget, ParameterBudget, RelativeError, TimeBudget
    from .model import (
        adapt,
        adapter_state,
        adapters,
        compare,
        convert,
        distil,
        fold_batch_norm,
        input_metrics,
        load_images,
        merge_branches,
        recalibrate_batch_norm,
        spectra,
        update_optimizer,
    )
    from .networks import Network, parse
    from .operators import inverse, lipschitz_bound, operator_spectra, orthogonality, solve
    from .rewriting import Fit, Rule, rule, simplify
    from .streams import stream
    from .studies import StudyOptions, study
    from .tensors import evaluate
    from .topologies import Space, search

__all__ = [
    "Fit",
    "KeepFraction",
    "Metric",
    "MultiplyAddsBudget",
    "Network",
    "ParameterBudget",
    "RelativeError",
    "Rule",
    "Space",
    "StudyOptions",
    "TimeBudget",
    "adapt",
    "adapter_state",
    "adapters",
    "all_cuts",
    "compare",
    "compile",
    "convert",
    "cut",
    "decompositions",
    "distil",
    "errors",
    "evaluate",
    "fold_batch_norm",
    "input_metrics",
    "inverse",
    "lipschitz_bound",
    "load",
    "load_adapter",
    "load_images",
    "merge_branches",
    "model",
    "networks",
    "nn",
    "operator_spectra",
    "operators",
    "orthogonality",
    "parse",
    "recalibrate_batch_norm",
    "register",
    "rewriting",
    "rule",
    "rules",
    "save",
    "save_adapter",
    "search",
    "simplify",
    "solve",
    "spectra",
    "stream",
    "streams",
    "study",
    "tensors",
    "update_optimizer",
    "workers",
]

_FOLDERS = (
    *("errors", "workers", "networks", "tensors", "fitting", "rewriting", "decompositions"),
    *("compiler", "nn", "operators", "model", "streams", "checkpoint", "studies", "topologies", "pages", "command"),
)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if TYPE_CHECKING:
    __version__: str
else:
    _of_folders = _lazy(__name__, _FOLDERS, __all__)

    def __getattr__(name):
        if name == "__version__":
            from importlib.metadata import version

            return version("tnalgebra")
        return _of_folders(name)
