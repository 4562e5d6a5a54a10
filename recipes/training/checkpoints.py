"""The folder of a training: what is trained there, and checkpoints from which it goes on, each whole or not there.

FOLDER/training.json                what the result depends on: settings, data, network
FOLDER/checkpoints/step-00000391/   the last two; made under another name, then renamed
    model.safetensors               as `tnalgebra.save` writes it
    optimizer.pt                    the optimizer's state, and that of fp16's loss scaler
    progress.json                   steps, rows, losses of the epoch so far; check sums of both files
FOLDER/history.csv                  see trainer_logs; made from the rows in the checkpoint
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

import tnalgebra as tn
from recipes.training.history import Row, row_of
from recipes.training.settings import Training
from recipes.training.task import Task, state_digest

FORMAT = 1
CONFIG, CHECKPOINTS, LOCK = "training.json", "checkpoints", ".training.lock"
MODEL, OPTIMIZER, PROGRESS = "model.safetensors", "optimizer.pt", "progress.json"
KEPT = 2
LISTED = 20

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError)


@dataclass
class Progress:
    """Where a training is.

    Attributes:
        step: steps done, of all epochs.
        seconds: spent in the epoch so far.
        losses: of the steps of the epoch so far.
        first_loss: of the first step of all.
        rows: of the epochs that are done.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    first_loss: float | None = None
    rows: list[Row] = field(default_factory=list)


def described(model: nn.Module, task: Task, settings: Training) -> dict[str, Any]:
    """All that the result of a training depends on, but device, threads and number of processes."""
    kernels = {name: str(layer.kernel) for name, layer in model.named_modules() if isinstance(layer, tn.nn.KernelLayer)}
    network = {
        "class": type(model).__name__,
        "tensors": {name: f"{value.dtype} {tuple(value.shape)}" for name, value in model.state_dict().items()},
        "not_trained": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "kernels": kernels,
        "values_at_the_start": state_digest(model),
    }
    content = {"settings": settings.described(), "task": task.description(), "network": network}
    return {"format": FORMAT, **json.loads(json.dumps(content))}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in the folder, which is made if it is not there.

    Raises:
        StudyError: another one does; the folder cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            fact = f"another process is training in {folder}"
            raise tn.errors.StudyError(
                tn.errors.explain(fact, fix="wait for it to finish, or another folder")
            ) from error
    try:
        yield
    finally:
        lock.release()


def settle(folder: Path, description: Mapping[str, Any]) -> None:
    """Note in a new folder what is trained there, and clear away what a killed process left half done.

    Raises:
        StudyError: see `compare`; the folder cannot be written.
    """
    compare(folder, description)
    with writing(folder):
        for unfinished in (folder / CHECKPOINTS).glob(".*"):
            shutil.rmtree(unfinished)
        if not (folder / CONFIG).exists():
            tn.studies.write_text(
                folder / CONFIG, json.dumps({**description, "tnalgebra": tn.__version__}, indent=2) + "\n"
            )


