"""Decompositions of one kernel side by side, at equal numbers of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._tables import Table, Tabular, plural, tabulate, write_number
from ..decompositions import read_rewrite
from ..errors import RankError, RuleError, explain
from ..fitting import Metric, ParameterBudget
from ..networks import KERNEL_LABELS, labels_of
from ..nn import kernel_labels_of
from ..rewriting import Fit, Rule


@dataclass(frozen=True, eq=False)
class Compared:
    """One decomposition in a comparison: its fit, or why it has none."""

    name: str
    fit: Fit | None
    reason: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Tabular):
    """Fits of one kernel, the nearest first; those that could not be made last."""

    dense: int
    """Parameters of the kernel."""
    rows: tuple[Compared, ...]

    def __getitem__(self, name: str) -> Fit:
        """The fit of a decomposition. Raises RuleError if no decomposition has that name, or it could not be made."""
        for row in self.rows:
            if row.name == name:
                if row.fit is None:
                    raise RuleError(explain(f"{name!r} has no fit", because=row.reason))
                return row.fit
        raise RuleError(explain(f"{name!r} is not compared", there=", ".join(row.name for row in self.rows)))

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each row: name, parameters, parameters_kept, ranks, the errors, degeneracy."""
        return [
            {"name": row.name, "reason": row.reason}
            if row.fit is None
            else {
                "name": row.name,
                "parameters": row.fit.parameters,
                "parameters_kept": row.fit.parameters / self.dense,
                "ranks": dict(row.fit.trace.steps[-1].change.ranks),
                "relative_error": row.fit.relative_error,
                "output_error": row.fit.output_error,
                "degeneracy": row.fit.degeneracy,
            }
            for row in self.rows
        ]

    def _summary(self) -> str:
        best = self.rows[0].fit if self.rows else None
        nearest = "" if best is None else f", the nearest {self.rows[0].name} at {best.parameters:,} parameters"
        return f"of {plural(len(self.rows), 'decomposition')} of a kernel of {self.dense:,} parameters{nearest}"

    def _table(self) -> Table:
        columns: dict[str, Callable[[dict[str, Any]], str]] = {
            "decomposition": lambda row: row["name"],
            "parameters": lambda row: write_number(row["parameters"]),
            "kept": lambda row: write_number(row["parameters_kept"], ".3f"),
            "output error": lambda row: write_number(row["output_error"], ".4f"),
            "error": lambda row: write_number(row["relative_error"], ".4f"),
            "degeneracy": lambda row: write_number(row["degeneracy"], ".3g"),
            "ranks": lambda row: " ".join(f"{bond}={rank}" for bond, rank in row["ranks"].items()),
        }
        fitted = [record for record in self.records() if "parameters" in record]
        refused = [f"{row.name}: {row.reason.splitlines()[0]}" for row in self.rows if row.fit is None]
        return tabulate(fitted, columns, left=("ranks",), below=refused)


def compare(
    weight: Any,
    rules: Sequence[str | Rule],
    *,
    parameters: float,
    labels: str | Sequence[str] | None = None,
    metric: Metric | None = None,
    seed: int = 0,
    starts: int = 8,
) -> Comparison:
    """Fit several decompositions to one kernel, each with at most the same number of parameters.

    Args:
        weight: a kernel, or a convolution or linear layer.
        rules: names of the catalogue or registered ones, cuts, rules in the notation, or rules.
        parameters: the part of the kernel's parameters that each may take, in (0, 1]; ranks are shared out among the
            bonds as `ParameterBudget` says.
        labels: of the kernel's axes; by default those of torch's kernels with that number of axes.
        metric: the norm to fit in, and to order by.
        seed, starts: of the fits.

    Returns:
        The fits, the nearest first. A decomposition that these labels do not have, or that is larger at rank 1
        already, comes last with the reason.

    Raises:
        RankError: `parameters` is not a fraction.
        RuleError: neither name, text nor rule; the same name twice; a kernel with unknown labels.
        ValuesError: the kernel is empty, complex or not finite.
    """
    budget = ParameterBudget(parameters)
    if isinstance(weight, nn.Module):
        own: tuple[str, ...] | None = kernel_labels_of(weight)
        kernel = weight.get_parameter("weight").detach()
    else:
        kernel = torch.as_tensor(weight).detach()
        own = KERNEL_LABELS.get(kernel.ndim)
    if labels is not None:
        own = labels_of(labels)
    if own is None or len(own) != kernel.ndim:
        raise RuleError(
            explain(
                f"a kernel of {kernel.ndim} axes has the labels {' '.join(own) if own else 'nobody knows'}",
                fix="labels='out in kh kw': one for each axis",
            )
        )
    rows: list[Compared] = []
    for one in rules:
        name = one.name if isinstance(one, Rule) else str(one)
        if any(row.name == name for row in rows):
            raise RuleError(explain(f"{name!r} is compared twice", fix="each once, or rules with names of their own"))
        try:
            rule = read_rewrite(one, own)
            fit = rule.apply(kernel, budget, metric=metric, seed=seed, starts=starts)
        except RankError as error:
            rows.append(Compared(name, None, str(error)))
            continue
        rows.append(Compared(name, fit))
    rows.sort(key=lambda row: math.inf if row.fit is None else row.fit.output_error or row.fit.relative_error)
    return Comparison(kernel.numel(), tuple(rows))
