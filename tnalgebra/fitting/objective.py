"""The objective of a fit: a network whose free cores are to come near a target, and when the rest is only rounding.

Every tensor has two more axes in front, so that many fits are computed as one: `LAYER` numbers kernels of one shape
that are fitted side by side, and `START` numbers the first guesses for each of them. The network's labels follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..tensors import Operand, add_up, contract, in_precision, products, squares
from .constraints import ORTHONORMAL

_Labels: TypeAlias = tuple[str, ...]

LAYER, START = "layer/", "start/"
"""The notation has no such labels, so they never meet one of the network."""

BATCH = (LAYER, START)

_AT_ONCE = 2**24
"""Most elements of the networks of all starts that are contracted at once, which take 128 MiB in float64."""

PRIME = "'"
"""Marks the labels of a second copy of a tensor."""


class Occurrence(NamedTuple):
    """One occurrence of a tensor in the network: its name and its labels."""

    name: str
    labels: _Labels


@dataclass(frozen=True, eq=False)
class Objective:
    """Minimise ||target - network||^2 over the free cores, where the network is a product or a sum of products.

    Attributes:
        occurrences: of free cores and constants, in the order of the network. A name that occurs twice is tied.
        term_of: for each occurrence the number of its term; by default all are in one. Terms have only labels of the
            output in common.
        output: labels of the target, in the order of its axes.
        target: shape (layers, *sizes of output).
        free: the shape of each core that is fitted, by name.
        constants: the elements of each tensor that is held fixed, by name. All layers share them.
        metric: element [l, .., i, .., j] of a positive definite form over the values of `coupled` (i) and again of
            `coupled` (j), one form for each value of `blocks`; shape (layers, *blocks, *coupled, *coupled). Without
            one, the norm is the Frobenius norm.
        coupled, blocks: labels of the target, see `metric`.
        constraints: what some of the free cores must be, by name, see `constraints.CONSTRAINTS`.
        stability: how much small cores are worth, see `merit`.
        kept: the type that the cores have in the end.
    """

    occurrences: tuple[Occurrence, ...]
    output: _Labels
    target: Tensor
    free: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    metric: Tensor | None = None
    coupled: _Labels = ()
    blocks: _Labels = ()
    constraints: Mapping[str, str] = field(default_factory=dict)
    stability: float = 0.0
    kept: torch.dtype = torch.float64
    term_of: tuple[int, ...] = ()

    # What follows from labels and sizes ------------------------------------------------------------------------

    @cached_property
    def layers(self) -> int:
        return self.target.shape[0]

    @cached_property
    def named(self) -> tuple[Occurrence, ...]:
        """The occurrences with the labels that the tensors have in a fit: those of cores begin with `BATCH`."""
        return tuple(
            Occurrence(name, labels if name in self.constants else (*BATCH, *labels))
            for name, labels in self.occurrences
        )

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """The positions of the occurrences of each free core."""
        return {
            name: [position for position, occurrence in enumerate(self.occurrences) if occurrence.name == name]
            for name in self.free
        }

    @cached_property
    def tied(self) -> bool:
        return any(len(places) > 1 for places in self.places.values())

    @cached_property
    def terms(self) -> tuple[tuple[int, ...], ...]:
        """The positions of the occurrences in each term."""
        numbers = self.term_of or (0,) * len(self.occurrences)
        return tuple(
            tuple(position for position, term in enumerate(numbers) if term == number)
            for number in dict.fromkeys(numbers)
        )

    def term_at(self, position: int) -> tuple[int, ...]:
        """The positions of the occurrences in the term of this one."""
        return next(term for term in self.terms if position in term)

    def _factors_in(self, term: Sequence[int]) -> int:
        names = [self.occurrences[position].name for position in term]
        return max(1, sum(name in self.free and self.constraints.get(name) != ORTHONORMAL for name in names))

    @cached_property
    def factors(self) -> int:
        """How many factors of a component are elements of free cores, of the term that has the most.

        Orthonormal cores have no scale. It is at least 1.
        """
        return max(map(self._factors_in, self.terms))

    @cached_property
    def roots(self) -> dict[str, float] | None:
        """The power of a scale by which each core is multiplied so that the value is multiplied by the scale.

        None where such powers do not exist: a tied core may occur in terms with several numbers of factors.
        """
        roots: dict[str, float] = {}
        for term in self.terms:
            root = 1 / self._factors_in(term)
            for position in term:
                name = self.occurrences[position].name
                if name in self.free and roots.setdefault(name, root) != root:
                    return None
        return roots

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The sizes of the labels of the target and of the free cores."""
        sizes = dict(zip(self.output, self.target.shape[1:], strict=True))
        for name, labels in self.occurrences:
            sizes |= dict(zip(labels, self.free.get(name, ()), strict=False))
        return sizes

    @cached_property
    def unknowns(self) -> int:
        """How many numbers are to be found for one start of one layer."""
        return sum(map(prod, self.free.values()))

    @cached_property
    def metric_labels(self) -> _Labels:
        return (LAYER, *self.blocks, *self.coupled, *(label + PRIME for label in self.coupled))

    def others(self, *positions: int) -> list[int]:
        """The other occurrences in the term of these."""
        return [other for other in self.term_at(positions[0]) if other not in positions]

    def labels_elsewhere(self, *positions: int) -> set[str]:
        return {label for position in self.others(*positions) for label in self.occurrences[position].labels}

    def shared_labels(self, positions: Sequence[int]) -> _Labels:
        """The labels that remain when the target is contracted with all occurrences but those at these positions."""
        inside = {label for position in positions for label in self.occurrences[position].labels}
        order = dict.fromkeys((*self.output, *sorted(self.labels_elsewhere(*positions))))
        return tuple(label for label in order if label in inside)

    def shared_elements(self, positions: Sequence[int]) -> int:
        """How many elements that contraction has for one start of one layer."""
        return prod([self.sizes.get(label, 1) for label in self.shared_labels(positions)])

    # Values ------------------------------------------------------------------------------------------------------

    def apply_metric(self, tensor: Tensor) -> Tensor:
        """Multiply a tensor of shape (layers, starts, *sizes of output) with the metric."""
        if self.metric is None:
            return tensor
        primed = tuple(label + PRIME if label in self.coupled else label for label in self.output)
        return contract([(tensor, (*BATCH, *primed)), (self.metric, self.metric_labels)], (*BATCH, *self.output))

    @cached_property
    def pulled(self) -> Tensor:
        """The target multiplied with the metric, in the shape of the target."""
        return self.apply_metric(self.target[:, None])[:, 0]

    @cached_property
    def power(self) -> Tensor:
        """<target, target> in the metric; shape (layers, 1)."""
        return total(products(self.target, self.pulled)[:, None])

    @cached_property
    def rounding(self) -> float:
        """The relative error that may be nothing but rounding, squared."""
        return (50 * torch.finfo(self.target.dtype).eps) ** 2

    def fits_exactly(self, loss: Tensor) -> Tensor:
        """Whether some start has nothing left to gain.

        Args:
            loss: shape (layers, starts).

        Returns:
            Shape (layers,).
        """
        return (loss <= self.rounding * self.power).any(1)

    def operands(self, values: Mapping[str, Tensor], positions: Iterable[int] | None = None) -> list[Operand]:
        """The occurrences at these positions, or all of them, with their elements."""
        tensors = {**self.constants, **values}
        named = self.named if positions is None else [self.named[position] for position in positions]
        return [(tensors[name], labels) for name, labels in named]

    def model(self, values: Mapping[str, Tensor]) -> Tensor:
        """Contract the network; shape (layers, starts, *sizes of output)."""
        return add_up([self.model_of(term, values) for term in self.terms])

    def model_of(self, term: Sequence[int], values: Mapping[str, Tensor]) -> Tensor:
        """Contract one term; the shape is that of `model`, where axes of layers and starts may have size 1."""
        return self.contract_to(self.operands(values, term), self.output)

    def pulled_for(self, position: int, values: Mapping[str, Tensor]) -> Tensor:
        """What the term of an occurrence has to come near, multiplied with the metric: the target minus other terms.

        Returns:
            Shape (layers, starts or 1, *sizes of output).
        """
        others = [term for term in self.terms if position not in term]
        if not others:
            return self.pulled[:, None]
        rest = self.target[:, None] - add_up([self.model_of(term, values) for term in others])
        batch = next(iter(values.values())).shape[:2]  # a term of constants has no axes of layers and starts
        return self.apply_metric(rest).expand(*batch, *rest.shape[2:])

    def loss(self, model: Tensor) -> Tensor:
        """||target - model||^2 in the metric; shape (layers, starts)."""
        residual = model - self.target[:, None]
        if self.metric is None:
            norms: Tensor = torch.linalg.vector_norm(residual.reshape(*residual.shape[:2], -1), dim=2)
            return norms.square()
        return total(products(residual, self.apply_metric(residual))).clamp(min=0)

    def loss_of(self, values: Mapping[str, Tensor]) -> Tensor:
        """||target - network||^2 in the metric for the cores of each start; where these are large, one by one."""
        starts = max((core.shape[1] for core in values.values()), default=1)
        if self.target.numel() * starts <= _AT_ONCE:
            return self.loss(self.model(values))
        alone = [{name: core[:, start : start + 1] for name, core in values.items()} for start in range(starts)]
        return torch.cat([self.loss(self.model(each)) for each in alone], dim=1)

    def norms(self, values: Mapping[str, Tensor]) -> Tensor:
        """||network||_F, for which the network itself is not contracted; shape (layers, starts)."""
        if len(self.terms) > 1:
            model = self.model(values)
            return total(squares(model)).sqrt()
        operands = self.operands(values)
        again = [
            (tensor.conj(), tuple(label if label in (*BATCH, *self.output) else label + PRIME for label in labels))
            for tensor, labels in operands
        ]
        return self.contract_to([*operands, *again], ()).real.clamp(min=0).sqrt()

    def squared_components(self, values: Mapping[str, Tensor], without: int | None = None) -> Tensor:
        """The sum of ||component||^2, where a component is the term of the network at one value of every bond.

        Args:
            without: position of a core that is left out. The result is what its squared elements are weighted with.

        Returns:
            Shape (layers, starts, *sizes of the core that is left out). With a core left out, the axes of layers and
            starts may have size 1.
        """
        if without is None:
            return add_up([self._squares(term, values, ()) for term in self.terms])
        return self._squares(self.others(without), values, self.occurrences[without].labels)

    def _squares(self, positions: Sequence[int], values: Mapping[str, Tensor], labels: _Labels) -> Tensor:
        return self.contract_to([(squares(core), names) for core, names in self.operands(values, positions)], labels)

    @cached_property
    def _square(self) -> Tensor:
        """||target||^2, greater than 0; shape (layers, 1)."""
        return total(squares(self.target[:, None])).clamp(min=torch.finfo(self.target.dtype).tiny)

    @cached_property
    def _blocks(self) -> tuple[_Labels, ...]:
        """The labels of each occurrence, where a bond that has a gauge is another label on each of its two cores."""
        places: dict[str, list[int]] = {}
        for position, (_, labels) in enumerate(self.occurrences):
            for label in labels:
                places.setdefault(label, []).append(position)
        once = {positions[0] for positions in self.places.values() if len(positions) == 1}
        gauged = {label for label, ends in places.items() if len(ends) == 2 and once.issuperset(ends)}
        gauged -= {*self.output}
        return tuple(
            tuple(f"{label}/{position}" if label in gauged else label for label in labels)
            for position, (_, labels) in enumerate(self.occurrences)
        )

    def squared_blocks(self, values: Mapping[str, Tensor], without: int | None = None) -> Tensor:
        """The sum over blocks of the product of the squared norms of their cores.

        A block is the term of a network at one value of every bond that has no gauge, such as that of a CP; a bond
        between two cores has one. So a block of a CP is a component, and a ring is one block. Unlike components, blocks
        do not depend on the basis of a bond. The arguments and the result are those of `squared_components`.
        """
        tensors = {**self.constants, **values}

        def doubled(positions: Iterable[int]) -> list[Operand]:
            names = [(self.occurrences[position].name, self._blocks[position]) for position in positions]
            return [(squares(tensors[n]), labels if n in self.constants else (*BATCH, *labels)) for n, labels in names]

        if without is None:
            return add_up([self.contract_to(doubled(term), ()) for term in self.terms])
        operands = doubled(self.others(without))
        kept = {label for _, labels in operands for label in labels}
        labels = tuple(label for label in self._blocks[without] if label in kept)
        weights = self.contract_to(operands, labels)
        return weights.reshape(
            *weights.shape[:2], *(self.sizes[n] if n in labels else 1 for n in self._blocks[without])
        )

    def merit(self, loss: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """What a search minimises: loss * (1 + squared_blocks / ||target||^2) ** stability.

        A stability above 0 keeps blocks from cancelling each other, and the valleys where they do, in which a search is
        slow, are not entered. Another network whose blocks are ten times as large as those at the minimum has an error
        that is smaller by at most the factor 10 ** stability.
        """
        if not self.stability:
            return loss
        return loss * (1 + self.squared_blocks(values) / self._square) ** self.stability

    def ridge(self, loss: Tensor, values: Mapping[str, Tensor]) -> Tensor | None:
        """The weight w for which loss + w * squared_blocks has the slope of the merit; None for 0.

        As the merit is the exponential of a concave function of both, it falls wherever that sum falls.

        Args:
            loss: shape (layers, starts), infinite where it is not known.
        """
        if not self.stability:
            return None
        loss = torch.where(loss.isfinite(), loss, self._square)
        return self.stability * loss / (self._square + self.squared_blocks(values))

    def environment(self, tensor: Tensor, position: int, values: Mapping[str, Tensor]) -> Tensor:
        """Contract a tensor over the output with the conjugates of all occurrences but one.

        It is the adjoint of the derivative by that occurrence.

        Args:
            tensor: shape (layers, starts or 1, *sizes of output).
        """
        first = (tensor[:, 0], (LAYER, *self.output)) if tensor.shape[1] == 1 else (tensor, (*BATCH, *self.output))
        others = [(other.conj(), labels) for other, labels in self.operands(values, self.others(position))]
        return self.contract_to([first, *others], self.occurrences[position].labels)

    def lay_out(self, positions: Sequence[int]) -> Operand:
        """The pulled target with the labels of those occurrences in front, as a matrix product needs it."""
        inside = {label for position in positions for label in self.occurrences[position].labels}
        order = sorted(range(len(self.output)), key=lambda axis: self.output[axis] not in inside)
        moved = self.pulled.permute(0, *(1 + axis for axis in order)).contiguous()
        return moved, (LAYER, *(self.output[axis] for axis in order))

    def contract_to(self, operands: Sequence[Operand], labels: Sequence[str]) -> Tensor:
        """Contract to (layers, starts, *labels). A label that no operand has becomes an axis of equal elements."""
        present = {label for _, names in operands for label in names}
        like = operands[0][0] if operands else self.target
        missing = [label for label in labels if label not in present]
        ones = [(like.new_ones(self.sizes[label.removesuffix(PRIME)]), (label,)) for label in missing]
        kept = [label for label in (*BATCH, *labels) if label in present or label in labels]
        result = contract([*operands, *ones], kept) if operands or ones else like.new_ones(())
        for axis, label in enumerate(BATCH):
            if label not in present:
                result = result.unsqueeze(axis)
        return result

    # Other objectives ----------------------------------------------------------------------------------------------

    def without_metric(self) -> Objective:
        return replace(self, metric=None, coupled=(), blocks=())

    def in_precision(self, dtype: torch.dtype) -> Objective:
        """The same objective, computed in the precision of a type."""
        metric = None if self.metric is None else self.metric.to(dtype)
        constants = {name: in_precision(constant, dtype) for name, constant in self.constants.items()}
        return replace(self, target=in_precision(self.target, dtype), metric=metric, constants=constants)

    def of_layers(self, layers: Tensor) -> Objective:
        """The same objective for some of the layers."""
        if self.layers == len(layers) == 1:
            return self  # without a copy of the metric
        metric = None if self.metric is None else self.metric[layers]
        return replace(self, target=self.target[layers], metric=metric)

    def of_sizes(self, values: Mapping[str, Tensor]) -> Objective:
        """The same objective for cores of the shapes in `values`, (layers, starts, *sizes)."""
        return replace(self, free={name: tuple(value.shape[2:]) for name, value in values.items()})


def total(tensor: Tensor) -> Tensor:
    """Sum over everything but layers and starts; shape (layers, starts)."""
    return tensor.reshape(*tensor.shape[:2], -1).sum(2)
