"""`adapt`: networks that start at zero are put beside the layers of a model, which stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from ..decompositions import read_rewrite
from ..errors import LayerError, RankError, RuleError, TnalgebraError
from ..fitting import ModelBudget, ParameterBudget, Size, read_size
from ..nn import (
    Adapted,
    KernelLayer,
    Planning,
    adapter_layer,
    check_scale,
    elements_by_default,
    kernel_labels_of,
    layer_network,
    start_adapter,
    with_names,
)
from ..rewriting import Fit, Rule, right_side
from .adapters import Adapters
from .attention import unfolding_attentions
from .example import Example
from .modules import carry_hooks, check_initialised, copy_model, holders_of_modules, names_of_modules, put_module
from .new_layers import planning_for
from .patterns import Assigned, Offer, Patterns, assign
from .surgery import LayerCall, Site, find_sites, record_calls, tie_layers, without_hooks

_M = TypeVar("_M", bound=nn.Module)


def adapt(
    model: _M,
    patterns: Patterns,
    size: object = None,
    *,
    name: str = "default",
    scale: float = 1.0,
    example: Example | None = None,
    tune: bool = True,
    inplace: bool = True,
) -> tuple[_M, Adapters]:
    """Put a network beside layers of a model, each as the first pattern that fits it says, and freeze the rest.

    An adapted layer computes W x + scale * (network) x, with W, the bias and all other parameters of the model no
    longer trained. The network starts at zero, so that the model computes what it did; only its tensors are trained.

    Args:
        model: its layers are exchanged for `tn.nn.Adapted`; hooks and modes are kept. Linear layers, convolutions,
            transposed convolutions, embeddings, and the projections of torch's attentions can be adapted.
        patterns: as of `convert`: a glob over names of layers, or a class, -> a rewrite or (rewrite, size); None leaves
            layers as they are. A rewrite is a name in `tn.decompositions.ADAPTERS` (LoRA, LoHa, LoKr) or of a
            decomposition, a cut, a rule, or its notation, such as "W[out in] => B[out r] A[r in]".
        size: of the bonds: 8, {"r": 8}, "r=8 s=4", or "parameters 0.01" of each layer's weight.
        name: of the adapter; a model may have several.
        scale: the number that the network is multiplied by: alpha / r of LoRA, for example.
        example: an input of the model in any form that `convert` takes, so that plans are made for the real sizes.
        tune: measure how each network, and its sum with the weight, is computed the fastest.
        inplace: False: a copy is adapted, and the model stays as it is.

    Returns:
        The model, and its adapters: what was done, and what can be done with them.

    Raises:
        LayerError: a pattern that is not optional fits no layer, or layers that are decomposed already, have an
            adapter of this name, or a weight that is computed from other parameters, as by a weight norm or pruning.
        RuleError: a request cannot be read, is a fit, or has no tensor that can start at zero.
        RankError: a size cannot be read, or depends on singular values, which a network of zero does not have.

    Example:
        >>> model, adapters = tn.adapt(model, {"blocks.*.attn.qkv": "LoRA"}, 8, scale=2.0)
        >>> print(adapters)
    """
    check_initialised(model)
    _check_single(model)
    whole = None if size is None else read_size(size)
    scale = check_scale(scale)
    target = model if inplace else copy_model(model)
    with torch.inference_mode(False), elements_by_default(), unfolding_attentions(target) as unfolding:
        sites = adaptable_sites(target)
        _check_decomposed(target, patterns)
        assigned = {key: one for key, one in assign(target, sites, patterns).items() if one.offers is not None}
        calls = {} if example is None else record_calls(target, example, sites)
        new: list[tuple[Site, KernelLayer]] = []
        for key, one in assigned.items():
            try:
                layers = _make_layers(sites[key], one, whole, calls, tune=tune)
            except TnalgebraError as error:
                raise type(error)(f"layer {key!r} cannot be adapted", because=error) from error
            new += zip(sites[key].members, layers, strict=True)
        put_adapters(target, [(site, layer, scale) for site, layer in new], name, tune=tune)
        unfolding.put_back(all_of_them=False)
        freeze_but(target, [layer for _, layer in new])
    return target, Adapters(target)


# Making and placing ---------------------------------------------------------------------------------------------


def adaptable_sites(model: nn.Module) -> dict[str, Site]:
    """Name -> each layer that can be adapted; one that is adapted already has the name and places of `Adapted`."""
    names, holders = names_of_modules(model), holders_of_modules(model)
    outer = {module.base: module for module in names if isinstance(module, Adapted)}

    def outside(site: Site) -> Site:
        adapted = outer.get(site.module)
        tied = tuple(map(outside, site.tied))
        if adapted is None:
            return replace(site, tied=tied)
        return Site(site.module, names[adapted], holders[adapted], tied)

    sites = [outside(site) for site in find_sites(model).values()]
    return {site.names[0]: site for site in sites}


def put_adapters(model: nn.Module, new: list[tuple[Site, KernelLayer, float]], name: str, *, tune: bool = True) -> None:
    """Put layers of networks beside the layers of a model; on an error the model is as it was."""
    placed: list[Site] = []
    added: list[Adapted] = []
    try:
        for site, layer, scale in new:
            holder, key = site.holders[0]
            adapted = getattr(holder, key)
            if not isinstance(adapted, Adapted):
                adapted = Adapted(without_hooks(site.module))
                carry_hooks(site.module, adapted)
                placed.append(site)
                put_module(site.holders, adapted)
            adapted.add(name, layer, scale, tune=tune)
            added.append(adapted)
    except BaseException:
        for adapted in added:
            adapted.remove(name)
        for site in placed:
            put_module(site.holders, site.module)
        raise


def freeze_but(model: nn.Module, layers: Sequence[KernelLayer]) -> None:
    """Train the tensors of these layers, and nothing else of a model."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in layers:
        for core in layer.cores().values():
            core.requires_grad_(True)


