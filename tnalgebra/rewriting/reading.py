"""A rule in the notation, read at a place: its right side in the network's names, and what a fit of it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import RuleError, SizeError, ValuesError
from ..fitting import Metric
from ..networks import (
    KERNEL_LABELS,
    Edit,
    Fuse,
    Network,
    Node,
    all_nodes,
    carriers,
    edited,
    fresh,
    relabel,
    rename,
    renamed,
    sum_of_products,
    tensor_nodes,
    tensors_of,
    with_sizes,
)
from ..tensors import (
    Values,
    as_tensor,
    basis_matrix,
    common_dtype,
    in_precision,
    target_of,
)
from .matching import Match
from .options import Options, check_basis_name
from .sides import balanced_factors, fill_attributes, filled, shared_sizes


@dataclass(frozen=True, eq=False)
class Reading:
    """A rule that was read at a place of a network, with the values and options of its application.

    left, right: the sides of the rule.
    fixed: the basis of each constant of the rule.
    network: the network that the rule is applied to.
    match: the first of the matches at the place; the others differ from it in their labels only.
    known: sizes of the labels of the left side, as far as the network determines them.
    shared: sizes of the labels of the right side that follow from `known`.
    after: the network after the step, in which the sizes of new bonds are still unknown.
    names: the network's name for each name of the rule.
    labels: for each match, the network's label for each label of the right side.
    """

    left: Network
    right: Network
    fixed: Mapping[str, str]
    network: Network
    match: Match
    known: Mapping[str, int]
    shared: Mapping[str, int]
    after: Network
    names: Mapping[str, str]
    labels: Sequence[Mapping[str, str]]
    options: Options
    values: Values = field(default_factory=dict)

    @cached_property
    def before(self) -> Network:
        """The left side as a separate network, with the labels of the rule and the names of the network."""
        nodes = [rename(node, self.names) for node in fill_attributes(self.left.nodes, self.match.attributes)]
        return Network(nodes, self.left.output, {**self.left.sizes, **self.known})

    def piece(self, sizes: Mapping[str, int]) -> Network:
        """The right side as a separate network, with these sizes in addition to those that are known.

        Raises:
            SizeError: the caller gives a size for a label that the right side does not have, or a second size.
        """
        for label in self.options.sizes:
            if label not in _labels(self.right):
                fact = f"a size is given for {label!r}, which the right side does not have"
                raise SizeError(fact, right=self.right)
        known = {**self.right.sizes, **self.shared, **self.options.sizes}
        for label, size in sizes.items():
            if known.setdefault(label, size) != size:
                fact = f"label {label!r} has two sizes"
                raise SizeError(fact, first=known[label], second=size, right=self.right)
        return with_sizes(renamed(filled(self.right, self.match.attributes), names=self.names), known)

    @cached_property
    def new(self) -> list[str]:
        """The names of the new tensors of the right side, in the rule."""
        old = tensor_nodes(self.left)
        return [name for name in tensors_of(self.right) if name not in old]

    @property
    def missing(self) -> list[str]:
        """The tensors of the left side that have no value, by their names in the network."""
        return [name for name in self.match.names.values() if name not in self.values]

    # The fit: its target has the labels of the rule, its right side the names of the network.

    @cached_property
    def target(self) -> Tensor:
        if self.missing:
            fact = f"an approximate rule needs the value of {self.missing[0]!r}"
            raise RuleError(fact, fix="apply(network, size, values={...})")
        return target_of(self.before, self.values, torch.float64)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type of the new tensors, which is complex where a value or a constant is."""
        dtype = common_dtype(self.values[name] for name in self.match.names.values())
        return dtype.to_complex() if any(value.is_complex() for value in self.constants.values()) else dtype

    @cached_property
    def sized(self) -> Network:
        """The right side, whose bonds have no sizes yet."""
        return _with_parts(self.piece(dict(zip(self.left.output, self.target.shape, strict=True))))

    @cached_property
    def constants(self) -> dict[str, Tensor]:
        """The tensors of the right side that are not fitted."""
        constants = {
            self.names[name]: in_precision(self.values[self.names[name]], torch.float64).to(self.target.device)
            for name in tensors_of(self.right)
            if name not in self.new
        }
        for name, value in {**self.fixed, **self.options.fixed}.items():
            if name not in self.new:
                fact = f"fixed holds {name!r}, which is not a new tensor of the right side"
                raise ValuesError(fact, new=" ".join(self.new))
            constants[self.names[name]] = _constant(name, value, self.sized, self.names[name]).to(self.target.device)
        if len(constants) == len(tensors_of(self.sized)):
            raise RuleError("nothing is left to be fitted", fixed=" ".join(constants), right=self.sized)
        return constants

    @cached_property
    def start(self) -> dict[str, Tensor] | None:
        if self.options.start is None:
            return None
        for name in self.options.start:
            if name not in self.new:
                fact = f"the start has {name!r}, which is not a new tensor"
                raise ValuesError(fact, new=" ".join(self.new))
        cores = {name: _numbers(f"the start of {name!r}", value) for name, value in self.options.start.items()}
        for name, core in cores.items():
            if core.is_complex() and not self.dtype.is_complex:
                raise ValuesError(f"the start of {name!r} is complex, and the kernel is real", fix="real numbers")
        return {self.names[name]: core for name, core in cores.items()}

    @cached_property
    def constraints(self) -> dict[str, str]:
        for name in self.options.constraints:
            if name not in self.new:
                fact = f"constraints= has {name!r}, which is not a new tensor of the right side"
                raise RuleError(fact, new=" ".join(self.new))
        return {self.names[name]: kind for name, kind in self.options.constraints.items()}

    @cached_property
    def metric(self) -> Metric | None:
        if self.options.metric is None:
            return None
        labels = {self.match.labels[label]: label for label in self.left.output}
        whole = set(self.network.output) == labels.keys()
        return metric_in(self.options.metric, labels, self.left.output, whole=whole)

    @property
    def alike(self) -> object:
        """A key that is equal for fits which can be made side by side."""
        if self.constants or self.constraints or self.start is not None:
            return id(self)
        metric = None if self.metric is None else (self.metric.labels, self.metric.batch, self.metric.outputs)
        size = self.options.size
        written = repr(sorted(size.items()) if isinstance(size, Mapping) else size)
        return self.sized, self.target.shape, self.target.device, self.dtype, metric, written, self.options.settings


