"""Where the modules and parameters of a model are: all their names, and the modules that hold them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import LayerError
from ..nn import DECOMPOSABLE, KernelLayer

_M = TypeVar("_M", bound=nn.Module)

_CARRIED = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)
"""Hooks of a call: a new layer is called with the same input and gives an output of the same shape."""

Holders = tuple[tuple[nn.Module, str], ...]
"""The modules that a module is a child of, with its name there."""


def names_of_modules(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Each module once, in the order of the modules -> all its names."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return {module: tuple(of_module) for module, of_module in names.items()}


def holders_of_modules(model: nn.Module) -> dict[nn.Module, Holders]:
    """Each module but the model itself -> the modules that hold it."""
    holders: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for holder in model.modules():
        for key, child in holder._modules.items():
            if child is not None:
                holders.setdefault(child, []).append((holder, key))
    return {module: tuple(places) for module, places in holders.items()}


def owners_of_parameters(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Parameter -> all its names, of a module with several names only those under its first."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append(f"{name}.{key}".lstrip("."))
    return owners


def check_initialised(model: object) -> None:
    """Raise LayerError if it is not a model, or a parameter has no value yet."""
    if not isinstance(model, nn.Module):
        raise LayerError(f"a {type(model).__name__} is given where a model is needed", fix="a torch.nn.Module")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise LayerError(f"{name!r} has no value yet", fix="run the model once on an input")


def copy_model(model: _M, shared: Iterable[Tensor] = ()) -> _M:
    """A copy of a model, which shares some tensors with it.

    Tensors that were computed from parameters, as the weights under a weight norm or pruning, which compute them again
    in each call, are copied as values.

    Raises:
        LayerError: the model holds something that cannot be copied.
    """
    memo: dict[int, object] = {id(tensor): tensor for tensor in shared}
    for module in model.modules():
        for value in chain(vars(module).values(), module._buffers.values()):
            if isinstance(value, Tensor) and not value.is_leaf and id(value) not in memo:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        fact = f"the {type(model).__name__} cannot be copied"
        raise LayerError(fact, because=str(error), fix="a model that copy.deepcopy takes; or inplace=True") from error


def other_kernels(model: nn.Module) -> dict[str, str]:
    """Name -> what a module is that has a kernel, but is not of a class that can be decomposed."""
    kinds: dict[str, str] = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, (*DECOMPOSABLE, KernelLayer)):
            inside.append(f"{name}.")  # a parametrisation, or code of a decomposed layer
            continue
        if name.startswith(tuple(inside)):
            continue
        kind = type(module).__name__
        weights = [key for key, one in module._parameters.items() if key.startswith("weight") and _has_axes(one)]
        if isinstance(module, torch.jit.ScriptModule):
            if any(key.startswith("weight") and _has_axes(one) for key, one in module.named_parameters(recurse=False)):
                kinds[name] = f"of TorchScript ({module.original_name}): convert the model before torch.jit"
        elif ".quantized" in type(module).__module__ and hasattr(module, "weight"):
            kinds[name] = f"a quantised {kind}: convert the model before it is quantised"
        elif weights:
            kinds[name] = f"of the class {kind}, which has no decomposed form: a layer of torch's in its place"
    return kinds


def _has_axes(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and not is_lazy(parameter) and parameter.ndim > 1


def put_module(holders: Holders, module: nn.Module) -> None:
    """Make a module the child of its holders."""
    for holder, key in holders:
        setattr(holder, key, module)


def carry_hooks(old: nn.Module, new: nn.Module) -> None:
    """Give a new module the hooks of the old one too; the handles that the user holds still remove them."""
    for kind in _CARRIED:
        hooks, own = old.__dict__[kind], new.__dict__[kind]
        if hooks and own and hooks is not own and isinstance(hooks, dict):
            hooks.update(own)
        if hooks or not own:
            new.__dict__[kind] = hooks


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of a call."""
    return any(module.__dict__[kind] for kind in _CARRIED)


def drop_hooks(module: nn.Module) -> None:
    """Give a module empty hooks; those of a module that it was copied from stay."""
    for kind in _CARRIED:
        module.__dict__[kind] = None if kind == "_is_full_backward_hook" else OrderedDict()
