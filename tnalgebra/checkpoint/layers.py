"""Decomposed layers and the text of a checkpoint: describe them, compare them with a model's, make and resize them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..compiler import COMPUTED
from ..decompositions import check_bonds, drop_components, truncate
from ..errors import CheckpointError, TnalgebraError
from ..fitting import bonds_of
from ..model import Site, find_obstacles, find_sites, names_of_modules, without_hooks
from ..networks import Network, resized, shape_of, tensors_of
from ..nn import DECOMPOSABLE, LAYERS, KernelLayer, Origin, Planning, check_sum
from ..rewriting import Fit, Trace
from .format import Description, LayerText

_NOISE_SEED = 0
"""Of the numbers that enlarged tensors are filled with."""


def named_layers(model: nn.Module) -> dict[str, tuple[KernelLayer, tuple[str, ...]]]:
    """First name -> each decomposed layer of a model once, and all its names."""
    named = names_of_modules(model).items()
    return {names[0]: (layer, names) for layer, names in named if isinstance(layer, KernelLayer)}


def describe_layer(layer: KernelLayer, names: tuple[str, ...]) -> LayerText:
    """What a checkpoint says about a layer. Raises CheckpointError: it could not be loaded."""
    planning, dtype = layer.planning, layer.weight.dtype
    computed = [one for one in tensors_of(layer.kernel) if one not in {*layer._parameters, *layer._buffers}]
    if computed:
        fact = f"the tensor {computed[0]!r} of layer {_quoted(names[0])} is computed from others"
        fix = "remove the parametrisation, weight norm or pruning first, as by remove_parametrizations"
        raise CheckpointError(fact, fix=fix)
    if dtype not in COMPUTED:
        fact = f"layer {_quoted(names[0])} is {dtype}, in which a decomposed layer does not compute"
        raise CheckpointError(fact, fix=f"one of {', '.join(map(str, COMPUTED))}")
    return LayerText(
        names=names,
        kind=layer.dense_class.__name__,
        arguments=_arguments(layer, type(layer)),
        kernel=layer.kernel,
        constants=layer.constants,
        bases=layer.bases,
        trace=layer.trace,
        planned_for=layer.planned_for,
        candidates=planning["candidates"],
        backward=planning["backward"],
        channels_last=planning["memory_format"] != torch.contiguous_format,
        relative_error=layer.relative_error,
        output_error=layer.output_error,
    )


def _arguments(module: nn.Module, kind: type[KernelLayer]) -> dict[str, Any]:
    """Arguments of a layer as JSON has them."""
    values = {name: getattr(module, name) for name in kind.argument_names if name != "bias"}
    if "bias" in kind.argument_names:
        values["bias"] = module._parameters.get("bias") is not None
    return {name: list(value) if isinstance(value, tuple | list) else value for name, value in values.items()}


# Comparing ------------------------------------------------------------------------------------------------------


@dataclass
class LayerMatch:
    """What loading has to do, once a file and a model agree.

    dense: layers of the model that become decomposed ones.
    kept: layers that are decomposed already, as the file says.
    resized: those of them whose ranks are others.
    tied: names of dense layers that have one weight, and will have one set of cores.
    unpadded: names of dense layers that have all cores in common with other layers of the file, and no padding row.
    """

    dense: list[tuple[LayerText, Site]] = field(default_factory=list)
    kept: list[tuple[LayerText, KernelLayer]] = field(default_factory=list)
    resized: list[tuple[LayerText, KernelLayer]] = field(default_factory=list)
    tied: list[tuple[str, ...]] = field(default_factory=list)
    unpadded: set[str] = field(default_factory=set)


def match_layers(description: Description, model: nn.Module, *, resize: bool) -> LayerMatch:
    """Compare the layers of a file with those of a model.

    Raises:
        CheckpointError: a layer is of another class, has other arguments, another kernel, other ranks; does not exist;
            cannot be exchanged.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    names = names_of_modules(model)
    result = LayerMatch()
    sites: dict[str, Site] = {}
    obstacles: dict[str, str] = {}
    leaders: dict[str, str] = {}
    for text in description.layers:
        name = text.names[0]
        module = modules.get(name)
        if module is None:
            file = _short(f"a {text.kind}, its kernel {text.kernel}")
            fix = "tn.adapt(model, ...) or tn.load_adapter first" if ".adapters." in name else None
            raise CheckpointError(f"the model has no layer {_quoted(name)}", file=file, fix=fix)
        check_layer(text, module)
        if text.names != names[module]:
            _differ(name, "places", " = ".join(text.names), " = ".join(names[module]))
        if isinstance(module, KernelLayer):
            differing = _differing_bonds(text, module)
            if differing and not resize:
                ours = {bond: module.kernel.sizes[bond] for bond in bonds_of(module.kernel)}
                fix = "resize=True, or a model with these ranks"
                _differ(name, "ranks", _ranks(text.ranks), _ranks(ours), fix=fix)
            (result.resized if differing else result.kept).append((text, module))
            continue
        if not sites:
            sites = _find_sites(model)
            obstacles = find_obstacles(model, sites)
            leaders = {member.names[0]: first for first, site in sites.items() for member in site.members}
        if leaders[name] in obstacles:
            fact = f"layer {_quoted(name)} of the model cannot be exchanged"
            raise CheckpointError(fact, because=obstacles[leaders[name]])
        result.dense.append((text, next(one for one in sites[leaders[name]].members if one.names[0] == name)))
    described = {text.names[0] for text in description.layers}
    result.unpadded = {text.names[0] for text, _ in result.dense if _is_unpadded(text, description)}
    result.tied = _match_ties({text.names[0]: text for text, _ in result.dense}, sites)
    for name, (layer, _) in named_layers(model).items():
        if name not in described:
            _differ(name, "kernel", "one dense tensor", str(layer.kernel), fix="a model with this layer dense")
    return result


