"""Exchange layers of a model: where each one is, why it cannot be exchanged, what the new one takes over."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ..errors import LayerError, explain
from ..nn import KERNEL_LAYERS, TRANSPOSED, DenseLayer, layer_network, memory_format_of
from .example import Example, read_example
from .modes import Hook, evaluating, hooked

CALL_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""What a model raises that is called with the wrong inputs, or whose layer has no weight."""

_READERS = (
    ("torch.nn.modules.activation.MultiheadAttention", ("out_proj",)),
    ("torch.nn.modules.transformer.TransformerEncoderLayer", ("linear1", "linear2")),
    ("torchvision.models.swin_transformer.ShiftedWindowAttention", ("qkv", "proj")),
)
"""Classes that read the weight of a layer of theirs instead of calling it, and the layers' names."""

_CARRIED = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)
"""Hooks of a call: the new layer is called with the same input and gives an output of the same shape."""

_REFUSED = (
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
"""Hooks that know the names of the parameters."""


@dataclass(frozen=True, eq=False)
class Site:
    """A layer, and every place that it has in a model.

    names: all its names, the first as `named_modules` gives it.
    holders: the modules it is a child of, with its name there.
    """

    module: DenseLayer
    names: tuple[str, ...]
    holders: tuple[tuple[nn.Module, str], ...]


def names_of_modules(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Each module once, in the order of the modules -> all its names."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return {module: tuple(of_module) for module, of_module in names.items()}


def find_sites(model: nn.Module) -> dict[str, Site]:
    """Name -> each kernel layer once, in the order of the modules.

    Raises:
        LayerError: the model is a kernel layer itself, has none, or is wrapped for several processes.
    """
    if isinstance(model, KERNEL_LAYERS):
        raise LayerError(explain("the model is a single layer", fix="tn.nn.decomposed(layer, rewrite, size)"))
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise LayerError(explain("the model is wrapped in DistributedDataParallel", fix="convert it, then wrap it"))
    holders: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for holder in model.modules():
        for key, child in holder._modules.items():
            if child is not None:
                holders.setdefault(child, []).append((holder, key))
    sites = {
        names[0]: Site(module, names, tuple(holders[module]))
        for module, names in names_of_modules(model).items()
        if isinstance(module, KERNEL_LAYERS)
    }
    if not sites:
        raise LayerError(explain(f"{type(model).__name__} has no kernel", needed="a convolution or linear layer"))
    return sites


def check_initialised(model: nn.Module) -> None:
    """Raise LayerError if a parameter has no value yet."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise LayerError(explain(f"{name!r} has no value yet", fix="run the model once on an input"))


def owners_of_parameters(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Parameter -> all its names, of a module with several names only those under its first."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append(f"{name}.{key}".lstrip("."))
    return owners


def find_obstacles(model: nn.Module, sites: Mapping[str, Site]) -> dict[str, str]:
    """Name -> why a layer cannot be exchanged, for those that cannot."""
    owners = owners_of_parameters(model)
    reasons = {
        name: _own_obstacle(site.module) or _shared_with(site, owners) or _reader(site) or _weight_obstacle(site.module)
        for name, site in sites.items()
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _own_obstacle(module: DenseLayer) -> str | None:
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


def _shared_with(site: Site, owners: Mapping[nn.Parameter, Sequence[str]]) -> str | None:
    for key, parameter in site.module._parameters.items():
        if parameter is not None and len(owners[parameter]) > 1:
            own = {f"{name}.{key}" for name in site.names}
            return f"its {key} is shared with {', '.join(one for one in owners[parameter] if one not in own)}"
    return None


def _reader(site: Site) -> str | None:
    for holder, key in site.holders:
        kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(holder).__mro__}
        for reader, children in _READERS:
            if reader in kinds and key in children:
                return f"{reader.rpartition('.')[2]} reads its weight without calling it"
    return None


def _weight_obstacle(module: DenseLayer) -> str | None:
    """Why the weight cannot be decomposed."""
    weight = module.weight
    if not is_lazy(weight) and (weight.is_meta or not weight.is_floating_point() or weight.dtype.itemsize < 2):
        return f"its weight is {'on the meta device' if weight.is_meta else str(weight.dtype)}"
    try:
        layer_network(module)
    except LayerError as error:
        return str(error)
    return None


def without_hooks(module: DenseLayer) -> DenseLayer:
    """The same layer, parameters and all, as an object of its own that has no hooks of a call."""
    bare = copy.copy(module)
    for kind in _CARRIED:
        bare.__dict__[kind] = None if kind == "_is_full_backward_hook" else OrderedDict()
    return bare


def exchange_layers(sites: Sequence[Site], new: Sequence[nn.Module]) -> None:
    """Put the new layers in the places of the old ones, with their modes and their hooks."""
    for site, module in zip(sites, new, strict=True):
        module.train(site.module.training)
        for kind in _CARRIED:
            # the dictionary itself goes over, so that the handles that the user holds still remove their hooks
            module.__dict__[kind] = site.module.__dict__[kind]
        _put(site, module)


def restore_layers(sites: Sequence[Site]) -> None:
    """Put the old layers back."""
    for site in sites:
        _put(site, site.module)


def _put(site: Site, module: nn.Module) -> None:
    for holder, key in site.holders:
        setattr(holder, key, module)


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
    """Name -> the calls of each layer in one run of the model.

    Raises:
        LayerError: the model does not run on the example.
    """
    calls: dict[str, list[LayerCall]] = {name: [] for name in sites}

    def keeper(name: str) -> Hook:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            x: Tensor = args[0] if args else kwargs["input"]
            adds = _multiply_adds(sites[name].module, x, output)
            calls[name].append(LayerCall(tuple(x.shape), memory_format_of(x), adds))

        return keep

    try:
        with hooked({site.module: keeper(name) for name, site in sites.items()}):
            run_example(model, example)
    except CALL_ERRORS as error:
        raise LayerError(
            explain("the model does not run on the example", because=error, fix="example=x, or all arguments: (x, y)")
        ) from error
    return calls


def _multiply_adds(module: DenseLayer, x: Tensor, y: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return y.numel() * module.in_features
    if isinstance(module, TRANSPOSED):
        return x.numel() * module.weight.numel() // module.in_channels
    return y.numel() * module.weight.numel() // module.out_channels
