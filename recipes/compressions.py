"""Compressions as rows: what recipes.compress has left in its folders, a row each, and their table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from recipes.experiment import Row
from recipes.reporting import aligned

REPORT = "report.json"
"""The file that recipes.compress leaves for programs."""

SETTINGS = ("size", "calibrate", "held_out", "distil", "seed")
"""What a row has of the settings of a compression."""


def compression_row(folder: Path) -> Row | None:
    """The row of a compression, from its report; None where the folder has no report of one.

    Returns:
        `accuracy` and `accuracy_after`, of the test images, from 0 to 1; `accuracy_change`, their difference;
        `accuracy_fitted`, before the distillation; `divergence`, in nats, from the dense network's outputs on the
        images held out, of the fits or after the distillation, and `divergence_before`, before the distillation, each
        None where there was none; `undone`, whether the distillation was, as it raised the divergence;
        `mean_squared_relative_error`, of the outputs where they were measured, else of the kernels, over the layers
        that were decomposed, before the distillation; `parameters` that are left, and the parts `parameters_kept`,
        `multiply_adds_kept` and `time_kept`, of a forward pass; the settings, of which `calibrate` is at most the
        number of training images; and with what it was made.
    """
    path = folder / REPORT
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if not isinstance(report, Mapping) or "after" not in _entry(report, "accuracy"):
        return None
    before, after = report["accuracy"]["before"], report["accuracy"]["after"]
    divergences = report["divergence"]
    config = report["config"]
    some = min(config["calibrate"], report.get("training_images", config["calibrate"]))
    return {
        "compression": " or ".join(config["rewrite"]),
        "model": report["model"],
        **{name: config[name] for name in SETTINGS},
        "calibrate": some,
        "accuracy": before,
        "accuracy_fitted": report["accuracy"].get("fitted"),
        "accuracy_after": after,
        "accuracy_change": after - before,
        "divergence_before": divergences[0] if len(divergences) > 1 else None,
        "divergence": divergences[-1] if divergences else None,
        "undone": report.get("undone", False),
        "mean_squared_relative_error": _mean_squared_error(report["layers"]),
        "parameters": report["parameters"]["after"],
        "parameters_kept": _kept(report["parameters"]),
        "multiply_adds_kept": _kept(report["multiply_adds"]),
        "time_kept": _kept(report["forward_seconds"]),
        "images": report["images"],
        "version": report["version"],
        "torch": report["torch"],
        "machine": report["machine"],
        "seconds": report["seconds"],
    }


def _entry(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    entry = report.get(name)
    return entry if isinstance(entry, Mapping) else {}


def _kept(counts: Mapping[str, float]) -> float:
    return counts["after"] / counts["before"]


def _mean_squared_error(layers: Sequence[Mapping[str, Any]]) -> float | None:
    errors = [
        layer["relative_error"] if layer.get("output_error") is None else layer["output_error"]
        for layer in layers
        if layer.get("rule") is not None
    ]
    return fmean(error**2 for error in errors) if errors and None not in errors else None


def summary(rows: Sequence[Row]) -> str:
    """A line for each compression, and one for its distillation; above those of a network one for it when dense."""
    head = ["network", "rewrites of a layer", "size", "distilled", "top-1, %", "change", "divergence"]
    lines = [[*head, "mean sq. rel. error", "parameters", "kept", "multiply-adds kept", "time kept"]]
    for (model, accuracy), group in _by_network(rows).items():
        dense = [model, "none (dense)", "", "", f"{100 * accuracy:.2f}", "", "0", "0", "", *["1.000"] * 3]
        lines += [dense, *(["", *line] for row in group for line in _lines(row))]
    return aligned(lines, left=3)


def _by_network(rows: Sequence[Row]) -> dict[tuple[str, float], list[Row]]:
    """The rows of each network, which are those of one model that have the same accuracy before."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["accuracy"]), []).append(row)
    return groups


def _lines(row: Row) -> list[list[str]]:
    """The line of a compression, without the network; two where it was distilled."""
    named, before = [row["compression"], row["size"]], row["accuracy"]
    error = _number(row["mean_squared_relative_error"])  # of the fits; the distillation changes it
    kept = (row[name] for name in ("parameters_kept", "multiply_adds_kept", "time_kept"))
    counted = [f"{row['parameters']:,}", *(f"{part:.3f}" for part in kept)]
    lines = []
    if row.get("accuracy_fitted") is not None:
        fitted = [*_change(before, row["accuracy_fitted"]), _number(row["divergence_before"]), error]
        lines.append([*named, "", *fitted, *counted])
        named, error, counted = ["", ""], "", [""] * len(counted)
    distilled = f"{row['distil']:g} passes" if row["distil"] else ""
    after = _change(before, row["accuracy_after"])
    if row.get("undone"):
        distilled, after = f"{distilled}, undone", ["", ""]
    return [*lines, [*named, distilled, *after, _number(row["divergence"]), error, *counted]]


def _change(before: float, after: float) -> list[str]:
    """An accuracy in %, and its change in points."""
    return [f"{100 * after:.2f}", f"{100 * (after - before):+.2f}"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
