"""The text in a checkpoint, read with bounds and without running anything: every part is checked before it is used."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from math import prod
from typing import Any, NoReturn, cast, get_args

import safetensors
from torch import Tensor

from ..compiler import Candidates
from ..decompositions import read_trace
from ..errors import CheckpointError, TnalgebraError
from ..networks import MAX_AXES, MAX_SIZE, Fill, NamedTensor, Network, Node, all_nodes, parse, tensors_of
from ..rewriting import Trace
from ..tensors import with_bases
from .format import (
    CHECK,
    FORMAT_VERSION,
    KEY,
    MAX_HEADER,
    MAX_INPUT,
    MAX_NODES,
    STORED_DTYPES,
    Description,
    LayerText,
    check_of,
    checksum,
    path_of,
)


def read_description(path: str | os.PathLike[str]) -> Description:
    """Read a checkpoint; its tensors are mapped from the file.

    Raises:
        CheckpointError: the file is not a checkpoint, contradicts itself, is damaged, or is longer than what is read.
    """
    path = path_of(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file", fix="what tn.save wrote")
    try:
        with path.open("rb") as start:
            length = int.from_bytes(start.read(8), "little")
        if length > path.stat().st_size - 8:
            raise CheckpointError("it is not a whole safetensors file", fix="a file that tn.save wrote")
        if length > MAX_HEADER:
            raise CheckpointError(f"its header has {length} bytes; at most {MAX_HEADER} are read")
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _description(metadata, tensors)
    except (CheckpointError, safetensors.SafetensorError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read", because=error or type(error).__name__) from error


def _description(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Description:
    if KEY not in metadata or CHECK not in metadata:
        fix = "a file of tn.save; safetensors.torch.load_model reads it"
        raise CheckpointError("it has no description by tnalgebra", fix=fix)
    text = metadata[KEY]
    if check_of(text) != metadata[CHECK]:
        raise CheckpointError("its description does not have the check sum that is written beside it")
    content = _object(_json(text), "the description")
    version = content.get("version")
    if type(version) is int and version > FORMAT_VERSION:
        fact = f"it is in version {_short(version)} of the format; this tnalgebra reads {FORMAT_VERSION}"
        raise CheckpointError(fact, fix="a newer tnalgebra")
    content = {"versions": None, **content}  # which early files do not have
    _keys(content, ("version", "tnalgebra", "tensors", "aliases", "versions", "layers"), "the description")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(f"its version is {_short(version)}")
    _text(content["tnalgebra"], "the version of tnalgebra")
    _check_tensors(tensors, _object(content["tensors"], "tensors"))
    aliases = _object(content["aliases"], "aliases")
    for alias, name in aliases.items():
        if alias in tensors or _text(name, "an alias") not in tensors:
            _refuse("an alias", f"{alias} = {name}", "a new name for a tensor of the file")
    versions = content["versions"]
    if versions is not None:
        versions = {name: _size(one, "a version") for name, one in _object(versions, "versions").items()}
    layers = _list(content["layers"], "layers", _object)
    if len(layers) > len(tensors):
        raise CheckpointError(f"it describes {len(layers)} layers and has {len(tensors)} tensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shapes |= {alias: shapes[name] for alias, name in aliases.items()}
    read = tuple(_layer(layer, shapes) for layer in layers)
    names = [name for layer in read for name in layer.names]
    if len({*names}) < len(names):
        raise CheckpointError("a layer is described twice")
    return Description(tensors, cast("dict[str, str]", aliases), versions, read)


def _check_tensors(tensors: Mapping[str, Tensor], checks: Mapping[str, Any]) -> None:
    """Whether all tensors, and no others, are described, with their check sums."""
    odd = sorted(tensors.keys() ^ checks.keys())
    if odd:
        raise CheckpointError(f"the tensor {_short(odd[0])} is in the file or the description, and not in both")
    for name, tensor in tensors.items():
        if tensor.dtype not in STORED_DTYPES or tensor.ndim > MAX_AXES:
            what = f"{tensor.dtype} of {tensor.ndim} axes"
            _refuse(f"the tensor {_short(name)}", what, f"a type that is saved, and at most {MAX_AXES} axes")
        if checksum(tensor) != checks[name]:
            raise CheckpointError(f"it is damaged: the tensor {_short(name)} does not have its check sum")


_LAYER_KEYS = (
    *("names", "class", "arguments", "kernel", "ranks", "constants", "bases", "rules", "trace"),
    *("planned_for", "candidates", "backward", "channels_last", "relative_error", "output_error"),
)


def _layer(content: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> LayerText:
    content = {"channels_last": False, "bases": {}, **content}  # which early files do not have
    _keys(content, _LAYER_KEYS, "a layer")
    names = tuple(_list(content["names"], "the names of a layer", _text))
    if not names:
        raise CheckpointError("a layer has no name")
    what = f"layer {_short(names[0])}"
    kernel = _kernel(content["kernel"], what)
    for name in names:
        _check_shapes(kernel, f"{name}." if name else "", shapes)
    constants = tuple(_list(content["constants"], f"the constants of {what}", _text))
    if not {*constants} <= tensors_of(kernel).keys():
        _refuse(f"the constants of {what}", constants, f"tensors of {_short(kernel)}")
    bases = _bases(content["bases"], kernel, constants, what)
    planned = tuple(_list(content["planned_for"], f"the planned input of {what}", _size))
    if not planned or not 1 <= prod(planned) <= MAX_INPUT or len(planned) > MAX_AXES:
        _refuse(f"the planned input of {what}", planned, f"at least 1 and at most {MAX_INPUT} elements")
    flags = [content["backward"], content["channels_last"]]
    if content["candidates"] not in get_args(Candidates) or not all(isinstance(one, bool) for one in flags):
        _refuse(f"the plan of {what}", [content["candidates"], *flags], "one of `compile`")
    layer = LayerText(
        names,
        _text(content["class"], f"the class of {what}"),
        _object(content["arguments"], f"the arguments of {what}"),
        kernel,
        constants,
        bases,
        _trace(content, what),
        planned,
        content["candidates"],
        content["backward"],
        content["channels_last"],
        _error(content["relative_error"], what),
        _error(content["output_error"], what),
    )
    if content["ranks"] != layer.ranks:
        _refuse(f"the ranks of {what}", content["ranks"], f"those of its kernel, {layer.ranks}")
    return layer


def _bases(content: object, kernel: Network, constants: Collection[str], what: str) -> dict[str, str]:
    """Name of each constant that is a basis -> name of the basis."""
    bases = {
        name: _text(basis, f"a basis of {what}") for name, basis in _object(content, f"the bases of {what}").items()
    }
    if not bases.keys() <= {*constants}:
        _refuse(f"the bases of {what}", [*bases], "constants of it")
    try:
        with_bases(kernel, bases)
    except TnalgebraError as error:
        raise CheckpointError(f"the bases of {what} are none of its kernel", because=error) from error
    return bases


def _kernel(text: object, what: str) -> Network:
    try:
        kernel = parse(_text(text, f"the kernel of {what}"))
    except TnalgebraError as error:
        raise CheckpointError(f"the kernel of {what} is not a network", because=error) from error
    count = len([*all_nodes(kernel)])
    if count > MAX_NODES:
        raise CheckpointError(f"the kernel of {what} has {count} nodes; at most {MAX_NODES} are read")
    return kernel


def _check_shapes(kernel: Network, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Every size in a kernel is one that its tensors in the file have, or an open label's, which the model has."""
    for node in all_nodes(kernel):
        if not isinstance(node, NamedTensor):
            continue
        key = f"{prefix}{node.name}"
        if key not in shapes:
            raise CheckpointError(f"it has no tensor {_short(key)}, a core of {_short(kernel)}")
        wanted = tuple(kernel.sizes.get(label) for label in node.labels)
        if wanted != shapes[key] or not all(shapes[key]):
            fact = f"the tensor {_short(key)} has the shape {shapes[key]}, its kernel says {wanted}"
            raise CheckpointError(fact, kernel=_short(kernel))
    held = [prod(shapes[f"{prefix}{name}"]) for name in tensors_of(kernel)]
    most = max(sum(held), prod(kernel.sizes.get(label, 1) for label in kernel.output))
    standing: dict[str, list[Node]] = {}
    for node in all_nodes(kernel):
        for label in node.labels:
            standing.setdefault(label, []).append(node)
    for label, nodes in standing.items():
        if label in kernel.output or any(isinstance(node, NamedTensor) for node in nodes):
            continue
        size = kernel.sizes.get(label)
        if size is None or size > most or all(isinstance(node, Fill) for node in nodes):
            raise CheckpointError(f"the label {label!r} of {_short(kernel)} has a size that no tensor of the file has")


