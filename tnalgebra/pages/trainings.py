"""Trainings on a page: a single one, and the many of a recipe, with the recovery after a truncation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .._tables import plural
from .parts import Answer, Column, Dataset, Panel, Section, as_number, times
from .runs import Run

QUESTION_RECOVERY = "Does the accuracy recover after retraining?"
POINTS, EPOCHS = 0.5, 5
"""A network has recovered if it is at most POINTS below the accuracy before truncation, within EPOCHS epochs."""


def training_section(run: Run) -> Section:
    """The section of a single training, from its result."""
    result = run.result
    rows = [row for row in result["rows"] if isinstance(row, dict)]
    facts = {
        "network": str(result.get("model", "")),
        "score after the last epoch": _score(result.get("accuracy")),
        "parameters": _count(result.get("parameters")),
        "test images": _count(result.get("images")),
        "epochs": str(len(rows)),
        "versions": f"tnalgebra {result.get('version')}, torch {result.get('torch')}",
    }
    columns = [
        Column("epoch", [row.get("epoch") for row in rows], "count"),
        Column("top-1 %", [times(row.get("test_score"), 100) for row in rows], "percent"),
        Column("training loss", [row.get("training_loss") for row in rows], "short"),
        Column("learning rate", [row.get("learning_rate") for row in rows], "short"),
        Column("seconds", [row.get("seconds") for row in rows], "short"),
    ]
    return Section(
        title=run.title,
        kind="training",
        facts={name: text for name, text in facts.items() if text},
        details=run.details,
        notes=run.notes,
        datasets=[Dataset("Epoch by epoch", columns, _panels("top-1 %"))],
    )


def trainings_section(run: Run) -> Section:
    """The section of a recipe that trains several networks, from its rows: one for each epoch."""
    rows = list(run.rows)
    retrained = any("truncation" in row for row in rows)
    names = ("truncation", "way", "contender", "fraction", "seed")
    trainings = [", ".join(_word(name, row[name]) for name in names if row.get(name) is not None) for row in rows]
    percent = all(row.get("score_name") == "accuracy" for row in rows)
    score = "top-1 %" if percent else str(rows[0].get("score_name", "score")).replace("_", " ")
    factor = 100 if percent else 1
    columns = [
        Column("training", trainings, choose=True),
        *(Column(name, [row.get(name) for row in rows]) for name in names if name != "seed"),
        Column("epoch", [row.get("epoch") for row in rows], "count"),
        Column(score, [times(row.get("score"), factor) for row in rows], "percent" if percent else "short"),
        Column("training loss", [row.get("training_loss") for row in rows], "short"),
        Column("parameters kept", [row.get("parameters_kept") for row in rows], "short"),
        Column("multiply-adds kept", [row.get("multiply_adds_kept") for row in rows], "short"),
        Column("seconds", [row.get("seconds") for row in rows], "short"),
    ]
    text = "A point is an epoch of a training; epoch 0 is the network before it."
    answer = _recovery(rows) if retrained else None
    return Section(
        title=run.title,
        kind="retraining" if retrained else "trainings",
        facts={
            "network": str(rows[0].get("model", "")),
            "test images": _count(rows[0].get("images")),
            "trainings": str(len(dict.fromkeys(trainings))),
            "version": " and ".join(dict.fromkeys(f"tnalgebra {row.get('version')}" for row in rows)),
        },
        details=run.details,
        notes=run.notes,
        answers=[answer] if answer is not None else [],
        datasets=[Dataset("Epoch by epoch", columns, _panels(score), "training", text)],
    )


def _panels(score: str) -> list[Panel]:
    return [
        Panel("Score on the test images", "epoch", score, "lines"),
        Panel("Training loss", "epoch", "training loss", "lines"),
        Panel("Time of an epoch", "epoch", "seconds", "lines"),
    ]


def _word(name: str, value: object) -> str:
    return f"{name} {value}" if name in ("seed", "fraction") else str(value)


class _Retrained(NamedTuple):
    """How far a truncated network came; accuracies are parts of 1, and `first` is the epoch in which it recovered."""

    truncation: Any
    way: Any
    seed: Any
    truncated: float | None
    retrained: float
    first: int | None


def _recovery(rows: Sequence[dict[str, Any]]) -> Answer | None:
    """How near each truncated network comes to the accuracy before, in its first epochs."""
    before = next((as_number(row.get("accuracy")) for row in rows if row.get("way") is None), None)
    curves = _curves(rows)
    last = min(EPOCHS, max((epoch for curve in curves.values() for epoch in curve), default=0))
    ends = [] if before is None else _ends(curves, before - POINTS / 100 - 1e-9, last)
    if before is None or not ends:
        return None
    recovered = [one for one in ends if one.first is not None]
    worst = min(ends, key=lambda one: one.retrained)
    amount = "Yes" if len(recovered) == len(ends) else "In part" if recovered else "No"
    short = f"{amount}: {len(recovered)} of {plural(len(ends), 'training')} recovered."
    text = (
        f"Recovered is within {POINTS} points of the {100 * before:.2f} % before truncation, after at most "
        f"{plural(last, 'epoch')}. Farthest below ends {worst.truncation} trained as {worst.way}: "
        f"{100 * (worst.retrained - before):+.2f} points, from {_score(worst.truncated)} right after the truncation."
    )
    columns = [
        Column("truncation", [one.truncation for one in ends]),
        Column("trained as", [one.way for one in ends], choose=True),
        Column("seed", [one.seed for one in ends]),
        Column("top-1 % truncated", [times(one.truncated, 100) for one in ends], "percent"),
        Column("top-1 % retrained", [times(one.retrained, 100) for one in ends], "percent"),
        Column("change (points)", [100 * (one.retrained - before) for one in ends], "change"),
        Column("recovered", ["no" if one.first is None else f"after epoch {one.first}" for one in ends], choose=True),
    ]
    panels = [Panel("After retraining, against before it", "top-1 % truncated", "top-1 % retrained")]
    return Answer(QUESTION_RECOVERY, short, text, Dataset("Each training", columns, panels, "trained as"))


def _curves(rows: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], dict[int, float]]:
    """(truncation, way, seed) of each training of a truncated network -> epoch -> accuracy."""
    curves: dict[tuple[Any, ...], dict[int, float]] = {}
    for row in rows:
        accuracy, epoch = as_number(row.get("accuracy")), row.get("epoch")
        if accuracy is not None and isinstance(epoch, int) and row.get("way") not in (None, "control"):
            curves.setdefault((row.get("truncation"), row["way"], row.get("seed")), {})[epoch] = accuracy
    return curves


def _ends(curves: Mapping[tuple[Any, ...], Mapping[int, float]], bound: float, last: int) -> list[_Retrained]:
    """Where trainings are after the epoch `last`; those that were stopped before it count once they have recovered."""
    ends = []
    for (truncation, way, seed), curve in curves.items():
        used = [epoch for epoch in sorted(curve) if epoch <= last]
        first = next((epoch for epoch in used if epoch > 0 and curve[epoch] >= bound), None)
        if first is not None or (last > 0 and last in curve):
            ends.append(_Retrained(truncation, way, seed, curve.get(0), curve[used[-1]], first))
    return ends


def _score(value: object) -> str:
    number = as_number(value)
    return "" if number is None else f"{100 * number:.2f} %"


def _count(value: object) -> str:
    number = as_number(value)
    return "" if number is None else f"{number:,.0f}"
