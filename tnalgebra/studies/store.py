"""The rows of a folder, each written as soon as it is finished, and read again."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .._files import write_text
from ..errors import StudyError
from .folder import OTHER_OUTPUT, compare_configs, locked, note_command, read_config, writing
from .rows import FIELDS, Row

ROWS = "results.jsonl"
CONFIG = "config.json"


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
