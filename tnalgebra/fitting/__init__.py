"""Cores for the right side of a rule: their ranks, the objective, the descents, the metric of a layer's inputs."""

from .chosen_ranks import chosen_ranks, objective_of, select_rows
from .curves import ErrorCurve
from .degeneracy import degeneracy_of, shrink_components
from .fit import fit_cores
from .metric import Metric
from .objective import Objective
from .ranks import Growth, UpTo, allowance, kept, least_fraction, plain_rank, rank_of
from .report import FitReport, Settings
from .search import follow_starts
from .size import (
    KeepFraction,
    ModelBudget,
    MultiplyAddsBudget,
    ParameterBudget,
    Rank,
    RelativeError,
    Size,
    TimeBudget,
    read_size,
    size_text,
)
from .trees import NoTreeError, bonds_of, open_labels, tree_of, with_open_axes

__all__ = [
    "ErrorCurve",
    "FitReport",
    "Growth",
    "KeepFraction",
    "Metric",
    "ModelBudget",
    "MultiplyAddsBudget",
    "NoTreeError",
    "Objective",
    "ParameterBudget",
    "Rank",
    "RelativeError",
    "Settings",
    "Size",
    "TimeBudget",
    "UpTo",
    "allowance",
    "bonds_of",
    "chosen_ranks",
    "degeneracy_of",
    "fit_cores",
    "follow_starts",
    "kept",
    "least_fraction",
    "objective_of",
    "open_labels",
    "plain_rank",
    "rank_of",
    "read_size",
    "select_rows",
    "shrink_components",
    "size_text",
    "tree_of",
    "with_open_axes",
]
