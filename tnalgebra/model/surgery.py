"""Exchange layers of a model: where each one is, why it cannot be exchanged, what the new one takes over."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ..errors import LayerError
from ..nn import (
    DECOMPOSABLE,
    TRANSPOSED,
    AnyLayer,
    KernelLayer,
    MultiheadAttention,
    check_dense,
    layer_network,
    memory_format_of,
)
from .attention import attentions_kept
from .example import Example, read_example
from .modes import Hook, evaluating, hooked
from .modules import (
    Holders,
    carry_hooks,
    drop_hooks,
    holders_of_modules,
    names_of_modules,
    owners_of_parameters,
    put_module,
)

CALL_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""What a model raises that is called with the wrong inputs, or whose layer has no weight."""

_READERS = (
    ("torch.nn.modules.transformer.TransformerEncoderLayer", ("linear1", "linear2")),
    ("torchvision.models.swin_transformer.ShiftedWindowAttention", ("qkv", "proj")),
)
"""Classes that read the weight of a layer of theirs instead of calling it, and the layers' names."""

_REFUSED = (
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
"""Hooks that know the names of the parameters."""


@dataclass(frozen=True, eq=False)
class Site:
    """A layer, and every place that it has in a model; with the layers whose weight is the same parameter.

    names: all its names, the first as `named_modules` gives it.
    holders: the modules it is a child of, with its name there.
    tied: other layers with the same weight, such as the output head of a language model beside its embedding.
    """

    module: AnyLayer
    names: tuple[str, ...]
    holders: Holders
    tied: tuple[Site, ...] = ()

    @property
    def members(self) -> tuple[Site, ...]:
        """The site itself and those that are tied to it."""
        return (self, *self.tied)

    @property
    def all_names(self) -> tuple[str, ...]:
        """The names of all members."""
        return tuple(name for member in self.members for name in member.names)

    @property
    def attentions(self) -> tuple[MultiheadAttention, ...]:
        """The attentions that the layer is a projection of."""
        holders = (holder for member in self.members for holder, _ in member.holders)
        return tuple(holder for holder in holders if isinstance(holder, MultiheadAttention))


def find_sites(model: nn.Module) -> dict[str, Site]:
    """Name -> each kernel layer and each embedding once, in the order of the modules; layers with one weight together.

    Raises:
        LayerError: the model is a kernel layer itself, has none, or is wrapped for several processes.
    """
    if isinstance(model, DECOMPOSABLE):
        raise LayerError("the model is one layer itself", fix="tn.nn.decomposed(layer, rewrite)")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise LayerError("the model is wrapped in DistributedDataParallel", fix="convert it, then wrap it")
    check_dense(model)
    holders = holders_of_modules(model)
    groups: dict[object, list[Site]] = {}
    for module, names in names_of_modules(model).items():
        if isinstance(module, DECOMPOSABLE):
            weight = module._parameters.get("weight")
            groups.setdefault(module if weight is None else weight, []).append(Site(module, names, holders[module]))
    if not groups:
        needed = "a convolution, linear layer or embedding"
        raise LayerError(f"{type(model).__name__} has no kernel", needed=needed)
    return {
        first.names[0]: Site(first.module, first.names, first.holders, tuple(others))
        for first, *others in groups.values()
    }


def find_obstacles(model: nn.Module, sites: Mapping[str, Site]) -> dict[str, str]:
    """Name -> why a layer cannot be exchanged, for those that cannot. Of tied layers, the reason of any of them."""
    owners, kept = owners_of_parameters(model), attentions_kept(model)
    reasons: dict[str, str] = {}
    for name, site in sites.items():
        for member in site.members:
            reason = _own_obstacle(member.module) or _shared_with(member, site, owners) or _reader(member, kept)
            reason = reason or _weight_obstacle(member.module)
            if reason is not None and name not in reasons:
                reasons[name] = reason if member.names == site.names else f"tied to {member.names[0]}: {reason}"
    return reasons


def _own_obstacle(module: AnyLayer) -> str | None:
    """What a layer holds or does that a new one would not."""
    if parametrize.is_parametrized(module):
        return f"its {' and '.join(module.parametrizations)} is parametrised: remove_parametrizations first"  # type: ignore[arg-type]
    if module._parameters.get("weight") is None:
        others = ", ".join(key for key in module._parameters if key != "bias")
        return f"its weight is computed from {others}: remove the weight norm, spectral norm or pruning first"
    held = sorted({*module._parameters, *module._buffers, *module._modules} - {"weight", "bias"})
    if held:
        return f"it holds {', '.join(held)}, which the new layer would not have"
    if "forward" in module.__dict__:
        return "its forward is replaced on the object itself"
    for kind in _REFUSED:
        hooks = getattr(module, kind)
        if hooks:
            names = ", ".join(getattr(hook, "__name__", type(hook).__name__) for hook in hooks.values())
            return f"it has {kind.strip('_').replace('_', ' ')} ({names}), which know its parameters: remove them first"
    return None


def _shared_with(member: Site, site: Site, owners: Mapping[nn.Parameter, Sequence[str]]) -> str | None:
    """A parameter that another module holds too, unless it is the weight of tied layers."""
    for key, parameter in member.module._parameters.items():
        if parameter is not None and len(owners[parameter]) > 1:
            known = site.all_names if key == "weight" else member.names
            others = [owner for owner in owners[parameter] if owner not in {f"{name}.{key}" for name in known}]
            if others:
                return f"its {key} is shared with {', '.join(others)}"
    return None


def _reader(member: Site, kept: Mapping[nn.Module, str]) -> str | None:
    """A module that reads the layer's weight without calling it, or an attention that stays as it is."""
    for holder, key in member.holders:
        if holder in kept:
            return f"the attention that it belongs to cannot be taken apart: {kept[holder]}"
        if isinstance(getattr(holder, "self_attn", None), MultiheadAttention):
            continue  # with which torch's encoder layer calls all its layers
        kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(holder).__mro__}
        for reader, children in _READERS:
            if reader in kinds and key in children:
                return f"{reader.rpartition('.')[2]} reads its weight without calling it"
    return None


