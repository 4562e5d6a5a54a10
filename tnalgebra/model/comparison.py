"""What `compare` returns: a table of decompositions of one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._tables import Table, Tabular
from ..errors import RuleError, explain
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
                    raise RuleError(explain(f"{name!r} has no fit", because=row.reason))
                return row.fit
        raise RuleError(explain(f"{name!r} is not compared", compared=", ".join(row.name for row in self.rows)))

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
        in_metric = any(row.fit is not None and row.fit.output_error is not None for row in self.rows)
        timed = self.seconds is not None

        def line(*cells: str) -> list[str]:
            keep = (True, True, True, in_metric, True, True, True, timed, True)
            return [cell for cell, kept in zip(cells, keep, strict=True) if kept]

        rows = []
        for row, record in zip(self.rows, self.records(), strict=True):
            if row.fit is not None:
                degeneracy, seconds = record["degeneracy"], record["seconds"]
                errors = (record["output_error"], record["relative_error"])
                rows.append(
                    line(
                        row.name,
                        f"{record['parameters']:,}",
                        f"{record['parameters_kept']:.3f}",
                        *("" if error is None else f"{error:.4f}" for error in errors),
                        f"{record['multiply_adds']:,}",
                        "" if degeneracy is None else f"{degeneracy:.2f}",
                        "" if seconds is None else f"{1e3 * seconds:.3f}",
                        " ".join(f"{bond}={rank}" for bond, rank in record["ranks"].items()),
                    )
                )
        names = ("parameters", "kept", "output error", "error", "multiply-adds", "degeneracy", "ms", "ranks")
        head = line("decomposition", *names)
        seconds = "" if self.seconds is None else f"{1e3 * self.seconds:.3f}"
        dense = line("dense", f"{self.parameters:,}", "1.000", "", "", f"{self.multiply_adds:,}", "", seconds, "")
        return Table(rows, head, left=(0, len(head) - 1), total=dense, below=self.notes)
