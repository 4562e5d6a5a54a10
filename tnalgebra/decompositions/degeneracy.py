"""A network fitted to the value it has: the same tensors with other numbers, or smaller ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import RuleError, ValuesError, explain
from ..fitting import FitReport, Objective, degeneracy_of, objective_of, shrink_components, with_open_axes
from ..networks import NamedTensor, Network, tensor_nodes
from ..rewriting import Change, Options, Place, Rule
from ..tensors import Values, relative, scaled, value_of
from .components import check_values, part

_ROUNDING = 1e-9
"""Part of a tolerance that is left to rounding."""


@dataclass(frozen=True, eq=False)
class OwnValue:
    """The value of a network as a target.

    target: over its largest element, axes as the network's output.
    share: what each tensor of a network that comes near the target is to be multiplied with.
    """

    target: Tensor
    share: float

    def objective(self, network: Network) -> Objective:
        """All named tensors of a network are free, their sizes those of the network."""
        return objective_of(with_open_axes(self.target, network)[None], network, {})

    def error(self, objective: Objective, cores: Mapping[str, Tensor]) -> float:
        """||value - network|| / ||value|| of the only start of the only layer."""
        return relative(self.target - objective.model(cores).reshape(self.target.shape), self.target)


def own_value(network: Network, tensors: Mapping[str, Tensor]) -> OwnValue:
    """Contract a network, in the type of its tensors.

    Raises:
        RuleError: a tensor carries a label twice, so that only its diagonal would matter.
        ValuesError: the value is empty or not finite.
    """
    for node in network.nodes:
        twice = next((label for label in node.labels if node.labels.count(label) > 1), None)
        if isinstance(node, NamedTensor) and twice is not None:
            raise RuleError(explain(f"the tensor {node.name!r} carries {twice!r} twice", network=network))
    dense = value_of(network, tensors)
    target, scale = scaled(dense, what="the value of the network", dtype=dense.dtype)
    occurrences = sum(len(places) for places in tensor_nodes(network).values())
    return OwnValue(target, scale ** (1 / occurrences))


def correct_degeneracy(tolerance: float = 0.01) -> Rule:
    """The rule that makes components which cancel each other smaller, and moves the value of the network a little.

    Of all numbers for its tensors that leave the network's value within `tolerance` of what it is, it looks for those
    of the smallest components (see `fitting.correction`; the degeneracy is reported). The names, labels and sizes
    stay. The value it keeps to is the network's own: a kernel that it once approximated is not part of it. Where that
    kernel is at hand, a correction within the fit is better, as it may move towards the kernel.

    Tensors that occur several times stay as they are; the bonds of a tree have no components that must cancel, and
    only change their basis.

    Args:
        tolerance: largest relative Frobenius distance between the values before and after, in (0, 1).

    Raises:
        ValuesError: the tolerance is out of range.
        RuleError: on application: a tensor has no value, or the network is one number.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
        raise ValuesError(explain(f"a tolerance of {tolerance!r}", fix="a number between 0 and 1, such as 0.01"))

    def find(network: Network, options: Options) -> Iterator[Place]:
        yield Place(tuple(range(len(network.nodes))))

    def build(network: Network, place: Place, values: Values, options: Options) -> Change:
        before = part(network, place)
        check_values(before, values, what="the correction")
        if not before.output:
            raise RuleError(explain("a network without open labels is one number", network=network))
        tensors = {name: values[name].to(options.settings.dtype) for name in tensor_nodes(before)}
        own = own_value(before, tensors)
        objective = own.objective(before)
        begun = {name: (tensor / own.share)[None, None] for name, tensor in tensors.items()}
        bound = (tolerance * (1 - _ROUNDING)) ** 2 * objective.power
        found = shrink_components(objective, begun, bound=bound, sweeps=options.settings.sweeps)
        new = {name: (core[0, 0] * own.share).to(values[name].dtype) for name, core in found.items()}
        error = own.error(objective, found)
        amount = degeneracy_of(objective, found)
        report = FitReport("error-preserving correction", (error,), (error,), True, amount, error)
        return Change(network, values=new, relative_error=error, report=report)

    return Rule(
        f"correct degeneracy {tolerance:g}",
        "approximate",
        f"any network => itself within {tolerance:g}, its components smaller",
        find,
        build,
        spec={"correct_degeneracy": repr(float(tolerance))},
    )
