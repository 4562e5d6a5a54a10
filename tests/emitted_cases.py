"""Networks, their compiled modules and single candidates, for the tests of emitted code."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import tnalgebra
from tests.compiler_cases import at_other_sizes
from tests.strategies import random_values
from tnalgebra.compiler.choose import Candidate
from tnalgebra.compiler.compiled import Compiled
from tnalgebra.compiler.emit import argument_names, emit
from tnalgebra.networks.network import Network, shapes, with_sizes
from tnalgebra.networks.notation import parse
from tnalgebra.tensors.evaluation import evaluate, pattern

WINDOWS = "Conv[x u h | padding=1] Conv[y v w | padding=1]"
STRIDED = "Conv[x u h | stride=2 padding=1] Conv[y v w | stride=2 padding=1]"


def same(one: Tensor, two: Tensor, *, rtol: float = 1e-11, atol: float = 1e-12) -> None:
    """By default: differently ordered sums of at most a few hundred products of normal numbers, in float64."""
    torch.testing.assert_close(one, two, rtol=rtol, atol=atol)


@dataclass(frozen=True)
class Case:
    """A network whose input is X, with every size; the input may have any other size on the axes of `free` labels."""

    text: str
    sizes: str
    free: str

    @property
    def network(self) -> Network:
        sizes = {label: int(size) for label, size in (pair.split("=") for pair in self.sizes.split())}
        return with_sizes(parse(self.text), sizes)

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
        f"X[n i x y] {WINDOWS} U[o a] G[a b h w] V[b i] -> [n o u v]", "n=2 i=3 x=6 y=5 h=3 w=3 o=5 a=2 b=4", "n x y"
    ),
    "cp, stride 2": Case(
        f"X[n i x y] {STRIDED} A[o r] B[i r] C[h r] D[w r] -> [n o u v]", "n=2 i=3 x=7 y=6 h=3 w=5 o=5 r=4", "n x y"
    ),
    "train": Case(
        f"X[n i x y] {WINDOWS} A[o p] B[p i q] C[q h s] D[s w] -> [n o u v]",
        "n=2 i=3 x=6 y=5 h=3 w=2 o=5 p=4 q=2 s=3",
        "n x y",
    ),
    "ring": Case(
        f"X[n i x y] {WINDOWS} A[z o p] B[p i q] C[q h s] D[s w z] -> [n o u v]",
        "n=2 i=3 x=6 y=5 h=3 w=2 o=5 p=2 q=4 s=3 z=2",
        "n x y",
    ),
    "grouped": Case(
        "X[n c x y] Fuse[c g i] Conv[x u h | padding=1] Conv[y v w] U[g m a] G[g a i h w] Fuse[o g m] -> [n o u v]",
        "n=3 g=2 i=3 x=6 y=5 h=3 w=2 m=4 a=2",
        "n x y",
    ),
    "transposed": Case(
        "X[n i u v] Conv[x u h | stride=2 padding=1:0] Conv[y v w | stride=2] U[o a] G[a b h w] V[b i] -> [n o x y]",
        "n=2 i=3 u=4 v=5 h=3 w=2 o=5 a=2 b=4 x=8 y=10",
        "n u v",
    ),
    "1x1": Case("X[n i x y] U[o r] V[r i] -> [n o x y]", "n=2 i=6 x=4 y=5 o=7 r=3", "n x y"),
    "7x7 stem": Case(
        "X[n i x y] Conv[x u h | stride=2 padding=3] Conv[y v w | stride=2 padding=3] U[o a] G[a i h w] -> [n o u v]",
        "n=2 i=3 x=9 y=8 h=7 w=7 o=5 a=2",
        "n x y",
    ),
    "linear": Case("X[n i] A[a i] B[b a] C[o b] -> [n o]", "n=4 i=6 a=3 b=2 o=5", "n"),
    "Monarch": Case("X[n i] Fuse[i a b] R[a j b] L[j c a] Fuse[o c j] -> [n o]", "n=4 a=2 b=3 j=5 c=4", "n"),
    "pooling": Case(
        "X[n c x y] Conv[x u h | stride=2] Conv[y v w | stride=2] Fill[h | value=1/2] Fill[w | value=1/2] "
        "S[o c] -> [n o u v]",
        "n=2 c=3 x=6 y=8 h=2 w=2 o=5",
        "n x y",
    ),
    "global pooling": Case(
        "X[n c x y] Fill[x | value=mean] Fill[y | value=mean] S[o c] -> [n o]", "n=2 c=3 x=6 y=5 o=4", "n x y"
    ),
    "locally connected": Case(
        "X[n i x y] Conv[x u h] Conv[y v w] K[o i u v h w] -> [n o u v]", "n=2 i=3 x=5 y=4 h=3 w=2 o=2", "n"
    ),
    "reflect": Case(
        "X[n i x y] Conv[x u h | padding=1:2 mode=reflect] Conv[y v w | padding=1 mode=reflect] "
        "U[o a] G[a i h w] -> [n o u v]",
        "n=2 i=3 x=6 y=5 h=3 w=3 o=5 a=2",
        "n x y",
    ),
    "reflect on one axis": Case(
        "X[n i x y] Conv[x u h] Conv[y v w | padding=1 mode=reflect] U[o a] G[a i h w] -> [n o u v]",
        "n=2 i=3 x=6 y=5 h=3 w=3 o=5 a=2",
        "n x y",
    ),
    "depthwise, dilated": Case(
        "X[n c x y] Conv[x u h | dilation=2 padding=0:1] Conv[y v w] D[c h w] P[o c] -> [n o u v]",
        "n=2 c=3 x=7 y=5 h=2 w=3 o=5",
        "n x y",
    ),
    "1-d": Case(
        "X[n i x] Conv[x u k | padding=1] U[o a] G[a b k] V[b i] -> [n o u]", "n=2 i=3 x=7 k=3 o=5 a=2 b=4", "n x"
    ),
    "3-d": Case(
        "X[n i x y z] Conv[x u h | padding=1] Conv[y v w] Conv[z t d | stride=2] U[o a] G[a i h w d] -> [n o u v t]",
        "n=2 i=2 x=4 y=5 z=7 h=3 w=2 d=5 o=3 a=2",
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
        self.candidate = candidate
        self.code = emit(candidate.program)
        self.names = argument_names(candidate.program)
        for name, value in case.values(device, dtype).items():
            self.register_parameter(name, nn.Parameter(value))
        for leaf in (*candidate.computation.leaves, *candidate.program.patterns):
            if leaf.kind == "pattern":
                self.register_buffer(leaf.name, pattern(leaf.node, candidate.computation.network).to(device, dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.code(x, *(getattr(self, name) for name in self.names))  # type: ignore[no-any-return]


@cache
def candidates(name: str, *, channels_last: bool = False) -> tuple[Candidate, ...]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return CASES[name].compiled(memory_format=layout).plan.candidates


@cache
def picked(name: str, *, each: int = 1, channels_last: bool = False) -> tuple[Candidate, ...]:
    """The cheapest candidates of each style; where few contract the weights first, one that does not is among them."""
    listed = candidates(name, channels_last=channels_last)
    found: list[Candidate] = []
    for style in dict.fromkeys(one.program.style for one in listed):
        found += [one for one in listed if one.program.style == style][:each]
    longest = max(listed, key=lambda one: len(one.program.operations))
    return (*found, *([longest] if longest not in found else []))
