"""A network truncated as a text says, "out kh | in kw @ 0.25": with dense kernels, and with their factors as layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import tnalgebra as tn

EXAMPLES = (
    '"out kh | in kw @ 0.25", "tucker2 @ a=16 b=16", "tucker2 @ parameters 0.3" or '
    '"tucker2 or out kh | in kw @ multiply-adds 0.3"'
)

KINDS: dict[str, Any] = {
    "": tn.KeepFraction,
    "parameters": tn.ParameterBudget,
    "multiply-adds": tn.MultiplyAddsBudget,
}

Size: TypeAlias = tn.KeepFraction | tn.ParameterBudget | tn.MultiplyAddsBudget | dict[str, int]
"""The fraction of the singular values of a cut that is kept; the part of the network's parameters or multiply-adds that
is kept; bond -> rank."""


@dataclass(frozen=True)
class Truncation:
    """What is done to all kernels at once.

    text: as the user writes it, in one wording.
    rewrites: a cut, or cuts one after another; a decomposition; several, of which each layer takes one.
    """

    text: str
    rewrites: tuple[str, ...]
    size: Size


@dataclass(frozen=True, eq=False)
class Truncated:
    """What a truncation makes of a network.

    kernels: layer -> the truncated kernel.
    layers: layer -> its rank or ranks, relative error, ...
    factors: layer -> the pattern that gives the truncated kernel in factors, without a further error.
    """

    kernels: Mapping[str, Tensor]
    layers: Mapping[str, Mapping[str, Any]]
    factors: dict[str | type[nn.Module], Any]

    @property
    def mean_squared_relative_error(self) -> float:
        """Mean of (||K - K~||_F / ||K||_F)^2 over the layers that were truncated."""
        return math.fsum(layer["relative_error"] ** 2 for layer in self.layers.values()) / len(self.layers)

    def dense(self, model: nn.Module) -> nn.Module:
        """A copy of the network that has the truncated kernels."""
        model = copy.deepcopy(model)
        modules = tn.nn.kernel_layers(model)
        with torch.no_grad():
            for name, kernel in self.kernels.items():
                modules[name].weight.copy_(kernel)
        return model

    def factored(
        self, model: nn.Module, example: Sequence[int], **planning: Any
    ) -> tuple[nn.Module, tn.model.ConversionReport]:
        """A copy of the network with the truncated kernels in factors.

        Args:
            example: shape of an input; the plans are for it, in channels_last.
            planning: `candidates` and `backward` of `convert`.
        """
        model = self.dense(model).to(memory_format=torch.channels_last)
        like = next(model.parameters())
        x = torch.zeros(*example, dtype=like.dtype, device=like.device).contiguous(memory_format=torch.channels_last)
        return tn.convert(model, {**self.factors, "*": None}, example=x, allow_larger=True, **planning)


def read_truncation(text: str) -> Truncation:
    """Read "REWRITE @ SIZE".

    Raises:
        RuleError, NotationError, ...: the rewrite is false; the size is missing.
        RankError: the size is false, or out of range.
    """
    rewrite, at, size = (" ".join(part.split()) for part in text.rpartition("@"))
    if not at or not rewrite or not size:
        raise tn.errors.RuleError(tn.errors.explain(f"the truncation {text!r} is not REWRITE @ SIZE", fix=EXAMPLES))
    try:
        read = _read_size(size)
        several = isinstance(read, tn.MultiplyAddsBudget)
        rewrites = [tn.studies.Rewrite.read(part) for part in (rewrite.split(" or ") if several else [rewrite])]
        if isinstance(read, tn.KeepFraction) and not rewrites[0].cuts:
            fact = f"{rewrite!r} is not a cut, which {size} of the singular values would be kept of"
            raise tn.errors.RuleError(tn.errors.explain(fact, fix=EXAMPLES))
    except tn.errors.TnalgebraError as error:
        raise type(error)(tn.errors.explain(f"the truncation {text!r} cannot be read", because=error)) from error
    texts = tuple(one.text for one in rewrites)
    shown = size if isinstance(read, dict) else f"{size.rpartition(' ')[0]} {read.fraction:g}".strip()
    return Truncation(f"{' or '.join(texts)} @ {shown}", texts, read)


def _read_size(size: str) -> Size:
    if "=" in size:
        points = tn.studies.read_ranks([size])
        if len(points) > 1:
            fact = "a truncation has one rank for each bond"
            raise tn.errors.RankError(tn.errors.explain(fact, given=size, fix="one truncation for each"))
        return points[0]
    kind, _, number = size.rpartition(" ")
    kinds: dict[str, Any] = {
        "": tn.KeepFraction,
        "parameters": tn.ParameterBudget,
        "multiply-adds": tn.MultiplyAddsBudget,
    }
    try:
        kept, fraction = kinds[kind], float(number)
    except (KeyError, ValueError):
        raise tn.errors.RankError(tn.errors.explain(f"{size!r} is not a size", fix=EXAMPLES)) from None
    read: Size = kept(fraction)
    return read


def truncate(
    model: nn.Module, truncation: Truncation, *, skip: Sequence[str], seed: int, example: Sequence[int]
) -> Truncated:
    """Truncate the kernels of a network, which stays as it is: as `tnalgebra.study` does, in the Frobenius norm.

    Args:
        skip: layers left alone, as in `study`.
        seed: of fits.
        example: shape of an input, at which multiply-adds are counted.

    Raises:
        RuleError: the rewrite is for none of the layers.
        RankError: a bond has no rank, a budget cannot be met.
    """
    kernels: dict[str, Tensor] = {}
    layers: dict[str, Mapping[str, Any]] = {}
    factors: dict[str | type[nn.Module], Any] = {}
    if isinstance(truncation.size, tn.MultiplyAddsBudget):
        found = _share_multiply_adds(model, truncation, skip=skip, seed=seed, example=example)
        for name, (rule, kernel, details, cores) in found.items():
            kernels[name], layers[name], factors[name] = kernel, details, _pattern(rule, details["ranks"], cores)
    else:
        (rewrite,) = truncation.rewrites
        for name, one in tn.studies.compress_kernels(model, rewrite, truncation.size, skip=skip, seed=seed).items():
            kernels[name], layers[name] = one.weight.float(), one.details
            ranks = one.details.get("ranks") or dict.fromkeys(one.rule.ranks, one.details["rank"])
            factors[name] = _pattern(one.rule, ranks, one.fit.values)
    if not kernels:
        fact = f"{truncation.text!r} leaves every layer as it is"
        raise tn.errors.RankError(tn.errors.explain(fact, fix="a smaller budget"))
    return Truncated(kernels, layers, factors)


def _pattern(rule: tn.Rule, ranks: Mapping[str, int], cores: Mapping[str, Tensor]) -> tuple[Any, dict[str, Any]]:
    """The pattern for these cores of the kernel they make: a fit that starts from them, and has nothing left to do."""
    free = {bond: ranks[bond] for bond in tn.studies.free_bonds(rule)}
    if "cut" in rule.spec:  # which has no start, and finds them anyway
        return rule.spec["cut"], free
    return rule, {"size": free, "start": cores, "starts": 1, "sweeps": 0}


def _share_multiply_adds(
    model: nn.Module, truncation: Truncation, *, skip: Sequence[str], seed: int, example: Sequence[int]
) -> dict[str, tuple[tn.Rule, Tensor, dict[str, Any], dict[str, Tensor]]]:
    """Layer -> rule, kernel, details, cores: rewrites and ranks of all layers chosen together, in the factored form."""
    assert isinstance(truncation.size, tn.MultiplyAddsBudget)
    modules, allowed = tn.nn.kernel_layers(model), {layer.name for layer in tn.studies.layers_of(model, skip)}
    converted, report = tn.convert(
        model,
        {**{name: None for name in modules if name not in allowed}, "*": list(truncation.rewrites)},
        size=truncation.size,
        example=example,
        inplace=False,
        allow_larger=True,
        candidates="factored",
        seed=seed,
    )
    found = {}
    for name in report.converted:
        row, layer = report[name], converted.get_submodule(name)
        assert isinstance(layer, tn.nn.KernelLayer)
        cores = {key: core.detach() for key, core in layer.named_parameters() if key != "bias"}
        details = {
            "rule": row.rule,
            "ranks": dict(row.ranks),
            "relative_error": row.relative_error,
            "parameters": sum(core.numel() for core in cores.values()),
        }
        rules = (_rule(text, tn.nn.kernel_labels_of(modules[name])) for text in truncation.rewrites)
        rule = next(rule for rule in rules if rule is not None and rule.name == row.rule)
        found[name] = (rule, layer.dense_weight().detach().float(), details, cores)
    return found


def _rule(rewrite: str, labels: tuple[str, ...]) -> tn.Rule | None:
    try:
        return tn.decompositions.read_rewrite(rewrite, labels)
    except tn.errors.TnalgebraError:  # not for these labels
        return None
