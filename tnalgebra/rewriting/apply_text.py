"""What a rule in the notation makes of a place: exact changes by substitution, approximate ones by a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import RuleError, SizeError, ValuesError, explain
from ..fitting import CoreFit, Metric, fit_cores
from ..network import KERNEL_LABELS, Fuse, Network, carriers, parameters, renamed, tensor_nodes, with_sizes
from ..tensors import Values, common_dtype, evaluate, magnitude, value_of, values_for
from .matching import Match
from .rule import ROUNDING, Change, Job
from .sides import BASES, balanced_factors, check_basis, filled, shared_sizes


@dataclass(frozen=True, eq=False)
class Reading:
    """A rule read at a place.

    job: the application.
    left, right: the rule's sides.
    match: the first of the matches that the place is made of; the others are alike.
    after: the network after the step, sizes of new labels still unknown.
    names: the rule's names -> the network's.
    labels: for each match, the right side's labels -> the network's.
    fixed: the rule's constants, by the name of their basis.
    """

    job: Job
    left: Network
    right: Network
    match: Match
    after: Network
    names: Mapping[str, str]
    labels: tuple[Mapping[str, str], ...]
    fixed: Mapping[str, str]

    @cached_property
    def known(self) -> dict[str, int]:
        """Sizes of the left side's labels, as far as the network tells them."""
        sizes = self.job.network.sizes
        return {label: sizes[thing] for label, thing in self.match.labels.items() if thing in sizes}

    @cached_property
    def before(self) -> Network:
        """The left side as a network of its own: the rule's labels, the network's names."""
        return self._piece(self.left, self.known)

    @cached_property
    def piece(self) -> Network:
        """The right side likewise."""
        return self._piece(self.right, shared_sizes(self.left, self.right, self.known) | dict(self.job.options.sizes))

    @property
    def new(self) -> list[str]:
        """Names of the right side's new tensors, as the rule has them."""
        return [name for name in tensor_nodes(self.right) if name not in tensor_nodes(self.left)]

    @property
    def valued(self) -> bool:
        return all(name in self.job.values for name in self.match.names.values())

    def _piece(self, side: Network, sizes: Mapping[str, int]) -> Network:
        there = carriers(side)
        for label in sizes:
            if label not in there:
                raise SizeError(
                    explain(f"a size is given for {label!r}, which the right side does not have", right=side)
                )
        nodes = [filled(node, self.match.attributes) for node in side.nodes]
        whole = Network(nodes, side.output, {**side.sizes, **sizes})
        return renamed(whole, names={name: self.names[name] for name in tensor_nodes(side)})


def exact_change(reading: Reading) -> Change:
    """The change of a rule whose sides are equal."""
    before, after, values = reading.before, reading.piece, reading.job.values
    if not reading.new:
        if reading.valued and len(before.sizes) == len(carriers(before)):
            _check_values(before, after, values)
        return Change(reading.after)
    definition = Network(before.nodes, after.nodes[0].labels, before.sizes)
    return Change(reading.after, {reading.names[reading.new[0]]: definition})


def _check_values(before: Network, after: Network, values: Values) -> None:
    old, new = evaluate(before, values_for(before, values)), evaluate(after, values_for(after, values))
    scale = magnitude(before, values_for(before, values))
    if not bool(((new - old).abs() <= ROUNDING * scale).all()):
        raise RuleError(explain("the two sides of an exact rule differ on these values", before=before, after=after))


def fitted_changes(readings: Sequence[Reading]) -> list[Change]:
    """The changes of an approximate rule; kernels of one shape are fitted side by side."""
    wanted = [_wanted(reading) for reading in readings]
    groups: dict[object, list[int]] = {}
    for number, each in enumerate(wanted):
        groups.setdefault(each.alike or number, []).append(number)
    found: dict[int, CoreFit] = {}
    for members in groups.values():
        first = wanted[members[0]]
        options = first.reading.job.options
        metrics = [each.metric for each in (wanted[i] for i in members) if each.metric is not None]
        fits = fit_cores(
            [wanted[i].target for i in members],
            first.right,
            options.ranks,
            before=parameters(first.reading.before),
            settings=options.settings,
            constants=first.constants,
            metrics=metrics,
            start=first.start,
        )
        found |= dict(zip(members, fits, strict=True))
    return [_change(each, found[number]) for number, each in enumerate(wanted)]


@dataclass(frozen=True, eq=False)
class _Wanted:
    """A fit to be made: the target in the rule's labels, the right side with the network's names."""

    reading: Reading
    target: Tensor
    right: Network
    constants: dict[str, Tensor]
    metric: Metric | None
    start: dict[str, Tensor] | None

    @property
    def alike(self) -> object:
        """Equal for fits that can be made side by side; None for one that is made alone."""
        options = self.reading.job.options
        if self.constants or self.start is not None:
            return None
        metric = None if self.metric is None else (self.metric.labels, self.metric.batch, self.metric.outputs)
        ranks = repr(sorted(options.ranks.items()) if isinstance(options.ranks, Mapping) else options.ranks)
        return self.right, self.target.shape, self.target.device, metric, ranks, options.settings


