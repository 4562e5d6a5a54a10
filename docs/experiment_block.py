"""What a page has of one experiment: its commands, its table, and which images and machine its rows are from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import tnalgebra as tn
from recipes import compressions
from recipes.a_priori import report as a_priori
from recipes.experiment import Row
from recipes.kept import Kept
from recipes.reporting import aligned
from recipes.retrain import report as retrain


def experiment_block(kept: Kept) -> str:
    """The commands of an experiment, its table, and what its rows were made with and on."""
    commands = "\n".join(kept.commands)
    parts = [f"```bash\n{commands}\n```"] if commands else []
    if kept.note:
        parts.append(kept.note)
    return "\n\n".join([*parts, f"```text\n{summary(kept.rows)}\n```", f"{images_text(kept.rows)} {made_text(kept)}"])


def summary(rows: Sequence[Row]) -> str:
    """The table of an experiment, as its recipe prints it."""
    if "truncation" in rows[0]:
        return retrain.summary(rows)
    if "contender" in rows[0]:
        return a_priori.summary(rows)
    if "compression" in rows[0]:
        return compressions.summary(rows)
    if "epoch" in rows[0]:
        return training_table(rows)
    return str(tn.studies.table(rows))


def training_table(rows: Sequence[Row]) -> str:
    """At most a dozen epochs of a training, evenly spaced, the last one among them."""
    step = math.ceil(len(rows) / 12)
    some = [row for row in rows if (len(rows) - row["epoch"]) % step == 0]
    epochs, scores = ([row[name] for row in some] for name in ("epoch", "test_score"))
    return aligned([["epoch", *map(str, epochs)], ["top-1, %", *(f"{100 * score:.2f}" for score in scores)]])


def images_text(rows: Sequence[Row]) -> str:
    """Which images were looked at, and what for."""
    first = rows[0]
    if "cut" in first:
        return "No image was looked at."
    if "compression" in first:
        return compression_images(rows)
    if first.get("score_name") == "accuracy" or "test_score" in first:
        if first.get("validation"):
            tested = f"{first['images']:,} of them were kept out of it and gave the accuracies. No test image was used."
            return f"The training images and their labels were used for the training. {tested}"
        tested = f"The {first['images']:,} test images and their labels gave the accuracies after each epoch."
        return f"The training images and their labels were used for the training. {tested}"
    if "score_name" in first:
        return "The test fields gave the errors after each epoch, and nothing else."
    sentences = [f"{first['images']:,} test images and their labels gave the accuracies, and nothing else."]
    for count in dict.fromkeys(str(row["calibration"]).split()[0] for row in rows if row["calibration"]):
        what = "the errors of outputs" if any(row["reported"] for row in rows) else "the ranks and the fits"
        sentences.append(f"{int(count):,} training images without their labels gave {what}.")
    return " ".join(sentences)


def compression_images(rows: Sequence[Row]) -> str:
    """Which images compressions looked at, and what for; they are the same for all rows."""
    first = rows[0]
    sentences = [f"{first['images']:,} test images and their labels gave the accuracies, and nothing else."]
    if first["calibrate"]:
        fits = first["calibrate"] - first["held_out"]
        sentences.append(f"{fits:,} training images without their labels gave the ranks and the fits.")
    if first["held_out"]:
        sentences.append(f"{first['held_out']:,} others gave the divergence, by which the plan was chosen.")
    if any(row["distil"] for row in rows):
        others = " but those held out" if first["held_out"] else ""
        sentences.append(f"The distillation had all training images{others}, without their labels.")
    return " ".join(sentences)


def made_text(kept: Kept) -> str:
    """With what the rows were made: the machine, torch, tnalgebra, the config and the seeds."""
    rows = kept.rows
    text = f"Made on {listed(rows, 'machine')} with torch {listed(rows, 'torch')}, tnalgebra {listed(rows, 'version')}"
    if "config" in rows[0]:
        text += f", config {listed(rows, 'config')}"
    seeds = dict.fromkeys(row["seed"] for row in rows if row.get("seed") is not None)
    if seeds:
        text += f", seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return f"{text}."


def listed(rows: Iterable[Row], field: str) -> str:
    """The different values of a field."""
    return " and ".join(dict.fromkeys(str(row.get(field, "unknown")).split("+")[0] for row in rows))
