"""`Adapted`: a layer of torch's whose weight stays as it is, and networks beside it that are trained."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Collection, Mapping
from time import perf_counter
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.nn import functional
from torch.nn.utils import parametrize

from ..compiler import Compiled, compile, is_jit_traced, is_symbolic, is_traced, is_watched, leaf_call
from ..errors import CompileError, LayerError
from ..networks import Network, shapes
from .base import KernelLayer
from .layers import layer_class
from .origin import Origin
from .planning import Planning
from .torch_layers import CONVOLUTIONS, AnyLayer, layer_network, memory_format_of

_TURNS = 5
"""Runs of each way to compute an adapted layer, of which the fastest counts."""

_CLEARLY = 0.95
"""The sum of weight and network is formed where that takes at most this part of the time of computing both apart."""


class Adapted(torch_nn.Module):
    """One of torch's layers and networks beside it: it computes W x + scale * (network) x, summed over the active ones.

    Arguments, inputs and outputs are those of torch's layer. Where the numbers are float32 or float64, whichever is
    faster runs: the layer and the network apart, or the layer with the sum of both as its weight. This is measured at
    the first call of each class of sizes.

        layer = tn.nn.Adapted(linear)
        layer.add("mine", tn.nn.adapter_layer(linear, kernel, values))

    `tn.adapt` does this to the layers of a model.

    Attributes:
        base: torch's layer, with its weight and bias.
        adapters: name -> the layer of a network; its tensors are the cores.
        merged: W + scale * network while the layer is merged, else None. It is not part of the state.
    """

    base: AnyLayer
    adapters: torch_nn.ModuleDict
    merged: Tensor | None

    def __init__(self, base: AnyLayer) -> None:
        """Make the layer without adapters. Raises LayerError: `base` is not a plain layer of torch's with a kernel."""
        super().__init__()
        kind = layer_class(base)
        layer_network(base)  # which refuses subclasses that compute something of their own
        self.base = base
        self.adapters = torch_nn.ModuleDict()
        self.register_buffer("merged", None, persistent=False)
        self._scales: dict[str, float] = {}
        self._active: tuple[str, ...] = ()
        self._formers: dict[str, Compiled] = {}
        self._together: dict[tuple[object, ...], bool] = {}
        self._merged_from: list[tuple[Tensor, int]] = []
        self._tune = True
        for name in (*kind.argument_names, "output_padding"):
            if name != "bias" and hasattr(base, name):
                setattr(self, name, getattr(base, name))
        self.train(base.training)

    # Adapters --------------------------------------------------------------------------------------------------

    def add(self, name: str, layer: KernelLayer, scale: float = 1.0, *, tune: bool = True) -> None:
        """Add an adapter, which is active from now on.

        Args:
            name: a word that no other adapter of the layer has.
            layer: of torch's layer with the same arguments but for the bias, which it does not have.
            scale: the number that its output is multiplied by, such as alpha / r of LoRA.
            tune: measure which way to compute the layer is the fastest; without, layer and network run apart.

        Raises:
            LayerError: another adapter has the name, or it is not a word; the layer does not belong to this one.
        """
        if not isinstance(name, str) or not name.isidentifier() or hasattr(torch_nn.ModuleDict, name):
            raise LayerError(f"an adapter is called {name!r}", fix="a word, such as 'default'")
        if name in self.adapters:
            fact = f"the layer has an adapter {name!r} already"
            raise LayerError(fact, fix="another name, or remove that one first")
        if not isinstance(self.base, layer.dense_class) or layer.bias is not None:
            fact = f"an {type(layer).__name__} with a bias or of another class is added to a {type(self.base).__name__}"
            raise LayerError(fact, fix="tn.nn.adapter_layer(layer.base, ...)")
        scale = check_scale(scale)
        if isinstance(self.base, (torch_nn.Linear, *CONVOLUTIONS)) and layer.weight.device.type != "meta":
            former = _former(layer, tune=tune)
            if former is not None:
                self._formers[name] = former
        self._tune = self._tune and tune
        self.adapters[name] = layer.train(self.training)
        self._scales[name] = scale
        self.activate(*self._active, name)

    def remove(self, name: str) -> None:
        """Remove an adapter. Raises LayerError: the layer does not have it."""
        self._check_names((name,))
        self.activate(*(one for one in self._active if one != name))
        del self.adapters[name], self._scales[name]
        self._formers.pop(name, None)

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the adapters whose outputs are added."""
        return self._active

    @property
    def scales(self) -> Mapping[str, float]:
        """Name of each adapter -> the number that its output is multiplied by."""
        return dict(self._scales)

    def activate(self, *names: str) -> None:
        """Choose the adapters whose outputs are added: one, several or none. Raises LayerError for an unknown name."""
        self._check_names(names)
        self._active = tuple(dict.fromkeys(names))
        self._changed()

    def rescale(self, name: str, scale: float) -> None:
        """Give an adapter another scale. Raises LayerError: the layer does not have it; the scale is not finite."""
        self._check_names((name,))
        self._scales[name] = check_scale(scale)
        self._changed()

    def _check_names(self, names: tuple[str, ...]) -> None:
        for name in names:
            if name not in self.adapters:
                fact = f"the layer has no adapter {name!r}"
                raise LayerError(fact, adapters=", ".join(self.adapters) or None)

    def _changed(self) -> None:
        self._together.clear()
        if self.merged is not None:
            self.merge()

    # Calling ---------------------------------------------------------------------------------------------------

    def forward(self, input: Tensor, *args: Any) -> Tensor:
        """The output of torch's layer, and of the active adapters; further arguments are those of torch's layer."""
        if is_symbolic(input):
            return leaf_call(self, (input, *args), {})  # type: ignore[no-any-return]
        if self.merged is not None and self._is_merged():
            return _call(self.base, input, self.merged, args)
        if self._is_formed(input):
            return _call(self.base, input, self.weight, args)
        return self._apart(input, *args)

    def _apart(self, input: Tensor, *args: Any) -> Tensor:
        output: Tensor = self.base(input, *args)
        for name in self._active:
            output = torch.add(output, self.adapters[name](input, *args), alpha=self._scales[name])
        return output

    @property
    def weight(self) -> Tensor:
        """The weight that the layer computes with: W + scale * network, differentiable; a new tensor at each access."""
        weight = self.base.weight
        for name in self._active:
            layer, former = cast(KernelLayer, self.adapters[name]), self._formers.get(name)
            cores = layer.kernel_tensors()
            formed = layer.dense_weight() if former is None else former(*cores.values())
            weight = torch.add(weight, formed, alpha=self._scales[name])
        return weight

    @property
    def bias(self) -> torch_nn.Parameter | None:
        """The bias of torch's layer; None without one, and of an embedding."""
        return getattr(self.base, "bias", None)

    def _is_formed(self, input: Tensor) -> bool:
        """Whether the weight and the networks are added first, because that is faster for inputs of this size."""
        if not self._active or any(name not in self._formers for name in self._active):
            return False
        short = input.dtype.itemsize < 4  # a sum in bfloat16 would round the networks away
        if short or is_jit_traced() or torch.is_autocast_enabled(input.device.type):
            return False
        gradients = torch.is_grad_enabled()
        if is_traced():
            return self._together.get(("nominal", gradients), False)
        if input.numel() == 0 or input.is_meta:
            return False
        key = (round(math.log(input.numel(), 4)), gradients)
        if key not in self._together:
            if is_watched() or not self._tune or os.environ.get("TNALGEBRA_TUNE") == "0":
                return False
            self._together[key] = self._measure(input, gradients=gradients)
            self._together.setdefault(("nominal", gradients), self._together[key])
        return self._together[key]

    def _measure(self, input: Tensor, *, gradients: bool) -> bool:
        """Whether forming the sum is clearly faster, forward or, with gradients, forward and backward."""
        cores = [one for name in self._active for one in self.adapters[name].parameters()]
        trained: list[Tensor] = [one for one in cores if one.requires_grad]
        x = input.detach()
        if input.requires_grad and gradients:
            trained.append(x.requires_grad_())

        def timer(compute: Callable[[], Tensor]) -> Callable[[], float]:
            def run() -> float:
                _wait(x)
                start = perf_counter()
                output = compute()
                if gradients and trained:
                    torch.autograd.grad(output, trained, torch.ones_like(output))
                _wait(x)
                return perf_counter() - start

            return run

        runs = [timer(lambda: _call(self.base, x, self.weight, ())), timer(lambda: self._apart(x))]
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            if x.is_inference():
                x = x.clone()
            for run in runs:
                run()
            formed, apart = (
                min(times) for times in zip(*([run() for run in runs] for _ in range(_TURNS)), strict=True)
            )
        return bool(formed < _CLEARLY * apart)

    # Merging ---------------------------------------------------------------------------------------------------

    def merge(self) -> Self:
        """Compute with the sum of the weight and the active networks from now on, as fast as torch's layer alone.

        `base.weight` and the cores stay as they are, and so does the state of the layer; once they have other
        elements, the next call merges again. `train()` and `unmerge()` end it. The sum differs from the separate
        computation by rounding.
        """
        with torch.inference_mode(False), torch.no_grad():  # in this order, as the first turns gradients on
            weight = self.base.weight.detach()
            total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            for name in self._active:
                total.add_(cast(KernelLayer, self.adapters[name]).dense_weight(), alpha=self._scales[name])
            self.merged = torch.empty_like(weight).copy_(total)
        self._merged_from = [(one, one._version) for one in self._sources()]
        return self

    def unmerge(self) -> Self:
        """Compute with the weight and the networks as they are; the weight has the bits that it had before."""
        self.merged, self._merged_from = None, []
        return self

    def _sources(self) -> list[Tensor]:
        """The tensors that the merged weight is made of."""
        layers = [cast(KernelLayer, self.adapters[name]) for name in self._active]
        weights = [*self.base.parameters()] if parametrize.is_parametrized(self.base) else [self.base.weight]
        return [*weights, *(core for layer in layers for core in layer.kernel_tensors().values())]

    def _is_merged(self) -> bool:
        """Whether the merged weight may be used; where the tensors have other elements by now, it is made again."""
        if is_traced():
            return True
        sources = self._sources()
        if len(sources) != len(self._merged_from):
            return False
        for one, (tensor, version) in zip(sources, self._merged_from, strict=True):
            if one is not tensor:
                return False  # another tensor stands in for it during this call
            if one._version != version:
                self.merge()
                break
        return True

    def to_dense(self) -> AnyLayer:
        """The layer of torch's with the weight W + scale * network, and a copy of the bias."""
        dense = copy.deepcopy(self.base)
        if parametrize.is_parametrized(dense, "weight"):
            parametrize.remove_parametrizations(dense, "weight")
        merged = self.merged if self.merged is not None and self._is_merged() else None
        weight = merged if merged is not None else copy.deepcopy(self).merge().merged
        assert weight is not None
        dense.weight = torch_nn.Parameter(weight.detach().clone(), requires_grad=dense.weight.requires_grad)
        return dense.train(self.training)

    # What torch does to modules --------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; training mode unmerges the layer."""
        if mode and "_merged_from" in self.__dict__:
            self.unmerge()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        merged = self.merged is not None
        self.unmerge()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._together.clear()
        return self.merge() if merged else self

    def extra_repr(self) -> str:
        active = ", ".join(f"{name} * {self._scales[name]:g}" for name in self._active) or "none"
        return f"active: {active}" + (", merged" if self.merged is not None else "")