def _is_unpadded(text: LayerText, description: Description) -> bool:
    """Whether a layer has no padding row in the file because other layers train all of its cores."""
    if f"{text.names[0]}.padding" in {*description.tensors, *description.aliases}:
        return False
    stored = {
        one.names[0]: {
            description.aliases.get(key, key) for key in (f"{one.names[0]}.{c}" for c in tensors_of(one.kernel))
        }
        for one in description.layers
    }
    own = stored.pop(text.names[0])
    return own <= {key for keys in stored.values() for key in keys}


def _match_ties(texts: Mapping[str, LayerText], sites: Mapping[str, Site]) -> list[tuple[str, ...]]:
    """Names of the layers that have one weight in the model; the file must have one kernel for all of them."""
    tied = []
    for site in sites.values():
        names = tuple(member.names[0] for member in site.members)
        if len(names) == 1 or not any(name in texts for name in names):
            continue
        kernels = [texts[name].kernel if name in texts else None for name in names]
        if any(kernel is None or kernel != kernels[0] for kernel in kernels):
            ours = f"one weight of {' and '.join(map(_quoted, names))}"
            file = ", ".join(f"{name}: {kernel or 'dense'}" for name, kernel in zip(names, kernels, strict=True))
            _differ(names[0], "what its weight is tied to", file, ours, fix="a model whose layers are not tied")
        tied.append(names)
    return tied


def _find_sites(model: nn.Module) -> dict[str, Site]:
    if isinstance(model, DECOMPOSABLE):
        fact = f"a dense {type(model).__name__} without a model around it cannot become the file's decomposed layer"
        raise CheckpointError(fact, fix="layer = tn.load(path), which makes the decomposed layer")
    try:
        return find_sites(model)
    except TnalgebraError as error:
        raise CheckpointError("no layer of the model can be exchanged", because=error) from error


def check_layer(text: LayerText, module: nn.Module) -> None:
    """Raise CheckpointError if a module is not what a file says of class, arguments and shape of the kernel."""
    name = text.names[0]
    kind = next((one for one in LAYERS if isinstance(module, (one, one.dense_class))), None)
    if kind is None or kind.dense_class.__name__ != text.kind:
        _differ(name, "class", text.kind, kind.dense_class.__name__ if kind else type(module).__name__)
    ours = _arguments(module, kind)
    if text.arguments.keys() != ours.keys():
        _differ(name, "arguments", " ".join(text.arguments), " ".join(ours))
    for argument, value in ours.items():
        stored = text.arguments[argument]
        if type(stored) is not type(value) or stored != value:
            _differ(name, argument, repr(stored), repr(value))
    sizes = tuple(text.kernel.sizes.get(label) for label in text.kernel.output)
    if isinstance(module, KernelLayer):
        shape = shape_of(module.kernel, module.kernel.output)
    else:  # where the weight is computed, the obstacles say from what
        weight = module._parameters.get("weight")
        shape = () if weight is None else tuple(weight.shape)
    if sizes != shape:
        _differ(name, "the shape of its kernel", str(sizes), str(shape))


def _differing_bonds(text: LayerText, layer: KernelLayer) -> tuple[str, ...]:
    """Bonds of a layer whose ranks are others in the file."""
    stored, kernel = text.kernel, layer.kernel
    constants = layer.constants
    if resized(stored, {}) != resized(kernel, {}):
        _differ(text.names[0], "kernel", str(stored), str(kernel))
    if {*text.constants} != {*constants}:
        _differ(text.names[0], "constants", " ".join(text.constants) or "none", " ".join(constants) or "none")
    differing = tuple(label for label, size in kernel.sizes.items() if stored.sizes[label] != size)
    try:
        check_bonds(kernel, differing)
    except TnalgebraError as error:
        _differ(text.names[0], "kernel", str(stored), str(kernel), because=str(error))
    return differing


def _differ(name: str, what: str, stored: str, ours: str, **more: str) -> NoReturn:
    raise CheckpointError(f"layer {_quoted(name)} differs in {what}", file=_short(stored), model=_short(ours), **more)