def _weight_obstacle(module: AnyLayer) -> str | None:
    """Why the weight cannot be decomposed."""
    weight = module.weight
    if not is_lazy(weight) and (weight.is_meta or not weight.is_floating_point() or weight.dtype.itemsize < 2):
        return f"its weight is {'on the meta device' if weight.is_meta else str(weight.dtype)}"
    try:
        layer_network(module)
    except LayerError as error:
        return str(error)
    return None


def without_hooks(module: AnyLayer) -> AnyLayer:
    """The same layer, parameters and all, as another object that has no hooks of a call."""
    bare = copy.copy(module)
    drop_hooks(bare)
    return bare


def tie_layers(layers: Sequence[KernelLayer]) -> None:
    """Give layers of one kernel, made for the members of a site, the same cores."""
    for other in layers[1:]:
        other.share_cores(layers[0])


def exchange_layers(sites: Sequence[Site], new: Sequence[nn.Module]) -> None:
    """Put the new layers in the places of the old ones, with their modes and their hooks."""
    for site, module in zip(sites, new, strict=True):
        module.train(site.module.training)
        carry_hooks(site.module, module)
        put_module(site.holders, module)


def restore_layers(sites: Sequence[Site]) -> None:
    """Put the old layers back."""
    for site in sites:
        put_module(site.holders, site.module)


# A run on an example ----------------------------------------------------------------------------------------


def run_example(model: nn.Module, example: Example) -> None:
    """One call in evaluation mode, without gradients."""
    args, kwargs = read_example(example, model)
    with evaluating(model):
        model(*args, **kwargs)


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: its input, and its multiply-adds, padding counted as any other input."""

    shape: tuple[int, ...]
    memory_format: torch.memory_format
    multiply_adds: int


def record_calls(model: nn.Module, example: Example, sites: Mapping[str, Site]) -> dict[str, list[LayerCall]]:
    """Name -> the calls of each layer in one run of the model, those of tied layers under their own names.

    Raises:
        LayerError: the model does not run on the example.
    """
    members = {member.names[0]: member.module for site in sites.values() for member in site.members}
    calls: dict[str, list[LayerCall]] = {name: [] for name in members}

    def keeper(name: str) -> Hook:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            x: Tensor = args[0] if args else kwargs["input"]
            adds = _multiply_adds(members[name], x, output)
            calls[name].append(LayerCall(tuple(x.shape), memory_format_of(x), adds))

        return keep

    try:
        with hooked({module: keeper(name) for name, module in members.items()}):
            run_example(model, example)
    except CALL_ERRORS as error:
        raise LayerError(
            "the model does not run on the example", because=error, fix="example=x, or all arguments: (x, y)"
        ) from error
    return calls


def _multiply_adds(module: AnyLayer, x: Tensor, y: Tensor) -> int:
    if isinstance(module, nn.Embedding):
        return 0  # a row is read, and nothing is multiplied
    if isinstance(module, nn.Linear):
        return y.numel() * module.in_features
    if isinstance(module, TRANSPOSED):
        return x.numel() * module.weight.numel() // module.in_channels
    return y.numel() * module.weight.numel() // module.out_channels
