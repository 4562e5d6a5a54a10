"""The decomposed layers that take the places of a model's, planned for the inputs that these are called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch

from ..compiler import Candidates
from ..nn import DenseLayer, KernelLayer, Planning, decomposed
from ..rewriting import Fit
from .budget import Costs
from .surgery import LayerCall, Site, without_hooks


@dataclass(frozen=True, eq=False)
class LayerMaker:
    """Makes the layer for a fit of the weight of one of a model's layers, and counts its multiply-adds.

    calls: name -> the layer's calls in one run on an example; without them, plans are made for nominal sizes.
    candidates, tune, backward: see `Planning`.
    """

    sites: Mapping[str, Site]
    calls: Mapping[str, Sequence[LayerCall]]
    candidates: Candidates = "all"
    tune: bool = False
    backward: bool = False
    _counts: dict[tuple[object, ...], int] = field(default_factory=dict)

    def make(self, name: str, fit: Fit, *, tune: bool | None = None) -> KernelLayer:
        """The layer, planned for the input of its first call where there was one."""
        module = without_hooks(self.sites[name].module)
        planning = Planning(
            candidates=self.candidates, tune=self.tune if tune is None else tune, backward=self.backward
        )
        if self.calls.get(name):
            first = self.calls[name][0]
            planning |= planning_for(module, first.shape, first.memory_format)
        return decomposed(module, fit, **planning)

    def multiply_adds(self, name: str, layer: KernelLayer) -> int:
        """Multiply-adds of all calls: those of the first in its plan, the others in proportion to the dense layer's."""
        dense = [call.multiply_adds for call in self.calls[name]]
        return round(layer.plan.multiply_adds * sum(dense) / dense[0]) if dense else 0

    def costs(self, names: Sequence[str]) -> Costs:
        """Multiply-adds of the whole model on the example, of its layers, and of these layers decomposed."""
        adds = {name: sum(call.multiply_adds for call in calls) for name, calls in self.calls.items()}
        return Costs("multiply-adds", sum(adds.values()), {name: adds[name] for name in names}, self._count)

    def _count(self, name: str, fit: Fit) -> int:
        """Counted in the plan that the layer would get; layers that agree in everything are counted once."""
        key = (fit.network, str(self.sites[name].module), *self.calls[name])
        if key not in self._counts:
            self._counts[key] = self.multiply_adds(name, self.make(name, fit, tune=False))
        return self._counts[key]


def planning_for(module: DenseLayer, shape: Sequence[int], memory_format: torch.memory_format) -> Planning:
    """What the plan of a layer is chosen for if it is called with an input of this shape and memory format."""
    axes = module.weight.ndim - 2
    planning = Planning(
        batch_size=max(1, prod(shape[: len(shape) - axes - 1])), input_size=tuple(shape[len(shape) - axes :]) or None
    )
    if axes and memory_format != torch.contiguous_format:
        planning["memory_format"] = memory_format  # else the weight's: torch takes either for a sign
    return planning
