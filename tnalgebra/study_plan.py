"""What a study is to do: which kernels, which cuts, which fractions, in which scopes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from numbers import Real
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .bipartition import parse_bipartition
from .decompositions import cut_sequence
from .errors import LayerError, RankError, RuleError, StudyError, ValuesError, explain
from .layers import kernel_labels_of, kernel_layers
from .network import Network
from .nodes import NamedTensor
from .ranks import KeepFraction, kept
from .rewriting import Rule, started
from .study_store import Row
from .valuation import norm, relative


@dataclass(frozen=True, eq=False)
class Layer:
    """A kernel of the network: where it is, its labels in torch's order, its weight in float64."""

    name: str
    labels: tuple[str, ...]
    weight: Tensor


@dataclass(frozen=True)
class Truncated:
    """A kernel after its cuts, contracted back, and what a row says of it."""

    weight: Tensor
    """float64, axes as in the layer."""
    rank: int
    """Of the last cut."""
    relative_error: float
    """||K - K~||_F / ||K||_F."""
    norm_kept: float
    """||K~||_F / ||K||_F; 1 for a kernel of zeros."""
    parameters: int
    """As the last cut's two factors."""


Identity: TypeAlias = tuple[frozenset[frozenset[str]], ...]
"""The two sides of each cut of a treatment: the order of sides and of labels makes no difference."""


@dataclass(frozen=True, eq=False)
class Treatment:
    """Cuts that follow one another on a kernel, and how they are written."""

    text: str
    cuts: tuple[Rule, ...]
    identity: Identity
    """What is done, however it is written."""

    @property
    def labels(self) -> frozenset[str]:
        return frozenset(chain.from_iterable(self.identity[0]))

    def truncated(self, layer: Layer, keep: Sequence[float]) -> Iterator[Truncated]:
        """The kernel with each of the fractions kept; the first cut's decomposition is made once for all.

        Raises:
            ValuesError: the decomposition does not converge (the layer is named).
        """
        try:
            yield from self._truncated(layer, keep)
        except ValuesError as error:
            raise ValuesError(explain(f"layer {layer.name!r} cannot be cut", cut=self.text, because=error)) from error

    def _truncated(self, layer: Layer, keep: Sequence[float]) -> Iterator[Truncated]:
        dense = norm(layer.weight)
        kernel = Network([NamedTensor("K", layer.labels)])
        first, *others = self.cuts
        whole = first.apply(kernel, {"K": layer.weight}, ranks=KeepFraction(1.0))
        (left, L), (right, R) = whole.values.items()
        for fraction in keep:
            full = L.shape[-1]
            rank = kept(KeepFraction(fraction), full, bond="r", singular_values=list)
            factors = Network(whole.network.nodes, whole.network.output)
            fit = started(factors, {left: L[..., :rank], right: R[:rank]})
            for following in others:
                fit = fit.then(following, ranks=KeepFraction(fraction))
            weight = fit.dense()
            yield Truncated(
                weight,
                rank=next(iter(fit.values.values())).shape[-1],
                relative_error=relative(weight - layer.weight, layer.weight),
                norm_kept=norm(weight) / dense if dense else 1.0,
                parameters=sum(value.numel() for value in fit.values.values()),
            )


def treatment_of(given: str | Rule) -> Treatment:
    """Read "out | in kh kw", or "A then B"; a cut stands for its text. Raises RuleError where that is no cut."""
    text = given.name if isinstance(given, Rule) else given
    if not isinstance(text, str):
        raise RuleError(explain(f"cuts holds {given!r}", fix="a text such as 'out | in kh kw', or a cut of all_cuts"))
    cuts = cut_sequence(text)
    sides = [parse_bipartition(rule.name) for rule in cuts]
    identity = tuple(frozenset((frozenset(cut.left), frozenset(cut.right))) for cut in sides)
    return Treatment(" then ".join(rule.name for rule in cuts), cuts, identity)


