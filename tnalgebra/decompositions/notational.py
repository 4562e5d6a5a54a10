"""Rules in the notation: `left => right`, found by matching, built by substitution, their numbers by a fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from fractions import Fraction
from math import prod
from random import Random
from typing import Any

import torch
from torch import Tensor

from ..editing import Edit, edited
from ..errors import RuleError, SizeError, TnalgebraError, ValuesError, explain
from ..evaluation import Values, evaluate, magnitude
from ..isomorphism import isomorphic
from ..labels import fresh
from ..matching import Match, matches, whole_tensors
from ..network import (
    Network,
    carriers,
    open_variables,
    parameters,
    renamed,
    shape_of,
    shapes,
    tensor_nodes,
    with_sizes,
)
from ..nodes import MODES, Conv, Fuse, NamedTensor, Node, Variable, relabel, rename
from ..notation import parse_rule
from ..rewriting import ROUNDING, Change, Options, Place, Rule
from ..valuation import common_dtype, value_of, values_for
from .trees import bonds_of, fit_tree, why_no_tree

TRIALS = 20
"""Comparisons of two sides that should be equal, each at other sizes."""

TRIAL_ELEMENTS = 2**20
"""Largest array such a comparison makes."""


def rule(text: str, *, name: str | None = None) -> Rule:
    """Make a rule of one line of notation.

    The names, labels and attributes of the left side are variables: a left tensor matches any named tensor with as
    many labels. Open labels are common to both sides; other labels of the right side are new bonds, whose ranks
    `apply(ranks=...)` chooses. A name on both sides keeps its value; other names on the right are new tensors.

    Args:
        text: "K[out in kh kw] => U[out a] G[a b kh kw] V[b in]". A right side without `->` has the left side's
            output.
        name: for messages, traces and rows of studies; by default the text.

    Returns:
        An exact rule where the right side has no new tensors (its two sides are compared on random numbers first; if
        some sizes fit only one of them, the rule wants to know the sizes where it applies), or is one new tensor,
        which is then the left side contracted; else an approximate one. To be applied, its right side must be a
        tree of new cores, possibly with `Fuse` splitting open labels.

    Raises:
        NotationError, NetworkError, SizeError: the text is no rule.
        RuleError: the two sides do not fit together, or are said to be equal and are not.
    """
    left, right = parse_rule(text)
    _check_sides(left, right, text)
    new = [name for name in tensor_nodes(right) if name not in tensor_nodes(left)]
    kind: Any = "exact" if not new or _contracts(left, right) else "approximate"
    sized = not new and not _equal_for_all_sizes(left, right, text)
    bonds = bonds_of(right) if kind == "approximate" else ()

    def find(network: Network, options: Options) -> Iterator[Place]:
        return (_place(group) for group in _groups(left, right, network, options.bind, sized=sized))

    def build(network: Network, place: Place, values: Values, options: Options) -> Change:
        if kind == "approximate":
            _check_fits(left, right, text)
        groups = _groups(left, right, network, options.bind, sized=sized)
        group = next(group for group in groups if _place(group) == place)
        return _build(left, right, network, group, values, options, new, kind)

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
        spec={"notation": text, "name": name or text},
    )


def _contracts(left: Network, right: Network) -> bool:
    """Whether the right side is one new tensor, which is then the left side contracted."""
    node = right.nodes[0]
    new = isinstance(node, NamedTensor) and node.name not in tensor_nodes(left)
    return len(right.nodes) == 1 and new and sorted(node.labels) == sorted(right.output)


def _check_fits(left: Network, right: Network, text: str) -> None:
    kept = [name for name in tensor_nodes(right) if name in tensor_nodes(left)]
    reason = f"the tensor {kept[0]!r} is not new" if kept else why_no_tree(right)
    if reason:
        raise RuleError(
            explain("the right side is no tree of new cores, which is what can be fitted", because=reason, rule=text)
        )


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


def _filled(node: Node, attributes: Mapping[str, object]) -> Node:
    """The node with its variables replaced by what they stand for."""
    found = {field.name: getattr(node, field.name) for field in fields(node)}
    bound: dict[str, Any] = {key: attributes[value.name] for key, value in found.items() if isinstance(value, Variable)}
    return replace(node, **bound) if bound else node


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
        nodes += [rename(relabel(_filled(node, match.attributes), labels), names) for node in right.nodes]
        known = {label: network.sizes[thing] for label, thing in match.labels.items() if thing in network.sizes}
        for label, size in (*_shared_sizes(left, right, known).items(), *right.sizes.items()):
            if sizes.setdefault(labels[label], size) != size:
                raise SizeError(f"the right side wants size {size} of {labels[label]!r}, it is {sizes[labels[label]]}")
        everywhere.append(labels)
    removed = [position for match in group for position in match.nodes]
    return edited(network, Edit(remove=removed, add=nodes, sizes=sizes)), names, everywhere


def _shared_sizes(left: Network, right: Network, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the right side's labels, given those of the left side's: of open labels, and where a tensor stays.

    Raises:
        SizeError: a label would have two sizes.
    """
    axes = {node.name: node.labels for node in left.nodes if isinstance(node, NamedTensor)}
    pairs = [(label, label) for label in left.output]
    for node in right.nodes:
        if isinstance(node, NamedTensor) and node.name in axes:
            pairs += zip(node.labels, axes[node.name], strict=True)
    found: dict[str, int] = {}
    for label, partner in pairs:
        if partner in sizes and found.setdefault(label, sizes[partner]) != sizes[partner]:
            raise SizeError(f"label {label!r} would have sizes {found[label]} and {sizes[partner]}")
    return found


