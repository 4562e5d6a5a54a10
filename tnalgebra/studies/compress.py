"""Compress kernels as the rows of a study say: cut or fit them, at ranks or under a budget, and contract them back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from ..decompositions import drop_components
from ..errors import RankError, RuleError, SizeError, ValuesError
from ..fitting import KeepFraction, kept, read_size
from ..model import Planned, fit_planned, plan_budget
from ..networks import NamedTensor, Network, parse_bipartition
from ..rewriting import Fit, Rule, start_fit
from ..tensors import norm, relative
from .kernels import Layer, Workbench, layers_of
from .options import StudyOptions
from .plan import Task, plan_rows, rounds_of
from .rewrites import Rewrite
from .rows import Key


@dataclass(frozen=True, eq=False)
class Compressed:
    """A kernel that was rewritten and contracted back.

    weight: the kernel in float64, with the axes of the layer.
    details: what a row says about it: `rank` or `ranks`; `relative_error`, ||K - K~||_F / ||K||_F; `norm_kept`,
        ||K~||_F / ||K||_F, which is 1 for a kernel of zeros; `parameters`, those of its factors; for fits, and where
        it is reported, `output_error`.
    fit: the factors.
    rule: the rule that made them; for cuts that follow one another, the last.
    """

    weight: Tensor
    details: Mapping[str, Any]
    fit: Fit
    rule: Rule


def compress_kernels(
    model: nn.Module, rewrite: str | Rule | Fit, size: object, *, skip: Sequence[str] = ("first",), seed: int = 0
) -> dict[str, Compressed]:
    """Compress all kernels of a network as a study does in its row of scope "all". The network stays as it is.

    Args:
        rewrite: see `study`.
        size: see `study`; not a budget of multiply-adds, which needs an image.
        skip: layers left alone, see `StudyOptions`.
        seed: of the fits.

    Returns:
        Layer -> its compressed kernel.

    Raises:
        TnalgebraError: see `study`.

    Example:
        >>> tn.studies.compress_kernels(model, "out kh | in kw", "keep 0.5")["layer3.1.conv1"].weight
    """
    layers, tasks, options = _plan(model, rewrite, size, skip=skip, seed=seed)
    ((_, kernels),) = compress_rows(tasks, Workbench(model, {each.name: each for each in layers}, options))
    return kernels


def check_compressible(
    model: nn.Module, rewrite: str | Rule | Fit, size: object, *, skip: Sequence[str] = ("first",)
) -> None:
    """Raise what `compress_kernels` raises for these arguments before it fits anything."""
    _plan(model, rewrite, size, skip=skip, seed=0)


def _plan(
    model: nn.Module, rewrite: str | Rule | Fit, size: object, *, skip: Sequence[str], seed: int
) -> tuple[list[Layer], list[Task], StudyOptions]:
    options = StudyOptions(skip=tuple(skip), seed=seed)
    layers = layers_of(model, options.skip)
    tasks = plan_rows([Rewrite.read(rewrite)], [read_size(size)], {type(model).__name__: layers}, options)
    return layers, tasks, options


def compress_rows(tasks: Sequence[Task], bench: Workbench) -> Iterator[tuple[Task, dict[str, Compressed]]]:
    """For each row, the kernels that it tests. Rows that need the same fits come one after another.

    A fit depends on its layer, rewrite, size and seed alone, and not on the other rows that are asked for.

    Args:
        tasks: rows of one network and one rewrite.

    Raises:
        RankError: a rank is out of range, or a budget cannot be met.
        ValuesError, LayerError: a decomposition, a fit or a metric cannot be computed; the layers are named.
    """
    rewrite = tasks[0].rewrite if tasks else None
    if rewrite is None:
        yield from ((task, {}) for task in tasks)
        return
    budgets = _plan_budgets(rewrite, tasks, bench)
    whole: dict[str, Fit] = {}
    for together in rounds_of(tasks):
        key, size, seed = together[0].key, together[0].size, together[0].key.seed or 0
        names = list(dict.fromkeys(name for task in together for name in task.layers))
        if key.metric == "input" or key.reported is not None:
            bench.metrics(names)  # of all layers in one pass over the images
        if isinstance(size, KeepFraction):
            fits = {name: _cut(rewrite, name, size, bench, whole=whole) for name in names}
        elif key.budget is not None:
            fits = fit_kernels(rewrite, budgets[key.budget, seed], bench, seed)
        else:
            forms = {name: rewrite.form(bench.layers[name]) for name in names}
            fits = fit_kernels(rewrite, {n: form.plan(together[0].fitted) for n, form in forms.items()}, bench, seed)
        for task in together:
            chosen = [name for name in task.layers if name in fits]
            yield (
                task,
                {name: _contract(task.key, _drop(fits[name], task), rewrite, bench, name=name) for name in chosen},
            )


def _cut(rewrite: Rewrite, name: str, fraction: KeepFraction, bench: Workbench, *, whole: dict[str, Fit]) -> Fit:
    """Cut a kernel to a fraction of its singular values, once or several times.

    Args:
        whole: layer -> its kernel decomposed by the first cut; this is done once for all fractions.
    """
    with _about(rewrite, [name]):
        first, *others = rewrite.cuts
        if name not in whole:
            kernel = Network([NamedTensor("K", bench.layers[name].labels)])
            whole[name] = first.apply(kernel, KeepFraction(1.0), values={"K": bench.weight(name)})
        (left, L), (right, R) = whole[name].values.items()
        rank = kept(fraction, L.shape[-1], bond="r", singular_values=list)
        network = whole[name].network
        fit = start_fit(Network(network.nodes, network.output), {left: L[..., :rank], right: R[:rank]})
        for following in others:
            fit = fit.then(following, fraction)
        return fit


def _plan_budgets(
    rewrite: Rewrite, tasks: Sequence[Task], bench: Workbench
) -> dict[tuple[float | str | None, int], dict[str, Planned]]:
    """Budget and seed, as in a row's key -> what each layer gets. Error curves are measured once for all budgets."""
    planned: dict[tuple[float | str | None, int], dict[str, Planned]] = {}
    asked = [task for task in tasks if task.key.budget is not None]
    options = bench.options
    for seed in dict.fromkeys(task.key.seed or 0 for task in asked):
        names, budgets = asked[0].layers, asked[0].budgets
        with _about(rewrite, names):
            plans = plan_budget(
                bench.model,
                {name: [rewrite.form(bench.layers[name]).rule] for name in names},
                budgets,
                example=bench.example,
                candidates="factored",
                metrics=None if options.metric == "frobenius" else bench.metrics(names),
                curves=options.curves,
                inputs=bench.inputs if options.curves == "divergence" else (),
                seed=seed,
                progress=options.progress,
            )
        of_budget = dict(zip(map(repr, budgets), plans, strict=True))
        planned |= {(task.key.budget, seed): of_budget[repr(task.size)] for task in asked}
    return planned


