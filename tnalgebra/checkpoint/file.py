"""Checkpoints: a model in one safetensors file, its decomposed layers with their networks and how they came about.

    tn.save(model, "model.safetensors")
    tn.load("model.safetensors", into=resnet18())      # the layers are decomposed as the file says; nothing is fitted
    tn.load("layer.safetensors")                       # of a file that holds one decomposed layer

The file holds the tensors of `model.state_dict()`: parameters and buffers, each in its own dtype, dense in row-major
order, whatever its memory was like; a tensor that several names share is stored once. Optimizers, modes, hooks,
devices, which parameters are trained, and frozen contractions are not in it. Any reader of safetensors can read it.

Metadata `format` is "pt", `tnalgebra` a description in JSON, and `tnalgebra.crc32` the CRC-32 of that text's UTF-8,
eight hexadecimal digits. The description has:

    version       of the format: 1.
    tnalgebra     the version that wrote it.
    tensors       name -> CRC-32 over "dtype [shape]", such as "torch.float32 [8, 4]", and the bytes, of every tensor.
    aliases       further name -> the name that the tensor is stored under.
    versions      name of a module -> the version of its state, as torch's `_version`, where it is not 1. Modules
                  know states of older versions by it. Where `versions` is missing they are the model's own.
    layers        one entry for each decomposed layer:
      names           of the module; several if it has several places.
      class           of the dense layer that it replaces, one of torch.nn: "Conv2d".
      arguments       of that layer: kernel_size, stride, ..., bias whether it has one.
      kernel          the network of the kernel in the notation, with all sizes. Tensor U is stored as "<name>.U".
      ranks           bond -> rank, as the kernel says too.
      constants       names of tensors that are not trained.
      bases           name of a constant -> name of the orthonormal basis whose elements it has, such as "dct", which a
                      plan may apply by a fast transform. None where it is missing.
      rules           name and equation of the rule of each step, for people who read the file.
      trace           what `Trace.save` writes, a user's own rules included; null for a layer with random values,
                      and for rules made of functions, which no text holds.
      planned_for     shape of the input that the plan was chosen for.
      candidates, backward    of the plan, as of `compile`. The plan itself is chosen again when the layer is loaded, as
                      measurements belong to a machine.
      channels_last   whether it was chosen for inputs in that memory format: `tn.load` without a model plans for it
                      too, and in a model the weight's own format decides. False where it is missing.
      relative_error, output_error    of the kernel that the tensors contract to, or null where it is not known.

Nothing in a file is executed. The header is read before anything else, up to 16 MiB; every size in the description
must be one that the tensors of the file have, or the model; kernels have at most 64 nodes and their text at most
100,000 characters. The check sums find damage, not malice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TypeVar, overload

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .._files import write_whole
from ..errors import CheckpointError
from ..model import Site, exchange_layers, restore_layers, tie_layers, unfolding_attentions
from ..networks import tensors_of
from ..nn import KernelLayer
from .format import Description, LayerText, metadata_of, path_of
from .layers import describe_layer, make_layer, match_layers, named_layers, origin_of, resize_layer
from .reading import read_description
from .single import make_single
from .state import aliases_of, check_tensors, check_tied, share_parameters, state_of, tensor_key, versioned, versions_of

_M = TypeVar("_M", bound=nn.Module)

_NOISE = 0.01
"""Of enlarged tensors: the size of what is new, relative to the root mean square of the old elements."""

_WRAPPED = ("_orig_mod", "module")
"""What a compiled model, and one for several processes or devices, calls the model inside."""


def save(model: nn.Module, path: str | PathLike[str]) -> None:
    """Write a model to a safetensors file, whole or not at all.

    Args:
        model: with decomposed layers or without. Wrapped for several processes or compiled by torch, its names are
            those of the wrapper: save the model inside.
        path: an old file is replaced, once the new one is complete. A link is followed.

    Raises:
        CheckpointError: the state holds something that is not a dense tensor, or of a type that safetensors lacks; a
            module's version is not an integer; the path exists and is not a file, or it cannot be written.
        OSError: no room, or no permission.

    Example:
        >>> tn.save(model, "model.safetensors")
    """
    _check_model(model)
    path = path_of(path).resolve()
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} exists, and is not a file", fix="the name of a file")
    state = state_of(model)
    aliases = aliases_of(state)
    tensors = {  # each row-major in memory of its own, on the CPU
        name: tensor.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
        if name not in aliases
    }
    layers = [describe_layer(layer, names) for layer, names in named_layers(model).values()]
    metadata = metadata_of(tensors, aliases, versions_of(model), layers)

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata)
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{path} cannot be written", because=error) from error

    write_whole(path, write)


@overload
def load(
    path: str | PathLike[str], *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> KernelLayer: ...


@overload
def load(
    path: str | PathLike[str],
    *,
    into: _M,
    resize: bool = False,
    noise: float = _NOISE,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> _M: ...


def load(
    path: str | PathLike[str],
    *,
    into: nn.Module | None = None,
    resize: bool = False,
    noise: float = _NOISE,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Read a checkpoint into a model, or the layer of a file that holds one. On any error the model is as it was.

    Dense layers that the file has decomposed are exchanged for decomposed ones, with the file's cores: nothing is
    fitted. Layers that are decomposed already keep their parameters, which take the file's values, and their plans.
    torch's attentions whose projections the file has are exchanged as `convert` does it. A parameter that a decomposed
    layer shares in the file is shared in the model: the layer with the first name keeps its own.

        tn.save(layer, "layer.safetensors")
        layer = tn.load("layer.safetensors")

    Args:
        path: a file of `save`.
        into: a model of the same code, dense or converted. It keeps its modes and hooks; layers that were frozen are
            thawed. A new layer is trained if the dense weight was. Without it, the file must hold one decomposed
            layer, and this is made, on the CPU, trained and in training mode.
        resize: give decomposed layers of the model with other ranks the file's cores at the model's ranks: smaller
            bonds by `truncate` (with constants by `drop_components`, as they are not to be mixed), larger ones by
            zeros in the first of a bond's tensors and small numbers in the others. The value stays, and the zeros have
            a gradient; where a bond's tensors are one tied tensor, all that is new is zero.
        noise: the size of these small numbers, relative to the tensor's root mean square; 0: zeros everywhere, and
            training leaves them at zero.
        device: where the model is moved; by default it stays, each tensor where it is.
        dtype: of floating point parameters and buffers; by default the model's own, into which the file's are
            converted.

    Returns:
        The model, or the layer.

    Raises:
        CheckpointError: the file is not a checkpoint, damaged, or of another model: names and shapes of tensors, class
            and arguments of a decomposed layer, its kernel or (without `resize`) its ranks. The error names the layer.
            Or the file holds a model, and `into` is not given.
    """
    if into is not None:
        _check_model(into)
    description = read_description(path)
    model = make_single(description) if into is None else into
    _check_settings(model, noise, dtype)
    _check_wrapped(description, model)
    names = {*description.tensors, *description.aliases}
    with unfolding_attentions(model, lambda name: any(one.startswith(f"{name}.q_proj.") for one in names)):
        _load(description, model, resize=resize, noise=noise, device=device, dtype=dtype)
    return model


