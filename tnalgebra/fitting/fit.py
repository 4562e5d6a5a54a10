"""Numbers for the cores of any right side: trees by SVDs, everything else by descent from several starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ValuesError, explain
from ..network import NamedTensor, Network, shape_of
from ..tensors import relative, scaled
from .chosen_ranks import chosen_ranks, problem_of, reshaped, selected, tree_or_none
from .degeneracy import degeneracy
from .metric import Metric
from .objective import Problem
from .ranks import Rank
from .search import Ended, Settings, decomposed, grown, guessed, nearer, refined, searched, stabilised
from .trees import Tree, bonds_of, canonical, fit_tree, splitting


@dataclass(frozen=True)
class Report:
    """How a fit went.

    method: what found the cores.
    errors: relative error after each sweep or step, in the norm that was minimised.
    starts: the relative error at which each start that was followed to the end stopped, the kept one first.
    converged: whether it stood still, rather than used up its sweeps.
    degeneracy: sqrt(sum of ||component||^2) / ||K||, a component being one value of every bond; far above 1, large
        components cancel each other (de Silva and Lim 2008), and rounding or noise in the cores is amplified so much.
    """

    method: str
    errors: tuple[float, ...]
    starts: tuple[float, ...]
    converged: bool
    degeneracy: float

    def __str__(self) -> str:
        state = "stood still" if self.converged else "used up its sweeps"
        starts = " ".join(f"{error:.3g}" for error in self.starts)
        return (
            f"{self.method}: {len(self.errors)} sweeps, {state} at {self.errors[-1]:.4g} "
            f"(starts {starts}), degeneracy {self.degeneracy:.3g}"
        )


@dataclass(frozen=True, eq=False)
class CoreFit:
    """values: core -> elements, constants too. ranks: bond -> size. Both errors are measured on the result."""

    values: dict[str, Tensor]
    ranks: dict[str, int]
    relative_error: float
    output_error: float | None
    report: Report


def fit_cores(
    kernels: Sequence[Tensor],
    right: Network,
    ranks: Mapping[str, Rank] | Rank,
    *,
    before: int,
    settings: Settings,
    constants: Mapping[str, Tensor] | None = None,
    metrics: Sequence[Metric] = (),
    start: Mapping[str, Tensor] | None = None,
) -> list[CoreFit]:
    """Fit the cores of a right side to kernels of one shape, side by side.

    Args:
        kernels: one axis for each output label of `right`.
        right: sizes of the open labels, and of their parts, are known.
        ranks: see `chosen_ranks`.
        before: parameters of the left side, of which a budget is a fraction.
        constants: tensors of the right side that are held fixed.
        metrics: one for each kernel, over labels of `right`'s output; none for the Frobenius norm.
        start: cores to start from instead of random ones; smaller ones are grown, which changes nothing they give.

    Returns:
        For each kernel, float64 cores.

    Raises:
        RankError, SizeError, ValuesError: see `chosen_ranks`; a kernel is empty, complex or not finite.
    """
    constants = {name: value.to(settings.dtype) for name, value in (constants or {}).items()}
    given: Sequence[Metric | None] = metrics or [None] * len(kernels)
    wanted = [_prepared(kernel, right, metric, settings) for kernel, metric in zip(kernels, given, strict=True)]
    chosen = [chosen_ranks(each.target, right, ranks, constants=constants, before=before) for each in wanted]
    found: dict[int, CoreFit] = {}
    groups: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for number, sizes in enumerate(chosen):
        own = (("/kernel", number),) if constants else ()  # the best rows of a constant differ from kernel to kernel
        groups.setdefault((*sorted(sizes.items()), *own), []).append(number)
    for members in groups.values():
        fits = _fit_alike([wanted[i] for i in members], right, chosen[members[0]], constants, settings, start)
        found |= dict(zip(members, fits, strict=True))
    return [found[number] for number in range(len(kernels))]


@dataclass(frozen=True, eq=False)
class _Wanted:
    """kernel: as given. target: what is fitted in its place, scaled. Axes of both: `open_labels(right)`."""

    kernel: Tensor
    target: Tensor
    scale: float
    metric: Metric | None


def _prepared(kernel: Tensor, right: Network, metric: Metric | None, settings: Settings) -> _Wanted:
    numbers, scale = scaled(kernel, what="the kernel", dtype=settings.dtype)
    target = numbers
    if metric is not None:
        target = (metric.target(kernel.to(torch.float64), right.output) / scale).to(settings.dtype)
    return _Wanted(reshaped(kernel.detach().double(), right), reshaped(target, right), scale, metric)


def _fit_alike(
    wanted: Sequence[_Wanted],
    right: Network,
    ranks: Mapping[str, int],
    constants: Mapping[str, Tensor],
    settings: Settings,
    start: Mapping[str, Tensor] | None,
) -> list[CoreFit]:
    """Fit kernels that get the same ranks."""
    targets = torch.stack([each.target for each in wanted])
    constants = selected(constants, right, ranks, targets[0])
    metrics = [_as_split(each.metric, right) for each in wanted if each.metric is not None]
    problem = problem_of(targets, right, ranks, constants, metrics)
    if start is not None:
        shared = wanted[0].scale ** (1 / len(problem.occurrences_of_free))
        start = {name: core.double() / shared for name, core in start.items()}
    tree = tree_or_none(right, constants)
    core = problem.absorbing()
    if core is not None:
        factor = torch.stack([metric.factor().to(targets) for metric in metrics])
        ended = _in_frobenius(problem.absorbed(factor), tree, ranks, settings, start)
        ended = [
            replace(each, values={**each.values, core: problem.released(each.values[core], factor[layer], core)})
            for layer, each in enumerate(ended)
        ]
    elif metrics:
        ended = _in_metric(problem, tree, ranks, settings, start)
    else:
        ended = _in_frobenius(problem, tree, ranks, settings, start)
    if tree is not None:
        ended = [replace(each, values=canonical(each.values, tree)) for each in ended]
    elif settings.slack:
        ended = stabilised(problem, ended, settings)
    root = None if tree is None else tree.cores[tree.root].name
    return [_finished(problem, wanted[layer], right, each, constants, root) for layer, each in enumerate(ended)]


def _as_split(metric: Metric, right: Network) -> Metric:
    """The metric over the labels that the right side's cores have."""
    for node in splitting(right):
        if node.whole in (*metric.labels, *metric.outputs):
            metric = metric.split(node.whole, node.parts, right.sizes)
    return metric


