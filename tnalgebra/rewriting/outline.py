"""What a rule would make of a kernel at any size, without a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..fitting import ErrorCurve, Size
from ..networks import Network, with_sizes


@dataclass(frozen=True, eq=False)
class Outline:
    """What a rule would make of a kernel at any size, without a fit.

    after: the network after the step, in which the sizes of new bonds are unknown.
    labels: for each place that is rewritten, the network's label for each label of the right side.
    curve: the ranks and the error of the right side.
    constants: names of tensors that are not fitted.
    """

    after: Network
    labels: Sequence[Mapping[str, str]]
    curve: ErrorCurve
    constants: frozenset[str] = frozenset()

    def ranks(self, size: Size) -> dict[str, int]:
        """The size of every bond. Raises RankError where `Rule.apply` would."""
        return self.curve.ranks(size)

    def loss(self, ranks: Mapping[str, int]) -> float | None:
        """The squared relative error, as `ErrorCurve.loss` has it; None where only a fit can show it."""
        return self.curve.loss(ranks)

    def network(self, ranks: Mapping[str, int]) -> Network:
        """The network of a fit with these ranks."""
        sizes = {**self.curve.right.sizes, **ranks}
        return with_sizes(self.after, grown_sizes(self.labels, sizes))


def grown_sizes(labels: Sequence[Mapping[str, str]], sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of a right side for the labels that the network has at each place."""
    return {names[label]: size for names in labels for label, size in sizes.items() if label in names}