def fit_kernels(rewrite: Rewrite, planned: Mapping[str, Planned], bench: Workbench, seed: int) -> dict[str, Fit]:
    """Fit the layers of a plan, each by itself; or in their order, to the outputs."""
    if not planned:
        return {}
    options = bench.options
    if options.metric == "output":
        with _about(rewrite, planned):
            return fit_planned(bench.model, planned, metric="output", inputs=bench.inputs, seed=seed)
    metrics = bench.metrics(planned) if options.metric == "input" else None
    fits: dict[str, Fit] = {}
    for name, plan in planned.items():
        with _about(rewrite, [name]):  # each by itself: side by side, a fit would depend on the others
            (fits[name],) = plan.rule.apply_many(
                [bench.weight(name)],
                plan.ranks,
                metrics=None if metrics is None else [metrics[name]],
                seed=seed,
            )
    return fits


def _drop(fit: Fit, task: Task) -> Fit:
    """The fit at the ranks of a row: of each bond, the components of largest norm stay."""
    for bond, rank in task.size.items() if task.fitted is not task.size and isinstance(task.size, Mapping) else ():
        if isinstance(rank, int) and rank < fit.network.sizes.get(bond, 0):
            fit = fit.then(drop_components(bond), {bond: rank})
    return fit


def _contract(key: Key, fit: Fit, rewrite: Rewrite, bench: Workbench, *, name: str) -> Compressed:
    """The kernel of a fit, contracted back, and what a row says about it."""
    kernel, weight = bench.weight(name), fit.dense()
    details: dict[str, Any] = {}
    if key.keep is not None:
        sizes = dict(zip(bench.layers[name].labels, kernel.shape, strict=True))
        last = parse_bipartition(rewrite.cuts[-1].name)
        details["rank"] = next(iter(fit.values.values())).shape[-1]
        details["values"] = min(prod(sizes[label] for label in side) for side in (last.left, last.right))
    else:
        details["ranks"] = {bond: rank for step in fit.trace.steps for bond, rank in step.change.ranks.items()}
    dense = norm(kernel)
    details["relative_error"] = relative(weight.double() - kernel, kernel)
    if key.keep is None or key.reported is not None:
        error = fit.output_error
        if error is None and (key.metric == "input" or key.reported is not None):
            error = bench.output_error(name, weight)  # components were dropped, or the fit had another metric
        details["output_error"] = error
    details["norm_kept"] = norm(weight) / dense if dense else 1.0
    details["parameters"] = fit.parameters
    rule = rewrite.form(bench.layers[name]).rule if key.keep is None else rewrite.cuts[-1]
    return Compressed(weight, details, fit, rule)


@contextmanager
def _about(rewrite: Rewrite, names: Iterable[str]) -> Iterator[None]:
    """Name the rewrite and the layers in errors that decompositions raise."""
    try:
        yield
    except (RankError, RuleError, SizeError, ValuesError) as error:
        shown = list(names)
        listed = ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
        raise type(error)(f"the rewrite {rewrite.text!r} cannot be applied", layers=listed, because=error) from error
