"""What a rewrite does to a network, as data, and the network after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .network import Network
from .nodes import Node, relabel


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of a network that has not been made yet.

    remove: positions of nodes that go.
    add: nodes that come, where the first of those stood.
    replace: position -> the node that takes another's place.
    labels: old -> new, renamed on all nodes (those of `add` and `replace` too) and in the output.
    sizes: of labels that are new.
    definitions: new tensor -> the network over the old tensors whose value it is.
    """

    remove: Sequence[int] = ()
    add: Sequence[Node] = ()
    replace: Mapping[int, Node] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    definitions: Mapping[str, Network] = field(default_factory=dict)


def edited(network: Network, edit: Edit) -> Network:
    """The network after an edit. Sizes of labels that are still there stay."""
    removed = set(edit.remove)
    nodes: list[Node] = []
    for position, node in enumerate(network.nodes):
        if removed and position == min(removed):
            nodes += edit.add
        if position not in removed:
            nodes.append(edit.replace.get(position, node))
    nodes = [relabel(node, edit.labels) for node in nodes]
    known = {edit.labels.get(label, label): size for label, size in network.sizes.items()} | dict(edit.sizes)
    there = {label for node in nodes for label in node.labels}
    output = [edit.labels.get(label, label) for label in network.output]
    return Network(nodes, output, {label: size for label, size in known.items() if label in there})
