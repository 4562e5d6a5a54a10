"""Networks, their compiled modules and single candidates, for the tests of emitted code."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnalgebra
from tests.compiler_cases import at_other_sizes
from tests.strategies import random_values
from tnalgebra.compiler.choose import Candidate
from tnalgebra.compiler.compiled import Compiled
from tnalgebra.compiler.emit import argument_names, emit
from tnalgebra.networks.network import Network, shapes
from tnalgebra.networks.notation import parse
from tnalgebra.tensors.evaluation import evaluate, pattern

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def same(one: Tensor, two: Tensor, *, rtol: float = 1e-11, atol: float = 1e-12) -> None:
    """By default: differently ordered sums of at most a few hundred products of normal numbers, in float64."""
    torch.testing.assert_close(one, two, rtol=rtol, atol=atol)


@dataclass(frozen=True)
class Case:
    """A network whose input is X, with every size; the input may have any other size on the axes of `free` labels."""

    text: str
    free: str

    @property
    def network(self) -> Network:
        return parse(self.text)

    def value(self, x: Tensor) -> Tensor:
        """The oracle's, for an input of any size."""
        node = next(node for node in self.network.nodes if getattr(node, "name", None) == "X")
        network = at_other_sizes(self.network, dict(zip(node.labels, x.shape, strict=True)))
        return evaluate(network, {"X": x, **self.values()})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(shape) for name, shape in shapes(self.network).items()}

    def values(self, device: str = "cpu", dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Of all tensors but X."""
        values = random_values(self.network, 1)
        return {name: value.to(device, dtype) for name, value in values.items() if name != "X"}

    def input(self, device: str = "cpu", dtype: torch.dtype = torch.float64, **sizes: int) -> Tensor:
        """X, at other sizes of some labels if they are given."""
        node = next(node for node in self.network.nodes if getattr(node, "name", None) == "X")
        shape = [sizes.get(label, size) for label, size in zip(node.labels, self.shapes()["X"], strict=True)]
        tensor = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        return tensor.to(device, dtype)

    def other_sizes(self) -> dict[str, int]:
        """Larger sizes of the free labels, all different."""
        return {label: self.network.sizes[label] + 2 + n for n, label in enumerate(self.free.split())}

    def compiled(
        self, device: str = "cpu", dtype: torch.dtype = torch.float64, *, frozen: bool = False, **options: object
    ) -> Compiled:
        """A module of its own: a copy of one that is compiled once, unless it is measured."""
        compile_once = _compiled.__wrapped__ if "tune" in options else _compiled
        module = copy.deepcopy(compile_once(self, device, dtype, tuple(options.items())))
        return module.freeze() if frozen else module


@cache
def _compiled(case: Case, device: str, dtype: torch.dtype, options: tuple[tuple[str, Any], ...]) -> Compiled:
    inputs, values = {"X": case.shapes()["X"]}, case.values(device, dtype)
    return tnalgebra.compile(case.network, inputs=inputs, values=values, **dict(options))


CASES = {
    "tucker-2": Case(
        "X[n:2 i:3 x:6 y:5] Conv[x u:6 h:3 | padding=1] Conv[y v:5 w:3 | padding=1] U[o:5 a:2] G[a b:4 h w] V[b i] "
        "-> [n o u v]",
        "n x y",
    ),
    "cp, stride 2": Case(
        "X[n:2 i:3 x:7 y:6] Conv[x u:4 h:3 | stride=2 padding=1] Conv[y v:2 w:5 | stride=2 padding=1] A[o:5 r:4] "
        "B[i r] C[h r] D[w r] -> [n o u v]",
        "n x y",
    ),
    "train": Case(
        "X[n:2 i:3 x:6 y:5] Conv[x u:6 h:3 | padding=1] Conv[y v:6 w:2 | padding=1] A[o:5 p:4] B[p i q:2] "
        "C[q h s:3] D[s w] -> [n o u v]",
        "n x y",
    ),
    "ring": Case(
        "X[n:2 i:3 x:6 y:5] Conv[x u:6 h:3 | padding=1] Conv[y v:6 w:2 | padding=1] A[z:2 o:5 p:2] B[p i q:4] "
        "C[q h s:3] D[s w z] -> [n o u v]",
        "n x y",
    ),
    "grouped": Case(
        "X[n:3 c:6 x:6 y:5] Fuse[c g:2 i:3] Conv[x u:6 h:3 | padding=1] Conv[y v:4 w:2] U[g m:4 a:2] G[g a i h w] "
        "Fuse[o:8 g m] -> [n o u v]",
        "n x y",
    ),
    "transposed": Case(
        "X[n:2 i:3 u:4 v:5] Conv[x:8 u h:3 | stride=2 padding=1:0] Conv[y:10 v w:2 | stride=2] U[o:5 a:2] "
        "G[a b:4 h w] V[b i] -> [n o x y]",
        "n u v",
    ),
    "1x1": Case("X[n:2 i:6 x:4 y:5] U[o:7 r:3] V[r i] -> [n o x y]", "n x y"),
    "7x7 stem": Case(
        "X[n:2 i:3 x:9 y:8] Conv[x u:5 h:7 | stride=2 padding=3] Conv[y v:4 w:7 | stride=2 padding=3] U[o:5 a:2] "
        "G[a i h w] -> [n o u v]",
        "n x y",
    ),
    "linear": Case("X[n:4 i:6] A[a:3 i] B[b:2 a] C[o:5 b]", "n"),
    "Monarch": Case("X[n:4 i:6] Fuse[i a:2 b:3] R[a j:5 b] L[j c:4 a] Fuse[o:20 c j]", "n"),
    "pooling": Case(
        "X[n:2 c:3 x:6 y:8] Conv[x u:3 h:2 | stride=2] Conv[y v:4 w:2 | stride=2] Fill[h | value=1/2] "
        "Fill[w | value=1/2] S[o:5 c] -> [n o u v]",
        "n x y",
    ),
    "global pooling": Case("X[n:2 c:3 x:6 y:5] Fill[x | value=mean] Fill[y | value=mean] S[o:4 c]", "n x y"),
    "locally connected": Case("X[n:2 i:3 x:5 y:4] Conv[x u:3 h:3] Conv[y v:3 w:2] K[o:2 i u v h w] -> [n o u v]", "n"),
    "reflect": Case(
        "X[n:2 i:3 x:6 y:5] Conv[x u:7 h:3 | padding=1:2 mode=reflect] Conv[y v:5 w:3 | padding=1 mode=reflect] "
        "U[o:5 a:2] G[a i h w] -> [n o u v]",
        "n x y",
    ),
    "reflect on one axis": Case(
        "X[n:2 i:3 x:6 y:5] Conv[x u:4 h:3] Conv[y v:5 w:3 | padding=1 mode=reflect] U[o:5 a:2] G[a i h w] "
        "-> [n o u v]",
        "n x y",
    ),
    "depthwise, dilated": Case(
        "X[n:2 c:3 x:7 y:5] Conv[x u:6 h:2 | padding=0:1 dilation=2] Conv[y v:3 w:3] D[c h w] P[o:5 c] -> [n o u v]",
        "n x y",
    ),
    "1-d": Case("X[n:2 i:3 x:7] Conv[x u:7 k:3 | padding=1] U[o:5 a:2] G[a b:4 k] V[b i] -> [n o u]", "n x"),
    "3-d": Case(
        "X[n:2 i:2 x:4 y:5 z:7] Conv[x u:4 h:3 | padding=1] Conv[y v:4 w:2] Conv[z t:2 d:5 | stride=2] U[o:3 a:2] "
        "G[a i h w d] -> [n o u v t]",
        "n x y z",
    ),
}
"""The name of a layer -> its network."""


class Emitted(nn.Module):
    """The code of one candidate with parameters and patterns of its own, called with X alone."""

    def __init__(
        self, case: Case, candidate: Candidate, device: str = "cpu", dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        self.code = emit(candidate.program)
        self.names = argument_names(candidate.program)
        for name, value in case.values(device, dtype).items():
            self.register_parameter(name, nn.Parameter(value))
        for leaf in candidate.program.patterns:
            sizes = {label: candidate.program.sizes[label] for label in leaf.node.labels}
            self.register_buffer(leaf.name, pattern(leaf.node, Network([leaf.node], (), sizes)).to(device, dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.code(x, *(getattr(self, name) for name in self.names))  # type: ignore[no-any-return]


@cache
def candidates(name: str, *, channels_last: bool = False) -> tuple[Candidate, ...]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return CASES[name].compiled(memory_format=layout).plan.candidates


@cache
def picked(name: str, *, channels_last: bool = False) -> tuple[Candidate, ...]:
    """The cheapest candidate of each style, and the one with the most operations."""
    listed = candidates(name, channels_last=channels_last)
    cheapest = {one.program.style: one for one in reversed(listed)}.values()
    longest = max(listed, key=lambda one: len(one.program.operations))
    return (*cheapest, *([longest] if longest not in cheapest else []))
