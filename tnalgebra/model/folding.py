"""Batch normalisations folded into the layers before them, for evaluation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import LayerError
from ..networks import all_nodes
from ..nn import KERNEL_LAYERS, LAYERS, TRANSPOSED, KernelLayer, Linear, is_altered
from .example import Example, read_example, tensors_in
from .modes import hooked
from .modules import check_initialised

_log = logging.getLogger(__name__)

_LINEAR = (nn.Linear, Linear)
"""Layers whose outputs a batch normalisation takes by their features only where these are the second axis."""

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Relative change of a folded model's outputs that is rounding, layer upon layer; of coarser types 0.1."""

_Place: TypeAlias = tuple[nn.Module, str, nn.Module]
"""A module, the name of a child, and the child that was there before."""

_Replacement: TypeAlias = tuple[_BatchNorm, nn.Module, nn.Module]
"""A batch normalisation, the layer that it follows, and the layer that computes what the two compute."""

_Sources: TypeAlias = dict[_BatchNorm, nn.Module | str]
"""Batch normalisation -> the layer whose output it alone takes, or why no such layer is known."""


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
        statistics; a layer that also feeds something else, is called more than once, has hooks or parametrisations,
        is transposed with groups, or has no core that holds the output channels whole.

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
        seen = None if example is None or not norms else _Seen.of(model, example)
        sources, certain = _find_sources(model, norms, seen, pairs)
        new: list[_Replacement] = []
        for norm, source in sources.items():
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


# What follows what ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Seen:
    """A run on the example: the model's arguments and outputs, and what its layers were seen to do.

    rows: the linear layers whose outputs have two axes.
    sources: batch normalisation -> the layer whose output is its input, where both are called once.
    """

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    outputs: list[Tensor]
    rows: frozenset[nn.Module]
    sources: Mapping[nn.Module, nn.Module]

    @classmethod
    def of(cls, model: nn.Module, example: Example) -> _Seen:
        axes: dict[nn.Module, set[int]] = {}
        made: dict[int, tuple[nn.Module, Tensor]] = {}  # the tensors are kept, so that no two have one id
        taken: list[tuple[nn.Module, nn.Module]] = []
        times: Counter[nn.Module] = Counter()

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            times[module] += 1
            x = args[0] if args else kwargs.get("input")
            if isinstance(module, _BatchNorm):
                if id(x) in made:
                    taken.append((module, made[id(x)][0]))
            else:
                axes.setdefault(module, set()).add(output.ndim)
                made[id(output)] = (module, output)

        watched = [module for module in model.modules() if isinstance(module, (*KERNEL_LAYERS, *LAYERS, _BatchNorm))]
        args, kwargs = read_example(example, model)
        with hooked(dict.fromkeys(watched, look)):
            outputs = [one.clone() for one in _comparable(model(*args, **kwargs))]
        if not outputs:
            fact = f"{type(model).__name__} gives no tensor of numbers that could be compared"
            raise LayerError(fact, fix="leave the example out, and compare the outputs yourself")
        users = Counter(layer for _, layer in taken)
        sources = {n: layer for n, layer in taken if times[n] == times[layer] == users[layer] == 1}
        return cls((args, kwargs), outputs, frozenset(m for m, counts in axes.items() if counts == {2}), sources)

    @property
    def tolerance(self) -> float:
        return max(_TOLERANCE.get(output.dtype, 0.1) for output in self.outputs)

    def change(self, model: nn.Module) -> float:
        """||outputs - those before||_F / ||those before||_F; infinite if shapes differ or numbers are not finite."""
        args, kwargs = self.arguments
        outputs = _comparable(model(*args, **kwargs))
        if [one.shape for one in outputs] != [one.shape for one in self.outputs]:
            return torch.inf
        distance = sum(float(torch.dist(*both)) ** 2 for both in zip(outputs, self.outputs, strict=True)) ** 0.5
        change: float = distance / (sum(float(one.norm()) ** 2 for one in self.outputs) ** 0.5 or 1.0)
        return torch.inf if change != change else change


def _comparable(output: object) -> list[Tensor]:
    return [one for one in tensors_in(output) if one.is_floating_point() or one.is_complex()]


def _find_sources(
    model: nn.Module, norms: Sequence[_BatchNorm], seen: _Seen | None, pairs: Mapping[str, str] | None
) -> tuple[_Sources, bool]:
    """The layer that each batch normalisation follows, and whether it is certain that nothing else uses its output."""
    if pairs is not None:
        modules = dict(model.named_modules())
        named: _Sources = dict.fromkeys(norms, "it is not named in pairs")
        for layer, name in pairs.items():
            norm = modules.get(name)
            if layer not in modules or not isinstance(norm, _BatchNorm):
                known = ", ".join(one for one in modules if isinstance(modules[one], _BatchNorm))
                fact = f"{layer!r} and {name!r} are not a layer and a batch normalisation of the model"
                raise LayerError(fact, batch_normalisations=known)
            named[norm] = modules[layer]
        return named, True
    if not norms:
        return {}, True
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # the model's own code, which may raise anything when it is traced
        because = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        _log.info("%s cannot be traced: %s", type(model).__name__, because)
        if seen is not None:
            unseen = "the example does not show one layer that feeds it directly"
            return {norm: seen.sources.get(norm, unseen) for norm in norms}, False
        unknown = f"the model cannot be traced ({because}), and without an example it is unknown what it follows"
        neighbours: _Sources = dict.fromkeys(norms, unknown)
        for module in model.modules():
            if type(module) is nn.Sequential:
                neighbours |= {two: one for one, two in pairwise(module) if two in neighbours}
        return neighbours, False
    return _sources_in_graph(model, graph, norms), True


class _Tracer(fx.Tracer):
    """Decomposed layers are leaves, as torch's are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, KernelLayer) or super().is_leaf_module(m, module_qualified_name)


def _sources_in_graph(model: nn.Module, graph: fx.Graph, norms: Sequence[_BatchNorm]) -> _Sources:
    called = {node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    times = Counter(called.values())
    sources: _Sources = dict.fromkeys(norms, "it is not called")
    for node, norm in called.items():
        if isinstance(norm, _BatchNorm):
            before = node.args[0] if node.args else None
            layer = called.get(before) if isinstance(before, fx.Node) else None
            if layer is None or not isinstance(before, fx.Node):
                sources[norm] = "it does not follow a layer directly"
            elif times[norm] > 1 or times[layer] > 1:
                sources[norm] = "it or the layer before it is called more than once"
            elif len(before.users) > 1:
                sources[norm] = "the layer before it also feeds something else"
            else:
                sources[norm] = layer
    return sources


def _obstacle(layer: nn.Module, norm: _BatchNorm, seen: _Seen | None) -> str | None:
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
    model: nn.Module, new: Sequence[_Replacement], seen: _Seen | None, *, certain: bool
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
