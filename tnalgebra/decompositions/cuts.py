"""Cuts: a network across a bipartition of its open labels, as two factors joined by one bond."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..errors import RuleError
from ..fitting import ErrorCurve, FitReport, Metric, ParameterBudget, Rank, UpTo, allowance, fit_cores, kept, rank_of
from ..networks import (
    KERNEL_LABELS,
    Bipartition,
    NamedTensor,
    Network,
    bipartitions,
    carriers,
    check_covers,
    fresh,
    kernel_labels,
    labels_of,
    parse,
    parse_bipartition,
    rename,
    tensor_nodes,
)
from ..rewriting import Change, Options, Outline, Place, Rule, metric_in
from ..tensors import (
    SVD,
    Values,
    common_dtype,
    in_precision,
    matricise,
    relative_residual,
    singular_values,
    svd_of_product,
    target_of,
    truncated_svd,
    value_of,
)
from .components import check_values

CutForm: TypeAlias = Literal["factors", "svd"]


def cut(text: str | Bipartition, *, of: str | None = None, form: CutForm = "factors") -> Rule:
    """Make the rule that cuts a kernel, or any network, in two across a bipartition of its open labels.

    The cut "out kh | in kw" gives `L[out kh r] R[r in kw]`, with L = U sqrt(S) and R = sqrt(S) V, where U S V is the
    singular value decomposition of the matrix whose rows are numbered by `out kh`. It is the best approximation of its
    rank in the Frobenius norm (Eckart and Young 1936). A network is contracted before it is cut. Where few values of a
    large matrix are kept, they come from a random subspace (`tn.tensors.truncated_svd`), and the error is measured.

    With `metric=`, the cut is the best approximation in that norm: by a singular value decomposition if all labels of
    the metric are on one side, otherwise by a descent that starts from the cut without a metric. A size that counts
    singular values counts those of the kernel.

    Args:
        text: the two sides. Together they hold all open labels of what is cut, in any order.
        of: the tensor that the rule is applied to when it is given values only, such as "K[a b c]". Kernels need none,
            because their labels (out in kh kw) have the order of torch.
        form: "factors" for L and R, or "svd" for `U[out kh r] S[r] V[r in kw]`.

    Returns:
        The rule, whose only bond is `r`.

    Raises:
        RuleError: a side is empty, or a label occurs twice. On application: a label is missing or unknown.

    Example:
        >>> fit = tn.cut("out kh | in kw").apply(conv.weight, "keep 0.5")
        >>> fit.network, fit.relative_error
    """
    if form not in ("factors", "svd"):
        raise RuleError(f"the form of a cut is {form!r}", fix="'factors' or 'svd'")
    bipartition = text if isinstance(text, Bipartition) else parse_bipartition(text)
    left = _left_side(bipartition, of)

    def start(values: Mapping[str, Any]) -> Network:
        return _kernel(values, bipartition) if of is None or left is None else left

    def find(network: Network, options: Options) -> Iterator[Place]:
        check_covers(bipartition, network.output, what="the network")
        yield Place(tuple(range(len(network.nodes))))

    def build(network: Network, place: Place, values: Values, options: Options) -> Change:
        check_values(network, values, what="a cut")
        dtype = common_dtype(values.values())
        dense = target_of(network, values, options.settings.dtype)
        nearest = _nearest if options.metric is None else _nearest_in_metric
        svd, report = nearest(dense, network, bipartition, form=form, options=options)
        after, factors = _factors(network, bipartition, svd, dense.shape, form=form, dtype=dtype)
        left, *middle, right = (in_precision(factors[name], torch.float64) for name in tensor_nodes(after))
        left = left.flatten(0, -2) if not middle else left.flatten(0, -2) * middle[0]
        error = relative_residual(matricise(dense, network.output, bipartition), left, right.flatten(1))
        if report is not None and options.metric is not None:
            held = value_of(after, factors, dtype=torch.float64)
            of_output = _in_metric(options.metric, network).output_error(held, network.output, kernel=dense)
            report = replace(report, relative_error=error, output_error=of_output)
        return Change(
            after,
            values=factors,
            relative_error=error,
            ranks={"r": len(svd.S)},
            output_error=None if report is None else report.output_error,
            report=report,
        )

    def outline(network: Network, place: Place, values: Values, options: Options) -> Outline | None:
        return _outline_factors(network, values, bipartition, options)

    sides = {"factors": "L[{0} r] R[r {1}]", "svd": "U[{0} r] S[r] V[r {1}]"}[form]
    written = sides.format(" ".join(bipartition.left), " ".join(bipartition.right))
    return Rule(
        str(bipartition),
        "approximate",
        f"{left or 'any network of ' + ' '.join(bipartition.labels)} => {written}",
        find,
        build,
        start=start,
        ranks=("r",),
        takes=("metric",),
        build_outline=outline if form == "factors" else None,
        spec={"cut": str(bipartition), "form": form, **({"of": of} if of else {})},
    )


def all_cuts(labels: str | Iterable[str] | Network) -> list[Rule]:
    """List every cut of n labels, of which there are 2^(n-1) - 1.

    Args:
        labels: such as "out in kh kw"; or a network, whose open labels are cut.

    Returns:
        The rules, from one label on the left side to half of them.

    Raises:
        RuleError: there are fewer than two labels, or one occurs twice.

    Example:
        >>> [rule.name for rule in tn.all_cuts("out in k")]
        ['out | in k', 'in | out k', 'k | out in']
    """
    if isinstance(labels, Network):
        return [cut(bipartition) for bipartition in bipartitions(labels.output)]
    order = labels_of(labels)
    of = f"K[{' '.join(order)}]"
    return [cut(bipartition, of=None if kernel_labels(order) == order else of) for bipartition in bipartitions(order)]


def cut_sequence(text: str) -> tuple[Rule, ...]:
    """Read "A then B": cuts that follow one another on one kernel, which is contracted again before each next cut.

    Raises:
        RuleError: a part is empty or is not a cut, or the cuts have different labels.
    """
    parts = re.split(r"\bthen\b", text)
    for number, part in enumerate(parts):
        if len(parts) > 1 and not part.strip():
            place = "after" if number else "before"
            raise RuleError(f"the cut {place} 'then' is empty", where=text, fix="a cut on either side of each 'then'")
    sides = [parse_bipartition(part) for part in parts]
    for other in sides:
        if set(other.labels) != set(sides[0].labels):
            raise RuleError("cuts that follow one another have different labels", first=sides[0], other=other)
    return tuple(cut(bipartition) for bipartition in sides)


def _left_side(bipartition: Bipartition, of: str | None) -> Network | None:
    if of is None:
        order = kernel_labels(bipartition.labels)
        return Network([NamedTensor("K", order)]) if order else None
    left = parse(of)
    check_covers(bipartition, left.output, what=of)
    return left


def _kernel(values: Mapping[str, Any], bipartition: Bipartition) -> Network:
    """The network of a weight whose labels follow from its number of axes.

    Whether the cut has these labels is checked where it is applied.
    """
    for name, value in values.items():
        order = KERNEL_LABELS.get(np.ndim(value))
        if order is not None and len(values) == 1:
            return Network([NamedTensor(name, order)])
    raise RuleError("the tensor to be cut is not known", cut=bipartition, fix="cut(..., of='K[a b c]'), or a network")


def _nearest(
    dense: Tensor, network: Network, bipartition: Bipartition, *, form: CutForm, options: Options
) -> tuple[SVD, None]:
    """The nearest matrix of a rank in the Frobenius norm."""
    matrix = matricise(dense, network.output, bipartition)
    rank = _rank(_requested(options), matrix, form, network.parameters)
    return truncated_svd(matrix, rank, dtype=options.settings.dtype), None


def _requested(options: Options) -> Rank | UpTo | ParameterBudget:
    return options.size if isinstance(options.size, ParameterBudget) else rank_of(options.size, "r")


def _rank(asked: Rank | UpTo | ParameterBudget, matrix: Tensor, form: CutForm, before: int) -> int:
    if isinstance(asked, ParameterBudget):
        rows, columns = matrix.shape
        each = rows + columns + (form == "svd")
        return min(rows, columns, allowance(asked, before, least=each) // each)
    return kept(asked, min(matrix.shape), bond="r", singular_values=lambda: singular_values(matrix).tolist())


def _nearest_in_metric(
    dense: Tensor, network: Network, bipartition: Bipartition, *, form: CutForm, options: Options
) -> tuple[SVD, FitReport]:
    """The nearest matrix of a rank in a metric: an SVD if all its labels are on one side, else a descent."""
    assert options.metric is not None
    right, bond = _two_sides(network, bipartition, dense.shape)
    size, before = options.size, network.parameters
    if isinstance(size, ParameterBudget):
        size = _rank(size, matricise(dense, network.output, bipartition), form, before)
    cores, report = fit_cores(
        [dense],
        right,
        {bond: size["r"]} if isinstance(size, Mapping) and "r" in size else size,
        before=before,
        settings=options.settings,
        metrics=[_in_metric(options.metric, network)],
    )[0]
    return svd_of_product(cores["L"].flatten(0, -2), cores["R"].flatten(1)), report


def _two_sides(network: Network, bipartition: Bipartition, shape: Sequence[int]) -> tuple[Network, str]:
    """The two factors of a cut, and the bond between them, whose size is open."""
    sizes = dict(zip(network.output, shape, strict=True))
    bond = fresh("r", carriers(network))
    nodes = [NamedTensor("L", (*bipartition.left, bond)), NamedTensor("R", (bond, *bipartition.right))]
    return Network(nodes, network.output, sizes), bond


def _outline_factors(network: Network, values: Values, bipartition: Bipartition, options: Options) -> Outline | None:
    """What a cut would make at any size; None where the network has an r of its own."""
    dense = target_of(network, values, options.settings.dtype)
    right, bond = _two_sides(network, bipartition, dense.shape)
    if bond != "r":
        return None
    names = {name: fresh(name, tensor_nodes(network)) for name in tensor_nodes(right)}
    after = Network([rename(node, names) for node in right.nodes], right.output, right.sizes)
    curve = ErrorCurve(
        dense,
        right,
        before=network.parameters,
        constants={},
        metric=None if options.metric is None else _in_metric(options.metric, network),
        dtype=options.settings.dtype,
    )
    return Outline(after, [{label: label for label in carriers(right)}], curve)


def _in_metric(metric: Metric, network: Network) -> Metric:
    return metric_in(metric, {label: label for label in network.output}, network.output)


def _factors(
    network: Network,
    bipartition: Bipartition,
    svd: SVD,
    shape: Sequence[int],
    *,
    form: CutForm,
    dtype: torch.dtype,
) -> tuple[Network, dict[str, Tensor]]:
    """The network of the factors, and their values."""
    U, S, V = svd
    rank = len(S)
    sizes = dict(zip(network.output, shape, strict=True))
    bond = fresh("r", carriers(network))
    rows, columns = ([sizes[label] for label in side] for side in (bipartition.left, bipartition.right))
    left, right = (U * S.sqrt(), S.sqrt()[:, None] * V) if form == "factors" else (U, V)
    factors = {
        "L" if form == "factors" else "U": ((*bipartition.left, bond), left.reshape(*rows, rank)),
        **({"S": ((bond,), S)} if form == "svd" else {}),
        "R" if form == "factors" else "V": ((bond, *bipartition.right), right.reshape(rank, *columns)),
    }
    names = {name: fresh(name, tensor_nodes(network)) for name in factors}
    nodes = [NamedTensor(names[name], labels) for name, (labels, _) in factors.items()]
    after = Network(nodes, network.output, {**sizes, bond: rank})
    return after, {names[name]: value.to(dtype) for name, (_, value) in factors.items()}
