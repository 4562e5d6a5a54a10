"""The kernels of a network that a study may rewrite, and what their rewrites need."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import LayerError, StudyError, ValuesError, explain
from ..fitting import Metric
from ..model import input_metrics
from ..nn import kernel_labels_of, kernel_layers
from .options import StudyOptions


@dataclass(frozen=True, eq=False)
class Layer:
    """A kernel of the network.

    name: of its layer.
    labels: of its axes, in torch's order.
    weight: float64, on the CPU.
    """

    name: str
    labels: tuple[str, ...]
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Workbench:
    """What rewrites of kernels need.

    model: the network as it is, in its original type, in evaluation mode, on the device.
    layers: name -> kernel.
    example: one image, for which multiply-adds are counted.
    """

    model: nn.Module
    layers: Mapping[str, Layer]
    options: StudyOptions
    example: Tensor | None = None
    _metrics: dict[str, Metric] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> list[Tensor]:
        """The calibration images, in batches that the network accepts."""
        options = self.options
        if options.calibration is None:
            return []
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        batches = options.calibration.batches(options.batch_size, dtype=dtype, device=options.device)
        return [pixels for pixels, _ in batches]

    def weight(self, name: str) -> Tensor:
        """The kernel of a layer, float64, on the device."""
        return self.layers[name].weight.to(self.options.device)

    def metrics(self, names: Iterable[str]) -> dict[str, Metric]:
        """The input metrics of these layers; each is measured once."""
        names = list(names)
        missing = [name for name in names if name not in self._metrics]
        if missing:
            device = self.options.device
            self._metrics.update(input_metrics(self.model, self.inputs, layers=missing, device=device))
        return {name: self._metrics[name] for name in names}

    def output_error(self, name: str, weight: Tensor) -> float:
        """The relative error of a layer's output with another kernel, sqrt(E||(K - K~) x||^2 / E||K x||^2).

        Args:
            weight: K~, with the axes of the layer. The inputs x are those of the calibration images.
        """
        kernel = self.weight(name)
        return self.metrics([name])[name].relative(weight.to(kernel) - kernel, kernel, self.layers[name].labels)


KEYWORDS = ("first", "linear")
"""Words that may be skipped instead of globs: the first convolution, all linear layers."""


def globs_of(modules: Mapping[str, nn.Module], skip: Sequence[str]) -> list[str]:
    """Globs of layers' names, where the words "first" and "linear" are replaced by the names that they stand for.

    Args:
        modules: name -> layer, in the model's order.
        skip: globs, "first" for the first convolution, "linear" for all linear layers.
    """
    convolves = {name: len(kernel_labels_of(module)) > 2 for name, module in modules.items()}
    layers = {
        "first": [name for name in modules if convolves[name]][:1],
        "linear": [name for name in modules if not convolves[name]],
    }
    names = [name for pattern in skip if pattern in layers for name in layers[pattern]]
    return names + [pattern for pattern in skip if pattern not in layers]


def layers_of(model: nn.Module, skip: Sequence[str]) -> list[Layer]:
    """The kernels that may be rewritten, each weight once, under its first name.

    Args:
        skip: globs of layers' names; "first" for the first convolution, "linear" for all linear layers. A weight that
            two layers share is left out if one of them is.

    Raises:
        ValuesError: a parameter or a buffer of the model is not finite, or a weight is empty.
        LayerError: a weight is computed from other parameters, or is not initialised yet.
        StudyError: a glob matches no layer, or no layer is left.
    """
    check_skip([model], skip)
    return layers_left(model, skip)


def check_skip(models: Iterable[nn.Module], skip: Sequence[str]) -> None:
    """Refuse a glob that matches a layer of none of the models. Raises StudyError."""
    names = list(dict.fromkeys(name for model in models for name in kernel_layers(model)))
    for pattern in skip:
        if pattern not in KEYWORDS and not any(fnmatchcase(name, pattern) for name in names):
            raise StudyError(no_match(f"skip {pattern!r} matches no layer", pattern, names))


def layers_left(model: nn.Module, skip: Sequence[str]) -> list[Layer]:
    """The same as `layers_of`, where a glob may match no layer."""
    modules = kernel_layers(model)
    patterns = globs_of(modules, skip)
    weights = {name: _check_weight(name, module) for name, module in modules.items()}
    _check_finite(model)
    taken = {id(weights[name]) for name in modules if any(fnmatchcase(name, pattern) for pattern in patterns)}
    layers = []
    for name, module in modules.items():
        weight = weights[name]
        if id(weight) not in taken:
            taken.add(id(weight))
            kernel = weight.detach().clone(memory_format=torch.contiguous_format).to(device="cpu", dtype=torch.float64)
            layers.append(Layer(name, kernel_labels_of(module), kernel))
    if not modules:
        raise StudyError(f"{type(model).__name__} has no kernel to rewrite", needed="a convolution or linear layer")
    if not layers:
        raise StudyError("no layer is left to rewrite", skipped=", ".join(skip), fix="fewer layers in skip")
    return layers


def _check_weight(name: str, module: nn.Module) -> Tensor:
    weight = module._parameters.get("weight")
    if weight is None:
        raise LayerError(
            f"the weight of layer {name!r} is computed from other parameters (a parametrisation, weight norm)",
            fix="remove the parametrisation first: torch.nn.utils.parametrize.remove_parametrizations",
        )
    if is_lazy(weight):
        raise LayerError(f"layer {name!r} has no weight yet", fix="run the model once on an input")
    if weight.numel() == 0:
        raise ValuesError(f"the weight of layer {name!r} is empty", shape=tuple(weight.shape))
    return weight


def _check_finite(model: nn.Module) -> None:
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            if is_lazy(tensor):
                continue
            # a buffer may be a mask, which holds -inf where attention is blocked
            bad = ~tensor.isfinite() if kind == "parameter" else tensor.isnan() | tensor.isposinf()
            if bool(bad.any()):
                raise ValuesError(
                    f"the {kind} {name!r} of {type(model).__name__} holds NaN or infinity",
                    where=f"{int(bad.sum())} of {tensor.numel()} elements",
                )


def no_match(fact: str, pattern: str, names: Sequence[str]) -> str:
    """The message that a glob matches no layer, with similar names."""
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
    return explain(
        fact,
        near=", ".join(near) or None,
        layers=", ".join(names[:8]) + (", ..." if len(names) > 8 else ""),
        fix="a layer's name, or a glob such as 'layer3.*'",
    )
