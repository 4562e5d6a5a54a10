"""A model traced by torch.fx, with the shapes of its values for clips of two lengths."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..errors import StreamError, TnalgebraError
from ..model import trace_forward
from ..nn import KernelLayer
from .windows import window_of_function

POSITIONS = (32, 64, 112, 224, 128, 16, 8)
"""Positions along the axes other than time that are tried where no example says them."""

_WITH_POSITIONS = (
    (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d, nn.ConstantPad1d, nn.ConvTranspose1d),
    (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.ConstantPad2d, nn.ConvTranspose2d),
    (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, nn.AvgPool3d, nn.ConstantPad3d, nn.ConvTranspose3d),
)
"""Modules by the number of their axes of positions."""


@dataclass
class Traced:
    """A model's graph, and what its values are for clips of two lengths.

    constants: nodes of tensors that the forward pass makes itself.
    lengths: the numbers of frames of the clips, the second one larger.
    values: node -> its values for both, without elements.
    """

    model: nn.Module
    graph: fx.Graph
    constants: Mapping[fx.Node, Tensor]
    axis: int
    lengths: tuple[int, int]
    values: dict[fx.Node, tuple[Any, Any]]
    shape: tuple[int, ...]
    """Of a frame."""


def check_modes(model: nn.Module) -> None:
    """Raise StreamError if a module of the model mixes or drops values at random, as in training."""
    for name, module in model.named_modules():
        if module.training and isinstance(module, _BatchNorm | _DropoutNd):
            fact = f"{name or 'the model'} ({type(module).__name__}) is in training mode"
            raise StreamError(fact, because="it depends on all frames, or on chance", fix="model.eval()")


def trace_model(model: nn.Module, axis: int, example: Sequence[int] | None) -> Traced:
    """Trace a model, and compute its shapes for clips of two lengths.

    Args:
        axis: the axis of time; it may be negative.
        example: shape of a clip; by default it is guessed from the layers.

    Raises:
        StreamError: no shape fits.
        LayerError: torch.fx cannot trace the model.
    """
    check_modes(model)
    graph, constants = trace_forward(model)
    others = [node.target for node in graph.nodes if node.op == "placeholder" and not node.args][1:]
    if others:
        raise StreamError(f"{type(model).__name__} has another input {others[0]!r} besides the clip", fix="one input")
    shortest, stride = _lengths(model, graph)
    tried: list[Exception] = []
    shapes = [tuple(example)] if example is not None else [*_guesses(model)]
    for shape, times in product(shapes, (1, 8)):  # longer clips too, for windows of weights that are computed
        place = len(shape) + axis if axis < 0 else axis
        if not 0 <= place < len(shape):
            raise StreamError(f"a clip of shape {shape} does not have axis {axis}", fix="an axis of the input")
        if example is not None:  # the model takes clips of this length, whatever its functions are
            shortest = max(shortest, stride * -(-shape[place] // stride))
        lengths = (times * shortest, times * shortest + stride)
        frame = (*shape[:place], *shape[place + 1 :])
        try:
            both = [_shapes(model, graph, constants, (*frame[:place], length, *frame[place:])) for length in lengths]
        except TnalgebraError:
            raise
        except Exception as error:  # the model's own code, which may raise anything for another shape
            tried.append(error)
            continue
        values = {node: (both[0][node], both[1][node]) for node in graph.nodes}
        return Traced(model, graph, constants, place, lengths, values, frame)
    because = f"{type(tried[-1]).__name__}: {str(tried[-1]).partition(chr(10))[0]}" if tried else None
    fix = "example=(n, channels, frames, ...), the shape of a clip; a model that takes clips of any length"
    raise StreamError(f"{type(model).__name__} does not take clips of {shortest} frames", because=because, fix=fix)


def _lengths(model: nn.Module, graph: fx.Graph) -> tuple[int, int]:
    """A number of frames that is enough for the windows that are known, and a multiple of all strides."""
    windows = [{name: getattr(module, name, 1) for name in _NUMBERS} for module in model.modules()]
    calls = [node for node in graph.nodes if node.op == "call_function"]
    windows += [window_of_function(node.target, node.args, dict(node.kwargs)) for node in calls]
    reach, stride = 1, 1
    for window in windows:
        size, dilation, step = (_largest(window.get(name, 1)) for name in _NUMBERS)
        reach += dilation * (size - 1)
        stride *= step or 1
    return stride * (reach + 4), stride


_NUMBERS = ("kernel_size", "dilation", "stride")
"""What the windows of a layer are called."""


def _largest(value: object) -> int:
    entries = value if isinstance(value, tuple | list) else (value,)
    return max((entry for entry in entries if isinstance(entry, int) and not isinstance(entry, bool)), default=1)


def _guesses(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes that a clip may have, by the first layer with positions."""
    for module in model.modules():
        for axes, kinds in enumerate(_WITH_POSITIONS, start=1):
            layer = isinstance(module, KernelLayer) and module.dense_class in kinds
            if layer or isinstance(module, kinds):
                channels = getattr(module, "in_channels", getattr(module, "num_features", 3))
                yield from ((1, channels, *[positions] * axes) for positions in POSITIONS)
                return
    raise StreamError(
        f"{type(model).__name__} has no layer that shows the shape of a clip", fix="example=(n, channels, frames, ...)"
    )


def _shapes(
    model: nn.Module, graph: fx.Graph, constants: Mapping[fx.Node, Tensor], shape: Sequence[int]
) -> dict[fx.Node, Any]:
    """The values of all nodes for a clip of this shape, without elements."""
    like = next((one for one in model.parameters() if one.is_floating_point()), torch.empty(0))
    with _without_log(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        reader = _Reader(model, graph, constants)
        reader.run(torch.empty(tuple(shape), dtype=like.dtype, device=like.device))
    return reader.values


@contextmanager
def _without_log() -> Iterator[None]:
    """Without the messages that torch writes where shapes do not fit."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    disabled = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = disabled


class _Reader(fx.Interpreter):
    def __init__(self, model: nn.Module, graph: fx.Graph, constants: Mapping[fx.Node, Tensor]) -> None:
        super().__init__(model, garbage_collect_values=False, graph=graph)
        self.extra_traceback = False
        self.constants = constants
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = self.constants[n] if n in self.constants else super().run_node(n)
        return self.values[n]
