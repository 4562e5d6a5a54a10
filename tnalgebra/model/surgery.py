"""Exchange layers of a model: where each one is, and what the new one takes over."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LayerError
from ..nn import (
    DECOMPOSABLE,
    TRANSPOSED,
    AnyLayer,
    KernelLayer,
    MultiheadAttention,
    check_dense,
    memory_format_of,
)
from .example import BATCH_FIX, CALL_ERRORS, Example, read_example
from .modes import Hook, evaluating, hooked
from .modules import (
    Holders,
    carry_hooks,
    drop_hooks,
    holders_of_modules,
    names_of_modules,
    other_kernels,
    put_module,
)

_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")
"""Classes whose instances keep track of the parameters that a model has when it is wrapped."""


@dataclass(frozen=True, eq=False)
class Site:
    """A layer, and every place that it has in a model; with the layers whose weight is the same parameter.

    names: all its names, the first as `named_modules` gives it.
    holders: the modules it is a child of, with its name there.
    tied: other layers with the same weight, such as the output head of a language model beside its embedding.
    """

    module: AnyLayer
    names: tuple[str, ...]
    holders: Holders
    tied: tuple[Site, ...] = ()

    @property
    def members(self) -> tuple[Site, ...]:
        """The site itself and those that are tied to it."""
        return (self, *self.tied)

    @property
    def all_names(self) -> tuple[str, ...]:
        """The names of all members."""
        return tuple(name for member in self.members for name in member.names)

    @property
    def attentions(self) -> tuple[MultiheadAttention, ...]:
        """The attentions that the layer is a projection of."""
        holders = (holder for member in self.members for holder, _ in member.holders)
        return tuple(holder for holder in holders if isinstance(holder, MultiheadAttention))


def find_sites(model: nn.Module) -> dict[str, Site]:
    """Name -> each kernel layer and each embedding once, in the order of the modules; layers with one weight together.

    Raises:
        LayerError: the model is a kernel layer itself, has none, or is wrapped for several processes.
    """
    if isinstance(model, DECOMPOSABLE):
        raise LayerError("the model is one layer itself", fix="tn.nn.decomposed(layer, rewrite)")
    _check_wrappers(model)
    check_dense(model)
    holders = holders_of_modules(model)
    groups: dict[object, list[Site]] = {}
    for module, names in names_of_modules(model).items():
        if isinstance(module, DECOMPOSABLE):
            weight = module._parameters.get("weight")
            groups.setdefault(module if weight is None else weight, []).append(Site(module, names, holders[module]))
    if not groups:
        others = [f"{name or 'it'} is {what}" for name, what in other_kernels(model).items()]
        because = " and ".join([*others[:1], *([f"{len(others) - 1} more like it"] if others[1:] else [])])
        needed = "a convolution, linear layer or embedding"
        raise LayerError(f"{type(model).__name__} has no kernel", needed=needed, because=because or None)
    return {
        first.names[0]: Site(first.module, first.names, first.holders, tuple(others))
        for first, *others in groups.values()
    }


def _check_wrappers(model: nn.Module) -> None:
    """Raise LayerError for a model that is wrapped for several processes, as a whole or in part."""
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        wrapper = next((one for one in _WRAPPERS if one in kinds), None)
        if wrapper is not None:
            what = f"the module {name!r}" if name else "the model"
            raise LayerError(f"{what} is wrapped in {wrapper}", fix="convert it, then wrap it")


def without_hooks(module: AnyLayer) -> AnyLayer:
    """The same layer, parameters and all, as another object that has no hooks of a call."""
    bare = copy.copy(module)
    drop_hooks(bare)
    return bare


def tie_layers(layers: Sequence[KernelLayer]) -> None:
    """Give layers of one kernel, made for the members of a site, the same cores."""
    for other in layers[1:]:
        other.share_cores(layers[0])


def exchange_layers(sites: Sequence[Site], new: Sequence[nn.Module]) -> None:
    """Put the new layers in the places of the old ones, with their modes and their hooks."""
    for site, module in zip(sites, new, strict=True):
        module.train(site.module.training)
        carry_hooks(site.module, module)
        put_module(site.holders, module)


def restore_layers(sites: Sequence[Site]) -> None:
    """Put the old layers back."""
    for site in sites:
        put_module(site.holders, site.module)


# A run on an example ----------------------------------------------------------------------------------------


def run_example(model: nn.Module, example: Example) -> None:
    """One call in evaluation mode, without gradients."""
    args, kwargs = read_example(example, model)
    with evaluating(model):
        model(*args, **kwargs)


def called_modules(model: nn.Module, example: Example, modules: Sequence[nn.Module]) -> set[nn.Module]:
    """Those of some modules that one run of the model on the example calls."""
    called: set[nn.Module] = set()

    def keep(module: nn.Module, *_: object) -> None:
        called.add(module)  # which may be another one: a new layer has its hooks in common with the old one

    with hooked(dict.fromkeys(modules, keep)):
        run_example(model, example)
    return called


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: its input, and its multiply-adds, padding counted as any other input."""

    shape: tuple[int, ...]
    memory_format: torch.memory_format
    multiply_adds: int


def record_calls(
    model: nn.Module, example: Example, sites: Mapping[str, Site], *, of_batch: bool = False
) -> dict[str, list[LayerCall]]:
    """Name -> the calls of each layer in one run of the model, those of tied layers under their own names.

    Args:
        of_batch: for errors: the example is from a batch of inputs.

    Raises:
        LayerError: the model does not run on the example.
    """
    members = {member.names[0]: member.module for site in sites.values() for member in site.members}
    calls: dict[str, list[LayerCall]] = {name: [] for name in members}

    def keeper(name: str) -> Hook:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            x: Tensor = args[0] if args else kwargs["input"]
            adds = _multiply_adds(members[name], x, output)
            calls[name].append(LayerCall(tuple(x.shape), memory_format_of(x), adds))

        return keep

    try:
        with hooked({module: keeper(name) for name, module in members.items()}):
            run_example(model, example)
    except CALL_ERRORS as error:
        what, fix = ("batch 1", BATCH_FIX) if of_batch else ("the example", "example=x, or all arguments: (x, y)")
        raise LayerError(f"the model does not run on {what}", because=error, fix=fix) from error
    return calls


def _multiply_adds(module: AnyLayer, x: Tensor, y: Tensor) -> int:
    if isinstance(module, nn.Embedding):
        return 0  # a row is read, and nothing is multiplied
    if isinstance(module, nn.Linear):
        return y.numel() * module.in_features
    if isinstance(module, TRANSPOSED):
        return x.numel() * module.weight.numel() // module.in_channels
    return y.numel() * module.weight.numel() // module.out_channels
