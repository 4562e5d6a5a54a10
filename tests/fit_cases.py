"""Rules with sizes, and kernels for them: of known numbers, or random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.kernel_cases import gaussian
from tnalgebra.networks import Fuse, NamedTensor, Network, carriers, parse_rule, shapes, with_sizes
from tnalgebra.rewriting import Rule, rule
from tnalgebra.tensors import value_of


@dataclass(frozen=True)
class Case:
    """A rule in the notation, with the size of every label as "o=7 i=6 r=3"."""

    text: str
    sizing: str

    @property
    def rule(self) -> Rule:
        return rule(self.text)

    @property
    def sizes(self) -> dict[str, int]:
        return {label: int(size) for label, size in (pair.split("=") for pair in self.sizing.split())}

    @property
    def choices(self) -> dict[str, Any]:
        """Ranks of the bonds, and sizes of the parts of each `Fuse`."""
        parts = {label for node in parse_rule(self.text)[1].nodes if isinstance(node, Fuse) for label in node.parts}
        ranks = {bond: self.sizes[bond] for bond in self.rule.ranks}
        return {"size": ranks, "sizes": {part: self.sizes[part] for part in sorted(parts - ranks.keys())}}

    @property
    def _right(self) -> Network:
        right = parse_rule(self.text)[1]
        return with_sizes(right, {label: size for label, size in self.sizes.items() if label in carriers(right)})

    def cores(self, seed: int) -> dict[str, Tensor]:
        """Standard normal."""
        found = shapes(self._right)
        return {name: gaussian(*found[name], seed=1000 * seed + number) for number, name in enumerate(found)}

    def planted(self, seed: int) -> dict[str, Tensor]:
        """Values of the left side that standard normal cores of these sizes give.

        Of two tensors `K[o i] V[i ..]` the first is random, with more columns than rows, and solved for the second.
        """
        left, _ = parse_rule(self.text)
        dense = value_of(self._right, self.cores(seed))
        if len(left.nodes) == 1:
            return {left.nodes[0].name: dense}
        first, second = (node.name for node in left.nodes if isinstance(node, NamedTensor))
        matrix = gaussian(*(self.sizes[label] for label in left.nodes[0].labels), seed=1000 * seed + 999)
        return {first: matrix, second: torch.tensordot(torch.linalg.pinv(matrix), dense, dims=1)}

    def random(self, seed: int) -> dict[str, Tensor]:
        """Standard normal values for the left side."""
        left, _ = parse_rule(self.text)
        tensors = [node for node in left.nodes if isinstance(node, NamedTensor)]
        return {
            node.name: gaussian(*(self.sizes[label] for label in node.labels), seed=seed + number)
            for number, node in enumerate(tensors)
        }


CP = "K[o i h w] => A[o r] B[i r] C[h r] D[w r]"
BLOCKS = "K[out in] => Fuse[out o1 o2] Fuse[in i1 i2] "

PLANTED = {
    "cp": Case(CP, "o=7 i=6 h=4 w=3 r=5"),
    "overcomplete cp": Case(CP, "o=6 i=5 h=4 w=3 r=7"),
    "cp of a kernel": Case(CP, "o=32 i=24 h=3 w=3 r=16"),
    "cp with a tail": Case("K[o i h w] => U[o u] A[u r] B[i r] C[h r] D[w r]", "o=9 i=6 h=4 w=3 u=4 r=4"),
    "tucker": Case("K[o i h w] => G[a b c d] U[o a] V[i b] P[h c] Q[w d]", "o=7 i=6 h=4 w=3 a=3 b=4 c=2 d=2"),
    "train": Case("K[o i h w] => A[o p] B[p i q] C[q h s] D[s w]", "o=7 i=6 h=4 w=3 p=3 q=4 s=2"),
    "ring": Case("K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]", "o=7 i=6 h=5 w=4 z=2 p=2 q=3 s=2"),
    "block term": Case("K[o i h w] => U[o a t] G[a b h w t] V[b i t]", "o=8 i=7 h=3 w=2 a=2 b=2 t=3"),
    "hierarchical": Case(
        "K[o i h w] => U[o a] V[i b] P[h c] Q[w d] S[a b e] T[c d e]", "o=7 i=6 h=4 w=3 a=3 b=2 c=3 d=2 e=3"
    ),
    "tied matrix": Case("K[o i] => L[o r] L[i r]", "o=7 i=7 r=3"),
    "tied factors": Case("K[o i h w] => A[o r] B[i r] C[h r] C[w r]", "o=7 i=6 h=3 w=3 r=4"),
    "tied tucker": Case("K[o i h w] => U[o a] G[a b h w] U[i b]", "o=7 i=7 h=3 w=2 a=3 b=3"),
    "tied train": Case("K[a b c d] => L[a p] T[p b q] T[q c r] R[r d]", "a=5 b=4 c=4 d=6 p=3 q=3 r=3"),
    "tied ring": Case("K[a b c] => T[p a q] T[q b r] T[r c p]", "a=5 b=5 c=5 p=2 q=2 r=2"),
    "triangle": Case("K[o i h] => A[o p q] B[i q r] C[h r p]", "o=8 i=7 h=6 p=2 q=3 r=2"),
    "square with a diagonal": Case(
        "K[a b c d] => A[a p q] B[b q r t] C[c r s] D[d s p t]", "a=7 b=6 c=5 d=8 p=2 q=2 r=2 s=2 t=2"
    ),
    "hyperedge": Case("K[o i h w] => A[o r] B[i r s] C[h r] D[w s]", "o=7 i=6 h=4 w=3 r=3 s=2"),
    "open hyperedge": Case("K[o i h w] => A[o h r] B[i h r] C[w h r]", "o=6 i=5 h=3 w=4 r=3"),
    "copy tensor": Case("K[o i h] => A[o r] B[i s] C[h t] Copy[r s t]", "o=6 i=5 h=4 r=4 s=4 t=4"),
    "loop with a tail": Case("K[o i h w] => U[o u] A[u p q] B[i q r] C[h w r p]", "o=9 i=7 h=4 w=3 u=4 p=2 q=2 r=2"),
    "two loops": Case(
        "K[a b c d e] => A[a p q] B[b q r] C[c r p s u] D[d s t] E[e t u]",
        "a=5 b=6 c=4 d=3 e=4 p=2 q=2 r=2 s=2 t=2 u=2",
    ),
    "disconnected": Case("K[a b c d e] => A[a r] B[b r] C[c r] D[d s] E[e s]", "a=6 b=5 c=4 d=3 e=2 r=3 s=2"),
    "ring of parts": Case(
        BLOCKS + "A[z o1 p] B[p o2 q] C[q i1 r] D[r i2 z]", "out=20 o1=4 o2=5 in=18 i1=6 i2=3 p=2 q=3 r=2 z=2"
    ),
    "cp of parts": Case(BLOCKS + "A[o1 r] B[o2 r] C[i1 r] D[i2 r]", "out=20 o1=4 o2=5 in=18 i1=6 i2=3 r=5"),
    "kronecker": Case(BLOCKS + "A[o1 i1 r] B[o2 i2 r]", "out=20 o1=4 o2=5 in=18 i1=6 i2=3 r=3"),
    "two tensors": Case("K[o i] V[i j h] => A[o r] B[j r] C[h r]", "o=5 i=7 j=6 h=4 r=4"),
}
"""Right sides of every kind that generic cores of the kernel's own ranks fit exactly."""
