"""Rules and kernels that the tests of rewrites and traces share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.kernel_cases import gaussian
from tnalgebra.rewriting import Fit, rule

TUCKER = rule("K[o i h w] => U[o a] G[a b h w] V[b i]", name="tucker2")
TRAIN = rule("G[o i h w] => A[o p] B[p i q] C[q h w]", name="train")
HALVES = rule("K[o i] => L[o r] R[r i]", name="halves")
BLOCKS = rule("W[out in] => Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2]", name="mpo2")
KERNEL = gaussian(7, 5, 3, 2)
MATRIX = gaussian(6, 8, seed=1)


def same_bits(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


def two_steps() -> Fit:
    fit = TUCKER.apply({"K": KERNEL}, {"a": 3, "b": 4})
    return fit.then(TRAIN, {"p": 2, "q": 3}, bind={"G": "G"})
