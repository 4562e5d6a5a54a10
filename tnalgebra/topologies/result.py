"""What a search for a topology returns: its rows, the front, the best one, and how many topologies were looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._tables import Table, Tabular, plural, tabulate, write_number
from ..decompositions import read_rewrite
from ..rewriting import Rule
from ..studies import Row

SHOWN = 15
"""Rows that are printed."""

COSTS = ("parameters", "multiply_adds", "error")


@dataclass(frozen=True, eq=False, repr=False)
class FoundTopologies(Tabular):
    """The topologies that a search has fitted, the best one first.

    Attributes:
        rows: one for each topology and size that has a fit, with its best fit: "topology" (a name of the catalogue, or
            the notation), "size", "ranks" (name of a kernel -> ranks), "parameters", "multiply_adds" (of the kernels at
            one output position), "error" (in the norm of the search; the root of the mean square over the kernels),
            "relative_error", and "accuracy" where a model was tested.
        labels: of the kernels.
        counts: how many topologies are "listed", were "pruned" by their bounds, do not exist at the size ("refused"),
            were "fitted"; and how many "evaluations" these took, each one fit of a topology at some ranks.
    """

    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    counts: Mapping[str, int]

    @property
    def best(self) -> Row:
        """The row of the best topology."""
        return self.rows[0]

    @property
    def rule(self) -> Rule:
        """The best topology as a rule."""
        return read_rewrite(self.best["topology"], self.labels)

    @property
    def notation(self) -> str:
        """The best topology as a line of code."""
        return f'tn.rule("{self.rule.spec["notation"]}")'

    @property
    def front(self) -> list[Row]:
        """The rows that no other row is as good as in parameters, multiply-adds and error (Pareto)."""
        return [row for row in self.rows if not any(_dominates(other, row) for other in self.rows)]

    def records(self) -> list[dict[str, Any]]:
        """The rows, and whether each is on the front."""
        front = [id(row) for row in self.front]
        return [{**row, "front": id(row) in front} for row in self.rows]

    def _summary(self) -> str:
        return f"of {plural(len(self.rows), 'row')}, best {self.best['topology']!r}"

    def _table(self) -> Table:
        columns: dict[str, Callable[[Row], str]] = {
            "topology": lambda row: _short(row["topology"]),
            "front": lambda row: "*" if row["front"] else "",
            "size": lambda row: str(row["size"]),
            "parameters": lambda row: write_number(row["parameters"]),
            "multiply-adds": lambda row: write_number(row["multiply_adds"]),
            "error": lambda row: write_number(row["error"], ".4f"),
            "accuracy": lambda row: write_number(row.get("accuracy"), ".4f"),
            "ranks": lambda row: _ranks_text(row["ranks"]),
        }
        counted = ", ".join(f"{count:,} {what}" for what, count in self.counts.items())
        records = self.records()
        left_out = len(records) - SHOWN
        below = [*([f"... and {left_out} more"] if left_out > 0 else []), "", counted, self.notation]
        return tabulate(records[:SHOWN], columns, left=("front", "size", "ranks"), below=below)


def _dominates(other: Row, row: Row) -> bool:
    pairs = [(other[cost], row[cost]) for cost in COSTS if other[cost] is not None and row[cost] is not None]
    return all(one <= two for one, two in pairs) and any(one < two for one, two in pairs)


def _short(topology: str) -> str:
    """The right side of a rule alone."""
    return topology.split("=>")[-1].strip()


def _ranks_text(ranks: Mapping[str, Mapping[str, int]]) -> str:
    each: Sequence[Mapping[str, int]] = list(ranks.values())
    return " ".join(f"{bond}={rank}" for bond, rank in each[0].items()) if len(each) == 1 else ""
