"""`Adapted`: a layer of torch's whose weight stays as it is, and networks beside it that are trained."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.nn import functional
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _disable_current_modes

from ..compiler import (
    Compiled,
    Snapshot,
    compile,
    is_jit_traced,
    is_symbolic,
    is_traced,
    is_watched,
    leaf_call,
)
from ..errors import CompileError, LayerError
from ..networks import shapes
from .adapter_layer import check_scale
from .base import KernelLayer
from .hooks import compute_tensors, is_altered, keep_tensors
from .layers import layer_class
from .timed import is_clearly_faster
from .torch_layers import CONVOLUTIONS, AnyLayer, layer_network


class Adapted(torch_nn.Module):
    """One of torch's layers and networks beside it: it computes W x + scale * (network) x, summed over the active ones.

    Arguments, inputs and outputs are those of torch's layer. Where the numbers are float32 or float64, whichever is
    faster runs: the layer and the network apart, or the layer with the sum of both as its weight. This is measured at
    the first call of each class of sizes. Where the layer or an adapter has hooks or parametrisations, they run apart.

        layer = tn.nn.Adapted(linear)
        layer.add("mine", tn.nn.adapter_layer(linear, kernel, values))

    `tn.adapt` does this to the layers of a model.

    Attributes:
        base: torch's layer, with its weight and bias.
        adapters: name -> the layer of a network; its tensors are the cores.
    """

    base: AnyLayer
    adapters: torch_nn.ModuleDict
    _total: Tensor | None
    _merged_from: Snapshot | None

    def __init__(self, base: AnyLayer) -> None:
        """Make the layer without adapters. Raises LayerError: `base` is not a plain layer of torch's with a kernel."""
        super().__init__()
        kind = layer_class(base)
        layer_network(base)  # which refuses subclasses that compute something of their own
        self.base = base
        self.adapters = torch_nn.ModuleDict()
        self._scales: dict[str, float] = {}
        self._active: tuple[str, ...] = ()
        self._formers: dict[str, Compiled] = {}
        self._together: dict[tuple[object, ...], bool] = {}
        self._merges = False
        self._forget()
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
        layer._starts_at_zero = True
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
        if self._merges:
            self.merge()

    # Calling ---------------------------------------------------------------------------------------------------

    def forward(self, input: Tensor, *args: Any, **named: Any) -> Tensor:
        """The output of torch's layer, and of the active adapters; further arguments are those of torch's layer."""
        if is_symbolic(input):
            return leaf_call(self, (input, *args), named)
        merged = self._merged_weight(input) if self._merges else None
        if merged is not None:
            return _call(self.base, input, merged, *args, **named)
        if self._is_formed(input) or ((args or named) and self._is_plain(input)):  # an output size that is not planned
            return _call(self.base, input, self.weight, *args, **named)
        return self._apart(input, *args, **named)

    def _apart(self, input: Tensor, *args: Any, **named: Any) -> Tensor:
        output: Tensor = self.base(input, *args, **named)
        for name in self._active:
            layer, x = self.adapters[name], input
            dtype = cast(KernelLayer, layer)._like().dtype
            if x.dtype != dtype and x.is_floating_point() and not torch._C._is_any_autocast_enabled():
                x = x.to(dtype)
            output = torch.add(output, layer(x, *args, **named).to(output.dtype), alpha=self._scales[name])
        return output

    def _is_plain(self, input: Tensor) -> bool:
        """Whether nothing but the sum of weight and networks comes of calling the layers, and it can be computed."""
        weight = self.base._parameters.get("weight")
        hooked = _has_any_global_hook()  # type: ignore[no-untyped-call]
        if weight is None or hooked or any(is_altered(layer) for layer in (self.base, *self._layers())):
            return False
        if is_traced():
            return True
        device = input.device
        kinds = (Tensor, torch_nn.Parameter)
        return not input.is_meta and all(type(one) in kinds and one.device == device for one in self._sources())

    def _layers(self) -> list[KernelLayer]:
        """The layers of the active networks."""
        return [cast(KernelLayer, self.adapters[name]) for name in self._active]

    def _sources(self) -> list[Tensor]:
        """The tensors that the sum of weight and networks is made of."""
        return [*_tensors_of(self.base), *self._cores()]

    def _cores(self) -> list[Tensor]:
        """The tensors of the active networks."""
        return [one for layer in self._layers() for one in _tensors_of(layer)]

    @property
    def weight(self) -> Tensor:
        """The weight that the layer computes with: W + scale * network, differentiable; a new tensor at each access."""
        weight = self._own_weight()
        for name, layer in zip(self._active, self._layers(), strict=True):
            compute_tensors(layer)
            former, cores = self._formers.get(name), layer.kernel_tensors()
            formed = layer.dense_weight() if former is None else former(*cores.values())
            weight = torch.add(weight, formed, alpha=self._scales[name])
        return weight

    def _own_weight(self) -> Tensor:
        """The weight of torch's layer. Raises LayerError: another layer took its place, which has no such tensor."""
        compute_tensors(self.base)
        weight: object = self.base.weight
        if not isinstance(weight, Tensor):
            kind = type(self.base)
            fact = f"the layer beside the adapters is a {kind.__module__}.{kind.__name__}, whose weight is not a tensor"
            raise LayerError(fact, fix="merge() and to_dense() before the layer is quantised")
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
        if short or is_jit_traced() or input.is_meta or torch.is_autocast_enabled(input.device.type):
            return False
        gradients = torch.is_grad_enabled()
        if is_traced():
            return self._together.get(("nominal", gradients), False) and self._is_plain(input)
        layers, count = self._layers(), input.numel()
        key = (round(math.log(count, 4)) if count else 0, gradients)
        fits = count and not any(one.frozen or one._like().dtype != input.dtype for one in layers)
        if not fits or not self._together.get(key, True) or not self._is_plain(input):
            return False
        if key not in self._together:
            if is_watched() or not self._tune or os.environ.get("TNALGEBRA_TUNE") == "0":
                return False
            self._together[key] = self._measure(input)
            self._together.setdefault(("nominal", gradients), self._together[key])
        return self._together[key]

    def _measure(self, input: Tensor) -> bool:
        """Whether forming the sum is clearly faster."""
        cores = [core for layer in self._layers() for core in layer.parameters()]
        return is_clearly_faster(lambda x: _call(self.base, x, self.weight), self._apart, input, cores)

    # Merging ---------------------------------------------------------------------------------------------------

    def merge(self) -> Self:
        """Compute with the sum of the weight and the active networks from now on, where no gradients are needed.

        A call then takes about the time of torch's layer. `base.weight` and the cores stay as they are, and so does the
        state of the layer. Once they have other elements, the next call merges again; only what changes the weight of
        torch's layer through `.data` or an array of NumPy, which torch does not count, takes another `merge()`.

        Where gradients are on and any of these tensors has one, where others stand in for them, as by
        `torch.func.functional_call`, where a layer inside has hooks, and in code that torch traces or compiles, the
        layer computes as if it were not merged. What torch exports has the merged weight; that of a layer that was
        copied, moved or loaded since, and not merged again, has the weight and the cores.

        `train()` and `unmerge()` end it. The sum differs from the separate computation by rounding.

        Raises:
            LayerError: the layer beside the adapters has no weight as a tensor, as one that is quantised.
        """
        self._total = self._sum()
        self._merged_from = Snapshot(_tensors_of(self.base), self._cores())
        self._merges = True
        return self

    def unmerge(self) -> Self:
        """Compute with the weight and the networks as they are; the weight has the bits that it had before."""
        self._merges = False
        self._forget()
        return self

    @property
    def is_merged(self) -> bool:
        """Whether the layer is merged."""
        return self._merges

    @property
    def merged(self) -> Tensor | None:
        """W + scale * network while the layer is merged, else None. It is not part of the state."""
        kept = self._merged_from
        if self._merges and not (kept is not None and kept.is_of(self._sources()) and kept.is_current()):
            self.merge()
        return self._total

    def _sum(self) -> Tensor:
        """W + scale * network, without gradients."""
        with torch.inference_mode(False), torch.no_grad():  # in this order, as the first turns gradients on
            weight = self._own_weight().detach()
            total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            for name, layer in zip(self._active, self._layers(), strict=True):
                compute_tensors(layer)
                total.add_(layer.dense_weight(), alpha=self._scales[name])
            return torch.empty_like(weight).copy_(total)

    def _forget(self) -> None:
        """Merge again at the next call, if the layer is merged."""
        self._total = self._merged_from = None

    def _merged_weight(self, input: Tensor) -> Tensor | None:
        """The merged weight, made again where the tensors have other elements by now; None where it does not apply."""
        if torch.compiler.is_dynamo_compiling() or not self._is_plain(input):
            return None
        kept = self._merged_from
        if torch.compiler.is_exporting():  # when other tensors stand in for all of a model
            with _disable_current_modes():
                return self._total if kept is not None and kept.is_current() else None
        sources = self._sources()
        gradients = torch.is_grad_enabled() and any(one.requires_grad for one in sources)
        if (gradients or is_traced()) and not is_jit_traced():
            return None
        if kept is not None and not kept.is_of(sources):
            return None
        if kept is None or not kept.is_current():
            if is_watched():
                return None
            self.merge()
        return self._total

    def to_dense(self) -> AnyLayer:
        """The layer of torch's with the weight W + scale * network, and a copy of the bias."""
        weight = self._sum()
        dense = copy.deepcopy(self.base)
        keep_tensors(dense)
        dense.weight = torch_nn.Parameter(weight, requires_grad=dense.weight.requires_grad)
        return dense.train(self.training)

    # What torch does to modules --------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; training mode unmerges the layer."""
        if mode:
            self.unmerge()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._together.clear()
        self._forget()
        return self

    def _load_from_state_dict(self, *args: Any, **keywords: Any) -> None:
        self._forget()  # as other tensors may take the places of those that it has
        super()._load_from_state_dict(*args, **keywords)

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy, which has tensors of its own, and is merged at its first call."""
        return {**self.__dict__, "_total": None, "_merged_from": None}

    def extra_repr(self) -> str:
        active = ", ".join(f"{name} * {self._scales[name]:g}" for name in self._active) or "none"
        return f"active: {active}" + (", merged" if self._merges else "")


def _former(layer: KernelLayer, *, tune: bool) -> Compiled | None:
    """The network of a layer's kernel, compiled for its cores as inputs; None where no plan keeps within memory."""
    try:
        return compile(layer.kernel, inputs=shapes(layer.kernel), backward=True, tune=tune)
    except CompileError:
        return None


def _tensors_of(module: torch_nn.Module) -> list[Tensor]:
    """The parameters and buffers of a module, and of those inside."""
    tensors = [one for one in (*module._parameters.values(), *module._buffers.values()) if one is not None]
    for child in module._modules.values():
        if child is not None:
            tensors += _tensors_of(child)
    return tensors


def _call(base: AnyLayer, input: Tensor, weight: Tensor, *args: Any, **named: Any) -> Tensor:
    """The output of one of torch's layers with another weight."""
    match base:
        case _ if args or named:
            pass
        case torch_nn.Linear():
            return functional.linear(input, weight, base.bias)
        case torch_nn.Conv1d() | torch_nn.Conv2d() | torch_nn.Conv3d():
            output: Tensor = base._conv_forward(input, weight, base.bias)
            return output
        case torch_nn.Embedding():
            return functional.embedding(input, weight, base.padding_idx)
    return torch.func.functional_call(base, {"weight": weight}, (input, *args), named)  # type: ignore[no-any-return]