def _quoted(name: str) -> str:
    return _short(repr(name)) if name else "'' (the model itself)"


def _ranks(ranks: Mapping[str, int]) -> str:
    return " ".join(f"{bond}={rank}" for bond, rank in ranks.items())


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:280]}... ({len(text)} characters)"


# Making ---------------------------------------------------------------------------------------------------------


def make_layer(text: LayerText, site: Site, memory_format: torch.memory_format | None = None) -> KernelLayer:
    """The decomposed layer in place of a dense one: its tensors zero, its bias the dense one's own.

    Args:
        memory_format: by default that of the dense layer's weight.
    """
    kind = next(one for one in LAYERS if one.dense_class.__name__ == text.kind)
    zeros = {
        name: torch.zeros(()).expand(shape_of(text.kernel, node.labels))
        for name, node in tensors_of(text.kernel).items()
    }
    axes = len(text.planned_for)
    if axes != (1 if text.kind == "Embedding" else len(text.kernel.output)):
        raise CheckpointError(f"layer {_quoted(text.names[0])} is planned for an input of {axes} axes")
    planning = Planning(
        input_size=text.planned_for[2:] or None,
        batch_size=text.planned_for[0],
        candidates=text.candidates,
        backward=text.backward,
        memory_format=memory_format,
    )
    module = without_hooks(site.module)
    try:
        layer = kind.of_network(
            module,
            text.kernel,
            {**zeros, **text.bases},
            constants=text.constants,
            planning=planning,
            origin=Origin(),
        )
        layer.carry_attributes(module)
    except TnalgebraError as error:
        raise CheckpointError(f"layer {_quoted(text.names[0])} cannot be made", because=error) from error
    layer._parameters["bias"] = site.module._parameters.get("bias")
    return layer


def origin_of(text: LayerText, cores: Mapping[str, Tensor]) -> Origin:
    """Where the cores of a file come from."""
    return Origin(text.trace, text.relative_error, text.output_error, check_sum(cores))


# Resizing -------------------------------------------------------------------------------------------------------


def resize_layer(
    text: LayerText, layer: KernelLayer, values: Mapping[str, Tensor], noise: float
) -> tuple[dict[str, Tensor], Origin]:
    """The cores of a file at the ranks of a layer: first cut down, then enlarged.

    Returns:
        The cores, and where they come from: the trace continues with the steps that cut them down.

    Raises:
        CheckpointError: a bond cannot be cut down or enlarged.
    """
    kernel, name = layer.kernel, _quoted(text.names[0])
    fit = Fit(text.kernel, dict(values), Trace(text.kernel, ()))
    smaller = [bond for bond, size in text.kernel.sizes.items() if kernel.sizes[bond] < size]
    try:
        if smaller and text.constants:  # components of constants are selected, not mixed
            for bond in smaller:
                fit = fit.then(drop_components(bond), {bond: kernel.sizes[bond]})
        elif smaller:
            fit = fit.then(truncate(" ".join(smaller)), {bond: kernel.sizes[bond] for bond in smaller})
    except TnalgebraError as error:
        raise CheckpointError(f"layer {name} cannot be cut down", because=error) from error
    cores = _enlarge(fit, kernel, text.constants, noise=noise, name=name)
    if not smaller:
        return cores, origin_of(text, cores)
    steps = tuple(replace(step, change=replace(step.change, values={})) for step in fit.trace.steps)
    return cores, Origin(None if text.trace is None else Trace(text.trace.start, (*text.trace.steps, *steps)))


def _enlarge(fit: Fit, kernel: Network, constants: tuple[str, ...], *, noise: float, name: str) -> dict[str, Tensor]:
    """Tensors of the sizes of `kernel` and of the same value.

    What is new of a bond is zero in the first of its tensors, so that nothing is added, and random in the others, so
    that the gradient of the first is not zero too.
    """
    network = fit.network
    zero_at: dict[str, str] = {}
    for tensor, node in tensors_of(network).items():
        for label in node.labels:
            if kernel.sizes[label] > network.sizes[label]:
                if tensor in constants:
                    fact = f"layer {name} cannot be enlarged: the bond {label!r} occurs on the constant {tensor!r}"
                    raise CheckpointError(fact, fix="a model with this rank")
                zero_at.setdefault(label, tensor)
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    cores = {}
    for tensor, node in tensors_of(network).items():
        labels, old = node.labels, fit.values[tensor]
        shape = shape_of(kernel, labels)
        if shape == tuple(old.shape):
            cores[tensor] = old
            continue
        scale = noise * float(old.double().square().mean().sqrt())
        new = (torch.randn(shape, dtype=torch.float64, generator=generator) * scale).to(old.dtype)
        for axis, label in enumerate(labels):
            size = network.sizes[label]
            if zero_at.get(label) == tensor:
                new.narrow(axis, size, shape[axis] - size).zero_()
        new[tuple(slice(size) for size in old.shape)] = old
        cores[tensor] = new
    return cores
