"""The graph of a module by torch.fx in which its branches are looked for: additions, and layers that are affine."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import LayerError
from ..nn import CONVOLUTIONS, KernelLayer, differing_forward
from .folding import is_altered

ADDITIONS = (operator.add, operator.iadd, torch.add)
_POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_UNCHANGED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
AFFINE_LAYERS = (*CONVOLUTIONS, *_POOLINGS, _BatchNorm)


def trace_module(module: nn.Module) -> fx.GraphModule:
    """A module by its graph. Raises what its code raises, and LayerError where hooks inside of it would be lost."""
    for name, inner in module.named_modules():
        if inner is not module and not isinstance(inner, (*AFFINE_LAYERS, *_UNCHANGED)) and is_altered(inner):
            raise LayerError(f"{name} has hooks or a forward of its own, which the graph would not call")
    graph = _Tracer().trace(module)
    for node in [*graph.nodes]:
        if node.op == "call_function" and node.target is torch._assert:  # which reads shapes of values
            graph.erase_node(node)
        elif node.op == "call_function" and node.target in ADDITIONS and not node.kwargs and 0 in node.args:
            summands = [one for one in node.args if isinstance(one, fx.Node)]  # as in sum(branches), or 0 for a branch
            node.replace_all_uses_with(*summands)
            graph.erase_node(node)
        elif node.op == "call_module" and _changes_nothing(module.get_submodule(str(node.target))):
            node.replace_all_uses_with(*node.all_input_nodes)
            graph.erase_node(node)
    modules = dict(module.named_modules())
    for node in graph.nodes:
        if not node.users and changes_in_place(node, modules):
            raise LayerError("a value is changed in place, and read under another name")
    traced = fx.GraphModule(module, graph, type(module).__name__)
    graph.eliminate_dead_code()
    return traced


def changes_in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node changes its first argument in place."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = node.op.startswith("call_") and name.endswith("_") and not name.endswith("__")
    return in_place or node.target is operator.iadd or node.kwargs.get("inplace") is True


def _changes_nothing(module: nn.Module) -> bool:
    return isinstance(module, _UNCHANGED) and not is_altered(module) and not (module.training and hasattr(module, "p"))


class _Proxy(fx.Proxy):
    """A value in the graph; `x += y` changes it there too, where torch.fx would make a new one."""

    def __iadd__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    """Layers are leaves, also those of subclasses, and so are decomposed layers."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        plain = isinstance(m, CONVOLUTIONS) and differing_forward(m, _kind(m)) is None
        known = isinstance(m, KernelLayer | fx.GraphModule)
        return plain or known or super().is_leaf_module(m, module_qualified_name)


def _kind(module: nn.Module) -> type[nn.Module]:
    return next(kind for kind in CONVOLUTIONS if isinstance(module, kind))


def may_have_branches(module: nn.Module) -> bool:
    """Whether a module has a forward of its own and a convolution in it."""
    plain = type(module).__module__.startswith("torch.nn") or isinstance(module, KernelLayer | fx.GraphModule)
    return not plain and any(isinstance(one, CONVOLUTIONS) for one in module.modules())


def adds_directly(module: nn.Module) -> bool:
    """Whether a module holds at least two convolutions, itself or in lists and sequences of its own."""
    count = 0
    for child in module.children():
        if isinstance(child, CONVOLUTIONS):
            count += 1
        elif isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            count += sum(isinstance(one, CONVOLUTIONS) for one in child.children())
    return count > 1
