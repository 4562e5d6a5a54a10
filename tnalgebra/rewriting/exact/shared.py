"""What the exact rules share: how a rule is made, and the nodes and labels that several of them look for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

from ...networks import Carriers, Edit, NamedTensor, Network, carriers, edited, tensor_nodes
from ...tensors import Values
from ..options import Options, Place
from ..rule import Rule
from ..trace import Change


def exact(
    equation: str,
) -> Callable[[Callable[[Network], Iterable[tuple[Place, Edit]]]], Rule]:
    """Make a rule of a function that yields every place together with the edit that is to be made there.

    The name of the function is the name of the rule. Its docstring says why the equation holds, why applying the rule
    again and again ends, and when it must not fire.
    """

    def decorate(candidates: Callable[[Network], Iterable[tuple[Place, Edit]]]) -> Rule:
        def find(network: Network, options: Options) -> Iterator[Place]:
            return (Place(place.nodes, place.labels, edit) for place, edit in candidates(network))

        def build(network: Network, place: Place, values: Values, options: Options) -> Change:
            assert isinstance(place.match, Edit)
            return Change(edited(network, place.match), place.match.definitions)

        name = candidates.__name__
        return Rule(
            name, "exact", equation, find, build, spec={"exact": name}, explanation=inspect.getdoc(candidates) or ""
        )

    return decorate


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
