"""Decomposed layers and the text of a checkpoint: described, compared with a model's, made again, resized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..decompositions import check_bonds, drop_components, truncate
from ..errors import CheckpointError, TnalgebraError, explain
from ..fitting import bonds_of
from ..model import surgery
from ..network import Network, shape_of, tensor_nodes
from ..nn import KERNEL_LAYERS, LAYERS, KernelLayer, Origin, Planning
from ..rewriting import Fit, Trace
from .format import Description, LayerText, plain

NOISE_SEED = 0
"""Of the numbers that enlarged tensors are filled with."""


def named_layers(model: nn.Module) -> dict[str, tuple[KernelLayer, tuple[str, ...]]]:
    """First name -> each decomposed layer of a model once, and all its names."""
    names: dict[int, list[str]] = {}
    found: dict[int, KernelLayer] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, KernelLayer):
            found[id(module)] = module
            names.setdefault(id(module), []).append(name)
    return {names[key][0]: (layer, tuple(names[key])) for key, layer in found.items()}


def layer_text(layer: KernelLayer, names: tuple[str, ...]) -> LayerText:
    """What a checkpoint says about a layer."""
    request = (layer._thawed or layer.plan).request
    return LayerText(
        names=names,
        kind=layer.dense_class.__name__,
        arguments=_arguments(layer, layer),
        kernel=layer.kernel,
        constants=tuple(name for name in tensor_nodes(layer.kernel) if name in layer._buffers),
        trace=layer.trace,
        planned_for=layer.planned_for,
        candidates=request.candidates,
        backward=request.backward,
        relative_error=layer.relative_error,
        output_error=layer.output_error,
    )


def _arguments(module: nn.Module, kind: KernelLayer | type[KernelLayer]) -> dict[str, Any]:
    found = {name: getattr(module, name) for name in kind.argument_names if name != "bias"}
    return plain({**found, "bias": module._parameters.get("bias") is not None})


# Comparing ------------------------------------------------------------------------------------------------------


@dataclass
class Matched:
    """What loading has to do, once a file and a model agree.

    dense: layers of the model that become decomposed ones.
    kept: layers that are decomposed already, as the file says.
    resized: those of them whose ranks are others.
    """

    dense: list[tuple[LayerText, surgery.Site]] = field(default_factory=list)
    kept: list[tuple[LayerText, KernelLayer]] = field(default_factory=list)
    resized: list[tuple[LayerText, KernelLayer]] = field(default_factory=list)


def matched(description: Description, model: nn.Module, *, resize: bool) -> Matched:
    """Compare the layers of a file with those of a model.

    Raises:
        CheckpointError: a layer is of another class, has other arguments, another kernel, other ranks; is not there;
            cannot be exchanged.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    places: dict[int, list[str]] = {}
    for name, module in modules.items():
        places.setdefault(id(module), []).append(name)
    result = Matched()
    sites: dict[str, surgery.Site] = {}
    obstacles: dict[str, str] = {}
    for text in description.layers:
        name = text.names[0]
        module = modules.get(name)
        if module is None:
            raise CheckpointError(explain(f"the model has no layer {_called(name)}", file=_kind(text)))
        _check_layer(text, module)
        if [*text.names] != places[id(module)]:
            _differ(name, "places", " = ".join(text.names), " = ".join(places[id(module)]))
        if isinstance(module, KernelLayer):
            differing = _differing(text, module)
            if differing and not resize:
                ours = {bond: module.kernel.sizes[bond] for bond in bonds_of(module.kernel)}
                fix = "resize=True, or a model with these ranks"
                _differ(name, "ranks", _ranks(text.ranks), _ranks(ours), fix=fix)
            (result.resized if differing else result.kept).append((text, module))
            continue
        if not sites:
            sites = _sites(model)
            obstacles = surgery.obstacles(model, sites)
        if name in obstacles:
            fact = f"layer {_called(name)} of the model cannot be exchanged"
            raise CheckpointError(explain(fact, because=obstacles[name]))
        result.dense.append((text, sites[name]))
    described = {text.names[0] for text in description.layers}
    for name, (layer, _) in named_layers(model).items():
        if name not in described:
            _differ(name, "kernel", "one dense tensor", str(layer.kernel), fix="a model with this layer dense")
    return result


