"""The kernels of a network that a study may rewrite, and what it says of one that is rewritten."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import LayerError, StudyError, ValuesError, explain
from ..fitting import Metric
from ..model import Images, input_metrics
from ..nn import kernel_labels_of, kernel_layers
from .store import Key


@dataclass(frozen=True, eq=False)
class Layer:
    """A kernel of the network: where it is, its labels in torch's order, its weight in float64."""

    name: str
    labels: tuple[str, ...]
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Treated:
    """A kernel that was rewritten and contracted back.

    weight: axes as in the layer.
    details: what a row says of it: `rank` or `ranks`, `relative_error` (||K - K~||_F / ||K||_F), `norm_kept`
        (||K~||_F / ||K||_F; 1 for a kernel of zeros), `parameters` (of its factors), of fits, and where it is
        reported, `output_error` too.
    """

    weight: Tensor
    details: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Asked:
    """A row to come: what makes it, and the layers it touches."""

    key: Key
    layers: tuple[Layer, ...]


@dataclass(frozen=True, eq=False)
class Workbench:
    """What rewrites of kernels need beside the kernels.

    model: the dense network in its own type, in evaluation mode, on the device.
    calibration: images for metrics and divergences; None where nothing asks for them.
    settings: mean, std, batch_size and device of the images.
    dtype: in which the network is tested.
    seed: of the fits.
    """

    model: nn.Module
    calibration: Images | None
    settings: Mapping[str, Any]
    dtype: torch.dtype
    seed: int
    _metrics: dict[str, Metric] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> list[Tensor]:
        """Batches of the network's inputs."""
        if self.calibration is None:
            return []
        own = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        return [pixels for pixels, _ in self.calibration.batches(**{**self.settings, "dtype": own})]

    def metrics(self, names: Iterable[str]) -> dict[str, Metric]:
        """The input metrics of these layers; each is measured once."""
        names = list(names)
        missing = [name for name in names if name not in self._metrics]
        if missing:
            device = self.settings["device"]
            self._metrics.update(input_metrics(self.model, self.inputs, layers=missing, device=device))
        return {name: self._metrics[name] for name in names}

    def output_error(self, layer: Layer, weight: Tensor) -> float:
        """sqrt(E||(K - K~) x||^2 / E||K x||^2): the error in the layer's input metric of a kernel in its place.

        Args:
            weight: K~, axes as in the layer.
        """
        own = layer.weight.to(self.settings["device"])
        return self.metrics([layer.name])[layer.name].relative(weight.to(own) - own, own, layer.labels)


KEYWORDS = ("first", "linear")
"""What may be skipped without a glob: the first convolution, all linear layers."""


def globs_of(modules: Mapping[str, nn.Module], skip: Sequence[str]) -> list[str]:
    """Globs of layers' names for what is to be skipped, where keywords stand for layers that may not be there.

    Args:
        modules: name -> layer, in the model's order.
        skip: globs, "first" for the first convolution, "linear" for all linear layers.
    """
    kinds = {name: len(kernel_labels_of(module)) > 2 for name, module in modules.items()}
    first = [name for name, convolves in kinds.items() if convolves][:1]
    linear = [name for name, convolves in kinds.items() if not convolves]
    meant = {"first": first, "linear": linear}
    return [name for pattern in skip if pattern in meant for name in meant[pattern]] + [
        pattern for pattern in skip if pattern not in meant
    ]


def layers_of(model: nn.Module, skip: Sequence[str]) -> list[Layer]:
    """The kernels that may be cut, each weight once, under the first name it has.

    Args:
        skip: globs of layers' names; "first" for the first convolution, "linear" for all linear layers. A weight that
            two layers share is left alone if one of them is.

    Raises:
        ValuesError: a parameter or a buffer of the model, a kernel or not, that is not finite; an empty weight.
        LayerError: a weight that is computed from others, or not there yet.
        StudyError: a glob that matches no layer; no layer is left.
    """
    modules = kernel_layers(model)
    for pattern in skip:
        if pattern not in KEYWORDS and not any(fnmatchcase(name, pattern) for name in modules):
            raise StudyError(no_match(f"skip {pattern!r} matches no layer", pattern, list(modules)))
    patterns = globs_of(modules, skip)
    weights = {name: _checked_weight(name, module) for name, module in modules.items()}
    _check_finite(model)
    skipped = {name for name in modules if any(fnmatchcase(name, pattern) for pattern in patterns)}
    taken = {id(weights[name]) for name in skipped}
    found = []
    for name, module in modules.items():
        weight = weights[name]
        if id(weight) not in taken:
            taken.add(id(weight))
            kernel = weight.detach().to(device="cpu", dtype=torch.float64, copy=True)
            found.append(Layer(name, kernel_labels_of(module), kernel))
    if not modules:
        raise StudyError(
            explain(f"{type(model).__name__} has no kernel to cut", needed="a convolution or linear layer")
        )
    if not found:
        raise StudyError(explain("no layer is left to cut", skipped=", ".join(skip), fix="fewer layers in skip"))
    return found


def _checked_weight(name: str, module: nn.Module) -> Tensor:
    weight = module._parameters.get("weight")
    if weight is None:
        raise LayerError(
            explain(
                f"the weight of layer {name!r} is computed from other parameters (a parametrisation, weight norm)",
                fix="remove the parametrisation first: torch.nn.utils.parametrize.remove_parametrizations",
            )
        )
    if is_lazy(weight):
        raise LayerError(explain(f"layer {name!r} has no weight yet", fix="run the model once on an input"))
    if weight.numel() == 0:
        raise ValuesError(explain(f"the weight of layer {name!r} is empty", shape=tuple(weight.shape)))
    return weight


def _check_finite(model: nn.Module) -> None:
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            if is_lazy(tensor):
                continue
            # a buffer may be a mask, which holds -inf where nothing is to be seen
            bad = ~tensor.isfinite() if kind == "parameter" else tensor.isnan() | tensor.isposinf()
            if bool(bad.any()):
                raise ValuesError(
                    explain(
                        f"the {kind} {name!r} of {type(model).__name__} holds NaN or infinity",
                        where=f"{int(bad.sum())} of {tensor.numel()} elements",
                    )
                )


def no_match(fact: str, pattern: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
    return explain(
        fact,
        near=", ".join(near) or None,
        layers=", ".join(names[:8]) + (", ..." if len(names) > 8 else ""),
        fix="a layer's name, or a glob such as 'layer3.*'",
    )
