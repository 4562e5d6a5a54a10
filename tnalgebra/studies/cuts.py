"""Cuts of kernels to fractions of their singular values: the study of Singh, Jahromi and Orus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from numbers import Real
from typing import TypeAlias

from ..decompositions import cut_sequence
from ..errors import RankError, RuleError, ValuesError, explain
from ..fitting import KeepFraction, kept
from ..network import NamedTensor, Network, parse_bipartition
from ..rewriting import Rule, started
from ..tensors import norm, relative
from .kernels import Asked, Layer, Treated, Workbench

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

    def treated(self, todo: Sequence[Asked], bench: Workbench) -> Iterator[tuple[Asked, dict[str, Treated]]]:
        """For each row the kernels it tests; a kernel's first decomposition is made once for all fractions.

        Raises:
            ValuesError: a decomposition does not converge (the layer is named).
        """
        wanted: dict[str, tuple[Layer, list[float]]] = {}
        for asked in todo:
            for layer in asked.layers:
                fractions = wanted.setdefault(layer.name, (layer, []))[1]
                if asked.key.keep is not None and asked.key.keep not in fractions:
                    fractions.append(asked.key.keep)
        reported = any(asked.key.reported for asked in todo)
        if reported:
            bench.metrics(wanted)  # of all layers in one pass over the images
        kernels = {
            (name, fraction): _finished(layer, truncated, bench, reported=reported)
            for name, (layer, fractions) in wanted.items()
            for fraction, truncated in zip(fractions, self._truncated(layer, fractions), strict=True)
        }
        for asked in todo:
            assert asked.key.keep is not None
            yield asked, {layer.name: kernels[layer.name, asked.key.keep] for layer in asked.layers}

    def _truncated(self, layer: Layer, keep: Sequence[float]) -> Iterator[Treated]:
        try:
            yield from self._each(layer, keep)
        except ValuesError as error:
            raise ValuesError(explain(f"layer {layer.name!r} cannot be cut", cut=self.text, because=error)) from error

    def _each(self, layer: Layer, keep: Sequence[float]) -> Iterator[Treated]:
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
            details = {
                "rank": next(iter(fit.values.values())).shape[-1],
                "values": _largest_rank(layer, self.identity[-1]),
                "relative_error": relative(weight - layer.weight, layer.weight),
                "norm_kept": norm(weight) / dense if dense else 1.0,
                "parameters": sum(value.numel() for value in fit.values.values()),
            }
            yield Treated(weight, details)


def _largest_rank(layer: Layer, sides: frozenset[frozenset[str]]) -> int:
    """The number of singular values of a kernel across a cut: the smaller side's size."""
    sizes = dict(zip(layer.labels, layer.weight.shape, strict=True))
    return min(prod(sizes[label] for label in side) for side in sides)


def _finished(layer: Layer, truncated: Treated, bench: Workbench, *, reported: bool) -> Treated:
    """In the type it is tested in; with its error in the input metric where that is reported."""
    details = dict(truncated.details)
    if reported:
        details["output_error"] = bench.output_error(layer, truncated.weight)
    return Treated(truncated.weight.to(bench.dtype), details)


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
