"""What the folder of a run holds: its rows or its result, its config, and the commands that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import StudyError
from ..studies import COMMANDS_FILE, read_config, read_lines

ROWS, RESULT, CONFIG, DRAWINGS = "results.jsonl", "report.json", "config.json", "drawings"


@dataclass(frozen=True)
class Run:
    """A folder of results.

    title: what the page calls it.
    rows: the lines of its results.jsonl.
    result: what its report.json holds.
    config: its settings.
    commands: the command lines that wrote into it, as far as they are known.
    drawings: file name without suffix -> SVG document.
    unfinished: whether the last line of its rows is cut off.
    """

    folder: Path
    title: str
    rows: Sequence[dict[str, Any]] = ()
    result: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    commands: Sequence[str] = ()
    drawings: Mapping[str, str] = field(default_factory=dict)
    unfinished: bool = False

    @property
    def details(self) -> dict[str, str]:
        """The commands and the settings, as texts."""
        texts = {"Commands": "\n".join(self.commands)}
        texts["Settings"] = "\n".join(f"{name}: {json.dumps(value)}" for name, value in self.config.items())
        return {name: text for name, text in texts.items() if text}

    @property
    def notes(self) -> list[str]:
        """What is not as it should be."""
        cut_off = f"The last line of {ROWS} is unfinished, as a stopped process leaves it, and is left out."
        return [cut_off] if self.unfinished else []


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read folders of runs, and call each by as many of its last folders as distinguish it from the others.

    Raises:
        StudyError: as `read_run` does.
    """
    runs = [read_run(folder) for folder in folders]
    paths = [run.folder.resolve().parts for run in runs]
    for length in range(1, max(map(len, paths), default=0) + 1):
        titles = ["/".join(path[-length:]) for path in paths]
        if len({*titles}) == len({*paths}):
            return [replace(run, title=title) for run, title in zip(runs, titles, strict=True)]
    return runs


def read_run(folder: str | Path) -> Run:
    """Read the folder of a run; a file of rows or of a result stands for its folder.

    Raises:
        StudyError: the folder does not exist, or has neither rows nor a result; a file cannot be read, or is not what
            its name says.
    """
    folder = Path(folder)
    if folder.name in (ROWS, RESULT) and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        fact = f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist"
        raise StudyError(fact, fix="the --output of a command or a recipe")
    try:
        rows, unfinished = read_lines(folder / ROWS)
        result = read_config(folder / RESULT) or {}
        config = read_config(folder / CONFIG) or result.get("config")
        noted = folder / COMMANDS_FILE
        commands = noted.read_text(encoding="utf-8").splitlines() if noted.exists() else []
        drawings = {path.stem: path.read_text(encoding="utf-8") for path in sorted((folder / DRAWINGS).glob("*.svg"))}
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{folder} cannot be read", because=error) from error
    if not rows and not result:
        fact = f"{folder} has no finished row and no result"
        needed = f"{ROWS} or {RESULT}"
        raise StudyError(fact, needed=needed, fix="the --output of a command or a recipe that has finished a row")
    settings = config if isinstance(config, Mapping) else {}
    return Run(folder, folder.resolve().name, rows, result, settings, commands, drawings, bool(unfinished))
