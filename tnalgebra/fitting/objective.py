"""What is fitted: a network whose free cores are to come near a target, in the norm of a metric.

Everything carries two more axes in front, so that many fits are one: `LAYER` numbers kernels of one shape that are
fitted side by side, `START` the first guesses of each. The network's own labels follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..tensors import Operand, contract

_Labels: TypeAlias = tuple[str, ...]

LAYER, START = "layer/", "start/"
"""No labels of the notation, so that they never meet one."""

BATCH = (LAYER, START)

PRIME = "'"
"""Marks the labels of a second copy."""


class Occurrence(NamedTuple):
    """A tensor where it occurs: its name and labels."""

    name: str
    labels: _Labels


@dataclass(frozen=True, eq=False)
class Objective:
    """min ||target - network||^2 over the free cores.

    occurrences: of free cores and constants; a name that occurs twice is tied.
    output: labels of the target, in order.
    target: shape (layers, *sizes of output).
    free: name -> shape, of the cores that are fitted.
    constants: name -> shape (layers or 1, *sizes); held fixed.
    metric: element [l, .., i, .., j] of a positive definite form over `coupled` labels (then over the same, primed),
        one for each value of `blocks`; shape (layers, *blocks, *coupled, *coupled). None is the Frobenius norm.
    pulled: target contracted with the metric, in the target's shape; the target itself without one.
    """

    occurrences: tuple[Occurrence, ...]
    output: tuple[str, ...]
    target: Tensor
    free: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    metric: Tensor | None = None
    coupled: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()

    @cached_property
    def layers(self) -> int:
        return self.target.shape[0]

    @cached_property
    def held(self) -> dict[str, Tensor]:
        """The constants, without an axis for the layers where these share one."""
        return {name: c[0] if c.shape[0] == 1 else c for name, c in self.constants.items()}

    @cached_property
    def named(self) -> tuple[tuple[str, _Labels], ...]:
        """Each occurrence: the name of its tensor, and the labels that the tensor's axes have in a fit."""
        found = []
        for occurrence in self.occurrences:
            constant = self.constants.get(occurrence.name)
            batch = BATCH if constant is None else () if constant.shape[0] == 1 else (LAYER,)
            found.append((occurrence.name, (*batch, *occurrence.labels)))
        return tuple(found)

    @cached_property
    def metric_labels(self) -> _Labels:
        return (LAYER, *self.blocks, *self.coupled, *(label + PRIME for label in self.coupled))

    @cached_property
    def pulled(self) -> Tensor:
        return self.apply_metric(self.target[:, None])[:, 0]

    @cached_property
    def power(self) -> Tensor:
        """<target, target> in the metric; shape (layers, 1)."""
        return total((self.target * self.pulled)[:, None])

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """free core -> positions of its occurrences."""
        found: dict[str, list[int]] = {name: [] for name in self.free}
        for position, occurrence in enumerate(self.occurrences):
            if occurrence.name in found:
                found[occurrence.name].append(position)
        return found

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Of the target's labels and those of the free cores."""
        sizes = dict(zip(self.output, self.target.shape[1:], strict=True))
        for name, labels in self.occurrences:
            sizes |= dict(zip(labels, self.free.get(name, ()), strict=False))
        return sizes

    @property
    def occurrences_of_free(self) -> list[Occurrence]:
        return [occurrence for occurrence in self.occurrences if occurrence.name in self.free]

    def without_metric(self) -> Objective:
        return replace(self, metric=None, coupled=(), blocks=())

    def of_layers(self, layers: Tensor) -> Objective:
        """The same for some of the layers."""
        constants = {name: c if c.shape[0] == 1 else c[layers] for name, c in self.constants.items()}
        metric = None if self.metric is None else self.metric[layers]
        return replace(self, target=self.target[layers], constants=constants, metric=metric)

    def of_sizes(self, values: Mapping[str, Tensor]) -> Objective:
        """The same with cores of the shapes in `values`, (layers, starts, *sizes)."""
        return replace(self, free={name: tuple(value.shape[2:]) for name, value in values.items()})

    def absorbing(self) -> str | None:
        """The core that can take up the metric: it occurs once, and alone has all labels that the metric couples."""
        if self.metric is None:
            return None
        for name, places in self.places.items():
            labels = self.occurrences[places[0]].labels
            elsewhere = {label for i, o in enumerate(self.occurrences) if i != places[0] for label in o.labels}
            if len(places) == 1 and not elsewhere & set(self.coupled) and {*self.coupled, *self.blocks} <= set(labels):
                return name
        return None

    def absorb(self, factor: Tensor) -> Objective:
        """The objective for the core times the factor M of the metric: one in the Frobenius norm.

        Args:
            factor: shape (layers, *blocks, d, d), d the number of coupled values.
        """
        rows = self._rows(self.target, (LAYER, *self.output))
        target = self._unrows(rows @ factor, (LAYER, *self.output), self.target.shape)
        return replace(self, target=target, metric=None, coupled=(), blocks=())

    def release(self, core: Tensor, factor: Tensor, name: str) -> Tensor:
        """The core itself, of what was fitted in its place; for one layer: no axis in front."""
        labels = (LAYER, *self.occurrences[self.places[name][0]].labels)
        rows = self._rows(core[None], labels)
        solved = torch.linalg.solve_triangular(factor[None], rows, upper=False, left=False)
        return self._unrows(solved, labels, core[None].shape)[0].contiguous()

    def whitening(self) -> dict[str, Tensor]:
        """Factors of a Kronecker product near the metric: coupled label -> M, shape (layers, n, n).

        M M^T is the metric traced over all other labels. Only labels that occur on one core are there: that core can
        take up the factor.
        """
        found = {}
        for label in self.coupled:
            on = [occurrence.name for occurrence in self.occurrences if label in occurrence.labels]
            if len(on) != 1 or on[0] not in self.free or len(self.places[on[0]]) != 1 or label in self.blocks:
                continue
            assert self.metric is not None
            again = tuple(label + PRIME if other == label else other for other in self.coupled)
            labels = (LAYER, *self.blocks, *self.coupled, *again)
            traced = contract([(self.metric, labels)], (LAYER, label, label + PRIME))
            found[label] = torch.linalg.cholesky(traced)
        return found

    def whiten(self, factors: Mapping[str, Tensor]) -> Objective:
        """The same objective for cores that have taken up the factors: its metric is nearly the identity."""
        assert self.metric is not None
        target, labels = self.target, (LAYER, *self.output)
        metric, coupled = self.metric, self.metric_labels
        for label, factor in factors.items():
            new = label + "new"
            target = contract([(target, labels), (factor, (LAYER, label, new))], _replace_label(labels, label, new))
            for old in (label, label + PRIME):
                inverse = (torch.linalg.inv(factor), (LAYER, new, old))
                metric = contract([(metric, coupled), inverse], _replace_label(coupled, old, new))
        return replace(self, target=target.contiguous(), metric=metric.contiguous())

    def take_up(self, values: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cores of one layer, without axes in front, each times the factors of its labels."""
        found = {}
        for name, core in values.items():
            labels = self.occurrences[self.places[name][0]].labels
            for label in factors.keys() & set(labels):
                new = label + "new"
                core = contract([(core, labels), (factors[label], (label, new))], _replace_label(labels, label, new))
            found[name] = core.contiguous()
        return found

    def _rows(self, tensor: Tensor, labels: Sequence[str]) -> Tensor:
        """Shape (layers, *blocks, others, coupled values)."""
        others = [label for label in labels if label not in (LAYER, *self.blocks, *self.coupled)]
        order = [labels.index(label) for label in (LAYER, *self.blocks, *others, *self.coupled)]
        moved = tensor.permute(order)
        size = prod(moved.shape[len(moved.shape) - len(self.coupled) :])
        return moved.reshape(*moved.shape[: 1 + len(self.blocks)], -1, size)

    def _unrows(self, rows: Tensor, labels: Sequence[str], shape: Sequence[int]) -> Tensor:
        others = [label for label in labels if label not in (LAYER, *self.blocks, *self.coupled)]
        ordered = [LAYER, *self.blocks, *others, *self.coupled]
        return rows.reshape([shape[labels.index(label)] for label in ordered]).permute(
            [ordered.index(label) for label in labels]
        )

    @cached_property
    def unknowns(self) -> int:
        """Numbers to be found for one start of one layer."""
        return sum(prod(shape) for shape in self.free.values())

    @cached_property
    def tied(self) -> bool:
        return any(len(places) > 1 for places in self.places.values())

    def operands(self, values: Mapping[str, Tensor], positions: Sequence[int] | None = None) -> list[Operand]:
        """The occurrences at these positions (by default all) with their elements."""
        tensors = {**self.held, **values}
        named = self.named if positions is None else [self.named[position] for position in positions]
        return [(tensors[name], labels) for name, labels in named]

    def others(self, position: int) -> list[int]:
        """All positions but one."""
        return [other for other in range(len(self.occurrences)) if other != position]

    def model(self, values: Mapping[str, Tensor]) -> Tensor:
        """The network contracted; shape (layers, starts, *sizes of output)."""
        return self.contract_to(self.operands(values), self.output)

    def norms(self, values: Mapping[str, Tensor]) -> Tensor:
        """||network||_F without the network contracted; shape (layers, starts)."""
        operands = self.operands(values)
        again = [
            (tensor, tuple(label if label in (*BATCH, *self.output) else label + PRIME for label in labels))
            for tensor, labels in operands
        ]
        return self.contract_to([*operands, *again], ()).clamp(min=0).sqrt()

    def apply_metric(self, tensor: Tensor) -> Tensor:
        """The metric times a tensor of shape (layers, starts, *sizes of output)."""
        if self.metric is None:
            return tensor
        primed = tuple(label + PRIME if label in self.coupled else label for label in self.output)
        return contract([(tensor, (*BATCH, *primed)), (self.metric, self.metric_labels)], (*BATCH, *self.output))

    def shared_labels(self, positions: Sequence[int]) -> tuple[str, ...]:
        """Labels of the target contracted with all occurrences but those: what ties it to them."""
        inside = {label for position in positions for label in self.occurrences[position].labels}
        outside = {
            label for i, occurrence in enumerate(self.occurrences) if i not in positions for label in occurrence.labels
        }
        return tuple(label for label in dict.fromkeys((*self.output, *sorted(outside))) if label in inside)

    def shared_elements(self, positions: Sequence[int]) -> int:
        """How many numbers a layer and start of that tensor has."""
        return prod([self.sizes.get(label, 1) for label in self.shared_labels(positions)])

    def lay_out(self, positions: Sequence[int]) -> Operand:
        """The pulled target with the labels of those occurrences in front, as a matrix product wants it."""
        inside = {label for position in positions for label in self.occurrences[position].labels}
        order = sorted(range(len(self.output)), key=lambda axis: self.output[axis] not in inside)
        moved = self.pulled.permute(0, *(1 + axis for axis in order)).contiguous()
        return moved, (LAYER, *(self.output[axis] for axis in order))

    def environment(self, tensor: Tensor, position: int, values: Mapping[str, Tensor]) -> Tensor:
        """A tensor over the output, contracted with all but one occurrence: the derivative by that occurrence.

        Args:
            tensor: shape (layers, starts or 1, *sizes of output).
        """
        labels = self.occurrences[position].labels
        first = (tensor[:, 0], (LAYER, *self.output)) if tensor.shape[1] == 1 else (tensor, (*BATCH, *self.output))
        others = self.operands(values, self.others(position))
        return self.contract_to([first, *others], labels)

    def contract_to(self, operands: Sequence[Operand], labels: Sequence[str]) -> Tensor:
        """Contract to (layers, starts, *labels); an axis that no operand has is stretched."""
        there = {label for _, names in operands for label in names}
        like = operands[0][0]
        ones = [(like.new_ones(self.sizes[label]), (label,)) for label in labels if label not in there]
        operands, there = [*operands, *ones], there.union(labels)
        kept = [label for label in (*BATCH, *labels) if label in there]
        result = contract(operands, kept)
        for axis, label in enumerate(BATCH):
            if label not in there:
                result = result.unsqueeze(axis)
        return result

    def loss(self, model: Tensor) -> Tensor:
        """||target - model||^2 in the metric; shape (layers, starts)."""
        residual = model - self.target[:, None]
        return total(residual * self.apply_metric(residual)).clamp(min=0)


def _replace_label(labels: tuple[str, ...], old: str, new: str) -> tuple[str, ...]:
    return tuple(new if label == old else label for label in labels)


def total(tensor: Tensor) -> Tensor:
    """Sum over everything but layers and starts; shape (layers, starts)."""
    return tensor.reshape(*tensor.shape[:2], -1).sum(2)
