"""What `compare` returns: a table of decompositions of one kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._tables import Table, Tabular, tabulate, write_number
from ..errors import RuleError
from ..networks import Network, isomorphic
from ..rewriting import Fit
from .budget import ranks_of


@dataclass(frozen=True, eq=False)
class Compared:
    """One decomposition in a comparison: its fit, or why it has none.

    multiply_adds: of the layer on the example; of a kernel alone at one output position.
    seconds: median time of a forward pass of the layer; None where it was not asked for.
    """

    name: str
    fit: Fit | None
    reason: str = ""
    multiply_adds: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Tabular):
    """Fits of one kernel, the one with the least error first; those that could not be made come last.

    rows: the decompositions.
    parameters: of the dense kernel.
    multiply_adds: of the dense layer on the example; of a kernel alone at one output position.
    seconds: median time of a forward pass of the dense layer; None where it was not asked for.
    """

    rows: tuple[Compared, ...]
    parameters: int
    multiply_adds: int
    seconds: float | None = None

    def __getitem__(self, name: str) -> Fit:
        """The fit of a decomposition. Raises RuleError if no decomposition has that name, or it could not be made."""
        for row in self.rows:
            if row.name == name:
                if row.fit is None:
                    raise RuleError(f"{name!r} has no fit", because=row.reason)
                return row.fit
        raise RuleError(f"{name!r} is not compared", compared=", ".join(row.name for row in self.rows))

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each row: name, counts, parts kept, ranks, errors, degeneracy, seconds; or the reason."""
        return [
            {"name": row.name, "reason": row.reason}
            if row.fit is None
            else {
                "name": row.name,
                "parameters": row.fit.parameters,
                "parameters_kept": row.fit.parameters / self.parameters,
                "ranks": ranks_of(row.fit),
                "relative_error": row.fit.relative_error,
                "output_error": row.fit.output_error,
                "multiply_adds": row.multiply_adds,
                "degeneracy": row.fit.degeneracy,
                "seconds": row.seconds,
                "dense_seconds": self.seconds,
            }
            for row in self.rows
        ]

    @property
    def notes(self) -> list[str]:
        """Why decompositions have no fit, and which ones are the same network at these ranks."""
        notes = [f"{row.name}: {row.reason.splitlines()[0]}" for row in self.rows if row.fit is None]
        groups: list[tuple[Network, list[str]]] = []
        for row in self.rows:
            if row.fit is not None:
                network = row.fit.network
                same = next((names for other, names in groups if isomorphic(network, other, ordered=False)), None)
                if same is None:
                    groups.append((network, [row.name]))
                else:
                    same.append(row.name)
        notes += [f"the same network at these ranks: {', '.join(names)}" for _, names in groups if len(names) > 1]
        return notes

    def _summary(self) -> str:
        fitted = [row for row in self.rows if row.fit is not None]
        nearest = f", nearest {fitted[0].name!r}" if fitted else ""
        return f"{len(fitted)} of {len(self.rows)} decompositions{nearest}"

    def _table(self) -> Table:
        columns: dict[str, Callable[[dict[str, Any]], str]] = {
            "decomposition": lambda row: str(row["name"]),
            "parameters": lambda row: write_number(row["parameters"]),
            "kept": lambda row: write_number(row["parameters_kept"], ".3f"),
            "output error": lambda row: write_number(row["output_error"], ".4f"),
            "error": lambda row: write_number(row["relative_error"], ".4f"),
            "multiply-adds": lambda row: write_number(row["multiply_adds"]),
            "degeneracy": lambda row: write_number(row["degeneracy"], ".2f"),
            "ms": lambda row: "" if row["seconds"] is None else f"{1e3 * row['seconds']:.3f}",
            "ranks": lambda row: " ".join(f"{bond}={rank}" for bond, rank in row["ranks"].items()),
        }
        dense = {"decomposition": "dense", "parameters": f"{self.parameters:,}", "kept": "1.000"}
        dense |= {"multiply-adds": f"{self.multiply_adds:,}"}
        dense |= {} if self.seconds is None else {"ms": f"{1e3 * self.seconds:.3f}"}
        fitted = [record for record in self.records() if "parameters" in record]
        if not fitted:
            columns = {heading: write for heading, write in columns.items() if heading in dense}
        return tabulate(fitted, columns, left=("ranks",), total=dense, below=self.notes)
