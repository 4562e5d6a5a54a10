"""Weights from a file into a network: everything fits, or nothing is loaded."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import DataError
from .build import shipped_files

SHIPPED = "shipped"
"""In place of a file: the weights that the checkout has for the network."""

_CONTAINERS = ("state_dict", "model")  # keys under which a checkpoint may hold its state dict
_PREFIX = "module."  # what DataParallel puts before every key
_SIGNATURES = (b"PK", b"\x80")  # how a file of torch.save begins: a zip archive, formerly a pickle
_LISTED = 20  # mismatches of one kind that an error shows
_UNREADABLE = (
    *(pickle.UnpicklingError, struct.error, ArithmeticError, AssertionError, AttributeError, EOFError),
    *(LookupError, OSError, RuntimeError, TypeError, ValueError),
)
"""What torch.load was seen to raise on damaged files; its documentation does not say."""


def load_weights(model: nn.Module, source: str | Path) -> None:
    """Load weights into `model`, in place, in the dtype and on the device that the network has.

    Args:
        model: the network that receives the weights.
        source: a file that torch wrote: a state dict, or one under `state_dict` or `model`; the prefix `module.`
            is dropped where all keys have it. Or a safetensors file (`.safetensors`), such as `tnalgebra.save` writes
            for a dense network; `tnalgebra.load` reads networks with decomposed layers. Or "shipped": the file of
            tnalgebra's checkout that fits the network; a line says what it is.

    Raises:
        DataError: the file does not exist, is not a checkpoint, does not fit the network (every key that is missing,
            unexpected or of another shape is listed; only `num_batches_tracked` may be missing), or holds a value
            that is not finite in the network's dtype. The network is then as it was.

    Example:
        >>> load_weights(model, "resnet20.pth")
    """
    name = str(source)
    state = _from_file(_shipped(model) if name == SHIPPED else Path(source))
    _check_fit(model, state, name)
    fitted = {key: state.get(key, tensor).to(tensor.dtype) for key, tensor in model.state_dict().items()}
    not_finite = [f"{key} ({_dtype(tensor)})" for key, tensor in fitted.items() if not tensor.isfinite().all()]
    if not_finite:
        raise DataError("weights are not finite", weights=name, keys=_listing(not_finite))
    model.load_state_dict(fitted)


def _shipped(model: nn.Module) -> Path:
    """The file of the checkout that has the keys and shapes of the network. Raises DataError where none has."""
    needed = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if tensor.is_floating_point()}
    files = shipped_files()
    for path in files:
        with safe_open(path, framework="pt") as file:
            if {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()} == needed:  # noqa: SIM118
                print(f"weights: {path.stem}, {(file.metadata() or {}).get('about', '')}")
                return path
    known = ", ".join(path.stem for path in files) or None
    fact = f"no weights are shipped that fit the network {type(model).__name__} as it is built here"
    raise DataError(fact, known=known, fix="--weights FILE")


def _check_fit(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Raise DataError where keys, shapes or kinds of numbers differ from those of the network."""
    needed: dict[str, Tensor] = model.state_dict()
    missing = [key for key in needed if key not in state and key.split(".")[-1] != "num_batches_tracked"]
    unexpected = [key for key in state if key not in needed]
    shared = {key: (state[key], tensor) for key, tensor in needed.items() if key in state}
    shapes = {key: (a.shape, b.shape) for key, (a, b) in shared.items() if a.shape != b.shape}
    kinds = {key: (_dtype(a), _dtype(b)) for key, (a, b) in shared.items() if _kind(a) != _kind(b)}
    if any((missing, unexpected, shapes, kinds)):
        raise DataError(
            f"the weights do not fit the network {type(model).__name__}",
            weights=name,
            missing=_listing(missing),
            unexpected=_listing(unexpected),
            wrong_shape=_listing(
                f"{key}: {tuple(a)} in the file, {tuple(b)} in the network" for key, (a, b) in shapes.items()
            ),
            wrong_dtype=_listing(f"{key}: {a} in the file, {b} in the network" for key, (a, b) in kinds.items()),
            fix=None if any((missing, unexpected, kinds)) else _other_sizes(shapes),
        )


def _other_sizes(shapes: Mapping[str, tuple[torch.Size, torch.Size]]) -> str | None:
    """The fix where a single layer has another number of outputs, or of inputs, in the file than in the network."""
    pairs = list(shapes.values())
    if len({key.rpartition(".")[0] for key in shapes}) != 1 or not all(saved and built for saved, built in pairs):
        return None
    outputs = {(saved[0], built[0]) for saved, built in pairs}
    if len(outputs) == 1 and all(saved[1:] == built[1:] for saved, built in pairs):
        ((classes, own_classes),) = outputs
        return f"data of {classes} classes, if these are classes: the network was built for {own_classes}"
    saved, built = pairs[0]
    if len(pairs) == 1 and len(saved) == len(built) > 1 and saved[:1] + saved[2:] == built[:1] + built[2:]:
        return f"images of {saved[1]} channels, if these are channels: the network was built for {built[1]}"
    return None


def _from_file(path: Path) -> Mapping[str, Tensor]:
    """The state dict that a checkpoint holds, without the prefix `module.`."""
    if not path.is_file():
        raise DataError(f"the file of weights {str(path)!r} does not exist")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, *_UNREADABLE) as error:
            raise DataError(f"{str(path)!r} is not a safetensors file", reason=error) from error
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        begins = path.read_bytes()[:20]
        reason = f"{type(error).__name__}: {str(error).strip().partition('. ')[0]}".removesuffix(": ")
        raise DataError(
            f"{str(path)!r} is not a torch checkpoint",
            reason=reason if begins.startswith(_SIGNATURES) else f"it begins with {begins!r}",
            needed="a state dict that torch.save wrote",
        ) from error
    state_dict = content
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            state_dict = content[key]
            break
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise DataError(
            f"{str(path)!r} holds no state dict",
            found="an empty one" if isinstance(state_dict, Mapping) else f"a {type(state_dict).__name__}",
            needed="a state dict, or one under " + " or ".join(map(repr, _CONTAINERS)),
        )
    foreign = [f"{key}: {type(value).__name__}" for key, value in state_dict.items() if not isinstance(value, Tensor)]
    if foreign:
        raise DataError(f"{str(path)!r} holds values that are not tensors", keys=_listing(foreign))
    state = {str(key): value for key, value in state_dict.items()}
    prefix = _PREFIX if all(key.startswith(_PREFIX) for key in state) else ""
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    """What a cast has to keep: whether numbers are floating, and whether they are complex."""
    return tensor.is_floating_point(), tensor.is_complex()


def _dtype(tensor: Tensor) -> str:
    """The dtype's name, `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def _listing(lines: Iterable[str]) -> str | None:
    """The first `_LISTED` lines, and how many more follow; None without any line."""
    lines = list(lines)
    more = [f"... and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "\n".join(lines[:_LISTED] + more) or None
