"""The running statistics of batch normalisations, measured anew on a model whose layers changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import DataError, LayerError, explain
from .modes import evaluating

M = TypeVar("M", bound=nn.Module)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a model that have running statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def recalibrate_batch_norm(model: M, loader: Iterable[Tensor | Sequence[Tensor]], *, batches: int | None = None) -> M:
    """Set the running mean and variance of every batch normalisation to the average over batches of data.

    Each batch counts the same (torch's cumulative average, `momentum=None`), so a last batch that is smaller counts
    more than its share. Everything but the batch normalisations runs in evaluation mode: no dropout. Weights stay.

    Args:
        loader: batches of the model's inputs; of a sequence, such as images and labels, the first entry. They are
            brought to the model's device.
        batches: the most that are taken; by default all.

    Returns:
        The model itself, with the modes and momenta it had.

    Raises:
        LayerError: the model has no batch normalisation with running statistics.
        DataError: there are no batches, or `loader` is a single tensor.
        Any error of the model's own; the statistics are then what they were.
    """
    norms = batch_norms(model)
    if not norms:
        raise LayerError(
            explain(f"{type(model).__name__} has no batch normalisation with running statistics", fix="leave it out")
        )
    if isinstance(loader, Tensor):  # whose entries would pass for batches
        raise DataError(explain("a tensor is given for batches of inputs", fix="a list of tensors: [x]"))
    if batches is not None and batches < 1:
        raise DataError(explain(f"batches={batches}", fix="at least 1"))
    like = next((t for t in (*model.parameters(), *model.buffers())), torch.empty(0))
    momenta = [norm.momentum for norm in norms]
    before = [{key: value.clone() for key, value in norm.named_buffers(recurse=False)} for norm in norms]
    count = 0
    done = False
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for batch in islice(loader, batches):
                x = batch if isinstance(batch, Tensor) else batch[0]
                model(x.to(like.device))
                count += 1
        if not count:
            raise DataError("there are no batches to take statistics from")
        done = True
    finally:
        for norm, momentum, values in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if not done:
                for key, value in values.items():
                    norm.get_buffer(key).copy_(value)
    return model
