"""What a study is to do: which kernels, which cuts, which fractions, in which scopes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .decompositions import cut_sequence
from .errors import LayerError, RuleError, StudyError, ValuesError, explain
from .layers import kernel_labels_of, kernel_layers
from .network import Network
from .nodes import NamedTensor
from .ranks import KeepFraction, kept
from .rewriting import Fit, Rule, Trace


@dataclass(frozen=True)
class Layer:
    """A kernel of the network: where it is, its labels in torch's order, its weight in float64."""

    name: str
    labels: tuple[str, ...]
    weight: Tensor


@dataclass(frozen=True)
class Truncated:
    """A kernel after its cuts: contracted back (float64), the rank of the last one, parameters as its two factors."""

    weight: Tensor
    rank: int
    parameters: int


@dataclass(frozen=True)
class Treatment:
    """Cuts that follow one another on a kernel, and how they are written."""

    text: str
    cuts: tuple[Rule, ...]
    labels: frozenset[str]

    def truncated(self, layer: Layer, keep: Sequence[float]) -> Iterator[Truncated]:
        """The kernel with each of the fractions kept; the first cut's decomposition is made once for all."""
        kernel = Network([NamedTensor("K", layer.labels)])
        first, *others = self.cuts
        whole = first.apply(kernel, {"K": layer.weight}, ranks=KeepFraction(1.0))
        (left, L), (right, R) = whole.values.items()
        for fraction in keep:
            full = L.shape[-1]
            rank = kept(KeepFraction(fraction), full, bond="r", singular_values=list)
            network = Network(whole.network.nodes, whole.network.output)
            fit = Fit(network, {left: L[..., :rank], right: R[:rank]}, Trace(network, ()))
            for following in others:
                fit = fit.then(following, ranks=KeepFraction(fraction))
            yield Truncated(fit.dense(), _bond(fit), sum(value.numel() for value in fit.values.values()))


def _bond(fit: Fit) -> int:
    """The rank of a kernel that is two factors."""
    return next(iter(fit.values.values())).shape[-1]


def treatment_of(text: str) -> Treatment:
    cuts = cut_sequence(text)
    labels = [frozenset(rule.name.replace("|", " ").split()) for rule in cuts]
    for rule, found in zip(cuts, labels, strict=True):
        if found != labels[0]:
            raise RuleError(
                explain("cuts that follow one another hold different labels", first=cuts[0].name, other=rule.name)
            )
    return Treatment(" then ".join(rule.name for rule in cuts), cuts, labels[0])


Asked: TypeAlias = tuple[Treatment, float, str, tuple[Layer, ...]]
"""A row to come: what is done, the fraction kept, the scope's name, the layers it is done to."""


def asked_cuts(asked: Sequence[Asked]) -> list[str]:
    """The treatments, in order, each once."""
    return list(dict.fromkeys(treatment.text for treatment, *_ in asked))


def layers_of(model: nn.Module, skip: Sequence[str]) -> list[Layer]:
    """The kernels that may be cut. Raises ValuesError for one that is not finite, LayerError for a computed one."""
    found, seen = [], set()
    first_convolution = True
    for name, module in kernel_layers(model).items():
        labels = kernel_labels_of(module)
        is_first = first_convolution and len(labels) > 2
        first_convolution = first_convolution and not is_first
        weight = module._parameters.get("weight")
        if weight is None:
            raise LayerError(
                explain(
                    f"the weight of layer {name!r} is computed from other parameters (a parametrisation, weight norm)",
                    fix="remove the parametrisation first: torch.nn.utils.parametrize.remove_parametrizations",
                )
            )
        if not bool(weight.isfinite().all()):
            count = int((~weight.isfinite()).sum())
            raise ValuesError(
                explain(
                    f"the weight of layer {name!r} holds NaN or infinity", where=f"{count} of {weight.numel()} elements"
                )
            )
        skipped = any(is_first if pattern == "first" else fnmatchcase(name, pattern) for pattern in skip)
        if not skipped and id(weight) not in seen:
            seen.add(id(weight))
            found.append(Layer(name, labels, weight.detach().to(device="cpu", dtype=torch.float64).clone()))
    return found


def rows_asked(
    treatments: Sequence[Treatment], keep: Sequence[float], scope: Sequence[str], layers: Sequence[Layer]
) -> list[Asked]:
    """The rows to come, cut by cut, so that each kernel is decomposed once a cut."""
    if not treatments or not keep or not scope:
        raise StudyError(explain("there is nothing to do", cuts=len(treatments), keep=len(keep), scope=len(scope)))
    for fraction in keep:
        KeepFraction(fraction)
    asked: list[Asked] = []
    for treatment in treatments:
        fitting = [layer for layer in layers if frozenset(layer.labels) == treatment.labels]
        if not fitting:
            kinds = "\n".join(sorted({" ".join(layer.labels) for layer in layers}))
            raise RuleError(
                explain(
                    f"the cut {treatment.text!r} fits no layer: no kernel has just its labels",
                    labels_of_kernels=kinds or "no layers left (skip)",
                    fix="each label of a kernel on one side of the cut",
                )
            )
        for fraction in dict.fromkeys(keep):
            for name, chosen in _scopes(scope, fitting):
                asked.append((treatment, fraction, name, chosen))
    return asked


def _scopes(scope: Sequence[str], layers: Sequence[Layer]) -> Iterator[tuple[str, tuple[Layer, ...]]]:
    for pattern in dict.fromkeys(scope):
        if pattern == "all":
            yield "all", tuple(layers)
        elif pattern == "each":
            yield from ((layer.name, (layer,)) for layer in layers)
        else:
            chosen = tuple(layer for layer in layers if fnmatchcase(layer.name, pattern))
            if not chosen:
                near = difflib.get_close_matches(pattern, [layer.name for layer in layers], n=3, cutoff=0.3)
                raise StudyError(
                    explain(
                        f"the scope {pattern!r} matches no layer that is cut",
                        near=", ".join(near) or None,
                        layers=", ".join(layer.name for layer in layers[:8]) + (", ..." if len(layers) > 8 else ""),
                        fix="all, each, or a glob; layers that are skipped are not there",
                    )
                )
            yield pattern, chosen
