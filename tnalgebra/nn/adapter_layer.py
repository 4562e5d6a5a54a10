"""The layer of the network of an adapter, and its scale."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ..errors import LayerError
from ..networks import Network
from .base import KernelLayer
from .hooks import computed_tensor
from .layers import layer_class
from .origin import Origin
from .planning import Planning
from .torch_layers import AnyLayer, memory_format_of


def adapter_layer(
    base: AnyLayer,
    kernel: Network,
    values: Mapping[str, Tensor | str],
    *,
    constants: Collection[str],
    planning: Planning,
) -> KernelLayer:
    """The layer with the arguments of one of torch's and this kernel, for `Adapted.add`; it has no bias.

    Args:
        base: torch's layer, which determines arguments, dtype and device.
        kernel: a network; the labels of its output are the axes of the weight.
        values: of its tensors, which are trained; the name of a basis is one, such as "dct", and is not.
        constants: names of those that are not.
        planning: what the plan is chosen for.

    Raises:
        LayerError: a kernel of another shape, a tensor named like an attribute of the layer, or a weight or bias that
            is computed from others at each call.
    """
    computed = computed_tensor(base)
    if computed is not None:
        raise LayerError(f"the {type(base).__name__} cannot have an adapter", because=computed)
    bare, weight = copy.copy(base), base.weight
    zeros = torch.zeros((), dtype=weight.dtype, device=weight.device).expand(weight.shape)  # the row of a padding is 0
    bare.__dict__["_parameters"] = {"weight": nn.Parameter(zeros), "bias": None}
    planning = Planning(memory_format=memory_format_of(weight)) | planning
    kind = layer_class(base)
    return kind.of_network(bare, kernel, values, constants=constants, planning=planning, origin=Origin())


def check_scale(scale: object) -> float:
    """A scale as a float. Raises LayerError if it is not a finite number."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise LayerError(f"the scale of an adapter is {scale!r}", fix="a finite number, such as alpha / rank")
    return float(scale)
