"""The rows of studies: what they have, what distinguishes them, and their table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, TypeAlias

from .._tables import Table

Row: TypeAlias = dict[str, Any]


class Key(NamedTuple):
    """The fields of a row that distinguish it from all others of its folder."""

    model: str
    """the name of the network"""
    rewrite: str
    """its text, or "none" for the network as it is"""
    scope: str
    """"all", a layer's name, or a glob"""
    keep: float | None = None
    """of cuts: the fraction of the singular values that is kept"""
    ranks: str | None = None
    """of fits: the sizes of the bonds: "r=8", "a=keep 0.5 b=keep 0.5", ..."""
    budget: float | str | None = None
    """of fits: the part of the network's parameters; or a text, "multiply-adds 0.5", for that of its multiply-adds"""
    metric: str = "frobenius"
    """the norm of the fits"""
    components: str | None = None
    """of fits at ranks: "refit" or "drop from r=64", ..."""
    curves: str | None = None
    """under a budget: what the ranks of a layer cost, "error" or "divergence", as in `StudyOptions`"""
    calibration: str | None = None
    """the images that metrics and divergences are measured on, where they are"""
    reported: str | None = None
    """the further metric in which errors are reported"""
    seed: int | None = None
    """of fits: their seed; None for cuts, which do not depend on one"""
    equations: tuple[str, ...] | None = None
    """of fits: the rules, one for each order of labels"""

    @classmethod
    def of(cls, row: Row) -> Key:
        """The key of a row that was read."""
        fields = {field: row[field] for field in cls._fields if field != "seed"}
        fields["seed"] = row.get("seed")  # rows of earlier versions have the seed of their folder
        return cls(**{**fields, "equations": row["equations"] and tuple(row["equations"])})

    @property
    def fields(self) -> dict[str, Any]:
        """As JSON has them."""
        return {**self._asdict(), "equations": self.equations and list(self.equations)}

    @property
    def baseline(self) -> Key:
        """The key of the row of its network as it is."""
        return BASELINE._replace(model=self.model)


BASELINE = Key("", "none", "all")
"""The key of the row of a network as it is, without the name of the network."""

FIELDS = (
    *(field for field in Key._fields if field != "seed"),
    *("accuracy", "accuracy_change", "images", "mean_squared_relative_error"),
    *("parameters_kept", "layers", "config", "version", "seconds"),
)
"""The fields that every row has. Rows under a budget also have `multiply_adds_kept`, where that is known; rows of the
present version also have `seed`, and `torch` and `machine`, see `made_with`."""


def table(rows: Sequence[Row], *, scopes: Collection[str] = ()) -> Table:
    """Rows as a table: what was done, top-1 accuracy, its change, errors, parameters.

    Rows of single layers are left out if other rows are of several layers; the figures show them. A column, such as
    that of budgets, is left out if no row has an entry for it.

    Args:
        scopes: the scopes that were asked for. The row of a single layer stays if its name is among them.
    """
    if any(row["layers"] and not of_one_layer(row) for row in rows):
        rows = [row for row in rows if row["scope"] in scopes or not of_one_layer(row)]
    cells = [_cells(row) for row in rows]
    usual = {**dict.fromkeys(("keep", "ranks", "budget", "multiply-adds kept"), ""), **USUAL}
    usual["network"] = rows[0]["model"] if rows else ""
    names = [
        name
        for name in (cells[0] if cells else ("rewrite",))
        if name not in usual or not {each[name] for each in cells} <= {"", usual[name]}
    ]
    left = [number for number, name in enumerate(names) if name in ("network", "rewrite", "scope", "ranks", *USUAL)]
    return Table([[each[name] for name in names] for each in cells], names, left)


def _cells(row: Row) -> dict[str, str]:
    multiply_adds = row.get("multiply_adds_kept")
    raised = " (raised)" if multiply_adds is not None and multiply_adds > 1 else ""
    return {
        "network": row["model"],
        "rewrite": row["rewrite"],
        "keep": "" if row["keep"] is None else f"{row['keep']:g}",
        **{name: _setting(row, name) for name in ("ranks", "budget", *USUAL)},
        "scope": row["scope"],
        "top-1 %": f"{100 * row['accuracy']:.2f}",
        "change": f"{100 * row['accuracy_change']:+.2f}" if touched(row) else "",
        "mean sq. rel. error": f"{row['mean_squared_relative_error']:.4f}",
        "parameters kept": f"{row['parameters_kept']:.3f}",
        "multiply-adds kept": "" if multiply_adds is None else f"{multiply_adds:.3f}{raised}",
    }


USUAL = {"metric": BASELINE.metric, "curves": "error", "components": "refit", "seed": "0"}
"""The usual settings of fits, which are shown only where a row has another."""


def _setting(row: Row, name: str) -> str:
    value = row.get(name) if row["equations"] is not None else None
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _unusual(row: Row, name: str) -> bool:
    return _setting(row, name) not in ("", USUAL.get(name))


def touched(row: Row) -> bool:
    """Whether the row is not that of the network as it is."""
    return bool(row["rewrite"] != BASELINE.rewrite)


def variant(row: Row) -> str:
    """How a row's fits differ from the usual ones, for legends: "metric input, components drop from r=64"."""
    names = [name for name in USUAL if _unusual(row, name)]
    return ", ".join(f"{name} {row[name]}" for name in names)


def of_one_layer(row: Row) -> bool:
    """Whether the row is of one layer alone, under its own name."""
    return row["scope"] in row["layers"]
