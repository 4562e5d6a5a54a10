"""A network truncated as a text says, "out kh | in kw @ 0.25": with dense kernels, and with their factors as layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tnalgebra as tn

EXAMPLES = (
    '"out kh | in kw @ 0.25", "tucker2 @ a=16 b=16", "tucker2 @ parameters 0.3" or '
    '"tucker2 or out kh | in kw @ multiply-adds 0.3"'
)
PARAMETERS, MULTIPLY_ADDS = "parameters", "multiply-adds"


@dataclass(frozen=True)
class Truncation:
    """What is done to all kernels at once.

    text: as the user writes it, in one wording.
    rewrites: a cut, or cuts one after another; a decomposition; several, of which each layer takes one.
    keep: of a cut: the fraction of the singular values that is kept.
    ranks: bond=rank, of a decomposition.
    parameters: of a decomposition: the part of the network's parameters that is kept.
    multiply_adds: of decompositions: the part of the network's multiply-adds that is kept.
    """

    text: str
    rewrites: tuple[str, ...]
    keep: float | None = None
    ranks: str | None = None
    parameters: float | None = None
    multiply_adds: float | None = None


@dataclass(frozen=True, eq=False)
class Truncated:
    """What a truncation makes of a network.

    kernels: layer -> the truncated kernel, float32.
    layers: layer -> its rank or ranks, relative error, ...
    factors: layer -> the wish for `convert` that gives the truncated kernel in factors, without a further error.
    """

    kernels: Mapping[str, Tensor]
    layers: Mapping[str, Mapping[str, Any]]
    factors: Mapping[str, Any]

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

    def factored(self, model: nn.Module, example: Sequence[int], **planning: Any) -> tuple[nn.Module, tn.model.Report]:
        """A copy of the network with the truncated kernels in factors.

        Args:
            example: shape of an input; the plans are for it, in channels_last.
            planning: `candidates` and `backward` of `convert`.
        """
        model = self.dense(model).to(memory_format=torch.channels_last)
        like = next(model.parameters())
        x = torch.zeros(*example, dtype=like.dtype, device=like.device).contiguous(memory_format=torch.channels_last)
        patterns: dict[str | type[nn.Module], Any] = dict(self.factors.items())
        patterns["*"] = None
        return tn.convert(model, patterns, example=x, allow_larger=True, **planning)


def read_truncation(text: str) -> Truncation:
    """Read "REWRITE @ SIZE".

    Raises:
        RuleError, NotationError, ...: the rewrite is none; there is no size.
        RankError: the size is none, or out of range.
    """
    rewrite, at, size = (" ".join(part.split()) for part in text.rpartition("@"))
    if not at or not rewrite or not size:
        raise tn.errors.RuleError(tn.errors.explain(f"the truncation {text!r} is no rewrite @ size", fix=EXAMPLES))
    try:
        return _read(rewrite, size)
    except tn.errors.TnalgebraError as error:
        raise type(error)(tn.errors.explain(f"the truncation {text!r} cannot be read", because=error)) from error


def _read(rewrite: str, size: str) -> Truncation:
    kind, _, number = size.rpartition(" ")
    if kind in (PARAMETERS, MULTIPLY_ADDS):
        (fraction,) = tn.studies.budgets_of(_number(number))
        if kind == PARAMETERS:
            rewrite = tn.studies.rewrite_of(rewrite, "frobenius").text
            return Truncation(f"{rewrite} @ {kind} {fraction:g}", (rewrite,), parameters=fraction)
        offered = tuple(tn.studies.rewrite_of(part, "frobenius").text for part in rewrite.split(" or "))
        text = f"{' or '.join(offered)} @ {kind} {fraction:g}"
        return Truncation(text, offered, multiply_adds=fraction)
    if "=" in size:
        rewrite = tn.studies.rewrite_of(rewrite, "frobenius").text
        if any(len(ranks) > 1 for ranks in tn.studies.sweep_of(size).values()):
            raise tn.errors.RankError(
                tn.errors.explain("a truncation has one rank for each bond", given=size, fix="one truncation for each")
            )
        return Truncation(f"{rewrite} @ {size}", (rewrite,), ranks=size)
    treatment = tn.studies.treatment_of(rewrite)
    (keep,) = tn.studies.fractions_of(_number(size))
    return Truncation(f"{treatment.text} @ {keep:g}", (treatment.text,), keep=keep)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise tn.errors.RankError(tn.errors.explain(f"the size {text!r} is no number", fix=EXAMPLES)) from None


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
    if truncation.multiply_adds is not None:
        return _of_fewer_multiply_adds(model, truncation, skip=skip, seed=seed, example=example)
    cut = truncation.keep is not None
    wishes = tn.studies.Wishes(
        treatments=[tn.studies.treatment_of(text) for text in truncation.rewrites] if cut else [],
        keep=[truncation.keep] if truncation.keep is not None else [],
        rewrites=[] if cut else [tn.studies.rewrite_of(text, "frobenius") for text in truncation.rewrites],
        sweep=tn.studies.sweep_of(truncation.ranks) if truncation.ranks is not None else {},
        budgets=[truncation.parameters] if truncation.parameters is not None else [],
        metric="frobenius",
        components="refit",
        curves="error",
        calibration=None,
        reported=None,
        scope=("all",),
        skip=skip,
    )
    ((work, rows),) = tn.studies.planned(model, wishes).works
    still = copy.deepcopy(model).cpu().eval()
    bench = tn.studies.Workbench(still, None, {"device": "cpu"}, torch.float32, seed)
    ((_, treated),) = work.treated(rows, bench)
    layers = {name: one.details for name, one in treated.items()}
    if not layers:
        raise tn.errors.RankError(
            tn.errors.explain(f"{truncation.text!r} leaves every layer as it is", fix="a smaller budget")
        )
    kernels = {name: one.weight for name, one in treated.items()}
    if cut:  # of a truncated kernel the last cut gives the factors
        last = tn.cut_sequence(truncation.rewrites[0])[-1].name
        return Truncated(kernels, layers, {name: (last, one["rank"]) for name, one in layers.items()})
    rewrite, own = wishes.rewrites[0], {layer.name: layer for layer in tn.studies.layers_of(model, skip)}
    rules = {name: rewrite.form(own[name]).rule for name in layers}  # by these, layers are fitted in groups
    ranks = {
        name: {bond: one["ranks"][bond] for bond in tn.studies.free_bonds(rules[name])} for name, one in layers.items()
    }
    plans = {name: tn.model.Planned(rules[name], ranks[name], one["parameters"]) for name, one in layers.items()}
    fits = tn.studies.fitted(rewrite, plans, own, bench)
    return Truncated(kernels, layers, {name: _wish(rules[name], ranks[name], fits[name].values) for name in layers})


def _wish(rule: tn.Rule, ranks: Mapping[str, int], cores: Mapping[str, Tensor]) -> tuple[tn.Rule, dict[str, Any]]:
    """The wish for these cores of the kernel they make: a fit that starts from them, and has nothing left to do."""
    if "cut" in rule.spec:  # which has no start, and finds them anyway
        return rule, {"ranks": ranks}
    return rule, {"ranks": ranks, "start": cores, "starts": 1, "sweeps": 0}


def _of_fewer_multiply_adds(
    model: nn.Module, truncation: Truncation, *, skip: Sequence[str], seed: int, example: Sequence[int]
) -> Truncated:
    """Rewrites and ranks of all layers chosen together, counted in the factored form."""
    assert truncation.multiply_adds is not None
    allowed = {layer.name for layer in tn.studies.layers_of(model, skip)}
    found, report = tn.convert(
        model,
        {**{name: None for name in tn.nn.kernel_layers(model) if name not in allowed}, "*": list(truncation.rewrites)},
        budget=tn.MultiplyAddsBudget(truncation.multiply_adds),
        example=example,
        inplace=False,
        allow_larger=True,
        candidates="factored",
        seed=seed,
    )
    if not report.converted:
        raise tn.errors.RankError(
            tn.errors.explain(f"{truncation.text!r} leaves every layer as it is", fix="a smaller budget")
        )
    modules = tn.nn.kernel_layers(model)
    kernels, layers, factors = {}, {}, {}
    for name in report.converted:
        row, layer = report[name], found.get_submodule(name)
        assert isinstance(layer, tn.nn.KernelLayer)
        labels = tn.nn.kernel_labels_of(modules[name])
        rewrite = next(text for text in truncation.rewrites if _is(text, row.rule, labels))
        rule = tn.decompositions.resolve(rewrite, labels)
        cores = {key: core.detach() for key, core in layer.named_parameters() if key != "bias"}
        kernels[name] = layer.dense_weight().detach().float()
        layers[name] = {
            "rule": row.rule,
            "ranks": dict(row.ranks),
            "relative_error": row.relative_error,
            "parameters": sum(core.numel() for core in cores.values()),
        }
        factors[name] = _wish(rule, {bond: row.ranks[bond] for bond in tn.studies.free_bonds(rule)}, cores)
    return Truncated(kernels, layers, factors)


def _is(rewrite: str, rule: str | None, labels: tuple[str, ...]) -> bool:
    try:
        return tn.decompositions.resolve(rewrite, labels).name == rule
    except tn.errors.TnalgebraError:
        return False
