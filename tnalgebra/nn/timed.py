"""Which of two ways to compute a layer is faster, measured on an input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

_TURNS = 5
"""Runs of each way, of which the fastest counts."""

_CLEARLY = 0.95
"""A way is clearly faster if it takes at most this part of the time of the other one."""


def is_clearly_faster(
    one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], input: Tensor, trained: Sequence[Tensor]
) -> bool:
    """Whether one way is clearly faster than the other: forward or, where gradients are on, forward and backward.

    Args:
        input: of both ways.
        trained: tensors of which the backward pass gives the gradients, beside the input if it requires one.
    """
    gradients = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(gradients), _without_saved_tensors_hooks():
        x = input.clone() if input.is_inference() else input.detach()
        wanted = [tensor for tensor in trained if tensor.requires_grad]
        if input.requires_grad:
            wanted.append(x.requires_grad_())

        def run(compute: Callable[[Tensor], Tensor]) -> float:
            _wait(x)
            start = perf_counter()
            output = compute(x)
            if gradients and wanted:
                torch.autograd.grad(output, wanted, torch.ones_like(output))
            _wait(x)
            return perf_counter() - start

        times = [(run(one), run(other)) for _ in range(1 + _TURNS)][1:]
    return min(first for first, _ in times) < _CLEARLY * min(second for _, second in times)


@contextmanager
def _without_saved_tensors_hooks() -> Iterator[None]:
    """Keep what is saved for a backward pass from the caller's hooks, such as those of checkpointing."""
    autograd: Any = torch._C._autograd
    held = []
    while (hooks := autograd._top_saved_tensors_default_hooks(False)) is not None:
        held.append(hooks)
        autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(held):
            autograd._push_saved_tensors_default_hooks(pack, unpack)


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
