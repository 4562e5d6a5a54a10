"""Adapters in files: only their tensors, with the networks in the notation; and files of `peft`.

    tn.save_adapter(model, "adapter.safetensors")
    tn.load_adapter("adapter.safetensors", into=model)        # a new model of the same code and weights
    tn.load_adapter("folder/of/peft", into=model)             # adapter_config.json and adapter_model.safetensors

The file has the format of `tn.save`, with a layer for each network: the layer of the adapter "mine" beside `fc` is
called "fc.adapters.mine". A further entry of the metadata, `tnalgebra.adapters`, has the scale of each as JSON, and
`tnalgebra.adapters.crc32` its check sum. Nothing in a file is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TypeVar

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .._files import write_whole
from ..errors import CheckpointError, LayerError, TnalgebraError
from ..model import Site, adaptable_sites, adapter_state, adapters, freeze_but, put_adapters, unfolding_attentions
from ..networks import Network, shapes
from ..nn import Adapted, KernelLayer, MultiheadAttention, Planning, adapter_layer, check_scale, with_names
from .format import KEY, LayerText, check_of, metadata_of, path_of
from .layers import check_layer, describe_layer
from .peft import read_peft
from .reading import read_description
from .state import aliases_of, tensor_key

_M = TypeVar("_M", bound=nn.Module)

_SCALES, _SCALES_CHECK = f"{KEY}.adapters", f"{KEY}.adapters.crc32"


@dataclass(frozen=True, eq=False)
class AdapterText:
    """The network beside one layer as a file describes it.

    layer: name of the layer; adapter: name of the network beside it.
    text: the description in a file of this library; None in one of `peft`.
    """

    layer: str
    adapter: str
    kernel: Network
    values: Mapping[str, Tensor]
    constants: tuple[str, ...]
    scale: float
    text: LayerText | None = None


def save_adapter(model: nn.Module, path: str | PathLike[str], *names: str) -> None:
    """Write the adapters of a model, and nothing else of it, to a safetensors file, whole or not at all.

    Args:
        model: with adapted layers.
        path: an old file is replaced, once the new one is complete.
        names: of adapters; by default all.

    Raises:
        LayerError: the model has no adapted layer, or no adapter of a name.
        CheckpointError: the file cannot be written.

    Example:
        >>> tn.save_adapter(model, "adapter.safetensors")
    """
    state = adapter_state(model, *names)
    aliases = aliases_of(state)
    tensors = {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
        if name not in aliases
    }
    texts, scales = [], {}
    for key, adapted in adapters(model).layers.items():
        for name, layer in adapted.adapters.items():
            if isinstance(layer, KernelLayer) and (not names or name in names):
                of_layer = f"{key}.adapters.{name}"
                texts.append(describe_layer(layer, (of_layer,)))
                scales[of_layer] = adapted.scales[name]
    written = json.dumps(scales)
    metadata = metadata_of(tensors, aliases, {}, texts) | {_SCALES: written, _SCALES_CHECK: check_of(written)}
    path = path_of(path).resolve()
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} exists, and is not a file", fix="the name of a file")
    write_whole(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_adapter(path: str | PathLike[str], *, into: _M, name: str | None = None, tune: bool = True) -> _M:
    """Read adapters into a model, which may have others already. On any error the model is as it was.

    As after `tn.adapt`, the tensors of these adapters are trained, and nothing else of the model. An adapter that the
    model has under this name takes the values of the file, if it has the same networks.

    Args:
        path: a file of `save_adapter`; or a folder that `peft` wrote for LoRA, LoHa or LoKr, with
            adapter_config.json and adapter_model.safetensors.
        into: a model with the layers that the file names. Its weights must be those that the adapter was trained
            beside, which no file says.
        name: of the adapter in the model; by default that of the file, which in one of `peft` is "default". A file
            that holds several adapters keeps their names.
        tune: as of `tn.adapt`.

    Returns:
        The model.

    Raises:
        CheckpointError: the file is damaged or not one of adapters; a layer is missing, of another class, or has
            other arguments; a setting of `peft` that changes what is computed and is not supported.

    Example:
        >>> tn.load_adapter("adapter.safetensors", into=model)
    """
    if not isinstance(into, nn.Module):
        raise CheckpointError(f"the model is a {type(into).__name__}", fix="a torch.nn.Module")
    path = path_of(path)
    read = _of_peft(path, into) if path.is_dir() else _of_file(path)
    if name is not None:
        if len({one.adapter for one in read}) > 1:
            held = ", ".join(sorted({one.adapter for one in read}))
            raise CheckpointError(f"name={name!r} is given for a file with several adapters", adapters=held)
        read = [replace(one, adapter=name) for one in read]
    read = [part for one in read for part in _parts_of(one, into)]
    attentions = {one.layer.rpartition(".")[0] for one in read}
    with unfolding_attentions(into, attentions.__contains__) as unfolding:
        try:
            layers = _put(into, read, tune=tune)
        except LayerError as error:
            raise CheckpointError("the adapter does not fit the model", because=error) from error
        unfolding.put_back(all_of_them=False)
        freeze_but(into, layers)
    return into


def _put(model: nn.Module, read: Sequence[AdapterText], *, tune: bool) -> list[KernelLayer]:
    """Put adapters beside the layers of a model; returns their layers."""
    sites = {member.names[0]: member for site in adaptable_sites(model).values() for member in site.members}
    existing = {
        (key, name): (adapted, layer)
        for key, adapted in _adapted(model).items()
        for name, layer in adapted.adapters.items()
    }
    new: dict[str, list[tuple[Site, KernelLayer, float]]] = {}
    kept = []
    pairs: list[tuple[AdapterText, KernelLayer]] = []
    for one in read:
        if one.layer not in sites:
            layers = ", ".join([*sites][:8]) + (", ..." if len(sites) > 8 else "")
            raise CheckpointError(f"the model has no layer {one.layer!r} that can be adapted", layers=layers)
        _check_fits(one, sites[one.layer])
        if (one.layer, one.adapter) in existing:
            adapted, layer = existing[one.layer, one.adapter]
            if not isinstance(layer, KernelLayer) or layer.kernel != one.kernel:
                fact = f"the model has another adapter {one.adapter!r} at {one.layer!r}"
                raise CheckpointError(fact, file=one.kernel, fix="name=..., another name")
            kept.append((one, adapted, layer))
        else:
            layer = _make(one, sites[one.layer], tune=tune)
            new.setdefault(one.adapter, []).append((sites[one.layer], layer, one.scale))
        pairs.append((one, layer))
    _check_ties(pairs)
    placed: list[str] = []
    try:
        for name, of_name in new.items():
            put_adapters(model, of_name, name, tune=tune)
            placed.append(name)
    except BaseException:
        for name in placed:
            adapters(model).remove(name)
        raise
    with torch.no_grad():
        for one, adapted, layer in kept:
            for core, tensor in layer.kernel_tensors().items():
                tensor.copy_(one.values[core])
            adapted.rescale(one.adapter, one.scale)
    _tie(pairs)
    return [layer for _, layer in pairs]


def _check_ties(pairs: Sequence[tuple[AdapterText, KernelLayer]]) -> None:
    """Raise CheckpointError if a tensor that layers share would be on several devices or of several dtypes."""
    kinds: dict[int, tuple[str, torch.device, torch.dtype]] = {}
    for one, layer in pairs:
        for value in one.values.values():
            name, *kind = kinds.setdefault(id(value), (one.layer, layer.weight.device, layer.weight.dtype))
            if kind != [layer.weight.device, layer.weight.dtype]:
                ours = f"{kind[1]} on {kind[0]} and {layer.weight.dtype} on {layer.weight.device}"
                fact = f"the adapters of {name!r} and {one.layer!r} share a tensor, and the layers are {ours}"
                raise CheckpointError(fact, fix="a model where both have one dtype and device")


def _tie(pairs: Sequence[tuple[AdapterText, KernelLayer]]) -> None:
    """Make one parameter of those that are one tensor in the file."""
    first: dict[int, nn.Parameter] = {}
    for number, (one, layer) in enumerate(pairs):
        before = (other for text, other in pairs[:number] if _same(one.values, text.values))
        other = next(before, None)
        if other is not None:
            layer.share_cores(other)
            continue
        for core, parameter in layer.cores().items():
            layer._parameters[core] = first.setdefault(id(one.values[core]), parameter)


def _same(values: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether the tensors with the same names are the same ones."""
    return values.keys() == others.keys() and all(others[name] is value for name, value in values.items())


