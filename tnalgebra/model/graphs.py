"""The forward pass of a model as a graph of torch.fx, traced into every module as far as it can be."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection
from typing import Any

from torch import Tensor, fx, nn

from ..errors import LayerError
from ..nn import KERNEL_LAYERS
from .modules import copy_model


def trace_forward(network: nn.Module) -> tuple[fx.Graph, dict[fx.Node, Tensor]]:
    """The graph of a network's forward pass, in the modes that its modules have.

    A module whose forward depends on the numbers, or does what torch.fx cannot follow, is one node.

    Returns:
        The graph, and the nodes of tensors that the forward pass makes itself, with these.

    Raises:
        LayerError: torch.fx cannot trace the forward pass of the network itself.
    """
    tensors = [*network.parameters(), *network.buffers()]
    opaque: set[type[nn.Module]] = set()
    while True:
        tracer = _Tracer(opaque)
        try:
            # a copy, because tracing may leave symbols in attributes; it shares the tensors
            model = copy_model(network, tensors)
            parameters = inspect.signature(model.forward).parameters.values()
            defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = tracer.trace(model, concrete_args=defaults)
            return graph, {node: vars(model)[str(node.target)] for node in graph.nodes if _is_constant(node)}
        except Exception as error:  # forward is somebody else's code, which may raise anything when it meets symbols
            if tracer.failed is None or tracer.failed in opaque:
                because = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                raise LayerError(f"torch.fx cannot trace {type(network).__name__}", because=because) from error
            opaque.add(tracer.failed)


class _Tracer(fx.Tracer):
    """Takes some modules for one step, and keeps the class of the innermost one that it cannot trace.

    A layer of a class that derives from torch's is one step where it computes what torch's does.
    """

    proxy_buffer_attributes = True

    def __init__(self, opaque: Collection[type[nn.Module]]) -> None:
        super().__init__()
        self.opaque = opaque
        self.failed: type[nn.Module] | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_layer = isinstance(m, KERNEL_LAYERS) and type(m).forward.__module__.startswith("torch.nn")
        return is_layer or type(m) in self.opaque or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or type(m)
            raise


def _is_constant(node: fx.Node) -> bool:
    """Whether a node is a tensor that the tracer has put into the network."""
    return node.op == "get_attr" and str(node.target).startswith("_tensor_constant")
