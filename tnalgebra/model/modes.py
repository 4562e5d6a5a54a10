"""Modes and hooks of a model's modules, given back in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Hook: TypeAlias = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], None]
"""Module, positional and keyword arguments of its call, output."""


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give every module its own training or evaluation mode back in the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:  # by the attribute: `train()` of a module may do more, such as thaw
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; in the end every module has its own mode back."""
    with modes_kept(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def hooked(hooks: Mapping[nn.Module, Hook]) -> Iterator[None]:
    """Call a hook after each call of its module, before any other hook."""
    handles = [module.register_forward_hook(hook, with_kwargs=True, prepend=True) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
