"""What the exact rules share: how a rule is made, and the nodes and labels that several of them look for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

from ...networks import (
    Carriers,
    Edit,
    NamedTensor,
    Network,
    carriers,
    edited,
    fresh_words,
    renamed,
    sum_of_products,
    tensor_nodes,
    tensors_of,
)
from ...tensors import Values
from ..options import Options, Place
from ..rule import Builder, Finder, Rule
from ..step import Change


def exact(
    equation: str,
) -> Callable[[Callable[[Network], Iterable[tuple[Place, Edit]]]], Rule]:
    """Make a rule of a function that yields every place together with the edit that is to be made there.

    The name of the function is the name of the rule. Its docstring says why the equation holds, why applying the rule
    again and again ends, and when it must not fire.
    """

    def decorate(candidates: Callable[[Network], Iterable[tuple[Place, Edit]]]) -> Rule:
        def find(network: Network, options: Options) -> Iterator[Place]:
            if len(network.terms) > 1:
                return (Place(place.nodes, place.labels, change) for place, change in _in_terms(network, candidates))
            return (Place(place.nodes, place.labels, edit) for place, edit in candidates(network))

        def build(network: Network, place: Place, values: Values, options: Options) -> Change:
            if isinstance(place.match, Change):
                return place.match
            assert isinstance(place.match, Edit)
            return Change(edited(network, place.match), place.match.definitions)

        return _named(candidates, equation, find, build)

    return decorate


def exact_of_sums(equation: str) -> Callable[[Callable[[Network], Iterable[tuple[Place, Change]]]], Rule]:
    """Make a rule of a function that yields every place together with the whole network after the step."""

    def decorate(candidates: Callable[[Network], Iterable[tuple[Place, Change]]]) -> Rule:
        def find(network: Network, options: Options) -> Iterator[Place]:
            several = candidates(network) if len(network.terms) > 1 else ()
            return (Place(place.nodes, place.labels, change) for place, change in several)

        def build(network: Network, place: Place, values: Values, options: Options) -> Change:
            assert isinstance(place.match, Change)
            return place.match

        return _named(candidates, equation, find, build)

    return decorate


def _named(function: Callable[..., object], equation: str, find: Finder, build: Builder) -> Rule:
    """A rule with the name and the docstring of a function."""
    name, explanation = function.__name__, inspect.getdoc(function) or ""
    return Rule(name, "exact", equation, find, build, spec={"exact": name}, explanation=explanation)


def _in_terms(
    network: Network, candidates: Callable[[Network], Iterable[tuple[Place, Edit]]]
) -> Iterator[tuple[Place, Change]]:
    """The changes of a rule about products in each term of a sum.

    A tensor that other terms have as well is not changed, as a tied tensor is changed everywhere or nowhere.
    """
    start = 0
    for number, term in enumerate(network.terms):
        others = [other for place, other in enumerate(network.terms) if place != number]
        taken = {name for other in others for name in tensors_of(other)}
        for place, edit in candidates(term):
            old = {name for definition in edit.definitions.values() for name in tensors_of(definition)}
            if old & taken:
                continue
            after = edited(term, edit)
            names = fresh_words(
                [name for name in edit.definitions if name in taken], {*tensors_of(network), *tensors_of(after)}
            )
            terms = [*network.terms]
            terms[number] = renamed(after, names=names)
            whole = sum_of_products([(one.nodes, one.sizes) for one in terms], network.output)
            definitions = {names.get(name, name): definition for name, definition in edit.definitions.items()}
            nodes = tuple(start + position for position in place.nodes)
            yield Place(nodes, place.labels), Change(whole, definitions)
        start += len(term.nodes)


def untied(network: Network) -> dict[int, NamedTensor]:
    """The named tensors that occur once, by position."""
    once = (places[0] for places in tensor_nodes(network).values() if len(places) == 1)
    nodes = ((position, network.nodes[position]) for position in sorted(once))
    return {position: node for position, node in nodes if isinstance(node, NamedTensor)}


N = TypeVar("N")


def of_type(network: Network, kind: type[N]) -> dict[int, N]:
    """The nodes of one kind, by position."""
    return {position: node for position, node in enumerate(network.nodes) if isinstance(node, kind)}


def dead_outside(network: Network, positions: Collection[int], standing: Carriers | None = None) -> set[str]:
    """The labels that are closed and occur only on the nodes at these positions.

    Args:
        standing: the network's `carriers`, for callers that ask many times.
    """
    standing = carriers(network) if standing is None else standing
    labels = {label for position in positions for label in network.nodes[position].labels}
    return {
        label
        for label in labels
        if label not in network.output and all(position in positions for position, _ in standing[label])
    }


def once(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels without repetitions, in order."""
    return tuple(dict.fromkeys(labels))
