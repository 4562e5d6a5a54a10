"""Folders of runs with rows made by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.claim_rows import BASELINE, row

LAYERS = tuple(f"layer{number}" for number in range(5))
CUTS = ("out | in kh kw", "out kh | in kw")
STRONG, WEAK = "layer4", "layer1"
"""The layers that bear most and least in `study_rows`."""


def write_rows(folder: Path, rows: Iterable[Mapping[str, Any]], tail: str = "", **config: object) -> Path:
    """Write the rows, and an unfinished line, as a folder of results."""
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows) + tail)
    (folder / "config.json").write_text(json.dumps({"data": "digits", **config}))
    return folder


def study_rows() -> list[dict[str, Any]]:
    """Rows in which the loss of a layer is its error, times 4 in the weak layer, and not at all in the strong one."""
    rows = [BASELINE]
    for cut in CUTS:
        for keep in (0.75, 0.5, 0.25):
            errors = [round(1 - keep + 0.01 * number, 3) for number in range(len(LAYERS))]
            fields: dict[str, Any] = {"rewrite": cut, "keep": keep}
            for layer, error in zip(LAYERS, errors, strict=True):
                loss = 0.0 if layer == STRONG else 0.05 * error * (4 if layer == WEAK else 1)
                kept = {"parameters_kept": 0.9 + keep / 10, "mean_squared_relative_error": error**2}
                rows.append(row(layer, error, loss, **fields, **kept))
            loss = (1 - keep) * (1 if cut == CUTS[0] else 0.5)
            squares = sum(error**2 for error in errors) / len(errors)
            rows.append(row(LAYERS, errors, loss, **fields, parameters_kept=keep, mean_squared_relative_error=squares))
    return rows


def retraining_rows() -> list[dict[str, Any]]:
    """A network of 0.9 that recovers as dense kernels after two epochs, and not as factors."""
    common = {"model": "net", "images": 1000, "score_name": "accuracy", "version": "0", "seed": 0}
    rows = [{**common, "truncation": "none", "way": None, "seed": None, "epoch": 0, "score": 0.9, "accuracy": 0.9}]
    for way, scores in {"control": (0.9, 0.9, 0.9), "dense": (0.5, 0.8, 0.897), "factored": (0.5, 0.7, 0.8)}.items():
        rows += [
            {**common, "truncation": "none" if way == "control" else "cut @ keep 0.5", "way": way, "epoch": epoch}
            | {"score": score, "accuracy": score, "training_loss": 1.0 / (epoch + 1), "seconds": 2.0}
            for epoch, score in enumerate(scores)
        ]
    return rows


def benchmark_rows() -> list[dict[str, Any]]:
    """Two cells of three contenders."""
    return [
        {"shape": shape, "device": "cpu", "versions": {"tnalgebra": "0", "torch": "2"}, "rounds": 3}
        | {"contenders": {"dense": {"seconds": 2e-3}, "ours": {"seconds": 1e-3, "error": 0.1}, "ours again": {}}}
        for shape in ("3x3", "7x7")
    ]
