"""The kernel of a linear map: what its input meets apart from windows, with the roles of all labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ..errors import NetworkError
from ..networks import Conv, Fill, Fuse, NamedTensor, Network, carriers, shape_of
from ..rewriting import merge_circular_windows, merge_windows, rewrite


@dataclass(frozen=True)
class Moved:
    """A window that takes a position of the input, `before`, to one of the output, `after`."""

    node: Conv
    before: str
    after: str

    @property
    def is_transposed(self) -> bool:
        return self.node.y == self.before


@dataclass(frozen=True)
class Kernel:
    """A linear map without its input and its windows.

    windows: one for each axis of positions.
    groups: labels of both sides that stay apart, and on which the map depends.
    alike: labels of both sides on whose values the map does not depend, such as a batch.
    outs, ins: the other labels of each side that are not positions, after reshapes.
    parts: a label of the input or of the output -> the labels that a reshape splits it into.
    network: its output has the labels k of the windows, the groups, the outs and the ins, in this order.
    """

    windows: tuple[Moved, ...]
    groups: tuple[str, ...]
    alike: tuple[str, ...]
    outs: tuple[str, ...]
    ins: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]]
    network: Network

    def count(self, labels: tuple[str, ...]) -> int:
        """The product of the sizes of labels."""
        return prod(shape_of(self.network, labels))


def kernel_of(network: Network, name: str) -> Kernel:
    """The kernel of a network as a map of the tensor with this name; consecutive windows are merged.

    Raises:
        NetworkError: a position of the input has other nodes than one window, or does not reach the output.
    """
    network = rewrite(network, (merge_windows, merge_circular_windows)).network
    source = next(node for node in network.nodes if isinstance(node, NamedTensor) and node.name == name)
    windows = _windows(network, source)
    positions = {label for one in windows for label in (one.before, one.after)}
    before = [label for label in source.labels if label not in positions]
    after = [label for label in network.output if label not in positions]
    places = carriers(network)
    alike = tuple(label for label in before if label in after and len(places[label]) == 1)
    parts = _parts(network, before, after)
    split_ins, split_outs = (_split(labels, alike, parts) for labels in (before, after))
    groups = tuple(label for label in split_ins if label in split_outs)
    ins, outs = (tuple(label for label in labels if label not in groups) for labels in (split_ins, split_outs))
    inner = _without(network, source, windows, (*groups, *outs, *ins))
    return Kernel(windows, groups, alike, outs, ins, parts, inner)


def _windows(network: Network, source: NamedTensor) -> tuple[Moved, ...]:
    """The windows over labels of the input, in the order of these labels."""
    windows, places = [], carriers(network)
    for label in source.labels:
        on = [network.nodes[position] for position, _ in places[label]]
        if any(isinstance(node, Conv) for node in on):
            windows.append(_window(network, label, [node for node in on if node is not source]))
    return tuple(windows)


def _split(labels: list[str], alike: tuple[str, ...], parts: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The labels on which a map depends, with their parts in the place of those that a reshape splits."""
    return [part for label in labels if label not in alike for part in parts.get(label, (label,))]


def _without(network: Network, source: NamedTensor, windows: tuple[Moved, ...], labels: tuple[str, ...]) -> Network:
    """What a network has besides its input and windows; its output has the k of the windows, and then the labels."""
    used = [one.node for one in windows]
    rest = [node for node in network.nodes if node is not source and node not in used]
    held = {label for node in rest for label in node.labels}
    output = (*(node.k for node in used), *labels)
    rest += [Fill((label,)) for label in output if label not in held]
    return Network(rest, output, {label: size for label, size in network.sizes.items() if label in held | {*output}})


def _parts(network: Network, before: list[str], after: list[str]) -> dict[str, tuple[str, ...]]:
    """The reshapes of labels that occur on one side only: label -> its parts."""
    parts: dict[str, tuple[str, ...]] = {}
    for node in network.nodes:
        if isinstance(node, Fuse) and (node.whole in before) != (node.whole in after) and node.whole not in parts:
            apart = len({*node.labels}) == len(node.labels) and not {*node.parts} & {*before, *after}
            if apart:
                parts[node.whole] = node.parts
    return parts


def _window(network: Network, label: str, on: list[object]) -> Moved:
    """The window over one label of the input."""
    node = on[0]
    if len(on) == 1 and isinstance(node, Conv) and len({*node.labels}) == 3:
        other = node.y if node.x == label else node.x
        reaches = other in network.output and len(carriers(network)[other]) == 1
        if reaches and label not in network.output and node.k not in (*network.output, label):
            return Moved(node, label, other)
    fix = "a position of the input that has one window, or several one after another, and nothing else"
    raise NetworkError(f"the position {label!r} does not have one window to the output", network=network, fix=fix)
