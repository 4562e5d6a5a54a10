"""Singular values of kernels: of every layer of a model, over every cut of its labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import LayerError, NetworkError, RuleError, ValuesError
from ..networks import (
    KERNEL_LABELS,
    Bipartition,
    Network,
    bipartitions,
    check_covers,
    kernel_labels,
    parse_bipartition,
    read_network,
)
from ..nn import check_dense, kernel_labels_of, kernel_layers
from ..rewriting import Fit
from ..tensors import (
    as_tensor,
    check_axes,
    cut_of_bond,
    evaluate,
    gram_singular_values,
    matricise,
    network_singular_values,
    scaled,
)
from .spectrum import Spectra, Spectrum

_MAX_LABELS = 12
"""Most open labels a network may have here: 2047 cuts. One label more doubles them."""


def spectra(
    target: nn.Module | Tensor | NDArray[Any] | Network | str | Fit,
    *,
    values: Mapping[str, Any] | None = None,
    cuts: Sequence[str | Bipartition] | None = None,
) -> Spectra:
    """Singular values of every kernel of `target`, over every bipartition of its labels, or over some of them.

    Args:
        target: a model (its convolutions, transposed convolutions and linear layers), a weight of 2 to 5 axes in
            torch's order (`out in kh kw`), or a network, its notation or a fit, of which the value is taken, with its
            output labels.
        values: name -> elements of a network's tensors.
        cuts: the bipartitions of the labels, such as "out kh | in kw"; of a network or a fit also names of bonds, each
            of which divides the open labels into those on either side. The singular values of a network across these
            cuts are those of its canonical form, and its dense value, which may have any number of labels, is not
            computed. Layers that do not have the labels of a cut are left out.

    Returns:
        The spectra by layer, and within a layer in the order of `cuts` or of `bipartitions`.

    Raises:
        ValuesError: a weight that holds NaN or infinity (the layer is named), is empty, has 1 axis or
            more than 5; `values` that do not fit.
        LayerError: a model without any such layer, or with one that has no weight yet.
        NetworkError: a network with fewer than 2 or more than 12 output labels, without `cuts`; or a bond that does not
            cut the network in two.
        RuleError: a cut that is not one of any kernel's labels.

    Example:
        >>> print(tn.spectra(conv.weight))
        >>> print(tn.spectra(fit, cuts=["p", "q"])[0].entropy)
    """
    found = []
    kernels: dict[str, tuple[Tensor, tuple[str, ...]]] = {}
    if isinstance(cuts, str):
        raise RuleError(f"cuts= is the text {cuts!r}", fix=f"a list of cuts: [{cuts!r}]")
    check_cuts(cuts)
    target = read_network(target) if isinstance(target, str) else target
    network, elements = (target.network, target.values) if isinstance(target, Fit) else (target, values or {})
    if cuts is not None and isinstance(network, Network):
        return Spectra(tuple(_across(network, elements, cut) for cut in cuts))
    read = [cut if isinstance(cut, Bipartition) else parse_bipartition(cut) for cut in cuts or ()]
    for layer, tensor, labels in _kernels(target, values):
        each = _of_kernel(labels, None if cuts is None else read)
        if not each:
            continue
        kernels[layer] = (tensor.detach(), tuple(labels))
        try:
            of_cuts = cut_singular_values(tensor, labels, each)
        except ValuesError as error:
            raise ValuesError(f"layer {layer!r} has no spectrum", because=error) from error
        found += [Spectrum(layer, cut, numbers.cpu()) for cut, numbers in zip(each, of_cuts, strict=True)]
    for cut in read:
        if not any(item.cut == cut for item in found):
            raise RuleError(f"no kernel has the labels of the cut {str(cut)!r}", fix="such as 'out | in kh kw'")
    return Spectra(tuple(found), kernels)


def check_cuts(cuts: object) -> None:
    """Raise RuleError if it is not a list of cuts or bonds, or None."""
    known = isinstance(cuts, Sequence) and all(isinstance(one, str | Bipartition) for one in cuts)
    if cuts is not None and not known:
        raise RuleError(f"cuts= is {cuts!r}", fix="a list of cuts, such as ['out | in kh kw']")


def _of_kernel(labels: Sequence[str], cuts: Sequence[Bipartition] | None) -> Sequence[Bipartition]:
    """The cuts that have the labels of a kernel; all cuts of it if they are None."""
    if cuts is None:
        return bipartitions(kernel_labels(labels) or labels)  # one name a cut, transposed layers included
    return [cut for cut in cuts if {*cut.labels} == {*labels}]


def _across(network: Network, values: Mapping[str, Any], cut: str | Bipartition) -> Spectrum:
    """The spectrum of a network across a cut or a bond, by its canonical form."""
    bond = cut if isinstance(cut, str) and "|" not in cut else None
    if bond is not None:
        cut = cut_of_bond(network, bond)
    elif isinstance(cut, str):
        cut = parse_bipartition(cut)
    return Spectrum("network", cut, network_singular_values(network, values, cut).cpu(), bond)


def cut_singular_values(tensor: Tensor, labels: Sequence[str], cuts: Sequence[Bipartition]) -> list[Tensor]:
    """Singular values of one tensor over several cuts, accurate as `gram_singular_values` says.

    A label of size 1 makes no difference to a cut, and neither does swapping its sides: cuts that agree but for
    this share one computation, which makes four of the seven cuts of a 1x1 convolution free.

    Returns:
        For each cut shape (r,), descending, with r the smaller side of the cut's matrix.

    Raises:
        ValuesError: an axis without a label or two with one, empty, or NaN or infinity inside.
        RuleError: a cut that does not hold exactly these labels.
    """
    check_axes(tensor, labels)
    numbers, scale = scaled(tensor)
    longer = frozenset(label for label, size in zip(labels, tensor.shape, strict=True) if size > 1)
    values: dict[frozenset[frozenset[str]], Tensor] = {}
    found = []
    for cut in cuts:
        check_covers(cut, labels, what="the tensor")
        sides = frozenset((longer.intersection(cut.left), longer.intersection(cut.right)))
        if sides not in values:
            values[sides] = gram_singular_values(matricise(numbers, labels, cut)) * scale
        found.append(values[sides])
    return found


def _kernels(
    target: nn.Module | Tensor | NDArray[Any] | Network | Fit, values: Mapping[str, Any] | None
) -> Iterator[tuple[str, Tensor, tuple[str, ...]]]:
    """(name, elements, labels) of every kernel."""
    if isinstance(target, Fit) and values is None:
        yield from _kernels(target.network, target.values)
        return
    if isinstance(target, Network):
        count = len(target.output)
        if not 2 <= count <= _MAX_LABELS:
            raise NetworkError(
                f"a network with {count} output labels has no cuts here", fix=f"2 to {_MAX_LABELS}, or cuts=[...]"
            )
        yield "network", evaluate(target, values), target.output
        return
    if values is not None:
        raise ValuesError(
            "values are given, but no network", target=type(target).__name__, fix="values only for a network"
        )
    if isinstance(target, nn.Module):
        layers = kernel_layers(target)
        if not layers:
            check_dense(target)
            raise LayerError(
                "the model has no kernels", model=type(target).__name__, fix="a convolution or linear layer"
            )
        for name, layer in layers.items():
            if is_lazy(layer.weight):
                raise LayerError(f"layer {name!r} has no weight yet", fix="run the model once on an input")
            yield name or "weight", layer.weight, kernel_labels_of(layer)
        return
    if not isinstance(target, Tensor | np.ndarray):
        raise ValuesError(f"a {type(target).__name__} has no spectra", fix="a model, a weight, a network or a fit")
    weight = as_tensor(target)
    if weight.ndim not in KERNEL_LABELS:
        raise ValuesError(
            f"a weight has 2 to 5 axes, this has {weight.ndim}",
            shape=tuple(weight.shape),
            fix="spectra(network, values=...) for any labels",
        )
    yield "weight", weight, KERNEL_LABELS[weight.ndim]
