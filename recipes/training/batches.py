"""Which examples a step has: a function of the seed and the step's number, whatever happened before."""

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
    """Element [s] is this process's share of the batch of step s, a function of the seed and s alone."""

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
    """Numbers of examples in the steps of an epoch."""
    return tuple(map(len, tn.model.batch_rows(torch.arange(count), batch_size)))


def step_batches(
    task: Task, settings: Training, *, first: int, share: tuple[int, int], workers: int, pinned: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's shares of all batches from step `first` on.

    Args:
        share: (i, p): the i-th of p parts of each batch.
        workers: processes that prepare them; 0: this one.
        pinned: in memory from which a GPU can fetch by itself.
    """
    steps = range(first, settings.epochs * len(batch_sizes(task.training_size, settings.batch_size)))
    data = _Steps(task, settings, share)
    return iter(DataLoader(data, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pinned))