def _trace(content: Mapping[str, Any], what: str) -> Trace | None:
    _list(content["rules"], f"the rules of {what}", _object)
    if content["trace"] is None:
        return None
    try:
        return read_trace(json.dumps(content["trace"], allow_nan=False), where=f"the trace of {what}")
    except (TnalgebraError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"the trace of {what} cannot be read", because=error) from error


# Parts of JSON --------------------------------------------------------------------------------------------------


def _json(text: str) -> object:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) < len(pairs):
            raise CheckpointError("the description has a key twice")
        return dict(pairs)

    try:
        content: object = json.loads(text, object_pairs_hook=once)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError("the description is not JSON", because=_short(error)) from error
    return content


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(what, value, "an object")
    return value


def _list(value: object, what: str, one: Callable[[object, str], Any]) -> list[Any]:
    if not isinstance(value, list):
        _refuse(what, value, "a list")
    return [one(item, what) for item in value]


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        _refuse(what, value, "a text")
    return value


def _size(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_SIZE:
        _refuse(what, value, f"integers from 0 to {MAX_SIZE}")
    return value


def _error(value: object, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        _refuse(f"an error of {what}", value, "a number of at least 0")
    return float(value)


def _keys(content: Mapping[str, Any], wanted: Collection[str], what: str) -> None:
    odd = sorted({*content} ^ {*wanted})
    if odd:
        fact = f"{what} has {'no ' if odd[0] in wanted else 'the unknown field '}{_short(odd[0])}"
        raise CheckpointError(fact, fields=" ".join(wanted))


def _refuse(what: str, value: object, wanted: str) -> NoReturn:
    raise CheckpointError(f"{what} is {_short(value)}", needed=wanted)


def _short(value: object) -> str:
    text = str(value) if isinstance(value, Network | Exception) else repr(value)
    return text if len(text) <= 200 else f"{text[:180]}... ({len(text)} characters)"
