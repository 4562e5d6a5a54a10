"""Cores for the right side of a rule: their ranks, what is minimised, the descents, and the metric of a layer's inputs."""

from .chosen_ranks import problem_of, reshaped
from .degeneracy import corrected, degeneracy
from .fit import CoreFit, Report, fit_cores
from .metric import Metric
from .objective import Problem
from .ranks import KeepFraction, MultiplyAddsBudget, ParameterBudget, Rank, RelativeError, allowance, kept, rank_of
from .search import Settings, searched
from .trees import NoTreeError, bonds_of, grow, open_labels, plain_rank, tree_of

__all__ = [
    "CoreFit",
    "KeepFraction",
    "Metric",
    "MultiplyAddsBudget",
    "NoTreeError",
    "ParameterBudget",
    "Problem",
    "Rank",
    "RelativeError",
    "Report",
    "Settings",
    "allowance",
    "bonds_of",
    "corrected",
    "degeneracy",
    "fit_cores",
    "grow",
    "kept",
    "open_labels",
    "plain_rank",
    "problem_of",
    "rank_of",
    "reshaped",
    "searched",
    "tree_of",
]
