"""The tensors of a model's state: those that a file can hold, those that are one, and whether a file's are theirs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import CheckpointError
from ..networks import Network, shape_of, tensors_of
from ..nn import KernelLayer
from .format import STORED_DTYPES, Description, checksum
from .layers import LayerMatch


def tensor_key(name: str, tensor: str) -> str:
    """Name of a layer's tensor in the state of its model."""
    return f"{name}.{tensor}" if name else tensor


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, of which every entry is a tensor that a file can hold."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or is_lazy(value) or value.layout != torch.strided or value.is_quantized:
            fact = f"{name!r} of the model's state is not a dense tensor"
            extra = name.rpartition(".")[2] == "_extra_state"
            fix = "register_buffer for the tensors that get_extra_state returns" if extra else None
            raise CheckpointError(fact, given=type(value).__name__, fix=fix)
        if value.is_meta:
            raise CheckpointError(f"the tensor {name!r} of the model has no elements: it is on the meta device")
        if value.dtype not in STORED_DTYPES or name == "__metadata__":
            raise CheckpointError(f"the tensor {name!r} has no place in the file", dtype=value.dtype)
        state[name] = value
    return state


def versions_of(model: nn.Module) -> dict[str, int]:
    """Name of a module -> version of its state, where it is not 1, as a file holds it."""
    versions: dict[str, Any] = {name: one.get("version", 1) for name, one in _metadata_of(model).items()}
    for name, version in versions.items():
        if type(version) is not int or version < 0:
            fact = f"the version of the module {name!r} is {version!r}"
            raise CheckpointError(fact, fix="_version = 2 in its class, or another integer of at least 0")
    return {name: version for name, version in versions.items() if version != 1}


def versioned(tensors: Mapping[str, Tensor], description: Description, model: nn.Module) -> OrderedDict[str, Tensor]:
    """The state of a file, with the versions from which the modules of a model tell whether it is an older one."""
    state, versions = OrderedDict(tensors), description.versions
    metadata = _metadata_of(model)
    if versions is not None:
        metadata = {name: {**one, "version": versions.get(name, 1)} for name, one in metadata.items()}
    vars(state)["_metadata"] = metadata  # where torch looks for it
    return state


def _metadata_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Name of every module, each of them if it has several -> what torch writes beside its state."""
    metadata: dict[str, dict[str, Any]] = getattr(model.state_dict(), "_metadata", {})
    return metadata


def aliases_of(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Further name -> first name of tensors that are the same memory, read in the same way."""
    first: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        if tensor.numel() and not tensor.is_meta:
            key = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
            if first.setdefault(key, name) != name:
                aliases[name] = first[key]
    return aliases


def _tensors_of_model(model: nn.Module, match: LayerMatch) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> shape and dtype of every tensor that the model will have."""
    ours = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state_of(model).items()}
    tied = {name for names in match.tied for name in names}
    for text, site in match.dense:
        weight = site.module.weight
        for name in text.names:
            del ours[tensor_key(name, "weight")]
            if text.arguments.get("padding_idx") is not None and text.names[0] not in tied | match.unpadded:
                ours[tensor_key(name, "padding")] = (tuple(weight.shape[1:]), weight.dtype)
        ours |= {tensor_key(n, core): (shape, weight.dtype) for n in text.names for core, shape in _shapes(text.kernel)}
    for text, _ in match.resized:
        for name in text.names:
            ours |= {
                tensor_key(name, core): (shape, ours[tensor_key(name, core)][1]) for core, shape in _shapes(text.kernel)
            }
    return ours


def check_tensors(description: Description, model: nn.Module, match: LayerMatch) -> None:
    """Whether the file has the tensors that the model will have, with their shapes."""
    ours = _tensors_of_model(model, match)
    stored = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in description.tensors.items()}
    stored |= {alias: stored[name] for alias, name in description.aliases.items()}
    missing = [name for name in ours if name not in stored]
    unexpected = [name for name in stored if name not in ours]
    if missing or unexpected:
        fact = "the file has other tensors than the model"
        raise CheckpointError(fact, missing=_some(missing), unexpected=_some(unexpected))
    for name, (shape, kind) in ours.items():
        if stored[name][0] != shape:
            raise CheckpointError(f"the tensor {name!r} has another shape", file=stored[name][0], model=shape)
        if _sort(stored[name][1]) != _sort(kind):
            raise CheckpointError(f"the tensor {name!r} has another dtype", file=stored[name][1], model=kind)


def _shapes(kernel: Network) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, node in tensors_of(kernel).items():
        yield name, shape_of(kernel, node.labels)


def _sort(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    return "complex" if dtype.is_complex else "real" if dtype.is_floating_point else "integer"


def _some(names: list[str]) -> str | None:
    """The first names of a list, or None where it is empty."""
    short = [name if len(name) <= 100 else f"{name[:80]}... ({len(name)} characters)" for name in names[:5]]
    return ", ".join(short) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else None


def share_parameters(description: Description, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make one parameter of those that are one tensor in the file, where one of them is a decomposed layer's.

    Raises:
        CheckpointError: the layers are on several devices, of several dtypes, or have other values after a resize.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for alias, name in description.aliases.items():
        (holder, _, key), (first_holder, _, first_key) = alias.rpartition("."), name.rpartition(".")
        layer, first = modules.get(holder), modules.get(first_holder)
        if layer is None or first is None or not any(isinstance(one, KernelLayer) for one in (layer, first)):
            continue
        parameter, shared = layer._parameters.get(key), first._parameters.get(first_key)
        if parameter is None or shared is None or parameter is shared:
            continue
        fact = f"the tensors {name!r} and {alias!r} are one in the file"
        if checksum(tensors[alias]) != checksum(tensors[name]):
            fix = "a model whose layers have the file's ranks"
            raise CheckpointError(f"{fact}, and differ at the ranks of the model", fix=fix)
        if (parameter.device, parameter.dtype) != (shared.device, shared.dtype):
            kinds = f"{shared.dtype} on {shared.device} and {parameter.dtype} on {parameter.device}"
            raise CheckpointError(f"{fact}, and {kinds} in the model", fix="device= and dtype=, the same for both")
        layer._parameters[key] = shared


def check_tied(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Names that share a tensor in the model have one value."""
    for alias, name in aliases_of(state_of(model)).items():
        if alias in tensors and name in tensors and checksum(tensors[alias]) != checksum(tensors[name]):
            fact = f"the tensors {name!r} and {alias!r} are one in the model and differ in the file"
            raise CheckpointError(fact, fix="a model with two tensors")
