"""What an exact rule does to a network: nodes that are removed, added and replaced, and labels that are renamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .network import Network
from .nodes import Node, relabel


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of a network, as an exact rule proposes it; `edited` makes the change.

    remove: positions of the nodes to remove.
    add: nodes to insert where the first of those was.
    replace: position -> the node to put there instead.
    labels: old -> new word, for all nodes (also those of `add` and `replace`) and for the output.
    sizes: label -> size, for new labels.
    definitions: name of a new tensor -> the network over the old tensors whose value it is.
    """

    remove: Sequence[int] = ()
    add: Sequence[Node] = ()
    replace: Mapping[int, Node] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    definitions: Mapping[str, Network] = field(default_factory=dict)


def edited(network: Network, edit: Edit) -> Network:
    """The network after an edit. Labels that are still in use keep their sizes."""
    removed = set(edit.remove)
    nodes: list[Node] = []
    for position, node in enumerate(network.nodes):
        if removed and position == min(removed):
            nodes += edit.add
        if position not in removed:
            nodes.append(edit.replace.get(position, node))
    nodes = [relabel(node, edit.labels) for node in nodes]
    known = {edit.labels.get(label, label): size for label, size in network.sizes.items()} | dict(edit.sizes)
    used = {label for node in nodes for label in node.labels}
    output = [edit.labels.get(label, label) for label in network.output]
    return Network(nodes, output, {label: size for label, size in known.items() if label in used})
