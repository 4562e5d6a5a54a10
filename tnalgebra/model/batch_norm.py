"""Batch normalisations after a conversion: measure their running statistics again, or fold them into the layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import DataError, LayerError, explain
from ..networks import NamedTensor, tensor_nodes
from ..nn import KERNEL_LAYERS, LAYERS, TRANSPOSED, KernelLayer, Linear
from .images import inputs_of
from .modes import evaluating, hooked

_M = TypeVar("_M", bound=nn.Module)

_LINEAR = (nn.Linear, Linear)
"""Layers whose outputs a batch normalisation takes by their features only where these are the second axis."""

_FOLDING_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Relative change of a folded model's outputs that is rounding, layer upon layer; of coarser types 0.1."""


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a model that have running statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def recalibrate_batch_norm(model: _M, loader: Iterable[Tensor | Sequence[Tensor]], *, batches: int | None = None) -> _M:
    """Set the running mean and variance of every batch normalisation to the average over batches of data.

    Each batch counts the same (torch's cumulative average, `momentum=None`), so a last batch that is smaller counts
    more than its share. Everything but the batch normalisations runs in evaluation mode: no dropout. Weights stay.

    Args:
        loader: batches of the model's inputs; of a sequence, such as images and labels, the first entry. They are
            brought to the model's device.
        batches: the most that are taken; by default all.

    Returns:
        The model itself, with the modes and momenta it had.

    Raises:
        LayerError: the model has no batch normalisation with running statistics.
        DataError: there are no batches of inputs, or `loader` is a single tensor.
        Any error of the model's own; the statistics are then what they were.
    """
    norms = batch_norms(model)
    if not norms:
        raise LayerError(
            explain(f"{type(model).__name__} has no batch normalisation with running statistics", fix="leave it out")
        )
    if batches is not None and batches < 1:
        raise DataError(explain(f"batches={batches}", fix="at least 1"))
    device = next(tensor.device for tensor in (*model.parameters(), *model.buffers()))
    momenta = [norm.momentum for norm in norms]
    before = [{key: value.clone() for key, value in norm.named_buffers(recurse=False)} for norm in norms]
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for x in islice(inputs_of(loader), batches):
                model(x.to(device))
    except BaseException:
        for norm, values in zip(norms, before, strict=True):
            for key, value in values.items():
                norm.get_buffer(key).copy_(value)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model


def fold_batch_norm(model: _M, example: Tensor | None = None) -> _M:
    """Put each batch normalisation that follows a convolution or linear layer into it: for evaluation, not training.

    The layer's outputs are scaled in its weight, or in one core of a decomposed layer, and shifted in its bias,
    which it gets if it has none; an `Identity` takes the place of the normalisation. Left as they are: normalisations
    without running statistics; those whose layer feeds something else too, is called more than once, has hooks or
    parametrisations, or groups and is transposed; or has no core of its own that holds the output channels
    whole. A linear layer takes its normalisation only where the example shows that its outputs are (n, features): of
    more axes it is the second that is normalised. A decomposed layer keeps its trace and its errors, which are those
    of the kernel before.

    Args:
        model: in evaluation mode. torch.fx traces it to see what follows what.
        example: an input; the folded model must give the output on it, a tensor, that the model gave.

    Returns:
        The model itself.

    Raises:
        LayerError: the model is in training mode, has nothing to fold, cannot be traced, gives no tensor, or another
            one once it is folded. On any error the model is as it was.
    """
    if model.training or any(module.training for module in model.modules() if isinstance(module, _BatchNorm)):
        raise LayerError(explain(f"{type(model).__name__} is in training mode", fix="model.eval()"))
    with torch.no_grad():
        before, flat = (None, frozenset[nn.Module]()) if example is None else _outputs(model, example)
        new: dict[nn.Module, nn.Module] = {}
        for layer, norm in _pairs(model, flat):
            folded = _fold(layer, norm)
            if folded is not None:
                new |= {layer: folded.eval(), norm: nn.Identity().eval()}
        if not new:
            raise LayerError(explain(f"{type(model).__name__} has no batch normalisation that can be folded"))
        places = [
            (holder, key, child)
            for holder in model.modules()
            for key, child in holder._modules.items()
            if child is not None and child in new
        ]
        try:
            for holder, key, child in places:
                setattr(holder, key, new[child])
            if before is not None:
                error = float(torch.dist(model(example), before)) / (float(before.norm()) or 1.0)
                if not error < _FOLDING_TOLERANCE.get(before.dtype, 0.1):  # NaN too
                    fact = f"{type(model).__name__} computes other outputs once its batch normalisations are folded"
                    raise LayerError(explain(fact, relative_error=f"{error:.1e}"))
        except BaseException:
            for holder, key, child in places:
                setattr(holder, key, child)
            raise
    return model