def _make_layers(
    site: Site, assigned: Assigned, size: Size | None, calls: Mapping[str, list[LayerCall]], *, tune: bool
) -> list[KernelLayer]:
    """The layers of the network that a site's members get: one set of tensors, which are zero together."""
    offer = _offer(assigned)
    chosen = _rule_for(offer, site)
    requested = size if offer.size is None and chosen.ranks else offer.size
    kernel, constants = right_side(chosen, tuple(site.module.weight.shape), requested, offer.choices)
    if site.module.weight.is_complex():
        raise LayerError(f"its weight is {site.module.weight.dtype}", fix="a type of real numbers")
    layers = []
    fixed = {**chosen.fixed, **(offer.choices.get("fixed") or {})}
    values = with_names(start_adapter(kernel, constants), fixed.items())
    for member in site.members:
        layer_network(member.module)
        planning = Planning(backward=True, tune=tune)
        for call in calls.get(member.names[0], [])[:1]:
            planning |= planning_for(member.module, call.shape, call.memory_format)
        layers.append(adapter_layer(member.module, kernel, values, constants=constants, planning=planning))
    tie_layers(layers)
    return layers


def _offer(assigned: Assigned) -> Offer:
    offers = assigned.offers or ()
    if len(offers) != 1 or isinstance(offers[0].rewrite, Fit):
        what = "a fit, whose values are not zero" if len(offers) == 1 else f"{len(offers)} rewrites"
        raise RuleError(f"{assigned.pattern!r} requests {what}, for an adapter", fix="one rewrite, such as 'LoRA'")
    if isinstance(offers[0].size, ModelBudget) and not isinstance(offers[0].size, ParameterBudget):
        raise RankError(f"{offers[0].size!r} is not a size of one adapter", fix="8, or 'parameters 0.01'")
    return offers[0]


def _rule_for(offer: Offer, site: Site) -> Rule:
    rewrite = offer.rewrite
    failed: TnalgebraError | None = None
    for labels in dict.fromkeys(kernel_labels_of(member.module) for member in site.members):
        try:
            return read_rewrite(rewrite, labels)
        except TnalgebraError as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _check_single(model: nn.Module) -> None:
    if isinstance(model, Adapted | KernelLayer) or (not [*model.children()] and "weight" in model._parameters):
        fact = f"the model is one {type(model).__name__} itself, which has no place where another layer could stand"
        raise LayerError(fact, fix="tn.adapt(torch.nn.Sequential(layer), ...)")


def _check_decomposed(model: nn.Module, patterns: Patterns) -> None:
    """Raise LayerError for a pattern that is the name of a decomposed layer."""
    for name, module in model.named_modules():
        if isinstance(module, KernelLayer) and isinstance(patterns, Mapping) and patterns.get(name) is not None:
            fact = f"layer {name!r} is decomposed already: its cores can be trained, and an adapter needs one weight"
            raise LayerError(fact, fix=f"the dense layer, model.get_submodule({name!r}).to_dense(), in its place first")
