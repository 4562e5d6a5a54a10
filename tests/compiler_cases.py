"""What the tests of compiled networks share: compile, run every candidate, compare with the oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import tnalgebra as tn
from tests.strategies import random_values
from tnalgebra.compiler.choose import Candidate
from tnalgebra.compiler.compiled import Compiled
from tnalgebra.compiler.emit import argument_names, emit
from tnalgebra.networks.network import Network, all_nodes, resized, tensors_of
from tnalgebra.networks.nodes import Conv, Copy, Node
from tnalgebra.networks.notation import parse
from tnalgebra.tensors.evaluation import evaluate, magnitude, pattern

ROUNDING = 1e-12
"""Of `magnitude`: room for a few thousand float64 additions (2.2e-16 each), in whatever order a plan makes them."""

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

NOMINAL = (9, 8, 10)
OTHERS = ((1, (9, 8, 10)), (3, (11, 13, 7)), (2, (8, 10, 9)))
"""Batches and positions of later calls: odd, even, smaller, larger."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@st.composite
def torch_convolutions(draw: st.DrawFn) -> nn.Module:
    """A convolution, transposed or not, with any of torch's arguments; no two sizes equal where it can be."""
    axes = draw(st.sampled_from((1, 2, 2, 3)))
    groups, inside, outside = draw(st.sampled_from(((1, 3, 5), (1, 5, 2), (2, 3, 1), (3, 1, 1), (2, 2, 5), (4, 1, 3))))

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(axes))

    kernel, dilation = each(1, 4), each(1, 2)
    stride = (1,) * axes if draw(st.booleans()) else each(1, 3)
    arguments: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": groups, "bias": False}
    channels = (groups * inside, groups * outside)
    torch.manual_seed(draw(st.integers(0, 2**16)))
    if draw(st.integers(0, 2)) == 2:
        padding = tuple(min(p, d * (k - 1)) for p, k, d in zip(each(0, 2), kernel, dilation, strict=True))
        added = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        return TRANSPOSED[axes](*channels, kernel, padding=padding, output_padding=added, **arguments).double()
    padding = "same" if set(stride) == {1} and draw(st.booleans()) else each(0, 2)
    mode = draw(st.sampled_from(("zeros", "reflect", "replicate", "circular")))
    return CONV[axes](*channels, kernel, padding=padding, padding_mode=mode, **arguments).double()


def compiled(network: Network, values: Mapping[str, Tensor], inputs: Collection[str], **choices: Any) -> Compiled:
    """The network compiled with some of its tensors as inputs, of the shapes that their values have."""
    return tn.compile(
        network,
        inputs={name: values[name].shape for name in inputs},
        values={name: value for name, value in values.items() if name not in inputs},
        **choices,
    )


def assert_same(value: Tensor, expected: Tensor, scale: Tensor) -> None:
    assert value.shape == expected.shape
    assert value.dtype == expected.dtype
    assert value.dtype in (torch.float64, torch.complex128)
    assert ((value - expected).abs() <= ROUNDING * scale).all()


def candidate_value(candidate: Candidate, values: Mapping[str, Tensor]) -> Tensor:
    """What the code of one candidate computes."""
    program = candidate.program
    patterns = {leaf.name: leaf.node for leaf in program.patterns}
    names = (*program.inputs, *argument_names(program))
    arguments = [values[name] if name in values else _pattern(patterns[name], program.sizes) for name in names]
    result: Tensor = emit(program)(*arguments)
    return result


def _pattern(node: Node, sizes: Mapping[str, int]) -> Tensor:
    return pattern(node, Network([node], (), {label: sizes[label] for label in node.labels}))


def check(network: Network | str, inputs: str, *, seed: int = 0, **choices: Any) -> Compiled:
    """A network compiled: the module, every candidate and the frozen module all give the oracle's value.

    Args:
        inputs: names of tensors; the others get values.
    """
    network = parse(network) if isinstance(network, str) else network
    values = random_values(network, seed)
    module = compiled(network, values, inputs.split(), **choices)
    expected, scale = evaluate(network, values), magnitude(network, values)
    tensors = {name: values[name] for name in inputs.split()}
    assert_same(module(**tensors).detach(), expected, scale)
    for candidate in module.plan.candidates:
        assert_same(candidate_value(candidate, values), expected, scale)
    assert_same(module.freeze()(**tensors).detach(), expected, scale)
    assert_same(module.thaw()(**tensors).detach(), expected, scale)
    return module


def check_at(module: Compiled, sizes: Mapping[str, int], *, seed: int = 1) -> None:
    """The same module at other sizes of some labels: the oracle's value of the network with those sizes."""
    weights = dict(module.named_parameters()) | dict(module.named_buffers())
    network, inputs = module.network, module.plan.request.inputs
    other = at_other_sizes(network, sizes)
    values = random_values(other, seed)
    values |= {name: tensor.detach() for name, tensor in weights.items() if name in values}
    value = module(**{name: values[name] for name in inputs})
    assert_same(value.detach(), evaluate(other, values), magnitude(other, values))


def at_other_sizes(network: Network, sizes: Mapping[str, int]) -> Network:
    """The network with other sizes of some labels, and of those that follow along windows, copies and tied tensors."""
    changed = {*sizes}
    nodes = list(all_nodes(network))
    ties = [node.labels for node in nodes if isinstance(node, Copy)]
    for name in tensors_of(network):
        ties += zip(*(node.labels for node in nodes if node.name == name), strict=True)
    ties += [node.labels[:2] for node in nodes if isinstance(node, Conv)]
    for _ in nodes:
        for labels in ties:
            changed |= {*labels} if changed & {*labels} else set()
    kept = {label: size for label, size in network.sizes.items() if label not in changed}
    return resized(network, {**kept, **sizes})


def calls(module: Compiled) -> Counter[str]:
    """name of a function or method of torch -> how often the code calls it."""
    graph = module._code.graph
    return Counter(_name(node) for node in graph.nodes if node.op in ("call_function", "call_method"))


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else node.target.__name__  # type: ignore[union-attr]
