"""The tables of a study on a page: rows of several layers and of single ones, and the networks of their rewrites."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import islice

from ..errors import TnalgebraError
from ..studies import Row, curve_of, drawn_networks
from .parts import Column, Dataset, Drawing, Panel, as_number, ranks_text, times

ERROR = "relative error of the kernel"
CHANGE = "change of top-1 (points)"
PARAMETERS_KEPT = "parameters kept"
MOST_DRAWINGS = 40


def is_sound(row: Row) -> bool:
    """Whether the numbers that answers are taken from are finite."""
    numbers = [row["accuracy"], row["accuracy_change"], row["parameters_kept"]]
    numbers += [layer.get("relative_error") for layer in row["layers"].values()]
    return all(as_number(value) is not None for value in numbers)


def layer_names(rows: Sequence[Row]) -> list[str]:
    """The names of all layers that were rewritten, in the order of the row that has most of them."""
    widest = max((list(row["layers"]) for row in rows), key=len, default=[])
    return list(dict.fromkeys([*widest, *(name for row in rows for name in row["layers"])]))


def row_name(row: Row) -> str:
    """The name that rows of one curve share: budgets are a curve of their own."""
    return curve_of(row) + ("" if row["budget"] is None else ", budget")


def size_text(row: Row) -> str:
    """The size of a row as it was written; "keep 0.5" for "a=keep 0.5 b=keep 0.5"."""
    if row["keep"] is not None:
        return f"keep {row['keep']:g}"
    if row["budget"] is not None:
        return f"parameters {row['budget']:g}" if isinstance(row["budget"], float) else str(row["budget"])
    ranks = str(row["ranks"] or "")
    parts = {part.strip() for part in re.findall(r"=\s*([^=]*?)(?=\s+\w+=|$)", ranks)}
    return parts.pop() if len(parts) == 1 and not ranks.startswith("r=") and "keep" in ranks else ranks


def _root(square: object) -> object:
    """The root of a number; anything else as it is."""
    value = as_number(square)
    return square if value is None or value < 0 else math.sqrt(value)


def _of_layers(row: Row, name: str) -> float | None:
    """The root mean square of a number of each layer."""
    values = [as_number(layer.get(name)) for layer in row["layers"].values()]
    known = [value for value in values if value is not None]
    return (
        math.sqrt(math.fsum(value**2 for value in known) / len(known)) if known and len(known) == len(values) else None
    )


def _ranks(row: Row) -> str | None:
    """The ranks of the layer of a row of one layer."""
    (layer,) = row["layers"].values()
    if "rank" in layer:
        return f"{layer['rank']} of {layer.get('values')}"
    return ranks_text(layer.get("ranks"))


def row_columns(rows: Sequence[Row], *, several: bool) -> list[Column]:
    """The columns of rows; `several` says whether these are of several layers."""
    scopes = {row["scope"] for row in rows}
    scope = Column("scope" if several else "layer", [row["scope"] for row in rows], choose=True)
    what = [] if scopes == {"all"} else [scope]
    middle = [] if several else [Column("ranks", [_ranks(row) for row in rows])]
    sizes = [size_text(row) for row in rows]
    first: bool | str = True if several or "keep 0.5" not in sizes else "keep 0.5"
    return [
        *what,
        Column("rewrite", [row_name(row) for row in rows], choose=True),
        Column("size", sizes, choose=first),
        *middle,
        *(
            [Column("seed", [row.get("seed") for row in rows])]
            if len({row.get("seed") for row in rows} - {None}) > 1
            else []
        ),
        Column("top-1 %", [times(row["accuracy"], 100) for row in rows], "percent"),
        Column(CHANGE, [times(row["accuracy_change"], 100) for row in rows], "change"),
        Column(ERROR, [_root(row["mean_squared_relative_error"]) for row in rows], "short"),
        Column("relative error of the output", [_of_layers(row, "output_error") for row in rows], "short"),
        Column(PARAMETERS_KEPT, [row["parameters_kept"] for row in rows], "short"),
        Column("multiply-adds kept", [row.get("multiply_adds_kept") for row in rows], "short"),
        Column("seconds of the row", [row["seconds"] for row in rows], "short"),
    ]


def several_layers(rows: Sequence[Row]) -> Dataset:
    panels = [
        Panel("Accuracy", PARAMETERS_KEPT, "top-1 %", "lines"),
        Panel("Norm that is lost", PARAMETERS_KEPT, ERROR, "lines"),
        Panel("Time of the row: fits and test", PARAMETERS_KEPT, "seconds of the row", log=True),
    ]
    text = "A point is a row. The root of the mean squared relative error stands for the error of several kernels."
    return Dataset("Several layers at once", row_columns(rows, several=True), panels, "rewrite", text)


def single_layers(rows: Sequence[Row], layers: Sequence[str]) -> Dataset:
    place = {name: number for number, name in enumerate(layers)}
    ordered = sorted(rows, key=lambda row: place[row["scope"]])
    panels = [
        Panel("Accuracy, layer by layer", "layer", CHANGE),
        Panel("Norm that is lost", "layer", ERROR),
        Panel("Time of the row: fits and test", "layer", "seconds of the row", log=True),
        Panel("Change of top-1 (points): each layer, each rewrite", "rewrite", "layer", "cells", z=CHANGE),
    ]
    text = "Only one layer is rewritten in a row, all others stay as they are. The menu chooses the size."
    return Dataset("One layer at a time", row_columns(ordered, several=False), panels, "rewrite", text)


def rewrite_drawings(rows: Sequence[Row]) -> list[Drawing]:
    """The kernel, and what each rewrite makes of it; a text that is not a network is left out."""
    try:
        networks = drawn_networks(rows)
    except TnalgebraError:
        return []
    return [Drawing(title, network._repr_svg_()) for title, network in islice(networks.items(), MOST_DRAWINGS)]