def compare(folder: Path, description: Mapping[str, Any]) -> None:
    """Check that a folder is new, or one of this training.

    Raises:
        StudyError: it holds another one, with the list of differences; or its notes cannot be read.
    """
    path = folder / CONFIG
    if not path.exists():
        if (folder / CHECKPOINTS).exists():
            raise tn.errors.StudyError(
                tn.errors.explain(f"{folder} has checkpoints and no {CONFIG}", fix="another folder")
            )
        return
    try:
        there = _flat(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise tn.errors.StudyError(
            tn.errors.explain(f"{path} cannot be read", because=error, fix="another folder")
        ) from error
    there.pop("tnalgebra", None)
    ours = _flat(description)
    absent = "none"
    lines = [
        f"{key}: {there.get(key, absent)} there, {ours.get(key, absent)} here"
        for key in {**ours, **there}
        if there.get(key, absent) != ours.get(key, absent)
    ]
    if lines:
        more = [f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        only_values = all(line.startswith("network.values_at_the_start") for line in lines)
        fix = "the network with the values it had before the training, or another folder"
        raise tn.errors.StudyError(
            tn.errors.explain(
                f"{folder} holds another training",
                differences="\n".join(lines[:LISTED] + more),
                fix=fix if only_values else "another folder, or the same settings, data and network",
            )
        )


def write_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, progress: Progress
) -> None:
    """Write a checkpoint, then remove all but the last two.

    Raises:
        StudyError: it cannot be written, as there is no space left; those that are there stay.
        CheckpointError: the model is of a kind that no checkpoint holds.
    """
    place = folder / CHECKPOINTS
    last = checkpoints(folder)
    with writing(folder, what=f"the checkpoint after step {progress.step}", kept=last[-1] if last else None):
        place.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=place, prefix=".new-"))
        try:
            tn.checkpoint.save(model, made / MODEL)
            content = io.BytesIO()  # torch's own writing into files hides why it fails
            state = {"optimizer": optimizer.state_dict(), "scaler": None if scaler is None else scaler.state_dict()}
            torch.save(state, content)
            (made / OPTIMIZER).write_bytes(content.getbuffer())
            sums = {name: _checksum(made / name) for name in (MODEL, OPTIMIZER)}
            rows = [row._asdict() for row in progress.rows]
            text = json.dumps({"format": FORMAT, **vars(progress), "rows": rows, "crc32": sums})
            (made / PROGRESS).write_text(text + "\n", encoding="utf-8")
            for file in (*made.iterdir(), made):
                _flush(file)
            target = place / f"step-{progress.step:08d}"
            _remove(target)  # one that could not be read
            made.rename(target)
            _flush(place)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        for old in checkpoints(folder)[:-KEPT]:
            _remove(old)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a training's folder, the last one last."""
    return sorted((folder / CHECKPOINTS).glob("step-*"))


def read_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any) -> Progress:
    """Put the last checkpoint into model, optimizer and scaler; if there is none, leave them at the start.

    A checkpoint that is damaged is passed over, with a warning, for the one before.

    Raises:
        CheckpointError: there are some, and none can be read.
    """
    reasons = []
    for path in reversed(checkpoints(folder)):
        try:
            content = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
            for name, expected in content["crc32"].items():
                if _checksum(path / name) != expected:
                    raise ValueError(f"{name} does not have its check sum")
            rows = [row_of(row) for row in content["rows"]]
            fields = {name: content[name] for name in ("step", "seconds", "losses", "first_loss")}
            progress = Progress(**fields, rows=rows)
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
        raise tn.errors.CheckpointError(
            tn.errors.explain("no checkpoint can be read", because=because, fix="another folder")
        )
    return Progress()


@contextmanager
def writing(folder: Path, *, what: str | None = None, kept: Path | None = None) -> Iterator[None]:
    """Make errors of the disk errors of the package."""
    try:
        yield
    except (OSError, tn.errors.CheckpointError) as error:
        if isinstance(error, tn.errors.CheckpointError) and "cannot be written" not in str(error):
            raise
        because = error if isinstance(error, OSError) else str(error).partition("because: ")[2].strip() or error
        fact = f"{folder} cannot be written" if what is None else f"{what} cannot be written into {folder}"
        fix = "room there, and the same call again; or another folder"
        raise tn.errors.StudyError(tn.errors.explain(fact, because=because, last=kept, fix=fix)) from error


def _flat(content: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Entries of nested mappings, as JSON, under their keys with dots between."""
    found: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = json.dumps(value)
    return found


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while part := file.read(2**20):
            found = zlib.crc32(part, found)
    return found


def _flush(path: Path) -> None:
    """Have what was written reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Remove a checkpoint; a process killed meanwhile leaves nothing that looks like one."""
    if path.exists():
        away = path.with_name(f".old-{path.name}")
        path.rename(away)
        shutil.rmtree(away)
