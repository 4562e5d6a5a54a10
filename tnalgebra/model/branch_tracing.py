"""The graph of a module by torch.fx in which its branches are looked for: additions, and layers that are affine."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import LayerError
from ..nn import CONVOLUTIONS, KernelLayer, differing_forward, is_altered

ADDITIONS = (operator.add, operator.iadd, torch.add)
_IN_PLACE = (
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod),
    *(operator.ipow, operator.iand, operator.ior, operator.ixor, operator.imatmul),
)
_POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_UNCHANGED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
AFFINE_LAYERS = (*CONVOLUTIONS, *_POOLINGS, _BatchNorm)


def trace_module(module: nn.Module) -> fx.GraphModule:
    """A module by its graph, whose values can be computed in any order.

    Raises what its code raises, and LayerError where hooks inside of it would be lost, where its code depends on which
    arguments a call has, and where a value is changed in place that may be read elsewhere too.
    """
    for name, inner in module.named_modules():
        if inner is not module and not isinstance(inner, (*AFFINE_LAYERS, *_UNCHANGED)) and is_altered(inner):
            raise LayerError(f"{name} has hooks or a forward of its own, which the graph would not call")
    graph = _Tracer().trace(module)
    parameters = inspect.signature(module.forward).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    if defaults and _calls(graph) != _calls(_Tracer(defaults).trace(module)):
        raise LayerError(f"its code depends on which of {', '.join(defaults)} a call has")
    modules = dict(module.named_modules())
    _leave_out_what_does_nothing(graph, modules)
    for node in graph.nodes:
        if changes_in_place(node, modules) and not (node.users and _is_alone(node, modules)):
            raise LayerError("a value is changed in place that may be read elsewhere too")
    traced = fx.GraphModule(module, graph, type(module).__name__)
    graph.eliminate_dead_code()
    return traced


def _leave_out_what_does_nothing(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Erase assertions, sums with 0 and modules that return their input."""
    for node in [*graph.nodes]:
        if node.op == "call_function" and node.target is torch._assert:  # which reads shapes of values
            graph.erase_node(node)
        elif _adds_zero(node) and not any(changes_in_place(one, modules) for one in node.users):
            summands = [one for one in node.args if isinstance(one, fx.Node)]  # as in sum(branches), or 0 for a branch
            node.replace_all_uses_with(*summands)
            graph.erase_node(node)
        elif node.op == "call_module" and _changes_nothing(modules[str(node.target)]):
            node.replace_all_uses_with(*node.all_input_nodes)
            graph.erase_node(node)


def _calls(graph: fx.Graph) -> list[tuple[str, str]]:
    return [(node.op, str(node.target)) for node in graph.nodes if node.op != "placeholder"]


def _adds_zero(node: fx.Node) -> bool:
    plain = node.op == "call_function" and node.target in ADDITIONS and node.target is not operator.iadd
    return plain and not node.kwargs and 0 in node.args


def changes_in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node changes the memory of a value that it takes."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, fx.GraphModule):
            inner = dict(module.named_modules())
            return any(changes_in_place(one, inner) and not is_new(one, inner) for one in module.graph.nodes)
        return bool(getattr(module, "inplace", False))
    name = _name(node)
    in_place = node.op.startswith("call_") and name.endswith("_") and not name.endswith("__")
    return in_place or node.target in _IN_PLACE or node.kwargs.get("inplace") is True or "out" in node.kwargs


def _is_alone(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node that changes memory is the only one that reads it in the graph."""
    several = "out" in node.kwargs or (node.op == "call_module" and hasattr(modules[str(node.target)], "graph"))
    changed = node.all_input_nodes if several else node.all_input_nodes[:1]
    return all(len(one.users) == 1 and (one.op == "placeholder" or is_new(one, modules)) for one in changed)


def is_new(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a value surely has memory that it shares with no other value, but for those that were changed into it."""
    if node.op not in ("call_module", "call_function", "call_method"):
        return False
    if changes_in_place(node, modules):
        return all(is_new(one, modules) for one in node.all_input_nodes[:1])
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, fx.GraphModule):
            output = module.graph.output_node().args[0]
            return isinstance(output, fx.Node) and is_new(output, dict(module.named_modules()))
        activation = getattr(module, "inplace", None) is False and not isinstance(module, _UNCHANGED)
        return activation or isinstance(module, (*AFFINE_LAYERS, nn.Linear, KernelLayer))
    name = _name(node)
    packet = None if "dropout" in name else getattr(torch.ops.aten, name, None)
    schemas = [getattr(packet, one)._schema for one in packet.overloads()] if packet is not None else []
    schemas = [one for one in schemas if not any(argument.is_out for argument in one.arguments)]
    return bool(schemas) and all(result.alias_info is None for one in schemas for result in one.returns)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _changes_nothing(module: nn.Module) -> bool:
    return isinstance(module, _UNCHANGED) and not is_altered(module) and not (module.training and hasattr(module, "p"))


class _Proxy(fx.Proxy):
    """A value in the graph; `x += y` changes it there too, where torch.fx would make a new one."""


def _in_place_method(target: Callable[..., Any]) -> Callable[[fx.Proxy, object], fx.Proxy]:
    return lambda proxy, other: proxy.tracer.create_proxy("call_function", target, (proxy, other), {})


for _target in _IN_PLACE:
    setattr(_Proxy, f"__{_target.__name__}__", _in_place_method(_target))


class _Tracer(fx.Tracer):
    """Layers are leaves, also those of subclasses, and so are decomposed layers.

    fixed: values of arguments of the module.
    """

    def __init__(self, fixed: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self.fixed = fixed or {}

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        function, values = super().create_args_for_root(*args, **kwargs)
        return function, [self.fixed.get(str(v.node.target), v) if isinstance(v, fx.Proxy) else v for v in values]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        plain = isinstance(m, CONVOLUTIONS) and differing_forward(m, torch_class_of(m)) is None
        known = isinstance(m, KernelLayer | fx.GraphModule)
        return plain or known or super().is_leaf_module(m, module_qualified_name)


def torch_class_of(module: nn.Module) -> type[nn.Module]:
    """The class of torch's convolutions that a module belongs to."""
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
