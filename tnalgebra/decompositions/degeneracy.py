"""Fit a network to the value that it has: the same tensors with other numbers, or smaller tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RuleError, ValuesError
from ..fitting import FitReport, Objective, degeneracy_of, objective_of, shrink_components, with_open_axes
from ..networks import NamedTensor, Network, tensor_nodes
from ..rewriting import Change, Options, Place, Rule
from ..tensors import Values, in_precision, relative, scaled, value_of
from .components import check_values, part

_ROUNDING = 1e-9
"""Part of a tolerance that is left to rounding."""


@dataclass(frozen=True, eq=False)
class OwnValue:
    """The value of a network as a target.

    target: the value divided by its largest element; its axes are those of the network's output.
    share: the factor of each tensor of a fitted network that makes up for this division.
    """

    target: Tensor
    share: float

    def objective(self, network: Network) -> Objective:
        """The fit in which all named tensors of a network are free."""
        return objective_of(with_open_axes(self.target, network)[None], network, {})

    def error(self, network: Network, tensors: Mapping[str, Tensor]) -> float:
        """||value - network|| / ||value|| for the numbers of these tensors, whatever their type."""
        shares = {name: in_precision(tensor, torch.float64) / self.share for name, tensor in tensors.items()}
        return relative(self.target - value_of(network, shares, dtype=torch.float64), self.target)


def in_type_of(values: Values, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the types that the values of the same names have."""
    return {name: tensor.to(values[name].dtype) for name, tensor in tensors.items()}


def own_value(network: Network, tensors: Mapping[str, Tensor]) -> OwnValue:
    """Contract a network, in the type of its tensors.

    Raises:
        RuleError: a tensor carries a label twice, so that only its diagonal would matter.
        ValuesError: the value is empty or not finite.
    """
    for node in network.nodes:
        twice = next((label for label in node.labels if node.labels.count(label) > 1), None)
        if isinstance(node, NamedTensor) and twice is not None:
            raise RuleError(f"the tensor {node.name!r} carries {twice!r} twice", network=network)
    dense = value_of(network, tensors)
    target, scale = scaled(dense, what="the value of the network", dtype=dense.dtype)
    occurrences = sum(len(places) for places in tensor_nodes(network).values())
    return OwnValue(target, scale ** (1 / occurrences))


def correct_degeneracy(tolerance: float = 0.01) -> Rule:
    """Make the rule that makes components which cancel each other smaller, at a small change of the value.

    Among all numbers for its tensors that leave the network's value within `tolerance`, the rule looks for those with
    the smallest components, and reports the degeneracy. Names, labels and sizes stay as they are. The value that is
    kept is that of the network: the kernel that the network approximates is not known here. Where the kernel is at
    hand, a correction within the fit (`slack=`) is better, because it may move towards the kernel.

    Tensors that occur several times are not changed. The bonds of a tree have no components that must cancel; only
    their basis changes.

    Args:
        tolerance: the largest relative Frobenius distance between the values before and after, between 0 and 1.

    Raises:
        ValuesError: the tolerance is out of range.
        RuleError: on application: a tensor has no value, or the network has no open label.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
        raise ValuesError(f"the tolerance {tolerance!r} is not between 0 and 1", fix="for example 0.01")

    def find(network: Network, options: Options) -> Iterator[Place]:
        yield Place(tuple(range(len(network.nodes))))

    def build(network: Network, place: Place, values: Values, options: Options) -> Change:
        before = part(network, place)
        check_values(before, values, what="the correction")
        if not before.output:
            raise RuleError("a network without open labels is one number and has no components", network=network)
        tensors = {name: in_precision(values[name], options.settings.dtype) for name in tensor_nodes(before)}
        own = own_value(before, tensors)
        objective = own.objective(before)
        begun = {name: (tensor / own.share)[None, None] for name, tensor in tensors.items()}
        bound = (tolerance * (1 - _ROUNDING)) ** 2 * objective.power
        found = shrink_components(objective, begun, bound=bound, sweeps=options.settings.sweeps)
        new = in_type_of(values, {name: core[0, 0] * own.share for name, core in found.items()})
        error = own.error(before, new)
        amount = degeneracy_of(objective, found)
        report = FitReport(
            "error-preserving correction", (error,), (error,), converged=True, degeneracy=amount, relative_error=error
        )
        return Change(network, values=new, relative_error=error, report=report)

    return Rule(
        f"correct degeneracy {tolerance:g}",
        "approximate",
        f"any network => itself within {tolerance:g}, its components smaller",
        find,
        build,
        spec={"correct_degeneracy": repr(float(tolerance))},
    )
