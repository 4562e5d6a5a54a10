"""Rules about sums of networks: terms that vanish, and terms that become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, combinations
from typing import TypeAlias

import networkx

from ...networks import (
    Conv,
    Fill,
    NamedTensor,
    Network,
    Node,
    aligned,
    all_nodes,
    collected,
    fresh,
    fresh_words,
    in_one_window,
    labels_in_order,
    relabel,
    rename,
    resized,
    sum_of_products,
    tensors_of,
)
from ..matching import Match, matches
from ..options import Place
from ..step import Change
from .shared import exact_of_sums

_Product: TypeAlias = tuple[Sequence[Node], Mapping[str, int]]


def _starts(network: Network) -> list[int]:
    """For each term the number of nodes in the terms before it."""
    return list(accumulate((len(term.nodes) for term in network.terms), initial=0))


def _place(network: Network, numbers: Sequence[int]) -> Place:
    """All nodes of some terms."""
    starts = _starts(network)
    return Place(tuple(n for number in numbers for n in range(starts[number], starts[number + 1])))


def _with_terms(network: Network, gone: Sequence[int], new: Sequence[Network]) -> Network:
    """The network with new terms in the place of the first of those that are gone."""
    products: list[_Product] = []
    for number, term in enumerate(network.terms):
        if number == gone[0]:
            products += [(one.nodes, {**one.sizes}) for one in new]
        if number not in gone:
            products.append((term.nodes, term.sizes))
    after = sum_of_products(products, network.output)
    known = {label: network.sizes[label] for label in network.output if label in network.sizes}
    return sum_of_products([(term.nodes, {**term.sizes, **known}) for term in after.terms], after.output)


def _occurrences(network: Network) -> Counter[str]:
    return Counter(node.name for node in all_nodes(network) if isinstance(node, NamedTensor))


@exact_of_sums("A[i] + B[i] Fill[ | value=0] => A[i]")
def drop_zero_term(network: Network) -> Iterator[tuple[Place, Change]]:
    """A term with a factor of 0 adds nothing. Of terms that are all 0 one stays. Ends: there is one term fewer."""
    for number, term in enumerate(network.terms):
        if any(isinstance(node, Fill) and node.value == 0 for node in term.nodes):
            yield _place(network, (number,)), Change(_with_terms(network, (number,), []))


@exact_of_sums("A[i b] B[b j] + A[i c] C[c j] => A[i b] B2[b j]")
def add_cores(network: Network) -> Iterator[tuple[Place, Change]]:
    """Two terms that differ in one core become one, whose core is the sum of both.

    The two cores may not occur anywhere else, as a tied tensor is changed at all its occurrences or not at all. The
    common nodes may be any. Ends: there is one term fewer.
    """
    occurs = _occurrences(network)
    for pair in combinations(range(len(network.terms)), 2):
        merged = _collect(network, pair)
        if merged is None:
            continue
        outer, kernel, name = merged
        nodes = [list(term.nodes) for term in kernel.terms]
        cores = [one for term in nodes for one in term if isinstance(one, NamedTensor)]
        alone = all(len(term) == 1 for term in nodes) and len(cores) == 2
        if alone and Counter(core.name for core in cores) == {core.name: occurs[core.name] for core in cores}:
            yield _place(network, pair), Change(_with_terms(network, pair, [outer]), {name: kernel})


@exact_of_sums("A[i b] B[b j] + A[i c] C[c d] D[d j] => A[i b] S[b j]")
def collect_terms(network: Network) -> Iterator[tuple[Place, Change]]:
    """The nodes that all terms have are collected; what is left of each is added up as one new tensor.

    A tensor that is left of a term may not occur among the common nodes as well. `compose` multiplies out again.
    Ends: one term is left.
    """
    everything = range(len(network.terms))
    merged = _collect(network, everything)
    if merged is not None:
        outer, kernel, name = merged
        inside, outside = tensors_of(kernel).keys(), tensors_of(outer).keys()
        if outside - {name} and not inside & outside:
            yield _place(network, everything), Change(_with_terms(network, everything, [outer]), {name: kernel})


def _collect(network: Network, numbers: Sequence[int]) -> tuple[Network, Network, str] | None:
    """Some terms as a product, the network of its new tensor, and the name of that."""
    terms = aligned([network.terms[number] for number in numbers])
    common = Counter(terms[0].nodes)
    for term in terms[1:]:
        common &= Counter(term.nodes)
    left = [node for node in terms[0].nodes if not common[node]]
    name = next((node.name for node in left if isinstance(node, NamedTensor)), "S")
    name = fresh(name, {*tensors_of(network)})
    pair = collected(terms, name)
    return None if pair is None else (*pair, name)


@exact_of_sums("A[i b] B[b j] + C[i c] D[c j] => A2[i d] B2[d j]")
def join_terms(network: Network) -> Iterator[tuple[Place, Change]]:
    """Two terms of one topology become one with larger bonds: the direct sum, in which each core is block diagonal.

    Bonds of sizes p and q become one of size p + q, of which the first p values are those of the first term. The cores
    must be connected by bonds that only named tensors have, so that no product of cores mixes the terms; other labels
    have equal sizes. The tensors may not occur in other terms, and all sizes must be known. Ends: there is one term
    fewer.
    """
    for pair in combinations(range(len(network.terms)), 2):
        one, other = (network.terms[number] for number in pair)
        elsewhere = {name for n, term in enumerate(network.terms) if n not in pair for name in tensors_of(term)}
        if elsewhere & {*tensors_of(one), *tensors_of(other)} or len(one.nodes) != len(other.nodes):
            continue
        sizeless = resized(one, {})
        match = next((match for match in matches(sizeless, other) if _is_joinable(one, other, match)), None)
        if match is not None:
            after, definitions = _direct_sum(network, one, other, match)
            yield _place(network, pair), Change(_with_terms(network, pair, [after]), definitions)


def _bonds(term: Network) -> list[str]:
    """The summed labels that only named tensors have."""
    fixed = {label for node in term.nodes if not isinstance(node, NamedTensor) for label in node.labels}
    return [label for label in labels_in_order(term.nodes) if label not in fixed and label not in term.output]


def _is_joinable(one: Network, other: Network, match: Match) -> bool:
    labels, bonds = match.labels, _bonds(one)
    sized = all(label in term.sizes for term in (one, other) for label in labels_in_order(term.nodes))
    opened = all(labels[label] == label for label in one.output)
    same = {labels[label] for label in bonds} == {*_bonds(other)}
    if not (sized and opened and same):
        return False
    if any(one.sizes[label] != other.sizes[thing] for label, thing in labels.items() if label not in bonds):
        return False
    graph: networkx.Graph[object] = networkx.Graph()
    for position, node in enumerate(one.nodes):
        if isinstance(node, NamedTensor):
            graph.add_node(position)
            graph.add_edges_from((position, label) for label in node.labels if label in bonds)
    return bool(bonds) and networkx.is_connected(graph)


def _direct_sum(network: Network, one: Network, other: Network, match: Match) -> tuple[Network, dict[str, Network]]:
    """The term with larger bonds, and each of its tensors as a sum of two that are placed in it."""
    bonds, taken = _bonds(one), {*tensors_of(network)}
    sizes = {**one.sizes, **{label: one.sizes[label] + other.sizes[match.labels[label]] for label in bonds}}
    names: dict[str, str] = {}
    definitions: dict[str, Network] = {}
    for name, node in tensors_of(one).items():
        names[name] = fresh(name, taken)
        taken.add(names[name])
        long = [sizes[label] if label in bonds else None for label in node.labels]
        first = _placed(name, [one.sizes[label] for label in node.labels], long, at_end=False)
        second = _placed(match.names[name], [other.sizes[match.labels[n]] for n in node.labels], long, at_end=True)
        axes = [f"axis_{axis}" for axis in range(len(long))]
        definitions[names[name]] = sum_of_products([first, second], axes)
    words = fresh_words(bonds, {label for node in all_nodes(network) for label in node.labels})
    nodes = [rename(relabel(node, words), names) for node in one.nodes]
    return Network(nodes, one.output, {words.get(n, n): size for n, size in sizes.items()}), definitions


def _placed(name: str, shape: Sequence[int], long: Sequence[int | None], *, at_end: bool) -> _Product:
    """A tensor at the low or the high ends of longer axes, and zero elsewhere: windows of one element place it there.

    Args:
        long: the size of each longer axis; None for axes that stay as they are.
    """
    labels, nodes, sizes = [], [], {}
    for number, (size, longer) in enumerate(zip(shape, long, strict=True)):
        axis, inner, one = f"axis_{number}", f"inner_{number}", f"one_{number}"
        labels.append(axis if longer is None else inner)
        sizes[labels[-1]] = size
        if longer is not None:
            before = longer - size if at_end else 0
            nodes.append(Conv(axis, inner, one, low=-before, high=before + size - longer))
            sizes |= {axis: longer, one: 1}
    return [NamedTensor(name, tuple(labels)), *nodes], sizes


@exact_of_sums("Conv[x y k] A[k] + Conv[x y l] B[l] => Conv[x y m] P[m k] A[k] + Conv[x y m] Q[m l] B[l]")
def share_window(network: Network) -> Iterator[tuple[Place, Change]]:
    """Two terms whose windows over the same labels differ get one window, in which each kernel is placed.

    x = s*y + d*k - p is x = s*y + g*m - P for m = (d*k + P - p)/g, which is a window of m over k with one position. The
    strides and the modes of padding must be equal, and all sizes known; inputs of other sizes must have the same
    positions. A label that a term passes unchanged is a window of one element, of any mode. Ends: fewer pairs of terms
    have different windows.
    """
    for pair in combinations(range(len(network.terms)), 2):
        terms = [network.terms[number] for number in pair]
        if all(label in term.sizes for term in terms for label in labels_in_order(term.nodes)):
            placed = in_one_window(terms)
            if placed is not None and any(
                {*new.nodes} != {*old.nodes} for new, old in zip(placed, aligned(terms), strict=True)
            ):
                yield _place(network, pair), Change(_with_terms(network, pair, placed))
