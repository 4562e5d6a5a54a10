"""Rows of experiments as small files, which a repository can keep: what tables, figures and claims are made from.

A file has a line that says what it holds, and then a line for each row. Fields that are equal in all rows are in the
first line; of what rows say about each layer only its errors and ranks are kept; numbers have six digits; paths are
names.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import tnalgebra as tn
from recipes.benchmarks import topologies
from recipes.compressions import compression_row
from recipes.experiment import Row

DETAILS = ("rank", "values", "relative_error", "output_error", "norm_kept")
"""What is kept of a layer; of trainings nothing."""
WITHOUT = ("training_loss", "learning_rate")
"""Fields that tables and figures do not need."""


@dataclass(frozen=True, eq=False)
class Kept:
    """An experiment: its rows, the commands that made them, and its config.

    note: what has to be known about the rows; empty for those that a recipe has written.
    """

    rows: list[Row]
    commands: tuple[str, ...]
    config: dict[str, Any]
    note: str = ""


def keep(folder: Path, path: Path) -> None:
    """Write the rows of an output folder into a file.

    Raises:
        StudyError: the folder has no rows; the file cannot be written.
    """
    rows = read_folder(folder)
    if not rows:
        raise tn.errors.StudyError(f"{folder} has no rows", fix="the output folder of a recipe")
    lines = [line for one in (folder, *_parts(folder)) for line in _lines(one / tn.studies.COMMANDS_FILE)]
    config = tn.studies.read_config(folder / "config.json") or {}
    named = {key: _named(value) for key, value in config.items()}
    write_kept(path, Kept(rows, tuple(map(_without_paths, lines)), named))


def read_folder(folder: Path) -> list[Row]:
    """The rows of a recipe's output folder.

    Compressions have a row each, and a folder of several of them has the rows of all.
    """
    if (folder / "entropies.csv").exists():
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        about = {"model": report["config"]["model"], **{name: report[name] for name in ("version", "torch", "machine")}}
        frame = pd.read_csv(folder / "entropies.csv")
        kept = ("layer", "depth", "cut", "values", "normalised_entropy", "normalised_difference", "needed_part")
        return [{**about, **dict(zip(kept, line, strict=True))} for line in frame[[*kept]].itertuples(index=False)]
    if (folder / "history.csv").exists() and (folder / "report.json").exists():
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        facts = ("model", "parameters", "images", "version", "torch", "machine")
        about = {**{name: report[name] for name in facts}, "validation": report.get("validation", False)}
        return [{**about, **row} for row in report["rows"]]
    compressions = [row for row in map(compression_row, (folder, *_parts(folder))) if row is not None]
    if compressions:
        return compressions
    part = str((tn.studies.read_config(folder / "config.json") or {}).get("part"))  # of the benchmark of topologies
    return tn.studies.read_rows(folder, fields=topologies.FIELDS.get(part, tn.studies.FIELDS))


def _parts(folder: Path) -> list[Path]:
    """The folders of the compressions in a folder."""
    return [one for one in sorted(folder.glob("*/")) if compression_row(one) is not None]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def write_kept(path: Path, kept: Kept) -> None:
    """Write an experiment into a file. Raises StudyError where it cannot be written."""
    rows = [{name: value for name, value in row.items() if name not in WITHOUT} for row in kept.rows]
    names = list(dict.fromkeys(name for row in rows for name in row if name != "layers"))
    same = {name: rows[0].get(name) for name in names if all(row.get(name) == rows[0].get(name) for row in rows)}
    columns = [name for name in names if name not in same]
    trained = any("epoch" in row for row in rows)
    layers = list(dict.fromkeys(name for row in rows for name in row.get("layers", ()) if not trained))
    head = {"commands": kept.commands, "note": kept.note, "config": kept.config}
    head |= {"same": same, "columns": columns, "layers": layers, "details": DETAILS}
    lines = [_json(head)]
    for row in rows:
        each = {} if trained else row.get("layers", {})
        facts = [[layers.index(name), *(layer.get(detail) for detail in DETAILS)] for name, layer in each.items()]
        lines.append(_json([*(row.get(name) for name in columns), facts]))
    with tn.studies.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tn.studies.write_text(path, "\n".join(lines) + "\n")


def read_kept(path: Path) -> Kept:
    """Read what `write_kept` has written. Raises StudyError where the file is something else."""
    try:
        head, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        rows = [_row(head, line) for line in lines]
        return Kept(rows, tuple(head["commands"]), head["config"], head["note"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise tn.errors.StudyError(f"{path} does not have kept rows", because=error) from error


def _row(head: dict[str, Any], line: Sequence[Any]) -> Row:
    *values, facts = line
    row = {**head["same"], **dict(zip(head["columns"], values, strict=True))}
    layers = {head["layers"][number]: dict(zip(head["details"], layer, strict=True)) for number, *layer in facts}
    return {**row, "layers": layers}


def _json(value: Any) -> str:
    return json.dumps(_rounded(value), separators=(",", ":"))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if value == value else None
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def _named(value: Any) -> Any:
    """The value without the folders of a path."""
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _without_paths(command: str) -> str:
    """The command with names in place of paths, and without its output folder."""
    words = shlex.split(command)
    words = [word for word, before in zip(words, ["", *words], strict=False) if "--output" not in (word, before)]
    return shlex.join(str(_named(word)) for word in words)
