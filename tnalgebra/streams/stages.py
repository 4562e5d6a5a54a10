"""A network along time as a chain: a product of one frame, a window of frames, a product of the window, and so on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..compiler import MAX_PLAN_ELEMENTS, Compiled, make_request
from ..errors import StreamError
from ..networks import (
    Conv,
    Copy,
    Fill,
    Fuse,
    NamedTensor,
    Network,
    Node,
    carriers,
    node_text,
    size_of,
    tensor_nodes,
    tensors_of,
    window,
)
from .links import Branches, FrameProduct, Link, Weights, Windowed
from .timing import TimeWindow, Timing

TIME = ""
"""Stands for the axis of time among the labels of a frame."""


LONG = 64
"""Frames of the output of a clip for which it is planned what meets the input before a window."""


@dataclass(frozen=True)
class _Frame:
    """The labels of a value in the chain.

    labels: with `TIME` at the axis of time.
    window: the label of the window that was taken of it, or None.
    """

    labels: tuple[str, ...]
    window: str | None = None

    @property
    def taken(self) -> tuple[str, ...]:
        """The labels of the tensor that a product takes."""
        named = (label if label != TIME else self.window for label in self.labels)
        return tuple(label for label in named if label is not None)

    @property
    def axis(self) -> int:
        return self.labels.index(TIME)


def chain_of_network(network: Network, x: str, axis: int, weights: Weights) -> tuple[Sequence[Link], int]:
    """The steps of a network along an axis of its input, and the axis of time of its output.

    Args:
        network: the sizes of all labels but those of time are known.
        x: the name of the input.

    Raises:
        StreamError: the label is not one of windows alone, see `time_path`.
    """
    chains: list[list[Link]] = []
    result = 0
    for term in network.terms:
        source = tensors_of(term).get(x)
        if source is None:
            fact = f"a term of the sum does not have the input {x!r}"
            raise StreamError(fact, term=term, fix="a bias, or a term of the input")
        of_term = replace(weights, bias=None if chains else weights.bias)
        links, result = _chain_of_product(term, x, source.labels[axis], of_term)
        chains.append(links)
    return (chains[0] if len(chains) == 1 else [Branches(tuple(chains))]), result


def _chain_of_product(network: Network, x: str, time: str, weights: Weights) -> tuple[list[Link], int]:
    """The steps of a network without sums.

    The tensors that a long clip meets before a window, in its fastest order, may meet a frame before it becomes a part
    of the state. They do where this is predicted to be faster than to multiply whole windows.
    """
    path = time_path(network, x, time)
    options = [[set[str]()] * len(path), _before_windows(network, x, path, weights)]
    if options[0] == options[1]:
        return _links(network, x, time, weights, early=options[0])
    untuned = replace(weights, tune=False)
    seconds = [_seconds(_links(network, x, time, untuned, early=early)[0]) for early in options]
    return _links(network, x, time, weights, early=options[seconds.index(min(seconds))])


def _seconds(links: Sequence[Link]) -> float:
    """The predicted seconds of all products."""
    return sum(link.compiled.plan.seconds for link in links if isinstance(link, FrameProduct))


def _links(
    network: Network, x: str, time: str, weights: Weights, *, early: Sequence[Collection[str]]
) -> tuple[list[Link], int]:
    """The steps if these tensors meet the frame before each window, and the axis of time of the output."""
    path = time_path(network, x, time)
    names = {time, *(conv.y for conv in path)}
    frame = _Frame(_with_time(tensors_of(network)[x].labels, names))
    rest = [node for node in network.nodes if node not in path and not _is_tensor(node, x)]
    links: list[Link] = []
    for number, conv in enumerate(path):
        stage = _Stage(network, frame, rest, tuple(one.k for one in path[number:]))
        chosen = stage.choose(early[number])
        if chosen or frame.window is not None:
            after = stage.after(chosen)
            links.append(stage.product(x, chosen, after, weights))
            frame, rest = _Frame(after), [node for node in rest if node not in chosen]
        links.append(Windowed(_window_of(network, conv), frame.axis))
        frame = _Frame(frame.labels, conv.k)
    after = _with_time(network.output, names)
    if rest or frame.window is not None or after != frame.labels or weights.bias is not None:
        links.append(_Stage(network, frame, rest, ()).product(x, rest, after, weights, bias=weights.bias))
    return links, after.index(TIME)


def _with_time(labels: Sequence[str], names: Collection[str]) -> tuple[str, ...]:
    """The labels with `TIME` in place of those of time."""
    return tuple(TIME if label in names else label for label in labels)


def _window_of(network: Network, conv: Conv) -> TimeWindow:
    numbers = window(conv)
    return TimeWindow(
        size_of(network, conv.k), **{name: numbers[name] for name in ("stride", "low", "high", "dilation")}
    )


def _before_windows(network: Network, x: str, path: Sequence[Conv], weights: Weights) -> list[set[str]]:
    """For each window along time the names of the weights that meet the input before it, where clips are long."""
    names = {node.name for node in network.nodes if isinstance(node, NamedTensor)} - {x}
    windows = {conv.k for conv in path}
    if not path or all(windows & {*node.labels} for node in network.nodes if node.name in names):
        return [set() for _ in path]
    timing = Timing()
    for conv in path:
        timing = _window_of(network, conv).after(timing)
    labels = {label for conv in path for label in (conv.x, conv.y)}
    sizes = {label: size for label, size in network.sizes.items() if label not in labels}
    sizes[path[0].x] = LONG * timing.stride + timing.receptive_field
    whole = Network(network.nodes, network.output, sizes)
    program = compiled_network(whole, x, weights, tune=False).plan.chosen.program
    before: list[set[str]] = []
    for conv in path:
        taken: set[str] = set()
        for operation in program.operations:
            ends = [number for number in operation.sources if conv.x in _labels_of(program.operations[number])]
            if ends and conv.x not in _labels_of(operation):
                taken = _weights_of(program.operations, ends[0])
                break
        before.append(taken)
    return before


def _labels_of(operation: Any) -> set[str]:
    """The labels of the value of an operation of a program."""
    return {label for axis in operation.axes for label in axis}


def _weights_of(operations: Sequence[Any], number: int) -> set[str]:
    """The names of all tensors that the value of an operation is made from."""
    names, waiting = set(), [number]
    while waiting:
        operation = operations[waiting.pop()]
        waiting += operation.sources
        if not operation.sources:
            names.add(operation.name)
    return names


def compiled_network(
    network: Network, x: str, weights: Weights, *, bias: str | None = None, tune: bool | None = None
) -> Compiled:
    """A network of an input and weights, compiled for inputs of its sizes."""
    source = next(node for node in network.nodes if _is_tensor(node, x))
    names = {*tensor_nodes(network), *(() if bias is None else ("bias",))}
    constants = frozenset(names & {*weights.constants})
    request, tensors = make_request(
        network,
        inputs={x: tuple(size_of(network, label) for label in source.labels)},
        values={name: value for name, value in weights.values.items() if name in names},
        constants=constants,
        bias=bias,
        candidates="all",
        backward=False,
        dynamic={},
        memory_format=torch.contiguous_format,
        max_elements=MAX_PLAN_ELEMENTS,
        format_kept=True,
    )
    return Compiled(request, tensors, constants, weights.tune if tune is None else tune)


def time_path(network: Network, x: str, time: str) -> list[Conv]:
    """The windows along time, each over the positions of the one before it.

    Raises:
        StreamError: the network has no such label; or the label is on a weight, on another input, in a reshape, summed
            over the whole of time, or on two windows; or a window is transposed or folds its padding.
    """
    places = carriers(network)
    if time not in places:
        raise StreamError(f"the network has no label {time!r}", labels=" ".join(places), network=network)
    inputs = [node for node in network.nodes if _is_tensor(node, x)]
    if len(inputs) != 1 or inputs[0].labels.count(time) != 1:
        fact = f"the input {x!r} does not have the label {time!r} once"
        raise StreamError(fact, network=network, fix="an input that occurs once, with one axis of time")
    path: list[Conv] = []
    label, before = time, network.nodes.index(inputs[0])
    while True:
        others = [network.nodes[position] for position, _ in places[label] if position != before]
        if label in network.output and not others:
            return path
        if not others or (len(others) == 1 and isinstance(others[0], Fill)):
            raise StreamError(
                f"all of {label!r} is summed: a global pooling has no value before the end of a clip",
                network=network,
                fix=f"a window, such as Conv[{label} s k] Fill[k:16 | value=1/16] for the mean of 16 frames",
            )
        if len(others) > 1 or label in network.output:
            listed = ", ".join(map(node_text, others))
            fact = f"the label {label!r} of time is on several nodes, or also in the output"
            raise StreamError(fact, nodes=listed, network=network, fix="one window over it")
        conv = _checked_window(others[0], label)
        path.append(conv)
        before, label = network.nodes.index(conv), conv.y


def _checked_window(node: Node, label: str) -> Conv:
    """The node, if it is a window over time. Raises StreamError if it is not."""
    if isinstance(node, NamedTensor):
        fact = f"the tensor {node_text(node)} has the label {label!r} of time: its numbers differ from frame to frame"
        raise StreamError(fact, fix="a tensor without this label")
    if not isinstance(node, Conv) or node.x != label or label in (node.y, node.k):
        fact = f"{node_text(node)} is not a window over {label!r}"
        fix = f"Conv[{label} s k], whose first label is that of time; transposed windows and reshapes cannot be streams"
        raise StreamError(fact, fix=fix)
    if node.mode != "zeros" and (node.low, node.high) != (0, 0):
        fact = f"the padding along {label!r} is {node.mode}: it repeats frames that have not come yet, or are past"
        raise StreamError(fact, where=node_text(node), fix="mode=zeros")
    return node


def _is_tensor(node: Node, name: str) -> bool:
    return isinstance(node, NamedTensor) and node.name == name


@dataclass(frozen=True)
class _Stage:
    """What may be computed of a frame before the next window is taken of it.

    rest: the nodes that are left.
    later: the labels of the windows along time that are still to be taken.
    """

    network: Network
    frame: _Frame
    rest: Sequence[Node]
    later: tuple[str, ...]

    def choose(self, early: Collection[str]) -> list[Node]:
        """The nodes that meet the frame before the next window: those with the last window, and the tensors `early`."""
        tensors = [node for node in self.rest if isinstance(node, NamedTensor | Fill)]
        free = [node for node in tensors if not {*node.labels} & {*self.later}]
        return self.closed([node for node in free if self.frame.window in node.labels or node.name in early])

    def closed(self, chosen: Sequence[Node]) -> list[Node]:
        """The nodes, with the windows and reshapes that join them to the frame."""
        nodes = [*chosen]
        reserved = [node for node in self.rest if node not in chosen and isinstance(node, Conv | Fuse | Copy)]
        others = [node for node in self.rest if node not in chosen and node not in reserved]
        before = -1
        while len(nodes) != before:
            before = len(nodes)
            inside = {*self.frame.taken, *(label for node in nodes for label in node.labels)}
            outside = {*self.network.output, *self.later, *(label for node in others for label in node.labels)}
            for node in [one for one in reserved if one not in nodes]:
                match node:
                    case Conv():
                        joins = {node.x, node.k} <= inside and node.k not in outside
                    case Fuse():
                        joins = node.whole in inside and bool({*node.parts} & inside)
                    case _:
                        joins = len({*node.labels} & inside) > 1
                if joins:
                    nodes.append(node)
        return nodes

    def after(self, chosen: Sequence[Node]) -> tuple[str, ...]:
        """The labels of the frame once it is multiplied with nodes.

        The positions of a window take the place of those that it runs over, and other new labels that of the first
        label that ends.
        """
        outside = {label for node in self.rest if node not in chosen for label in node.labels}
        outside |= {*self.network.output, *self.later}
        inside = dict.fromkeys([*self.frame.taken, *(label for node in chosen for label in node.labels)])
        positions = {node.x: node.y for node in chosen if isinstance(node, Conv) and node.x not in outside}
        before = [positions.get(label, label) for label in self.frame.labels]
        new = [label for label in inside if label in outside and label not in before]
        labels: list[str] = []
        for label in before:
            ends = label != TIME and label not in outside
            if (ends or label == TIME) and new:
                labels += new
                new = []
            if not ends and label not in labels:
                labels.append(label)
        return tuple(labels)

    def product(
        self, x: str, nodes: Sequence[Node], after: Sequence[str], weights: Weights, *, bias: str | None = None
    ) -> FrameProduct:
        """The product of the frame with some nodes, compiled.

        Args:
            x: the name of the input.
            after: the labels of the result, with `TIME`.
        """
        taken = self.frame.taken
        known = {*taken, *(label for node in nodes for label in node.labels)}
        sizes = {label: size for label, size in self.network.sizes.items() if label in known}
        part = Network([NamedTensor(x, taken), *nodes], [label for label in after if label != TIME], sizes)
        compiled = compiled_network(part, x, weights, bias=bias)
        return FrameProduct(compiled, self.frame.axis if self.frame.window is None else None, [*after].index(TIME))