def _parts_of(one: AdapterText, model: nn.Module) -> list[AdapterText]:
    """The adapter; of the packed inputs of an attention, in a file of `peft`, one for each of its projections."""
    module = dict(model.named_modules()).get(one.layer)
    if one.text is not None or not isinstance(module, nn.MultiheadAttention | MultiheadAttention):
        return [one]
    nodes, output, b = one.kernel.nodes, one.kernel.output, one.values["B"]
    if len(b) % 3:
        raise CheckpointError(
            f"the matrices of layer {one.layer!r} are not those of three projections", B=tuple(b.shape)
        )
    kernel = Network(nodes, output, {**one.kernel.sizes, output[0]: len(b) // 3})
    projections = zip(("q_proj", "k_proj", "v_proj"), b.chunk(3), strict=True)
    return [
        replace(one, layer=f"{one.layer}.{name}", kernel=kernel, values={**one.values, "B": part})
        for name, part in projections
    ]


def _adapted(model: nn.Module) -> Mapping[str, Adapted]:
    try:
        return adapters(model).layers
    except LayerError:
        return {}


def _make(one: AdapterText, site: Site, *, tune: bool) -> KernelLayer:
    planning = Planning(backward=True, tune=tune)
    if one.text is not None:
        axes = len(one.text.planned_for)
        if axes != (1 if isinstance(site.module, nn.Embedding) else site.module.weight.ndim):
            raise CheckpointError(f"layer {one.layer!r} is planned for an input of {axes} axes")
        planning |= Planning(
            input_size=one.text.planned_for[2:] or None,
            batch_size=one.text.planned_for[0],
            candidates=one.text.candidates,
            backward=one.text.backward,
        )
    try:
        values = with_names(one.values, {} if one.text is None else one.text.bases.items())
        return adapter_layer(site.module, one.kernel, values, constants=one.constants, planning=planning)
    except TnalgebraError as error:
        raise CheckpointError(f"the adapter of layer {one.layer!r} cannot be made", because=error) from error


def _check_fits(one: AdapterText, site: Site) -> None:
    """Raise CheckpointError if a layer is not the one that an adapter was made for."""
    if one.text is not None:
        arguments = dict(one.text.arguments)
        if "bias" in arguments:
            arguments["bias"] = site.module._parameters.get("bias") is not None  # which an adapter does not have
        check_layer(replace(one.text, names=(one.layer,), arguments=arguments), site.module)
    sizes = tuple(one.kernel.sizes.get(label) for label in one.kernel.output)
    if sizes != tuple(site.module.weight.shape):
        fact = f"the adapter of layer {one.layer!r} is one of a weight of another shape"
        raise CheckpointError(fact, file=sizes, model=tuple(site.module.weight.shape))
    for name, shape in shapes(one.kernel).items():
        if tuple(one.values[name].shape) != shape:
            raise CheckpointError(f"the tensor {name!r} of layer {one.layer!r} does not have the shape {shape}")


def _of_file(path: Path) -> list[AdapterText]:
    description = read_description(path)
    scales = _read_scales(path)
    tensors = {**description.tensors, **{one: description.tensors[name] for one, name in description.aliases.items()}}
    read = []
    for text in description.layers:
        layer, _, adapter = text.names[0].rpartition(".adapters.")
        if not layer or not adapter or text.names[0] not in scales or len(text.names) > 1:
            raise CheckpointError(
                f"{path} does not hold adapters alone: {text.names[0]!r}", fix="tn.load(path, into=model)"
            )
        values = {name: tensors[tensor_key(text.names[0], name)] for name in shapes(text.kernel)}
        read.append(AdapterText(layer, adapter, text.kernel, values, text.constants, scales[text.names[0]], text))
    used = {tensor_key(text.names[0], name) for text in description.layers for name in shapes(text.kernel)}
    odd = sorted(tensors.keys() - used)
    if odd or not read:
        fact = f"{path} does not hold adapters alone"
        raise CheckpointError(fact, also=", ".join(odd[:5]) or None, fix="a file of tn.save_adapter")
    return read


def _read_scales(path: Path) -> dict[str, float]:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    text = metadata.get(_SCALES)
    if text is None or check_of(text) != metadata.get(_SCALES_CHECK):
        fact = "its scales are missing, or do not have the check sum that is written beside them"
        raise CheckpointError(f"{path} cannot be read as adapters", because=fact, fix="a file of tn.save_adapter")
    try:
        return {str(name): check_scale(scale) for name, scale in json.loads(text).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as adapters", because=error) from error


def _of_peft(folder: Path, model: nn.Module) -> list[AdapterText]:
    sites = [member for site in adaptable_sites(model).values() for member in site.members]
    weights = {name: tuple(member.module.weight.shape) for member in sites for name in member.names}
    read = read_peft(folder, weights)
    return [AdapterText(one.layer, "default", one.kernel, one.values, (), one.scale) for one in read]