def fractions_of(keep: object) -> list[float]:
    """The fractions kept, each once, of one or several. Raises RankError where one is no number in (0, 1]."""
    found: list[float] = []
    for given in keep if isinstance(keep, Iterable) and not isinstance(keep, str) else (keep,):
        value = given.fraction if isinstance(given, KeepFraction) else given
        if isinstance(value, bool) or not isinstance(value, Real):
            raise RankError(explain(f"keep holds {value!r}", fix="numbers in (0, 1]"))
        fraction = float(value)
        if not 0 < fraction <= 1:
            raise RankError(explain(f"keep holds {fraction:g}, outside (0, 1]", fix="for example 0.5"))
        found.append(fraction)
    return list(dict.fromkeys(found))


Asked: TypeAlias = tuple[Treatment, float, str, tuple[Layer, ...]]
"""A row to come: what is done, the fraction kept, the scope's name, the layers it is done to."""


def asked_cuts(asked: Sequence[Asked]) -> list[str]:
    """The treatments, in order, each once."""
    return list(dict.fromkeys(treatment.text for treatment, *_ in asked))


def planned(
    model: nn.Module,
    *,
    treatments: Sequence[Treatment],
    keep: Sequence[float],
    scope: Sequence[str],
    skip: Sequence[str],
    rows: Sequence[Row] = (),
) -> tuple[list[Layer], list[Asked]]:
    """The kernels that may be cut, and the rows to come.

    Args:
        rows: those there are; a treatment that they have in another wording takes theirs.

    Raises:
        RuleError, ValuesError, LayerError, StudyError: see `layers_of` and `rows_asked`.
    """
    wordings: dict[Identity, str] = {}
    for text in dict.fromkeys(row["rewrite"] for row in rows if row["layers"]):
        wordings.setdefault(treatment_of(text).identity, text)
    treatments = [replace(each, text=wordings.get(each.identity, each.text)) for each in treatments]
    layers = layers_of(model, skip)
    return layers, rows_asked(treatments, keep, scope, layers)


def layers_of(model: nn.Module, skip: Sequence[str]) -> list[Layer]:
    """The kernels that may be cut, each weight once, under the first name it has.

    Args:
        skip: globs of layers' names, or "first" for the first convolution. A weight that two layers share is left
            alone if one of them is.

    Raises:
        ValuesError: a parameter or a buffer of the model, a kernel or not, that is not finite; an empty weight.
        LayerError: a weight that is computed from others, or not there yet.
        StudyError: a glob that matches no layer; no layer is left.
    """
    modules = kernel_layers(model)
    first = next((name for name, module in modules.items() if len(kernel_labels_of(module)) > 2), None)
    for pattern in skip:
        if pattern != "first" and not any(fnmatchcase(name, pattern) for name in modules):
            raise StudyError(_no_match(f"skip {pattern!r} matches no layer", pattern, list(modules)))
    weights = {name: _checked_weight(name, module) for name, module in modules.items()}
    _check_finite(model)
    skipped = {
        name
        for name in modules
        if any(name == first if pattern == "first" else fnmatchcase(name, pattern) for pattern in skip)
    }
    taken = {id(weights[name]) for name in skipped}
    found = []
    for name, module in modules.items():
        weight = weights[name]
        if id(weight) not in taken:
            taken.add(id(weight))
            kernel = weight.detach().to(device="cpu", dtype=torch.float64, copy=True)
            found.append(Layer(name, kernel_labels_of(module), kernel))
    if not modules:
        raise StudyError(
            explain(f"{type(model).__name__} has no kernel to cut", needed="a convolution or linear layer")
        )
    if not found:
        raise StudyError(explain("no layer is left to cut", skipped=", ".join(skip), fix="fewer layers in skip"))
    return found


