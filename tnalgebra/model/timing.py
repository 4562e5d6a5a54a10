"""Seconds of forward passes: of models and layers that take turns, and of the layers inside of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from .example import Example, read_example
from .modes import evaluating
from .surgery import LayerCall

ROUNDS, FEWEST, SECONDS = 15, 5, 1.0
"""Turns of models that are timed, the fewest of them, and the seconds after which no further turn begins."""

LAYER_ROUNDS, LAYER_SECONDS = 25, 0.03
"""The same for the layers of a model, whose passes are short."""


def time_in_turns(
    contenders: Sequence[Callable[[], object]], device: torch.device, *, rounds: int = ROUNDS, seconds: float = SECONDS
) -> list[list[float]]:
    """Seconds of each contender in each turn; they alternate, so that what slows the machine slows all of them.

    Args:
        contenders: what is timed, called without arguments.
        device: on CUDA, the time ends when the device has done its work.
        rounds: the most turns.
        seconds: after which no further turn begins, if there were `FEWEST` already.
    """

    def run(contender: Callable[[], object]) -> float:
        _wait(device)
        start = perf_counter()
        contender()
        _wait(device)
        return perf_counter() - start

    for contender in contenders:  # the first runs are slower
        run(contender)
        run(contender)
    times: list[list[float]] = [[] for _ in contenders]
    begun = perf_counter()
    for turn in range(rounds):
        if turn >= FEWEST and perf_counter() - begun > seconds:
            break
        for each, contender in zip(times, contenders, strict=True):
            each.append(run(contender))
    return times


def time_models(*models: tuple[nn.Module, Example]) -> list[float]:
    """Least seconds of a forward pass of each model on its example, in evaluation mode, of turns that alternate."""
    device = _device_of(models[0][0])
    calls: list[Callable[[], object]] = []
    for model, example in models:
        args, kwargs = read_example(example, model)
        calls.append(partial(model, *args, **kwargs))
    with evaluating(nn.ModuleList(model for model, _ in models)):
        return [min(times) for times in time_in_turns(calls, device)]


def time_layers(model: nn.Module, layers: Mapping[str, nn.Module], example: Example) -> tuple[float, dict[str, float]]:
    """Seconds of a forward pass of a model on the example, and of all calls of some of its layers in it.

    Returns:
        The least of several passes, which other work of the machine disturbs least; for each layer its least of them.
    """
    device = _device_of(model)
    begun: dict[str, float] = {}
    spent = dict.fromkeys(layers, 0.0)
    passes: dict[str, list[float]] = {name: [] for name in layers}

    def before(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            _wait(device)
            begun[name] = perf_counter()

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            _wait(device)
            spent[name] += perf_counter() - begun[name]

        return hook

    args, kwargs = read_example(example, model)

    def run() -> None:
        spent.update(dict.fromkeys(spent, 0.0))
        model(*args, **kwargs)
        for name, seconds in spent.items():
            passes[name].append(seconds)

    with evaluating(model):
        handles = [layer.register_forward_pre_hook(before(name)) for name, layer in layers.items()]
        handles += [layer.register_forward_hook(after(name)) for name, layer in layers.items()]
        try:
            (times,) = time_in_turns([run], device)
        finally:
            for handle in handles:
                handle.remove()
    return min(times), {name: min(each) for name, each in passes.items()}


def time_ratio(layer: nn.Module, reference: nn.Module, calls: Sequence[LayerCall]) -> float:
    """Seconds of a layer over those of another one in its place, for the inputs that it gets.

    It is the ratio of the fastest turns.
    """
    weight = reference.get_parameter("weight")
    above = below = 0.0
    for call in calls:
        x: Tensor
        if isinstance(reference, nn.Embedding):
            x = torch.zeros(call.shape, dtype=torch.long, device=weight.device)
        else:
            x = torch.randn(call.shape, dtype=weight.dtype, device=weight.device)
            x = x.contiguous(memory_format=call.memory_format)
        with evaluating(nn.ModuleList([layer, reference])):
            ours, theirs = time_in_turns(
                [partial(layer, x), partial(reference, x)],
                weight.device,
                rounds=LAYER_ROUNDS,
                seconds=LAYER_SECONDS,
            )
        above, below = above + min(ours), below + min(theirs)
    return above / below if below else math.inf


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_of(model: nn.Module) -> torch.device:
    parameter: Any = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
