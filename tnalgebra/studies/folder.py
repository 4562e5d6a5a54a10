"""The folder of results: whose it is, with what it was made, and that one process at a time writes into it."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from .._files import write_text
from ..compiler import device_name
from ..errors import StudyError

COMMANDS_FILE = "commands.txt"
"""The file that has the commands which wrote into a folder, one in a line."""
OTHER_OUTPUT = "another --output"
LISTED_DIFFERENCES = 20


def made_with(device: torch.device | str) -> dict[str, str]:
    """The fields of a row that say with what it was made: the versions of tnalgebra and torch, and the hardware."""
    return {"version": version("tnalgebra"), "torch": str(torch.__version__), "machine": device_name(device)}


def digest_state(model: nn.Module) -> str:
    """SHA-256, as 64 hexadecimal digits, of all tensors in the state of a network, with their names."""
    return digest_tensors({name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)})


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, as 64 hexadecimal digits, of tensors with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if value.numel():
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that distinguish configs."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def read_config(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None if the file does not exist.

    Raises:
        StudyError: the file cannot be read, or does not hold a mapping.
    """
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"it holds a {type(config).__name__}")
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read as a config", because=error, fix=OTHER_OUTPUT) from error
    return config


def compare_configs(folder: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Check that the config stored in a folder is the current one.

    Raises:
        StudyError: they differ. The differences are listed, those in nested mappings under keys joined by dots.
    """
    old, new = _flatten(stored), _flatten(json.loads(json.dumps(dict(current))))
    lines = [
        f"{key}: {old.get(key, 'none')} there, {new.get(key, 'none')} here"
        for key in {**new, **old}
        if old.get(key, "none") != new.get(key, "none")
    ]
    if lines:
        more = [f"... and {len(lines) - LISTED_DIFFERENCES} more"] if len(lines) > LISTED_DIFFERENCES else []
        raise StudyError(
            f"{folder} holds results of another config",
            differences="\n".join(lines[:LISTED_DIFFERENCES] + more),
            fix="another --output, or the same settings",
        )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Entries of nested mappings as JSON, under their keys joined by dots."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = "none" if value is None else json.dumps(value)
    return flat


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder, which is created if it does not exist.

    Raises:
        StudyError: another process has locked it, or it cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            fact = f"another process is writing into {folder}"
            raise StudyError(fact, fix="wait for it to finish, or choose another --output") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise errors of the disk as StudyError."""
    try:
        yield
    except OSError as error:
        raise StudyError(f"{folder} cannot be written", because=error, fix=OTHER_OUTPUT) from error


def this_program() -> str | None:
    """How this process was started, without its options: "tnalgebra" or "python -m recipes.NAME", and else None."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name.removesuffix(".__main__") if spec is not None else Path(sys.argv[0]).name
    if module == "tnalgebra":
        return module
    return f"python -m {module}" if module.startswith("recipes.") else None


def note_command(folder: Path) -> None:
    """Add the command line of this process to those that wrote into a folder, where it is a command or a recipe.

    Raises:
        StudyError: it cannot be written.
    """
    program, path = this_program(), folder / COMMANDS_FILE
    if program is None:
        return
    line = shlex.join([*program.split(), *sys.argv[1:]])
    with writing(folder):
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if line not in before:
            write_text(path, "".join(f"{each}\n" for each in (*before, line)))
