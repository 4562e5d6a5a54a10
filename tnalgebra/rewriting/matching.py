"""Where the left side of a rule occurs in a network. Its names, labels and attributes are variables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from ..errors import RuleError
from ..networks import Carriers, Copy, Fill, NamedTensor, Network, Node, Variable, carriers, tensor_nodes

MAX_READINGS = 1000
"""The most matches of one left side in one network. A rule with more matches has to be written in Python."""

MAX_TRIALS = 200_000
"""The most partial matches that are tried."""


@dataclass(frozen=True)
class Match:
    """One way to read a pattern as a part of a network.

    Attributes:
        nodes: for each node of the pattern, the position of its partner in the network.
        labels, names, attributes: what each variable of the pattern stands for.
    """

    nodes: tuple[int, ...]
    labels: Mapping[str, str]
    names: Mapping[str, str]
    attributes: Mapping[str, object]


def matches(pattern: Network, host: Network) -> Iterator[Match]:
    """Find every match of a pattern in a network, the host, in the order of the host's nodes.

    Distinct variables stand for distinct things. A label that is summed in the pattern is not open in the host, and
    only nodes of the match have it. A tensor matches any named tensor with as many labels, axis by axis. The labels of
    Copy and Fill have no order and match in any order. Whether a tensor occurs elsewhere too is not considered here.

    Raises:
        RuleError: there are more than `MAX_READINGS` matches, or more than `MAX_TRIALS` partial ones.
    """
    trials = count = 0
    everywhere, tensors = carriers(host), tensor_nodes(host)
    summed = [label for label in carriers(pattern) if label not in pattern.output]

    def candidates(partial: Match, variable: Node) -> Iterable[int]:
        """The host's nodes that have what is bound already: one label, or the name."""
        if variable.name in partial.names and isinstance(variable, NamedTensor):
            return tensors[partial.names[variable.name]]
        bound = [everywhere[partial.labels[label]] for label in variable.labels if label in partial.labels]
        if not bound:
            return range(len(host.nodes))
        return dict.fromkeys(position for position, _ in min(bound, key=len))

    def extend(partial: Match) -> Iterator[Match]:
        nonlocal trials, count
        position = len(partial.nodes)
        if position == len(pattern.nodes):
            if _sums_stay_inside(partial, summed, everywhere, host.output) and _sizes_agree(pattern, host, partial):
                count += 1
                _check_count(count, MAX_READINGS, pattern)
                yield partial
            return
        variable = pattern.nodes[position]
        for candidate in candidates(partial, variable):
            if candidate not in partial.nodes:
                for match in _with_node(partial, variable, host.nodes[candidate], candidate):
                    trials += 1
                    _check_count(trials, MAX_TRIALS, pattern)
                    yield from extend(match)

    yield from extend(Match((), {}, {}, {}))


def _with_node(match: Match, variable: Node, node: Node, candidate: int) -> Iterator[Match]:
    """Every way to extend the match so that the next node of the pattern, `variable`, is the candidate."""
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
        extended = dict(match.labels)
        fits = all(_bind(extended, a, b) for a, b in zip(variable.labels, node.labels, strict=True))
        bound = iter([extended] if fits else [])
    for labels in bound:
        yield Match((*match.nodes, candidate), labels, names, attributes)


def _in_any_order(
    variables: tuple[str, ...], things: tuple[str, ...], bound: Mapping[str, str]
) -> Iterator[Mapping[str, str]]:
    """Every way to bind the variables to the things, where each thing is used as often as it occurs."""
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
        fix = "fewer labels on one Copy or Fill, or a left side that fits fewer places"
        raise RuleError(f"the left side can be read in more than {most} ways", left=pattern, fix=fix)


def _bind(bound: dict[str, str], variable: str, thing: str) -> bool:
    """Bind a variable, and say whether it stands for the thing and nothing else does."""
    if variable not in bound and thing in bound.values():
        return False
    return bound.setdefault(variable, thing) == thing


def _sums_stay_inside(match: Match, summed: Sequence[str], everywhere: Carriers, output: Sequence[str]) -> bool:
    things = {match.labels[label] for label in summed}
    inside = all(position in match.nodes for thing in things for position, _ in everywhere[thing])
    return inside and not things & set(output)


def _sizes_agree(pattern: Network, host: Network, match: Match) -> bool:
    """A size that the pattern states must be known in the host and be equal."""
    return all(host.sizes.get(match.labels[label]) == size for label, size in pattern.sizes.items())


def whole_tensors(readings: list[Match], host: Network) -> list[tuple[Match, ...]]:
    """Group matches so that a tied tensor is matched at all its occurrences.

    Each group consists of disjoint matches with the same tensors, attributes and sizes, so that all of them become the
    same. A match whose tensors occur nowhere else is a group of its own. A match of a tied tensor is left out if no
    group has all occurrences of the tensor.
    """

    def alike(match: Match) -> tuple[object, ...]:
        sizes = {label: host.sizes.get(thing) for label, thing in match.labels.items()}
        return match.names, match.attributes, sizes

    occurrences = tensor_nodes(host)
    groups: list[tuple[Match, ...]] = []
    for number, match in enumerate(readings):
        needed = {place for name in match.names.values() for place in occurrences[name]}
        group = [match]
        covered = set(match.nodes)
        for other in readings[number + 1 :]:
            if needed <= covered:
                break
            if alike(other) == alike(match) and not covered & set(other.nodes):
                group.append(other)
                covered |= set(other.nodes)
        if needed <= covered:
            groups.append(tuple(group))
    return groups
