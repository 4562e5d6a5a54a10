"""The calls of torch for Fourier transforms: their padding, their blocks, and what is kept of their results."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx
from torch.nn import functional

from . import operations as ops

SizeNode: TypeAlias = "int | fx.Node"


def combined(graph: fx.Graph, one: SizeNode, other: SizeNode, function: Callable[[Any, Any], Any]) -> SizeNode:
    """A function of two sizes, computed at once where both are numbers."""
    if isinstance(one, int) and isinstance(other, int):
        return int(function(one, other))
    if other == {operator.add: 0, operator.mul: 1, operator.floordiv: 1}.get(function):
        return one
    return graph.call_function(function, (one, other))


def emit_transform(graph: fx.Graph, operation: ops.Transform, node: fx.Node, *, sizes: Sequence[SizeNode]) -> fx.Node:
    """The transform of a node whose last axes have these sizes."""
    count = len(operation.lengths)
    dims = list(range(-count, 0))
    dtype = graph.call_function(torch.promote_types, (graph.call_function(getattr, (node, "dtype")), torch.float32))
    node = graph.call_method("to", (node, dtype))
    if operation.turned:
        node = graph.call_method("flip", (node, dims))
    for dim, apart in zip(dims, operation.apart, strict=True):
        if apart > 1:
            node = graph.call_method("unsqueeze", (node, dim))
            node = graph.call_function(functional.pad, (node, [0, 0] * (-1 - dim) + [0, apart - 1]))
            node = graph.call_method("flatten", (node, dim - 1, dim))
    flat: list[SizeNode] = []
    for number in reversed(range(count)):
        block, (low, high) = operation.blocks[number], operation.pads[number]
        length = combined(graph, sizes[number], operation.apart[number], operator.mul)
        positions = combined(graph, length, low + high, operator.add)
        if block:
            # as many blocks as have all results; the last one is filled up
            overlap = operation.reach[number] - 1
            more = combined(graph, positions, block - 1 - overlap, operator.add)
            blocks = combined(graph, more, block, operator.floordiv)
            total = combined(graph, combined(graph, blocks, block, operator.mul), overlap - low, operator.add)
            negative = -length if isinstance(length, int) else graph.call_function(operator.neg, (length,))
            flat += [low, combined(graph, total, negative, operator.add)]
        else:
            flat += [low, min(high, 0)]
    if any(flat):
        node = graph.call_function(functional.pad, (node, flat))
    if any(operation.blocks):
        for block, length in zip(operation.blocks, operation.lengths, strict=True):
            if block:  # the elements of a block become the last axis, so that the next axis takes this place
                node = graph.call_method("unfold", (node, -count, length, block))
            else:
                node = graph.call_method("movedim", (node, -count, -1))
    if count == 1:
        return graph.call_function(torch.fft.rfft, (node,), {"n": operation.lengths[0]})
    return graph.call_function(torch.fft.rfftn, (node,), {"s": operation.lengths, "dim": dims})


def emit_inverse(
    graph: fx.Graph, operation: ops.Inverse, node: fx.Node, like: fx.Node, *, sizes: Sequence[SizeNode]
) -> fx.Node:
    """The inverse transform without wrapped elements, in the type of another node whose last axes have these sizes."""
    count = len(operation.lengths)
    if count == 1:
        node = graph.call_function(torch.fft.irfft, (node,), {"n": operation.lengths[0]})
    else:
        keywords: dict[str, Any] = {"s": operation.lengths, "dim": list(range(-count, 0))}
        node = graph.call_function(torch.fft.irfftn, (node,), keywords)
    node = _sliced(graph, node, [slice(reach - 1, None) for reach in operation.reach])
    cut = [number for number, block in enumerate(operation.blocks) if block]
    if cut:
        node = _joined(graph, node, cut, count)
    kept = []
    for size, (factor, more), stride in zip(sizes, operation.ends, operation.stride, strict=True):
        end = combined(graph, combined(graph, size, factor, operator.mul), more, operator.add)
        kept.append(slice(None, end, stride if stride > 1 else None))
    node = graph.call_method("contiguous", (_sliced(graph, node, kept),))
    return graph.call_method("to", (node, graph.call_function(getattr, (like, "dtype"))))


def _joined(graph: fx.Graph, node: fx.Node, cut: list[int], count: int) -> fx.Node:
    """The blocks of the axes that are cut, one after another: (blocks ..., positions ...) -> (positions ...)."""
    if count > 1:
        order = []
        for number in range(count):
            if number in cut:
                order.append(-count - len(cut) + cut.index(number))
            order.append(-count + number)
        places = list(range(-count - len(cut), 0))
        if order != places:
            node = graph.call_method("movedim", (node, order, places))
    for number in reversed(cut):
        after = count - 1 - number
        node = graph.call_method("flatten", (node, -after - 2, -after - 1))
    return node


def _sliced(graph: fx.Graph, node: fx.Node, slices: list[slice]) -> fx.Node:
    """The slices of the last axes."""
    if all(one == slice(None) or one == slice(0, None) for one in slices):
        return node
    index: Any = (Ellipsis, *slices)
    return graph.call_function(operator.getitem, (node, index))
