"""Decompositions of one kernel side by side, at one size."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..compiler import Candidates
from ..decompositions import rules
from ..errors import CompileError, LayerError, RankError, RuleError, SizeError, ValuesError
from ..fitting import Metric, MultiplyAddsBudget, ParameterBudget, Settings, Size, TimeBudget, read_size
from ..networks import KERNEL_LABELS, Network, kernel_multiply_adds, labels_of
from ..nn import AnyLayer, KernelLayer, check_dense, kernel_labels_of, nominal_shape, own_weight
from ..rewriting import Fit, Rule
from ..tensors import as_tensor
from .budget import Treatment, error_of, least_error, ranks_of
from .comparison import Compared, Comparison
from .example import Example, read_example
from .modes import evaluating
from .new_layers import LayerMaker
from .progress import track
from .surgery import find_sites, record_calls
from .timing import time_in_turns

_log = logging.getLogger(__name__)

_STEPS = 8
"""Sizes that are tried to meet a budget of multiply-adds."""

_NEAR = 0.97
"""Part of a budget of multiply-adds that is near enough to it."""


def compare(
    weight: Any,
    rewrites: str | Rule | Fit | Sequence[str | Rule | Fit],
    size: object,
    *,
    labels: str | Sequence[str] | None = None,
    metric: Metric | None = None,
    example: Example | None = None,
    candidates: Candidates = "factored",
    time: bool = False,
    seed: int = 0,
    starts: int = Settings.starts,
    progress: bool = True,
) -> Comparison:
    """Fit several decompositions to one kernel, each at the same size.

    Args:
        weight: a convolution, transposed convolution or linear layer; or a kernel alone, its first two axes channels.
        rewrites: names, cuts, rules, notation, and fits, which are rows as they are; or "all": every decomposition of
            the catalogue that exists for these labels, which may also be one of a list.
        size: such as 8, "keep 0.5", "error 0.01", "parameters 0.25", or "multiply-adds 0.5": of the layer's
            multiply-adds on the example, of a kernel's at one output position.
        labels: of the kernel's axes; by default those of torch's kernels with that number of axes.
        metric: the norm to fit in, and to order by.
        example: an input of the layer, or its shape, for which multiply-adds are counted, plans are made and times are
            measured; by default 16 inputs with 32 x 32 positions (1-d: 256, 3-d: 16 each), 256 rows of a linear layer,
            and 256 tokens of an embedding.
        candidates: of the plans: "factored", or "all" where the layer may also rebuild its dense kernel.
        time: measure the forward pass of each layer, and of the dense one: the median of turns that alternate. Without
            it, plans are predicted and nothing is measured.
        seed, starts: of the fits.
        progress: show a bar, where stderr is a terminal.

    Returns:
        A table of the fits, the one with the least error first. A decomposition that cannot be made at this size comes
        last with the reason. Decompositions that are the same network at these ranks are named below the table.

    Raises:
        RankError: the size cannot be read, or is one of multiply-adds of an embedding, which has none.
        RuleError: a rewrite that cannot be read; the same name twice; a kernel whose labels are unknown; `example` or
            `time` for a kernel alone.
        LayerError: a module without a kernel, or an example that does not fit it.
        ValuesError: `weight` is neither a layer nor a kernel; the kernel is empty, complex or not finite.

    Example:
        >>> print(tn.compare(conv, ["cp", "tucker2", "out kh | in kw"], "parameters 0.25"))
    """
    wanted = read_size(size)
    if isinstance(wanted, TimeBudget):
        fact = f"{str(wanted)!r} is a size of a whole model"
        raise RankError(fact, fix="'multiply-adds 0.5', and time=True for the time of each layer")
    subject = _Subject.of(weight, labels, example, candidates, time=time)
    if isinstance(wanted, MultiplyAddsBudget) and not subject.multiply_adds:
        raise RankError("an embedding reads rows and multiplies nothing", fix="a size such as 'parameters 0.3'")
    treatments = _read_rewrites(rewrites, subject.labels)
    rows = []
    layers: dict[str, nn.Module] = {}
    choices: dict[str, Any] = {"metric": metric, "seed": seed, "starts": starts}
    for name, treatment in track(treatments.items(), "comparing", shown=progress):
        try:
            fit = _fit(treatment, wanted, subject, choices)
            layer, count = subject.decompose(fit)
        except (CompileError, LayerError, RankError, RuleError, SizeError) as error:
            rows.append(Compared(name, None, str(error)))
        else:
            rows.append(Compared(name, fit, multiply_adds=count))
            layers |= {name: layer} if layer is not None else {}
        _log.info("%s: %s", name, rows[-1].reason or f"error {error_of(fit):.4f}")
    seconds: Mapping[str | None, float] = subject.time(layers) if time else {}
    rows = [Compared(row.name, row.fit, row.reason, row.multiply_adds, seconds.get(row.name)) for row in _sorted(rows)]
    return Comparison(tuple(rows), subject.kernel.numel(), subject.multiply_adds, seconds.get(None))


def _sorted(rows: Sequence[Compared]) -> Iterator[Compared]:
    """The least error first, of equal errors the fewest parameters; what could not be made comes last."""
    left = {row.name: row.fit for row in rows if row.fit is not None}
    places = {row.name: row for row in rows}
    while left:
        best = least_error([*left], lambda name: error_of(left[name]), lambda name: left[name].parameters)
        del left[best]
        yield places[best]
    yield from (row for row in rows if row.fit is None)


def _read_rewrites(rewrites: Any, labels: tuple[str, ...]) -> dict[str, Treatment]:
    """Name in the table -> what is applied."""
    if not isinstance(rewrites, str | Rule | Fit | Iterable):
        raise RuleError(f"the rewrites are a {type(rewrites).__name__}", fix="a list, such as ['cp', 'tucker2']")
    listed = [rewrites] if isinstance(rewrites, str | Rule | Fit) else [*rewrites]
    if not listed:
        raise RuleError("no rewrite is given to compare", fix="a list, such as ['cp', 'tucker2'], or 'all'")
    chosen = [one for one in listed if not (isinstance(one, str) and one.strip() == "all")]
    treatments: dict[str, Treatment] = {}
    for one in chosen:
        treatment = Treatment.read(one, labels, None, {})
        name = one if isinstance(one, str) else treatment.name if isinstance(one, Rule) else f"{treatment.name} (fit)"
        if name in treatments:
            raise RuleError(f"{name!r} is compared twice", fix="each once, or rules with names of their own")
        treatments[name] = treatment
    if len(chosen) < len(listed):
        for rule in rules(labels).decompositions:
            treatments.setdefault(rule.name, Treatment.read(rule, labels, None, {}))
    return treatments


def _fit(treatment: Treatment, size: Size, subject: _Subject, choices: Mapping[str, Any]) -> Fit:
    """The fit at a size; under a budget of multiply-adds, of the largest fraction of the parameters that meets it."""
    if treatment.rule is None:
        (fit,) = treatment.apply([subject.kernel], None, metrics=None)
        return fit
    rule, kernel = treatment.rule, subject.kernel
    if not rule.ranks and not isinstance(size, ParameterBudget):
        fit = rule.apply(kernel, None, **choices)
    elif not isinstance(size, MultiplyAddsBudget):
        fit = rule.apply(kernel, size, **choices)
    else:
        return rule.apply(kernel, _ranks_within(rule, size, subject, choices), **choices)
    if isinstance(size, MultiplyAddsBudget):
        _check_count(size, subject, subject.count(fit.network, fit.constants))
    return fit


def _check_count(size: MultiplyAddsBudget, subject: _Subject, least: int) -> None:
    allowed = math.floor(size.fraction * subject.multiply_adds)
    if least > allowed:
        fix = f"'multiply-adds {math.ceil(1e3 * least / subject.multiply_adds) / 1e3:g}'"
        fact = f"{str(size)!r} allows {allowed:,} multiply-adds, and the smallest rank needs {least:,}"
        raise RankError(fact, fix=fix if least <= subject.multiply_adds else None)


def _ranks_within(
    rule: Rule, size: MultiplyAddsBudget, subject: _Subject, choices: Mapping[str, Any]
) -> Mapping[str, int]:
    """The ranks of the largest part of the parameters that meets a budget of multiply-adds, by regula falsi."""
    limit = size.fraction * subject.multiply_adds
    outline = rule.outline(subject.kernel, metric=choices["metric"])

    def ranks_and_count(wanted: Size) -> tuple[Mapping[str, int], int]:
        if outline is None:  # ranks alone: without sweeps
            fit = rule.apply(subject.kernel, wanted, **{**choices, "starts": 1, "sweeps": 0})
            return ranks_of(fit), subject.count(fit.network, fit.constants)
        ranks = outline.ranks(wanted)
        return ranks, subject.count(outline.network(ranks), outline.constants)

    low, high, fraction = 0.0, 1.0, size.fraction
    best: Mapping[str, int] | None = None
    for _ in range(_STEPS):
        try:
            ranks, count = ranks_and_count(ParameterBudget(fraction))
        except RankError:  # fewer parameters than rank 1 has
            low, fraction = fraction, (fraction + high) / 2
            continue
        if count <= limit:
            best, low = ranks, fraction
            if count >= _NEAR * limit or fraction == 1:
                break
        else:
            high = fraction
        guess = fraction * (1 + _NEAR) / 2 * limit / count
        fraction = guess if low < guess < high else 1.0 if guess >= high == 1 else (low + high) / 2
    if best is None:
        best, count = ranks_and_count(dict.fromkeys(rule.ranks, 1))
        _check_count(size, subject, count)
    return best


@dataclass(frozen=True, eq=False)
class _Subject:
    """What is decomposed: a kernel, alone or of a layer that is run on an example.

    maker: makes the decomposed layers; None for a kernel alone.
    arguments: of the layer's call.
    multiply_adds: of the dense layer, or of the kernel at one output position.
    """

    kernel: Tensor
    labels: tuple[str, ...]
    multiply_adds: int
    module: nn.Module | None = None
    maker: LayerMaker | None = None
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    @classmethod
    def of(cls, weight: Any, labels: Any, example: Example | None, candidates: Candidates, *, time: bool) -> _Subject:
        if not isinstance(weight, nn.Module):
            if example is not None or time:
                fact = f"a kernel alone does not run, so that {'time' if time else 'example'} has no meaning"
                raise RuleError(fact, fix="compare the layer, such as torch.nn.Conv2d")
            try:
                kernel = as_tensor(weight).detach()
            except (TypeError, ValueError, RuntimeError) as error:
                fact = f"a {type(weight).__name__} is neither a layer nor a weight"
                raise ValuesError(fact, fix="a layer, such as torch.nn.Conv2d(16, 32, 3), or its weight") from error
            known = KERNEL_LABELS.get(kernel.ndim)
            return cls(kernel, _labels(kernel, known if labels is None else labels_of(labels)), kernel.numel())
        check_dense(weight)
        kernel_labels = kernel_labels_of(weight)
        holder = nn.Sequential(weight)
        sites = find_sites(holder)
        kernel = own_weight(sites["0"].module).detach()
        example = _nominal_example(sites["0"].module) if example is None else example
        calls = record_calls(holder, example, sites)
        return cls(
            kernel,
            _labels(kernel, kernel_labels if labels is None else labels_of(labels)),
            sum(call.multiply_adds for call in calls["0"]),
            weight,
            LayerMaker(sites, calls, candidates, tune=time),
            read_example(example, weight),
        )

    def count(self, network: Network, constants: frozenset[str]) -> int:
        """The multiply-adds of the layer whose kernel is this network; of a kernel alone at one output position."""
        if self.maker is None:
            return kernel_multiply_adds(network, (1,) * (self.kernel.ndim - 2))
        return self.maker.count("0", network, constants)

    def decompose(self, fit: Fit) -> tuple[KernelLayer | None, int]:
        """The decomposed layer, of which a kernel alone has none, and the multiply-adds."""
        if self.maker is None:
            return None, self.count(fit.network, fit.constants)
        (layer,) = self.maker.make("0", fit)
        return layer, self.maker.multiply_adds("0", [layer])

    def time(self, layers: Mapping[str, nn.Module]) -> dict[str | None, float]:
        """Median seconds of a forward pass of each layer, and under None of the dense one; they take turns."""
        assert self.module is not None
        args, kwargs = self.arguments
        contenders: dict[str | None, nn.Module] = {None: self.module}
        contenders.update(layers)
        with evaluating(nn.ModuleList(contenders.values())):
            calls = [partial(layer, *args, **kwargs) for layer in contenders.values()]
            times = time_in_turns(calls, self.kernel.device)
        return {name: median(each) for name, each in zip(contenders, times, strict=True)}


def _nominal_example(module: AnyLayer) -> Example:
    """The input that a layer is compared on by default."""
    shape = nominal_shape(module, {})
    is_embedding = isinstance(module, nn.Embedding)
    return torch.zeros(shape, dtype=torch.long, device=module.weight.device) if is_embedding else shape


def _labels(kernel: Tensor, labels: tuple[str, ...] | None) -> tuple[str, ...]:
    if labels is None or len(labels) != kernel.ndim:
        fact = f"the labels {' '.join(labels)} are" if labels else "no labels are known"
        fact = f"{fact} for a kernel of {kernel.ndim} axes"
        raise RuleError(fact, fix="labels='out in kh kw': one for each axis")
    return labels
