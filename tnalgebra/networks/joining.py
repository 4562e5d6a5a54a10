"""Words that keep the labels and names of several networks apart where they become one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from ..errors import SizeError
from .labels import fresh
from .nodes import NamedTensor, Node, relabel


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
