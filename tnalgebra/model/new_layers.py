"""The decomposed layers that take the places of a model's, planned for the inputs that these are called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import nn

from ..compiler import Candidates
from ..errors import LayerError
from ..nn import AnyLayer, KernelLayer, Planning, decomposed
from ..rewriting import Fit
from .budget import Costs
from .surgery import LayerCall, Site, tie_layers, without_hooks


@dataclass(frozen=True, eq=False)
class LayerMaker:
    """Makes the layer for a fit of the weight of one of a model's layers, and counts its multiply-adds.

    sites: name -> a layer, with those that are tied to it.
    calls: name -> the layer's calls in one run on an example; without them, plans are made for nominal sizes.
    candidates, tune, backward: see `Planning`.
    """

    sites: Mapping[str, Site]
    calls: Mapping[str, Sequence[LayerCall]]
    candidates: Candidates = "all"
    tune: bool = False
    backward: bool = False
    _counts: dict[tuple[object, ...], int] = field(default_factory=dict)

    def make(self, name: str, fit: Fit, *, tune: bool | None = None) -> list[KernelLayer]:
        """The layer, planned for the input of its first call where there was one, and those tied to it."""
        layers = [self._make(member, fit, tune) for member in self.sites[name].members]
        tie_layers(layers)
        return layers

    def _make(self, site: Site, fit: Fit, tune: bool | None) -> KernelLayer:
        module, name = without_hooks(site.module), site.names[0]
        planning = Planning(
            candidates=self.candidates, tune=self.tune if tune is None else tune, backward=self.backward
        )
        if self.calls.get(name):
            first = self.calls[name][0]
            planning |= planning_for(module, first.shape, first.memory_format)
        layer = decomposed(module, fit, **planning)
        if any(one.is_meta for one in layer.parameters()):
            fact = "the new layer is put on the meta device while it is made"
            fix = "convert outside of accelerate.init_empty_weights and the like"
            raise LayerError(fact, because="the parameters of new modules lose their elements here", fix=fix)
        return layer

    def multiply_adds(self, name: str, layers: Sequence[KernelLayer]) -> int:
        """Multiply-adds of all calls: those of the first in its plan, the others in proportion to the dense layer's.

        Reading rows of a dense embedding multiplies nothing, so that its calls are in proportion to their tokens.
        """
        total = 0
        for member, layer in zip(self.sites[name].members, layers, strict=True):
            dense = [call.multiply_adds or prod(call.shape) for call in self.calls[member.names[0]]]
            total += round(layer.plan.multiply_adds * sum(dense) / max(dense[0], 1)) if dense else 0
        return total

    def dense_multiply_adds(self, name: str) -> int:
        """Multiply-adds of all calls of a dense layer, and of those tied to it."""
        members = self.sites[name].members
        return sum(call.multiply_adds for member in members for call in self.calls[member.names[0]])

    def costs(self, names: Sequence[str]) -> Costs:
        """Multiply-adds of the whole model on the example, of its layers, and of these layers decomposed."""
        adds = {name: self.dense_multiply_adds(name) for name in self.sites}
        return Costs("multiply-adds", sum(adds.values()), {name: adds[name] for name in names}, self._count)

    def _count(self, name: str, fit: Fit) -> int:
        """Counted in the plan that the layer would get; layers that agree in everything are counted once."""
        members = self.sites[name].members
        key = (fit.network, *((str(one.module), *self.calls[one.names[0]]) for one in members))
        if key not in self._counts:
            self._counts[key] = self.multiply_adds(name, self.make(name, fit, tune=False))
        return self._counts[key]


def planning_for(module: AnyLayer, shape: Sequence[int], memory_format: torch.memory_format) -> Planning:
    """What the plan of a layer is chosen for if it is called with an input of this shape and memory format."""
    axes = module.weight.ndim - 2
    if isinstance(module, nn.Embedding):
        return Planning(batch_size=max(1, prod(shape)))
    planning = Planning(
        batch_size=max(1, prod(shape[: len(shape) - axes - 1])), input_size=tuple(shape[len(shape) - axes :]) or None
    )
    if axes and memory_format != torch.contiguous_format:
        planning["memory_format"] = memory_format  # else the weight's: torch takes either for a sign
    return planning
