"""torch's layers as networks: which network a module computes, with which values, and which modules have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import LayerError, NetworkError, SizeError
from ..networks import (
    KERNEL_LABELS,
    NamedTensor,
    Network,
    Numbers,
    Pooling,
    adaptive_average_pooling,
    average_pooling,
    axis_numbers,
    convolution,
    linear,
    transposed_convolution,
    with_sizes,
)
from .forwards import differing_forward

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_AVERAGE_POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_POOLINGS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_KNOWN = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, nn.Embedding, *_AVERAGE_POOLINGS, *_ADAPTIVE_POOLINGS)

EMBEDDING_LABELS = ("rows", "dim")
"""Labels of the axes of an embedding's weight."""

DenseLayer: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear
)
KERNEL_LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)

AnyLayer: TypeAlias = DenseLayer | nn.Embedding
DECOMPOSABLE = (*KERNEL_LAYERS, nn.Embedding)
"""Layers that `decomposed` and `convert` take: those with a kernel, and embeddings, whose weight is `rows dim`."""

_NO_NETWORKS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    (
        (
            *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d),
            *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
            *(nn.FractionalMaxPool2d, nn.FractionalMaxPool3d),
        ),
        "max pooling is not a tensor network: a maximum is not a sum of products",
    ),
    (
        (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d),
        "power-average pooling is not a tensor network: a root of a sum of powers is not a sum of products",
    ),
)
"""Poolings without a network, and why."""


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """channels_last if the strides are those of that format and of no other, as torch itself distinguishes them."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if tensor.ndim not in formats:
        return torch.contiguous_format
    plain, last = (
        torch.empty(tensor.shape, device="meta", memory_format=layout).stride()
        for layout in (torch.contiguous_format, formats[tensor.ndim])
    )
    return formats[tensor.ndim] if tensor.stride() == last != plain else torch.contiguous_format


class LayerNetwork(NamedTuple):
    """What a module computes: `evaluate(network, {"X": input, **values})`, plus `bias` on the axis `out`.

    The input of an embedding's network has a row for each token, which is 1 at the token's number and 0 elsewhere.
    """

    network: Network
    values: dict[str, Tensor]
    """The weight (`K` of a convolution, `W` of a linear layer) and constants; they share the module's memory."""
    bias: Tensor | None
    """A bias lives on the layer, outside the network."""


def layer_network(module: nn.Module, *, input_size: Numbers | None = None) -> LayerNetwork:
    """The network of one of torch's layers.

    Args:
        module: a convolution, transposed convolution, linear layer, embedding, average or adaptive average pooling.
        input_size: sizes of the input's positions (without batch and channels), one integer for all axes or one
            for each. Some poolings need it; anywhere else it adds sizes to the network.

    Returns:
        The network with its input X, the values of its other tensors, and the bias (or None).

    Raises:
        LayerError: a layer that is none of these, computes something of its own, has no weight yet, or has
            arguments that torch itself would refuse.
    """
    known: type[nn.Module] | None = next((kind for kind in _KNOWN if isinstance(module, kind)), None)
    if known is None:
        _refuse(module)
    _check_forward(module, known)
    if isinstance(module, nn.Embedding):
        _check_embedding(module)
    if isinstance(module, KERNEL_LAYERS) and is_lazy(module.weight):
        raise LayerError(f"{_kind(module)} has no weight yet", fix="run the model once on an input")
    try:
        network, values = _network_and_values(module, input_size)
        return LayerNetwork(_with_input_size(network, input_size), values, _bias(module))
    except (NetworkError, SizeError) as error:
        raise LayerError(f"{_kind(module)} has no tensor network", layer=module, because=error) from error


