"""The folder of a study: its config, its rows as they are finished, one process at a time."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from .._files import write_text
from .._tables import Table
from ..compiler import device_name
from ..errors import StudyError

Row: TypeAlias = dict[str, Any]

ROWS = "results.jsonl"
CONFIG = "config.json"
COMMANDS_FILE = "commands.txt"
"""The file that has the commands which wrote into a folder, one in a line."""
OTHER_OUTPUT = "another --output"
LISTED_DIFFERENCES = 20


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


def made_with(device: torch.device | str) -> dict[str, str]:
    """The fields of a row that say with what it was made: the versions of tnalgebra and torch, and the hardware."""
    return {"version": version("tnalgebra"), "torch": str(torch.__version__), "machine": device_name(device)}


# Configs and locks, also for other folders of results ---------------------------------------------------------


def digest_state(model: nn.Module) -> str:
    """SHA-256, as 64 hexadecimal digits, of all tensors in the state of a network, with their names."""
    return digest_tensors({name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)})


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, as 64 hexadecimal digits, of tensors with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if value.numel():
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that distinguish configs."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def read_config(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None if the file does not exist.

    Raises:
        StudyError: the file cannot be read, or does not hold a mapping.
    """
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"it holds a {type(config).__name__}")
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read as a config", because=error, fix=OTHER_OUTPUT) from error
    return config


def compare_configs(folder: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Check that the config stored in a folder is the current one.

    Raises:
        StudyError: they differ. The differences are listed, those in nested mappings under keys joined by dots.
    """
    old, new = _flatten(stored), _flatten(json.loads(json.dumps(dict(current))))
    lines = [
        f"{key}: {old.get(key, 'none')} there, {new.get(key, 'none')} here"
        for key in {**new, **old}
        if old.get(key, "none") != new.get(key, "none")
    ]
    if lines:
        more = [f"... and {len(lines) - LISTED_DIFFERENCES} more"] if len(lines) > LISTED_DIFFERENCES else []
        raise StudyError(
            f"{folder} holds results of another config",
            differences="\n".join(lines[:LISTED_DIFFERENCES] + more),
            fix="another --output, or the same settings",
        )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Entries of nested mappings as JSON, under their keys joined by dots."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = "none" if value is None else json.dumps(value)
    return flat


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder, which is created if it does not exist.

    Raises:
        StudyError: another process has locked it, or it cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            fact = f"another process is writing into {folder}"
            raise StudyError(fact, fix="wait for it to finish, or choose another --output") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise errors of the disk as StudyError."""
    try:
        yield
    except OSError as error:
        raise StudyError(f"{folder} cannot be written", because=error, fix=OTHER_OUTPUT) from error


def note_command(folder: Path) -> None:
    """Add the command line of this process to those that wrote into a folder, where it is a command or a recipe.

    Raises:
        StudyError: it cannot be written.
    """
    spec, path = getattr(sys.modules["__main__"], "__spec__", None), folder / COMMANDS_FILE
    module = spec.name.removesuffix(".__main__") if spec is not None else Path(sys.argv[0]).name
    if module != "tnalgebra" and not module.startswith("recipes."):
        return
    words = [*(["tnalgebra"] if module == "tnalgebra" else ["python", "-m", module]), *sys.argv[1:]]
    with writing(folder):
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if shlex.join(words) not in before:
            write_text(path, "".join(f"{line}\n" for line in (*before, shlex.join(words))))


# Rows ---------------------------------------------------------------------------------------------------------


class Store:
    """The rows in `folder/results.jsonl`, one in each line, each written as soon as it is finished.

    fields: that every row has.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], *, fields: Collection[str] = FIELDS) -> None:
        self.folder = folder
        self.fields = fields
        self.config = dict(config)
        self.rows: list[Row] = []

    @contextmanager
    def opened(self) -> Iterator[Store]:
        """Lock the folder for a `with` block, compare its config with what is known of ours, read its rows.

        Raises:
            StudyError: another process has locked it; it holds results of another config; a line is not a row; it
                cannot be written.
        """
        with locked(self.folder):
            stored = self._stored_config()
            if stored is not None:
                compare_configs(self.folder, {key: stored.get(key) for key in self.config}, self.config)
            self.rows = read_rows(self.folder, mend=True, fields=self.fields)
            note_command(self.folder)
            yield self

    def settle(self, **more: object) -> None:
        """Complete the config; it is then written into a new folder, or compared with that of an old one.

        A mapping may lack entries of the folder's, and have further ones, which are added to the folder's.
        """
        self.config |= more
        stored = self._stored_config()
        if stored is not None:
            joint = dict(stored)
            for name, value in more.items():
                if isinstance(value, dict) and isinstance(stored.get(name), dict):
                    self.config[name], joint[name] = stored[name] | value, value | stored[name]
            compare_configs(self.folder, joint, self.config)
        if stored != json.loads(json.dumps(self.config)):
            with writing(self.folder):
                write_text(self.folder / CONFIG, json.dumps(self.config, indent=2) + "\n")

    def _stored_config(self) -> dict[str, Any] | None:
        config = read_config(self.folder / CONFIG)
        if config is None and (self.folder / ROWS).exists():
            raise StudyError(f"{self.folder} has rows, but no {CONFIG}", fix=OTHER_OUTPUT)
        return config

    def append(self, row: Row) -> None:
        """Add a row; when this returns, it is on the disk. If it cannot be written, the file is as it was."""
        path = self.folder / ROWS
        with writing(self.folder):
            before = path.stat().st_size if path.exists() else 0
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.truncate(path, before)
                raise
        self.rows.append(row)


def read_rows(folder: str | Path, *, mend: bool = False, fields: Collection[str] = FIELDS) -> list[Row]:
    """The rows of a study's folder, in the order in which they were finished.

    Args:
        fields: that every row has.
        mend: cut off an unfinished last line, which a killed process leaves; otherwise it is only ignored.

    Raises:
        StudyError: a line before the last is not a row.

    Example:
        >>> [row["accuracy"] for row in tn.studies.read_rows("runs/study")]
    """
    path = Path(folder) / ROWS
    rows, unfinished = read_lines(path)
    for number, row in enumerate(rows, 1):
        if not row.keys() >= set(fields):
            raise StudyError(f"line {number} of {path} is not a row", line=json.dumps(row)[:80])
    if mend and unfinished:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - unfinished)
    return rows


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The finished lines of a file of rows, whatever these are, and the number of bytes after the last of them.

    A file that does not exist has no rows.

    Raises:
        StudyError: a line is not a JSON object.
    """
    if not path.exists():
        return [], 0
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise StudyError(f"line {number} of {path} is not a row", because=error) from error
        if not isinstance(row, dict):
            raise StudyError(f"line {number} of {path} is not a row", line=line[:80].decode(errors="replace"))
        rows.append(row)
    return rows, len(content) - len(whole)


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
