"""Networks with some nodes taken out, put in, or renamed: what every rewrite ends in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .network import Network
from .nodes import Node, relabel


def rebuilt(
    network: Network,
    *,
    remove: Iterable[int],
    add: Sequence[Node] = (),
    labels: Mapping[str, str] | None = None,
    replace: Mapping[int, Node] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Network:
    """`network` without the nodes `remove`, with `add` where the first of them stood, some nodes replaced, and
    labels renamed everywhere (also in `add`). Sizes of labels that are still there stay.
    """
    remove, labels, replace = sorted(set(remove)), labels or {}, replace or {}
    nodes: list[Node] = []
    for position, node in enumerate(network.nodes):
        if remove and position == remove[0]:
            nodes += add
        if position not in remove:
            nodes.append(replace.get(position, node))
    nodes = [relabel(node, labels) for node in nodes]
    known = {labels.get(label, label): size for label, size in network.sizes.items()} | dict(sizes or {})
    there = {label for node in nodes for label in node.labels}
    output = [labels.get(label, label) for label in network.output]
    return Network(nodes, output, {label: size for label, size in known.items() if label in there})