def _outputs(model: nn.Module, example: Tensor) -> tuple[Tensor, frozenset[nn.Module]]:
    """The model's output, and the linear layers whose outputs are matrices."""
    axes: dict[nn.Module, set[int]] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        axes.setdefault(module, set()).add(output.ndim)

    with hooked({module: look for module in model.modules() if isinstance(module, _LINEAR)}):
        output = model(example)
    if not isinstance(output, Tensor):
        fact = f"{type(model).__name__} gives a {type(output).__name__}, which is not compared"
        raise LayerError(explain(fact, fix="a model of one output; or no example, and a comparison of your own"))
    return output, frozenset(module for module, counts in axes.items() if counts == {2})


class _Tracer(fx.Tracer):
    """Decomposed layers are leaves, as torch's are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, KernelLayer) or super().is_leaf_module(m, module_qualified_name)


def _pairs(model: nn.Module, flat: Collection[nn.Module]) -> list[tuple[nn.Module, _BatchNorm]]:
    """Convolutions, linear layers of `flat`, and the batch normalisation that alone takes the output of each."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # the model's own code, which may raise anything when it is traced
        fact = f"{type(model).__name__} cannot be traced, so that the order of its layers is unknown"
        raise LayerError(explain(fact, because=f"{type(error).__name__}: {error}")) from error
    called = {node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    times = Counter(map(id, called.values()))
    kinds = (*KERNEL_LAYERS, *LAYERS)
    found = []
    for node, norm in called.items():
        source = node.args[0] if node.args else None
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None or not isinstance(source, fx.Node):
            continue
        layer = called.get(source)
        if (
            layer is None
            or not isinstance(layer, kinds)
            or (isinstance(layer, _LINEAR) and layer not in flat)
            or len(source.users) > 1
            or times[id(norm)] > 1
            or times[id(layer)] > 1
        ):
            continue
        if not _is_watched(layer) and not _is_watched(norm):
            found.append((layer, norm))
    return found


def _is_watched(module: nn.Module) -> bool:
    replaced = "forward" in module.__dict__
    return bool(module._forward_hooks or module._forward_pre_hooks or replaced or parametrize.is_parametrized(module))


def _fold(layer: nn.Module, norm: _BatchNorm) -> nn.Module | None:
    """One layer that does what the two do; None if it does not exist."""
    transposed = issubclass(layer.dense_class if isinstance(layer, KernelLayer) else type(layer), TRANSPOSED)
    if transposed and int(layer.groups) > 1:  # type: ignore[arg-type]
        return None
    if not isinstance(layer, KernelLayer):  # a linear layer's weight is that of a convolution without a window
        fused: nn.Module = fuse_conv_bn_eval(layer, norm, transpose=transposed)  # type: ignore[type-var]
        return fused
    out = layer.kernel.output[1 if transposed else 0]
    nodes = [node for node in layer.kernel.nodes if isinstance(node, NamedTensor)]
    times = Counter(node.name for node in nodes)
    holding = [
        node
        for node in nodes
        if node.labels.count(out) == 1 and times[node.name] == 1 and node.name in layer._parameters
    ]
    if not holding:
        return None
    scale, shift = _scale_and_shift(layer, norm)
    core = min(holding, key=lambda node: layer.get_parameter(node.name).numel())
    scaled = layer.get_parameter(core.name).double() * scale.reshape(
        [-1 if label == out else 1 for label in core.labels]
    )
    return _with_values(layer, core.name, scaled, shift)


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


def _with_values(layer: KernelLayer, core: str, value: Tensor, bias: Tensor) -> KernelLayer:
    """A copy with other values of one core and of the bias, which it gets if it has none; planned again."""
    dense = layer.to_dense()
    trained = dense.weight.requires_grad if layer.bias is None else layer.bias.requires_grad
    dense.bias = nn.Parameter(bias.to(dense.weight.dtype), requires_grad=trained)
    values = {name: getattr(layer, name) for name in tensor_nodes(layer.kernel)} | {core: value}
    new = type(layer).of_network(
        dense, layer.kernel, values, constants=layer.constants, planning=layer.planning, origin=layer.origin
    )
    for name, parameter in layer.named_parameters():
        new.get_parameter(name).requires_grad_(parameter.requires_grad)
    if layer.frozen:
        new.freeze()
    return new
