"""Which windows along time the modules and functions of torch are, and what is computed before and after them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..compiler import Compiled
from ..errors import StreamError
from ..networks import (
    Conv,
    NamedTensor,
    Network,
    all_nodes,
    carriers,
    sum_of_products,
    tensors_of,
    with_sizes,
)
from ..nn import CONVOLUTIONS, TRANSPOSED, layer_network, own_weight
from ..tensors import bind
from .links import Call, Link, Weights, Windowed
from .stages import chain_of_network
from .timing import TimeWindow

MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)

_POOLINGS: dict[Callable[..., Any], type[nn.Module]] = {
    **dict(zip((functional.max_pool1d, functional.max_pool2d, functional.max_pool3d), MAXIMA, strict=True)),
    **dict(zip((functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d), AVERAGES, strict=True)),
}
"""Functions that are called with the arguments of a module."""

_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_CONVOLVED = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
"""The names of the arguments of a convolution, in their order."""

_PADDINGS = (
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
)


Links: TypeAlias = Sequence[Link]


def links_of_module(module: nn.Module, x: Tensor, axis: int, *, tune: bool) -> tuple[Links, int] | None:
    """The steps of a module along an axis of its input.

    Args:
        x: a tensor with the sizes of the input, of which that of time does not matter.
        axis: the axis of time.
        tune: whether the plans of products are measured.

    Returns:
        The steps, none if it takes single frames, and the axis of time of the output; None if nothing is known.

    Raises:
        StreamError: it has a window along time that cannot be a stream.
    """
    if isinstance(module, CONVOLUTIONS) and module._parameters.get("weight") is None:
        return _links_of_computed(module, x, axis), axis
    if isinstance(module, (Compiled, *CONVOLUTIONS, *TRANSPOSED)):
        return _links_of_network(module, x, axis, tune=tune)
    if isinstance(module, (*MAXIMA, *AVERAGES)):
        return _links_of_pooling(module, x, axis), axis
    if isinstance(module, _PADDINGS):
        kind = type(module).__name__.partition("Pad")[0].lower()
        mode = "constant" if kind in ("constant", "zero") else kind
        value = getattr(module, "value", 0.0)
        return _links_of_padding(x, axis, module.padding, mode=mode, value=value), axis
    return None


def links_of_function(function: object, arguments: Sequence[Any], named: dict[str, Any], axis: int) -> Links | None:
    """The steps of a call of a function whose first argument is a tensor with time; None if nothing is known.

    Args:
        arguments, named: of the call; a weight that is computed may be a node of a graph of torch.fx.
    """
    if function in _CONVOLUTIONS:
        bound = dict(zip(_CONVOLVED, arguments, strict=False)) | named
        return _links_of_convolution(function, bound, axis)
    if function in _POOLINGS:
        kind = _POOLINGS[function]
        bound = dict(zip(_names(function), arguments, strict=False)) | named
        x = bound.pop("input")
        module = kind(**{name: value for name, value in bound.items() if value is not None})
        return _links_of_pooling(module, x, axis)
    if function is functional.pad:
        bound = dict(zip(("input", "pad", "mode", "value"), arguments, strict=False)) | named
        mode, value = bound.get("mode", "constant"), bound.get("value")
        return _links_of_padding(bound["input"], axis, bound["pad"], mode=mode, value=0.0 if value is None else value)
    if function is operator.getitem and isinstance(arguments[0], Tensor):
        return _links_of_slice(arguments[0], axis, arguments[1])
    return None


def window_of_function(function: Any, arguments: Sequence[Any], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call that say its windows and strides: kernel_size, stride and dilation, those it has."""
    if function is operator.getitem:
        entries = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
        return {"stride": [entry.step for entry in entries if isinstance(entry, slice)]}
    names = _CONVOLVED if function in _CONVOLUTIONS else _names(function) if function in _POOLINGS else ()
    bound = dict(zip(names, arguments, strict=False)) | named if names else {}
    if bound.get("stride") is None and "kernel_size" in bound:
        bound["stride"] = bound["kernel_size"]
    return {name: bound[name] for name in ("kernel_size", "stride", "dilation") if name in bound}


