"""The folder of a training: its description, and checkpoints from which it continues. Each is whole or absent.

FOLDER/training.json                everything that the result depends on: settings, data, network
FOLDER/checkpoints/step-00000391/   one of the last two; written under another name, then renamed
    model.safetensors               the network, as `tnalgebra.save` writes it
    optimizer.pt                    the state of the optimizer, and that of the loss scaler of fp16
    progress.json                   steps, rows, losses of the epoch so far; check sums of both files
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tnalgebra as tn
from recipes.training.history import Epoch
from recipes.training.settings import Training
from recipes.training.task import Task

CONFIG, CHECKPOINTS = "training.json", "checkpoints"
MODEL, OPTIMIZER, PROGRESS = "model.safetensors", "optimizer.pt", "progress.json"
KEPT = 2

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError)


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        step: the number of steps that are done, of all epochs.
        seconds: the time that the current epoch has taken so far.
        losses: the losses of the steps of the current epoch so far.
        first_loss: the loss of the very first step.
        rows: the rows of the epochs that are done.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    first_loss: float | None = None
    rows: list[Epoch] = field(default_factory=list)


def describe(model: nn.Module, task: Task, settings: Training) -> dict[str, Any]:
    """Everything that the result of a training depends on, except device, threads and number of processes."""
    return {
        "settings": {name: value for name, value in vars(settings).items() if name != "checkpoint_every"},
        "task": task.describe(),
        "network": {
            "class": type(model).__name__,
            "tensors": {name: f"{value.dtype} {tuple(value.shape)}" for name, value in model.state_dict().items()},
            "not_trained": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
            "kernels": {
                name: str(layer.kernel) for name, layer in model.named_modules() if isinstance(layer, tn.nn.KernelLayer)
            },
            "values_at_the_start": tn.studies.digest_state(model),
        },
    }


def settle(folder: Path, description: Mapping[str, Any]) -> None:
    """Write the description of a training into a new folder, and remove unfinished files of a killed process.

    Raises:
        StudyError: the folder holds another training, its description cannot be read, or it cannot be written.
    """
    stored = tn.studies.read_config(folder / CONFIG)
    if stored is not None:
        tn.studies.compare_configs(folder, stored, description)
    elif (folder / CHECKPOINTS).exists():
        raise tn.errors.StudyError(f"{folder} has checkpoints, but no {CONFIG}", fix="another folder")
    with tn.studies.writing(folder):
        for unfinished in (folder / CHECKPOINTS).glob(".*"):
            shutil.rmtree(unfinished)
        if stored is None:
            tn.studies.write_text(folder / CONFIG, json.dumps(description, indent=2) + "\n")


def write_checkpoint(
    folder: Path, progress: Progress, *, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any
) -> None:
    """Write a checkpoint, then remove all but the last two.

    Raises:
        StudyError: it cannot be written, for instance because the disk is full; the earlier ones stay.
        CheckpointError: the model has a layer that a checkpoint cannot hold.
    """
    place, last = folder / CHECKPOINTS, next(reversed(checkpoints(folder)), None)
    try:
        place.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=place, prefix=".new-"))
        try:
            tn.checkpoint.save(model, made / MODEL)
            content = io.BytesIO()  # when torch writes into a file itself, it hides why that fails
            state = {"optimizer": optimizer.state_dict(), "scaler": None if scaler is None else scaler.state_dict()}
            torch.save(state, content)
            (made / OPTIMIZER).write_bytes(content.getbuffer())
            sums = {name: _checksum(made / name) for name in (MODEL, OPTIMIZER)}
            (made / PROGRESS).write_text(json.dumps({**vars(progress), "sha256": sums}) + "\n", encoding="utf-8")
            target = place / f"step-{progress.step:08d}"
            _remove(target)  # an older one of the same step, which could not be read
            made.rename(target)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        for old in checkpoints(folder)[:-KEPT]:
            _remove(old)
    except (OSError, tn.errors.CheckpointError) as error:
        if isinstance(error, tn.errors.CheckpointError) and error.__cause__ is None:
            raise
        fact = f"the checkpoint after step {progress.step} cannot be written into {folder}"
        fix = "room there, and the same call again; or another folder"
        because = error.__cause__ or error
        raise tn.errors.StudyError(fact, because=because, last=last, fix=fix) from error


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in the folder of a training, the oldest first."""
    return sorted((folder / CHECKPOINTS).glob("step-*"))


def read_checkpoint(folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any) -> Progress:
    """Load the last checkpoint into model, optimizer and scaler; if the folder has none, leave them as they are.

    If a checkpoint is damaged, the one before is used instead, with a warning.

    Raises:
        CheckpointError: the folder has checkpoints, but none of them can be read.
    """
    reasons: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            content = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
            for name, expected in content.pop("sha256").items():
                if _checksum(path / name) != expected:
                    raise ValueError(f"{name} does not have its check sum")
            progress = Progress(**{**content, "rows": [Epoch(*row) for row in content["rows"]]})
            state = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
            tn.checkpoint.load(path / MODEL, into=model)
            optimizer.load_state_dict(state["optimizer"])
            if scaler is not None:
                scaler.load_state_dict(state["scaler"])
        except UNREADABLE as error:
            reasons.append(f"{path}: {error}")
            continue
        for reason in reasons:
            warnings.warn(f"the checkpoint is damaged, the one before is used: {reason}", stacklevel=2)
        return progress
    if reasons:
        because = "\n".join(reasons)
        raise tn.errors.CheckpointError("no checkpoint can be read", because=because, fix="another folder")
    return Progress()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    """Remove a checkpoint; a process that is killed meanwhile leaves nothing that looks like a whole one."""
    if path.exists():
        away = path.with_name(f".old-{path.name}")
        path.rename(away)
        shutil.rmtree(away)
