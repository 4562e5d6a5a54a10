"""The values that the tensors of an adapter start from: the network is zero, and its gradient is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod

import torch
from torch import Tensor

from ..errors import RuleError
from ..networks import Fuse, NamedTensor, Network, shapes
from .kernels import mean_square, without_fuses
from .torch_layers import EMBEDDING_LABELS


def start_adapter(kernel: Network, constants: Mapping[str, Tensor] = {}) -> dict[str, Tensor]:
    """Values in float64 for the tensors of a kernel, one of them zero in each term, so that the kernel is.

    The tensor that is zero carries the first label of the kernel, or a part of it, where one does: of LoRA it is `B`.
    The others are uniform, and have one scale: the term without the zero tensor is a map from the inputs, whose
    elements get the variance 1 / (3 * fan_in) that `kaiming_uniform_` gives to `A` of LoRA (Hu et al. 2021, arXiv
    2106.09685). Of an embedding, whose input selects one row, fan_in is 1.

    Args:
        kernel: with all sizes; the first label of its output is that of the layer's outputs, or an embedding's rows.
        constants: the elements of the tensors that are not trained.

    Raises:
        RuleError: every tensor of a term that is trained occurs more than once, so that the gradient would be zero too.
    """
    values = dict(constants)
    zeros: list[str] = []
    for term in kernel.terms:
        times = Counter(node.name for node in term.nodes if isinstance(node, NamedTensor))
        new = [name for name in times if name not in values]
        inner, outputs = without_fuses(term), _labels_of_outputs(term)
        labels = {node.name: node.labels for node in inner.nodes if isinstance(node, NamedTensor)}
        once = [name for name in (*zeros, *new) if times[name] == 1]
        if not once:
            fact = "an adapter starts with one tensor at zero, and this one has none that is trained and occurs once"
            because = "the gradient of a tensor that occurs more than once would be zero too, and it would never change"
            raise RuleError(fact, network=term, because=because)
        zero = once[0] if once[0] in zeros else next((name for name in once if outputs & {*labels[name]}), once[0])
        zeros.append(zero)
        values |= _uniform(term, new)
        values[zero] = torch.zeros(shapes(term)[zero], dtype=torch.float64)
        drawn = sum(times[name] for name in new if name != zero)
        if drawn:
            rest = _without(inner, zero)
            inputs = {*inner.output} & {*rest.output} - outputs
            fan_in = 1 if kernel.output == EMBEDDING_LABELS else prod(map(inner.sizes.__getitem__, inputs))
            factor = (1 / (3 * fan_in * mean_square(rest, values))) ** (1 / (2 * drawn))
            values |= {name: factor * values[name] for name in new}
    return values


def _uniform(kernel: Network, names: Iterable[str]) -> dict[str, Tensor]:
    """Elements between -1 and 1 for some tensors."""
    of_tensor = shapes(kernel)
    return {name: torch.empty(of_tensor[name], dtype=torch.float64).uniform_(-1, 1) for name in names}


def _labels_of_outputs(kernel: Network) -> set[str]:
    """The label of a layer's outputs, or an embedding's rows, and its parts."""
    first, *_ = kernel.output
    fuses = [node for node in kernel.nodes if isinstance(node, Fuse) and node.whole == first]
    return {first, *(part for node in fuses for part in node.parts)}


def _without(network: Network, name: str) -> Network:
    """The network without a tensor, whose labels become open where other nodes carry them."""
    nodes = [node for node in network.nodes if not (isinstance(node, NamedTensor) and node.name == name)]
    (removed,) = [node for node in network.nodes if node not in nodes]
    known = {label for node in nodes for label in node.labels}
    output = [label for label in dict.fromkeys((*network.output, *removed.labels)) if label in known]
    return Network(nodes, output, {label: size for label, size in network.sizes.items() if label in known})
