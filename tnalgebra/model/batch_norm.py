"""Batch normalisations after a conversion: measure their running statistics again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import DataError, LayerError, ValuesError
from .example import Batch, inputs_of
from .modes import evaluating

_M = TypeVar("_M", bound=nn.Module)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a model that have running statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def recalibrate_batch_norm(model: _M, loader: Iterable[Batch], *, batches: int | None = None) -> _M:
    """Set the running mean and variance of every batch normalisation to the average over batches of data.

    A converted layer gives other outputs than the dense one, and the statistics that follow it no longer fit; measuring
    them again often restores most of the accuracy. Each batch counts the same (torch's cumulative average,
    `momentum=None`), so that a smaller last batch counts more than its share. Everything except the batch
    normalisations runs in evaluation mode, without dropout. Weights do not change.

    Args:
        model: a network with batch normalisations.
        loader: batches of the model's inputs, as `input_metrics` takes them, such as (images, labels). They are moved
            to the model's device.
        batches: the largest number of batches that are used; all by default.

    Returns:
        The model itself, with the modes and momenta that it had.

    Raises:
        LayerError: the model has no batch normalisation with running statistics.
        DataError: the loader has no batches, or is a single tensor.
        ValuesError: a statistic is not finite; they are then what they were.
        Exception: any error that the model raises; the statistics are then what they were.

    Example:
        >>> tn.recalibrate_batch_norm(model, loader, batches=20)
    """
    norms = batch_norms(model)
    if not norms:
        fact = f"{type(model).__name__} has no batch normalisation with running statistics"
        raise LayerError(fact, fix="leave it out")
    if batches is not None and batches < 1:
        raise DataError(f"batches={batches}", fix="at least 1")
    device = next(tensor.device for tensor in (*model.parameters(), *model.buffers()))
    momenta = [norm.momentum for norm in norms]
    before = [{key: value.clone() for key, value in norm.named_buffers(recurse=False)} for norm in norms]
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for x in islice(inputs_of(loader, model), batches):
                x = x.to(device)
                model(*x.args, **x.kwargs)
        _check_finite(model, norms)
    except BaseException:
        for norm, values in zip(norms, before, strict=True):
            for key, value in values.items():
                norm.get_buffer(key).copy_(value)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model


def _check_finite(model: nn.Module, norms: Sequence[_BatchNorm]) -> None:
    """Raise ValuesError for a running mean or variance that is not finite."""
    names = {module: name for name, module in model.named_modules()}
    for norm in norms:
        for key in ("running_mean", "running_var"):
            if not norm.get_buffer(key).isfinite().all():
                raise ValuesError(f"{key} of {names[norm]!r} is not finite on these batches", fix="finite inputs")