def _sites(model: nn.Module) -> dict[str, surgery.Site]:
    try:
        return surgery.sites(model)
    except TnalgebraError as error:
        raise CheckpointError(explain("no layer of the model can be exchanged", because=error)) from error


def _check_layer(text: LayerText, module: nn.Module) -> None:
    name = text.names[0]
    if isinstance(module, KernelLayer):
        kind = type(module)
    else:
        known = next((one for one in LAYERS if isinstance(module, one.dense_class)), None)
        if known is None or not isinstance(module, KERNEL_LAYERS):
            _differ(name, "class", text.kind, type(module).__name__)
        kind = known
    if kind.dense_class.__name__ != text.kind:
        _differ(name, "class", text.kind, kind.dense_class.__name__)
    given = _arguments(module, kind)
    if text.arguments.keys() != given.keys():
        _differ(name, "arguments", " ".join(text.arguments), " ".join(given))
    for argument, value in given.items():
        stored = text.arguments[argument]
        if type(stored) is not type(value) or stored != value:
            _differ(name, argument, repr(stored), repr(value))
    kernel = text.kernel
    sizes = [kernel.sizes.get(label) for label in kernel.output]
    weight = list(shape_of(module.kernel, module.kernel.output) if isinstance(module, KernelLayer) else _shape(module))
    if sizes != weight:
        _differ(name, "the shape of its kernel", str(sizes), str(weight))


def _shape(module: nn.Module) -> tuple[int, ...]:
    weight = module._parameters.get("weight")
    return () if weight is None else tuple(weight.shape)  # obstacles name what computes it


def _differing(text: LayerText, layer: KernelLayer) -> tuple[str, ...]:
    """Bonds of a layer whose ranks are others in the file."""
    stored, own = text.kernel, layer.kernel
    constants = [name for name in tensor_nodes(own) if name in layer._buffers]
    if (stored.nodes, stored.output) != (own.nodes, own.output):
        _differ(text.names[0], "kernel", str(stored), str(own))
    if {*text.constants} != {*constants}:
        _differ(text.names[0], "constants", " ".join(text.constants) or "none", " ".join(constants) or "none")
    differing = tuple(label for label, size in own.sizes.items() if stored.sizes[label] != size)
    try:
        check_bonds(own, differing)
    except TnalgebraError as error:
        _differ(text.names[0], "kernel", str(stored), str(own), because=str(error))
    return differing


def _differ(name: str, what: str, stored: str, ours: str, **more: str) -> NoReturn:
    raise CheckpointError(
        explain(f"layer {_called(name)} differs in {what}", file=_short(stored), model=_short(ours), **more)
    )


def _kind(text: LayerText) -> str:
    return _short(f"a {text.kind}, its kernel {text.kernel}")


def _called(name: str) -> str:
    return _short(repr(name)) if name else "'' (the model itself)"


def _ranks(ranks: Mapping[str, int]) -> str:
    return " ".join(f"{bond}={rank}" for bond, rank in ranks.items())


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:280]}... ({len(text)} characters)"


# Making ---------------------------------------------------------------------------------------------------------


