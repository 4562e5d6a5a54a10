"""Several networks that become one: words that keep their labels and names apart, and one in the place of a tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from ..errors import SizeError
from .labels import fresh
from .nodes import NamedTensor, Node, relabel, rename


def fresh_words(words: Iterable[str], taken: set[str]) -> dict[str, str]:
    """word -> a word that is not in `taken`, to which it is added."""
    new: dict[str, str] = {}
    for word in words:
        new[word] = fresh(word, taken)
        taken.add(new[word])
    return new


def merge_sizes(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """label -> size. Raises SizeError where two labels that become one have different sizes."""
    merged: dict[str, int] = {}
    for label, size in sizes:
        if merged.setdefault(label, size) != size:
            raise SizeError(f"labels of sizes {merged[label]} and {size} cannot both be {label!r}", fix="equal sizes")
    return merged


def words_apart(first: Sequence[Node], second: Sequence[Node], into: str) -> dict[str, str]:
    """New words for the labels of `second` that also occur in `first`, except those of the tensor `into`."""
    first_labels, second_labels = labels_in_order(first), labels_in_order(second)
    joined = {label for node in second if isinstance(node, NamedTensor) and node.name == into for label in node.labels}
    clashing = [label for label in second_labels if label in first_labels and label not in joined]
    return fresh_words(clashing, {*first_labels, *second_labels})


def labels_in_order(nodes: Sequence[Node]) -> dict[str, None]:
    """The labels of some nodes, each once, in the order in which they first occur."""
    return dict.fromkeys(label for node in nodes for label in node.labels)


def local_labels_apart(
    products: Sequence[tuple[Sequence[Node], Mapping[str, int]]], output: Collection[str]
) -> tuple[list[tuple[Node, ...]], dict[str, int]]:
    """The nodes of the terms of a sum, in which a label that is not in the output occurs in one term only.

    Args:
        products: for each term its nodes, and the sizes that are known of its labels.

    Raises:
        SizeError: two terms give an output label different sizes.
    """
    taken, apart = set(output), []
    sizes: dict[str, int] = {}
    for nodes, known in products:
        local = [label for label in labels_in_order(nodes) if label not in output]
        clashing = [label for label in local if label in taken]
        taken.update(local)
        words = fresh_words(clashing, taken)
        apart.append(tuple([relabel(node, words) for node in nodes]) if words else tuple(nodes))
        for label, size in known.items():
            if sizes.setdefault(words.get(label, label), size) != size:
                fact = f"label {label!r} has two sizes, {sizes[label]} and {size}, in two terms of a sum"
                raise SizeError(fact, fix="one size: the labels of the output are those of every term", label=label)
    return apart, sizes


class Product(Protocol):
    """The parts of a network with one term."""

    @property
    def nodes(self) -> tuple[Node, ...]: ...

    @property
    def output(self) -> tuple[str, ...]: ...

    @property
    def sizes(self) -> Mapping[str, int]: ...


def joined(
    factors: Sequence[Product], second: Product, places: Sequence[int], names: Mapping[str, str]
) -> tuple[list[Node], dict[str, int], list[str]]:
    """The nodes, sizes and output of a product with one network in the place of each occurrence of its input.

    Args:
        factors: one for each of `places`, the positions of the input in `second`. Their output labels are the same.
        names: new names for tensors of `second`.
    """
    of_factors = [node for factor in factors for node in factor.nodes]
    into = second.nodes[places[0]].name if places else ""
    labels = words_apart(of_factors, second.nodes, into)
    taken = {*labels_in_order((*of_factors, *second.nodes)), *labels.values()}
    nodes: list[Node] = []
    sizes: list[tuple[str, int]] = []
    for number, (factor, place) in enumerate(zip(factors, places, strict=True)):
        inner = fresh_words(labels_in_order(factor.nodes), taken) if number else {}
        for open_label, label in zip(factor.output, second.nodes[place].labels, strict=True):
            if label in labels:  # joined before: the input occurs twice, or has one label twice
                inner[open_label] = labels[label]
            else:
                labels[label] = inner.get(open_label, open_label)
        nodes += [relabel(node, inner) for node in factor.nodes]
        sizes += [(inner.get(label, label), size) for label, size in factor.sizes.items()]
    kept = (node for position, node in enumerate(second.nodes) if position not in places)
    nodes += [rename(relabel(node, labels), names) for node in kept]
    sizes += [(labels.get(label, label), size) for label, size in second.sizes.items()]
    return nodes, merge_sizes(sizes), [labels.get(label, label) for label in second.output]


def with_output(
    nodes: Sequence[Node], sizes: Mapping[str, int], output: Sequence[str], wanted: Sequence[str]
) -> tuple[list[Node], dict[str, int]]:
    """The nodes and sizes with the output labels that are wanted; other labels with these words make way."""
    words = dict(zip(output, wanted, strict=True))
    local = [label for label in labels_in_order(nodes) if label not in words]
    words |= fresh_words([label for label in local if label in wanted], {*local, *words, *wanted})
    return [relabel(node, words) for node in nodes], {words.get(n, n): size for n, size in sizes.items()}