def _names(function: object) -> list[str]:
    """The names of a pooling's arguments, in their order."""
    if function in (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d):
        return ["input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"]
    names = ["input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"]
    return names if function is functional.avg_pool1d else [*names, "divisor_override"]


# Products ------------------------------------------------------------------------------------------------------


def network_and_weights(module: Any, *, tune: bool) -> tuple[Network, Weights]:
    """The network of a layer or of a compiled network, without the sizes of its input, and its tensors.

    Raises:
        LayerError: the weight of a layer of torch's is computed from other parameters.
        StreamError: it has several inputs.
    """
    if isinstance(module, Compiled):
        request = module.plan.request
        if len(request.inputs) > 1:
            raise StreamError("a compiled network has several inputs", inputs=" ".join(request.inputs))
        sizes = module.network.sizes
        windows = {node.k for node in all_nodes(module.network) if isinstance(node, Conv)}
        products = [
            (term.nodes, {label: sizes[label] for node in term.nodes for label in node.labels if label in windows})
            for term in module.network.terms
        ]
        network = sum_of_products(products, module.network.output)
        values = {name: getattr(module, name) for name in tensors_of(network) if name not in request.inputs}
        bias = getattr(module, "bias", None)
        constants = tuple(name for name in values if name in module._buffers)
        weights = Weights(values, constants, request.bias, tune)
    else:
        dense = layer_network(module)
        network, bias = dense.network, module._parameters.get("bias")
        weights = Weights({"K": own_weight(module)}, (), None if bias is None else network.output[1], tune)
    network, _ = bind(network, weights.values)
    if weights.bias is None:
        return network, weights
    return network, Weights({**weights.values, "bias": bias}, weights.constants, weights.bias, weights.tune)


def input_of(network: Network, weights: Weights) -> NamedTensor:
    """The only tensor without values. Raises StreamError if there are several, or none."""
    tensors = tensors_of(network)
    inputs = [node for name, node in tensors.items() if name not in weights.values]
    if len(inputs) != 1:
        fact = f"{len(inputs)} tensors have no values, and a stream has one input"
        raise StreamError(fact, tensors=" ".join(tensors), fix="values={name: elements} of all others")
    return inputs[0]


def _links_of_network(module: nn.Module, x: Tensor, axis: int, *, tune: bool) -> tuple[Links, int] | None:
    network, weights = network_and_weights(module, tune=tune)
    source = input_of(network, weights)
    if len(source.labels) != x.ndim:
        fact = f"the input of {type(module).__name__} has {x.ndim} axes, and a stream of it needs {len(source.labels)}"
        raise StreamError(fact, shape=tuple(x.shape), fix="inputs with an axis for the batch")
    network = with_sizes(network, dict(zip(source.labels, x.shape, strict=True)))
    ends = [_ends_of_frame(term, tensors_of(term)[source.name].labels[axis]) for term in network.terms]
    if all(ends):
        return (), next(place for place, label in enumerate(network.output) if label in ends[0])
    return chain_of_network(network, source.name, axis, weights)


def _ends_of_frame(network: Network, time: str) -> set[str]:
    """The label of time and that of the positions of a window of one frame; none where time is in anything else."""
    nodes = [network.nodes[position] for position, _ in carriers(network)[time]]
    others = [node for node in nodes if not isinstance(node, Conv)]
    windows = [node for node in nodes if isinstance(node, Conv) and time != node.k]
    ends = {time, *(label for node in windows for label in (node.x, node.y))}
    single = all(network.sizes[one.k] == one.stride == 1 and one.low == one.high == 0 for one in windows)
    whole = len(nodes) == len(windows) + 1 and len(windows) < 2 and len(others) == 1
    return ends if single and whole and ends & {*network.output} else set()


