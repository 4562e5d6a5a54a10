"""The table of docs/layers.md: every argument of every layer, and what came of each value when it was run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import torch

from tests.nn_cases import CASES, CONVOLUTIONS, EQUAL, LAYERS, OWN, REFUSED, TRANSPOSED, Case, outcome

FAMILIES = {"Conv": CONVOLUTIONS, "ConvTranspose": TRANSPOSED, "Linear": ("Linear",), "Embedding": ("Embedding",)}
ORDER = (
    *("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    *("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding"),
    *("output_padding", "dilation", "groups", "padding_mode"),
)
"""Arguments that come first; the others follow as the cases have them, ours last."""


class Line(NamedTuple):
    """What came of one value, with what it was given together with; both as text."""

    argument: str
    value: str
    others: str
    found: str


def arguments_table() -> str:
    """The table in markdown. Every case is run; values of which the same came, for the same layers, share a row."""
    layers: dict[Line, list[str]] = {}
    for case in CASES:
        others = ", ".join(f"`{name}={_text(name, value)}`" for name, value in case.others.items())
        layers.setdefault(Line(case.argument, _text(case.argument, case.value), others, _found(case)), []).append(
            case.layer
        )
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for line, names in layers.items():
        rows.setdefault((line.argument, _layers(names), line.others, line.found), []).append(f"`{line.value}`")
    arguments = list(dict.fromkeys(argument for argument, *_ in rows))
    arguments.sort(key=lambda name: (name in OWN, ORDER.index(name) if name in ORDER else len(ORDER)))
    lines = ["| argument | values | with | layers | outcome |", "|---|---|---|---|---|"]
    for argument in arguments:
        for (name, names_, others, found), values in rows.items():
            if name == argument:
                lines.append(f"| `{name}` | {', '.join(values)} | {others} | {names_} | {found} |".replace("  ", " "))
    return "\n".join(lines)


def _found(case: Case) -> str:
    """What came of a case. Of a reason only what the case says is shown: torch's own words differ by version."""
    found = outcome(case)
    if found == EQUAL:
        return found
    shown = case.outcome + ("" if found == case.outcome else " ...")
    text = (shown if found.startswith(case.outcome) else found).removeprefix(REFUSED).replace("  ", " ")
    family = next(family for family, names in FAMILIES.items() if case.layer in names)
    return f"{REFUSED}{text.replace(case.layer, family)}".replace("|", r"\|")


def _layers(names: Iterable[str]) -> str:
    """The families, where all layers of each are meant."""
    named = {*names}
    if named == {*LAYERS}:
        return "all"
    whole = [family for family, members in FAMILIES.items() if named >= {*members}]
    rest = named - {member for family in whole for member in FAMILIES[family]}
    return ", ".join([*whole, *(name for name in LAYERS if name in rest)])


def _text(name: str, value: Any) -> str:
    """The value of an argument as one would type it; a tuple stands for those that are its beginning."""
    if isinstance(value, torch.Tensor):
        return "tensor"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_text(name, one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple):
        value = next(longest for longest in _tuples(name) if longest[: len(value)] == value)
    return repr(value).replace("|", r"\|")


@cache
def _tuples(name: str) -> list[tuple[int, ...]]:
    """The tuples that the cases give as an argument, the longest first."""
    given = [
        value for case in CASES for key, value in {**case.others, case.argument: case.value}.items() if key == name
    ]
    return sorted((value for value in given if isinstance(value, tuple)), key=len, reverse=True)
