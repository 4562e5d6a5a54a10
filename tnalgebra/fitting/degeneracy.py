"""Components that cancel each other: how far they do. `correction` makes them smaller without a larger error."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..contraction import contract
from .problem import BATCH, Problem


def degeneracy(problem: Problem, values: Mapping[str, Tensor]) -> float:
    """sqrt(sum of ||component||^2) / ||target|| of the only start of the only layer in `values`; 0 for a target of 0.

    A component is one value of every bond; its squared norm is the network of the squared elements, summed over
    everything.
    """
    operands = [problem.operand(position, values) for position in range(len(problem.occurrences))]
    total = contract([(tensor.square(), labels) for tensor, labels in operands], ())
    return float((total / problem.power.max()).sqrt()) if bool(problem.power.max() > 0) else 0.0


def squared_components(problem: Problem, values: Mapping[str, Tensor]) -> Tensor:
    """The sum of ||component||^2, shape (layers, starts)."""
    operands = [problem.operand(position, values) for position in range(len(problem.occurrences))]
    squares = [(tensor.square(), labels) for tensor, labels in operands]
    assert any(set(BATCH) <= set(labels) for _, labels in squares), "no core is free"
    return problem.contracted(squares, ())


def squared_rest(problem: Problem, position: int, values: Mapping[str, Tensor]) -> Tensor:
    """What the squared elements of the core at `position` are weighted with in `squared_components`.

    Returns:
        Shape (layers or 1, starts or 1, *sizes of that core): the network of the squares of all others.
    """
    occurrence = problem.occurrences[position]
    squares = [(tensor.square(), labels) for tensor, labels in problem.others(position, values)]
    if not squares:
        core = values[occurrence.name]
        return core.new_ones(1, 1, *core.shape[2:])
    return problem.contracted(squares, occurrence.labels, shaped=position)
