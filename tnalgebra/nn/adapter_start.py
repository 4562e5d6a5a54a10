"""The values that the tensors of an adapter start from: the network is zero, and its gradient is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from ..errors import RuleError
from ..networks import Fuse, NamedTensor, Network, shapes
from .kernels import mean_square, without_fuses
from .torch_layers import EMBEDDING_LABELS


def start_adapter(kernel: Network, constants: Mapping[str, Tensor] = {}) -> dict[str, Tensor]:
    """Values in float64 for the tensors of a kernel, one of them zero, so that the kernel is.

    The tensor that is zero carries the first label of the kernel, or a part of it, where one does: of LoRA it is `B`.
    The others are uniform, and have one scale: the network without the zero tensor is a map from the inputs, whose
    elements get the variance 1 / (3 * fan_in) that `kaiming_uniform_` gives to `A` of LoRA (Hu et al. 2021, arXiv
    2106.09685). Of an embedding, whose input selects one row, fan_in is 1.

    Args:
        kernel: with all sizes; the first label of its output is that of the layer's outputs, or an embedding's rows.
        constants: the elements of the tensors that are not trained.

    Raises:
        RuleError: every tensor that is trained occurs more than once, so that the gradient would be zero too.
    """
    times = Counter(node.name for node in kernel.nodes if isinstance(node, NamedTensor))
    trained = [name for name in times if name not in constants]
    once = [name for name in trained if times[name] == 1]
    if not once:
        fact = "an adapter starts with one tensor at zero, and all tensors of this one occur more than once"
        raise RuleError(fact, network=kernel, because="its gradient would be zero too, and it would never change")
    inner = without_fuses(kernel)
    first, *_ = kernel.output
    parts = {
        first,
        *(part for node in kernel.nodes if isinstance(node, Fuse) and node.whole == first for part in node.parts),
    }
    labels = {node.name: node.labels for node in inner.nodes if isinstance(node, NamedTensor)}
    zero = next((name for name in once if parts & {*labels[name]}), once[0])
    values = dict(constants)
    for name, shape in shapes(kernel).items():
        if name not in constants:
            values[name] = torch.zeros(shape, dtype=torch.float64)
            if name != zero:
                values[name].uniform_(-1, 1)
    drawn = sum(count for name, count in times.items() if name in trained and name != zero)
    if drawn:
        nodes = tuple(node for node in inner.nodes if not (isinstance(node, NamedTensor) and node.name == zero))
        known = {label for node in nodes for label in node.labels}
        output = tuple(label for label in dict.fromkeys((*inner.output, *labels[zero])) if label in known)
        rest = Network(nodes, output, {label: size for label, size in inner.sizes.items() if label in known})
        fan_in = prod(inner.sizes[label] for label in inner.output if label in known and label not in parts)
        fan_in = 1 if kernel.output == EMBEDDING_LABELS else fan_in
        factor = (1 / (3 * fan_in * mean_square(rest, values))) ** (1 / (2 * drawn))
        for name in trained:
            values[name] = factor * values[name]
    return values