def made(text: LayerText, site: surgery.Site) -> KernelLayer:
    """The decomposed layer in place of a dense one: its tensors zero, its bias the dense one's own."""
    kind = next(one for one in LAYERS if one.dense_class.__name__ == text.kind)
    zeros = {
        name: torch.zeros(()).expand(shape_of(text.kernel, text.kernel.nodes[places[0]].labels))
        for name, places in tensor_nodes(text.kernel).items()
    }
    axes = len(text.planned_for) - 2
    positions = text.planned_for[2:] if text.kind != "Linear" else None
    if (text.kind == "Linear") != (axes == 0):
        raise CheckpointError(f"layer {_called(text.names[0])} is planned for an input of {axes + 2} axes")
    planning = Planning(positions, text.planned_for[0], text.candidates, False, text.backward)
    module = surgery.without_hooks(site.module)
    try:
        layer = kind.of_network(module, text.kernel, zeros, text.constants, planning, origin_of(text))
    except TnalgebraError as error:
        raise CheckpointError(explain(f"layer {_called(text.names[0])} cannot be made", because=error)) from error
    layer._parameters["bias"] = site.module._parameters["bias"]
    return layer


def origin_of(text: LayerText) -> Origin:
    """Where the numbers of a file come from."""
    return Origin(text.trace, text.relative_error, text.output_error)


# Resizing -------------------------------------------------------------------------------------------------------


def resized(
    text: LayerText, layer: KernelLayer, values: Mapping[str, Tensor], noise: float
) -> tuple[dict[str, Tensor], Origin]:
    """The cores of a file at the ranks of a layer: first cut down, then enlarged.

    Returns:
        The cores, and where they come from: the trace goes on with the steps that cut them down.

    Raises:
        CheckpointError: a bond cannot be cut down or enlarged.
    """
    own, name = layer.kernel, _called(text.names[0])
    fit = Fit(text.kernel, dict(values), Trace(text.kernel, ()))
    smaller = [bond for bond, size in text.kernel.sizes.items() if own.sizes[bond] < size]
    try:
        if smaller and text.constants:  # numbers that stand for something are chosen among, not mixed
            for bond in smaller:
                fit = fit.then(drop_components(bond), ranks=own.sizes[bond])
        elif smaller:
            fit = fit.then(truncate(" ".join(smaller)), ranks={bond: own.sizes[bond] for bond in smaller})
    except TnalgebraError as error:
        raise CheckpointError(explain(f"layer {name} cannot be cut down", because=error)) from error
    cores = _enlarged(fit.network, fit.values, own, text.constants, noise, name)
    if not smaller:
        return cores, origin_of(text)
    steps = tuple(replace(step, change=replace(step.change, values={})) for step in fit.trace.steps)
    return cores, Origin(None if text.trace is None else Trace(text.trace.start, (*text.trace.steps, *steps)))


def _enlarged(
    network: Network, values: Mapping[str, Tensor], own: Network, constants: tuple[str, ...], noise: float, name: str
) -> dict[str, Tensor]:
    """Tensors of the sizes of `own` and of the same value.

    What is new of a bond is zero in the first of its tensors, so that nothing is added, and random in the others, so
    that the gradient of the first is not zero too.
    """
    zero_at: dict[str, str] = {}
    for tensor, places in tensor_nodes(network).items():
        for label in network.nodes[places[0]].labels:
            if own.sizes[label] > network.sizes[label]:
                if tensor in constants:
                    fact = f"layer {name} cannot be enlarged: the bond {label!r} stands on the constant {tensor!r}"
                    raise CheckpointError(explain(fact, fix="a model with this rank"))
                zero_at.setdefault(label, tensor)
    generator = torch.Generator().manual_seed(NOISE_SEED)
    found = {}
    for tensor, places in tensor_nodes(network).items():
        labels, old = network.nodes[places[0]].labels, values[tensor]
        shape = shape_of(own, labels)
        if shape == tuple(old.shape):
            found[tensor] = old
            continue
        scale = noise * float(old.double().square().mean().sqrt())
        new = (torch.randn(shape, dtype=torch.float64, generator=generator) * scale).to(old.dtype)
        for axis, label in enumerate(labels):
            size = network.sizes[label]
            if zero_at.get(label) == tensor:
                new.narrow(axis, size, shape[axis] - size).zero_()
        new[tuple(slice(size) for size in old.shape)] = old
        found[tensor] = new
    return found