def _load(
    description: Description,
    into: nn.Module,
    *,
    resize: bool,
    noise: float,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> None:
    match = match_layers(description, into, resize=resize)
    check_tensors(description, into, match)
    tensors = {**description.tensors, **{one: description.tensors[name] for one, name in description.aliases.items()}}
    origins = [(layer, origin_of(text, _cores_of(text, tensors))) for text, layer in match.kept]
    for text, layer in match.resized:
        cores, origin = resize_layer(text, layer, _cores_of(text, tensors), noise)
        origins.append((layer, origin))
        tensors |= {tensor_key(name, core): tensor for name in text.names for core, tensor in cores.items()}
    sites = [site for _, site in match.dense]
    with _restored_on_error(into, sites):
        if device is not None or dtype is not None:
            into.to(device=device, dtype=dtype)
        layers = {text.names[0]: make_layer(text, site) for text, site in match.dense}
        origins += [(layers[text.names[0]], origin_of(text, _cores_of(text, tensors))) for text, _ in match.dense]
        for names in match.tied:
            tie_layers([layers[name] for name in names])
        for name in match.unpadded:
            layers[name]._buffers["padding"] = None
        exchange_layers(sites, list(layers.values()))
        share_parameters(description, into, tensors)
        check_tied(into, tensors)
        into.load_state_dict(versioned(tensors, description, into))
        for layer, origin in origins:
            layer.origin = origin


def _cores_of(text: LayerText, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[tensor_key(text.names[0], name)] for name in tensors_of(text.kernel)}


def _check_settings(model: nn.Module, noise: object, dtype: object) -> None:
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < math.inf:
        raise CheckpointError(f"noise={noise!r}", fix="a number of at least 0, such as 0.01")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise CheckpointError(f"dtype is {dtype!r}", fix="a type of real numbers, such as torch.float32")
    tensors = (*model.parameters(), *model.buffers())
    if not torch.is_inference_mode_enabled() and any(tensor.is_inference() for tensor in tensors):
        fact = "tensors of the model were made in inference mode: they do not change outside of it"
        raise CheckpointError(fact, fix="a model made outside; or load in inference mode")


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"the model is a {type(model).__name__}", fix="a torch.nn.Module")


def _check_wrapped(description: Description, model: nn.Module) -> None:
    """Whether the model is in a wrapper and the file's was not, or the other way round."""
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    for inside in _WRAPPED:
        ours = inside in model._modules
        theirs = bool(description.tensors) and all(name.startswith(f"{inside}.") for name in description.tensors)
        if ours and not theirs and (parallel or inside == "_orig_mod"):
            fact = f"the model is wrapped in a {type(model).__name__}, and the file's was not"
            raise CheckpointError(fact, fix=f"into=model.{inside}")
        if theirs and not ours:
            fact = f"all names of the file begin with {inside!r}, as in a wrapper, and none of the model"
            raise CheckpointError(fact, fix=f"tn.save(wrapper.{inside}, path); or the model in its wrapper")


@contextmanager
def _restored_on_error(model: nn.Module, exchanged: list[Site]) -> Iterator[None]:
    """On an error, give a model its layers, tensors, values and frozen contractions back."""
    modules = list(model.modules())
    buffers = [(module, dict(module._buffers)) for module in modules]
    held_parameters = [(module, dict(module._parameters)) for module in modules]
    parameters = [(one, one.data, one.grad, None if one.grad is None else one.grad.data) for one in model.parameters()]
    tensors = [data for _, data, _, _ in parameters] + [
        one for _, held in buffers for one in held.values() if one is not None
    ]
    values = [(tensor, tensor.detach().clone()) for tensor in tensors]
    layers = [(one, one.origin, one.frozen) for one in modules if isinstance(one, KernelLayer)]
    try:
        yield
    except BaseException:
        restore_layers(exchanged)
        for module, own in held_parameters:
            module._parameters.update(own)
        for one, data, grad, slope in parameters:
            one.grad = None
            one.data = data
            if grad is not None and slope is not None:
                grad.data = slope  # which a change of dtype exchanges in place
                one.grad = grad
        for module, held in buffers:
            module._buffers.clear()
            module._buffers.update(held)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        for layer, origin, frozen in layers:
            layer.origin = origin
            if frozen:
                layer.freeze()
        raise
