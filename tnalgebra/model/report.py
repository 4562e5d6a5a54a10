"""What a conversion did: a row for each kernel layer, and the totals."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .._tables import Table, Tabular, plural, tabulate, write_change, write_number


@dataclass(frozen=True)
class LayerRow:
    """One kernel layer of the model, as it was before the conversion.

    name: of the layer; further names of the same layer are `aliases`.
    kind: its class.
    pattern: the one that was followed, "" if none fits; later ones that fit too are `also` where that may be a mistake.
    rule: by which it was decomposed; None: it stayed dense, for this `reason`.
    ranks: bond -> rank.
    relative_error: ||K - K~||_F / ||K||_F of the kernel, as it was converted; `layer.relative_error` is that of the
        numbers which the layer holds now.
    output_error: sqrt(E||(K - K~) x||^2 / E||y||^2) over the calibration inputs; None without calibration.
    degeneracy: sqrt(sum of ||component||^2) / ||K||; far above 1 where components cancel each other.
    parameters, parameters_after: of the layer, bias and all.
    multiply_adds, multiply_adds_after: of all its calls in one run on the example; None without an example.
    """

    name: str
    kind: str
    pattern: str
    parameters: int
    parameters_after: int
    rule: str | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""
    relative_error: float | None = None
    output_error: float | None = None
    degeneracy: float | None = None
    multiply_adds: int | None = None
    multiply_adds_after: int | None = None
    aliases: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def done(self) -> str:
        """The rule and its ranks, and which of its counts grew; or why the layer stayed dense."""
        if self.rule is None:
            return f"dense: {self.reason.splitlines()[0]}"
        grown = [
            f"{after / before:.2f} times the {what}" if before else f"{after:,} {what} in place of none"
            for what, before, after in self._counts
            if after > before
        ]
        return " ".join([self.rule, *(f"{bond}={rank}" for bond, rank in self.ranks.items())]) + (
            f" (of the dense layer: {', '.join(grown)})" if grown else ""
        )

    @property
    def _counts(self) -> list[tuple[str, int, int]]:
        adds = (self.multiply_adds or 0, self.multiply_adds_after or 0)
        return [("parameters", self.parameters, self.parameters_after), ("multiply-adds", *adds)]


def _nothing() -> None:
    """In the place of a reference to a parameter that no longer exists."""


class Replaced:
    """A parameter of a dense layer, and those that replace it: what an optimizer has to know.

    name: of the layer.
    parameters: name in the new layer -> parameter.
    """

    def __init__(self, name: str, old: nn.Parameter, parameters: Mapping[str, nn.Parameter]) -> None:
        self.name = name
        self.parameters = dict(parameters)
        kept = any(one is old for one in parameters.values())
        # not kept alive; but torch cannot swap the elements of a parameter to which a weak reference exists
        self._old = (lambda: old) if kept else weakref.ref(old)

    @property
    def old(self) -> nn.Parameter | None:
        """The dense layer's parameter, if something such as an optimizer still holds it."""
        return self._old()

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a file has nothing to do with the optimizer of the original."""
        return {"name": self.name, "_old": _nothing, "parameters": {}}


@dataclass(frozen=True, eq=False, repr=False)
class ConversionReport(Tabular):
    """What a conversion did: prints as a table.

    rows: every kernel layer, in the order of the modules.
    parameters, parameters_after: of the whole model.
    replaced: for `update_optimizer`.
    others: name -> what a module is that has a kernel of its own, such as an LSTM, which is left as it is.
    seconds, seconds_after: the fastest of several forward passes on the example, where the size was one of time.
    """

    rows: tuple[LayerRow, ...]
    parameters: int
    parameters_after: int
    replaced: tuple[Replaced, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    seconds_after: float | None = None

    def __getitem__(self, name: str) -> LayerRow:
        """The row of a layer, by any of its names. Raises KeyError."""
        for row in self.rows:
            if name in (row.name, *row.aliases):
                return row
        raise KeyError(name)

    @property
    def converted(self) -> tuple[str, ...]:
        """Names of the layers that were decomposed."""
        return tuple(row.name for row in self.rows if row.rule is not None)

    @property
    def multiply_adds(self) -> int | None:
        """Of all kernel layers together, before."""
        return _total([row.multiply_adds for row in self.rows])

    @property
    def multiply_adds_after(self) -> int | None:
        """Of all kernel layers together, after."""
        return _total([row.multiply_adds_after for row in self.rows])

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each row, with the fields of `LayerRow`."""
        return [{**vars(row), "ranks": dict(row.ranks)} for row in self.rows]

    def _summary(self) -> str:
        counts = write_change(self.parameters, self.parameters_after)
        return f"of {plural(len(self.rows), 'layer')}, {len(self.converted)} of them decomposed: {counts} parameters"

    def _table(self) -> Table:
        columns: dict[str, Callable[[LayerRow], str]] = {
            "layer": lambda row: " = ".join([row.name, *row.aliases]),
            "done": lambda row: row.done,
            "error": lambda row: write_number(row.relative_error, ".4f"),
            "output error": lambda row: write_number(row.output_error, ".4f"),
            "degeneracy": lambda row: write_number(row.degeneracy, ".2f"),
            "parameters": lambda row: write_change(row.parameters, row.parameters_after),
            "multiply-adds": lambda row: write_change(row.multiply_adds, row.multiply_adds_after),
        }
        total = {
            "layer": "model",
            "done": f"{len(self.converted)} of {len(self.rows)} decomposed",
            "parameters": write_change(self.parameters, self.parameters_after),
            "multiply-adds": write_change(self.multiply_adds, self.multiply_adds_after),
        }
        return tabulate(self.rows, columns, left=("done",), total=total, below=self.notes)

    @property
    def notes(self) -> list[str]:
        """Totals as parts, and patterns that came too late for a layer."""
        found = [f"parameters kept: {self.parameters_after / max(self.parameters, 1):.3f}, of the whole model"]
        if self.multiply_adds and self.multiply_adds_after is not None:
            kept = self.multiply_adds_after / self.multiply_adds
            found.append(f"multiply-adds kept: {kept:.3f}, of the kernel layers that the example reaches")
        if self.seconds is not None and self.seconds_after is not None:
            milliseconds = f"{1e3 * self.seconds:.3g} ms before, {1e3 * self.seconds_after:.3g} ms after"
            part = f"{self.seconds_after / self.seconds:.3f}, of a forward pass on the example ({milliseconds})"
            found.append(f"time kept: {part}")
        kinds: dict[str, list[str]] = {}
        for name, kind in self.others.items():
            kinds.setdefault(kind, []).append(name)
        for kind, names in kinds.items():
            found.append(f"left as it is: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}, {kind}")
        late: dict[tuple[str, str], int] = {}
        for row in self.rows:
            for pattern in row.also:
                late[pattern, row.pattern] = late.get((pattern, row.pattern), 0) + 1
        for (pattern, first), count in late.items():
            follow = "1 layer follows" if count == 1 else f"{count} layers follow"
            found.append(f"overlap: {follow} {first!r}, and not {pattern!r}, which fits too and comes later")
        return found


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
