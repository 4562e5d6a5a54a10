"""The running statistics of batch normalisations, measured anew on a model whose layers changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..compiler import Compiled
from ..errors import DataError, LayerError, explain
from ..network import NamedTensor
from ..nn import (
    CONVOLUTIONS,
    LAYERS,
    TRANSPOSED,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    KernelLayer,
    Linear,
)
from .modes import evaluating

# running_statistics: The running statistics of batch normalisations, measured anew on a model whose layers changed.


M = TypeVar("M", bound=nn.Module)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a model that have running statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def recalibrate_batch_norm(model: M, loader: Iterable[Tensor | Sequence[Tensor]], *, batches: int | None = None) -> M:
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
        DataError: there are no batches, or `loader` is a single tensor.
        Any error of the model's own; the statistics are then what they were.
    """
    norms = batch_norms(model)
    if not norms:
        raise LayerError(
            explain(f"{type(model).__name__} has no batch normalisation with running statistics", fix="leave it out")
        )
    if isinstance(loader, Tensor):  # whose entries would pass for batches
        raise DataError(explain("a tensor is given for batches of inputs", fix="a list of tensors: [x]"))
    if batches is not None and batches < 1:
        raise DataError(explain(f"batches={batches}", fix="at least 1"))
    like = next((t for t in (*model.parameters(), *model.buffers())), torch.empty(0))
    momenta = [norm.momentum for norm in norms]
    before = [{key: value.clone() for key, value in norm.named_buffers(recurse=False)} for norm in norms]
    count = 0
    done = False
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for batch in islice(loader, batches):
                x = batch if isinstance(batch, Tensor) else batch[0]
                model(x.to(like.device))
                count += 1
        if not count:
            raise DataError("there are no batches to take statistics from")
        done = True
    finally:
        for norm, momentum, values in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if not done:
                for key, value in values.items():
                    norm.get_buffer(key).copy_(value)
    return model


# normalisation: Batch normalisations taken into the layers before them.


LINEAR = (nn.Linear, Linear)
"""Layers whose outputs a batch normalisation takes by their features only where these are the second axis."""

FOLDING_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Relative change of a folded model's outputs that is rounding, layer upon layer; of coarser types 0.1."""


def fold_batch_norm(model: M, example: Tensor | None = None) -> M:
    """Put each batch normalisation that follows a convolution or linear layer into it: for evaluation, not training.

    The layer's outputs are scaled in its weight, or in one core of a decomposed layer, and shifted in its bias,
    which it gets if it has none; an `Identity` stands where the normalisation was. Left as they are: normalisations
    without running statistics; those whose layer feeds something else too, is called more than once, has hooks or
    parametrisations, or groups and is transposed; or has no core that is its own and holds the output channels
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
        before, flat = (None, frozenset[int]()) if example is None else _outputs(model, example)
        new: dict[int, nn.Module] = {}
        for layer, norm in _pairs(model, flat):
            folded = _folded(layer, norm)
            if folded is not None:
                new |= {id(layer): folded.eval(), id(norm): nn.Identity().eval()}
        if not new:
            raise LayerError(explain(f"{type(model).__name__} has no batch normalisation that can be folded"))
        places = [
            (holder, key, child)
            for holder in model.modules()
            for key, child in holder._modules.items()
            if child is not None and id(child) in new
        ]
        try:
            for holder, key, child in places:
                setattr(holder, key, new[id(child)])
            if before is not None:
                error = float(torch.dist(model(example), before)) / (float(before.norm()) or 1.0)
                if not error < FOLDING_TOLERANCE.get(before.dtype, 0.1):  # NaN too
                    fact = f"{type(model).__name__} computes something else once its batch normalisations are folded"
                    raise LayerError(explain(fact, relative_error=f"{error:.1e}"))
        except BaseException:
            for holder, key, child in places:
                setattr(holder, key, child)
            raise
    return model


def _outputs(model: nn.Module, example: Tensor) -> tuple[Tensor, frozenset[int]]:
    """The model's output, and the identities of the linear layers whose outputs are matrices."""
    axes: dict[int, set[int]] = {}

    def look(module: nn.Module, args: object, output: Tensor) -> None:
        axes.setdefault(id(module), set()).add(output.ndim)

    handles = [module.register_forward_hook(look) for module in model.modules() if isinstance(module, LINEAR)]
    try:
        output = model(example)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor):
        fact = f"{type(model).__name__} gives a {type(output).__name__}, which is not compared"
        raise LayerError(explain(fact, fix="a model of one output; or no example, and a comparison of your own"))
    return output, frozenset(module for module, seen in axes.items() if seen == {2})


class _Tracer(fx.Tracer):
    """Decomposed layers are leaves, as torch's are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, KernelLayer) or super().is_leaf_module(m, module_qualified_name)


def _pairs(model: nn.Module, flat: Collection[int]) -> list[tuple[nn.Module, _BatchNorm]]:
    """Convolutions, linear layers of `flat`, and the batch normalisation that alone takes the output of each."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # the model's own code, which may raise anything when it is traced
        fact = f"{type(model).__name__} cannot be traced: what follows what is not known"
        raise LayerError(explain(fact, because=f"{type(error).__name__}: {error}")) from error
    called = {node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    times = Counter(map(id, called.values()))
    kinds = (*CONVOLUTIONS, *TRANSPOSED, *LAYERS, *LINEAR)
    found = []
    for node, norm in called.items():
        source = node.args[0] if node.args else None
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None or not isinstance(source, fx.Node):
            continue
        layer = called.get(source)
        if (
            layer is None
            or not isinstance(layer, kinds)
            or (isinstance(layer, LINEAR) and id(layer) not in flat)
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


def _folded(layer: nn.Module, norm: _BatchNorm) -> nn.Module | None:
    """One layer that does what the two do; None where there is none."""
    transposed = isinstance(layer, (*TRANSPOSED, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d))
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
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, scale = norm.running_mean.double(), (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean * scale if layer.bias is None else (layer.bias.double() - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    core = min(holding, key=lambda node: layer.get_parameter(node.name).numel())
    scaled = layer.get_parameter(core.name).double() * scale.reshape(
        [-1 if label == out else 1 for label in core.labels]
    )
    return _with_values(layer, {core.name: scaled, "bias": shift})


def _with_values(layer: KernelLayer, changed: Mapping[str, Tensor]) -> KernelLayer:
    """A copy with other values of some tensors, and a bias if there is one among them; planned anew."""
    frozen = layer.frozen
    before = (layer._thawed or layer.plan).request
    tensors: dict[str, Tensor] = {name: getattr(layer, name) for name in layer._weights}
    constants = frozenset(name for name in tensors if name in layer._buffers)
    trained = any(parameter.requires_grad for parameter in layer.parameters())
    for name, value in changed.items():
        old = tensors.get(name)
        tensors[name] = nn.Parameter(
            value.to(before.dtype), requires_grad=trained if old is None else old.requires_grad
        )
    own = {
        name: nn.Parameter(t.detach().clone(), t.requires_grad) if name not in constants else t
        for name, t in tensors.items()
    }
    new = type(layer).__new__(type(layer))
    request = replace(before, bias=layer.network.output[1], frozen=False)
    Compiled.__init__(new, request, own, constants, layer._tune)
    for name in (*layer.argument_names, "output_padding"):
        if name != "bias" and hasattr(layer, name):
            setattr(new, name, getattr(layer, name))
    new.kernel, new.origin = layer.kernel, layer.origin
    new.train(layer.training)
    if frozen:
        new.freeze()
    return new