# What it makes -----------------------------------------------------------------------------------------------


def _build(
    left: Network,
    right: Network,
    network: Network,
    group: tuple[Match, ...],
    values: Values,
    options: Options,
    new: list[str],
    kind: str,
) -> Change:
    after, names, labels = _substituted(left, right, network, group)
    match = group[0]
    known = {label: network.sizes[thing] for label, thing in match.labels.items() if thing in network.sizes}
    before_piece = _piece(left, match.attributes, names, known)
    after_piece = _piece(right, match.attributes, names, _shared_sizes(left, right, known) | dict(options.sizes))
    valued = all(name in values for name in match.names.values())
    if kind == "exact":
        if not new:
            if valued and len(before_piece.sizes) == len(carriers(before_piece)):
                _check_values(before_piece, after_piece, values)
            return Change(after)
        definition = Network(before_piece.nodes, after_piece.nodes[0].labels, before_piece.sizes)
        return Change(after, {names[new[0]]: definition})
    if not valued:
        missing = next(name for name in match.names.values() if name not in values)
        raise RuleError(explain(f"an approximate rule needs the value of {missing!r}", fix="apply(network, values)"))
    target = value_of(before_piece, values, dtype=torch.float64)
    after_piece = with_sizes(after_piece, dict(zip(left.output, target.shape, strict=True)))
    fit = fit_tree(target, _sized(after_piece), options.ranks, before=parameters(before_piece))
    dtype = common_dtype(values[name] for name in match.names.values())
    sizes = {**options.sizes, **fit.ranks}
    grown = with_sizes(after, {own[label]: size for own in labels for label, size in sizes.items()})
    return Change(
        grown,
        values={name: value.to(dtype) for name, value in fit.values.items()},
        relative_error=fit.relative_error,
        ranks=fit.ranks,
        pieces=(with_sizes(before_piece, {}), with_sizes(after_piece, fit.ranks)),
    )


