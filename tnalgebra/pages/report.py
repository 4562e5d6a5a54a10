"""The report of runs: one page for any number of their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._tables import plural
from ..errors import StudyError
from ..studies import FIELDS
from .benchmarks import benchmark_section, other_section
from .compressions import compression_section
from .page import write_page
from .parts import Section
from .runs import Run, read_runs
from .studies import study_section
from .trainings import training_section, trainings_section


def write_report(outputs: Sequence[str | Path], path: str | Path) -> None:
    """Write a page about runs: what was done, tables, plots, drawings, and the answers that their rows give.

    Args:
        outputs: folders of studies, compressions, trainings and benchmarks, in the order of the page.
        path: the HTML file, written whole or not at all.

    Raises:
        StudyError: a folder has neither rows nor a result, or a file of it is not what its name says.
        MissingPackageError: plotly is not installed.
        OSError: the page cannot be written.

    Example:
        >>> tn.pages.write_report(["runs/study"], "runs/study/report.html")
    """
    if not outputs:
        raise StudyError("a report of no run", fix="the folder of at least one run")
    runs = read_runs(outputs)
    title = runs[0].title if len(runs) == 1 else plural(len(runs), "run")
    write_page(path, f"Report: {title}", [section_of(run) for run in runs])


def section_of(run: Run) -> Section:
    """What the page says about a run, by what its rows or its result hold."""
    if run.rows:
        if all("contenders" in row and isinstance(row["contenders"], dict) for row in run.rows):
            return benchmark_section(run)
        if all("epoch" in row and "score" in row for row in run.rows):
            return trainings_section(run)
        if all(_is_of_a_study(row) for row in run.rows):
            return study_section(run)
    elif _entries(run.result.get("layers"), "name"):
        return compression_section(run)
    elif _entries(run.result.get("rows"), "epoch"):
        return training_section(run)
    return other_section(run)


def _is_of_a_study(row: dict[str, Any]) -> bool:
    layers = row.get("layers")
    return (
        row.keys() >= {*FIELDS} and isinstance(layers, dict) and all(isinstance(each, dict) for each in layers.values())
    )


def _entries(value: object, field: str) -> bool:
    """Whether it is a list of mappings that have a field."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) and field in each for each in value)