class ComputedConvolution(nn.Module):
    """A convolution of torch's whose weight is computed at each call, of windows of frames: its padding is elsewhere.

    Args:
        layer: the layer.
        arguments: of the function: stride, padding, dilation and groups.
    """

    def __init__(self, layer: nn.Module, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        self.arguments = arguments

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of the windows."""
        layer: Any = self.layer
        result: Tensor = _CONVOLUTIONS[x.ndim - 3](x, layer.weight, layer.bias, **self.arguments)
        return result


def _links_of_computed(layer: Any, x: Tensor, axis: int) -> Links:
    """The steps of a layer of torch's whose weight is computed from other parameters, as by weight norm."""
    if layer.padding_mode != "zeros" or layer._forward_pre_hooks:
        own_weight(layer)  # which refuses it
    names = ("stride", "padding", "dilation", "groups")
    bound = {"input": x, "weight": layer.weight, **{name: getattr(layer, name) for name in names}}
    window, arguments = _split_convolution(bound, axis)
    return (Windowed(window, axis), ComputedConvolution(layer, arguments))


def _links_of_convolution(function: Any, bound: dict[str, Any], axis: int) -> Links:
    """The steps of a call of `torch.nn.functional.conv3d`, whose weight may be computed."""
    window, arguments = _split_convolution(bound, axis)
    weight, bias = bound["weight"], bound.get("bias")
    return (Windowed(window, axis), Call(function, (weight, bias, *arguments.values())))


def _split_convolution(bound: dict[str, Any], axis: int) -> tuple[TimeWindow, dict[str, Any]]:
    """The window along time of a convolution, and its arguments without it."""
    weight = bound["weight"]
    shape = weight.shape if isinstance(weight, Tensor) else weight.meta["shape"]
    axes, place = len(shape) - 2, axis - 2
    numbers = {name: list(_each(bound.get(name, 1), axes)) for name in ("stride", "dilation")}
    padding = bound.get("padding", 0)
    reach = [d * (k - 1) for d, k in zip(numbers["dilation"], shape[2:], strict=True)]
    if isinstance(padding, str):
        ends = [(r // 2, r - r // 2) if padding == "same" else (0, 0) for r in reach]
    else:
        ends = [(p, p) for p in _each(padding, axes)]
    low, high = ends[place]
    window = TimeWindow(shape[axis], numbers["stride"][place], low, high, numbers["dilation"][place])
    ends[place], numbers["stride"][place], numbers["dilation"][place] = (0, 0), 1, 1
    if any(low != high for low, high in ends):
        raise StreamError("padding is 'same' for an even window of a computed weight", fix="integers as padding")
    arguments = {"stride": tuple(numbers["stride"]), "padding": tuple(low for low, _ in ends)}
    return window, {**arguments, "dilation": tuple(numbers["dilation"]), "groups": bound.get("groups", 1)}


# Poolings, paddings and slices ----------------------------------------------------------------------------------


def _links_of_pooling(module: Any, x: Tensor, axis: int) -> Links:
    axes = x.ndim - 2
    place = axis - 2
    if not 0 <= place < axes:
        raise StreamError(f"{type(module).__name__} takes axis {axis} for the channels", shape=tuple(x.shape))
    numbers = {name: _each(getattr(module, name, 1), axes) for name in ("kernel_size", "stride", "padding", "dilation")}
    size, stride, padding, dilation = (numbers[name][place] for name in numbers)
    maximum = isinstance(module, MAXIMA)
    _check_pooling(module, stride, padding)
    divisor = None if maximum else getattr(module, "divisor_override", None)
    links: list[Link] = []
    others = {name: tuple(1 if n == place else one for n, one in enumerate(all_)) for name, all_ in numbers.items()}
    others["padding"] = tuple(0 if n == place else one for n, one in enumerate(numbers["padding"]))
    if any((k, s, p) != (1, 1, 0) for k, s, p in zip(*list(others.values())[:3], strict=True)) or divisor:
        if maximum:
            links.append(type(module)(**others, ceil_mode=module.ceil_mode))
        else:
            del others["dilation"]
            more = {} if divisor is None else {"divisor_override": divisor}
            include = module.count_include_pad
            links.append(type(module)(**others, ceil_mode=module.ceil_mode, count_include_pad=include, **more))
    fill = -torch.inf if maximum else 0.0
    if (size, stride, padding) != (1, 1, 0):
        links.append(Windowed(TimeWindow(size, stride, padding, padding, dilation, fill), axis))
        reduce = torch.amax if maximum else torch.mean if divisor is None else torch.sum
        links.append(Call(reduce, (axis, True)))
    return links


def _check_pooling(module: Any, stride: int, padding: int) -> None:
    """Raise StreamError if the values of a pooling depend on where a clip ends; the numbers are those along time."""
    if module.ceil_mode and stride > 1:
        raise StreamError("ceil_mode with a stride along time depends on the length of the clip", fix="ceil_mode=False")
    if getattr(module, "return_indices", False):
        raise StreamError("the indices of maxima count the frames of a clip", fix="return_indices=False")
    counted = getattr(module, "count_include_pad", True) or getattr(module, "divisor_override", None)
    if padding and not counted:
        fact = "averages at the ends of a clip have other divisors: count_include_pad is False"
        raise StreamError(fact, fix="count_include_pad=True, or padding 0 along time")


def _each(value: Any, axes: int) -> tuple[int, ...]:
    entries = tuple(value) if isinstance(value, Sequence) else (value,)
    return entries * axes if len(entries) == 1 else entries


def _links_of_padding(x: Tensor, axis: int, pads: Sequence[int], *, mode: str, value: float) -> Links:
    numbers = list(pads)
    place = 2 * (x.ndim - 1 - axis)
    low, high = (numbers + [0] * (place + 2))[place : place + 2]
    if mode != "constant" and (low, high) != (0, 0):
        fact = f"the padding along time is {mode}: it repeats frames that have not come yet, or are past"
        raise StreamError(fact, fix="zeros on the left")
    links: list[Link] = []
    numbers[place : place + 2] = [0] * len(numbers[place : place + 2])
    if any(numbers):
        links.append(Call(functional.pad, (tuple(numbers), mode, value if mode == "constant" else None)))
    if (low, high) != (0, 0):
        links.append(Windowed(TimeWindow(1, 1, low, high, fill=value), axis))
    return links


def _links_of_slice(x: Tensor, axis: int, index: Any) -> Links | None:
    entries = _without_ellipsis(index if isinstance(index, tuple) else (index,), x.ndim)
    if len(entries) <= axis or not all(isinstance(one, slice) for one in entries[: axis + 1]):
        return None
    start, stop, step = (getattr(entries[axis], name) for name in ("start", "stop", "step"))
    start, stop, step = start or 0, -1 if stop is None else stop, step or 1
    if any(not isinstance(one, int) for one in (start, stop, step)) or start < 0 or stop >= 0 or step < 1:
        fact = f"frames {entries[axis]} of a clip are read, which are counted from its end or up to a number"
        raise StreamError(fact, fix="all frames, or slices such as [2:], [:-2] and [::2]")
    links: list[Link] = []
    others = tuple(slice(None) if n == axis else one for n, one in enumerate(entries))
    if any(one != slice(None) for one in others):
        links.append(Call(operator.getitem, (others,)))
    high = 0 if entries[axis].stop is None else stop
    if (start, high, step) != (0, 0, 1):
        links.append(Windowed(TimeWindow(1, step, -start, high), axis))
    return links


def _without_ellipsis(entries: tuple[Any, ...], axes: int) -> tuple[Any, ...]:
    """An index of a tensor with whole slices in place of an ellipsis."""
    place = next((number for number, one in enumerate(entries) if one is Ellipsis), None)
    if place is None:
        return entries
    missing = axes - sum(one is not None for one in entries) + 1
    return (*entries[:place], *[slice(None)] * missing, *entries[place + 1 :])
