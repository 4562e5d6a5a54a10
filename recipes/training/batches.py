"""Which examples a step has: they depend on the seed and the number of the step only."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import tnalgebra as tn
from recipes.training.settings import Training, seed_of
from recipes.training.task import Task


class _Steps(Dataset[tuple[Tensor, Tensor]]):
    """Element [s] is the share of this process of the batch of step s. It depends on the seed and s only."""

    def __init__(self, task: Task, settings: Training, share: tuple[int, int]) -> None:
        self.task, self.settings, self.share = task, settings, share

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        size, seed, (index, of) = self.task.training_size, self.settings.seed, self.share
        epoch, position = divmod(step, len(batch_sizes(size, self.settings.batch_size)))
        order = _order(size, seed_of(seed, "order", epoch))
        rows = tn.model.batch_rows(order, self.settings.batch_size)[position].tensor_split(of)[index]
        return self.task.training_batch(rows, [seed_of(seed, "example", epoch, row) for row in rows.tolist()])


@lru_cache(maxsize=2)
def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


@lru_cache(maxsize=2)
def batch_sizes(count: int, batch_size: int) -> tuple[int, ...]:
    """The number of examples in each step of an epoch."""
    return tuple(map(len, tn.model.batch_rows(torch.arange(count), batch_size)))


def step_batches(
    task: Task, settings: Training, *, first: int, share: tuple[int, int], workers: int, pinned: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """The shares of this process of all batches from step `first` on.

    Args:
        share: (i, p) for the i-th of p parts of each batch.
        workers: the number of processes that prepare batches; with 0 this process does.
        pinned: whether batches are in memory that a GPU can read by itself.
    """
    steps = range(first, settings.epochs * len(batch_sizes(task.training_size, settings.batch_size)))
    data = _Steps(task, settings, share)
    return iter(DataLoader(data, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pinned))
