"""Which layer each batch normalisation of a model follows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import LayerError
from ..nn import KERNEL_LAYERS, LAYERS, WEIGHT_FACTS, KernelLayer
from .example import Example, read_example, tensors_in
from .modes import hooked

_log = logging.getLogger(__name__)

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Relative change of a folded model's outputs that is rounding, layer upon layer; of coarser types 0.1."""

Sources: TypeAlias = dict[_BatchNorm, nn.Module | str]
"""Batch normalisation -> the layer whose output it alone takes, or why no such layer is known."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A run on the example: the model's arguments and outputs, and what its layers were seen to do.

    rows: the linear layers whose outputs have two axes.
    sources: batch normalisation -> the layer whose output is its input, where both are called once.
    """

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    outputs: list[Tensor]
    rows: frozenset[nn.Module]
    sources: Mapping[nn.Module, nn.Module]

    @classmethod
    def of(cls, model: nn.Module, example: Example) -> Seen:
        axes: dict[nn.Module, set[int]] = {}
        made: dict[int, tuple[nn.Module, Tensor]] = {}  # the tensors are kept, so that no two have one id
        taken: list[tuple[nn.Module, nn.Module]] = []
        times: Counter[nn.Module] = Counter()

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            times[module] += 1
            x = args[0] if args else kwargs.get("input")
            if isinstance(module, _BatchNorm):
                if id(x) in made:
                    taken.append((module, made[id(x)][0]))
            else:
                axes.setdefault(module, set()).add(output.ndim)
                made[id(output)] = (module, output)

        watched = [module for module in model.modules() if isinstance(module, (*KERNEL_LAYERS, *LAYERS, _BatchNorm))]
        args, kwargs = read_example(example, model)
        with hooked(dict.fromkeys(watched, look)):
            outputs = [one.clone() for one in _comparable(model(*args, **kwargs))]
        if not outputs:
            fact = f"{type(model).__name__} gives no tensor of numbers that could be compared"
            raise LayerError(fact, fix="leave the example out, and compare the outputs yourself")
        users = Counter(layer for _, layer in taken)
        sources = {n: layer for n, layer in taken if times[n] == times[layer] == users[layer] == 1}
        return cls((args, kwargs), outputs, frozenset(m for m, counts in axes.items() if counts == {2}), sources)

    @property
    def tolerance(self) -> float:
        return max(_TOLERANCE.get(output.dtype, 0.1) for output in self.outputs)

    def change(self, model: nn.Module) -> float:
        """||outputs - those before||_F / ||those before||_F; infinite if shapes differ or numbers are not finite."""
        args, kwargs = self.arguments
        outputs = _comparable(model(*args, **kwargs))
        if [one.shape for one in outputs] != [one.shape for one in self.outputs]:
            return torch.inf
        distance = sum(float(torch.dist(*both)) ** 2 for both in zip(outputs, self.outputs, strict=True)) ** 0.5
        change: float = distance / (sum(float(one.norm()) ** 2 for one in self.outputs) ** 0.5 or 1.0)
        return torch.inf if change != change else change


def _comparable(output: object) -> list[Tensor]:
    return [one for one in tensors_in(output) if one.is_floating_point() or one.is_complex()]


def find_sources(
    model: nn.Module, norms: Sequence[_BatchNorm], seen: Seen | None, pairs: Mapping[str, str] | None
) -> tuple[Sources, bool]:
    """The layer that each batch normalisation follows, and whether it is certain that nothing else uses its output."""
    if pairs is not None:
        modules = dict(model.named_modules())
        named: Sources = dict.fromkeys(norms, "it is not named in pairs")
        for layer, name in pairs.items():
            norm = modules.get(name)
            if layer not in modules or not isinstance(norm, _BatchNorm):
                known = ", ".join(one for one in modules if isinstance(modules[one], _BatchNorm))
                fact = f"{layer!r} and {name!r} are not a layer and a batch normalisation of the model"
                raise LayerError(fact, batch_normalisations=known)
            named[norm] = modules[layer]
        return named, True
    if not norms:
        return {}, True
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # the model's own code, which may raise anything when it is traced
        because = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        _log.info("%s cannot be traced: %s", type(model).__name__, because)
        if seen is not None:
            unseen = "the example does not show one layer that feeds it directly"
            return {norm: seen.sources.get(norm, unseen) for norm in norms}, False
        unknown = f"the model cannot be traced ({because}), and without an example it is unknown what it follows"
        neighbours: Sources = dict.fromkeys(norms, unknown)
        for module in model.modules():
            if type(module) is nn.Sequential:
                neighbours |= {two: one for one, two in pairwise(module) if two in neighbours}
        return neighbours, False
    return _sources_in_graph(model, graph, norms, tracer.read), True


class _Tracer(fx.Tracer):
    """Decomposed layers are leaves, as torch's are.

    read: the buffers that the model reads outside of leaves; parameters that it reads are nodes of the graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: set[Tensor] = set()

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if isinstance(attr_val, Tensor) and not isinstance(attr_val, nn.Parameter):
            self.read.add(attr_val)
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, KernelLayer) or super().is_leaf_module(m, module_qualified_name)


def _sources_in_graph(model: nn.Module, graph: fx.Graph, norms: Sequence[_BatchNorm], read: set[Tensor]) -> Sources:
    targets = {node.target for node in graph.find_nodes(op="get_attr") if _is_read(node)}
    read |= {parameter for name, parameter in model.named_parameters() if name in targets}
    called = {node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    times = Counter(called.values())
    sources: Sources = dict.fromkeys(norms, "it is not called")
    for node, norm in called.items():
        if isinstance(norm, _BatchNorm):
            before = node.args[0] if node.args else None
            layer = called.get(before) if isinstance(before, fx.Node) else None
            if layer is None or not isinstance(before, fx.Node):
                sources[norm] = "it does not follow a layer directly"
            elif times[norm] > 1 or times[layer] > 1:
                sources[norm] = "it or the layer before it is called more than once"
            elif len(before.users) > 1:
                sources[norm] = "the layer before it also feeds something else"
            elif not read.isdisjoint(
                one for module in (norm, layer) for one in (*module.parameters(), *module.buffers())
            ):
                sources[norm] = "the model also reads a tensor of it or of the layer before it without calling it"
            else:
                sources[norm] = layer
    return sources


def _is_read(node: fx.Node) -> bool:
    """Whether more than the shape, the dtype or the device of a parameter is used."""
    facts = (user.args[1] if user.target is getattr else user.target for user in node.users)
    return not WEIGHT_FACTS.issuperset(facts)
