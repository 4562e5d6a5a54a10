"""The text in a checkpoint: what it says, its bounds, and how it is written."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compiler import Candidates
from ..decompositions import read_trace
from ..errors import CheckpointError, TnalgebraError
from ..fitting import bonds_of
from ..networks import Network, all_nodes
from ..rewriting import Trace

FORMAT_VERSION = 1

KEY, CHECK = "tnalgebra", "tnalgebra.crc32"
"""The description among a safetensors file's metadata, and its check sum."""

MAX_HEADER = 16 * 2**20
"""Bytes of the longest header that is read: names of tensors and the description."""

MAX_NODES = 64
"""Nodes of the largest kernel: a plan for one of that many takes seconds."""

MAX_INPUT = 2**40
"""Elements of the largest input that a plan is made for."""

STORED_DTYPES = frozenset(
    getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
    )
)
"""Types of tensors that a file holds."""


def path_of(path: object) -> Path:
    """The path of a file. Raises CheckpointError if it is not one."""
    if not isinstance(path, str | PathLike):
        raise CheckpointError(f"a {type(path).__name__} is given where a path is needed", fix="'model.safetensors'")
    return Path(path)


@dataclass(frozen=True, eq=False)
class LayerText:
    """A decomposed layer as a file describes it; the fields are those of the format."""

    names: tuple[str, ...]
    kind: str
    arguments: Mapping[str, Any]
    kernel: Network
    constants: tuple[str, ...]
    bases: Mapping[str, str]
    trace: Trace | None
    planned_for: tuple[int, ...]
    candidates: Candidates
    backward: bool
    channels_last: bool
    relative_error: float | None
    output_error: float | None

    @property
    def ranks(self) -> dict[str, int]:
        """Bond -> rank."""
        return {bond: self.kernel.sizes[bond] for bond in bonds_of(self.kernel)}


@dataclass(frozen=True, eq=False)
class Description:
    """What a checkpoint holds.

    tensors: name -> what is stored under it, each with the check sum that the file says.
    aliases: further name of a tensor -> the name that it is stored under.
    versions: name of a module -> version of its state, where it is not 1; None in files that do not say.
    layers: the decomposed ones.
    """

    tensors: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    versions: Mapping[str, int] | None
    layers: tuple[LayerText, ...]


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's type, shape and elements, the last index fastest."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    start = zlib.crc32(f"{tensor.dtype} {list(tensor.shape)}".encode())
    return zlib.crc32(flat.view(torch.uint8).numpy().data, start) if flat.numel() else start


# Writing ------------------------------------------------------------------------------------------------------


def metadata_of(
    tensors: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    versions: Mapping[str, int],
    layers: Iterable[LayerText],
) -> dict[str, str]:
    """The metadata of a file.

    Raises:
        CheckpointError: the description would be longer, or a kernel larger, than what is read.
    """
    content = {
        "version": FORMAT_VERSION,
        "tnalgebra": version("tnalgebra"),
        "tensors": {name: checksum(tensor) for name, tensor in tensors.items()},
        "aliases": dict(aliases),
        "versions": dict(versions),
        "layers": [_layer_content(layer) for layer in layers],
    }
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    names = sum(len(json.dumps(name)) + 120 for name in tensors)
    length = len(json.dumps(text)) + names
    if length > MAX_HEADER:
        raise CheckpointError(f"the description has {length} bytes", fix=f"at most {MAX_HEADER} are read")
    return {"format": "pt", KEY: text, CHECK: check_of(text)}


def check_of(text: str) -> str:
    """The check sum of a description."""
    return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"


def _layer_content(layer: LayerText) -> dict[str, object]:
    count = len([*all_nodes(layer.kernel)])
    if count > MAX_NODES:
        fact = f"the kernel of layer {layer.names[0]!r} has {count} nodes"
        raise CheckpointError(fact, fix=f"at most {MAX_NODES}")
    trace = _trace_content(layer.trace)
    steps = layer.trace.steps if layer.trace is not None else ()
    return {
        "names": list(layer.names),
        "class": layer.kind,
        "arguments": dict(layer.arguments),
        "kernel": str(layer.kernel),
        "ranks": layer.ranks,
        "constants": list(layer.constants),
        "bases": dict(layer.bases),
        "rules": [{"name": step.rule.name, "equation": step.rule.equation} for step in steps],
        "trace": trace,
        "planned_for": list(layer.planned_for),
        "candidates": layer.candidates,
        "backward": layer.backward,
        "channels_last": layer.channels_last,
        "relative_error": _finite(layer.relative_error),
        "output_error": _finite(layer.output_error),
    }


def _trace_content(trace: Trace | None) -> object:
    """The trace as JSON; None where no text holds it, as of a rule made of functions."""
    if trace is None:
        return None
    try:
        text = trace.to_json()
        read_trace(text)
    except TnalgebraError:
        return None
    return json.loads(text)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
