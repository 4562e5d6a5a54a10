"""Why layers of a model cannot be exchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import LayerError
from ..nn import Adapted, AnyLayer, MultiheadAttention, computed_tensor, layer_class, layer_network
from .attention import attentions_kept
from .modules import owners_of_parameters
from .surgery import Site

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
    computed = computed_tensor(module)
    if computed is not None:
        return computed
    if module._parameters.get("weight") is None:
        return "its weight is not a parameter: layer.weight = nn.Parameter(...) first"
    held = sorted({*module._parameters, *module._buffers, *module._modules} - {"weight", "bias"})
    if held:
        return f"it holds {', '.join(held)}, which the new layer would not have"
    if "_hf_hook" in module.__dict__ and "forward" in module.__dict__:
        remedy = "accelerate.hooks.remove_hook_from_module(model, recurse=True) first, and dispatch it afterwards"
        return f"accelerate loads and unloads its parameters: {remedy}"
    if {"forward", "_conv_forward"} & module.__dict__.keys():
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
        if isinstance(holder, Adapted):
            return "it has adapters, which need its weight: tn.adapters(model).remove() or .to_dense() first"
        if holder in kept:
            return f"the attention that it belongs to cannot be taken apart: {kept[holder]}"
        if isinstance(getattr(holder, "self_attn", None), MultiheadAttention):
            continue  # with which torch's encoder layer calls all its layers
        kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(holder).__mro__}
        if "torch._dynamo.eval_frame.OptimizedModule" in kinds:
            return "torch.compile calls it as it was when it was compiled: convert the model, then compile it"
        for reader, children in _READERS:
            if reader in kinds and key in children:
                return f"{reader.rpartition('.')[2]} reads its weight without calling it"
    return None


def _weight_obstacle(module: AnyLayer) -> str | None:
    """Why the weight cannot be decomposed."""
    weight = module.weight
    value: object = weight
    wrapped = isinstance(value, FakeTensor) or is_traceable_wrapper_subclass(value)
    if wrapped:
        return f"its weight is a {type(weight).__name__}, without elements of its own: a plain tensor first"
    if not is_lazy(weight) and weight.is_meta:
        return "its weight is on the meta device: load its elements first, by model.to_empty and load_state_dict"
    if not is_lazy(weight) and (not weight.is_floating_point() or weight.dtype.itemsize < 2):
        return f"its weight is {weight.dtype}"
    hooks = (weight._backward_hooks, getattr(weight, "_post_accumulate_grad_hooks", None))
    if any(hooks):
        return "its weight has hooks of its gradient, which the cores would not have: remove them first"
    try:
        layer_network(module)
        layer_class(module).own_attributes(module)
    except LayerError as error:
        return str(error)
    return None
