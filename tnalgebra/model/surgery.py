"""Exchange layers of a model: where each one stands, what stands in the way, what goes over to the new one."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ..errors import LayerError, explain
from ..nn import KERNEL_LAYERS, TRANSPOSED, DenseLayer, layer_network, memory_format_of
from .modes import evaluating

Example: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]
"""An input; its shape; all arguments of the model's call, in a sequence, or by name."""

Shape: TypeAlias = tuple[int, ...]

CALL_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""What a model raises that is called with the wrong inputs, or whose layer has no weight."""

READERS = (
    ("torch.nn.modules.activation.MultiheadAttention", ("out_proj",)),
    ("torch.nn.modules.transformer.TransformerEncoderLayer", ("linear1", "linear2")),
    ("torchvision.models.swin_transformer.ShiftedWindowAttention", ("qkv", "proj")),
)
"""Classes that read the weight of a layer of theirs instead of calling it, and the layers' names."""

CARRIED = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)
"""Hooks of a call: the new layer is called with the same input and gives an output of the same shape."""

REFUSED = (
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
"""Hooks that know the names of the parameters."""


@dataclass(frozen=True, eq=False)
class Site:
    """A layer, and everywhere it stands.

    names: all its names, the first as `named_modules` gives it.
    holders: the modules it is a child of, with its name there.
    """

    module: DenseLayer
    names: tuple[str, ...]
    holders: tuple[tuple[nn.Module, str], ...]


def sites(model: nn.Module) -> dict[str, Site]:
    """Name -> each kernel layer once, in the order of the modules.

    Raises:
        LayerError: the model is a kernel layer itself, or is wrapped for several processes.
    """
    if isinstance(model, KERNEL_LAYERS):
        raise LayerError(
            explain("the model is one layer itself, and stands nowhere", fix="tn.nn.decomposed(layer, rewrite)")
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise LayerError(explain("the model is wrapped in DistributedDataParallel", fix="convert it, then wrap it"))
    names: dict[int, list[str]] = {}
    modules: dict[int, DenseLayer] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, KERNEL_LAYERS):
            modules[id(module)] = module
            names.setdefault(id(module), []).append(name)
    holders: dict[int, list[tuple[nn.Module, str]]] = {key: [] for key in modules}
    for holder in model.modules():
        for key, child in holder._modules.items():
            if id(child) in holders:
                holders[id(child)].append((holder, key))
    if not modules:
        raise LayerError(explain(f"{type(model).__name__} has no kernel", needed="a convolution or linear layer"))
    return {names[key][0]: Site(module, tuple(names[key]), tuple(holders[key])) for key, module in modules.items()}


def obstacles(model: nn.Module, found: Mapping[str, Site]) -> dict[str, str]:
    """Name -> why a layer cannot be exchanged, for those that cannot."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{name}.{key}".lstrip("."))
    reasons = {name: _obstacle(site, owners) for name, site in found.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _obstacle(site: Site, owners: Mapping[int, Sequence[str]]) -> str | None:
    module = site.module
    if parametrize.is_parametrized(module):
        return f"its {' and '.join(module.parametrizations)} is parametrised: remove_parametrizations first"  # type: ignore[arg-type]
    weight = module._parameters.get("weight")
    if weight is None:
        others = ", ".join(key for key in module._parameters if key != "bias")
        return f"its weight is computed from {others}: remove the weight norm, spectral norm or pruning first"
    held = sorted({*module._parameters, *module._buffers, *module._modules} - {"weight", "bias"})
    if held:
        return f"it holds {', '.join(held)}, which the new layer would not have"
    if "forward" in module.__dict__:
        return "its forward is replaced on the object itself"
    for key, parameter in module._parameters.items():
        if parameter is not None and len(owners[id(parameter)]) > 1:
            own = {f"{name}.{key}" for name in site.names}
            shared = ", ".join(owner for owner in owners[id(parameter)] if owner not in own)
            return f"its {key} is shared with {shared}"
    for holder, key in site.holders:
        kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(holder).__mro__}
        for reader, children in READERS:
            if reader in kinds and key in children:
                return f"{reader.rpartition('.')[2]} reads its weight without calling it"
    for kind in REFUSED:
        hooks = getattr(module, kind, None)
        if hooks:
            names = ", ".join(getattr(hook, "__name__", type(hook).__name__) for hook in hooks.values())
            return f"it has {kind.strip('_').replace('_', ' ')} ({names}), which know its parameters: remove them first"
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
    for kind in CARRIED:
        bare.__dict__[kind] = None if kind == "_is_full_backward_hook" else OrderedDict()
    return bare


def exchange(found: Sequence[Site], new: Sequence[nn.Module]) -> None:
    """Put the new layers where the old ones stand, with their modes and their hooks."""
    for site, module in zip(found, new, strict=True):
        module.train(site.module.training)
        for kind in CARRIED:
            # the dictionary itself goes over, so that the handles that the user holds still remove their hooks
            module.__dict__[kind] = site.module.__dict__[kind]
        _put(site, module)


def restore(found: Sequence[Site]) -> None:
    """Put the old layers back."""
    for site in found:
        _put(site, site.module)


def _put(site: Site, module: nn.Module) -> None:
    for holder, key in site.holders:
        setattr(holder, key, module)


# A run on an example ----------------------------------------------------------------------------------------


def run(model: nn.Module, example: Example) -> None:
    """One call in evaluation mode, without gradients."""
    args, kwargs = arguments(model, example)
    with evaluating(model):
        model(*args, **kwargs)


@dataclass(frozen=True)
class Call:
    """One call of a layer: its input, and its multiply-adds, padding counted as any other input."""

    shape: Shape
    memory_format: torch.memory_format
    multiply_adds: int


def calls(model: nn.Module, example: Example, found: Mapping[str, Site]) -> dict[str, list[Call]]:
    """Name -> the calls of each layer in one run of the model.

    Raises:
        LayerError: the model does not run on the example.
    """
    seen: dict[str, list[Call]] = {name: [] for name in found}

    def keeper(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], None]:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            x: Tensor = args[0] if args else kwargs["input"]
            seen[name].append(Call(tuple(x.shape), memory_format_of(x), _multiply_adds(found[name].module, x, output)))

        return keep

    handles = [
        site.module.register_forward_hook(keeper(name), with_kwargs=True, prepend=True) for name, site in found.items()
    ]
    try:
        run(model, example)
    except CALL_ERRORS as error:
        raise LayerError(
            explain("the model does not run on the example", because=error, fix="example=x, or all arguments: (x, y)")
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _multiply_adds(module: DenseLayer, x: Tensor, y: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return y.numel() * module.in_features
    if isinstance(module, TRANSPOSED):
        return x.numel() * module.weight.numel() // module.in_channels
    return y.numel() * module.weight.numel() // module.out_channels


def arguments(model: nn.Module, example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the model is called with; a shape stands for normally distributed numbers."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    given = tuple(example)
    if given and all(isinstance(size, int) and not isinstance(size, bool) for size in given):
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        if like.is_meta:
            raise LayerError(explain("the model is on the meta device, where nothing runs", fix="a device with memory"))
        generator = torch.Generator(like.device).manual_seed(0)
        return (torch.randn(given, generator=generator, dtype=like.dtype, device=like.device),), {}
    return given, {}
