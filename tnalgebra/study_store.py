"""The folder of a study: its config, its rows as they are finished, one process at a time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from .errors import StudyError, explain
from .files import write_text

Row: TypeAlias = dict[str, Any]

ROWS = "results.jsonl"
CONFIG = "config.json"


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that tell configs apart."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


class Store:
    """Rows in `folder/results.jsonl`, a line each, written as they come and never twice.

    Use it in a `with` block: inside, no other process can open the folder.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.config = dict(config)
        self.rows: list[Row] = []

    @contextmanager
    def opened(self) -> Iterator[Store]:
        """Lock the folder, check its config, read the rows it has.

        Raises:
            StudyError: another process has it; it holds a study of another config; a line is no row.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise StudyError(
                explain(
                    f"another process is writing into {self.folder}",
                    fix="wait for it to finish, or choose another --output",
                )
            ) from error
        try:
            self._check_config()
            self.rows = read_rows(self.folder, mend=True)
            yield self
        finally:
            lock.release()

    def _check_config(self) -> None:
        path = self.folder / CONFIG
        if not path.exists():
            if (self.folder / ROWS).exists():
                raise StudyError(explain(f"{self.folder} has rows and no {CONFIG}", fix="another --output"))
            write_text(path, json.dumps(self.config, indent=2) + "\n")
            return
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StudyError(explain(f"{path} is no JSON", because=error, fix="another --output")) from error
        ours = json.loads(json.dumps(self.config))
        if there != ours:
            keys = sorted(key for key in {*there, *ours} if there.get(key) != ours.get(key))
            differences = "\n".join(f"{key}: {there.get(key)!r} there, {ours.get(key)!r} here" for key in keys)
            raise StudyError(
                explain(
                    f"{self.folder} holds a study of another config",
                    differences=differences,
                    fix="another --output, or the same settings",
                )
            )

    def append(self, row: Row) -> None:
        """Add a row; when this returns, it is on the disk."""
        with (self.folder / ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)


def read_rows(folder: str | Path, *, mend: bool = False) -> list[Row]:
    """The rows of a study's folder, in the order they were finished.

    Args:
        mend: cut off a last line that a killed process left unfinished; otherwise it is only passed over.

    Raises:
        StudyError: a line before the last is no row.
    """
    path = Path(folder) / ROWS
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise StudyError(explain(f"line {number} of {path} is no row", because=error)) from error
        if not isinstance(row, dict):
            raise StudyError(explain(f"line {number} of {path} is no row", line=line[:80].decode(errors="replace")))
        rows.append(row)
    if mend and whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return rows


def table(rows: Iterable[Row]) -> str:
    """Rows as aligned text, single layers left out: what was done, top-1, its change, errors, parameters."""
    header = ("rewrite", "keep", "scope", "top-1 %", "change", "mean sq. rel. error", "parameters kept")
    lines = [header]
    for row in rows:
        if row["scope"] in row["layers"]:
            continue
        keep = "" if row["keep"] is None else f"{row['keep']:g}"
        lines.append(
            (
                row["rewrite"],
                keep,
                row["scope"],
                f"{100 * row['accuracy']:.2f}",
                f"{100 * row['accuracy_change']:+.2f}",
                f"{row['mean_squared_relative_error']:.4f}",
                f"{row['parameters_kept']:.3f}",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    texts = []
    for line in lines:
        cells = [
            cell.ljust(width) if i in (0, 2) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        texts.append("  ".join(cells).rstrip())
    return "\n".join([texts[0], "-" * max(map(len, texts)), *texts[1:]])
