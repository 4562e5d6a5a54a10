"""Kernels of layers as networks: checks, fits of a weight, and their value as one tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..decompositions import read_rewrite
from ..errors import LayerError
from ..fitting import open_labels
from ..networks import Fuse, NamedTensor, Network, all_nodes, fresh, relabel, shape_of
from ..rewriting import Choices, Fit, Rule
from ..tensors import add_up, is_basis, value_of
from .torch_layers import AnyLayer, kernel_labels_of, layer_network, own_weight


def elements_by_default() -> AbstractContextManager[object]:
    """Tensors have elements where the meta device is the default one, as inside of `with torch.device("meta")`."""
    return torch.device("cpu") if torch.get_default_device().type == "meta" else nullcontext()


def check_kernel(module: AnyLayer) -> None:
    """Refuse a layer that has no network, or whose weight is not its own."""
    layer_network(module)
    own_weight(module)


def check_layer_weight(module: AnyLayer) -> None:
    """Refuse what a layer made from this one could not do."""
    check_kernel(module)
    if own_weight(module).is_meta:
        raise LayerError("the weight has no elements: it is on the meta device", fix="a device with memory")
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    held = [name.strip("_").replace("_", " ") for name in hooks if getattr(module, name)]
    if held:
        fact = f"this {type(module).__name__} has {held[0]}, which its decomposition would not have"
        raise LayerError(fact, fix="remove them, and put them on the new layer")


def fit_weight(module: AnyLayer, rewrite: str | Rule, size: object, choices: Choices) -> Fit:
    """The fit of a layer's weight; of random numbers in its place, if it is without elements."""
    rule = read_rewrite(rewrite, kernel_labels_of(module))
    weight = torch.randn(module.weight.shape, dtype=module.weight.dtype) if module.weight.is_meta else module.weight
    return rule.apply({rule.tensor: weight}, size, **choices)


def values_of_fit(fit: Fit) -> dict[str, Tensor | str]:
    """The values of a fit, where constants that are a whole basis are its name."""
    chosen = [(*step.rule.fixed.items(), *step.options.fixed.items()) for step in fit.trace.steps]
    return with_names(fit.values, [pair for pairs in chosen for pair in pairs])


def with_names(values: Mapping[str, Tensor], fixed: Iterable[tuple[str, Any]]) -> dict[str, Tensor | str]:
    """The values, with the name of a basis in place of the elements of each constant that is a whole basis.

    Args:
        fixed: names of constants, and elements or the name of a basis for each; of a basis rows may be left out.
    """
    named: dict[str, Tensor | str] = dict(values)
    for name, basis in fixed:
        if isinstance(basis, str) and name in values and is_basis(values[name], basis):
            named[name] = basis
    return named


def without_fuses(kernel: Network) -> Network:
    """The network of a kernel whose output labels are replaced by the parts that a `Fuse` splits them into."""
    parts = open_labels(kernel)
    split = [label for label in kernel.output if label not in parts]
    nodes = [node for node in kernel.nodes if not (isinstance(node, Fuse) and node.whole in split)]
    known = {label for node in nodes for label in node.labels}
    return Network(nodes, parts, {label: size for label, size in kernel.sizes.items() if label in known})


def contracted(kernel: Network, values: Mapping[str, Tensor]) -> Tensor:
    """The value of a kernel's network in float64."""
    shape = shape_of(kernel, kernel.output)
    with elements_by_default():
        parts = [value_of(without_fuses(term), values, dtype=torch.float64) for term in kernel.terms]
    return add_up([part.reshape(shape) for part in parts])


def scaled_to(
    variance: float, kernel: Network, values: Mapping[str, Tensor], drawn: Collection[str]
) -> dict[str, Tensor]:
    """The values, where those that are drawn have factors that make `variance` the mean square of the kernel.

    In each term of a sum the drawn tensors have one factor, so that the terms have equal parts of the variance. One
    tensor of each term, which occurs nowhere else, then makes up for what the terms have in common with each other.
    """
    scaled, done = dict(values), set[str]()
    for term in kernel.terms:
        times = Counter(node.name for node in term.nodes if isinstance(node, NamedTensor) and node.name in drawn)
        if times:
            factor = (variance / len(kernel.terms) / mean_square(term, values)) ** (1 / (2 * times.total()))
            scaled |= {name: factor * values[name] for name in times if name not in done}
            done |= times.keys()
    if len(kernel.terms) > 1 and done:
        occurs = Counter(node.name for node in all_nodes(kernel))
        alone = [
            next((n.name for n in term.nodes if n.name in done and occurs[n.name] == 1), None) for term in kernel.terms
        ]
        factor = math.sqrt(variance / float(contracted(kernel, scaled).square().mean()))
        scaled |= {name: factor * scaled[name] for name in alone if name is not None}
    return scaled


def mean_square(kernel: Network, values: Mapping[str, Tensor]) -> float:
    """The mean of the squares of a kernel's elements, from the network times itself: the kernel is not rebuilt."""
    inner = without_fuses(kernel)
    names: dict[str, str] = {}
    for label in {label for node in inner.nodes for label in node.labels} - {*inner.output}:
        names[label] = fresh(label, {*inner.sizes, *names.values()})
    sizes = {**inner.sizes, **{names[label]: size for label, size in inner.sizes.items() if label in names}}
    twice = Network((*inner.nodes, *(relabel(node, names) for node in inner.nodes)), (), sizes)
    return float(value_of(twice, values, dtype=torch.float64)) / prod(shape_of(kernel, kernel.output))
