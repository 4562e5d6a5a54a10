"""Cores that are solved for one after another, and what the right sides of their systems share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from torch import Tensor

from ..tensors import Operand, contract
from .kronecker import ContractionPlan
from .objective import BATCH, LAYER
from .systems import Solved, System

_Labels: TypeAlias = tuple[str, ...]

MOST_SPLIT = 8
"""The most cores for which all ways to divide them into two parts are tried."""


@dataclass(frozen=True, eq=False)
class Part:
    """Cores that are solved for one after another, and what the right sides of all of them share.

    They share the pulled target contracted with all tensors of their term outside the part; for a single core, the
    pulled target. Of a sum, the target is without the other terms.
    """

    systems: Sequence[System]

    @cached_property
    def _shared_plan(self) -> tuple[list[tuple[str, _Labels]], Operand | None, _Labels]:
        """The tensors outside the part, the pulled target as it is contracted with them, and the labels then.

        Of a sum, the pulled target depends on the other terms, and is left out.
        """
        objective, several = self.systems[0].objective, len(self.systems) > 1
        positions = [system.position for system in self.systems]
        outside = [objective.named[place] for place in objective.others(*positions)] if several else []
        if len(objective.terms) > 1:
            labels = objective.shared_labels(positions) if several else objective.output
            return list(outside), None, (*BATCH, *labels)
        if not several:
            return [], (objective.pulled, (LAYER, *objective.output)), (LAYER, *objective.output)
        return list(outside), objective.lay_out(positions), (*BATCH, *objective.shared_labels(positions))

    @cached_property
    def _plans(self) -> list[tuple[list[tuple[str, _Labels]], ContractionPlan]]:
        """For each core the tensors that are contracted with what is shared, and the plan for it."""
        objective, shared = self.systems[0].objective, self._shared_plan[2]
        positions = [system.position for system in self.systems]
        within = positions if len(positions) > 1 else objective.term_at(positions[0])
        plans = []
        for system in self.systems:
            others = [(*objective.named[other],) for other in within if other != system.position]
            plans.append((others, system.plan([shared, *(labels for _, labels in others)], system.labels)))
        return plans

    def solve(self, values: dict[str, Tensor], ridge: Tensor | None) -> Solved:
        """Solve for each core in turn and put it into `values`. Returns the last one."""
        outside, target, labels = self._shared_plan
        objective = self.systems[0].objective
        if target is None:
            target = objective.pulled_for(self.systems[0].position, values), (*BATCH, *objective.output)
        constants, shared = objective.constants, target[0]
        if outside:
            tensors = {**constants, **values}
            shared = contract([target, *[(tensors[name].conj(), names) for name, names in outside]], labels)
        for system, (others, plan) in zip(self.systems, self._plans, strict=True):
            tensors = {**constants, **values}
            operands = [(shared, labels), *[(tensors[name].conj(), names) for name, names in others], *plan.ones]
            solved = system.solve(values, operands, plan.labels, ridge)
            values[system.name] = solved.core
        return solved


def divided(systems: list[System]) -> list[Part]:
    """Divide the cores into two parts that share small tensors; into single cores where no such parts exist.

    For a CP of `out in kh kw` with few components these are `out kh` and `in kw`. Then a sweep contracts the whole
    target twice and not four times.
    """
    objective = systems[0].objective
    best, least = [[system] for system in systems], objective.target[0].numel()
    if len(systems) <= MOST_SPLIT:
        ways = range(1, 2 ** (len(systems) - 1))
        splits = [[[s for i, s in enumerate(systems) if (way >> i & 1) == side] for side in (0, 1)] for way in ways]
        several = [[[s.position for s in part] for part in parts if len(part) > 1] for parts in splits]
        elements = [sum(map(objective.shared_elements, positions)) for positions in several]
        for parts, positions, count in zip(splits, several, elements, strict=True):
            if positions and count < least:
                best, least = parts, count
    return [Part(part) for part in best]