def _checked_weight(name: str, module: nn.Module) -> Tensor:
    weight = module._parameters.get("weight")
    if weight is None:
        raise LayerError(
            explain(
                f"the weight of layer {name!r} is computed from other parameters (a parametrisation, weight norm)",
                fix="remove the parametrisation first: torch.nn.utils.parametrize.remove_parametrizations",
            )
        )
    if is_lazy(weight):
        raise LayerError(explain(f"layer {name!r} has no weight yet", fix="run the model once on an input"))
    if weight.numel() == 0:
        raise ValuesError(explain(f"the weight of layer {name!r} is empty", shape=tuple(weight.shape)))
    return weight


def _check_finite(model: nn.Module) -> None:
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            if is_lazy(tensor):
                continue
            # a buffer may be a mask, which holds -inf where nothing is to be seen
            bad = ~tensor.isfinite() if kind == "parameter" else tensor.isnan() | tensor.isposinf()
            if bool(bad.any()):
                raise ValuesError(
                    explain(
                        f"the {kind} {name!r} of {type(model).__name__} holds NaN or infinity",
                        where=f"{int(bad.sum())} of {tensor.numel()} elements",
                    )
                )


def rows_asked(
    treatments: Sequence[Treatment], keep: Sequence[float], scope: Sequence[str], layers: Sequence[Layer]
) -> list[Asked]:
    """The rows to come, cut by cut, so that each kernel is decomposed once a cut."""
    if not treatments or not keep or not scope:
        raise StudyError(
            explain(
                "there is nothing to do",
                cuts=len(treatments),
                keep=len(keep),
                scope=len(scope),
                fix="at least one of each: a cut such as 'out | in kh kw', a fraction such as 0.5, a scope such as all",
            )
        )
    first: dict[Identity, Treatment] = {}
    for treatment in treatments:
        first.setdefault(treatment.identity, treatment)
    fitting = {
        treatment: tuple(layer for layer in layers if frozenset(layer.labels) == treatment.labels)
        for treatment in first.values()
    }
    for treatment, chosen in fitting.items():
        if not chosen:
            raise RuleError(_fits_nothing(treatment, layers))
    names = [layer.name for layer in layers if any(layer in chosen for chosen in fitting.values())]
    for pattern in scope:
        if pattern not in ("all", "each") and not any(fnmatchcase(name, pattern) for name in names):
            raise StudyError(_no_match(f"the scope {pattern!r} matches no layer that is cut", pattern, names))
    return [
        (treatment, fraction, name, chosen)
        for treatment, there in fitting.items()
        for fraction in keep
        for name, chosen in _scopes(scope, there).items()
    ]


def _fits_nothing(treatment: Treatment, layers: Sequence[Layer]) -> str:
    """Why a cut is for none of the layers: which labels it lacks, or has too many, compared with the nearest kernel."""
    kinds = list(dict.fromkeys(layer.labels for layer in layers))
    nearest = min(kinds, key=lambda labels: len(treatment.labels.symmetric_difference(labels)))
    return explain(
        f"the cut {treatment.text!r} fits no layer: no kernel has just its labels",
        missing=" ".join(label for label in nearest if label not in treatment.labels) or None,
        unknown=" ".join(sorted(treatment.labels.difference(nearest))) or None,
        kernels="\n".join(" ".join(labels) for labels in kinds),
        fix="each label of a kernel on one side of the cut, once",
    )


def _scopes(scope: Sequence[str], layers: tuple[Layer, ...]) -> dict[str, tuple[Layer, ...]]:
    """Name of each scope -> its layers; a glob that matches none of these layers is left out."""
    found: dict[str, tuple[Layer, ...]] = {}
    for pattern in scope:
        if pattern == "all":
            found["all"] = layers
        elif pattern == "each":
            found |= {layer.name: (layer,) for layer in layers}
        elif chosen := tuple(layer for layer in layers if fnmatchcase(layer.name, pattern)):
            found[pattern] = chosen
    return found


def _no_match(fact: str, pattern: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
    return explain(
        fact,
        near=", ".join(near) or None,
        layers=", ".join(names[:8]) + (", ..." if len(names) > 8 else ""),
        fix="a layer's name, or a glob such as 'layer3.*'",
    )
