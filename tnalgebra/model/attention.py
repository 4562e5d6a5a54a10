"""torch's attentions, taken apart into their projections so that these can be exchanged, and put back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..nn import Adapted, MultiheadAttention, attention_obstacle, packed_attention
from .modules import (
    Holders,
    carry_hooks,
    has_hooks,
    holders_of_modules,
    names_of_modules,
    owners_of_parameters,
    put_module,
)


@dataclass(frozen=True, eq=False)
class UnfoldedAttention:
    """An attention that was taken apart.

    name: its first name in the model.
    old, new: torch's module, and the one with projections that took its place.
    """

    name: str
    old: nn.MultiheadAttention
    new: MultiheadAttention
    holders: Holders

    @property
    def is_used(self) -> bool:
        """Whether a projection is decomposed, or a layer whose weight torch's encoder layer would read itself."""
        beside = [
            getattr(holder, name)
            for holder, _ in self.holders
            if isinstance(holder, nn.TransformerEncoderLayer)
            for name in ("linear1", "linear2")
        ]
        inside = [not isinstance(layer, nn.Linear) for layer in self.new.children()]
        return any(inside) or any(not isinstance(layer, nn.Linear | Adapted) for layer in beside)

    def replaced(self) -> list[tuple[str, nn.Parameter, dict[str, nn.Parameter]]]:
        """(name of a projection, a parameter of torch's attention, name -> those that it became).

        Those that did not change, such as the bias of the output projection, are left out.
        """
        old, new = self.old, self.new
        rows = []
        for key in ("q_proj", "k_proj", "v_proj"):
            packed = old.in_proj_weight
            weight = getattr(old, f"{key}_weight") if packed is None else packed
            cores = dict(getattr(new, key).named_parameters())
            bias = cores.pop("bias", None)
            rows.append((f"{self.name}.{key}", weight, cores))
            if bias is not None:
                rows.append((f"{self.name}.{key}", old.in_proj_bias, {"bias": bias}))
        return rows


@dataclass(frozen=True, eq=False)
class Unfolding:
    """All attentions of a model that were taken apart, and the encoders that no longer use nested tensors."""

    attentions: Sequence[UnfoldedAttention]
    encoders: Sequence[nn.TransformerEncoder]

    def put_back(self, *, all_of_them: bool) -> list[UnfoldedAttention]:
        """Put torch's attentions back, all or those of which nothing is used. Returns those that stay unfolded."""
        kept = [one for one in self.attentions if one.is_used and not all_of_them]
        for one in self.attentions:
            if one not in kept:
                put_module(one.holders, one.old.train(one.new.training))
        for encoder in self.encoders:
            encoder.use_nested_tensor = not any(isinstance(module, MultiheadAttention) for module in encoder.modules())
        return kept


@contextmanager
def unfolding_attentions(model: nn.Module, chosen: Callable[[str], bool] = lambda name: True) -> Iterator[Unfolding]:
    """Take a model's attentions apart, see `_unfold`; on an error they are put back."""
    unfolding = _unfold(model, chosen)
    try:
        yield unfolding
    except BaseException:
        unfolding.put_back(all_of_them=True)
        raise


def _unfold(model: nn.Module, chosen: Callable[[str], bool]) -> Unfolding:
    """Put a `tn.nn.MultiheadAttention` in the place of each of torch's that can be taken apart.

    Encoders that hold one no longer pass nested tensors to their layers, which only torch's own attention reads.

    Args:
        chosen: first name of an attention -> whether it is taken apart.
    """
    reasons, holders = attentions_kept(model), holders_of_modules(model)
    unfolded = []
    for module, names in names_of_modules(model).items():
        if isinstance(module, nn.MultiheadAttention) and module not in reasons and chosen(names[0]):
            unfolded.append(UnfoldedAttention(names[0], module, MultiheadAttention(module), holders[module]))
    for one in unfolded:
        carry_hooks(one.old, one.new)
        put_module(one.holders, one.new)
    encoders = [
        module
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoder)
        and module.use_nested_tensor
        and any(isinstance(inner, MultiheadAttention) for inner in module.modules())
    ]
    for encoder in encoders:
        encoder.use_nested_tensor = False
    return Unfolding(unfolded, encoders)


def fold_attentions(model: nn.Module, changed: Set[nn.Module]) -> None:
    """Put torch's attentions back where layers were exchanged and all projections are torch's again.

    The parameters of the projections become those of one module. Where a parameter is shared or a projection has
    hooks, that is impossible, and the attention stays as it is. Encoders use nested tensors again if they did at first.

    Args:
        changed: the layers that were exchanged; attentions that hold none of them stay.
    """
    holders, owners = holders_of_modules(model), owners_of_parameters(model)
    folded = []
    for module, names in names_of_modules(model).items():
        if not isinstance(module, MultiheadAttention) or module is model or changed.isdisjoint(module.children()):
            continue
        shared = any(len(owners[one]) > 1 for one in module.parameters())
        old = None if shared or any(map(has_hooks, module.children())) else packed_attention(module)
        if old is not None and not UnfoldedAttention(names[0], old, module, holders[module]).is_used:
            carry_hooks(module, old)
            put_module(holders[module], old)
            folded.append(old)
    encoders: list[Any] = [module for module in model.modules() if isinstance(module, nn.TransformerEncoder)]
    for encoder in encoders:
        inside = {*encoder.modules()}
        if not inside.isdisjoint(folded) and not any(isinstance(one, MultiheadAttention) for one in inside):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new = nn.TransformerEncoder(encoder.layers[0], 0, enable_nested_tensor=encoder.enable_nested_tensor)
            encoder.use_nested_tensor = new.use_nested_tensor


def is_attention(module: nn.Module) -> bool:
    """Whether a module is an attention, torch's or one that was taken apart."""
    return isinstance(module, nn.MultiheadAttention | MultiheadAttention)


def attentions_kept(model: nn.Module) -> Mapping[nn.Module, str]:
    """Each of torch's attentions that cannot be taken apart -> why."""
    owners = owners_of_parameters(model)
    reasons: dict[nn.Module, str] = {}
    for module in model.modules():
        if not isinstance(module, nn.MultiheadAttention):
            continue
        reason = attention_obstacle(module)
        if module is model:
            reason = "the model is one attention itself: tn.nn.MultiheadAttention.from_attention"
        for key, parameter in module._parameters.items():
            if reason is None and parameter is not None and len(owners[parameter]) > 1:
                reason = f"its {key} is shared: {', '.join(owners[parameter])}"
        if reason is not None:
            reasons[module] = reason
    return reasons
