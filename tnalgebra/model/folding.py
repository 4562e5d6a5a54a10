"""Batch normalisations folded into the layers before them, for evaluation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import LayerError
from ..networks import all_nodes
from ..nn import KERNEL_LAYERS, LAYERS, TRANSPOSED, Adapted, KernelLayer, Linear, is_altered
from .example import Example
from .modules import check_initialised
from .norm_sources import Seen, find_sources

_log = logging.getLogger(__name__)

_LINEAR = (nn.Linear, Linear)
"""Layers whose outputs a batch normalisation takes by their features only where these are the second axis."""

_Place: TypeAlias = tuple[nn.Module, str, nn.Module]
"""A module, the name of a child, and the child that was there before."""

_Replacement: TypeAlias = tuple[_BatchNorm, nn.Module, nn.Module]
"""A batch normalisation, the layer that it follows, and the layer that computes what the two compute."""


@dataclass(frozen=True)
class Folding:
    """What `fold_batch_norm` did; `print` shows a line for each batch normalisation.

    folded: name of a batch normalisation -> name of the layer that it was folded into.
    left: name of a batch normalisation that is still there -> why.
    """

    folded: Mapping[str, str]
    left: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{norm}: folded into {layer}" for norm, layer in self.folded.items()]
        lines += [f"{norm}: left, {reason}" for norm, reason in self.left.items()]
        return "\n".join(lines or ["the model has no batch normalisation"])


def fold_batch_norm(
    model: nn.Module, example: Example | None = None, *, pairs: Mapping[str, str] | None = None
) -> Folding:
    """Put each batch normalisation that follows a convolution or linear layer into that layer, for evaluation.

    The layer's outputs are scaled in its weight, or in one core of a decomposed layer, and shifted in its bias, which
    the layer gets if it has none; an `Identity` takes the place of the normalisation. A decomposed layer keeps its
    trace; its errors are None, as its kernel is another one. The model must not be trained afterwards.

    Which layer a normalisation follows is seen in the graph of torch.fx. Where the model cannot be traced, the example
    shows it: each normalisation whose input is the output of a layer is folded by itself, and unfolded again if the
    model's output changes. Without an example, only neighbours in an `nn.Sequential` are folded then.

    Args:
        model: in evaluation mode; it is changed in place.
        example: an input of the model in any form that `convert` takes. The folded model is checked to give the same
            output on it. A linear layer is folded only where the example shows that its outputs are (n, features),
            since of outputs with more axes the second is normalised.
        pairs: name of a layer -> name of the batch normalisation that follows it; only these are folded, and nothing
            is traced.

    Returns:
        The names of what was folded, and of what was left with the reason: a normalisation without running
        statistics; a layer that also feeds something else, is called more than once, has adapters, hooks or
        parametrisations, has a weight that is read elsewhere too, is transposed with groups, or has no core that holds
        the output channels whole.

    Raises:
        LayerError: the model is in training mode, has no output to compare, or gives another one once it is folded; a
            name in `pairs` is wrong. On any error the model is as it was.

    Example:
        >>> print(tn.fold_batch_norm(model.eval(), (1, 3, 224, 224)))
    """
    check_initialised(model)
    names = {module: name for name, module in model.named_modules()}
    norms = [module for module in names if isinstance(module, _BatchNorm)]
    if model.training or any(norm.training for norm in norms):
        raise LayerError(f"{type(model).__name__} is in training mode", fix="model.eval()")
    folded: dict[str, str] = {}
    left: dict[str, str] = {}
    with torch.no_grad():
        seen = None if example is None or not norms else Seen.of(model, example)
        sources, certain = find_sources(model, norms, seen, pairs)
        new: list[_Replacement] = []
        adapted = {part for one in model.modules() if isinstance(one, Adapted) for part in one.modules()}
        for norm, source in sources.items():
            if source in adapted:
                source = "the layer before it has adapters, which would not be scaled: to_dense or remove them first"
            result = source if isinstance(source, str) else _obstacle(source, norm, seen) or _fold(source, norm)
            if isinstance(result, nn.Module) and isinstance(source, nn.Module):
                new.append((norm, source, result.eval()))
            else:
                left[names[norm]] = str(result)
        for norm, layer, reason in _exchange_groups(model, new, seen, certain=certain):
            if reason is None:
                folded[names[norm]] = names[layer]
            else:
                left[names[norm]] = reason
    _log.info("%d of %d batch normalisations folded", len(folded), len(norms))
    for name, reason in left.items():
        _log.info("batch normalisation %r is left: %s", name, reason)
    return Folding(folded, left)


def _obstacle(layer: nn.Module, norm: _BatchNorm, seen: Seen | None) -> str | None:
    """Why a batch normalisation cannot be folded into the layer before it."""
    if norm.running_mean is None:
        return "it has no running statistics"
    if not isinstance(layer, (*KERNEL_LAYERS, *LAYERS)):
        return f"it follows a {type(layer).__name__}, which is not a convolution or linear layer"
    if isinstance(layer, _LINEAR) and (seen is None or layer not in seen.rows):
        return "no example shows that the outputs of the linear layer before it have two axes"
    if is_altered(layer) or is_altered(norm):
        return "it or the layer before it has hooks, parametrisations or a forward of its own"
    return None


# Folding --------------------------------------------------------------------------------------------------------


def _exchange_groups(
    model: nn.Module, new: Sequence[_Replacement], seen: Seen | None, *, certain: bool
) -> list[tuple[_BatchNorm, nn.Module, str | None]]:
    """Fold all at once if it is certain that they can be, else one after the other; keep what changes no output.

    Returns:
        Each batch normalisation with its layer, and why it was not folded.
    """
    results: list[tuple[_BatchNorm, nn.Module, str | None]] = []
    exchanged: list[_Place] = []
    try:
        for group in [new] if certain and new else [[one] for one in new]:
            places = _exchange(model, group)
            exchanged += places
            change = 0.0 if seen is None else seen.change(model)
            reason = None
            if seen is not None and not change < seen.tolerance:
                if certain:
                    fact = f"{type(model).__name__} computes other outputs once its batch normalisations are folded"
                    raise LayerError(fact, relative_error=f"{change:.1e}")
                _restore(places)
                reason = f"the model's output changes by {change:.1e} once it is folded"
            results += [(norm, layer, reason) for norm, layer, _ in group]
    except BaseException:
        _restore(exchanged)
        raise
    return results


def _exchange(model: nn.Module, group: Sequence[_Replacement]) -> list[_Place]:
    """Put the folded layers in their places, and an `Identity` in those of the normalisations."""
    new: dict[nn.Module, nn.Module] = {}
    for norm, layer, folded in group:
        new |= {layer: folded, norm: nn.Identity().eval()}
    places = [
        (holder, key, child)
        for holder in model.modules()
        for key, child in holder._modules.items()
        if child is not None and child in new
    ]
    try:
        for holder, key, child in places:
            setattr(holder, key, new[child])
    except BaseException:
        _restore(places)
        raise
    return places


def _restore(places: Sequence[_Place]) -> None:
    for holder, key, child in places:
        setattr(holder, key, child)


def _fold(layer: nn.Module, norm: _BatchNorm) -> nn.Module | str:
    """One layer that computes what the two compute, or why such a layer does not exist."""
    transposed = issubclass(layer.dense_class if isinstance(layer, KernelLayer) else type(layer), TRANSPOSED)
    if transposed and int(layer.groups) > 1:  # type: ignore[arg-type]
        return "the layer before it is transposed and has groups"
    if not isinstance(layer, KernelLayer):  # a linear layer's weight is that of a convolution without a window
        fused: nn.Module = fuse_conv_bn_eval(layer, norm, transpose=transposed)  # type: ignore[type-var]
        return fused
    out = layer.kernel.output[1 if transposed else 0]
    times = Counter(node.name for node in all_nodes(layer.kernel))
    scale, shift = _scale_and_shift(layer, norm)
    scaled: dict[str, Tensor] = {}
    for term in layer.kernel.terms:  # every term of a sum is scaled by one of its cores
        holding = [
            node
            for node in term.nodes
            if node.labels.count(out) == 1 and times[node.name] == 1 and node.name in layer._parameters
        ]
        if not holding:
            return "no core of the layer before it holds the output channels whole"
        core = min(holding, key=lambda node: layer.get_parameter(node.name).numel())
        factors = scale.reshape([-1 if label == out else 1 for label in core.labels])
        scaled[core.name] = layer.get_parameter(core.name).double() * factors
    return _with_values(layer, scaled, shift)


def _scale_and_shift(layer: KernelLayer, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What the normalisation multiplies the layer's outputs without bias by, and what it then adds; in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, scale = norm.running_mean.double(), (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean * scale if layer.bias is None else (layer.bias.double() - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return scale, shift


def _with_values(layer: KernelLayer, cores: Mapping[str, Tensor], bias: Tensor) -> KernelLayer:
    """A copy with other values of some cores and of the bias, which it gets if it has none; planned again."""
    dense = layer.to_dense()
    trained = dense.weight.requires_grad if layer.bias is None else layer.bias.requires_grad
    dense.bias = nn.Parameter(bias.to(dense.weight.dtype), requires_grad=trained)
    values: dict[str, Tensor | str] = {**layer.kernel_tensors(), **layer.bases, **cores}
    new = type(layer).of_network(
        dense, layer.kernel, values, constants=layer.constants, planning=layer.planning, origin=layer.origin
    )
    for name, parameter in layer.named_parameters():
        new.get_parameter(name).requires_grad_(parameter.requires_grad)
    if layer.frozen:
        new.freeze()
    return new