def _piece(
    side: Network, attributes: Mapping[str, object], names: Mapping[str, str], sizes: Mapping[str, int]
) -> Network:
    """One side as a network of its own: the rule's labels, the network's names."""
    there = carriers(side)
    for label in sizes:
        if label not in there:
            raise SizeError(explain(f"a size is given for {label!r}, which the right side does not have", right=side))
    filled = Network([_filled(node, attributes) for node in side.nodes], side.output, {**side.sizes, **sizes})
    return renamed(filled, names={name: names[name] for name in tensor_nodes(side)})


def _sized(right: Network) -> Network:
    """`right`, once every part of a `Fuse` is known to have a size."""
    try:
        shape_of(right, [label for node in right.nodes if not isinstance(node, NamedTensor) for label in node.labels])
    except SizeError as error:
        raise SizeError(explain("the parts of a Fuse have no sizes", because=error)) from error
    return right


def _check_values(before: Network, after: Network, values: Values) -> None:
    old, new = evaluate(before, values_for(before, values)), evaluate(after, values_for(after, values))
    scale = magnitude(before, values_for(before, values))
    if not bool(((new - old).abs() <= ROUNDING * scale).all()):
        raise RuleError(explain("the two sides of an exact rule differ on these values", before=before, after=after))


def _equal_for_all_sizes(left: Network, right: Network, text: str) -> bool:
    """Compare two sides that should be equal on small random tensors, wherever sizes fit both.

    Returns:
        Whether all sizes that fit the left side fit the right one, so that the rule holds whatever they are.

    Raises:
        RuleError: they differ, or no sizes were found at which they could be compared.
    """
    random = Random(text)
    compared, unfit = 0, 0
    for _ in range(10 * TRIALS):
        attributes = _random_attributes(left, random)
        try:
            before, after = (
                Network([_filled(node, attributes) for node in side.nodes], side.output, side.sizes)
                for side in (left, right)
            )
            before = _random_sizes(before, random)
        except SizeError:
            continue
        try:
            after = with_sizes(after, _shared_sizes(left, right, before.sizes))
            values = _random_values(before, random)
            old, scale = (f(before, values, max_elements=TRIAL_ELEMENTS) for f in (evaluate, magnitude))
            new = evaluate(after, values_for(after, values), max_elements=TRIAL_ELEMENTS)
        except SizeError:
            unfit += 1
            continue
        except ValuesError as error:
            raise RuleError(explain("the two sides are not equal: shapes differ", because=error, rule=text)) from error
        worst = float((new - old).abs().max())
        if worst > 1e-9 * float(scale.max()):
            raise RuleError(explain(f"the two sides are not equal: they differ by {worst:.3g}", at=before, rule=text))
        compared += 1
        if compared == TRIALS:
            break
    if not compared:
        raise RuleError(
            explain("no small sizes were found at which the two sides could be compared", rule=text, fix="other sizes")
        )
    return not unfit


def _random_attributes(side: Network, random: Random) -> dict[str, object]:
    """A small random value for each variable."""
    found: dict[str, object] = {}
    for node in side.nodes:
        for field in fields(node):
            variable = getattr(node, field.name)
            if isinstance(variable, Variable):
                values = {"mode": MODES, "value": (Fraction(1, 2), Fraction(-3))}.get(field.name, (1, 2, 3))
                found.setdefault(variable.name, random.choice(values))
    return found


def _random_sizes(network: Network, random: Random) -> Network:
    """Small sizes for all labels, those last that follow from others. Raises SizeError where they do not fit."""
    follow = {
        node.y if isinstance(node, Conv) else node.whole for node in network.nodes if isinstance(node, Conv | Fuse)
    }
    for label in sorted(carriers(network), key=lambda label: label in follow):
        if label not in network.sizes:
            network = with_sizes(network, {label: random.randint(1, 5)})
    return network


def _random_values(network: Network, random: Random) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    found = {}
    for name, shape in shapes(network).items():
        if prod(shape) > TRIAL_ELEMENTS:
            raise SizeError(f"{name!r} has {prod(shape)} elements")
        found[name] = torch.randn(shape, dtype=torch.float64, generator=generator)
    return found