def adapter_layer(
    base: AnyLayer,
    kernel: Network,
    values: Mapping[str, Tensor | str],
    *,
    constants: Collection[str],
    planning: Planning,
) -> KernelLayer:
    """The layer with the arguments of one of torch's and this kernel, for `Adapted.add`; it has no bias.

    Args:
        base: torch's layer, which determines arguments, dtype and device.
        kernel: a network; the labels of its output are the axes of the weight.
        values: of its tensors, which are trained; the name of a basis is one, such as "dct", and is not.
        constants: names of those that are not.
        planning: what the plan is chosen for.

    Raises:
        LayerError: a kernel of another shape, or a tensor named like an attribute of the layer.
    """
    bare, weight = copy.copy(base), base.weight
    zeros = torch.zeros((), dtype=weight.dtype, device=weight.device).expand(weight.shape)  # the row of a padding is 0
    bare.__dict__["_parameters"] = {"weight": torch_nn.Parameter(zeros), "bias": None}
    planning = Planning(memory_format=memory_format_of(weight)) | planning
    kind = layer_class(base)
    return kind.of_network(bare, kernel, values, constants=constants, planning=planning, origin=Origin())


def check_scale(scale: object) -> float:
    """A scale as a float. Raises LayerError if it is not a finite number."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise LayerError(f"the scale of an adapter is {scale!r}", fix="a finite number, such as alpha / rank")
    return float(scale)


def _former(layer: KernelLayer, *, tune: bool) -> Compiled | None:
    """The network of a layer's kernel, compiled for its cores as inputs; None where no plan keeps within memory."""
    try:
        return compile(layer.kernel, inputs=shapes(layer.kernel), backward=True, tune=tune)
    except CompileError:
        return None


def _call(base: AnyLayer, input: Tensor, weight: Tensor, args: tuple[Any, ...]) -> Tensor:
    """The output of one of torch's layers with another weight."""
    match base:
        case torch_nn.Linear():
            return functional.linear(input, weight, base.bias)
        case torch_nn.Conv1d() | torch_nn.Conv2d() | torch_nn.Conv3d():
            output: Tensor = base._conv_forward(input, weight, base.bias)
            return output
        case torch_nn.Embedding():
            return functional.embedding(input, weight, base.padding_idx)
        case _:
            return torch.func.functional_call(base, {"weight": weight}, (input, *args))  # type: ignore[no-any-return]


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
