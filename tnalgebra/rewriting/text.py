"""Rules in the notation: `left => right`, found by matching, built by substitution, their numbers by a fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import RuleError, SizeError, TnalgebraError, explain
from ..fitting import bonds_of
from ..network import (
    Edit,
    NamedTensor,
    Network,
    Node,
    carriers,
    edited,
    fresh,
    isomorphic,
    open_variables,
    parse_rule,
    relabel,
    rename,
    tensor_nodes,
)
from ..tensors import Values
from .apply_text import Reading, exact_change, fitted_changes
from .matching import Match, matches, whole_tensors
from .rule import Change, Job, Options, Place, Rule
from .sides import check_basis, equal_for_all_sizes, filled, shared_sizes


def rule(text: str, *, name: str | None = None, fixed: Mapping[str, str] | None = None) -> Rule:
    """Make a rule of one line of notation.

    The names, labels and attributes of the left side are variables: a left tensor matches any named tensor with as
    many labels. Open labels are common to both sides; other labels of the right side are new bonds, whose ranks
    `apply(ranks=...)` chooses. A name on both sides keeps its value; other names on the right are new tensors.

    Args:
        text: "K[out in kh kw] => U[out a] G[a b kh kw] V[b in]". A right side without `->` has the left side's
            output. `*k` stands for any number of open labels, the same on both sides.
        name: for messages, traces and rows of studies; by default the text.
        fixed: tensor of the right side -> name of the basis it is ("dct"), a matrix whose rows are numbered by its
            first label. It is not fitted.

    Returns:
        An exact rule where the right side has no new tensors (its two sides are compared on random numbers first; if
        some sizes fit only one of them, the rule wants to know the sizes where it applies), or is one new tensor,
        which is then the left side contracted; else an approximate one, whose new tensors are fitted: by SVDs if they
        are a tree (see `fitting.trees`), by descent from several starts if not.

    Raises:
        NotationError, NetworkError, SizeError: the text is no rule.
        RuleError: the two sides do not fit together, or are said to be equal and are not.
    """
    if isinstance(text, str) and "*" in text:
        from .starred import starred_rule

        return starred_rule(text, name=name, fixed=fixed)
    left, right = parse_rule(text)
    _check_sides(left, right, text)
    new = [name for name in tensor_nodes(right) if name not in tensor_nodes(left)]
    fixed = dict(fixed or {})
    for constant, basis in fixed.items():
        _check_constant(constant, basis, right, new, text)
    kind: Any = "exact" if not new or (_contracts(left, right) and not fixed) else "approximate"
    if kind == "approximate":
        _check_cores(right, new, text)
    sized = not new and not equal_for_all_sizes(left, right, text)
    bonds = bonds_of(right) if kind == "approximate" else ()

    def find(network: Network, options: Options) -> Iterator[Place]:
        return (_place(group) for group in _groups(left, right, network, options.bind, sized=sized))

    def reading(job: Job) -> Reading:
        groups = _groups(left, right, job.network, job.options.bind, sized=sized)
        group = next(group for group in groups if _place(group) == job.place)
        after, names, labels = _substituted(left, right, job.network, group)
        return Reading(job, left, right, group[0], after, names, tuple(labels), fixed)

    def build(network: Network, place: Place, values: Values, options: Options) -> Change:
        job = Job(network, place, values, options)
        return exact_change(reading(job)) if kind == "exact" else fitted_changes([reading(job)])[0]

    def build_many(jobs: Sequence[Job]) -> list[Change]:
        return fitted_changes([reading(job) for job in jobs])

    return Rule(
        name or text,
        kind,
        f"{left} => {right}",
        find,
        build,
        start=None if open_variables(left) else lambda values: left,
        ranks=bonds,
        variables=(*tensor_nodes(left), *carriers(left)),
        labels=tuple(carriers(right)),
        takes=("fixed", "metric", "start") if kind == "approximate" else (),
        fixed=fixed,
        build_many=build_many if kind == "approximate" else None,
        spec={"notation": text, "name": name or text, **({"fixed": json.dumps(fixed)} if fixed else {})},
    )


def _check_cores(right: Network, new: Sequence[str], text: str) -> None:
    for node in right.nodes:
        if isinstance(node, NamedTensor) and node.name in new and len(set(node.labels)) < len(node.labels):
            twice = next(label for label in node.labels if node.labels.count(label) > 1)
            raise RuleError(
                explain(
                    f"the new tensor {node.name!r} carries {twice!r} twice: only its diagonal would matter",
                    rule=text,
                    fix=f"{twice!r} once",
                )
            )


def _check_constant(constant: str, basis: str, right: Network, new: Sequence[str], text: str) -> None:
    check_basis(basis)
    if constant not in new:
        raise RuleError(explain(f"{constant!r} is no new tensor of the right side", rule=text, fix=" ".join(new)))
    if len(right.nodes[tensor_nodes(right)[constant][0]].labels) != 2:
        raise RuleError(
            explain(f"the basis {constant!r} is no matrix", rule=text, fix="two labels: its rows', then the columns'")
        )


def _contracts(left: Network, right: Network) -> bool:
    """Whether the right side is one new tensor, which is then the left side contracted."""
    node = right.nodes[0]
    new = isinstance(node, NamedTensor) and node.name not in tensor_nodes(left)
    return len(right.nodes) == 1 and new and sorted(node.labels) == sorted(right.output)


def _check_sides(left: Network, right: Network, text: str) -> None:
    if set(left.output) != set(right.output):
        raise RuleError(
            explain(
                "the two sides have different open labels",
                left=" ".join(left.output) or "none",
                right=" ".join(right.output) or "none",
                rule=text,
            )
        )
    if left.output != right.output:
        raise RuleError(explain("the two sides have their open labels in different orders", rule=text))
    unbound = [name for name in open_variables(right) if name not in open_variables(left)]
    if unbound:
        raise RuleError(explain(f"the attribute {unbound[0]!r} stands on the right side only", rule=text))
    for name, places in tensor_nodes(right).items():
        if name in tensor_nodes(left):
            axes = len(left.nodes[tensor_nodes(left)[name][0]].labels)
            if len(right.nodes[places[0]].labels) != axes:
                raise RuleError(
                    explain(f"{name!r} has {axes} axes on the left side, another number on the right", rule=text)
                )


# Where it applies --------------------------------------------------------------------------------------------


def _groups(
    left: Network, right: Network, network: Network, wanted: Mapping[str, str], *, sized: bool
) -> list[tuple[Match, ...]]:
    """The places: each a set of matches that covers its tensors; of places with equal results, the first.

    sized: only where all sizes are known.
    """
    found = [
        match
        for match in matches(left, network)
        if all({**match.labels, **match.names}.get(variable) == thing for variable, thing in wanted.items())
        and not (sized and match.labels.values() - network.sizes.keys())
    ]
    groups: list[tuple[Match, ...]] = []
    results: list[tuple[set[int], Network]] = []
    for group in whole_tensors(found, network):
        nodes = {position for match in group for position in match.nodes}
        try:
            result = _substituted(left, right, network, group)[0]
        except TnalgebraError:
            continue  # sizes or labels that the match does not show forbid it
        # one tensor is the same contraction however its left side is read; only the order of its axes differs
        equal = (nodes == other and (_contracts(left, right) or isomorphic(result, same)) for other, same in results)
        if not any(equal):
            results.append((nodes, result))
            groups.append(group)
    return groups


def _place(group: tuple[Match, ...]) -> Place:
    return Place(
        tuple(position for match in group for position in match.nodes),
        tuple(label for match in group for label in match.labels.values()),
    )


def _substituted(
    left: Network, right: Network, network: Network, group: tuple[Match, ...]
) -> tuple[Network, dict[str, str], list[dict[str, str]]]:
    """The network after, the new names (right side's -> the network's), and for each match its labels."""
    names = dict(group[0].names)
    taken_names, taken = set(tensor_nodes(network)), set(carriers(network))
    for name in tensor_nodes(right):
        if name not in names:
            names[name] = fresh(name, taken_names)
            taken_names.add(names[name])
    nodes: list[Node] = []
    everywhere: list[dict[str, str]] = []
    sizes: dict[str, int] = {}
    for match in group:
        labels = {label: match.labels[label] for label in left.output}
        for label in carriers(right):
            if label not in labels:
                labels[label] = fresh(label, taken)
                taken.add(labels[label])
        nodes += [rename(relabel(filled(node, match.attributes), labels), names) for node in right.nodes]
        known = {label: network.sizes[thing] for label, thing in match.labels.items() if thing in network.sizes}
        for label, size in (*shared_sizes(left, right, known).items(), *right.sizes.items()):
            if sizes.setdefault(labels[label], size) != size:
                raise SizeError(f"the right side wants size {size} of {labels[label]!r}, it is {sizes[labels[label]]}")
        everywhere.append(labels)
    removed = [position for match in group for position in match.nodes]
    return edited(network, Edit(remove=removed, add=nodes, sizes=sizes)), names, everywhere