def read_at(
    sides: tuple[Network, Network],
    network: Network,
    group: Sequence[Match],
    options: Options,
    *,
    fixed: Mapping[str, str],
) -> Reading:
    """Substitute the right side for the left one at every match of a group.

    Raises:
        NetworkError, SizeError: sizes or labels that the matches do not show forbid it.
    """
    left, right = sides
    names = dict(group[0].names)
    taken_names, taken = set(tensor_nodes(network)), set(carriers(network))
    for name in tensors_of(right):
        if name not in names:
            names[name] = fresh(name, taken_names)
            taken_names.add(names[name])
    replacements: list[list[list[Node]]] = []  # for each match, the nodes of each term of the right side
    labels_of_matches: list[dict[str, str]] = []
    sizes_of_matches: list[tuple[dict[str, int], dict[str, int]]] = []
    sizes: dict[str, int] = {}
    for match in group:
        labels = {label: match.labels[label] for label in left.output}
        for label in _labels(right):
            if label not in labels:
                labels[label] = fresh(label, taken)
                taken.add(labels[label])
        terms = [fill_attributes(term.nodes, match.attributes) for term in right.terms]
        replacements.append([[rename(relabel(node, labels), names) for node in term] for term in terms])
        known = {label: network.sizes[thing] for label, thing in match.labels.items() if thing in network.sizes}
        shared = shared_sizes(left, right, known)
        for label, size in (*shared.items(), *right.sizes.items()):
            if sizes.setdefault(labels[label], size) != size:
                raise SizeError(
                    f"label {labels[label]!r} has size {sizes[labels[label]]}, and the right side needs {size}"
                )
        labels_of_matches.append(labels)
        sizes_of_matches.append((known, shared))
    removed = [position for match in group for position in match.nodes]
    after = _multiplied_out(network, removed, replacements, sizes)
    known, shared = sizes_of_matches[0]
    return Reading(
        left=left,
        right=right,
        fixed=fixed,
        network=network,
        match=group[0],
        known=known,
        shared=shared,
        after=after,
        names=names,
        labels=labels_of_matches,
        options=options,
    )


def _multiplied_out(
    network: Network, removed: Sequence[int], replacements: Sequence[Sequence[Sequence[Node]]], sizes: Mapping[str, int]
) -> Network:
    """The network with other nodes in the place of some: a term for each choice of a term of each replacement."""
    products = []
    for chosen in product(*replacements):
        nodes = [node for term in chosen for node in term]
        carried = {label for node in nodes for label in node.labels}
        known = {label: size for label, size in sizes.items() if label in carried}
        after = edited(network, Edit(remove=removed, add=nodes, sizes=known))
        products.append((after.nodes, after.sizes))
    return sum_of_products(products, network.output)