def _wanted(reading: Reading) -> _Wanted:
    job = reading.job
    if not reading.valued:
        missing = next(name for name in reading.match.names.values() if name not in job.values)
        raise RuleError(explain(f"an approximate rule needs the value of {missing!r}", fix="apply(network, values)"))
    target = value_of(reading.before, job.values, dtype=torch.float64)
    right = with_sizes(reading.piece, dict(zip(reading.left.output, target.shape, strict=True)))
    right = _with_parts(right)
    constants = {
        reading.names[name]: job.values[reading.names[name]].to(target)
        for name in tensor_nodes(reading.right)
        if name not in reading.new
    }
    for name, value in {**reading.fixed, **job.options.fixed}.items():
        if name not in reading.new:
            raise ValuesError(
                explain(f"fixed holds {name!r}, no new tensor of the right side", new=" ".join(reading.new))
            )
        constants[reading.names[name]] = _constant(name, value, right, reading.names[name]).to(target)
    if len(constants) == len(tensor_nodes(right)):
        raise RuleError(explain("nothing is left to be fitted", fixed=" ".join(constants), right=right))
    start = job.options.start
    if start is not None:
        unknown = [name for name in start if name not in reading.new]
        if unknown:
            raise ValuesError(explain(f"the start has {unknown[0]!r}, no new tensor", new=" ".join(reading.new)))
        start = {reading.names[name]: _numbers(f"the start of {name!r}", value) for name, value in start.items()}
    metric = job.options.metric
    if metric is not None:
        there = {reading.match.labels[label]: label for label in reading.left.output}
        whole = set(job.network.output) == there.keys()
        metric = metric_in(metric, there, reading.left.output, whole=whole)
    return _Wanted(reading, target, right, constants, metric, start)


def _with_parts(right: Network) -> Network:
    """Sizes for the parts of a `Fuse` that nobody gave: as equal as they can be."""
    for node in right.nodes:
        if not isinstance(node, Fuse):
            continue
        unknown = [part for part in node.parts if part not in right.sizes]
        if not unknown or node.whole not in right.sizes:
            continue
        rest, known = right.sizes[node.whole], prod(right.sizes[part] for part in node.parts if part in right.sizes)
        if rest % known:
            raise SizeError(
                explain(
                    f"{node.whole!r} has size {rest}, which the sizes of its parts do not divide",
                    parts=" ".join(f"{part}={right.sizes[part]}" for part in node.parts if part in right.sizes),
                    right=right,
                )
            )
        factors = balanced_factors(rest // known, len(unknown))
        sizes = dict(zip(unknown, factors, strict=True))
        if [sizes[part] for part in unknown] != list(factors):  # a part that stands twice
            raise SizeError(
                explain(
                    f"{node.whole!r} has size {rest}, which no sizes of its parts give",
                    unknown=" ".join(unknown),
                    right=right,
                )
            )
        right = with_sizes(right, sizes)
    return right


def _constant(name: str, value: Any, right: Network, there: str) -> Tensor:
    node = right.nodes[tensor_nodes(right)[there][0]]
    if isinstance(value, str):
        check_basis(value)
        if node.labels[1] not in right.sizes:
            raise SizeError(explain(f"the size of {node.labels[1]!r} is unknown, so the basis {name!r} has none"))
        return BASES[value](right.sizes[node.labels[1]])
    constant = _numbers(f"the constant {name!r}", value)
    needed = [right.sizes.get(label) for label in node.labels]
    fits = constant.ndim == len(needed) and all(
        size in (None, axis) for size, axis in zip(needed, constant.shape, strict=True)
    )
    if not fits:
        raise ValuesError(
            explain(
                f"the constant {name!r} has shape {tuple(constant.shape)}",
                labels=" ".join(f"{label}={size or 'any'}" for label, size in zip(node.labels, needed, strict=True)),
            )
        )
    return constant


def _numbers(what: str, value: object) -> Tensor:
    """What a caller or a file gives as elements, in float64. Raises ValuesError: it is none, or not finite."""
    try:
        tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValuesError(explain(f"{what} is no array of numbers", because=error)) from error
    if tensor.is_complex() or tensor.numel() == 0 or not bool(tensor.isfinite().all()):
        kind = "is complex" if tensor.is_complex() else "holds NaN or infinity" if tensor.numel() else "is empty"
        raise ValuesError(explain(f"{what} {kind}", shape=tuple(tensor.shape), fix="finite real numbers"))
    return tensor.double()


def metric_in(metric: Metric, there: Mapping[str, str], output: Sequence[str], *, whole: bool = True) -> Metric:
    """A metric over a kernel's labels, in other ones: by their names, or by torch's order of a kernel's axes.

    Args:
        there: open label of the network -> the label that is wanted.
        output: the wanted labels, in the order of the axes.
        whole: whether the network has no other open labels; only then are they a kernel's axes.

    Raises:
        RuleError: the metric is not one of this tensor.
    """
    own = {*metric.labels, *metric.outputs}
    if not own <= there.keys():
        torch_order = KERNEL_LABELS.get(len(output), ())
        if not own <= set(torch_order) or not whole:
            raise RuleError(
                explain(
                    "the metric is not one of the tensor that is fitted",
                    metric=" ".join((*metric.outputs, *metric.labels)),
                    tensor=" ".join(there),
                    fix="labels and outputs of the metric that are this tensor's",
                )
            )
        there = dict(zip(torch_order, output, strict=True))
    return metric.renamed(there)


def _change(wanted: _Wanted, fit: CoreFit) -> Change:
    reading, job = wanted.reading, wanted.reading.job
    dtype = common_dtype(job.values[name] for name in reading.match.names.values())
    sizes = {**{label: wanted.right.sizes[label] for label in wanted.right.sizes}, **fit.ranks}
    grown = with_sizes(
        reading.after, {own[label]: size for own in reading.labels for label, size in sizes.items() if label in own}
    )
    new = {reading.names[name] for name in reading.new}
    return Change(
        grown,
        values={name: value.to(dtype) for name, value in fit.values.items() if name in new},
        relative_error=fit.relative_error,
        ranks=fit.ranks,
        output_error=fit.output_error,
        report=fit.report,
        pieces=(with_sizes(reading.before, {}), with_sizes(wanted.right, fit.ranks)),
    )
