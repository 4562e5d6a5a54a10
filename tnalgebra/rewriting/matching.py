"""Where the left side of a rule occurs in a network: its names, labels and attributes are variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from ..errors import RuleError, explain
from ..networks import Carriers, Copy, Fill, NamedTensor, Network, Node, Variable, carriers, tensor_nodes

MAX_READINGS = 1000
"""Most matches of one left side in one network; rules made for such numbers are exact rules in Python."""

MAX_TRIALS = 200_000
"""Most partial matches that are tried for them."""


@dataclass(frozen=True)
class Match:
    """One way to read a pattern as a part of a network.

    nodes: for each node of the pattern, the position of its partner.
    labels, names, attributes: what each variable of the pattern stands for.
    """

    nodes: tuple[int, ...]
    labels: Mapping[str, str]
    names: Mapping[str, str]
    attributes: Mapping[str, object]


def matches(pattern: Network, host: Network) -> Iterator[Match]:
    """Every match, in the order of the host's nodes.

    Distinct variables stand for distinct things. A label that the pattern sums has, in the host, no carrier
    outside the match and is not open. A tensor matches any named tensor with as many labels, axis by axis; the
    labels of Copy and Fill, which have no order, match in any. Tied occurrences are not looked at here.

    Raises:
        RuleError: there are more than `MAX_READINGS` matches, or partial ones beyond all measure.
    """
    trials = found = 0
    everywhere = carriers(host)
    summed = [label for label in carriers(pattern) if label not in pattern.output]

    def extend(partial: Match) -> Iterator[Match]:
        nonlocal trials, found
        position = len(partial.nodes)
        if position == len(pattern.nodes):
            if _sums_stay_inside(partial, summed, everywhere, host.output) and _sizes_agree(pattern, host, partial):
                found += 1
                _check_count(found, MAX_READINGS, pattern)
                yield partial
            return
        for candidate, node in enumerate(host.nodes):
            if candidate not in partial.nodes:
                for match in _with_node(partial, pattern.nodes[position], node, candidate):
                    trials += 1
                    _check_count(trials, MAX_TRIALS, pattern)
                    yield from extend(match)

    yield from extend(Match((), {}, {}, {}))


def _with_node(match: Match, variable: Node, node: Node, candidate: int) -> Iterator[Match]:
    """Every way in which a node of the pattern can be the candidate too."""
    if type(variable) is not type(node) or len(variable.labels) != len(node.labels):
        return
    names, attributes = dict(match.names), dict(match.attributes)
    if isinstance(variable, NamedTensor):
        if not _bind(names, variable.name, node.name):
            return
    else:
        for field in fields(variable):
            required, value = getattr(variable, field.name), getattr(node, field.name)
            if isinstance(required, Variable):
                if attributes.setdefault(required.name, value) != value:
                    return
            elif field.name not in ("x", "y", "k", "whole", "parts", "labels") and required != value:
                return
    if isinstance(node, Copy | Fill):
        bound = _in_any_order(variable.labels, node.labels, match.labels)
    else:
        own = dict(match.labels)
        fits = all(_bind(own, a, b) for a, b in zip(variable.labels, node.labels, strict=True))
        bound = iter([own] if fits else [])
    for labels in bound:
        yield Match((*match.nodes, candidate), labels, names, attributes)


def _in_any_order(
    variables: tuple[str, ...], things: tuple[str, ...], bound: Mapping[str, str]
) -> Iterator[Mapping[str, str]]:
    """Every way to bind the variables to the things, each thing as often as it occurs there."""
    if not variables:
        yield bound
        return
    for thing in dict.fromkeys(things):
        labels = dict(bound)
        if _bind(labels, variables[0], thing):
            place = things.index(thing)
            yield from _in_any_order(variables[1:], things[:place] + things[place + 1 :], labels)


def _check_count(count: int, most: int, pattern: Network) -> None:
    if count > most:
        raise RuleError(
            explain(
                f"the left side can be read in more than {most} ways",
                left=pattern,
                fix="fewer labels on one Copy or Fill, or a left side that says more",
            )
        )


def _bind(bound: dict[str, str], variable: str, thing: str) -> bool:
    if variable in bound:
        return bound[variable] == thing
    if thing in bound.values():
        return False
    bound[variable] = thing
    return True


def _sums_stay_inside(match: Match, summed: Sequence[str], everywhere: Carriers, output: Sequence[str]) -> bool:
    things = [match.labels[label] for label in summed]
    return all(
        thing not in output and all(position in match.nodes for position, _ in everywhere[thing]) for thing in things
    )


def _sizes_agree(pattern: Network, host: Network, match: Match) -> bool:
    """A size the pattern states is a condition: it must be known in the host, and equal."""
    return all(host.sizes.get(match.labels[label]) == size for label, size in pattern.sizes.items())


def whole_tensors(found: list[Match], host: Network) -> list[tuple[Match, ...]]:
    """Group matches so that a tied tensor is matched at all its occurrences, or not at all.

    Each group is a set of disjoint matches with the same tensors, attributes and sizes, so that what one of them
    becomes, all of them become; a match whose tensors occur nowhere else is a group of its own. A tied tensor that
    no such set covers is left out.
    """

    def alike(match: Match) -> tuple[object, ...]:
        sizes = {label: host.sizes.get(thing) for label, thing in match.labels.items()}
        return match.names, match.attributes, sizes

    occurrences = tensor_nodes(host)
    groups: list[tuple[Match, ...]] = []
    for number, match in enumerate(found):
        needed = {place for name in match.names.values() for place in occurrences[name]}
        group = [match]
        covered = set(match.nodes)
        for other in found[number + 1 :]:
            if needed <= covered:
                break
            if alike(other) == alike(match) and not covered & set(other.nodes):
                group.append(other)
                covered |= set(other.nodes)
        if needed <= covered:
            groups.append(tuple(group))
    return groups
