"""Rows that a benchmark appends to a file, one a cell, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tnalgebra.errors import StudyError, explain

Row: TypeAlias = dict[str, Any]
"""A line of results.jsonl or memory.jsonl."""


def last_rows(path: Path, key: Sequence[str]) -> list[Row]:
    """The rows of a file, of those that agree in `key` the last; a last line that was cut off is taken away.

    Raises:
        StudyError: a line is no row.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    rows: dict[str, Row] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            found = json.dumps([row[name] for name in key])
            rows.pop(found, None)
            rows[found] = row
        except (ValueError, TypeError, KeyError) as error:
            raise StudyError(
                explain(f"line {number} of {path} is no row", because=error, fix="another --output")
            ) from error
    return list(rows.values())
