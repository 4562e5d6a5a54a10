"""Components that cancel each other: how far they do, and how to make them smaller without a larger error."""

from __future__ import annotations

from torch import Tensor

from ..contraction import contract
from .problem import Problem


def degeneracy(problem: Problem, values: dict[str, Tensor]) -> float:
    """sqrt(sum of ||component||^2) / ||target|| of the only start of the only layer in `values`; 0 for a target of 0.

    A component is one value of every bond; its squared norm is the network of the squared elements, summed over
    everything.
    """
    operands = [problem.operand(position, values) for position in range(len(problem.occurrences))]
    total = contract([(tensor.square(), labels) for tensor, labels in operands], ())
    return float((total / problem.power.max()).sqrt()) if bool(problem.power.max() > 0) else 0.0
