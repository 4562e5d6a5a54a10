"""The forward pass of a network as steps, so that passes which begin alike can share their beginning."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from ..errors import LayerError
from .graphs import trace_forward


@dataclass
class Progress:
    """How far a batch is in a network.

    step: the number of steps that are done.
    values: those results that later steps read.
    """

    step: int
    values: dict[fx.Node, Any]

    def copy(self) -> Progress:
        """A copy that steps in place do not touch. Views of one tensor stay views of one tensor."""
        return Progress(self.step, dict(zip(self.values, copy.deepcopy([*self.values.values()]), strict=True)))

    def bytes(self) -> int:
        """The memory of the values."""
        storages = (tensor.untyped_storage() for tensor in _tensors(self.values.values()))
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def versions(self) -> list[int]:
        """How often each value was changed in place."""
        return [tensor._version for tensor in _tensors(self.values.values())]


class ForwardSteps:
    """The steps of a network's forward pass: calls of modules, functions and methods, in their order.

    Args:
        network: the network, whose modules and parameters are used as they are when a step is done.
        graph: its graph, which returns one value.
        constants: the nodes of tensors that the forward pass makes itself.

    Raises:
        ValueError: the graph returns something else than one value, or needs more inputs than the images.
    """

    def __init__(self, network: nn.Module, graph: fx.Graph, constants: Mapping[fx.Node, Tensor]) -> None:
        self.inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self.nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
        (self.result,) = next(node for node in graph.nodes if node.op == "output").args
        if not isinstance(self.result, fx.Node) or not all(node.args for node in self.inputs[1:]):
            raise ValueError("the graph does not map images to one value")
        self._network = network
        self._constants = constants
        self._interpreter = fx.Interpreter(network, garbage_collect_values=False, graph=graph)
        self._unread: dict[fx.Node, list[fx.Node]] = {}
        """Node -> the values that no later node reads."""
        read = {self.result}
        for node in reversed(self.nodes):
            last = {node, *node.all_input_nodes} - read
            self._unread[node] = list(last)
            read |= last

    def first_reader(self, parameters: Collection[nn.Parameter]) -> int:
        """The number of steps before the first one that reads one of the parameters."""
        wanted = {id(parameter) for parameter in parameters}
        for number, node in enumerate(self.nodes):
            read: Iterable[object] = ()
            if node.op == "call_module":
                read = self._network.get_submodule(str(node.target)).parameters()
            elif node.op == "get_attr" and node not in self._constants:
                read = [self._interpreter.fetch_attr(str(node.target))]
            if any(id(one) in wanted for one in read):
                return number
        return len(self.nodes)

    def start(self, images: Tensor) -> Progress:
        """Before the first step."""
        return Progress(0, {self.inputs[0]: images, **{node: node.args[0] for node in self.inputs[1:]}})

    def advance(self, progress: Progress, step: int) -> None:
        """Do the steps up to this number, in place; values that are not read any more are dropped."""
        self._interpreter.env = progress.values
        for node in self.nodes[progress.step : step]:
            constant = self._constants.get(node)
            progress.values[node] = self._interpreter.run_node(node) if constant is None else constant
            for unread in self._unread[node]:
                del progress.values[unread]
        progress.step = step

    def finish(self, progress: Progress) -> Any:
        """Do all other steps. The progress stays where it is, but steps in place change its values.

        Returns:
            What the network returns.
        """
        rest = Progress(progress.step, dict(progress.values))
        self.advance(rest, len(self.nodes))
        return rest.values[self.result]


def trace(network: nn.Module) -> ForwardSteps | None:
    """The steps of a network, in the modes that its modules have.

    torch.fx traces into every module as far as it can. A module whose forward depends on the numbers, or does what
    torch.fx cannot follow, is one step.

    Returns:
        The steps; None if torch.fx cannot trace the forward pass of the network itself.
    """
    try:
        return ForwardSteps(network, *trace_forward(network))
    except (LayerError, ValueError):
        return None


def _tensors(value: object) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(value.values())
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for one in value:
            yield from _tensors(one)
