"""What a conversion did: a row for each kernel layer, and the totals."""

from __future__ import annotations

import html
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LayerRow:
    """One kernel layer of the model, as it was before the conversion.

    name: of the layer; further names of the same layer are `aliases`.
    kind: its class.
    pattern: the one that was followed, "" if none fits; later ones that fit too are `also`.
    rule: by which it was decomposed; None: it stayed dense, for this `reason`.
    ranks: bond -> rank.
    relative_error: ||K - K~||_F / ||K||_F of the kernel.
    output_error: sqrt(E||(K - K~) x||^2 / E||y||^2) over the calibration inputs; None without calibration.
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
    multiply_adds: int | None = None
    multiply_adds_after: int | None = None
    aliases: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def done(self) -> str:
        """The rule and its ranks, or why the layer stayed dense."""
        if self.rule is None:
            return f"dense: {self.reason.splitlines()[0]}"
        return " ".join([self.rule, *(f"{bond}={rank}" for bond, rank in self.ranks.items())])


class Replaced:
    """Old and new parameters of one layer: what an optimizer has to know. The old ones are not kept alive.

    name: of the layer.
    parameters: name in the new layer -> parameter.
    """

    def __init__(self, name: str, old: nn.Module, new: nn.Module) -> None:
        self.name = name
        self._old = [weakref.ref(parameter) for parameter in old.parameters()]
        self.parameters: dict[str, nn.Parameter] = dict(new.named_parameters())

    @property
    def old(self) -> list[nn.Parameter]:
        """Those of the dense layer that something still holds: the weight first."""
        return [parameter for parameter in (one() for one in self._old) if parameter is not None]

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a file has nothing to do with the optimizer of the original."""
        return {"name": self.name, "_old": [], "parameters": {}}


@dataclass(frozen=True, eq=False)
class ConversionReport:
    """What a conversion did: prints as a table.

    rows: every kernel layer, in the order of the modules.
    parameters, parameters_after: of the whole model.
    replaced: for `update_optimizer`.
    """

    rows: tuple[LayerRow, ...]
    parameters: int
    parameters_after: int
    replaced: tuple[Replaced, ...] = field(default=(), repr=False)

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

    def to_pandas(self) -> pd.DataFrame:
        """The records, one a line."""
        import pandas as pd

        return pd.DataFrame(self.records())

    def _table(self) -> list[list[str]]:
        in_metric = any(row.output_error is not None for row in self.rows)
        counted = any(row.multiply_adds is not None for row in self.rows)

        def line(*cells: str) -> list[str]:
            keep = (True, True, True, in_metric, True, counted)
            return [cell for cell, kept in zip(cells, keep, strict=True) if kept]

        lines = [line("layer", "done", "error", "output error", "parameters", "multiply-adds")]
        for row in self.rows:
            errors = ("" if error is None else f"{error:.4f}" for error in (row.relative_error, row.output_error))
            name = " = ".join([row.name, *row.aliases])
            adds = _change(row.multiply_adds, row.multiply_adds_after)
            lines.append(line(name, row.done, *errors, _change(row.parameters, row.parameters_after), adds))
        whole = f"{len(self.converted)} of {len(self.rows)} decomposed"
        adds = _change(self.multiply_adds, self.multiply_adds_after)
        lines.append(line("model", whole, "", "", _change(self.parameters, self.parameters_after), adds))
        return lines

    @property
    def notes(self) -> list[str]:
        """Totals as parts, and patterns that came too late for a layer."""
        found = [f"parameters kept: {self.parameters_after / max(self.parameters, 1):.3f}, of the whole model"]
        if self.multiply_adds and self.multiply_adds_after is not None:
            kept = self.multiply_adds_after / self.multiply_adds
            found.append(f"multiply-adds kept: {kept:.3f}, of the kernel layers that the example reaches")
        late: dict[tuple[str, str], int] = {}
        for row in self.rows:
            for pattern in row.also:
                late[pattern, row.pattern] = late.get((pattern, row.pattern), 0) + 1
        for (pattern, first), count in late.items():
            follow = "1 layer follows" if count == 1 else f"{count} layers follow"
            found.append(f"overlap: {follow} {first!r}, and not {pattern!r}, which fits too and comes later")
        return found

    def __str__(self) -> str:
        text = align(self._table(), left=(0, 1))
        rule = "-" * max(map(len, text))
        return "\n".join([text[0], rule, *text[1:-1], rule, text[-1], *self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *body, whole = self._table()

        def line(cells: Sequence[str], tag: str) -> str:
            styles = ("text-align: left", "text-align: left", *["white-space: nowrap"] * (len(cells) - 2))
            row = (f'<{tag} style="{s}">{html.escape(cell)}</{tag}>' for cell, s in zip(cells, styles, strict=True))
            return f"<tr>{''.join(row)}</tr>"

        rows = "".join(line(cells, "td") for cells in body)
        table = f"<thead>{line(head, 'th')}</thead><tbody>{rows}</tbody><tfoot>{line(whole, 'th')}</tfoot>"
        return f"<table>{table}</table>" + "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)


def align(lines: Sequence[Sequence[str]], *, left: Collection[int]) -> list[str]:
    """Lines of cells as text, its columns aligned: those of these numbers to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _change(before: int | None, after: int | None) -> str:
    if before is None or after is None:
        return ""
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"
