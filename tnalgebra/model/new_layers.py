"""The decomposed layers that take the places of a model's, planned for the inputs that these are called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import nn

from ..compiler import Candidates, Plan
from ..errors import DataError, LayerError, NetworkError
from ..networks import Network, kernel_multiply_adds, shape_of, shapes
from ..nn import AnyLayer, KernelLayer, Origin, Planning, decomposed, layer_class
from ..rewriting import Fit
from .curves import Costs
from .example import Example
from .surgery import LayerCall, Site, tie_layers, without_hooks
from .timing import time_layers, time_ratio


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
    tune: bool = True
    backward: bool = False
    _counts: dict[tuple[object, ...], int] = field(default_factory=dict)

    def make(self, name: str, fit: Fit) -> list[KernelLayer]:
        """The layer, planned for the input of its first call where there was one, and those tied to it.

        Where multiply-adds were counted for a budget, a plan that is measured as faster but has more is not used.
        """
        members = self.sites[name].members
        layers = [self._make(member, fit, tune=self.tune) for member in members]
        if self._counts and self.multiply_adds(name, layers) > self.count(name, fit.network, fit.constants):
            layers = [self._make(member, fit, tune=False) for member in members]
        tie_layers(layers)
        return layers

    def _make(self, site: Site, fit: Fit, *, tune: bool) -> KernelLayer:
        layer = decomposed(without_hooks(site.module), fit, **self._planning(site, tune=tune))
        if any(one.is_meta for one in layer.parameters()):
            fact = "the new layer is put on the meta device while it is made"
            fix = "convert outside of accelerate.init_empty_weights and the like"
            raise LayerError(fact, because="the parameters of new modules lose their elements here", fix=fix)
        return layer

    def _planning(self, site: Site, *, tune: bool) -> Planning:
        planning = Planning(candidates=self.candidates, tune=tune, backward=self.backward)
        calls = self.calls.get(site.names[0])
        return planning | planning_for(site.module, calls[0].shape, calls[0].memory_format) if calls else planning

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
        """Multiply-adds of the whole model on the example, of its layers, and of these layers decomposed.

        Raises:
            DataError: the layers' inputs on the example have no elements.
        """
        self._check_counted("multiply-adds are")
        adds = {name: self.dense_multiply_adds(name) for name in self.sites}
        dense = {name: adds[name] for name in names}
        return Costs("multiply-adds", sum(adds.values()), dense, self.count, self._guess, is_least=True)

    def time_costs(self, model: nn.Module, example: Example, names: Sequence[str]) -> Costs:
        """Nanoseconds of a forward pass of the whole model on the example, of its layers, and of these decomposed.

        A decomposed layer has the dense one's time in the model, times the ratio of both on inputs of the same shape.

        Raises:
            DataError: the layers' inputs on the example have no elements.
        """
        self._check_counted("time is")
        modules = {name: self.sites[name].module for name in names}
        members = {one.names[0]: one.module for name in names for one in self.sites[name].members}
        whole, seconds = time_layers(model, members, example)
        dense = {
            name: max(1, round(1e9 * sum(seconds[one.names[0]] for one in self.sites[name].members)))
            for name in modules
        }

        def measure(name: str, network: Network, constants: frozenset[str]) -> int:
            layer = self._sketch(name, network, constants, tune=self.tune)[0]
            return round(dense[name] * time_ratio(layer, without_hooks(modules[name]), self.calls[name]))

        return Costs("nanoseconds", round(1e9 * whole), dense, measure, self._guess, is_least=False)

    def _check_counted(self, what: str) -> None:
        shapes = {call.shape: None for calls in self.calls.values() for call in calls}
        if shapes and not any(map(prod, shapes)):
            fact = f"{what} to be shared out, and on the example no layer gets an input with elements"
            raise DataError(fact, shapes=", ".join(map(str, list(shapes)[:4])), fix="an example of at least one input")

    def _guess(self, name: str, network: Network) -> float:
        """Multiply-adds in the best order of contractions, at as many positions as the dense layer computes."""
        dense = prod(shape_of(network, network.output))
        positions = max(1, self.dense_multiply_adds(name) // dense)
        axes = len(network.output) - 2
        try:
            return kernel_multiply_adds(network, (positions, *[1] * (axes - 1)) if axes else ())
        except NetworkError:  # a kernel with windows of its own
            return network.parameters

    def count(self, name: str, network: Network, constants: frozenset[str]) -> int:
        """Multiply-adds of all calls of a layer whose kernel is this network, in the plan that it would get.

        Layers that agree in everything are counted once.

        Args:
            constants: names of the network's tensors that are not trained.
        """
        members = self.sites[name].members
        key = (network, constants, *((str(one.module), *self.calls[one.names[0]]) for one in members))
        if key not in self._counts:
            self._counts[key] = self.multiply_adds(name, self._sketch(name, network, constants, tune=False))
        return self._counts[key]

    def plan(self, name: str, network: Network, constants: frozenset[str]) -> Plan:
        """The plan of a layer whose kernel is this network, from predictions alone."""
        return self._sketch(name, network, constants, tune=False)[0].plan

    def _sketch(self, name: str, network: Network, constants: frozenset[str], *, tune: bool) -> list[KernelLayer]:
        """The layer and those tied to it, with zeros in the place of a fit."""
        layers = []
        for member in self.sites[name].members:
            module = without_hooks(member.module)
            values = {tensor: module.weight.new_zeros(shape) for tensor, shape in shapes(network).items()}
            layers.append(
                layer_class(module).of_network(
                    module,
                    network,
                    values,
                    constants=constants,
                    planning=self._planning(member, tune=tune),
                    origin=Origin(),
                )
            )
        return layers


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
