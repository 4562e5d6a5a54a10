"""Where the left side of a rule stands in a network: its names, labels and attributes are variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from ..errors import RuleError, explain
from ..network import Carriers, Copy, Fill, NamedTensor, Network, Node, Variable, carriers, tensor_nodes

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

    def extend(position: int, nodes: tuple[int, ...], state: _State) -> Iterator[Match]:
        nonlocal trials, found
        if position == len(pattern.nodes):
            if _sums_stay_inside(state, summed, nodes, everywhere, host) and _sizes_agree(pattern, host, state):
                found += 1
                _check_count(found, MAX_READINGS, pattern)
                yield Match(nodes, state.labels, state.names, state.attributes)
            return
        for candidate, node in enumerate(host.nodes):
            if candidate not in nodes:
                for next_state in _bindings(pattern.nodes[position], node, state):
                    trials += 1
                    _check_count(trials, MAX_TRIALS, pattern)
                    yield from extend(position + 1, (*nodes, candidate), next_state)

    yield from extend(0, (), _State({}, {}, {}))


@dataclass(frozen=True)
class _State:
    labels: Mapping[str, str]
    names: Mapping[str, str]
    attributes: Mapping[str, object]


def _bindings(variable: Node, node: Node, state: _State) -> Iterator[_State]:
    if type(variable) is not type(node) or len(variable.labels) != len(node.labels):
        return
    names, attributes = dict(state.names), dict(state.attributes)
    if isinstance(variable, NamedTensor):
        if not _bind(names, variable.name, node.name):
            return
    else:
        for field in fields(variable):
            wanted, found = getattr(variable, field.name), getattr(node, field.name)
            if isinstance(wanted, Variable):
                if attributes.setdefault(wanted.name, found) != found:
                    return
            elif not _is_label_field(field.name) and wanted != found:
                return
    if isinstance(node, Copy | Fill):
        bound = _in_any_order(variable.labels, node.labels, state.labels)
    else:
        labels = dict(state.labels)
        fits = all(_bind(labels, a, b) for a, b in zip(variable.labels, node.labels, strict=True))
        bound = iter([labels] if fits else [])
    yield from (_State(labels, names, attributes) for labels in bound)


def _in_any_order(
    variables: tuple[str, ...], things: tuple[str, ...], bound: Mapping[str, str]
) -> Iterator[Mapping[str, str]]:
    """Every way to bind the variables to the things, each thing as often as it stands there."""
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


def _is_label_field(name: str) -> bool:
    return name in ("x", "y", "k", "whole", "parts", "labels")


def _bind(bound: dict[str, str], variable: str, thing: str) -> bool:
    if variable in bound:
        return bound[variable] == thing
    if thing in bound.values():
        return False
    bound[variable] = thing
    return True


def _sums_stay_inside(
    state: _State, summed: list[str], nodes: tuple[int, ...], everywhere: Carriers, host: Network
) -> bool:
    inside = set(nodes)
    things = [state.labels[label] for label in summed]
    return all(
        thing not in host.output and all(position in inside for position, _ in everywhere[thing]) for thing in things
    )


def _sizes_agree(pattern: Network, host: Network, state: _State) -> bool:
    """A size the pattern states is a condition: it must be known in the host, and equal."""
    return all(host.sizes.get(state.labels[label]) == size for label, size in pattern.sizes.items())


def whole_tensors(found: list[Match], host: Network) -> list[tuple[Match, ...]]:
    """Group matches so that a tied tensor is matched at all its occurrences, or not at all.

    Each group is a set of disjoint matches with the same tensors, attributes and sizes, so that what one of them
    becomes, all of them become; a match whose tensors stand nowhere else is a group of its own. A tied tensor that
    no such set covers is left out.
    """

    def alike(match: Match) -> tuple[object, ...]:
        sizes = {label: host.sizes.get(thing) for label, thing in match.labels.items()}
        return match.names, match.attributes, sizes

    occurrences = tensor_nodes(host)
    groups: list[tuple[Match, ...]] = []
    for number, match in enumerate(found):
        wanted = {place for name in match.names.values() for place in occurrences[name]}
        group = [match]
        covered = set(match.nodes)
        for other in found[number + 1 :]:
            if wanted <= covered:
                break
            if alike(other) == alike(match) and not covered & set(other.nodes):
                group.append(other)
                covered |= set(other.nodes)
        if wanted <= covered:
            groups.append(tuple(group))
    return groups
