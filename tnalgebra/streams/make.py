"""`stream`: its arguments are checked here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor, nn

from ..compiler import Compiled, check_names
from ..errors import StreamError
from ..networks import Network, read_network, size_of, tensors_of, with_sizes
from ..nn import KernelLayer
from ..tensors import bind, check_mapping
from .flow import GraphBuilder
from .links import Weights
from .models import ModelFlow
from .stages import chain_of_network
from .stream import Stream
from .traced import trace_model
from .windows import input_of, network_and_weights

StreamPadding: TypeAlias = Literal["exact", "streaming"]
"""Whether padding on the right behind another window is refused, or left out until a clip ends."""

CLIP = 16
"""Frames of the clip with which a stream is compared where no example says another number."""

_AXES = {"t": 2, "x": 2, "y": 3, "z": 4}
"""The axes of a clip by name: time is the first axis of positions, and layers call these axes x, y and z."""


def stream(
    target: Network | str | nn.Module,
    along: str | int = "t",
    *,
    example: Sequence[int] | Tensor | None = None,
    padding: StreamPadding = "exact",
    values: Mapping[str, Any] | None = None,
    constants: Collection[str] = (),
    bias: str | None = None,
    tune: bool = True,
) -> Stream:
    """Make the stream of a network, layer or model: what takes one frame at a step, and has past frames as its state.

        stream = tn.stream(model.eval(), along="t", example=(1, 3, 16, 112, 112))
        y = stream.step(frame)                       # of shape (1, 3, 112, 112); None before the first output

    Each window along time becomes a state of dilation * (size - 1) past frames, and each convolution one product a
    step. What a past frame was multiplied with before its window, as by the first core of a decomposed kernel, is not
    computed again. Outputs are those of the network for the whole clip: at once where windows are padded on the left
    alone (causal), else after `delay` steps. With strides along time they come at every s-th step.

    Args:
        target: a network or its text; a layer of torch's or of ours, or what `tn.compile` returns; or a model that
            torch.fx can trace, made of windows along time (convolutions, poolings, paddings, slices) and of steps that
            take single frames, which are found by trying them on random numbers: activations, batch normalisation in
            evaluation mode, sums and concatenations of branches (the earlier ones are delayed), linear heads.
        along: the label of time in a network. In a layer or model an axis of its input, or "t" for the first axis of
            positions, as in (n, channels, t, h, w); "x", "y" and "z" are the axes of positions in their order.
        example: shape of a clip, or one. The stream takes other sizes too; by default they are guessed for a layer or
            model, and those of the network for a network. The number of frames is only compared with, in `print`.
        padding: "exact" refuses zeros on the right behind another window, where the last frames of a clip would differ
            from those of a longer one. With "streaming" they are left out while frames come, as continual networks do,
            and are applied by `flush`, where the clip ends.
        values, constants, bias: as of `compile`, for a network.
        tune: whether the plans of products are measured.

    Raises:
        StreamError: time is pooled as a whole, reshaped, or mixed in another way than by windows; a window is
            transposed or folds its padding; branches come at different rates; a module is in training mode; padding, as
            above.
        LayerError: torch.fx cannot trace the model; a weight is computed from other parameters.
        SizeError, ValuesError, CompileError: the network and its values do not fit.

    Source: Hedegaard, Iosifidis, "Continual 3D convolutional neural networks for real-time processing of videos", 2022.

    Example:
        >>> kernel = torch.randn(8, 4, 3)
        >>> smooth = tn.stream("X[n:1 c:4 t] Conv[t s k | padding=2:0] K[o c k] -> [n o s]", values={"K": kernel})
        >>> smooth.step(torch.randn(1, 4)).shape, smooth.delay, smooth.state_shapes
        (torch.Size([1, 8]), 0, ((1, 4, 2),))
    """
    if padding not in get_args(StreamPadding):
        raise StreamError(f"padding is {padding!r}", fix=" or ".join(map(repr, get_args(StreamPadding))))
    shape = None if example is None else _shape_of(example)
    known: object = target
    if not isinstance(known, Network | str | nn.Module):
        fact = f"an object of the type {type(known).__name__} cannot be a stream"
        raise StreamError(fact, fix="a network, its text, a layer or a model")
    builder = GraphBuilder(nn.Module(), padded=padding == "streaming")
    if isinstance(target, nn.Module):
        if values is not None or constants or bias:
            raise StreamError("values are given for a module, which has its own", fix="a network")
        if not isinstance(target, Compiled) or isinstance(target, KernelLayer):
            return _stream_of_model(target, _axis(along), shape, builder, tune=tune)
        network, weights = network_and_weights(target, tune=tune)
        if shape is None:
            labels = input_of(network, weights).labels
            shape = tuple(target.network.sizes[label] for label in labels)
    else:
        network = read_network(target)
        values = {} if values is None else values
        check_mapping(values)
        check_names("constants", constants)
        unknown = [name for name in constants if name not in values]
        if unknown:
            raise StreamError(f"the constant {unknown[0]!r} has no value", values=" ".join(values) or "none")
        weights = Weights(values, constants, bias, tune)
    return _stream_of_network(network, str(along), weights, builder, shape=shape)


def _shape_of(example: object) -> tuple[int, ...]:
    """The shape of a clip. Raises StreamError if it is not one."""
    shape = example.shape if isinstance(example, Tensor) else example
    if not isinstance(shape, Sequence) or not all(isinstance(size, int) and size > 0 for size in shape):
        fact = f"the example is {shape if isinstance(shape, Sequence) else type(shape).__name__}"
        raise StreamError(fact, fix="a clip, or its shape in positive integers, such as (1, 3, 16, 112, 112)")
    return tuple(shape)


def _axis(along: str | int) -> int:
    """The axis of time of a clip."""
    if isinstance(along, int) and not isinstance(along, bool):
        return along
    if not isinstance(along, str) or along not in _AXES:
        fix = f"an axis of the input, such as 2, or one of {', '.join(_AXES)}"
        raise StreamError(f"along is {along!r}, which is not an axis of a layer or model", fix=fix)
    return _AXES[along]


def _stream_of_model(
    model: nn.Module, axis: int, shape: Sequence[int] | None, builder: GraphBuilder, *, tune: bool
) -> Stream:
    whole = type(model).__module__.startswith("torch.nn") and not isinstance(model, nn.Sequential)
    if whole or isinstance(model, KernelLayer):
        model = nn.Sequential(model).train(model.training)  # torch.fx traces what holds a layer
    builder.root.add_module("model", model)
    traced = trace_model(model, axis, shape)
    flow = ModelFlow(traced, builder, tune).build()
    clip = CLIP if shape is None else shape[traced.axis]
    return Stream(flow, traced.shape, clip, builder.postponed)


def _stream_of_network(
    network: Network, time: str, weights: Weights, builder: GraphBuilder, *, shape: Sequence[int] | None
) -> Stream:
    network, _ = bind(network, weights.of_tensors)
    source = input_of(network, weights)
    if shape is not None:
        if len(shape) != len(source.labels):
            fact = f"the example has {len(shape)} axes, the input {source.name!r} has {len(source.labels)}"
            raise StreamError(fact, example=tuple(shape), network=network)
        network = with_sizes(network, dict(zip(source.labels, shape, strict=True)))
    labels = next((x.labels for term in network.terms if time in (x := tensors_of(term)[source.name]).labels), None)
    if labels is None:
        raise StreamError(f"the input {source.name!r} does not have the label {time!r}", network=network)
    axis = labels.index(time)
    links, _ = chain_of_network(network, source.name, axis, weights)
    node = builder.follow(builder.start(axis), links, name="a window")
    frame = [size_of(network, label) for place, label in enumerate(source.labels) if place != axis]
    return Stream(builder.finish(node), frame, network.sizes.get(time, CLIP), builder.postponed)