def kernel_layers(model: nn.Module) -> dict[str, DenseLayer]:
    """name -> every convolution, transposed convolution and linear layer of a model, in the order of its modules.

    A module that has several names is listed once, by its first name. The model's own name is "".
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, KERNEL_LAYERS)}


def kernel_labels_of(module: nn.Module) -> tuple[str, ...]:
    """Labels of the axes of a layer's weight, as torch stores it: `out in kh kw`, transposed `in out kh kw`.

    With groups, `in` (transposed: `out`) counts the channels of one group. The weight of an embedding is `rows dim`.

    Raises:
        LayerError: the module is not a convolution, transposed convolution, linear layer or embedding.
    """
    for kinds in (CONVOLUTIONS, TRANSPOSED):
        for axes, kind in enumerate(kinds, start=1):
            if isinstance(module, kind):
                out, in_, *window = KERNEL_LABELS[axes + 2]
                return (out, in_, *window) if kinds is CONVOLUTIONS else (in_, out, *window)
    if isinstance(module, nn.Linear):
        return KERNEL_LABELS[2]
    if isinstance(module, nn.Embedding):
        return EMBEDDING_LABELS
    raise LayerError(f"{_kind(module)} has no kernel", fix=_listed(DECOMPOSABLE))


def own_weight(module: AnyLayer) -> nn.Parameter:
    """The weight of a layer. Raises LayerError: it is computed from other parameters, or not of real numbers."""
    weight = module._parameters.get("weight")
    if weight is None:
        raise LayerError(
            f"the weight of this {type(module).__name__} is computed from other parameters",
            because="a parametrisation, or weight norm",
            fix="remove it first: torch.nn.utils.parametrize.remove_parametrizations",
        )
    if not weight.is_floating_point():
        raise LayerError(f"the weight is {weight.dtype}", fix="a type of real numbers")
    return weight


def _network_and_values(module: nn.Module, input_size: Numbers | None) -> tuple[Network, dict[str, Tensor]]:
    match module:
        case nn.Linear():
            if input_size is not None:
                raise SizeError("input_size is given to a layer without positions", fix="leave it out")
            network = linear(in_features=module.in_features, out_features=module.out_features)
            return network, {"W": module.weight.detach()}
        case nn.Embedding():
            if input_size is not None:
                raise SizeError("input_size is given to a layer without positions", fix="leave it out")
            for name in ("num_embeddings", "embedding_dim"):
                if getattr(module, name) < 1:
                    raise SizeError(f"{name} is {getattr(module, name)}", fix="at least 1")
            rows, dim = EMBEDDING_LABELS
            nodes = [NamedTensor("X", ("n", rows)), NamedTensor("W", (rows, dim))]
            sizes = {rows: module.num_embeddings, dim: module.embedding_dim}
            return Network(nodes, ("n", dim), sizes), {"W": module.weight.detach()}
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return convolution(**_arguments(module, CONVOLUTIONS)), {"K": module.weight.detach()}
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            network = transposed_convolution(**_arguments(module, TRANSPOSED), output_padding=module.output_padding)
            return network, {"K": module.weight.detach()}
        case nn.AvgPool1d() | nn.AvgPool2d() | nn.AvgPool3d():
            axes = _dimension(module, _AVERAGE_POOLINGS)
            return _pooled(
                average_pooling(
                    _each_axis(module, "kernel_size", axes),
                    stride=_each_axis(module, "stride", axes),
                    padding=_each_axis(module, "padding", axes),
                    ceil_mode=module.ceil_mode,
                    count_include_pad=module.count_include_pad,
                    divisor_override=getattr(module, "divisor_override", None),  # 1-d has none
                    input_size=input_size,
                )
            )
        case nn.AdaptiveAvgPool1d() | nn.AdaptiveAvgPool2d() | nn.AdaptiveAvgPool3d():
            output_size = _each_axis(module, "output_size", _dimension(module, _ADAPTIVE_POOLINGS))
            return _pooled(adaptive_average_pooling(output_size, input_size=input_size))
        case _:
            raise AssertionError(f"{_kind(module)} is listed as known without a network")


def _arguments(module: DenseLayer, kinds: Sequence[type[nn.Module]]) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "groups", "padding_mode", "in_channels", "out_channels")
    kernel_size = _each_axis(module, "kernel_size", _dimension(module, kinds))
    return {"kernel_size": kernel_size, **{name: getattr(module, name) for name in names}}


def _dimension(module: nn.Module, kinds: Sequence[type[nn.Module]]) -> int:
    return next(axes for axes, kind in enumerate(kinds, start=1) if isinstance(module, kind))


def _each_axis(module: nn.Module, name: str, axes: int) -> tuple[Any, ...]:
    """An argument of a layer with one entry for each axis; torch takes an integer or a sequence of one for all."""
    value = getattr(module, name)
    entries = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(entries) not in (1, axes):
        raise NetworkError(f"{name} has {len(entries)} entries, the window has {axes} axes", given=value)
    return entries * axes if len(entries) == 1 else entries


def _pooled(pooling: Pooling) -> tuple[Network, dict[str, Tensor]]:
    return pooling.network, {name: torch.from_numpy(constant) for name, constant in pooling.constants.items()}


def _with_input_size(network: Network, input_size: Numbers | None) -> Network:
    if input_size is None:
        return network
    source = next(node for node in network.nodes if isinstance(node, NamedTensor) and node.name == "X")
    labels = source.labels[2:]
    sizes = axis_numbers("input_size", input_size, len(labels))
    return with_sizes(network, dict(zip(labels, sizes, strict=True)))


def _bias(module: nn.Module) -> Tensor | None:
    return module.bias.detach() if isinstance(module, KERNEL_LAYERS) and module.bias is not None else None


def _check_forward(module: nn.Module, known: type[nn.Module]) -> None:
    """A subclass that computes something of its own does not have its base's network."""
    reason = differing_forward(module, known)
    if reason is not None:
        fix = f"a plain {known.__name__}, or a network written for it"
        raise LayerError(f"{_kind(module)}, a subclass of {known.__name__}, has {reason}", fix=fix)


def _check_embedding(module: nn.Embedding) -> None:
    """Refuse arguments that change rows in place, or the gradient of single rows."""
    reasons = {
        "max_norm": "it rescales the rows that are read in place, and the cores of a decomposition are shared by rows",
        "sparse": "its gradient holds the rows that were read, and the gradients of cores are dense",
        "scale_grad_by_freq": "it divides the gradient of each row by its count, and the cores are shared by rows",
    }
    for name, reason in reasons.items():
        if getattr(module, name):
            fact = f"an embedding with {name}={getattr(module, name)} has no tensor network"
            raise LayerError(fact, because=reason, fix=f"an embedding without {name}")


def _refuse(module: nn.Module) -> NoReturn:
    for kinds, fact in _NO_NETWORKS:
        if isinstance(module, kinds):
            raise LayerError(fact, layer=_kind(module), fix="average pooling, or keep it outside the network")
    raise LayerError(f"{_kind(module)} has no tensor network here", fix=_listed(_KNOWN))


def _kind(module: object) -> str:
    return type(module).__name__


def _listed(kinds: Sequence[type[nn.Module]]) -> str:
    return "one of " + ", ".join(kind.__name__ for kind in kinds)
