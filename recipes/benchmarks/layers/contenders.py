"""The contenders of a cell. All of them receive the same random cores.

The cores are scaled so that their kernel has the variance of torch's own initialisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from math import prod
from typing import NamedTuple
from zlib import crc32

import torch
from opt_einsum import contract_expression
from torch import Tensor, nn
from torch.nn import functional

import tnalgebra as tn
from recipes.benchmarks.chains import LABELS, ChannelsLast, Stage, chain_work, conv_chain, one_call
from recipes.benchmarks.layers.cells import (
    MERGED,
    UNDECOMPOSED,
    Cell,
    Shape,
    hand_chains,
    kernel_network,
    tensorly_cores,
)
from recipes.benchmarks.report import AGAIN
from recipes.benchmarks.runner import PREDICTED, Contender

OURS: dict[str, tn.compiler.Candidates] = {
    "ours": "all",
    "ours frozen": "all",
    "ours factored": "factored",
    "ours factored frozen": "factored",
}
HAND = ("hand contiguous", "hand channels_last", "hand merged contiguous", "hand merged channels_last")
PEERS = {"tensorly": "tltorch", "tensorly reconstructed": "tltorch", "einconv": "einconv"}
"""Contender -> the module that it imports."""
CONTENDERS = ("dense", f"dense{AGAIN}", "dense + rebuild", *HAND, *PEERS, *OURS)


class Problem(NamedTuple):
    """What the contenders of a cell are made from."""

    cell: Cell
    shape: Shape
    cores: dict[str, Tensor]
    kernel: Tensor
    """The kernel that the cores make: out, in (of one group), kh, kw."""
    images: Tensor
    """Shape (batch, channels, height, width), in the memory format of the cell."""
    weights: Tensor
    """The weights of the output's elements in the sum whose gradient is taken."""


def make_problem(cell: Cell, shape: Shape, *, seed: int, dtype: torch.dtype, device: str) -> Problem:
    """Draw cores and input, which depend only on cell and seed."""
    generator = torch.Generator().manual_seed(crc32(f"{seed} {cell}".encode()))
    operands = core_labels(cell.decomposition)
    sizes = {**dict(zip(LABELS, shape.weight, strict=True)), **dict(cell.ranks)}
    cores = {
        name: torch.randn([sizes[label] for label in labels], generator=generator, dtype=torch.float64)
        for name, labels in operands.items()
    }
    rebuild = Einsum(list(operands.values()), LABELS)
    deviation = (3 * prod(shape.weight[1:])) ** -0.5  # torch draws uniformly within 1 / sqrt(fan in)
    scale = (deviation / float(rebuild(*cores.values()).square().mean().sqrt())) ** (1 / len(cores))
    cores = {name: (core * scale).to(device, dtype) for name, core in cores.items()}
    kernel = rebuild(*cores.values()).contiguous()
    images = torch.randn(cell.batch, shape.inputs, shape.size, shape.size, generator=generator)
    out = (shape.size - shape.kernel + 2 * shape.padding) // shape.stride + 1
    weights = torch.randn(cell.batch, shape.outputs, out, out, generator=generator)
    images = images.to(device, dtype, memory_format=layout_of(cell))
    return Problem(cell, shape, cores, kernel, images, weights.to(device, dtype))


def layout_of(cell: Cell) -> torch.memory_format:
    """The memory format of a cell, as torch has it."""
    return torch.channels_last if cell.memory_format == "channels_last" else torch.contiguous_format


def core_labels(decomposition: str) -> dict[str, tuple[str, ...]]:
    """Name of a core -> the labels of its axes."""
    nodes = kernel_network(decomposition).nodes
    return {node.name: node.labels for node in nodes if isinstance(node, tn.networks.NamedTensor)}


class Einsum:
    """Contract operands whose labels are words; the order of the steps is found once."""

    def __init__(self, operands: Sequence[Sequence[str]], output: Sequence[str]) -> None:
        letters: dict[str, str] = {}
        for label in (label for labels in operands for label in labels):
            letters.setdefault(label, chr(ord("a") + len(letters)))
        left = ",".join("".join(letters[label] for label in labels) for labels in operands)
        self.equation = f"{left}->{''.join(letters[label] for label in output)}"
        self.expressions: dict[str, Callable[..., Tensor]] = {}

    def __call__(self, *operands: Tensor) -> Tensor:
        return self.contract(self.equation, operands)

    def contract(self, equation: str, operands: Sequence[Tensor]) -> Tensor:
        if equation not in self.expressions:
            shapes = [operand.shape for operand in operands]
            self.expressions[equation] = contract_expression(equation, *shapes, optimize="auto")
        return self.expressions[equation](*operands)


