"""Training and evaluation modes of a model's modules, given back in the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