def _in_frobenius(
    problem: Problem,
    tree: Tree | None,
    ranks: Mapping[str, int],
    settings: Settings,
    start: Mapping[str, Tensor] | None,
) -> list[Ended]:
    """The best cores without a metric."""
    if start is not None:
        return searched(problem, grown(problem, start, settings.seed), settings)
    if tree is None:
        return guessed(problem, settings)
    return decomposed(problem, [fit_tree(target, tree, ranks) for target in problem.target], settings)


def _in_metric(
    problem: Problem,
    tree: Tree | None,
    ranks: Mapping[str, int],
    settings: Settings,
    start: Mapping[str, Tensor] | None,
) -> list[Ended]:
    """Descend in the metric from the better of two fits without it: of the target, and of the whitened target."""
    factors = problem.whitening()
    whitened = problem.whitened(factors)
    plain = _in_frobenius(replace(problem, metric=None, coupled=(), blocks=()), tree, ranks, settings, start)
    begun = [
        replace(each, values=problem.taken_up(each.values, {label: M[layer] for label, M in factors.items()}))
        for layer, each in enumerate(plain)
    ]
    if start is None:
        near = _in_frobenius(replace(whitened, metric=None, coupled=(), blocks=()), tree, ranks, settings, None)
        begun = [nearer(whitened, layer, *pair) for layer, pair in enumerate(zip(near, begun, strict=True))]
    inverse = {label: torch.linalg.inv(factor) for label, factor in factors.items()}
    return [
        replace(each, values=problem.taken_up(each.values, {label: M[layer] for label, M in inverse.items()}))
        for layer, each in enumerate(refined(whitened, begun, settings))
    ]


def _finished(
    problem: Problem,
    wanted: _Wanted,
    right: Network,
    ended: Ended,
    constants: Mapping[str, Tensor],
    root: str | None,
) -> CoreFit:
    """Undo the scaling, and measure: both in float64, whatever the search was in.

    root: the core that takes the scale; None shares it among all.
    """
    if not bool(wanted.target.any()):  # cores that shrink from where they began never arrive
        zeros = {name: torch.zeros_like(core) for name, core in ended.values.items()}
        ended = Ended(zeros, ended.method, (0.0,), (0.0,), converged=True)
    shared = wanted.scale ** (1 / len(problem.occurrences_of_free))
    scales = dict.fromkeys(ended.values, shared) if root is None else {root: wanted.scale}
    values = {name: core.double() * scales.get(name, 1.0) for name, core in ended.values.items()}
    exact = replace(problem, constants={name: constant.double() for name, constant in problem.constants.items()})
    fitted = exact.model({name: core[None, None] for name, core in values.items()})[0, 0]
    kernel = wanted.kernel
    if not bool(fitted.isfinite().all()):
        raise ValuesError(
            explain("the fit is not finite", right=right, fix="constants of moderate size, dtype=torch.float64")
        )
    output_error = None
    if wanted.metric is not None:
        whole = fitted.reshape(shape_of(right, right.output))
        dense = kernel.reshape(whole.shape)
        output_error = (
            wanted.metric.relative(dense - whole, dense, right.output)
            if wanted.metric.cross is None
            else wanted.metric.output_error(whole, right.output)
        )
    sizes = {
        label: size
        for node in right.nodes
        if isinstance(node, NamedTensor)
        for label, size in zip(node.labels, {**constants, **values}[node.name].shape, strict=True)
    }
    report = Report(
        ended.method,
        tuple(ended.errors),
        tuple(ended.starts),
        ended.converged,
        degeneracy(problem, {name: core[None, None] for name, core in ended.values.items()}),
    )
    return CoreFit(
        {**constants, **values},
        {bond: sizes[bond] for bond in bonds_of(right) if bond in sizes},
        relative(kernel - fitted, kernel),
        output_error,
        report,
    )