class Rebuilt(nn.Module):
    """torch's convolution with a kernel that is contracted from the cores in each call."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.cores = nn.ParameterList(core.clone() for core in problem.cores.values())
        self.rebuild = Einsum(list(core_labels(problem.cell.decomposition).values()), LABELS)
        self.numbers = problem.shape.numbers

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = functional.conv2d(images, self.rebuild(*self.cores), **self.numbers)
        return output


class Einconv(nn.Module):
    """einconv's einsum of the convolution with the cores instead of the kernel, simplified by einconv.

    The simplification also slices the input, so it is part of each call, as in einconv's own layers. The index patterns
    are made once.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.einconv = import_module("einconv")
        shape = self.shape = problem.shape
        cores, operands = [], []
        for name, labels in core_labels(problem.cell.decomposition).items():
            core, axis = problem.cores[name].clone(), labels.index("out") if "out" in labels else None
            if axis is not None:  # the outputs as groups, and the outputs of one group
                core = _split(core, axis, shape.groups)
                labels = (*labels[:axis], "g", "m", *labels[axis + 1 :])
            cores.append(core)
            operands.append(labels)
        self.cores = nn.ParameterList(cores)
        axes = (shape.size, shape.kernel, shape.stride, shape.padding)
        pattern = self.einconv.index_pattern(*axes, device=problem.images.device, dtype=problem.images.dtype)
        self.pattern = pattern  # not a buffer, because a copy would lose the attributes that einconv has set on it
        inputs = [("n", "g", "in", "x", "y"), ("kh", "u", "x"), ("kw", "v", "y")]
        self.einsum = Einsum([*inputs, *operands], ("n", "g", "m", "u", "v"))

    def forward(self, images: Tensor) -> Tensor:
        split = _split(images, 1, self.shape.groups)
        equation, operands = self.einconv.simplify(
            self.einsum.equation, [split, self.pattern, self.pattern, *self.cores]
        )
        output = self.einsum.contract(equation, operands)
        return output.reshape(len(images), self.shape.outputs, *self.pattern.shape[1:2] * 2)


def _split(tensor: Tensor, axis: int, parts: int) -> Tensor:
    """The tensor with one axis split into two, the first of them with `parts` elements."""
    return tensor.reshape(*tensor.shape[:axis], parts, -1, *tensor.shape[axis + 1 :])


def takes_part(name: str, cell: Cell, shape: Shape) -> bool:
    """Whether a contender exists in a cell, whether its package is installed or not."""
    name = name.removesuffix(PREDICTED)
    if cell.decomposition == UNDECOMPOSED and name not in ("dense", f"dense{AGAIN}", "einconv", "ours", "ours frozen"):
        return False
    if name in HAND and not name.endswith(cell.memory_format):
        return False
    if name.startswith("hand merged"):
        return cell.decomposition in MERGED or (shape.kernel == 1 and cell.decomposition == "tucker2")
    if PEERS.get(name) == "tltorch":
        return cell.decomposition in ("cp", "tucker2", "train") and shape.groups == 1
    return cell.goes == "forward" or not name.endswith("frozen")


def make_contender(name: str, problem: Problem) -> Contender:
    """Build a contender from the cores of a cell.

    In training, gradients with respect to the input and all parameters are taken of a sum of the output's elements with
    fixed random weights.
    """
    training = problem.cell.goes == "training"
    module, multiply_adds = _module(name, problem)
    call = one_call(
        module.train(training),
        problem.images.detach().requires_grad_(training),
        problem.cell.goes,
        lambda output: (output, problem.weights),
    )
    return Contender(call, lambda: {"multiply_adds": multiply_adds})


def _module(name: str, problem: Problem) -> tuple[nn.Module, int | None]:
    """The module of a contender, and its multiply-adds if they are known."""
    shape, decomposition = problem.shape, problem.cell.decomposition
    base = name.removesuffix(PREDICTED)
    if base == "dense" or base in HAND:
        chains = hand_chains(decomposition, problem.cores, shape)
        chain = [Stage(problem.kernel, shape.groups)] if base == "dense" else chains["merged" * ("merged" in base)]
        module = conv_chain(shape.layer, chain)
        multiply_adds = chain_work(shape.layer, chain, problem.images.shape)[1]
        last = base.endswith("channels_last") or (base == "dense" and layout_of(problem.cell) == torch.channels_last)
        return ChannelsLast(module) if last else module, multiply_adds
    if base == "dense + rebuild":
        return Rebuilt(problem), None
    if base == "einconv":
        return Einconv(problem), None
    if base in PEERS:
        tltorch = import_module("tltorch")
        kind, arguments = tensorly_cores(decomposition, problem.cores)
        layer: nn.Module = tltorch.FactorizedConv.from_factorization(
            getattr(tltorch, kind)(*arguments),
            implementation="reconstructed" if base.endswith("reconstructed") else "factorized",
            stride=shape.stride,
            padding=shape.padding,
        )
        return layer, None
    dense = tn.networks.convolution((shape.kernel,) * 2, **shape.numbers)
    compiled = tn.compile(
        dense if decomposition == UNDECOMPOSED else tn.networks.compose(kernel_network(decomposition), dense, into="K"),
        inputs={"X": tuple(problem.images.shape)},
        values=problem.cores,
        candidates=OURS[base],
        backward=problem.cell.goes == "training",
        memory_format=layout_of(problem.cell),
        tune=not name.endswith(PREDICTED),
    )
    if base.endswith("frozen"):
        compiled.freeze()
    return compiled, compiled.plan.multiply_adds
