"""A network truncated as a text says, "out kh | in kw @ keep 0.25": with dense kernels, or with factors as layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tnalgebra as tn

EXAMPLES = (
    '"out kh | in kw @ keep 0.25", "tucker2 @ a=16 b=16", "tucker2 @ parameters 0.3" or '
    '"tucker2 or out kh | in kw @ multiply-adds 0.3"'
)


@dataclass(frozen=True)
class Truncation:
    """How all kernels are truncated at once.

    text: its name in rows.
    rewrites: a cut, or cuts one after another; a decomposition; or several rewrites, of which each layer gets one.
    size: how much is kept.
    """

    text: str
    rewrites: tuple[str, ...]
    size: tn.fitting.Size


@dataclass(frozen=True, eq=False)
class Truncated:
    """The truncated kernels of a network.

    kernels: layer -> the truncated kernel.
    layers: layer -> its rank or ranks, relative error, and so on.
    factors: layer -> the pattern with which `convert` makes the truncated kernel from its factors.
    """

    kernels: Mapping[str, Tensor]
    layers: Mapping[str, Mapping[str, Any]]
    factors: dict[str | type[nn.Module], Any]

    @property
    def mean_squared_relative_error(self) -> float:
        """The mean of (||K - K~||_F / ||K||_F)^2 over the truncated layers."""
        return math.fsum(layer["relative_error"] ** 2 for layer in self.layers.values()) / len(self.layers)

    def dense(self, model: nn.Module) -> nn.Module:
        """A copy of the network with the truncated kernels."""
        model = copy.deepcopy(model)
        modules = tn.nn.kernel_layers(model)
        with torch.no_grad():
            for name, kernel in self.kernels.items():
                modules[name].weight.copy_(kernel)
        return model

    def factored(
        self, model: nn.Module, example: Sequence[int], **planning: Any
    ) -> tuple[nn.Module, tn.model.ConversionReport]:
        """A copy of the network in which decomposed layers hold the factors of the truncated kernels.

        Args:
            example: shape of an input, for which the layers are planned, in channels_last.
            planning: `candidates` and `backward` of `convert`.
        """
        model = self.dense(model).to(memory_format=torch.channels_last)
        like = next(model.parameters())
        x = torch.zeros(*example, dtype=like.dtype, device=like.device).contiguous(memory_format=torch.channels_last)
        return tn.convert(model, {**self.factors, "*": None}, example=x, allow_larger=True, **planning)


def read_truncation(text: str) -> Truncation:
    """Read "REWRITE @ SIZE".

    Raises:
        RuleError, NotationError, ...: the rewrite cannot be read, or the size is missing.
        RankError: the size cannot be read, or does not suit the rewrite.
    """
    rewrite, at, size = (" ".join(part.split()) for part in text.rpartition("@"))
    if not at or not rewrite or not size:
        raise tn.errors.RuleError(f"the truncation {text!r} is not REWRITE @ SIZE", fix=EXAMPLES)
    try:
        read = tn.fitting.read_size(size)
        several = isinstance(read, tn.MultiplyAddsBudget)
        rewrites = [tn.studies.Rewrite.read(part) for part in (rewrite.split(" or ") if several else [rewrite])]
        for one in rewrites:
            _check_exists(one)
    except tn.errors.TnalgebraError as error:
        raise type(error)(f"the truncation {text!r} cannot be read", because=error, fix=EXAMPLES) from error
    texts = tuple(one.text for one in rewrites)
    return Truncation(f"{' or '.join(texts)} @ {tn.fitting.size_text(read)}", texts, read)


def _check_exists(rewrite: tn.studies.Rewrite) -> None:
    """Raise RuleError if a rewrite exists neither for linear layers nor for convolutions."""
    if not rewrite.cuts:
        with suppress(*tn.studies.NO_FORM):
            tn.decompositions.read_rewrite(rewrite.source, tn.networks.KERNEL_LABELS[2])
            return
        tn.decompositions.read_rewrite(rewrite.source, tn.networks.KERNEL_LABELS[4])


def check_truncation(model: nn.Module, truncation: Truncation, *, skip: Sequence[str]) -> None:
    """Raise what `truncate` raises for this network before it fits anything; no weight is looked at."""
    for rewrite in truncation.rewrites:
        if isinstance(truncation.size, tn.MultiplyAddsBudget):
            tn.studies.Rewrite.read(rewrite).suited(tn.studies.layers_of(model, skip))
        else:
            tn.studies.check_compressible(model, rewrite, truncation.size, skip=skip)


def truncate(
    model: nn.Module, truncation: Truncation, *, skip: Sequence[str], seed: int, example: Sequence[int]
) -> Truncated:
    """Truncate the kernels of a network as `tnalgebra.study` does, in the Frobenius norm. The network stays as it is.

    Args:
        skip: layers left alone, as in `study`.
        seed: of fits.
        example: shape of an input, for which multiply-adds are counted.

    Raises:
        RuleError: the rewrite exists for none of the layers.
        RankError: the size does not suit the rewrite, or a budget cannot be met.
    """
    kernels: dict[str, Tensor] = {}
    layers: dict[str, Mapping[str, Any]] = {}
    factors: dict[str | type[nn.Module], Any] = {}
    if isinstance(truncation.size, tn.MultiplyAddsBudget):
        for name, (rule, fit) in _share_multiply_adds(model, truncation, skip, seed=seed, example=example).items():
            ranks = dict(fit.trace.steps[-1].change.ranks)
            layers[name] = {"rule": rule.name, "ranks": ranks, "relative_error": fit.relative_error}
            layers[name] = {**layers[name], "parameters": fit.parameters}
            kernels[name], factors[name] = fit.dense().float(), _pattern(rule, ranks, fit.values)
    else:
        (rewrite,) = truncation.rewrites
        for name, one in tn.studies.compress_kernels(model, rewrite, truncation.size, skip=skip, seed=seed).items():
            kernels[name], layers[name] = one.weight.float(), one.details
            ranks = one.details.get("ranks") or dict.fromkeys(one.rule.ranks, one.details["rank"])
            factors[name] = _pattern(one.rule, ranks, one.fit.values)
    if not kernels:
        raise tn.errors.RankError(f"{truncation.text!r} leaves every layer as it is", fix="a smaller budget")
    return Truncated(kernels, layers, factors)


def _pattern(rule: tn.Rule, ranks: Mapping[str, int], cores: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """The pattern that makes these cores of their kernel: a fit that starts from them and is finished already."""
    free = {bond: ranks[bond] for bond in rule.ranks}
    if "cut" in rule.spec:  # whose cores follow from the kernel alone
        return rule.spec["cut"], free
    return rule, {"size": free, "start": cores, "starts": 1, "sweeps": 0}


def _share_multiply_adds(
    model: nn.Module, truncation: Truncation, skip: Sequence[str], *, seed: int, example: Sequence[int]
) -> dict[str, tuple[tn.Rule, tn.Fit]]:
    """Layer -> rule and fit. The rules and ranks of all layers are chosen together; plans are in factored form."""
    rewrites = [tn.studies.Rewrite.read(text) for text in truncation.rewrites]
    offered: dict[str, list[tn.Rule]] = {}
    for layer in tn.studies.layers_of(model, skip):
        for rewrite in rewrites:
            with suppress(*tn.studies.NO_FORM):
                offered.setdefault(layer.name, []).append(rewrite.form(layer).rule)
    (plan,) = tn.model.plan_budget(
        model, offered, [truncation.size], example=tuple(example), candidates="factored", seed=seed, progress=False
    )
    return {name: (plan[name].rule, fit) for name, fit in tn.model.fit_planned(model, plan, seed=seed).items()}