def _labels(network: Network) -> tuple[str, ...]:
    """All labels of a network, in the order in which they first occur."""
    return tuple(dict.fromkeys(label for node in all_nodes(network) for label in node.labels))


def _with_parts(right: Network) -> Network:
    """The right side with sizes for all parts of its `Fuse` nodes; parts without a size become as equal as possible."""
    for node in all_nodes(right):
        if not isinstance(node, Fuse):
            continue
        unknown = [part for part in node.parts if part not in right.sizes]
        if not unknown or node.whole not in right.sizes:
            continue
        rest, known = right.sizes[node.whole], prod(right.sizes[part] for part in node.parts if part in right.sizes)
        if rest % known:
            raise SizeError(
                f"{node.whole!r} has size {rest}, which is not a multiple of the sizes of its parts",
                parts=" ".join(f"{part}={right.sizes[part]}" for part in node.parts if part in right.sizes),
                right=right,
            )
        factors = balanced_factors(rest // known, len(unknown))
        sizes = dict(zip(unknown, factors, strict=True))
        if [sizes[part] for part in unknown] != list(factors):  # a part that occurs twice
            raise SizeError(
                f"{node.whole!r} has size {rest}, which is not the product of any sizes of its parts",
                unknown=" ".join(unknown),
                right=right,
            )
        try:
            right = with_sizes(right, sizes)
        except SizeError as error:
            raise SizeError(
                f"the sizes that were chosen for the parts of {node.whole!r} do not fit the rest of the right side",
                chosen=" ".join(f"{part}={size}" for part, size in sizes.items()),
                because=f"{error.label!r} is also {error.context['second']}" if error.label else error,
                right=str(right),
                fix=f"sizes={{{unknown[0]!r}: ...}}, if other sizes fit",
            ) from error
    return right


def _constant(name: str, value: Any, right: Network, network_name: str) -> Tensor:
    """The elements of a constant, which the network calls `network_name`."""
    node = tensors_of(right)[network_name]
    if isinstance(value, str):
        check_basis_name(value)
        if node.labels[1] not in right.sizes:
            raise SizeError(f"the size of {node.labels[1]!r} is unknown, which the basis {name!r} needs")
        return basis_matrix(value, right.sizes[node.labels[1]])
    constant = _numbers(f"the constant {name!r}", value)
    needed = [right.sizes.get(label) for label in node.labels]
    fits = constant.ndim == len(needed) and all(
        size in (None, axis) for size, axis in zip(needed, constant.shape, strict=True)
    )
    if not fits:
        raise ValuesError(
            f"the constant {name!r} has shape {tuple(constant.shape)}",
            labels=" ".join(f"{label}={size or 'any'}" for label, size in zip(node.labels, needed, strict=True)),
        )
    return constant


def _numbers(what: str, value: Any) -> Tensor:
    """Elements from a caller or a file, in float64 or complex128. Raises ValuesError if they are not finite numbers."""
    try:
        if isinstance(value, Tensor):
            tensor = as_tensor(value.detach())
        else:
            dtype = np.complex128 if np.iscomplexobj(value) else np.float64
            tensor = torch.from_numpy(np.array(value, dtype=dtype))
    except (TypeError, ValueError) as error:
        raise ValuesError(f"{what} is not an array of numbers", because=error) from error
    if tensor.numel() == 0 or not bool(tensor.isfinite().all()):
        kind = "holds NaN or infinity" if tensor.numel() else "is empty"
        raise ValuesError(f"{what} {kind}", shape=tuple(tensor.shape), fix="finite numbers")
    return in_precision(tensor, torch.float64)


def metric_in(metric: Metric, labels: Mapping[str, str], output: Sequence[str], *, whole: bool = True) -> Metric:
    """Rename the labels of a metric: by their names, or by the order that torch gives to the axes of a kernel.

    Args:
        labels: the new label for each open label of the network.
        output: the new labels, in the order of the axes.
        whole: whether the network has no other open labels, so that its axes are those of a kernel.

    Raises:
        RuleError: the tensor does not have the labels of the metric.
    """
    needed = {*metric.labels, *metric.outputs}
    if not needed <= labels.keys():
        torch_order = KERNEL_LABELS.get(len(output), ())
        if not needed <= set(torch_order) or not whole:
            raise RuleError(
                "the tensor that is fitted does not have the labels of the metric",
                metric=" ".join((*metric.outputs, *metric.labels)),
                tensor=" ".join(labels),
                fix="a metric whose labels and outputs are labels of this tensor",
            )
        labels = dict(zip(torch_order, output, strict=True))
    return metric.renamed(labels)
